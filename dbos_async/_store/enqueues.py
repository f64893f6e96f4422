"""Many workflows onto a queue in one transaction: all of them, or none.

    rows, made as they are asked for ─▶ chunks ─▶ insert ─▶ all there? the next chunk
                                                     ▲          │ some are missing
                                                     │          ▼
                                      somebody let go meanwhile? who has the id, or the
                                                                 deduplication id, instead?

While Postgres inserts one chunk, this process makes the next. Ids and tokens are fixed before the
first try, so after a lost connection the whole is sent again: what landed the first time is known
by its token. If the process dies before the commit, nothing was enqueued.

Lock order: rows within a chunk in the order of their ids. A workflow's own enqueues end with its
step row, which locks the workflow, so that this is locked for one round trip only.
"""

import asyncio
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Final

import msgspec

from dbos_async._store import sql
from dbos_async._store.batches import MAX_BYTES, MAX_ROWS
from dbos_async._store.borrowed import AsyncpgTransaction, Transaction, borrow, explained
from dbos_async._store.database import DEADLINE, Connection, Database, count_of
from dbos_async._store.landings import Found, Renumber, deduplicated
from dbos_async._store.records import Fence, Owner, Recorded, StepWrite, WorkflowWrite

ROWS_WITHIN_DEADLINE: Final = 10_000
"""How many rows may take as long as a statement; more have more time."""

ENCODER: Final = msgspec.json.Encoder()

Holders = dict[str, str]
"""Ids of workflows that were not enqueued, and who holds their deduplication ids."""


class Rows:
    """New workflows of one queue, in the order of their arrival; each chunk is made once.

    `attaching` are the ids of those that stand back if their deduplication id is held.
    """

    def __init__(self, made: Iterator[WorkflowWrite], attaching: Container[str]) -> None:
        self.attaching = attaching
        self._made = made
        self._chunks: list[list[WorkflowWrite]] = []

    def chunks(self) -> Iterator[list[WorkflowWrite]]:
        """All rows, in parts of a statement's size."""
        yield from self._chunks
        while chunk := self._next_chunk():
            self._chunks.append(chunk)
            yield chunk

    def _next_chunk(self) -> list[WorkflowWrite]:
        chunk: list[WorkflowWrite] = []
        size = 0
        for write in self._made:
            write.arrival = len(chunk)
            chunk.append(write)
            size += len(write.inputs)
            if len(chunk) == MAX_ROWS or size > MAX_BYTES:
                break
        chunk.sort(key=lambda write: write.workflow_id)
        return chunk


class Overruled(Exception):  # noqa: N818  # a way out of a transaction, not an error
    """The step of these enqueues is recorded, or its workflow is lost: undo them."""

    def __init__(self, landing: Recorded | Fence) -> None:
        super().__init__()
        self.landing = landing


async def enqueue(database: Database, rows: Rows, count: int, application: str | None) -> Holders:
    """Enqueue about `count` workflows in a transaction of ours. Outages only delay it.

    Raises:
        DeduplicatedError: a deduplication id is held. Nothing was enqueued, as with all errors.
        WorkflowConflictError: an id belongs to another workflow function.
        DatabaseRefusedError: Postgres rejected it.
    """

    async def attempt() -> Holders:
        async with database.lease(deadline=deadline_of(count)) as connection:
            return await land(AsyncpgTransaction(connection), rows, application)

    return await database.patiently(attempt)


async def enqueue_on(connection: object, rows: Rows, application: str | None) -> Holders:
    """Enqueue workflows in the transaction of the user's connection. Raises as `enqueue` does.

    Raises:
        TypeError: it is of a kind that is not known here.
        DatabaseRefusedError, ConfigurationError: it cannot be used; the message says why.
    """
    transaction = await borrow(connection)
    with explained():
        return await land(transaction, rows, application)


