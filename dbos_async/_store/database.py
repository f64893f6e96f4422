"""Connections to one system database, and what the driver's errors mean.

asyncpg stops here: no module outside the store sees it. Three rules, each measured the hard way:

- Every await is bounded. A frozen peer lets pools, LISTEN and cancels hang for ever, so a
  connection is leased with a deadline, and one that is in doubt is dropped, never reused.
- "Errored" does not mean "not committed". A write that raised `DatabaseLostError` may have landed,
  so every write is made to be sent again.
- One prober. When the database goes away, everybody waits for the same probe instead of sleeping
  a backoff of their own; all resume together, within its longest pause of two seconds.
"""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, LiteralString, TypeAlias, TypeVar

import asyncpg

from dbos_async import errors
from dbos_async._config import Settings
from dbos_async._log import log

T = TypeVar("T")
Row = TypeVar("Row")
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)
"""One of our own, or the pool's; they are generic in the stubs only."""

DEADLINE: Final = 30.0
"""Seconds that a statement may take before its connection counts as lost."""
LONGEST_PAUSE: Final = 2.0
REFUSAL_PAUSE: Final = 2.0
"""Seconds before a background service repeats what was refused."""
SESSION: Final = """
select set_config('jit', 'off', false), set_config('enable_seqscan', 'off', false),
       set_config('enable_sort', 'off', false), set_config('timezone', 'UTC', false),
       set_config('search_path', '"$user", public', false),
       set_config('idle_in_transaction_session_timeout', '10s', false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('lock_timeout', '0', false), set_config('statement_timeout', '0', false),
       set_config('dbos_async.own', 'on', false), set_config('application_name', $1, false)
"""

UNREACHABLE: Final = "Postgres cannot be reached: "
HOPELESS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)
"""Why a first connection is refused. Later, when it worked before, they are waited out too."""

PASSING: Final = (
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)
"""What the server is going through; no statement is to blame for it."""

