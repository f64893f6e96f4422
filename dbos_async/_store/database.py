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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, LiteralString, TypeAlias, TypeVar

import asyncpg

from dbos_async import errors
from dbos_async._config import LISTEN_URL_VARIABLE, OWN_CONNECTIONS, Settings
from dbos_async._log import log
from dbos_async._store import sql
from dbos_async._store.connections import (
    PooledConnection,
    SharedConnection,
    adopt,
    set_up,
    shares_sessions,
)
from dbos_async._store.slots import Slots

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
STATEMENTS: Final = 100
"""Statements that a connection keeps prepared; none where sessions are shared."""

POOLED: Final = "a pooler gives every transaction another session"
"""How the warning begins of what that slows down."""
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

STRAY: Final = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)
"""A statement that was prepared in another session: a pooler shares them after all."""

LOST: Final = (
    *PASSING,
    *HOPELESS,
    *STRAY,
    asyncpg.PostgresConnectionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What passes: the same statement on a new connection may succeed."""


INSIDES: Final = (asyncpg.InternalClientError, asyncpg.ProtocolError)
"""Of the driver, torn out of its exchange with Postgres; what it says of its state is for nobody.
Those that are derived from them speak to people."""


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
    if type(lost) in INSIDES:
        return "the connection to Postgres broke in the middle of an exchange"
    what = f"{type(lost).__name__}: {lost}"
    return UNREACHABLE + what if isinstance(lost, OSError) else what


class Database:
    """A pool of connections to one system database, and the one who knows whether it is there."""

    def __init__(self, settings: Settings, *, pool_size: int) -> None:
        self.is_shared = False
        """Whether a pooler gives every transaction of ours whatever session is free."""
        self._settings = settings
        self._pool_size = pool_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._slots = Slots(pool_size + OWN_CONNECTIONS - 1)  # the executor's lock has its own
        self._direct_url: str | None = None
        self._back = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self._dialled: set[Connection] = set()

    @property
    def url(self) -> str:
        """Where the database is."""
        assert self._settings.database_url is not None
        return self._settings.database_url

    @property
    def is_deaf(self) -> bool:
        """Whether no session is ours alone: none to listen on, and none whose locks say we live."""
        return self.is_shared and self._direct_url is None

    @property
    def is_away(self) -> bool:
        """Whether it was lost, and has not answered the prober since."""
        return not self._back.is_set()

    async def look(self) -> None:
        """See what stands between us and Postgres, before anything else.

        Raises:
            ConfigurationError: a URL cannot be used; the message says which and why.
            DatabaseLostError: the server cannot be reached.
        """
        self.is_shared = await self._shares_sessions(self.url)
        url = self._settings.listen_url
        if url is not None and not await self._shares_sessions(url):
            await self._check_place(url)
            self._direct_url = url
        if self.is_deaf or (url is not None and self._direct_url is None):
            self._warn()

    async def _shares_sessions(self, url: str) -> bool:
        with explained(url), translated():
            return await shares_sessions(partial(self._connect_to, url), self._slots.limit)

    async def _check_place(self, url: str) -> None:
        places: set[tuple[object, ...]] = set()
        for each in (self.url, url):
            with explained(each), translated():
                connection = await self._connect_to(each)
                try:
                    places.add(tuple(await connection.fetchrow(sql.FETCH_PLACE) or ()))
                finally:
                    connection.terminate()
        if len(places) > 1:
            raise errors.ConfigurationError(
                f"listen_url ({LISTEN_URL_VARIABLE}) leads to {masked(url)}, which is not the "
                f"database at {masked(self.url)}: it must be a direct way to the same one"
            )

    def _warn(self) -> None:
        """Say what is slower, and what to do."""
        if not self.is_shared:
            log.warning(
                "listen_url leads through a pooler that gives every transaction another session, "
                "so it is not used: database_url does what it was for"
            )
            return
        log.warning(
            f"{POOLED}: news is looked for every second "
            "instead of heard, this process says that it lives by writing a row, and every process "
            f"does the leader's work. Give listen_url= ({LISTEN_URL_VARIABLE}) a way to Postgres "
            "past the pooler, or one in session mode",
            listen_url_is_shared=self._settings.listen_url is not None,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Database"]:
        """Lend connections for the length of the block."""
        self._back.set()
        self._pool = asyncpg.create_pool(
            min_size=0,
            max_size=self._pool_size,
            connect=self._connect_for_pool,
            connection_class=PooledConnection,
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
            await self._slots.close()

    async def dial(
        self, purpose: str, settings: LiteralString = "", *, direct: bool = False
    ) -> Connection:
        """A connection of the caller's own, outside the pool. Raises as `connect` does."""
        connection = await self.connect(purpose, self._slots, settings, direct=direct)
        self._dialled.add(connection)
        connection.add_termination_listener(self._dialled.discard)
        return connection

    async def connect(
        self, purpose: str, slots: Slots, settings: LiteralString = "", *, direct: bool = False
    ) -> Connection:
        """A connection that its caller closes, such as one of another thread's loop.

        Args:
            purpose: what people see it named for.
            slots: those of the loop, one of which it takes.
            settings: what is set for it alone.
            direct: by `listen_url`, if there is one: whoever wants a session.

        Raises:
            DatabaseLostError: the server cannot be reached now, or does not let us in.
        """
        with translated():
            async with asyncio.timeout(self._settings.connect_timeout + 1):
                connection = await slots.open(partial(self._connect, purpose, direct=direct))
                try:
                    await set_up(connection)
                    if settings:
                        await adopt(connection, settings)
                except BaseException:
                    connection.terminate()
                    raise
        return connection

    async def _connect(self, purpose: str, *, direct: bool) -> "asyncpg.Connection[asyncpg.Record]":
        if direct and self._direct_url is not None:
            url, is_shared = self._direct_url, False
        else:
            url, is_shared = self.url, self.is_shared
        # Where sessions are shared, another name would be one more exchange with Postgres.
        name = f"dbos_async {self._settings.name}" + ("" if is_shared else f" {purpose}")
        return await asyncpg.connect(
            url,
            timeout=self._settings.connect_timeout,
            connection_class=SharedConnection if is_shared else PooledConnection,
            statement_cache_size=0 if is_shared else STATEMENTS,
            server_settings={"application_name": name[:63]},
        )

    async def _connect_to(self, url: str) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection that nothing is known of yet."""
        timeout = self._settings.connect_timeout
        connect = partial(
            asyncpg.connect,
            url,
            timeout=timeout,
            statement_cache_size=0,
            server_settings={"application_name": f"dbos_async {self._settings.name} look"[:63]},
        )
        async with asyncio.timeout(timeout + 1):
            return await self._slots.open(connect)

    async def _connect_for_pool(self, *_: Any, **__: Any) -> Any:
        return await self.connect("pool", self._slots)

    def drop(self) -> None:
        """Cut all connections, as the end of the process would. For tests."""
        for connection in list(self._dialled):
            connection.terminate()
        if self._pool is not None:
            self._pool.terminate()

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
                except asyncpg.PostgresError as exc:
                    known = not isinstance(exc, STRAY) and not connection.is_in_transaction()
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
        if isinstance(lost.__cause__, STRAY):
            await self._begin_anew()
        if self._prober is None or self._prober.done():
            self._back.clear()
            self._prober = asyncio.create_task(self._probe(lost), name="dbos prober")
        await self._back.wait()

    def find_shared(self, *, direct: bool = False) -> None:
        """Take note that a pooler shares sessions after all, on the way that was taken."""
        if direct and self._direct_url is not None:
            self._direct_url = None
        elif not self.is_shared:
            self.is_shared = True
        else:
            return
        self._warn()

    async def _begin_anew(self) -> None:
        """Replace connections that keep something in sessions."""
        self.find_shared()
        for connection in list(self._dialled):
            connection.terminate()
        if self._pool is not None:
            await self._pool.expire_connections()

    async def _probe(self, lost: errors.DatabaseLostError) -> None:
        pause = 0.05
        log_at = 0.0
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            if self._slots.are_all_held:  # nobody is without a connection
                self._back.set()
                return
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
