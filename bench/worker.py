"""A process of a fleet that works on the queue `fleet`.

    python -m bench.worker DATABASE_URL LEDGER [--concurrency N] [--rate-limit N]

It writes down when each workflow begins and ends: one line each, appended by one write, so that
processes may share the file and a kill tears nothing. It says `ready`, and ends when stdin does.
"""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

import uvloop

from dbos_async import DBOS, RateLimit

PERIOD = 1.0
"""Seconds of the rate limit."""


def app_of(url: str, ledger: Path, concurrency: int | None, rate_limit: int | None) -> DBOS:
    dbos = DBOS("fleet", url, app_version="1")
    dbos.queue(
        "fleet",
        concurrency=concurrency,
        rate_limit=None if rate_limit is None else RateLimit(rate_limit, per=PERIOD),
    )
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str) -> float:
        now = time.time()
        os.write(file, f"{what} {dbos.workflow_id} {os.getpid()} {now:.6f}\n".encode())
        return now

    @dbos.workflow(name="job")
    async def job(seconds: float) -> float:
        """When it began."""
        began = note("begin")
        if seconds:
            await asyncio.sleep(seconds)
        note("end")
        return began

    return dbos


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--rate-limit", type=int)
    options = parser.parse_args()
    async with app_of(options.url, options.ledger, options.concurrency, options.rate_limit):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(main())
