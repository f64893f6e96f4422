"""The endpoints about the app itself: is it well, what is queued, take over, wind down, tidy up."""

from starlette.exceptions import HTTPException

from dbos_async import errors
from dbos_async._store import queues
from dbos_async.admin import retention
from dbos_async.admin.call import Call
from dbos_async.admin.shapes import (
    CollectRequest,
    QueueLength,
    QueueMetadata,
    TimeoutRequest,
    metadata_of,
)


async def health(call: Call[None]) -> str:
    """Whether the process lives: it answers. Says nothing about Postgres."""
    return "healthy"


async def readiness(call: Call[None]) -> str:
    """Whether this process takes work: 503 until it is launched, and while it takes none."""
    why = obstacle_of(call)
    if why is not None:
        raise HTTPException(503, why)
    return "ready"


def obstacle_of(call: Call[None]) -> str | None:
    """Why this process takes no work now."""
    executor = call.dbos.find_launched()
    if executor is None:
        return "the app is not launched"
    if executor.is_draining:
        return "the app is shutting down"
    if executor.is_deactivated:
        return "the app was deactivated"
    if call.dbos._own_session().database.is_away:
        return "Postgres does not answer"
    return None


async def deactivate(call: Call[None]) -> str:
    """Start nothing new and take nothing off queues; what runs, or is recovered, goes on."""
    await call.dbos.deactivate()
    return "deactivated"


async def recover(call: Call[list[str]]) -> list[str]:
    """Have what these dead executors left taken over now; the ids of those workflows."""
    return await call.dbos.recover_executors(call.body)


async def collect_garbage(call: Call[CollectRequest]) -> None:
    """Delete what has ended and is old: with its steps, events, streams and messages."""
    asked = call.body
    await retention.collect(
        call.dbos, cutoff_ms=asked.cutoff_epoch_timestamp_ms, rows=asked.rows_threshold
    )


async def time_out(call: Call[TimeoutRequest]) -> None:
    """Cancel what was created at a moment or before it, and has not ended."""
    await retention.time_out(call.dbos, cutoff_ms=call.body.cutoff_epoch_timestamp_ms)


async def list_queues(call: Call[None]) -> list[QueueMetadata]:
    """The queues and their limits."""
    return metadata_of(await call.dbos.list_queues())


async def measure_queue(call: Call[None]) -> QueueLength:
    """How many workflows wait on a queue or run off it; 500 if there is no such queue."""
    session = call.dbos._own_session()
    try:
        return QueueLength(await queues.undone(session.database, call.name, session.application))
    except (errors.QueueNotFoundError, errors.DatabaseError) as exc:
        raise HTTPException(500, str(exc)) from exc
