"""How the database is, in numbers; what they mean is for the faces to say."""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from dbos_async._store import schema, sql
from dbos_async._store.database import Database

Pooling = Literal["none", "session", "transaction"]
"""Who answers: Postgres itself, or a pooler that keeps sessions apart, or one that does not."""


class ServerRow(Struct, frozen=True):
    """The server, and the database in it."""

    version: str
    max_connections: int
    reserved: int
    """How many of them are kept for superusers."""
    connections: int
    ours: int
    """Connections of apps and clients of this library."""
    notification_queue_usage: float
    """0 to 1; at 1 commits that notify fail."""
    other_tables: int
    """Tables beside ours in this database."""


class Place(Struct, frozen=True):
    """Which database it is, by whatever name or address it was reached; no copy has the same."""

    oid: int
    server_started_at: datetime
    """To the microsecond: of two servers that are copies of one, too, no other has it."""


class TransactionRow(Struct, frozen=True):
    """A transaction that is open."""

    who: str
    state: str
    seconds: float


class TableRow(Struct, frozen=True):
    """One of our tables; the rows are estimates."""

    name: str
    table_bytes: int
    index_bytes: int
    live: int
    dead: int
    vacuumed: float | None
    """Seconds since then."""


class QueueLoad(Struct, frozen=True):
    """What is on a queue."""

    name: str
    application: str | None
    is_declared: bool
    is_paused: bool
    enqueued: int
    delayed: int
    pending: int
    oldest_ms: int | None
    """Since when the first of the enqueued has stood in line."""


async def fetch_place(database: Database) -> Place:
    """Which database it is."""
    [place] = await database.fetch(sql.FETCH_PLACE, into=Place)
    return place


async def fetch_server(database: Database) -> ServerRow:
    """The server, and the database in it."""
    [row] = await database.fetch(sql.FETCH_SERVER, into=ServerRow)
    return row


async def find_oldest_transaction(database: Database) -> TransactionRow | None:
    """The transaction of this database that is open for the longest."""
    rows = await database.fetch(sql.FETCH_OLDEST_TRANSACTION, into=TransactionRow)
    return rows[0] if rows else None


async def fetch_table_sizes(database: Database) -> list[TableRow]:
    """Our tables, the largest first."""
    return await database.fetch(sql.FETCH_TABLE_SIZES, into=TableRow)


async def find_oldest_workflow(database: Database) -> int | None:
    """When the oldest workflow that is kept was created, in milliseconds."""
    async with database.lease() as connection:
        oldest: int | None = await connection.fetchval(sql.FETCH_OLDEST_WORKFLOW)
    return oldest


async def fetch_queue_loads(database: Database) -> list[QueueLoad]:
    """Every queue that is declared, or has something on it, by name."""
    return await database.fetch(sql.FETCH_QUEUE_LOADS, into=QueueLoad)


async def find_drift(database: Database) -> list[str]:
    """What the schema lacks."""
    async with database.lease() as connection:
        return await schema.find_missing(connection)


async def find_foreign_indexes(database: Database) -> list[str]:
    """The indexes that the official library made and nothing of ours uses."""
    async with database.lease() as connection:
        return [index.name for index in await schema.find_foreign_indexes(connection)]


async def pooling(database: Database) -> Pooling:
    """Whether a pooler is between us and Postgres, and of which mode."""
    if database.is_shared:
        return "transaction"
    async with database.lease() as connection:
        process = await connection.fetchval(sql.FETCH_BACKEND)
        return "none" if process == connection.get_server_pid() else "session"
