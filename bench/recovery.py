"""A process is killed in the middle of ten thousand workflows; another one ends them.

Each has recorded a step, and has one more ahead. The other process runs already, and leads: a
leader that dies is replaced first. Or it is launched once the first one is dead.
"""

import asyncio
import time

from bench.bench import Bench
from bench.companion import companion
from bench.figures import Figure
from bench.relay import Relay

PATIENCE = 300.0


async def measure(bench: Bench) -> list[Figure]:
    """Seconds from the kill to the first one that goes on and to the last end; the rate between."""
    heirs = [
        Heir(bench, "another process", launched_before=True),
        Heir(bench, "a new process", launched_before=False),
    ]
    values = await bench.interleaved({heir.name: heir.inherit for heir in heirs})
    return [figure for heir in heirs for figure in heir.figures(values[heir.name])]


class Heir:
    """Who takes over, and how long it took, turn by turn."""

    def __init__(self, bench: Bench, name: str, *, launched_before: bool) -> None:
        self.name = name
        self._bench = bench
        self._launched_before = launched_before
        self._first: list[float] = []
        self._rates: list[float] = []

    async def inherit(self) -> float:
        """Kill a process, and end its workflows; the seconds between."""
        pending = self._bench.sizes.pending
        async with self._bench.server.database(with_schema=True) as url:
            relay = Relay(url, halts=False)
            if self._launched_before:
                async with relay.dbos:
                    killed_at = await killed(url, pending)
                    ended_at = await ended(relay, pending)
            else:
                killed_at = await killed(url, pending)
                async with relay.dbos:
                    ended_at = await ended(relay, pending)
        began_at = min(relay.took_over)
        self._first.append(began_at - killed_at)
        self._rates.append(pending / (ended_at - began_at))
        return ended_at - killed_at

    def figures(self, seconds: tuple[float, ...]) -> list[Figure]:
        """What was measured; the warm-up does not count."""
        return [
            Figure(f"{self.name}: first goes on after", "s", tuple(self._first[1:])),
            Figure(f"{self.name}: all ended after", "s", seconds),
            Figure(f"{self.name}: recovered", "/s", tuple(self._rates[1:])),
        ]


async def killed(url: str, workflows: int) -> float:
    """Start so many in a process of their own, and kill it; when that was."""
    async with companion("relay", url, workflows) as victim:
        if (line := await victim.hear()) != "halted":
            raise RuntimeError(f"bench.relay said {line!r}")
        await victim.kill()
        return time.perf_counter()


async def ended(relay: Relay, workflows: int) -> float:
    """Return when all have ended, and when that was."""
    async with asyncio.timeout(PATIENCE):
        await relay.finish(workflows)
    return time.perf_counter()
