"""A saga for processes that die: `traveller.py URL LEDGER CHECKPOINT MOMENT ENDING`.

What it does and undoes it writes to a ledger first, each line by one write that is on disk before
it goes on.
"""

import asyncio
import os
import sys
from pathlib import Path

from dbos_async import DBOS
from dbos_async.testing import crash_at

WORKFLOW_ID = "trip"
COMPENSATION_ID = f"{WORKFLOW_ID}-compensate"
PATIENCE = 60.0


class Sold(Exception):
    """What ends the trip."""


class Traveller:
    """The app."""

    def __init__(self, url: str, ledger: Path) -> None:
        self.dbos = dbos = DBOS("traveller", url, app_version="1")
        dbos.configure(recheck_interval=0.3)
        self.ledger = ledger

        @dbos.step(name="book")
        async def book(what: str) -> str:
            self.write(f"+{what}")
            return what

        @dbos.step(name="return")
        async def return_(what: str) -> None:
            self.write(f"-{what}")

        @dbos.step(name="ask")
        async def ask() -> None:
            raise Sold("sold out")

        async def by_train() -> None:
            async with dbos.saga() as saga:
                saga.compensate(return_, await book("train"))
                saga.compensate(return_, await book("seat"))
                await dbos.set_event("by train", value=True)
                await dbos.sleep(3600)

        @dbos.workflow(name="trip")
        async def trip(ending: str) -> None:
            async with dbos.saga() as saga:
                saga.compensate(return_, await book("flight"))
                async with asyncio.TaskGroup() as group:
                    group.create_task(by_train())
                    saga.compensate(return_, await book("hotel"))
                    await dbos.get_event(WORKFLOW_ID, "by train", timeout=PATIENCE)
                    await dbos.set_event("booked", value=True)
                    if ending == "fails":
                        await ask()
                    await dbos.sleep(3600)

        self.trip = trip.with_options(workflow_id=WORKFLOW_ID)

    def write(self, line: str) -> None:
        file = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{line}\n".encode())
        os.fsync(file)
        os.close(file)

    def lines(self) -> list[str]:
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    async def travel(self, ending: str) -> None:
        """Return when all that was booked is returned."""
        handle = await self.dbos.start_workflow(self.trip, ending)
        if ending == "cancelled":
            await self.dbos.get_event(WORKFLOW_ID, "booked", timeout=PATIENCE)
            await self.dbos.cancel_workflow(WORKFLOW_ID)
            while not await self.dbos.list_workflows(workflow_ids=[COMPENSATION_ID]):
                await asyncio.sleep(0.01)
            compensation = await self.dbos.retrieve_workflow(COMPENSATION_ID)
            await compensation.get_result(timeout=PATIENCE)
            return
        try:
            await handle.get_result(timeout=PATIENCE)
        except ExceptionGroup as exc:
            if "sold out" not in str(exc.exceptions):  # it may be of another process
                raise


async def main(url: str, ledger: str, ending: str) -> None:
    traveller = Traveller(url, Path(ledger))
    async with traveller.dbos:
        await traveller.travel(ending)


if __name__ == "__main__":
    with crash_at(int(sys.argv[3]), before=sys.argv[4] == "before", kill=True):
        asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[5]))
