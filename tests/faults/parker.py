"""A process whose workflows are parked and woken all the time: `parker.py URL LEDGER`.

It says `ready` when it is launched, and lives until it is killed. Each step writes a line.
"""

import asyncio
import os
import sys

from dbos_async import DBOS

SLEEPS = 4
SECONDS = 0.3


def app_of(url: str, ledger: str) -> DBOS:
    dbos = DBOS("parker", url, app_version="1", park_after=0.02)
    dbos.configure(recheck_interval=0.3)
    dbos.queue("queue", worker_concurrency=3, park=True)
    out = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @dbos.step(name="note")
    async def note(number: int) -> int:
        os.write(out, f"{dbos.workflow_id} {number} {os.getpid()}\n".encode())
        return number

    @dbos.workflow(name="flow", max_recovery_attempts=None)
    async def flow() -> list[int]:
        notes = [await note(0)]
        for number in range(1, SLEEPS):
            await asyncio.gather(dbos.sleep(SECONDS), dbos.sleep(SECONDS / 2))
            notes.append(await note(number))
        return notes

    return dbos


async def main(url: str, ledger: str) -> None:
    async with app_of(url, ledger):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
