"""Batches: what goes out together, in which order, and as which statement. Nothing is sent here."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, LiteralString, NamedTuple

from msgspec import Struct, structs

from dbos_async._store import sql
from dbos_async._store.landings import Landing
from dbos_async._store.records import (
    ChildWrite,
    CompletionWrite,
    EffectWrite,
    EventRow,
    MessageRow,
    ReceiptWrite,
    SagaWrite,
    StepWrite,
    StreamRow,
    WorkflowWrite,
    Write,
)

MAX_ROWS: Final = 1_000
MAX_BYTES: Final = 16 * 1024 * 1024


class Waiting(Struct, eq=False):
    """A write, and the caller it holds up."""

    write: Write
    durable: asyncio.Future[Landing]

    def settle(self, landing: Landing = None) -> None:
        """Let the caller go on, unless it was cancelled meanwhile."""
        if not self.durable.done():
            self.durable.set_result(landing)

    def refuse(self, error: BaseException) -> None:
        """Tell the caller that its write will never land."""
        if not self.durable.done():
            self.durable.set_exception(error)


class Statement(NamedTuple):
    """What one batch is sent as, and how many rows must land for nobody to need an answer."""

    text: LiteralString
    values: Sequence[object]
    rows: int
    counts_itself: bool = False


def taken(waiting: deque[Waiting], limit: int) -> list[Waiting]:
    """Up to `limit` writes and `MAX_BYTES` from the front; a larger write goes alone.

    A completion stays behind the steps of its own workflow, for the next batch.
    """
    batch: list[Waiting] = []
    later: list[Waiting] = []
    stepping: set[str] = set()
    size = 0
    while waiting and len(batch) < limit:
        write = waiting[0].write
        size += size_of(write)
        if size > MAX_BYTES and batch:
            break
        if isinstance(write, CompletionWrite):
            if write.workflow_id in stepping:
                later.append(waiting.popleft())
                continue
        elif isinstance(write, StepWrite | EffectWrite | SagaWrite):
            stepping.add(write.workflow_id)
        elif isinstance(write, ChildWrite | ReceiptWrite):
            stepping.add(write.step.workflow_id)
        batch.append(waiting.popleft())
    waiting.extendleft(reversed(later))
    return batch


def number_enqueues(batch: list[Waiting]) -> None:
    """Let queues be first in, first out, though the rows are written in another order."""
    for place, waiting in enumerate(batch):
        write = waiting.write
        workflow = write.workflow if isinstance(write, ChildWrite) else write
        if isinstance(workflow, WorkflowWrite) and workflow.queue_name is not None:
            workflow.arrival = place


def size_of(write: Write) -> int:
    """About how many bytes a write sends."""
    match write:
        case StepWrite() | CompletionWrite():
            return len(write.output or write.error or "")
        case WorkflowWrite():
            return len(write.inputs)
        case ChildWrite(_, workflow):
            return len(workflow.inputs)
        case ReceiptWrite():
            return 0
        case SagaWrite():
            return 0 if write.compensation is None else len(write.compensation.inputs)
        case EffectWrite():
            size = 0
            for effect in write.effects:
                size += len(effect.message if isinstance(effect, MessageRow) else effect.value)
            return size


def sort_key(write: Write) -> str:
    """Rows are locked in the order of their workflows."""
    return write.step.workflow_id if isinstance(write, ChildWrite) else write.workflow_id


def step_of(write: Write) -> StepWrite | None:
    """The step row in a write, if there is one."""
    if isinstance(write, ChildWrite | EffectWrite | ReceiptWrite | SagaWrite):
        return write.step
    return write if isinstance(write, StepWrite) else None


def ids_of(write: Write) -> tuple[str, ...]:
    """Every workflow that a write touches."""
    if isinstance(write, ChildWrite):
        return write.step.workflow_id, write.workflow.workflow_id
    return (write.workflow_id,)


def key_of(waiting: Waiting) -> tuple[str, str]:
    """The workflow and the key of a write's step."""
    step = step_of(waiting.write)
    return ("", "") if step is None else (step.workflow_id, step.key)


