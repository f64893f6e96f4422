"""A process in which many workflows wait, in memory or parked, and are then woken all at once.

    python -m bench.waiter DATABASE_URL sleep|recv memory|parked WORKFLOWS NAP_SECONDS

It says `ready`, and what it measured, as JSON: null if some were not asleep when the first of them
was due. It ends when stdin does.
"""

import asyncio
import gc
import resource
import sys
import time
from pathlib import Path

import msgspec
import uvloop
from msgspec import Struct

from bench.server import connected
from dbos_async import DBOS, Message
from dbos_async._store.database import Connection

HOUR = 3_600.0
PARK_AFTER = 0.5
CHUNK = 500
"""Workflows that are started at once."""
LOOK_INTERVAL = 0.02
"""Seconds between looks whether all have got so far."""
# A wait is recorded when it begins.
WAITING = "select count(*) from dbos.operation_outputs where function_name = 'DBOS.sleep'"
PARKED = "select count(*) from dbos.workflow_status where status = 'DELAYED'"
UNFINISHED = "select exists (select from dbos.workflow_status where status <> 'SUCCESS')"


class Waited(Struct, frozen=True):
    """What waiting costs."""

    seconds: float
    """From the first start until all wait."""
    bytes_each: float
    """What the process has grown by, for each that waits."""
    woken: float
    """Workflows a second, from when they are due, or messages are sent, to the last end."""


class Crowd:
    """Workflows that wait."""

    def __init__(self, url: str, kind: str, form: str, workflows: int) -> None:
        self.dbos = dbos = DBOS("waiter", url, app_version="1")
        dbos.configure(park_after=PARK_AFTER if form == "parked" else None)
        self.url = url
        self._kind = kind
        self._asleep = PARKED if form == "parked" else WAITING
        self._workflows = workflows

        @dbos.workflow(name="sleep")
        async def sleep(seconds: float) -> None:
            await dbos.sleep(seconds)

        @dbos.workflow(name="recv")
        async def recv(seconds: float) -> None:
            await dbos.recv("go", timeout=seconds)

        self._workflow = {"sleep": sleep, "recv": recv}[kind]

    async def wait(self, nap: float) -> Waited | None:
        """Let all of them wait, and wake them; None if some had not begun when they were due."""
        async with connected(self.url) as connection:
            gc.collect()
            before, began = resident_bytes(), time.monotonic()
            due = began + nap if self._kind == "sleep" else None
            await self._start(due)
            if not await self._all_wait(connection, due):
                return None
            seconds = time.monotonic() - began
            gc.collect()
            grown = resident_bytes() - before
            woken = await self._woken(connection, due)
        return Waited(seconds, grown / self._workflows, woken)

    async def _start(self, due: float | None) -> None:
        for first in range(0, self._workflows, CHUNK):
            seconds = HOUR if due is None else max(0.0, due - time.monotonic())
            chunk = range(first, min(first + CHUNK, self._workflows))
            await asyncio.gather(
                *[
                    self.dbos.start_workflow(
                        self._workflow.with_options(workflow_id=str(number)), seconds
                    )
                    for number in chunk
                ]
            )

    async def _all_wait(self, connection: Connection, due: float | None) -> bool:
        while due is None or time.monotonic() < due:
            if await connection.fetchval(self._asleep) == self._workflows:
                return due is None or time.monotonic() < due
            await asyncio.sleep(LOOK_INTERVAL)
        return False

    async def _woken(self, connection: Connection, due: float | None) -> float:
        if due is None:
            due = time.monotonic()
            await self.dbos.send_many(
                [Message(str(number), number, "go") for number in range(self._workflows)]
            )
        else:
            await asyncio.sleep(due - time.monotonic())
        while await connection.fetchval(UNFINISHED):
            await asyncio.sleep(LOOK_INTERVAL)
        return self._workflows / (time.monotonic() - due)


def resident_bytes() -> int:
    """Memory of this process; where the system does not tell, the most that it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def main() -> None:
    """Wait once."""
    url, kind, form, workflows, nap = sys.argv[1:]
    crowd = Crowd(url, kind, form, int(workflows))
    async with crowd.dbos:
        print("ready", flush=True)
        waited = await crowd.wait(float(nap))
        print(msgspec.json.encode(waited).decode(), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(main())
