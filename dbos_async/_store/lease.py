"""An executor's sign of life, and who leads: a thread of its own with a session of its own.

    thread ─▶ session ─▶ the executor's advisory lock     killed: socket closed, lock gone, at once
       │         └─────▶ the leader's advisory lock       one process of the application has it
       └─ a beat now and then; idle_session_timeout       host or network gone: Postgres ends the
          is the lease                                    session itself, and both locks are gone

Who owns what: the thread alone owns the session and says what it holds; the app's loop is told by
callbacks. The thread has a loop of its own, so a step that blocks the app's loop for a minute is no
death. When the app's loop has stood still for `stall_limit`, the thread lets go, for others to take
over; it takes the lock again when the loop runs, and the fence tells what was lost meanwhile.

What may be true at each beat: the session holds the locks, or it is lost and others may already
have taken over (`on_lost`), which the fence makes harmless; the lock is taken again on a new one.
No clocks are compared, and no rows are written.

Behind a pooler that gives every transaction another session, locks say nothing. Where there is no
way past it (`listen_url`), the row in `dbos_async_executors` is the lease, renewed by each beat on
the database's clock; there is no leader, and everybody does its duties, which are idempotent.

A process that was given up while it stood still may wake and find that another has its id. It could
only hide behind that one's lock, so it starts nothing more, and says so.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, LiteralString

from msgspec import Struct

from dbos_async import errors
from dbos_async._log import log
from dbos_async._store import sql
from dbos_async._store.database import Connection, Database, count_of, translated
from dbos_async._store.records import ExecutorRow
from dbos_async._store.slots import Slots

LEAD_POLL: Final = 1.7
"""Seconds between tries to become the leader: a dead one has a successor within two."""
RETRY: Final = 0.25
"""Seconds between two tries to connect, or to take the lock, again."""
MARGIN: Final = 2.0
"""Seconds beyond the lease to wait for an id in use: the host of its holder may just have died."""
MAX_LOSSES: Final = 3
"""Sessions that a launch may lose before it gives up."""
DEADLINE: Final = 5.0
FAREWELL: Final = 1.0


class Identity(Struct, frozen=True):
    """What an executor says of itself."""

    executor_id: str
    application: str
    app_version: str
    boot: str
    """What every owner token of this launch begins with."""


class Lease:
    """Keeps one executor alive in the eyes of the others."""

    def __init__(
        self,
        database: Database,
        identity: Identity,
        *,
        seconds: float,
        stall_limit: float,
        standstill: Callable[[], float],
    ) -> None:
        self.on_lost: Callable[[], None] = lambda: None
        """Called in the app's loop when the session is gone: others may have taken over."""
        self.on_usurped: Callable[[], None] = lambda: None
        """Called in the app's loop when another process has taken the executor's id."""
        self.on_leading: Callable[[], None] = lambda: None
        """Called in the app's loop when `leads` has changed."""
        self.leads = False
        """Whether this process does the leader's work."""
        self._database = database
        self._identity = identity
        self._seconds = seconds
        self._stall_limit = stall_limit
        self._standstill = standstill
        self._loop: asyncio.AbstractEventLoop  # the app's
        # The thread's own:
        self._thread_loop = asyncio.SelectorEventLoop()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._slots = Slots(1)
        self._connection: Connection | None = None
        self._backend: object = None
        self._by_row = False
        self._is_held = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Lease"]:
        """Hold the lease for the length of the block.

        Raises:
            ConfigurationError: a live process has this executor id; give this one another.
            DatabaseLostError: Postgres cannot be reached.
        """
        self._loop = asyncio.get_running_loop()
        held: asyncio.Future[None] = self._loop.create_future()
        ended: asyncio.Future[None] = self._loop.create_future()
        thread = threading.Thread(target=self._run, args=(held, ended), name="dbos lease")
        thread.daemon = True
        thread.start()
        try:
            await asyncio.shield(held)
            yield self
        finally:
            with suppress(RuntimeError):  # the thread has ended
                self._thread_loop.call_soon_threadsafe(self._stop)
            await asyncio.shield(ended)
            thread.join()

    def drop(self) -> None:
        """Cut the session, as the end of the process would. For tests."""
        with suppress(RuntimeError):  # the thread has ended
            self._thread_loop.call_soon_threadsafe(self._cut)

    # What follows runs in the thread

    def _run(self, held: "asyncio.Future[None]", ended: "asyncio.Future[None]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._thread_loop) as runner:
            try:
                runner.run(self._keep(held))
            except BaseException as exc:  # noqa: BLE001  # raised where the launch awaits it
                self._tell(partial(refuse, held, exc))
        self._tell(partial(settle, ended))

    async def _keep(self, held: "asyncio.Future[None]") -> None:
        try:
            await self._hold_first()
            self._tell(partial(settle, held))
            while not self._is_stopping:
                await self._pause()
                await self._beat()
        finally:
            await self._let_go()
            await self._slots.close()

    async def _hold_first(self) -> None:
        losses = 0
        await self._connect()
        patience = self._thread_loop.time() + self._seconds + MARGIN
        while True:
            try:
                if await self._hold() or self._is_stopping:
                    return await self._try_to_lead()
                if self._thread_loop.time() > patience:
                    raise in_use(self._identity.executor_id, await self._find_holder())
                await self._pause()
            except errors.DatabaseLostError:  # as when this process stood still for the lease
                losses += 1
                if losses > MAX_LOSSES:
                    raise
                self._cut()
                self._is_held = False
                await self._connect()

    async def _pause(self) -> None:
        """Wait for the next beat, or the end."""
        if not self._is_held:
            seconds = RETRY
        elif self.leads and not self._by_row:
            seconds = self._seconds / 3
        else:
            seconds = min(self._seconds / 3, LEAD_POLL)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _beat(self) -> None:
        if self._is_stopping:
            return
        if self._loop.is_closed():  # nobody ended us, and there is nobody left
            self._is_stopping = True
        elif self._standstill() > self._stall_limit:
            await self._stall()
        else:
            try:
                await self._renew()
            except errors.DatabaseLostError:
                self._lose()

    async def _stall(self) -> None:
        if self._connection is not None:
            log.error(
                "the event loop has stood still for too long: others take this process's work over",
                executor_id=self._identity.executor_id,
                seconds=round(self._standstill()),
            )
            await self._let_go()
            self._lose()

    async def _renew(self) -> None:
        if self._connection is None:
            await self._connect()
        elif self._is_held and not self._by_row:
            await self._see_backend()
        if self._by_row or not self._is_held:
            was_held = self._is_held
            if not await self._hold():
                await self._see_who_has_it()
                if was_held:
                    self._lose()
                return
        await self._try_to_lead()

    async def _see_who_has_it(self) -> None:
        """Stop for good if it is another process: a session of ours that was lost lets go soon."""
        me = self._identity
        usurper = await self._ask(sql.FETCH_USURPER, me.executor_id, me.boot)
        if usurper is not None:
            log.critical(
                "another process has taken this executor's id: this one starts nothing more. "
                "Restart it, and unset DBOS__VMID or executor_id=",
                executor_id=me.executor_id,
                process=usurper,
            )
            self._tell(self.on_usurped)
            self._is_stopping = True

    async def _connect(self) -> None:
        self._by_row = self._database.is_deaf
        self._connection = await self._database.connect("executor lock", self._slots, direct=True)
        if not self._by_row:
            self._backend = await self._ask(sql.FETCH_BACKEND)
            await self._ask(sql.LIMIT_IDLENESS, f"{round(self._seconds * 1000)}ms")

    async def _see_backend(self) -> None:
        """Ask for a sign of life, from the session that has our locks."""
        if await self._ask(sql.FETCH_BACKEND) != self._backend:
            self._database.find_shared(direct=True)
            raise errors.DatabaseLostError("a pooler has given us another session")

    async def _hold(self) -> bool:
        """Take the lease, or renew one that is a row; whether it is ours now."""
        if self._by_row:
            self._is_held = bool(await self._write(sql.HOLD_ROW, round(self._seconds * 1000)))
        else:
            self._is_held = bool(await self._ask(sql.HOLD_EXECUTOR, self._identity.executor_id))
            if self._is_held:
                await self._write(sql.REGISTER_EXECUTOR, None)
        return self._is_held

    async def _write(self, statement: LiteralString, lease_ms: int | None) -> int:
        me = self._identity
        names = me.executor_id, me.application, me.app_version, socket.gethostname(), os.getpid()
        assert self._connection is not None
        with translated():
            async with asyncio.timeout(DEADLINE):
                tag = await self._connection.execute(statement, *names, me.boot, lease_ms)
        return count_of(tag)

    async def _try_to_lead(self) -> None:
        if self.leads or not self._is_held:
            return
        self.leads = self._by_row or bool(
            await self._ask(sql.TRY_TO_LEAD, self._identity.application)
        )
        if self.leads:
            self._tell(self.on_leading)

    async def _find_holder(self) -> ExecutorRow | None:
        assert self._connection is not None
        with translated():
            async with asyncio.timeout(DEADLINE):
                row = await self._connection.fetchrow(
                    sql.FETCH_EXECUTORS, None, self._identity.executor_id
                )
        return None if row is None else ExecutorRow(*row)

    async def _ask(self, statement: LiteralString, *values: object) -> Any:
        assert self._connection is not None
        with translated():
            async with asyncio.timeout(DEADLINE):
                return await self._connection.fetchval(statement, *values)

    def _lose(self) -> None:
        """The session is gone, or the row is another's."""
        self._cut()
        self._is_held = False
        self._tell(self.on_lost)
        if self.leads:
            self.leads = False
            self._tell(self.on_leading)

    def _cut(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _let_go(self) -> None:
        """Return once the server has let go of the locks: a launch may come at once."""
        if self._connection is None:
            return
        me = self._identity
        try:
            if self._is_held:
                await self._ask(sql.UNREGISTER_EXECUTOR, me.executor_id, me.boot)
            with translated():
                await self._connection.close(timeout=FAREWELL)
        except errors.DatabaseError:
            self._connection.terminate()
        self._connection = None

    def _stop(self) -> None:
        self._is_stopping = True
        self._wake.set()

    def _tell(self, news: Callable[[], None]) -> None:
        """Let the app's loop know, if there is one yet."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(news)


def settle(future: "asyncio.Future[None]") -> None:
    """Let whoever awaits it go on."""
    if not future.done():
        future.set_result(None)


def refuse(future: "asyncio.Future[None]", error: BaseException) -> None:
    """Raise `error` where it is awaited; log it if nobody does any more."""
    if not future.done():
        future.set_exception(error)
    else:
        log.critical("the lease's thread ended", error=repr(error), exc_info=error)


def in_use(executor_id: str, holder: ExecutorRow | None) -> errors.ConfigurationError:
    """Two live processes have one id."""
    who = (
        "another session" if holder is None else f"process {holder.process_id} on {holder.hostname}"
    )
    return errors.ConfigurationError(
        f"the executor id {executor_id!r} is in use by a live process: {who}. Unset DBOS__VMID or "
        "executor_id=, so that every process has an id of its own"
    )
