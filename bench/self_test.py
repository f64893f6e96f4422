"""The bench itself, on contenders of which one knows how long they take: 2 ms and 4 ms.

If their ratio is not 2, then no other figure of the run is worth anything.
"""

import asyncio
import time
from statistics import median
from typing import Protocol

from bench.bench import Bench
from bench.figures import Figure, Target, ratios

SHORT, LONG = 0.002, 0.004
MILLISECONDS = 1e3


class Clock(Protocol):
    """What time is, and how it goes by."""

    def now(self) -> float:
        """Seconds, from some moment on."""

    async def wait(self, seconds: float) -> None:
        """Return after so long."""


class LoopClock:
    """The clock of all workloads."""

    def now(self) -> float:
        return time.perf_counter()

    async def wait(self, seconds: float) -> None:
        """As exactly as the clock tells: timers of event loops are late by up to a millisecond."""
        until = self.now() + seconds
        while self.now() < until:
            await asyncio.sleep(0)


async def measure(bench: Bench, clock: Clock | None = None) -> list[Figure]:
    """The median time of each delay, in turns, and their ratio."""
    clock = clock or LoopClock()

    async def delayed(seconds: float) -> float:
        took = []
        for _ in range(bench.sizes.delays):
            started = clock.now()
            await clock.wait(seconds)
            took.append(clock.now() - started)
        return median(took) * MILLISECONDS

    values = await bench.interleaved(
        {"2 ms": lambda: delayed(SHORT), "4 ms": lambda: delayed(LONG)}
    )
    return [
        Figure("2 ms", "ms", values["2 ms"]),
        Figure("4 ms", "ms", values["4 ms"]),
        Figure(
            "4 ms : 2 ms",
            "x",
            ratios(values["4 ms"], values["2 ms"]),
            Target(at_least=1.95, at_most=2.05),
        ),
    ]
