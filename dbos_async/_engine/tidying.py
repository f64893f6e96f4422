"""Rows in databases of the user's that nobody needs any more: deleted in the background.

    step recorded here ─▶ spent ─▶ deleted, with whatever else is spent by then
    launch, and every minute ─▶ all rows there, page by page ─▶ those that are spent, deleted

A process deletes what its own steps left, soon after they are recorded. What it does not come to,
because it dies or the other database is away, the sweep of any process finds: rows of steps that
are recorded, and of workflows that ended, were rewound or deleted. A row of a cancelled workflow
whose step is not recorded stays, for a resume. To delete twice does no harm, and neither does it
late.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from dbos_async import errors
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import outputs
from dbos_async._store.database import Database
from dbos_async._store.datasources import Datasource
from dbos_async._store.outputs import PAGE, OutputId

GATHER: Final = 0.2
"""Seconds in which more may be spent, for one delete."""
FAREWELL: Final = 2.0
"""Seconds that a shutdown spends at most on what is left."""


class Tidier:
    """Deletes what is spent."""

    interval = 60.0
    """Seconds between sweeps."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._systems: dict[Datasource[Any], str] = {}
        self._spent: dict[Datasource[Any], list[OutputId]] = {}
        self._news = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Tidier"]:
        """Delete in the background for the length of the block."""
        async with running(tidier=self._run()):
            yield self
        try:
            async with asyncio.timeout(FAREWELL):
                await self._delete()
        except TimeoutError:  # the next sweep does it
            pass

    def watch(self, datasource: Datasource[Any], system: str) -> None:
        """Sweep this one, too; `system` is what its rows call us."""
        self._systems[datasource] = system
        self._news.set()

    def spent(self, datasource: Datasource[Any], output_id: OutputId) -> None:
        """A row is not needed any more: its step is recorded."""
        self._spent.setdefault(datasource, []).append(output_id)
        self._news.set()

    async def _run(self) -> None:
        swept: dict[Datasource[Any], float] = {}
        while True:
            await self._delete()
            now = asyncio.get_running_loop().time()
            for datasource, system in list(self._systems.items()):
                if now - swept.get(datasource, -self.interval) >= self.interval:
                    swept[datasource] = now
                    await self._sweep(datasource, system)
            try:
                async with asyncio.timeout(self.interval):
                    await self._news.wait()
                await asyncio.sleep(GATHER)
            except TimeoutError:
                pass
            self._news.clear()

    async def _delete(self) -> None:
        for datasource in list(self._spent):
            ids = self._spent.pop(datasource)
            try:
                for first in range(0, len(ids), PAGE):
                    await outputs.delete(datasource, ids[first : first + PAGE])
            except errors.DBOSError as exc:
                log.warning("rows of transactions are left for later", reason=str(exc))

    async def _sweep(self, datasource: Datasource[Any], system: str) -> None:
        try:
            await outputs.sweep(datasource, self._database, system)
        except errors.DBOSError as exc:
            log.warning("rows of transactions are left for later", reason=str(exc))
