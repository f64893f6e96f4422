"""Databases of the user's that transactions run on: an asyncpg pool, or an engine of SQLAlchemy.

    begin ─▶ the user's statements ─▶ ours ─▶ COMMIT ─▶ the connection goes back
                        └────── abort ──────────────────────┘

A datasource is built without I/O, so it may be a module's. A pool that it makes of a URL is opened
by the first app that launches with it and closed by the last that shuts down; a pool or an engine
that it is given stays the user's. Who begins a transaction owns its connection until `release` or
`abort`, whatever happens in between; one that is in doubt is dropped and never used again.

What may be true at each await: before COMMIT is sent nothing has happened, whatever broke. From
then on, an answer is the truth, and no answer means that nobody knows: `InDoubtError`. A COMMIT on
its way is not cancelled, because a cancelled one may stand without its replicas; its caller is,
once the answer is here.

Drivers' errors leave as they are where the user's function raised them. `is_conflict` and
`is_outage` say what they mean, also through SQLAlchemy's wrapping.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, LiteralString, Protocol, TypeVar

import asyncpg

from dbos_async import errors
from dbos_async._store.borrowed import Row, SqlalchemyTransaction, kinds_of
from dbos_async._store.connections import keep_alive
from dbos_async._store.database import (
    DEADLINE,
    HOPELESS,
    LOST,
    Connection,
    explained,
    masked,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

ISOLATION_LEVELS: Final = ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED")

MAX_SIZE: Final = 10
"""Connections of a pool that is made of a URL, unless told otherwise."""
TURN: Final = 60.0
"""Seconds to wait for a connection that others use."""
GRACE: Final = 1.0
"""Seconds for the end of a transaction that is given up."""

CONFLICTS: Final = ("40001", "40P01")
"""SQLSTATEs of transactions that have only to be repeated: serialization failure, deadlock."""
STALE: Final = "InvalidCachedStatementError"
"""So has one that met a change of the schema; both drivers call it that."""
CANCELLED: Final = "57014"
"""A statement that was too long for the user's own `statement_timeout`: no outage."""
OUTAGES: Final = ("08", "53", "57")
"""Classes of SQLSTATE that say what the server is going through."""
READ_ONLY: Final = "25006"
ABORTED: Final = "25P02"
LOCKED: Final = "55P03"
NO_RIGHTS: Final = "42501"
WRONG_LOGIN: Final = ("28", "3D000")
"""SQLSTATEs of connections that are refused for good: who, how, or to which database."""
UNKNOWN: Final = ("08", "53", "57", "58", "XX", "25", "40003")
"""What SQLSTATEs begin with, or are, that say nothing about whether a COMMIT happened."""

MARK: Final = "select set_config('dbos_async.transaction', 'open', true)"
IS_MARKED: Final = "select current_setting('dbos_async.transaction', true)"


class InDoubtError(errors.DatabaseLostError):
    """The connection broke at COMMIT: whether the transaction was committed is not known yet."""


class Opened(Protocol[S_co]):
    """A transaction under way."""

    @property
    def handle(self) -> S_co:
        """What the user's function gets."""
        ...

    @property
    def is_broken(self) -> bool:
        """Whether the connection is lost."""
        ...

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """Run a statement of ours in it; parameters are texts and numbers."""
        ...

    async def check(self) -> None:
        """Make sure that it is still the one that was begun; what is pending is sent before.

        Raises:
            ConfigurationError: the function has ended it by itself.
            DatabaseRefusedError: Postgres has aborted it.
        """
        ...

    async def commit(self) -> None:
        """Commit it, and give the connection back.

        Raises:
            InDoubtError: there was no answer; `abort` is still to be called, as for all errors.
            Exception: the driver's; it was not committed.
        """
        ...

    async def abort(self) -> None:
        """Roll it back if it is not over, and give the connection back or drop it."""
        ...


