"""How sure a median is, whatever its values are distributed like.

Of n independent values, the k-th lowest and the k-th highest enclose the median of what they were
drawn from, unless fewer than k of the n fell on one side of it: each falls there as a coin does, so
that is 2 P(X < k), X binomial (n, 1/2). No normal distribution is assumed; rounds that a checkpoint
or a neighbour slowed down are not drawn from one. Five rounds are the fewest that reach 90 %: for
them it is the lowest and the highest, 94 %.

Source: J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, chapter 2,
confidence intervals for median and other quantiles.
"""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

CONFIDENCE = 0.9
ENOUGH = 5
"""The fewest rounds that can be so sure: 1 - 2 / 2^5 = 0.94, and 1 - 2 / 2^4 = 0.88."""


class Interval(NamedTuple):
    """Where the median is, as far as one can know."""

    low: float
    high: float
    confidence: float

    def is_apart_from(self, other: "Interval") -> bool:
        """Whether noise cannot be all that makes the two medians differ."""
        return self.high < other.low or other.high < self.low


def interval_of(values: Sequence[float]) -> Interval:
    """The narrowest interval of enough confidence; of few values, the widest there is."""
    ordered = sorted(values)
    count = len(ordered)
    places = range(1, (count + 1) // 2 + 1)
    place = max((k for k in places if confidence_of(count, k) >= CONFIDENCE), default=1)
    return Interval(ordered[place - 1], ordered[count - place], confidence_of(count, place))


def confidence_of(count: int, place: int) -> float:
    """How probably the median is between the `place`-th lowest and highest of so many values."""
    outside = sum(comb(count, fewer) for fewer in range(place))
    return 1 - 2 * outside / float(2**count)
