"""A peer's process: no-op jobs on the `pgqueuer` package. Imports nothing of the bench.

    python jobs.py DATABASE_URL JOBS

For each line on stdin it does what the line says, `fill` or `drain`, and answers with a line. It is
set up as its manual says: durable tables, its settings for autovacuum, a direct connection for the
queue manager, jobs fetched a hundred at a time; uvloop, as in its own benchmark. A drain is one of
its own: it ends when the queue is empty and every job's end is recorded.
"""

import asyncio
import logging
import sys

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

URL, JOBS = sys.argv[1], int(sys.argv[2])
BATCH = 100
FILL = 1_000


async def install() -> None:
    connection = await asyncpg.connect(URL)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()
    await connection.close()


async def fill() -> None:
    connection = await asyncpg.connect(URL)
    queries = Queries(AsyncpgDriver(connection))
    await queries.clear_queue()
    await connection.execute("truncate pgqueuer_log, pgqueuer_statistics")
    for begun in range(0, JOBS, FILL):
        jobs = min(FILL, JOBS - begun)
        await queries.enqueue(["noop"] * jobs, [None] * jobs, [0] * jobs)
    await connection.execute("vacuum analyze pgqueuer")
    await connection.close()


async def drain() -> None:
    ran = 0
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(URL)))

    @queuer.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal ran
        ran += 1

    await queuer.run(batch_size=BATCH, mode=QueueExecutionMode.drain)
    if ran != JOBS:
        raise RuntimeError(f"{ran} of {JOBS} jobs ran")


async def main() -> None:
    logging.disable()
    await install()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await {"fill": fill, "drain": drain}[line.strip()]()
        print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
