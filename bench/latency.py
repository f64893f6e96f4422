"""How long single things took, while how many a second there are is measured."""

from collections.abc import Sequence
from statistics import median, quantiles

from bench.figures import Figure

MILLISECONDS = 1e3


class Latency:
    """Waits, turn by turn; those of the warm-up do not count."""

    def __init__(self) -> None:
        self._turns: list[Sequence[float]] = []

    def note(self, waits: Sequence[float]) -> None:
        """A turn is over; how many seconds each thing took in it."""
        self._turns.append(waits)

    def figures(self, what: str, *, x: float, x_unit: str) -> list[Figure]:
        """The median and the slowest hundredth of each round, as points of two lines."""
        rounds = self._turns[1:]
        p50 = tuple(median(waits) * MILLISECONDS for waits in rounds)
        p99 = tuple(slowest_of(waits) * MILLISECONDS for waits in rounds)
        return [
            Figure(f"{what}, p50", "ms", p50, series="p50", x=x, x_unit=x_unit),
            Figure(f"{what}, p99", "ms", p99, series="p99", x=x, x_unit=x_unit),
        ]


def slowest_of(waits: Sequence[float]) -> float:
    """What the slowest hundredth took at least."""
    if len(waits) == 1:
        return waits[0]
    return quantiles(waits, n=100, method="inclusive")[-1]