class Datasource(ABC, Generic[S]):
    """A database that `@dbos.transaction` functions run on; `S` is what they get first.

    `AsyncpgDatasource` and `SQLAlchemyDatasource` are the kinds that there are. Where it is the
    app's own system database, a step and its effects are one commit. Elsewhere the step's row is
    in a table of that database, `dbos.datasource_outputs`:

        create schema if not exists dbos;
        create table if not exists dbos.datasource_outputs (
            workflow_id text not null,
            step_id text not null,
            output text,
            error text,
            serialization text,
            created_at bigint not null default (extract(epoch from now()) * 1000)::bigint,
            primary key (workflow_id, step_id)
        );

    It is made at the launch if the role may do so, and needs `usage` on the schema and `select`,
    `insert`, `delete` on the table. Rows are deleted once the step is recorded in the system
    database.
    """

    def __init__(self) -> None:
        self._users = 0
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Let transactions begin, for one app more.

        Raises:
            ConfigurationError: it never can be opened; the message says why.
            DatabaseLostError: the server cannot be reached now.
        """
        async with self._opening:
            if self._users == 0:
                await self._open()
            self._users += 1

    async def close(self) -> None:
        """One app less uses it."""
        async with self._opening:
            self._users -= 1
            if self._users == 0:
                await self._close()

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called where people read."""

    @abstractmethod
    async def begin(self, isolation_level: str) -> Opened[S]:
        """Begin a transaction.

        Raises:
            DatabaseLostError: there is no connection to be had now.
            ConfigurationError: it is not open.
        """

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None: ...


