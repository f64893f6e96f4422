"""A process whose workflows stream the time, from themselves or from a step.

    python -m bench.streamer DATABASE_URL

It says `ready`, and ends when stdin does.
"""

import asyncio
import random
import sys
import time

import uvloop

from dbos_async import DBOS

KEY = "tokens"


def app_of(url: str) -> DBOS:
    dbos = DBOS("streams", url, app_version="1")
    dbos.queue("streams")

    async def values(count: int, pause: float) -> tuple[float, float]:
        """Write so many, at most one a pause; when that began and ended."""
        began = due = time.time() + random.uniform(0, pause)
        for _ in range(count):
            if (wait := due - time.time()) > 0:
                await asyncio.sleep(wait)
            await dbos.write_stream(KEY, time.time())
            due += pause
        return began, time.time()

    @dbos.step(name="values")
    async def step(count: int, pause: float) -> tuple[float, float]:
        return await values(count, pause)

    @dbos.workflow(name="from step")
    async def from_step(count: int, pause: float) -> tuple[float, float]:
        return await step(count, pause)

    @dbos.workflow(name="from workflow")
    async def from_workflow(count: int, pause: float) -> tuple[float, float]:
        return await values(count, pause)

    return dbos


async def main(url: str) -> None:
    async with app_of(url):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
