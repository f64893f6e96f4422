"""A process whose workflows wait for messages, and answer with the moment at which they had them.

    python -m bench.listener DATABASE_URL

It says `ready`, and ends when stdin does.
"""

import asyncio
import sys
import time

import uvloop

from dbos_async import DBOS

HOUR = 3_600.0


def app_of(url: str) -> DBOS:
    """The app."""
    dbos = DBOS("listener", url, app_version="1")
    dbos.queue("listeners")

    @dbos.workflow(name="listen")
    async def listen(messages: int) -> None:
        for number in range(messages):
            await dbos.recv("go", timeout=HOUR)
            await dbos.set_event(f"heard-{number}", time.time())

    return dbos


async def main() -> None:
    """Work until stdin is closed."""
    async with app_of(sys.argv[1]):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(main())
