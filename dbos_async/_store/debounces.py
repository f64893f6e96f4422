"""Debounced workflows in the database: one row a key, as long as it waits."""

from msgspec import Struct

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.database import Connection, Database
from dbos_async._store.enqueues import Overruled, record
from dbos_async._store.records import Fence, Recorded, StepWrite


class DebounceWrite(Struct):
    """One call: the workflow that it begins, or what it makes of the one that waits."""

    workflow_id: str
    name: str
    queue_name: str
    deduplication_id: str
    inputs: str
    app_version: str | None
    creator: str
    timeout_ms: int | None
    attributes: str | None
    period_ms: int
    max_wait_ms: int | None
    application: str | None
    skew_ms: int
    caller: str | None


class Debounced(Struct, frozen=True):
    """The workflow that a call came to, and when it is due; None: that was said before."""

    workflow_id: str
    due_ms: int | None


class Holder(Struct, frozen=True):
    """Who holds a key, and whether a call may bounce it."""

    workflow_id: str
    is_bounceable: bool


async def debounce(database: Database, write: DebounceWrite) -> Debounced:
    """Begin a workflow, or bounce the one that holds the key.

    Raises:
        DeduplicatedError: another workflow holds the key.
    """
    async with database.lease() as connection:
        return await land(connection, write)


async def debounce_within(
    database: Database, write: DebounceWrite, step: StepWrite
) -> Debounced | Recorded | Fence:
    """The same together with the step row of the workflow that does it. Raises as `debounce` does.

    It may turn out that the step is recorded, or the workflow not ours: then nothing is bounced.
    """
    try:
        async with database.lease() as connection, connection.transaction():
            debounced = await land(connection, write)
            step.child_workflow_id = debounced.workflow_id
            await record(connection, step, write.application)
    except Overruled as overruled:
        return overruled.landing
    return debounced


async def land(connection: Connection, write: DebounceWrite) -> Debounced:
    """One statement; more only if something stands in its way."""
    values = [getattr(write, field) for field in DebounceWrite.__struct_fields__]
    while True:
        row = await connection.fetchrow(sql.DEBOUNCE, *values)
        if row is not None:
            return Debounced(*row)
        if await connection.fetch(sql.FIND_OWNERS, [write.workflow_id]):
            return Debounced(write.workflow_id, None)  # an attempt whose answer was lost began it
        await check_holder(connection, write)


async def check_holder(connection: Connection, write: DebounceWrite) -> None:
    """Raise if somebody else holds the key. If nobody does any more, the next attempt may land."""
    name, key = write.queue_name, write.deduplication_id
    row = await connection.fetchrow(sql.FIND_KEY_HOLDER, name, write.name, key, write.application)
    holder = None if row is None else Holder(*row)
    if holder is not None and not holder.is_bounceable:
        raise errors.DeduplicatedError(
            f"the deduplication id {key!r} of queue {name!r}, which is the debounce key of "
            f"{write.name!r}, is held by workflow {holder.workflow_id!r}: it was not debounced by "
            "this function, or another app has it",
            workflow_id=holder.workflow_id,
        )