class AsyncpgDatasource(Datasource["asyncpg.Connection[Any]"]):
    """Transactions on an asyncpg pool.

    Args:
        pool_or_url: a pool, which stays yours (it is initialised at the launch if it is not); or a
            URL, of which a pool is made that lives from the launch to the shutdown.
        max_size: connections of a pool made of a URL; 10 unless given.

    Raises:
        TypeError: it is neither.
        ValueError: `max_size` is below 1, or is given with a pool, which has its own.
    """

    def __init__(
        self, pool_or_url: "asyncpg.Pool[Any] | str", *, max_size: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(pool_or_url, (str, asyncpg.Pool)):
            raise TypeError(f"AsyncpgDatasource takes a pool or a URL, not {pool_or_url!r}")
        if max_size is not None and not isinstance(pool_or_url, str):
            raise ValueError("max_size is for a pool made of a URL; this one has its own")
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size must be at least 1, not {max_size}")
        self._max_size = MAX_SIZE if max_size is None else max_size
        self._url = pool_or_url if isinstance(pool_or_url, str) else None
        self._pool = None if isinstance(pool_or_url, str) else pool_or_url

    @property
    def name(self) -> str:
        """Where it leads, without the password."""
        return "AsyncpgDatasource(pool)" if self._url is None else masked(self._url)

    async def begin(self, isolation_level: str) -> "AsyncpgOpened":
        """See `Datasource.begin`."""
        if self._pool is None:
            raise errors.ConfigurationError(
                f"the datasource {self.name} is open from the launch of an app that has "
                "transactions on it to its shutdown: call them within `async with dbos`, or give "
                "it a pool of yours"
            )
        try:
            with unreachable(self.name):
                connection = await self._pool.acquire()  # a turn, and a connect that has limits
        except errors.DatabaseLostError as exc:
            if type(exc.__cause__) is asyncpg.InterfaceError:  # it is closed, or not initialized
                raise errors.ConfigurationError(f"{self.name}: {exc.__cause__}") from exc
            raise
        opened = AsyncpgOpened(self._pool, connection, isolation_level)
        await opened.begin()
        return opened

    async def _open(self) -> None:
        if self._url is not None:
            with explained(self._url):
                self._pool = await asyncpg.create_pool(
                    self._url, min_size=0, max_size=self._max_size, timeout=10, init=prepared
                )
        elif self._pool is not None:
            if self._pool.is_closing():
                raise errors.ConfigurationError(
                    "the pool that AsyncpgDatasource was given is closed: close it after the app's "
                    "shutdown, and give each launch one that is open"
                )
            with unreachable(self.name):
                await self._pool

    async def _close(self) -> None:
        if self._url is None or self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except (TimeoutError, *LOST):
            pool.terminate()


class SQLAlchemyDatasource(Datasource["AsyncSession"]):
    """Transactions in sessions of SQLAlchemy.

    The function gets an `AsyncSession` of its own, whose changes are flushed and committed after
    it. Needs `pip install sqlalchemy[asyncio]`.

    Args:
        engine: an AsyncEngine to Postgres, by asyncpg or psycopg; it stays yours.

    Raises:
        TypeError: it is none.
    """

    def __init__(self, engine: "AsyncEngine") -> None:
        super().__init__()
        if not isinstance(engine, kinds_of("sqlalchemy.ext.asyncio", "AsyncEngine")):
            raise TypeError(
                f"SQLAlchemyDatasource takes an AsyncEngine, as create_async_engine makes, not "
                f"{engine!r}"
            )
        if engine.dialect.name != "postgresql":
            raise TypeError(f"the engine is one to {engine.dialect.name}, not to Postgres")
        self._engine = engine

    @property
    def name(self) -> str:
        """Where it leads, without the password."""
        return str(self._engine.url.render_as_string(hide_password=True))

    async def begin(self, isolation_level: str) -> "SqlalchemyOpened":
        """See `Datasource.begin`."""
        from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415  # there, as the engine is

        engine = self._engine.execution_options(isolation_level=isolation_level)
        opened = SqlalchemyOpened(AsyncSession(engine, expire_on_commit=False))
        await opened.begin(self.name)
        return opened

    async def _open(self) -> None:
        """The engine connects when it is used."""

    async def _close(self) -> None:
        """It stays the user's."""


class AsyncpgOpened:
    """On a connection of a pool of asyncpg."""

    def __init__(self, pool: "asyncpg.Pool[Any]", connection: Any, isolation_level: str) -> None:
        self._pool = pool
        self._connection = connection
        self._transaction = connection.transaction(
            isolation=isolation_level.lower().replace(" ", "_")
        )
        self._is_over = False  # whether there is nothing left to roll back
        self._is_sound = True  # whether the connection may be used again
        self._is_back = False  # whether the pool has it again
        self._timer: asyncio.TimerHandle | None = None

    @property
    def handle(self) -> "asyncpg.Connection[Any]":
        """See `Opened`."""
        connection: asyncpg.Connection[Any] = self._connection
        return connection

    @property
    def is_broken(self) -> bool:
        """See `Opened`."""
        if self._is_back:
            return False
        try:
            return bool(self._connection.is_closed())
        except asyncpg.InterfaceError:  # the pool took it back when it broke
            return True

    async def begin(self) -> None:
        """Send BEGIN."""
        self._arm()
        try:
            await self._transaction.start()
        except (asyncpg.PostgresError, *LOST) as exc:
            await self._drop()
            raise errors.DatabaseLostError(said_by(exc)) from exc
        except BaseException:
            await self._drop()
            raise
        self._disarm()

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """See `Opened`. From the first one on it is at its end, which has to come."""
        self._arm()
        rows: Sequence[Row] = await self._connection.fetch(statement, *values)
        return rows

    async def check(self) -> None:
        """See `Opened`. Of an aborted one only the next statement tells."""
        if not self._connection.is_in_transaction():
            raise ended_by_itself()

    async def commit(self) -> None:
        """See `Opened`."""
        self._is_sound = False
        self._arm()
        await finished(self._commit())

    async def _commit(self) -> None:
        try:
            await self._transaction.commit()
        except (asyncpg.PostgresError, *LOST) as exc:
            if is_no_answer(exc):
                raise in_doubt(exc) from exc
            self._is_over = self._is_sound = True
            raise
        self._is_over = self._is_sound = True
        await self._release()

    def _arm(self) -> None:
        """Drop the connection after a while, which ends whatever is awaited of it."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DEADLINE, self._terminate)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _release(self) -> None:
        if self._is_back:
            return None
        if not self._is_sound or self.is_broken:
            return await self._drop()
        try:
            await self._pool.release(self._connection)
        except (asyncpg.PostgresError, *LOST):  # the pool has dropped it
            pass
        finally:
            self._is_back = True
            self._disarm()

    async def abort(self) -> None:
        """See `Opened`. Without a COMMIT nothing has happened, also if ROLLBACK fails."""
        if self._is_sound and not self._is_over and not self.is_broken:
            self._is_sound = False
            try:
                with suppress(asyncpg.PostgresError, *LOST):
                    async with asyncio.timeout(GRACE):
                        await self._transaction.rollback()
                    self._is_sound = True
            finally:
                await self._release()
        else:
            await self._release()

    async def _drop(self) -> None:
        self._disarm()
        self._terminate()
        self._is_back = True
        await self._pool.release(self._connection, timeout=GRACE)

    def _terminate(self) -> None:
        with suppress(asyncpg.InterfaceError):  # the pool took it back when it broke
            self._connection.terminate()


class SqlalchemyOpened:
    """In a session of SQLAlchemy."""

    def __init__(self, session: "AsyncSession") -> None:
        self._session = session
        self._connection: Any = None

    @property
    def handle(self) -> "AsyncSession":
        """See `Opened`."""
        return self._session

    @property
    def is_broken(self) -> bool:
        """See `Opened`."""
        is_lost: bool = self._connection.closed or self._connection.invalidated
        return is_lost

    async def begin(self, name: str) -> None:
        """Send BEGIN, and mark the transaction to know it again."""
        try:
            with unreachable(name):
                async with asyncio.timeout(TURN):
                    self._connection = await self._session.connection()
                    await self.fetch(MARK)
        except BaseException:
            await self.abort()
            raise

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """See `Opened`."""
        try:
            async with asyncio.timeout(DEADLINE):
                return await SqlalchemyTransaction(self._connection).fetch(statement, *values)
        except TimeoutError as exc:
            raise errors.DatabaseLostError(said_by(exc)) from exc

    async def check(self) -> None:
        """See `Opened`."""
        await self._session.flush()
        if self._connection.closed or not self._session.in_transaction():
            raise ended_by_itself()
        if await self._session.connection() is not self._connection:
            raise ended_by_itself()
        [[mark]] = await self.fetch(IS_MARKED)
        if mark != "open":
            raise ended_by_itself()

    async def commit(self) -> None:
        """See `Opened`."""
        await finished(self._commit())

    async def _commit(self) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                await self._session.commit()
        except (*kinds_of("sqlalchemy.exc", "DBAPIError"), *LOST) as exc:
            if is_no_answer(exc):
                raise in_doubt(exc) from exc
            raise
        await self._session.close()

    async def abort(self) -> None:
        """See `Opened`."""
        try:
            async with asyncio.timeout(GRACE):
                await self._session.close()
        except (*kinds_of("sqlalchemy.exc", "SQLAlchemyError"), *LOST):
            await self._session.invalidate()
        except asyncio.CancelledError:
            await self._session.invalidate()
            raise


async def prepared(connection: Connection) -> None:
    """Let a new connection notice a dead link."""
    keep_alive(connection)


async def finished(work: Coroutine[Any, Any, None]) -> None:
    """Await the end of `work`, also if cancelled meanwhile; be cancelled then.

    After twice the time that the work itself has, it is given up.
    """
    task = asyncio.Task(work, loop=asyncio.get_running_loop())  # the tree of tasks is not for it
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task], timeout=GRACE)
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=GRACE)
            if not task.cancelled() and task.done():
                task.exception()  # seen
        raise


@contextmanager
def unreachable(name: str) -> Iterator[None]:
    """Raise our errors where there is no connection to be had.

    Raises:
        DatabaseLostError: not now.
        ConfigurationError: never, as it is: no such role or database, a wrong password, no URL.
    """
    try:
        yield
    except (
        asyncpg.PostgresError,
        *LOST,
        *kinds_of("sqlalchemy.exc", "DBAPIError", "TimeoutError"),
    ) as exc:
        if is_hopeless(exc):
            raise errors.ConfigurationError(f"{name} cannot be opened: {exc}") from exc
        raise errors.DatabaseLostError(f"no connection to {name}: {said_by(exc)}") from exc
    except (ValueError, OverflowError) as exc:  # of a URL
        raise errors.ConfigurationError(f"the datasource's URL cannot be read: {exc}") from exc


def is_no_answer(error: BaseException) -> bool:
    """Whether an error at COMMIT leaves open what became of it."""
    state = sqlstate_of(error)
    return state is None or state.startswith(UNKNOWN)


def in_doubt(error: BaseException) -> InDoubtError:
    """What is raised for a COMMIT without an answer."""
    return InDoubtError(
        f"the connection broke at COMMIT ({said_by(error)}): whether the transaction was committed "
        "is unknown"
    )


def said_by(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, TimeoutError) and not str(error):
        return "Postgres gave no answer in time"
    return f"{type(error).__name__}: {error}"


def sqlstate_of(error: BaseException) -> str | None:
    """What Postgres called an error, if the error is its."""
    state = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    return state if isinstance(state, str) else None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def is_hopeless(error: BaseException) -> bool:
    """Whether a connection is refused as it will be the next time."""
    original = getattr(error, "orig", None) or error
    return isinstance(original, HOPELESS) or (sqlstate_of(error) or "").startswith(WRONG_LOGIN)


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction failed over others, and has only to be repeated."""
    return any(
        sqlstate_of(cause) in CONFLICTS
        or STALE in (type(cause).__name__, type(getattr(cause, "orig", None)).__name__)
        for cause in causes_of(error)
    )


def is_outage(error: BaseException) -> bool:
    """Whether the server is to blame, and no statement."""
    states = [state for cause in causes_of(error) if (state := sqlstate_of(cause)) is not None]
    return any(
        state == READ_ONLY or (state.startswith(OUTAGES) and state != CANCELLED) for state in states
    )


def is_locked(error: BaseException) -> bool:
    """Whether somebody else's transaction held what the statement needed for too long."""
    return sqlstate_of(error) == LOCKED


def is_lacking_rights(error: BaseException) -> bool:
    """Whether the role may not do what was asked."""
    return sqlstate_of(error) == NO_RIGHTS


def is_aborted(error: BaseException) -> bool:
    """Whether a statement came after one that had failed, and was caught."""
    if isinstance(error, kinds_of("sqlalchemy.exc", "PendingRollbackError")):
        return True
    return sqlstate_of(error) == ABORTED


def ended_by_itself() -> errors.ConfigurationError:
    """What a function is told that has committed or rolled back what is not its own to end."""
    return errors.ConfigurationError(
        "the function has ended its transaction by itself, so its step could not be recorded with "
        "it: leave COMMIT and ROLLBACK to dbos_async; raise to roll back, and use a savepoint for "
        "a part (connection.transaction(), session.begin_nested())"
    )


def refused_as_aborted(error: BaseException) -> errors.DatabaseRefusedError:
    """What a function is told that went on after an error of one of its statements."""
    return errors.DatabaseRefusedError(
        "the function caught an error of one of its statements and went on, but Postgres has "
        "aborted its transaction: let the error out, or run what may fail in a savepoint "
        f"(connection.transaction(), session.begin_nested()) ({error})"
    )