def statement_of(writes: list[Write], application: str | None) -> Statement:
    """The narrowest statement that carries all of `writes`."""
    kinds = {type(write) for write in writes}
    if kinds == {StepWrite}:
        if len(writes) == 1:
            step = [getattr(writes[0], field) for field in StepWrite.__struct_fields__]
            return Statement(sql.RECORD_STEP, [*step, application], 1)
        return Statement(sql.RECORD_STEPS, [*columns(StepWrite, writes), application], len(writes))
    if kinds == {WorkflowWrite}:
        return Statement(
            sql.CREATE_WORKFLOWS, [*columns(WorkflowWrite, writes), application], len(writes)
        )
    if kinds == {CompletionWrite}:
        return Statement(sql.COMPLETE_WORKFLOWS, columns(CompletionWrite, writes), len(writes))
    if SagaWrite in kinds:
        return undoing(writes, application)
    if EffectWrite in kinds:
        values = values_of(writes) if kinds == {EffectWrite} else None
        if values is not None:
            return Statement(sql.RECORD_STREAM_VALUES, turned(values, 6), len(values))
        return effective(writes, application)
    return mixed(writes, application)


def mixed(writes: list[Write], application: str | None) -> Statement:
    """The statement for several kinds at once."""
    children = [write for write in writes if isinstance(write, ChildWrite)]
    steps = [step for write in writes if (step := step_of(write)) is not None]
    roots = [write for write in writes if isinstance(write, WorkflowWrite)]
    workflows = [*roots, *(child.workflow for child in children)]
    positions = [*(None for _ in roots), *(child.step.position for child in children)]
    completions = [write for write in writes if isinstance(write, CompletionWrite)]
    return Statement(
        sql.RECORD_MIXED,
        [
            *columns(StepWrite, steps),
            application,
            *columns(WorkflowWrite, workflows),
            positions,
            *columns(CompletionWrite, completions),
        ],
        rows=len(steps) + len(workflows) + len(completions),
        counts_itself=True,
    )


def values_of(writes: list[Write]) -> list[tuple[object, ...]] | None:
    """Rows for the statement for values of streams from within steps; None: there is more."""
    values: list[tuple[object, ...]] = []
    for write in writes:
        if not isinstance(write, EffectWrite) or write.step is not None:
            return None
        for effect in write.effects:
            if not isinstance(effect, StreamRow):
                return None
            values.append(
                (
                    write.workflow_id,
                    write.position,
                    write.owner,
                    effect.key,
                    effect.value,
                    effect.offset,
                )
            )
    return values


def effective(writes: list[Write], application: str | None) -> Statement:
    """The statement for steps and what they tell others."""
    steps = [step for write in writes if (step := step_of(write)) is not None]
    told = [write for write in writes if isinstance(write, EffectWrite)]
    messages: list[tuple[object, ...]] = []
    values: list[tuple[object, ...]] = []
    for write in told:
        step = write.step
        position = write.position if step is None else step.position
        owner = write.owner if step is None else None
        for effect in write.effects:
            match effect:
                case MessageRow():
                    messages.append((write.workflow_id, position, *structs.astuple(effect)))
                case EventRow(key, value):
                    values.append((write.workflow_id, position, owner, key, value, None))
                case StreamRow(key, value, offset):
                    values.append((write.workflow_id, position, owner, key, value, offset))
    return Statement(
        sql.RECORD_EFFECTS,
        [
            *columns(StepWrite, steps),
            application,
            *turned(messages, 6),
            *turned(values, 6),
        ],
        rows=len(steps) + sum(owner is not None for _, _, owner, *_ in values),
        counts_itself=True,
    )


def undoing(writes: list[Write], application: str | None) -> Statement:
    """The statement for steps, and for those of sagas with what they open and drop."""
    steps = [step for write in writes if (step := step_of(write)) is not None]
    told: list[tuple[object, ...]] = []
    for write in writes:
        if isinstance(write, SagaWrite):
            position = write.position if write.step is None else write.step.position
            owner = write.owner if write.step is None else None
            row = write.compensation
            opened = (None,) * 5 if row is None else structs.astuple(row)
            told.append((write.workflow_id, position, owner, write.saga, *opened))
    return Statement(
        sql.RECORD_SAGAS,
        [*columns(StepWrite, steps), application, *turned(told, 9)],
        rows=len(steps) + sum(owner is not None for _, _, owner, *_ in told),
        counts_itself=True,
    )


def columns(kind: type[Struct], writes: Sequence[Struct]) -> list[list[object]]:
    """The writes turned on their side: one list a column, as `unnest` takes them.

    A column of nothing but NULL is sent empty, which `unnest` fills up with NULL: asyncpg looks at
    every element, and most columns of most batches are like that.
    """
    lists = [[getattr(write, field) for write in writes] for field in kind.__struct_fields__]
    return [column if column.count(None) < len(column) else [] for column in lists]


def turned(rows: list[tuple[object, ...]], width: int) -> list[list[object]]:
    """Rows turned on their side."""
    return [[row[place] for row in rows] for place in range(width)]
