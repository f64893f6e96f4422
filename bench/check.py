"""Whether ratios became worse than they were in the reference run.

Rates and times of another day or machine prove nothing and are never looked at. A ratio, of
contenders that took turns, travels further. Worse is one whose confidence interval lies beyond that
of the reference, for the spread within each run, and whose median is beyond it by a tenth, for what
makes the runs differ from each other: where tables lie on the disk, which processor had which
process. What seems worse is measured again, and only what is worse twice is called so.
"""

from collections.abc import Iterator
from enum import StrEnum

from msgspec import Struct
from rich.table import Table

from bench.figures import Figure
from bench.report import Report, shown

TOLERANCE = 0.1


class Change(StrEnum):
    """What became of a ratio."""

    SAME = "no difference beyond the noise"
    BETTER = "better"
    WORSE = "WORSE"


class Compared(Struct, frozen=True):
    """A ratio of this run, and the same of the reference."""

    workload: str
    now: Figure
    before: Figure

    @property
    def name(self) -> str:
        """What it is, and of which workload."""
        return f"{self.workload}, {self.now.name}"

    @property
    def shift(self) -> float:
        """By which part of the reference it went up."""
        return self.now.median / self.before.median - 1

    @property
    def change(self) -> Change:
        """Whether that is more than noise."""
        if abs(self.shift) <= TOLERANCE or not self.now.interval.is_apart_from(
            self.before.interval
        ):
            return Change.SAME
        return Change.BETTER if (self.shift > 0) == is_better_if_higher(self.now) else Change.WORSE


def compared(now: Report, reference: Report) -> list[Compared]:
    """The ratios of this run that the reference has, too."""
    before = dict(guarded(reference))
    return [Compared(key[0], figure, before[key]) for key, figure in guarded(now) if key in before]


def guarded(report: Report) -> Iterator[tuple[tuple[str, str], Figure]]:
    """Ratios with a target on one side: it says which way is better."""
    for measured in report.workloads:
        for figure in measured.figures:
            if figure.is_ratio and figure.target is not None and is_one_sided(figure):
                yield (measured.workload, figure.name), figure


def is_one_sided(figure: Figure) -> bool:
    """Whether there is a better and a worse."""
    target = figure.target
    return target is not None and (target.at_least is None) != (target.at_most is None)


def is_better_if_higher(figure: Figure) -> bool:
    """Which way is better."""
    return figure.target is not None and figure.target.at_least is not None


def worse(ratios: list[Compared]) -> list[Compared]:
    """Those that became worse."""
    return [ratio for ratio in ratios if ratio.change is Change.WORSE]


def workloads_of(ratios: list[Compared]) -> list[str]:
    """Where they were measured, each once."""
    return list(dict.fromkeys(ratio.workload for ratio in ratios))


def worse_again(before: list[Compared], again: list[Compared]) -> list[Compared]:
    """Those of the second measurement that were worse in the first one, too."""
    names = {ratio.name for ratio in before}
    return [ratio for ratio in worse(again) if ratio.name in names]


def table_of(ratios: list[Compared], reference: Report) -> Table:
    """Each ratio, then and now."""
    title = f"ratios, beside those of {reference.date:%Y-%m-%d}, commit {reference.commit[:10]}"
    table = Table("ratio", title=title)
    for heading in ("reference", "now", "lowest", "highest"):
        table.add_column(heading, justify="right")
    table.add_column("change")
    for ratio in ratios:
        now = ratio.now
        values = (ratio.before.median, now.median, now.interval.low, now.interval.high)
        table.add_row(ratio.name, *(f"{shown(value)} x" for value in values), words_of(ratio))
    return table


def words_of(ratio: Compared) -> str:
    """What became of it, and by how much."""
    if ratio.change is Change.SAME:
        return ratio.change
    return f"{ratio.change}, by {abs(ratio.shift):.0%}"


def differences(now: Report, reference: Report) -> list[str]:
    """What else is not the same, and may be why."""
    pairs = {
        "processors": (reference.processors, now.processors),
        "processor": (reference.processor, now.processor),
        "Python": (reference.python, now.python),
        **{name: (reference.settings.get(name), value) for name, value in now.settings.items()},
    }
    return [
        f"{name}: {before} there, {after} here"
        for name, (before, after) in pairs.items()
        if before != after
    ]
