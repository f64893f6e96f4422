"""Processes that share a queue, and what they wrote down."""

import asyncio
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
"""Seconds that a process may take to launch, and to shut down."""


class Run(Struct, frozen=True):
    """A workflow ran in a process, from one moment to another."""

    workflow_id: str
    began: float
    ended: float
    """By its own line; else the last moment at which its process is known to have lived."""


class Fleet:
    """Some processes of `bench.worker` on one database."""

    def __init__(self, url: str, ledger: Path, *limits: str) -> None:
        self.kills = 0
        self._command = (sys.executable, "-m", "bench.worker", url, str(ledger), *limits)
        self._ledger = ledger
        self._processes: list[Process] = []
        self._killed_at: dict[int, float] = {}

    async def launch(self) -> None:
        """Add a process; return when it works on the queue."""
        process = await asyncio.create_subprocess_exec(
            *self._command, cwd=ROOT, stdin=PIPE, stdout=PIPE
        )
        self._processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError("a process of the fleet did not launch; it said why on stderr")

    async def kill(self) -> None:
        """Kill one of them, with no time for a last word, and put another in its place."""
        process = self._processes.pop(random.randrange(len(self._processes)))
        self._killed_at[process.pid] = time.time()
        process.kill()
        await process.wait()
        self.kills += 1
        await self.launch()

    async def end(self) -> None:
        """Let them shut down in order."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*[process.wait() for process in self._processes])

    async def abandon(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def cut_off(self) -> int:
        """How many runs were going when their process was killed."""
        going: Counter[int] = Counter()
        for line in self._ledger.read_text().splitlines():
            what, _, pid, _ = line.split()
            going[int(pid)] += 1 if what == "begin" else -1
        return sum(going[pid] for pid in self._killed_at)

    def runs(self) -> list[Run]:
        """Everything that ran, in the order in which it began."""
        begun: dict[tuple[str, str], float] = {}
        runs: list[Run] = []
        for line in self._ledger.read_text().splitlines():
            what, workflow_id, pid, moment = line.split()
            if what == "begin":
                begun[workflow_id, pid] = float(moment)
            else:
                runs.append(Run(workflow_id, begun.pop((workflow_id, pid)), float(moment)))
        for (workflow_id, pid), began in begun.items():
            runs.append(Run(workflow_id, began, max(began, self._killed_at[int(pid)])))
        return sorted(runs, key=lambda run: run.began)


@asynccontextmanager
async def launched(fleet: Fleet, size: int) -> AsyncIterator[Fleet]:
    """So many processes for the length of the block."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(fleet.abandon)
        await asyncio.gather(*[fleet.launch() for _ in range(size)])
        yield fleet
        await fleet.end()


def most_in_a_window(moments: Sequence[float], window: float) -> int:
    """The most of them that any window of this length holds; its end is not part of it."""
    moments = sorted(moments)
    first = most = 0
    for last, moment in enumerate(moments):
        while moment >= moments[first] + window:
            first += 1
        most = max(most, last - first + 1)
    return most


def most_at_once(runs: Iterable[Run]) -> int:
    """The most that ran at the same time."""
    changes = [change for run in runs for change in ((run.began, 1), (run.ended, -1))]
    inside = most = 0
    for _, change in sorted(changes):
        inside += change
        most = max(most, inside)
    return most


def twice_at_once(runs: Iterable[Run]) -> list[str]:
    """The workflows that ran in two processes, or twice in one, at the same time."""
    by_id: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.workflow_id].append(run)
    return [workflow_id for workflow_id, lives in by_id.items() if most_at_once(lives) > 1]