LOST: Final = (
    *PASSING,
    *HOPELESS,
    asyncpg.PostgresConnectionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What passes: the same statement on a new connection may succeed."""


class ContendedError(errors.DatabaseLostError):
    """Somebody else's transaction holds a row that the statement needs; it passes, too."""


class DanglingError(errors.DatabaseRefusedError):
    """The row refers to one that does not exist."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise our errors for the driver's."""
    try:
        yield
    except asyncpg.LockNotAvailableError as exc:
        raise ContendedError(str(exc)) from exc
    except LOST as exc:
        # asyncpg could not encode an argument
        if isinstance(exc, ValueError) and not isinstance(exc, HOPELESS):
            raise errors.DatabaseRefusedError(str(exc)) from exc
        raise errors.DatabaseLostError(reason_of(exc)) from exc
    except asyncpg.ForeignKeyViolationError as exc:
        raise DanglingError(str(exc)) from exc
    except asyncpg.PostgresError as exc:
        raise errors.DatabaseRefusedError(f"{type(exc).__name__}: {exc}") from exc


def reason_of(lost: BaseException) -> str:
    """Why a statement got no answer, for people."""
    if isinstance(lost, TimeoutError):
        return "Postgres gave no answer in time"
    what = f"{type(lost).__name__}: {lost}"
    return UNREACHABLE + what if isinstance(lost, OSError) else what


class PooledConnection(asyncpg.Connection):
    """A connection that keeps no session state, so that giving it back costs no round trip."""

    def get_reset_query(self) -> str:
        """Nothing to undo."""
        return ""


class Database:
    """A pool of connections to one system database, and the one who knows whether it is there."""

    def __init__(self, settings: Settings, *, pool_size: int) -> None:
        self._settings = settings
        self._pool_size = pool_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._back = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self._dialled: set[Connection] = set()

    @property
    def url(self) -> str:
        """Where the database is."""
        assert self._settings.database_url is not None
        return self._settings.database_url

    @property
    def is_away(self) -> bool:
        """Whether it was lost, and has not answered the prober since."""
        return not self._back.is_set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Database"]:
        """Lend connections for the length of the block."""
        self._back.set()
        self._pool = asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=self._pool_size,
            timeout=self._settings.connect_timeout,
            connection_class=PooledConnection,
            init=self._prepare,
        )
        with translated():
            await self._pool
        try:
            yield self
        finally:
            if self._prober is not None:
                self._prober.cancel()
            for connection in list(self._dialled):  # whoever was cancelled over one let go of it
                connection.terminate()
            await self._close_pool()

    async def dial(self, purpose: str) -> Connection:
        """A connection of the caller's own, outside the pool. Raises as `connect` does."""
        connection = await self.connect(purpose)
        self._dialled.add(connection)
        connection.add_termination_listener(self._dialled.discard)
        return connection

    async def connect(self, purpose: str) -> Connection:
        """A connection that its caller closes, such as one of another thread's loop.

        Raises:
            DatabaseLostError: the server cannot be reached now, or does not let us in.
        """
        timeout = self._settings.connect_timeout
        with translated():
            async with asyncio.timeout(timeout + 1):
                connection = await asyncpg.connect(self.url, timeout=timeout)
                try:
                    await self._prepare(connection, purpose)
                except BaseException:
                    connection.terminate()
                    raise
        return connection

    def drop(self) -> None:
        """Cut all connections, as the end of the process would. For tests."""
        for connection in list(self._dialled):
            connection.terminate()
        if self._pool is not None:
            self._pool.terminate()

    async def _prepare(self, connection: Connection, purpose: str = "pool") -> None:
        keep_alive(connection)
        await connection.execute(SESSION, f"dbos_async {self._settings.name} {purpose}"[:63])

    @asynccontextmanager
    async def lease(self, *, deadline: float | None = None) -> AsyncIterator[Connection]:
        """A pooled connection for the block, which must end within `deadline` seconds.

        Args:
            deadline: `DEADLINE` unless given.

        Raises:
            DatabaseLostError: none was to be had in time, or it broke.
        """
        assert self._pool is not None
        with translated():
            async with asyncio.timeout(DEADLINE if deadline is None else deadline):
                connection = await self._pool.acquire(timeout=DEADLINE)
                known = False
                try:
                    yield connection
                    known = True
                except asyncpg.PostgresError:
                    known = not connection.is_in_transaction()
                    raise
                finally:
                    if not known or connection.is_closed():
                        connection.terminate()
                    await self._pool.release(connection, timeout=1)

    async def fetch(self, statement: LiteralString, *values: object, into: type[Row]) -> list[Row]:
        """Run `statement`; one `into` a row, its fields in the statement's column order.

        Raises:
            DatabaseLostError: the connection broke; a read may simply be repeated.
            DatabaseRefusedError: Postgres rejected it.
        """
        async with self.lease() as connection:
            return [into(*record) for record in await connection.fetch(statement, *values)]

    async def execute(self, statement: LiteralString, *values: object) -> int:
        """Run `statement`; how many rows it touched. Raises as `fetch` does."""
        async with self.lease() as connection:
            return count_of(await connection.execute(statement, *values))

    async def patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The result of `operation`, tried again after every outage. It must be idempotent."""
        while True:
            try:
                return await operation()
            except errors.DatabaseLostError as exc:
                await self.back(exc)

    async def persistently(
        self, operation: Callable[[], Awaitable[T]], *, what: str = "a background service"
    ) -> T:
        """As `patiently`, for services that must outlive a refusal too: it is repeated.

        `what` says who asks, for the log.
        """
        while True:
            try:
                return await self.patiently(operation)
            except errors.DatabaseRefusedError as exc:
                log.error(f"Postgres refuses what {what} asks, trying on", error=str(exc))
                await asyncio.sleep(REFUSAL_PAUSE)

    async def back(self, lost: errors.DatabaseLostError) -> None:
        """Return once the database answers again; the first caller starts the one prober."""
        if self._prober is None or self._prober.done():
            self._back.clear()
            self._prober = asyncio.create_task(self._probe(lost), name="dbos prober")
        await self._back.wait()

    async def _probe(self, lost: errors.DatabaseLostError) -> None:
        pause = 0.05
        log_at = 0.0
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            try:
                connection = await self.dial("prober")
            except errors.DBOSError as exc:
                now = asyncio.get_running_loop().time()
                if now >= log_at:
                    log.warning("database unavailable, waiting", lost=str(lost), now=str(exc))
                    log_at = now + 10
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                connection.terminate()
                self._back.set()
                return

    async def _close_pool(self) -> None:
        assert self._pool is not None
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except (TimeoutError, *LOST):
            self._pool.terminate()


def keep_alive(connection: Connection) -> None:
    """Let the kernel notice a dead link: keepalive when idle, TCP_USER_TIMEOUT in flight.

    Source: asyncpg issue 606; measured: without the second, a query on a dropped link never ends.
    """
    transport = connection._transport  # type: ignore[union-attr]  # noqa: SLF001  # no public way
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Say in one sentence why the first connection failed.

    Raises:
        ConfigurationError: it never can succeed: wrong password, no such role or database, no URL.
        DatabaseLostError: the server cannot be reached now.
    """
    try:
        yield
    except errors.DatabaseLostError as exc:
        if isinstance(exc.__cause__, HOPELESS):
            raise errors.ConfigurationError(f"cannot open {masked(url)}: {exc.__cause__}") from None
        hint = " (percent-encode special characters in the password)" if is_odd(url) else ""
        why = str(exc).removeprefix(UNREACHABLE)
        raise errors.DatabaseLostError(
            f"cannot reach Postgres at {masked(url)}: {why}{hint}"
        ) from None
    except errors.DatabaseRefusedError as exc:  # an option in the URL that the server does not know
        raise errors.ConfigurationError(f"cannot open {masked(url)}: {exc.__cause__}") from None
    except (ValueError, OverflowError) as exc:  # an OverflowError: a port over 65535
        raise errors.ConfigurationError(f"the database URL cannot be read: {exc}") from None


def is_odd(url: str) -> bool:
    """Whether a URL looks as if its password had characters that end it too early."""
    authority = url.partition("://")[2].partition("/")[0]
    return "#" in url or url.count("@") > 1 or ("@" in url and "@" not in authority)


def masked(url: str) -> str:
    """`url` without its password, for people."""
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}://{user}{at}{place.partition('?')[0]}"


def count_of(tag: str) -> int:
    """The number of rows in a command tag: 2 of `INSERT 0 2`."""
    number = tag.rpartition(" ")[2]
    return int(number) if number.isdecimal() else 0
