"""A process with a schedule of every second: `ticking.py URL`. It says `ready` once launched."""

import asyncio
import sys
from datetime import datetime

from dbos_async import DBOS


def app_of(url: str) -> DBOS:
    dbos = DBOS("ticking", url, app_version="1")

    @dbos.step(name="note")
    async def note(due: datetime) -> str:
        return due.isoformat()

    @dbos.scheduled("* * * * * *")
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> str:
        return await note(due)

    return dbos


async def main(url: str) -> None:
    async with app_of(url):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
