"""Another process of the bench, beside the one that measures."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0
"""Seconds until its next line, and for its shutdown; it takes a few."""


class Companion:
    """A process that says lines, and ends when stdin does."""

    def __init__(self, program: str, process: Process) -> None:
        self._program = program
        self._process = process

    async def hear(self) -> str:
        """The next line that it says.

        Raises:
            RuntimeError: it ended without; it said why on stderr.
            TimeoutError: it has been silent for too long.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench.{self._program} ended; it said why on stderr")
        return line.decode().strip()

    async def end(self) -> None:
        """Let it shut down in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()

    async def kill(self) -> None:
        """End it with no time for a last word, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def companion(program: str, *arguments: object) -> AsyncIterator[Companion]:
    """`python -m bench.PROGRAM` for the length of the block, from when it says `ready`."""
    command = (sys.executable, "-m", f"bench.{program}", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    launched = Companion(program, process)
    try:
        if (line := await launched.hear()) != "ready":
            raise RuntimeError(f"bench.{program} said {line!r} rather than that it is ready")
        yield launched
        await launched.end()
    finally:
        await launched.kill()
