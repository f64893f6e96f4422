"""What a connection to Postgres is like, and what stands in between.

A session is ours alone on a direct connection, or behind a pooler in session mode: settings are
made once, statements are prepared once. A pooler in transaction mode lends each transaction of ours
whatever session is free. There nothing may be kept in it: not for us, who would not find it again,
and not for others, who would: `dbos_async.own` left behind would keep somebody's psql from waking
our workers. So a `SharedConnection` sends every statement in a transaction that begins with its
settings, `local` to it, and prepares nothing under a name.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, ClassVar, Final, LiteralString, TypeAlias

import asyncpg

from dbos_async._store.sql import FETCH_BACKEND, HEED_OUR_END

Own: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""It is generic in the stubs only."""

SETTINGS: Final = """
set jit = off; set enable_seqscan = off; set enable_sort = off; set timezone = 'UTC';
set search_path = "$user", public; set idle_in_transaction_session_timeout = '10s';
set default_transaction_isolation = 'read committed'; set lock_timeout = 0;
set statement_timeout = 0; set dbos_async.own = 'on';
"""
"""What all our sessions are set to, in the form that `local_to_a_transaction` knows."""
BEGIN: Final = "begin isolation level read committed;"
WITNESSES: Final = 4
"""Connections that tell whether a pooler shares sessions: there may be several poolers behind one
address, each with sessions of its own."""

QUESTIONING: Final = 5.0
"""Seconds that they have for it."""


class PooledConnection(asyncpg.Connection):
    """A connection that keeps no session state, so that giving it back costs no round trip."""

    is_shared: ClassVar = False
    """What `isinstance` cannot say: the driver's classes take all of them for one another."""

    def get_reset_query(self) -> str:
        """Nothing to undo."""
        return ""


class SharedConnection(PooledConnection):
    """A connection whose session others use between our transactions."""

    is_shared: ClassVar = True
    beginning: str = BEGIN
    """What every transaction begins with."""
    _is_amid = False
    """Whether a statement of ours is in its transaction, or was cut off there."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As the driver's, in a transaction."""
        if query == "BEGIN;":  # the driver's own, of `transaction()`
            return await super().execute(self.beginning, timeout=timeout)
        async with self._in_transaction():
            return await super().execute(query, *args, timeout=timeout)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """As the driver's, in a transaction."""
        async with self._in_transaction():
            return await super().fetch(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """As the driver's, in a transaction."""
        async with self._in_transaction():
            return await super().fetchval(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """As the driver's, in a transaction."""
        async with self._in_transaction():
            return await super().fetchrow(query, *args, **options)

    @asynccontextmanager
    async def _in_transaction(self) -> AsyncIterator[None]:
        """Commit what the block does, unless it is part of a longer transaction.

        Whoever was cut off between beginning and commit leaves a connection that is of no use.
        """
        if self._is_amid or self.is_closed():
            raise asyncpg.InterfaceError("the last statement on this connection was cut off")
        if self.is_in_transaction():
            yield
            return
        self._is_amid = True
        await super().execute(self.beginning)
        try:
            yield
        except (asyncpg.PostgresError, asyncpg.InterfaceError):
            await super().execute("rollback")
            self._is_amid = False
            raise
        await super().execute("commit")
        self._is_amid = False


async def set_up(connection: Own) -> None:
    """Give a new connection our settings."""
    keep_alive(connection)
    if is_shared(connection):
        await adopt(connection, "")
        # Or the driver, to read about a type, would turn it off for whoever has the session next.
        driver: Any = connection
        driver._server_caps = driver._server_caps._replace(jit=False)  # noqa: SLF001
        await connection.execute("select 1")  # a pooler lets us in although Postgres is away
        return
    await connection.execute(SETTINGS)
    with suppress(asyncpg.PostgresError):  # its system does not tell whether we are there
        await connection.execute(HEED_OUR_END)


async def adopt(
    connection: "Own | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", settings: LiteralString
) -> None:
    """Work under these settings from now on, beside those of all; instead of the last adopted."""
    if is_shared(connection):
        driver: Any = getattr(connection, "_con", connection)  # a pool's is a proxy
        driver.beginning = BEGIN + local_to_a_transaction(SETTINGS + settings)
    else:
        await connection.execute(settings)


def is_shared(connection: object) -> bool:
    """Whether others use this connection's session between our transactions."""
    return bool(getattr(connection, "is_shared", False))


def local_to_a_transaction(settings: LiteralString) -> LiteralString:
    """The same settings, undone when the transaction ends."""
    return settings.replace("set ", "set local ")


async def shares_sessions(connect: Callable[[], Awaitable[Own]], limit: int) -> bool:
    """Whether a pooler gives each transaction whatever session is free.

    A pooler answers with a process id of its own. One that keeps a session for each of its clients
    answers from the same process every time, and from no other's.

    Args:
        connect: opens a connection that prepares nothing.
        limit: how many of them there may be.
    """
    async with AsyncExitStack() as stack:
        first = await connect()
        stack.callback(first.terminate)
        process = await first.fetchval(FETCH_BACKEND)
        if process == first.get_server_pid():
            return False
        processes = {first: process}
        with suppress(TimeoutError):  # no session is left for another client: they are not shared
            async with asyncio.timeout(QUESTIONING):
                for _ in range(min(WITNESSES, limit) - 1):
                    another = await connect()
                    stack.callback(another.terminate)
                    if await _is_seen(processes, another):
                        return True
    return False


async def _is_seen(
    processes: dict[Own, object],
    another: Own,
) -> bool:
    """Whether these and one more connection have processes in common, or change theirs."""
    process = await another.fetchval(FETCH_BACKEND)
    if process in processes.values():
        return True
    processes[another] = process
    for connection, known in processes.items():
        for _ in range(2):  # one question each would suit a pooler that deals sessions in turns
            if await connection.fetchval(FETCH_BACKEND) != known:
                return True
    return False


def keep_alive(
    connection: "Own | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
) -> None:
    """Let the kernel notice a dead link: keepalive when idle, TCP_USER_TIMEOUT in flight.

    Source: asyncpg issue 606; measured: without the second, a query on a dropped link never ends.
    """
    driver: Any = connection
    transport = driver._transport  # noqa: SLF001  # no public way
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
