"""Workflows of two steps, and a process that does not get past the first one.

    python -m bench.relay DATABASE_URL WORKFLOWS

It says `ready`, and `halted` once each of its workflows has recorded its first step; there they
stand still. It ends when stdin does, or is killed.
"""

import asyncio
import sys
import time

import uvloop

from bench.server import connected
from dbos_async import DBOS

CHUNK = 500
"""Workflows that are started at once."""
LOOK_INTERVAL = 0.02
"""Seconds between looks whether all have got so far."""
RECORDED = "select count(*) from dbos.operation_outputs"
UNFINISHED = "select exists (select from dbos.workflow_status where status <> 'SUCCESS')"


class Relay:
    """An app whose workflows halt after their first step, or do not."""

    def __init__(self, url: str, *, halts: bool) -> None:
        self.url = url
        self.took_over: list[float] = []
        """When each workflow got past its first step, by the monotonic clock."""
        self.dbos = dbos = DBOS("relay", url, app_version="1")

        @dbos.step(name="leg")
        async def leg(number: int) -> int:
            return number

        @dbos.workflow(name="run")
        async def run(number: int) -> None:
            await leg(number)
            if halts:
                await asyncio.Event().wait()
            self.took_over.append(time.perf_counter())
            await leg(number)

        self._run = run

    async def start(self, workflows: int) -> None:
        """Start so many; return when they have recorded their first step."""
        for first in range(0, workflows, CHUNK):
            chunk = range(first, min(first + CHUNK, workflows))
            await asyncio.gather(*[self.dbos.start_workflow(self._run, n) for n in chunk])
        async with connected(self.url) as connection:
            while await connection.fetchval(RECORDED) < workflows:
                await asyncio.sleep(LOOK_INTERVAL)

    async def finish(self, workflows: int) -> None:
        """Return when that many have been taken over, and none is left that has not ended."""
        async with connected(self.url) as connection:
            while len(self.took_over) < workflows or await connection.fetchval(UNFINISHED):
                await asyncio.sleep(LOOK_INTERVAL)


async def main() -> None:
    """Get halfway."""
    relay = Relay(sys.argv[1], halts=True)
    async with relay.dbos:
        print("ready", flush=True)
        await relay.start(int(sys.argv[2]))
        print("halted", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(main())
