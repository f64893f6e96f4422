"""Figures for people, and for programs."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles

import msgspec
from msgspec import Struct, structs
from rich.table import Table

from bench.bench import Sizes
from bench.confidence import ENOUGH
from bench.figures import Figure, Target
from bench.origin import commit_of_this, package_versions, processor_model

NUMBERS = re.compile(rb"\[\n\s+(-?\d[^\[\]{}\"]*?)\s+\]")
"""An array of numbers in formatted JSON; ten thousand samples are no reason for as many lines."""
KEPT_SAMPLES = 1_001
"""What of a figure's samples is written down: every thousandth part of them ends at one."""
BUSY = 0.25
"""Processes that want a processor, for each there is, from which on the bench is disturbed."""


class Load(Struct, frozen=True):
    """How busy the machine is: processes that want a processor, averaged over minutes."""

    one_minute: float
    five_minutes: float
    fifteen_minutes: float

    @classmethod
    def now(cls) -> "Load":
        """The load at this moment."""
        return cls(*(round(load, 2) for load in os.getloadavg()))

    @property
    def is_busy(self) -> bool:
        """Whether something else runs, too."""
        return self.one_minute > BUSY * (os.cpu_count() or 1)

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
    sizes: Sizes = Sizes()
    processors: int | None = msgspec.field(default_factory=os.cpu_count)
    processor: str = msgspec.field(default_factory=processor_model)
    machine: str = msgspec.field(default_factory=platform.platform)
    python: str = msgspec.field(default_factory=platform.python_version)
    packages: dict[str, str] = msgspec.field(default_factory=package_versions)
    commit: str = msgspec.field(default_factory=commit_of_this)
    date: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    """When it ended."""

    @classmethod
    def read(cls, path: Path) -> "Report":
        """One that was written before.

        Raises:
            FileNotFoundError: there is none.
            msgspec.DecodeError: it is none; one of another version of the bench may be.
        """
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def write(self, path: Path) -> None:
        """Every value of every round, as JSON; of samples, what their distribution takes."""
        encoded = msgspec.json.format(msgspec.json.encode(thinned(self)), indent=2)
        path.write_bytes(NUMBERS.sub(on_one_line, encoded) + b"\n")

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

    def latencies(self) -> Table:
        """Percentiles of single measurements; no rows where no figure has any."""
        table = Table("workload", "figure", title="of single measurements")
        for heading in ("samples", "p50", "p95", "p99", "longest"):
            table.add_column(heading, justify="right")
        for measured in self.workloads:
            for figure in measured.figures:
                if figure.samples:
                    values = (*percentiles_of(figure.samples, 50, 95, 99), max(figure.samples))
                    words = (f"{shown(value)} {figure.unit}" for value in values)
                    table.add_row(
                        measured.workload, figure.name, f"{len(figure.samples):,}", *words
                    )
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
        packages = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return (
            f"{self.processors} x {self.processor}, {self.machine}, Python {self.python}\n"
            f"{packages}\n{settings}\n"
            f"{self.date:%Y-%m-%d %H:%M} UTC, commit {self.commit or 'unknown'}\n"
            f"load over 1, 5 and 15 minutes: {loads}"
        )


def cells_of(figure: Figure, *, quick: bool) -> list[str]:
    """A line of the table."""
    verdict = verdict_of(figure, quick=quick)
    if figure.failure is not None:
        return [figure.name, "failed", "", "", verdict]
    values = (figure.median, figure.lowest, figure.highest)
    return [figure.name, *(f"{shown(value)} {figure.unit}".strip() for value in values), verdict]


def verdict_of(figure: Figure, *, quick: bool) -> str:
    """The target, and whether it is met; or whether a ratio without one is any difference."""
    if figure.target is None:
        return "" if quick else doubt_about(figure)
    wanted = words_of(figure.target)
    if quick or figure.verdict is None:
        return wanted
    return f"{wanted} {figure.verdict}{rounds_of(figure)}"


def doubt_about(figure: Figure) -> str:
    """What to say of a ratio that may as well be 1."""
    if figure.is_ratio and figure.interval.low <= 1 <= figure.interval.high:
        return f"unsure which is more{rounds_of(figure)}"
    return ""


def rounds_of(figure: Figure) -> str:
    """How many there were, where they are too few for the usual confidence."""
    count = len(figure.values)
    if count >= ENOUGH:
        return ""
    return f" ({count} round{'' if count == 1 else 's'})"


def words_of(target: Target) -> str:
    """The target as one reads it."""
    least, most = target.at_least, target.at_most
    if least is not None and most is not None:
        return f"{shown(least)} to {shown(most)}"
    if least is not None:
        return f"≥ {shown(least)}"
    return "" if most is None else f"≤ {shown(most)}"


def percentiles_of(samples: Sequence[float], *percents: int) -> list[float]:
    """Between which of the samples so many percent of them end."""
    if len(samples) == 1:
        return [samples[0]] * len(percents)
    hundredths = quantiles(samples, n=100, method="inclusive")
    return [hundredths[percent - 1] for percent in percents]


def thinned(report: Report) -> Report:
    """The report with no more samples than percentiles and a histogram take."""
    return structs.replace(
        report,
        workloads=[
            structs.replace(
                measured,
                figures=[
                    structs.replace(figure, samples=some_of(figure.samples))
                    for figure in measured.figures
                ],
            )
            for measured in report.workloads
        ],
    )


def some_of(samples: Sequence[float]) -> tuple[float, ...]:
    """Of many samples, those at even distances from the lowest to the highest."""
    ordered = sorted(samples)
    if len(ordered) > KEPT_SAMPLES:
        gap = (len(ordered) - 1) / (KEPT_SAMPLES - 1)
        ordered = [ordered[round(number * gap)] for number in range(KEPT_SAMPLES)]
    return tuple(float(f"{sample:.5g}") for sample in ordered)


def on_one_line(array: "re.Match[bytes]") -> bytes:
    """An array without the line breaks."""
    return b"[" + b" ".join(array[1].split()) + b"]"


def shown(value: float) -> str:
    """A number with as many digits as one can believe."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
