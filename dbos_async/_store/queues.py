"""Queues in the database: declared, changed, counted."""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._config import seconds_of
from dbos_async._limits import Limits, RateLimit
from dbos_async._store import sql
from dbos_async._store.clock import milliseconds_of
from dbos_async._store.database import Database
from dbos_async._store.records import QueueName, QueueRow
from dbos_async._store.workflows import fetch_outcomes

INTERNAL_QUEUE: Final = "_dbos_internal_queue"
"""Every process works on it; it has no row and no limits."""


class Due(Struct, frozen=True):
    """Where a delayed workflow waits, and until when."""

    queue_name: str | None
    delay_until_ms: int | None


async def declare(
    database: Database,
    name: str,
    limits: Limits,
    on_conflict: str,
    *,
    application: str,
    app_version: str,
) -> None:
    """Write a queue's limits down for all processes.

    Raises:
        ConfigurationError: the queue is another app's; choose another name.
    """
    values = values_of(limits)
    async with database.lease() as connection:
        owner = await connection.fetchval(
            sql.DECLARE_QUEUE, name, *values, application, on_conflict, app_version
        )
    if owner is not None and owner != application:
        raise errors.ConfigurationError(
            f"the queue {name!r} belongs to the app {owner!r} in this database: queue names are "
            "shared by all its apps, choose another"
        )


async def fetch(database: Database, name: str | None, application: str | None) -> list[QueueRow]:
    """The queue of this name, or all, of one application and of none; of any, for a client."""
    return await database.fetch(sql.FETCH_QUEUES, name, application, into=QueueRow)


async def update(
    database: Database, name: str, change: Callable[[Limits], Limits], application: str | None
) -> Limits:
    """Change a queue's limits; what they are now.

    Raises:
        QueueNotFoundError: there is no such queue.
        ValueError: what `change` refuses.
    """
    async with database.lease() as connection, connection.transaction():
        await connection.execute(sql.LOCK_QUEUE, name)
        found = await connection.fetchrow(sql.FETCH_QUEUES, name, application)
        if found is None:
            raise errors.QueueNotFoundError(f"there is no queue named {name!r}")
        limits = change(limits_of(QueueRow(*found)))
        await connection.execute(sql.UPDATE_QUEUE, name, *values_of(limits))
    return limits


async def pause(database: Database, name: str, application: str | None, *, is_paused: bool) -> None:
    """Pause a queue, or let it go on. Raises QueueNotFoundError."""
    found = await database.execute(sql.PAUSE_QUEUE, name, application, is_paused)
    check_found(name, found)


async def delete(database: Database, name: str, application: str | None) -> None:
    """Delete a queue. Raises QueueNotFoundError."""
    check_found(name, await database.execute(sql.DELETE_QUEUE, name, application))


async def depth(database: Database, name: str) -> int:
    """How many workflows wait on a queue."""
    async with database.lease() as connection:
        count: int = await connection.fetchval(sql.COUNT_WAITING, name)
    return count


async def undone(database: Database, name: str, application: str | None) -> int:
    """How many workflows wait on a queue or run off it.

    Raises:
        QueueNotFoundError: there is no such queue.
    """
    async with database.lease() as connection:
        count: int | None = await connection.fetchval(sql.COUNT_UNDONE, name, application)
    if count is None:
        raise errors.QueueNotFoundError(f"there is no queue named {name!r}")
    return count


async def fetch_waiting(database: Database, names: Collection[str]) -> list[str]:
    """Which of these queues have anything that waits."""
    rows = await database.fetch(sql.FIND_WAITING, list(names), into=QueueName)
    return [row.queue_name for row in rows if row.queue_name is not None]


async def release_delayed(database: Database, skew_ms: int) -> list[str]:
    """Enqueue what was delayed and is due; the queues it went to."""
    rows = await database.fetch(sql.RELEASE_DELAYED, skew_ms, into=QueueName)
    return [row.queue_name for row in rows if row.queue_name is not None]


async def set_delay(
    database: Database, workflow_id: str, delay: float | datetime, skew_ms: int
) -> Due:
    """Let a delayed workflow come due in so many seconds, or at a moment.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        ValueError: it is not delayed any more.
    """
    moment_ms = milliseconds_of(delay) if isinstance(delay, datetime) else None
    pause_ms = None if isinstance(delay, datetime) else round(delay * 1000)
    due = await database.fetch(sql.SET_DELAY, workflow_id, moment_ms, pause_ms, skew_ms, into=Due)
    if due:
        return due[0]
    outcomes = await fetch_outcomes(database, [workflow_id])
    if not outcomes:
        raise errors.WorkflowNotFoundError(workflow_id)
    raise ValueError(
        f"workflow {workflow_id!r} is {outcomes[0].status}, and only one that is DELAYED and has "
        "not begun has a delay to change; what one waits for that has begun ends by the message or "
        "the event that it waits for, in its own time, or by cancelling the workflow"
    )


def check_found(name: str, rows: int) -> None:
    """Raise QueueNotFoundError if a statement found no queue."""
    if not rows:
        raise errors.QueueNotFoundError(f"there is no queue named {name!r}")


def limits_of(row: QueueRow) -> Limits:
    """The limits in a queue's row."""
    return Limits(
        concurrency=row.concurrency,
        worker_concurrency=row.worker_concurrency,
        rate_limit=rate_of(row.rate_limit_max, row.rate_limit_period),
        worker_rate_limit=rate_of(row.worker_rate_limit_max, row.worker_rate_limit_period),
        partition_concurrency=row.partition_concurrency,
        partition_worker_concurrency=row.partition_worker_concurrency,
        partition_rate_limit=rate_of(row.partition_rate_limit_max, row.partition_rate_limit_period),
    )


def rate_of(limit: int | None, period: float | None) -> RateLimit | None:
    """A rate limit in its two columns."""
    return None if limit is None or period is None else RateLimit(limit, period)


def values_of(limits: Limits) -> list[int | float | None]:
    """Limits as the columns of a queue's row."""
    values: list[int | float | None] = []
    for name in Limits.__struct_fields__:
        value = getattr(limits, name)
        if not name.endswith("rate_limit"):
            values.append(value)
        elif value is None:
            values += [None, None]
        else:
            values += [value.limit, seconds_of(value.per)]
    return values