async def enqueue_children(
    database: Database,
    rows: Rows,
    count: int,
    application: str | None,
    step_of: Callable[[Holders], StepWrite],
) -> Holders | Recorded | Fence:
    """Enqueue workflows together with the step row of the workflow that does it.

    It may turn out that the step is recorded, or the workflow not ours: then nothing is enqueued.
    Raises as `enqueue` does.
    """

    async def attempt() -> Holders | Recorded | Fence:
        try:
            async with (
                database.lease(deadline=deadline_of(count)) as connection,
                connection.transaction(),
            ):
                holders = await land(AsyncpgTransaction(connection), rows, application)
                await record(connection, step_of(holders), application)
        except Overruled as overruled:
            return overruled.landing
        return holders

    return await database.patiently(attempt)


def deadline_of(count: int) -> float:
    """Seconds that the enqueue of so many workflows may take."""
    return DEADLINE * (1 + count // ROWS_WITHIN_DEADLINE)


async def record(connection: Connection, step: StepWrite, application: str | None) -> None:
    """Write a step row, or raise `Overruled`."""
    while True:
        values = [getattr(step, field) for field in StepWrite.__struct_fields__]
        if count_of(await connection.execute(sql.RECORD_STEP, *values, application)):
            return
        recorded = await connection.fetch(sql.FIND_STEPS, [step.workflow_id], [step.key])
        owners = await connection.fetch(sql.FIND_OWNERS, [step.workflow_id])
        found = Found(
            {(row[0], row[2]): Recorded(*row) for row in recorded},
            {row[0]: Owner(*row) for row in owners},
        )
        landing = found.landing_of_step(step)
        if not isinstance(landing, Renumber):
            raise Overruled(landing)
        step.step_key = step.key
        step.position = 1 + await connection.fetchval(sql.FIND_LAST_POSITION, step.workflow_id)


async def land(transaction: Transaction, rows: Rows, application: str | None) -> Holders:
    """Insert all rows, or raise and leave none."""
    holders: Holders = {}
    async with transaction.savepoint():
        chunks = rows.chunks()
        chunk = next(chunks, None)
        while chunk is not None:
            travelling = asyncio.create_task(
                land_chunk(transaction, chunk, rows.attaching, application)
            )
            try:
                await asyncio.sleep(0)  # now it travels
                chunk = next(chunks, None)
            finally:
                holders |= await travelling
    return holders


async def land_chunk(
    transaction: Transaction,
    chunk: list[WorkflowWrite],
    attaching: Container[str],
    application: str | None,
) -> Holders:
    """Insert some rows; an id that exists is attached to."""
    holders: Holders = {}
    left = chunk
    while left:
        text = ENCODER.encode(left).decode()
        [[landed]] = await transaction.fetch(sql.ENQUEUE, text, application)
        if landed == len(left):
            break
        missing = await find_missing(transaction, left)
        held = await find_holders(transaction, missing)
        for write in missing:
            holder = held.get(write.deduplication_id)
            if holder is not None and write.workflow_id not in attaching:
                raise deduplicated(write, holder)
            if holder is not None:
                holders[write.workflow_id] = holder
        left = [write for write in missing if write.workflow_id not in holders]
    return holders


async def find_missing(
    transaction: Transaction, writes: list[WorkflowWrite]
) -> list[WorkflowWrite]:
    """Those whose ids do not exist.

    Raises:
        WorkflowConflictError: the id of one belongs to another workflow function.
    """
    ids = ENCODER.encode([write.workflow_id for write in writes]).decode()
    rows = await transaction.fetch(sql.FIND_ENQUEUED, ids)
    found = Found({}, {row[0]: Owner(*row) for row in rows})
    missing = [write for write in writes if write.workflow_id not in found.owners]
    for write in writes:
        if write.workflow_id in found.owners:
            found.landing_of(write)  # which raises
    return missing


async def find_holders(
    transaction: Transaction, writes: Sequence[WorkflowWrite]
) -> dict[str | None, str]:
    """Who has the deduplication ids of these, by deduplication id."""
    wanted = [write.deduplication_id for write in writes if write.deduplication_id is not None]
    if not wanted:
        return {}
    text = ENCODER.encode(wanted).decode()
    rows = await transaction.fetch(sql.FIND_HOLDERS, writes[0].queue_name, text)
    return {row[0]: row[1] for row in rows}
