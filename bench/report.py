"""Figures for people, and for programs."""

import os
import platform
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.table import Table

from bench.figures import Figure, Target


class Load(Struct, frozen=True):
    """How busy the machine is: processes that want a processor, averaged over minutes."""

    one_minute: float
    five_minutes: float
    fifteen_minutes: float

    @classmethod
    def now(cls) -> "Load":
        """The load at this moment."""
        return cls(*(round(load, 2) for load in os.getloadavg()))

    def __str__(self) -> str:
        return f"{self.one_minute} {self.five_minutes} {self.fifteen_minutes}"


class Measured(Struct, frozen=True):
    """What a workload found out, and how busy the machine was before and after."""

    workload: str
    figures: list[Figure]
    load_before: Load
    load_after: Load


class Report(Struct, frozen=True):
    """A whole run."""

    settings: dict[str, str]
    """Of the server."""
    workloads: list[Measured]
    quick: bool
    """The sizes were too small for the figures to mean anything."""
    processors: int | None = msgspec.field(default_factory=os.cpu_count)
    machine: str = msgspec.field(default_factory=platform.platform)
    python: str = msgspec.field(default_factory=platform.python_version)

    def write(self, path: Path) -> None:
        """Every value of every round, as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    def table(self) -> Table:
        """Medians and spreads."""
        title = "quick run: the figures mean nothing" if self.quick else "median of the rounds"
        table = Table("workload", "figure", title=title, caption=self.circumstances())
        for heading in ("median", "lowest", "highest"):
            table.add_column(heading, justify="right")
        table.add_column("target")
        for measured in self.workloads:
            for figure in measured.figures:
                table.add_row(measured.workload, *cells_of(figure, quick=self.quick))
            table.add_section()
        return table

    def failures(self) -> list[str]:
        """What could not be measured, and why."""
        return [
            f"{measured.workload}, {figure.name}: {figure.failure}"
            for measured in self.workloads
            for figure in measured.figures
            if figure.failure is not None
        ]

    def circumstances(self) -> str:
        """What the figures depend on."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        loads = "; ".join(
            f"{measured.workload} {measured.load_before} → {measured.load_after}"
            for measured in self.workloads
        )
        return (
            f"{self.processors} processors, {self.machine}, Python {self.python}\n"
            f"{settings}\nload over 1, 5 and 15 minutes: {loads}"
        )


def cells_of(figure: Figure, *, quick: bool) -> list[str]:
    """A line of the table."""
    verdict = verdict_of(figure, quick=quick)
    if figure.failure is not None:
        return [figure.name, "failed", "", "", verdict]
    values = (figure.median, figure.lowest, figure.highest)
    return [figure.name, *(f"{shown(value)} {figure.unit}".strip() for value in values), verdict]


def verdict_of(figure: Figure, *, quick: bool) -> str:
    """The target, and whether it is met."""
    if figure.target is None:
        return ""
    wanted = words_of(figure.target)
    if quick or figure.failure is not None:
        return wanted
    return f"{wanted} {'met' if figure.is_met else 'MISSED'}"


def words_of(target: Target) -> str:
    """The target as one reads it."""
    if target.at_least is not None:
        return f"≥ {shown(target.at_least)}"
    return "" if target.at_most is None else f"≤ {shown(target.at_most)}"


def shown(value: float) -> str:
    """A number with as many digits as one can believe."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
