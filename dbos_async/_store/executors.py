"""Executors as Postgres knows them, and what their leader has to see to."""

from collections.abc import Sequence

from dbos_async._store import sql
from dbos_async._store.database import Database
from dbos_async._store.records import ExecutorRow, LeftBy, Look, WorkflowId


async def fetch(database: Database, application: str | None) -> list[ExecutorRow]:
    """The executors of an application, or of all, the oldest first."""
    return await database.fetch(sql.FETCH_EXECUTORS, application, None, into=ExecutorRow)


async def fetch_left(
    database: Database, executor_ids: Sequence[str], application: str | None
) -> list[LeftBy]:
    """What these executors have PENDING; one that is not known is left out."""
    return await database.fetch(sql.FETCH_LEFT, list(executor_ids), application, into=LeftBy)


async def look_around(database: Database, skew_ms: int, lateness_ms: int, application: str) -> Look:
    """Who is dead, what is due, and whether anything is late."""
    [look] = await database.fetch(sql.LOOK_AROUND, skew_ms, lateness_ms, application, into=Look)
    return look


async def fetch_late(
    database: Database, skew_ms: int, lateness_ms: int, application: str
) -> list[str]:
    """Workflows whose deadline passed that long ago; a bounded number."""
    rows = await database.fetch(sql.FIND_LATE, skew_ms, lateness_ms, application, into=WorkflowId)
    return [row.workflow_id for row in rows]


async def forget_dead(database: Database) -> None:
    """Remove the rows of executors that are dead and have left nothing."""
    await database.execute(sql.FORGET_EXECUTORS)
