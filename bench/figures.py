"""What a workload finds out: a value for each round, and what it should be."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median

from msgspec import Struct

Turn = Callable[[], Awaitable[float]]
"""One contender's part of a round; returns what it measured."""


class Target(Struct, frozen=True):
    """What a figure should be; one of the two is given."""

    at_least: float | None = None
    at_most: float | None = None

    def is_met_by(self, value: float) -> bool:
        """Whether `value` is no worse."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


class Figure(Struct, frozen=True):
    """One line of the report."""

    name: str
    unit: str
    values: tuple[float, ...] = ()
    """One a round, in their order."""
    target: Target | None = None
    failure: str | None = None
    """Why there are no values."""

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
    def is_met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.target is None:
            return None
        return self.failure is None and self.target.is_met_by(self.median)


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
