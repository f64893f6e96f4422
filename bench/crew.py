"""Processes of `bench.load` on one database, which work at the same time."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
"""Seconds that a process may take to launch, to answer and to shut down."""
LEAD = 0.25
"""How long the load runs before it counts, as a share of the time that counts."""


class Reading(Struct, frozen=True):
    """How far a process was at a moment of the clock that all processes share."""

    moment: float
    steps: int
    cpu_seconds: float


class Work(Struct, frozen=True):
    """What a process did between two readings."""

    seconds: float
    steps: int
    cpu_seconds: float


class Member:
    """One of the processes."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self._process = process

    async def hear(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            if line := await self._process.stdout.readline():
                return line.decode().strip()
        raise RuntimeError("a process that makes load has ended; it said why on stderr")

    async def do(self, command: str) -> Reading:
        """Have it do something; how far it was when it was done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        moment, steps, cpu_seconds = (await self.hear()).split()
        return Reading(float(moment), int(steps), float(cpu_seconds))

    async def end(self) -> None:
        """Let it shut down in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()

    async def abandon(self) -> None:
        """Kill it, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def crew(url: str, size: int, *, workflows: int, steps: int) -> AsyncIterator[list[Member]]:
    """So many launched processes, which idle until they are told to work."""
    arguments = ("-m", "bench.load", url, str(workflows), str(steps))
    members: list[Member] = []
    async with AsyncExitStack() as stack:
        for _ in range(size):
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, cwd=ROOT, stdin=PIPE, stdout=PIPE
            )
            members.append(Member(process))
            stack.push_async_callback(members[-1].abandon)
        for member in members:
            assert await member.hear() == "ready"
        yield members
        await asyncio.gather(*[member.end() for member in members])


@asynccontextmanager
async def at_work(members: Sequence[Member], seconds: float) -> AsyncIterator[None]:
    """Have them work for the length of the block, which begins once all are well under way."""
    await asyncio.gather(*[member.do("go") for member in members])
    await asyncio.sleep(seconds * LEAD)
    yield
    await asyncio.gather(*[member.do("stop") for member in members])


async def watched(members: Sequence[Member], seconds: float) -> list[Work]:
    """What each of them does in so long, or until it has done a step; they are at work."""
    before = await looked_at(members)
    async with asyncio.timeout(seconds + PATIENCE):
        while True:
            await asyncio.sleep(seconds)
            after = await looked_at(members)
            if all(b.steps > a.steps for a, b in zip(before, after, strict=True)):
                break
    return [
        Work(b.moment - a.moment, b.steps - a.steps, b.cpu_seconds - a.cpu_seconds)
        for a, b in zip(before, after, strict=True)
    ]


async def looked_at(members: Sequence[Member]) -> list[Reading]:
    """How far they are."""
    return await asyncio.gather(*[member.do("look") for member in members])


def rate_of(work: Sequence[Work]) -> float:
    """Steps per second, of all of them together."""
    return sum(each.steps / each.seconds for each in work)
