"""Connections of the user's own: what is enqueued on one commits or rolls back with its other rows.

Ours is a savepoint in the user's transaction; where the user has begun none on asyncpg, it is a
transaction. The driver's errors stay as they are, because the user's own retries look for them,
except for those that say that the connection is not fit for this at all.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, LiteralString, Protocol

import asyncpg

from dbos_async import errors

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from dbos_async._store.database import Connection

Row = Sequence[Any]

WRONG_DATABASE: Final = ("42P01", "42703", "3F000")
"""No such table or column: SQLSTATEs of a database that has not our schema."""
ABORTED: Final = "25P02"
NO_TRANSACTION: Final = "25P01"


class Transaction(Protocol):
    """A connection on which all is done or nothing."""

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        """Undo what was done in the block if it raises."""
        ...

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """Run a statement with parameters `$1`, `$2`, …, texts or numbers."""
        ...


class AsyncpgTransaction:
    """On a connection of asyncpg, ours or the user's."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        """See `Transaction`."""
        return self._connection.transaction()

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """See `Transaction`."""
        return [tuple(row) for row in await self._connection.fetch(statement, *values)]


class SqlalchemyTransaction:
    """On a connection of SQLAlchemy, whatever its driver."""

    def __init__(self, connection: "AsyncConnection") -> None:
        self._connection = connection

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        """See `Transaction`. It begins the transaction around it if that is still to be begun."""
        return self._connection.begin_nested()

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """See `Transaction`."""
        import sqlalchemy  # noqa: PLC0415  # no dependency of ours: who has such a connection has it

        named = sqlalchemy.text(re.sub(r"\$(\d+)", r":value_\1", statement))
        given = {f"value_{place}": value for place, value in enumerate(values, 1)}
        result = await self._connection.execute(named, given)
        return [tuple(row) for row in result] if result.returns_rows else []


async def borrow(connection: object) -> Transaction:
    """The user's connection as we use it.

    Raises:
        TypeError: it is of a kind that is not known here.
        DatabaseRefusedError: it is closed.
    """
    check_kind(connection)
    found: Any = connection
    if isinstance(connection, asyncpg.Connection):
        return AsyncpgTransaction(found)
    with explained():
        if isinstance(connection, kinds_of("sqlalchemy.ext.asyncio", "AsyncSession")):
            found = await found.connection()  # which begins the session's transaction
        dialect = found.dialect.name
    if dialect != "postgresql":
        raise TypeError(f"connection= is one to {dialect}, not to Postgres")
    return SqlalchemyTransaction(found)


def check_kind(connection: object) -> None:
    """Refuse what is no connection that can be used here.

    Raises:
        TypeError: it is not.
    """
    known = kinds_of("sqlalchemy.ext.asyncio", "AsyncConnection", "AsyncSession")
    if not isinstance(connection, (asyncpg.Connection, *known)):
        raise TypeError(
            "connection= is an asyncpg Connection, or SQLAlchemy's AsyncConnection or "
            f"AsyncSession, not {type(connection).__module__}.{type(connection).__qualname__}"
        )


@contextmanager
def explained() -> Iterator[None]:
    """Say what is wrong with the user's connection, if that is why the driver complains.

    Raises:
        DatabaseRefusedError: it is closed, busy, or its transaction has failed.
        ConfigurationError: it leads to another database, or commits every statement by itself.
    """
    try:
        yield
    except (asyncpg.InterfaceError, *kinds_of("sqlalchemy.exc", "InvalidRequestError")) as exc:
        raise errors.DatabaseRefusedError(
            f"the connection given as connection= cannot be used: {exc}"
        ) from exc
    except (asyncpg.PostgresError, *kinds_of("sqlalchemy.exc", "DBAPIError")) as exc:
        explanation = explanation_of(exc)
        if explanation is None:
            raise
        raise explanation from exc


def explanation_of(error: Exception) -> errors.DBOSError | None:
    """What a driver's error says about the connection, if it does."""
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    if state == ABORTED:
        return errors.DatabaseRefusedError(
            "the transaction of connection= has failed already, at an earlier statement: roll it "
            "back, nothing can be enqueued in it"
        )
    if state == NO_TRANSACTION:
        return errors.ConfigurationError(
            "connection= commits every statement by itself (AUTOCOMMIT): what is enqueued could "
            "not commit together with anything"
        )
    if state in WRONG_DATABASE:
        return errors.ConfigurationError(
            "connection= leads to a database without the app's system tables, or with older ones: "
            f"it must be one to the app's own system database ({error})"
        )
    return None


def kinds_of(module: str, *names: str) -> tuple[Any, ...]:
    """These classes, if the module is loaded; if it is not, nobody has an instance."""
    loaded = sys.modules.get(module)
    return () if loaded is None else tuple(getattr(loaded, name) for name in names)
