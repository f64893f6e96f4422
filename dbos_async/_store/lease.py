"""An executor's sign of life: an advisory lock, held by a session of its own.

Process killed, socket closed, lock gone: nobody has to wait for a timeout, and no clocks are
compared. A trivial query every few seconds finds out that the session is lost; then the lock is
taken again on a new one. In between, another process may take this executor's work over; the fence
makes that harmless.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from dbos_async import errors
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import sql
from dbos_async._store.database import Connection, Database, translated

HEARTBEAT: Final = 3.0
"""Seconds between two looks at the session."""
RETRY: Final = 0.25
"""Seconds between two tries to take the lock again."""
PATIENCE: Final = 12.0
"""Seconds to wait for an id that is in use: the host of its last holder may just have died."""
DEADLINE: Final = 5.0


FAREWELL: Final = 1.0


class Lease:
    """Holds the lock of one executor id."""

    def __init__(self, database: Database, executor_id: str) -> None:
        self._database = database
        self._executor_id = executor_id
        self._is_held = False
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the session is gone: others may take this executor for dead."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Lease"]:
        """Hold the lock for the length of the block.

        Raises:
            ConfigurationError: a live process holds it; give this one another executor id.
        """
        connection = await self._database.dial("executor lock")
        try:
            await self._first(connection)
        except BaseException:
            connection.terminate()
            raise
        async with running(lease=self._keep(connection)):
            yield self

    async def _first(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self._try(connection):  # noqa: ASYNC110  # nobody tells when
                    await asyncio.sleep(RETRY)
        except TimeoutError:
            raise errors.ConfigurationError(
                f"the executor id {self._executor_id!r} is in use by a live process: unset "
                "DBOS__VMID or executor_id=, so that every process has an id of its own"
            ) from None

    async def _try(self, connection: Connection) -> bool:
        with translated():
            async with asyncio.timeout(DEADLINE):
                held = await connection.fetchval(sql.HOLD_EXECUTOR, self._executor_id)
        self._is_held = bool(held)
        return self._is_held

    async def _keep(self, connection: Connection) -> None:
        try:
            while True:
                await asyncio.sleep(HEARTBEAT if self._is_held else RETRY)
                connection = await self._beat(connection)
        finally:
            await release(connection)

    async def _beat(self, connection: Connection) -> Connection:
        try:
            if not self._is_held:  # the session that was lost may still have it, for a while
                await self._try(connection)
            else:
                with translated():
                    async with asyncio.timeout(DEADLINE):
                        await connection.fetchval("select 1")
        except errors.DatabaseLostError as exc:
            connection.terminate()
            self.on_lost()
            return await self._again(exc)
        return connection

    async def _again(self, lost: errors.DatabaseLostError) -> Connection:
        while True:
            await self._database.back(lost)
            try:
                connection = await self._database.dial("executor lock")
                if not await self._try(connection):
                    log.warning(
                        "another session holds this executor's lock, trying on",
                        executor_id=self._executor_id,
                    )
            except errors.DatabaseLostError as exc:
                lost = exc
            else:
                return connection


async def release(connection: Connection) -> None:
    """Close, and return once the server has let go of the lock: a launch may come at once."""
    try:
        with translated():
            await connection.close(timeout=FAREWELL)
    except errors.DatabaseError:
        connection.terminate()
