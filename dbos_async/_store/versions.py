"""Versions of the code, as Postgres has them."""

from collections.abc import Sequence

from msgspec import Struct

from dbos_async._store import sql
from dbos_async._store.database import Database
from dbos_async._store.records import QueueName


class VersionRow(Struct, frozen=True):
    """A version that was launched."""

    name: str
    application: str | None
    created_at_ms: int
    latest_at_ms: int


class WorkCount(Struct, frozen=True):
    """How much waits for one version of one application."""

    application: str | None
    app_version: str | None
    enqueued: int
    delayed: int
    pending: int


class Count(Struct, frozen=True):
    """A number."""

    count: int


async def fetch(database: Database, application: str | None) -> list[VersionRow]:
    """The versions, newest first: of one application, or of all."""
    return await database.fetch(sql.FETCH_VERSIONS, application, into=VersionRow)


async def set_latest(database: Database, name: str, application: str | None) -> bool:
    """Make a version the newest; whether there is such a version."""
    return await database.execute(sql.SET_LATEST_VERSION, name, application) > 0


async def count_work(
    database: Database, application: str | None, *, at_most: int | None = None
) -> list[WorkCount]:
    """What waits for each version; of long lines the first `at_most`, unless it is None."""
    return await database.fetch(sql.COUNT_WORK, application, at_most, into=WorkCount)


async def count_processes(
    database: Database, versions: Sequence[tuple[str | None, str | None]]
) -> list[int]:
    """How many live processes run each of these, given as application and version."""
    applications = [application or "" for application, _ in versions]
    names = [name or "" for _, name in versions]
    rows = await database.fetch(sql.COUNT_PROCESSES, applications, names, into=Count)
    return [row.count for row in rows]


async def move_work(
    database: Database, source: str, target: str, application: str | None, *, pending: bool
) -> list[str | None]:
    """Give what waits for one version to another, some at a time; the queues of what moved."""
    values = (source, target, application, pending)
    rows = await database.fetch(sql.MOVE_WORK, *values, into=QueueName)
    return [row.queue_name for row in rows]


async def count_dead_letters(database: Database, application: str | None) -> int:
    """How many workflows were given up."""
    [row] = await database.fetch(sql.COUNT_DEAD_LETTERS, application, into=Count)
    return row.count
