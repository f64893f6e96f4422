"""A process whose steps share limiters with others. It writes down each call as it begins and ends.

    limited.py URL LEDGER RATE PERIOD CONCURRENCY

It says `ready` when it is launched, works until its stdin is closed, and then shuts down.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from dbos_async import DBOS, Limiter, RateLimit

CALLERS = 12


async def main(url: str, ledger: str, rate: int, period: float, concurrency: int) -> None:
    dbos = DBOS("limited", url, app_version="1")
    numbers = iter(range(1_000_000))
    out = os.open(Path(ledger), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def note(what: str, number: int) -> None:
        moment = (await dbos.now()).timestamp()  # the database's clock
        os.write(out, f"{what} {os.getpid()}-{number} {os.getpid()} {moment}\n".encode())

    rate_limit = RateLimit(rate, per=period) if rate else None

    @dbos.step(limiter=Limiter("api", rate_limit=rate_limit, concurrency=concurrency or None))
    async def call() -> None:
        number = next(numbers)
        await note("begin", number)
        try:
            await asyncio.sleep(random.uniform(0.005, 0.03))
        finally:  # also if the shutdown ends it
            await note("end", number)

    @dbos.workflow()
    async def caller() -> None:
        while True:
            await call()

    async with dbos:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for _ in range(CALLERS):
            await dbos.start_workflow(caller)
        await asyncio.to_thread(sys.stdin.read)
        await dbos.shutdown(timeout=0.5)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(
        main(
            arguments[0],
            arguments[1],
            int(arguments[2]),
            float(arguments[3]),
            int(arguments[4]),
        )
    )
