"""What a workload finds out: a value for each round, and what it should be."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from math import inf
from statistics import median

from msgspec import Struct

from bench.confidence import Interval, interval_of

Turn = Callable[[], Awaitable[float]]
"""One contender's part of a round; returns what it measured."""


class Verdict(StrEnum):
    """Whether a target is met."""

    MET = "met"
    MISSED = "MISSED"
    UNSURE = "unsure"
    """The rounds differ by more than the target is away."""


class Target(Struct, frozen=True):
    """What a figure should be; one of the two is given, or both."""

    at_least: float | None = None
    at_most: float | None = None

    def verdict_on(self, interval: Interval) -> Verdict:
        """Met or missed by all of the interval in which the figure is, or else unsure."""
        floor = -inf if self.at_least is None else self.at_least
        ceiling = inf if self.at_most is None else self.at_most
        if floor <= interval.low and interval.high <= ceiling:
            return Verdict.MET
        if interval.high < floor or ceiling < interval.low:
            return Verdict.MISSED
        return Verdict.UNSURE


class Figure(Struct, frozen=True):
    """One line of the report."""

    name: str
    unit: str
    values: tuple[float, ...] = ()
    """One a round, in their order."""
    target: Target | None = None
    failure: str | None = None
    """Why there are no values."""
    samples: tuple[float, ...] = ()
    """Single measurements of all rounds that count, in `unit`: percentiles and a histogram."""
    series: str | None = None
    """The line of the workload's plot that this is a point of; None if it is no point."""
    x: float | None = None
    """Where it is on that line; given with `series`."""
    x_unit: str = ""
    """What `x` counts, as one reads it below the plot: 'workflows at once', 'payload bytes'."""

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.values)

    @property
    def lowest(self) -> float:
        """One end of the spread."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The other end."""
        return max(self.values)

    @property
    def interval(self) -> Interval:
        """Where the median would be if there were more rounds."""
        return interval_of(self.values)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the target is met; None without one, or without values."""
        if self.target is None or self.failure is not None:
            return None
        return self.target.verdict_on(self.interval)

    @property
    def is_ratio(self) -> bool:
        """Whether contenders were compared: such a figure may travel from machine to machine."""
        return self.unit == "x" and self.failure is None


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """`above` / `below`, round by round."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


async def interleaved(
    turns: Mapping[str, Turn], rounds: int, on_turn: Callable[[str], None]
) -> dict[str, tuple[float, ...]]:
    """What each contender measured in each round, after a round of warm-up that does not count."""
    values: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + rounds):
        for name, turn in turns.items():
            on_turn(name)
            values[name].append(await turn())
    return {name: tuple(measured[1:]) for name, measured in values.items()}
