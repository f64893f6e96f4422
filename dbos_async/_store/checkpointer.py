"""Group commit: many workflows' checkpoints, one round trip.

A checkpoint holds its workflow up until it is durable, so a timer would only add latency. There is
none: what arrives while one batch travels to Postgres is the next batch. An idle system commits
writes singly; a busy one, hundreds for one fsync.

    commit ─┐
    commit ─┼─▶ waiting ─▶ batch ─▶ Postgres ─▶ each caller resumes, or learns what stands instead
    commit ─┘

Who owns what: one task, `_run`, owns the connection and the batch that travels; callers own nothing
but a future. What may be true at each await:

- *The process dies before the batch arrives*: nothing landed, nobody was told; replay repeats it.
- *It dies after the commit*: everything landed, nobody was told; replay finds it.
- *The connection breaks*: unknown, so the batch is sent again. Every write carries what identifies
  it (a step its key, a workflow its creator's token), and a write that does not land the second
  time is looked up: what is recorded wins over what is in hand.
- *A takeover or a cancel meanwhile*: each write is fenced by the owner token under the workflow's
  row lock; it does not land, and the caller learns `Fence.LOST`.
- *One write is bad or blocked*: the batch is halved until it stands alone; then it fails alone, or
  waits on a connection of the pool. The others go on.
- *The caller is cancelled*: its write still happens.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar, Final, LiteralString, NamedTuple, Protocol

from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import sql
from dbos_async._store.database import (
    DEADLINE,
    PASSING,
    Connection,
    ContendedError,
    Database,
    count_of,
    translated,
)
from dbos_async._store.records import (
    ChildWrite,
    CompletionWrite,
    EffectWrite,
    EventRow,
    Fence,
    MessageRow,
    Owner,
    ReceiptWrite,
    Recorded,
    StepWrite,
    StreamRow,
    WorkflowWrite,
    Write,
)

MAX_ROWS: Final = 1_000
MAX_IN_STEP: Final = 64
"""When more than this arrives at once after a pause, half goes first. Else all callers march in
step: Postgres rests while they compute, and they while it writes. Measured: 1.2 to 1.5 x."""
MAX_BYTES: Final = 16 * 1024 * 1024
MAX_LOSSES: Final = 10
"""Connections that one lone write may break before the others go on without it."""

FLUSH: Final = 5.0
"""Seconds that a shutdown waits for Postgres to take the last writes; they have no callers left."""

SESSION: Final = """
select set_config('lock_timeout', '50ms', false), set_config('enable_seqscan', 'off', false),
       set_config('plan_cache_mode', 'force_generic_plan', false)
"""

# One turn of a write that waits for a row. A connection that a turn fails on is not used again.
TURN: Final = "select set_config('lock_timeout', '500ms', false)"
END_OF_TURN: Final = "select set_config('lock_timeout', '0', false)"

Landing = Recorded | Owner | Fence | None
"""What became of a write: None, it landed; else what stands in its place."""


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


class CrashPoint(Protocol):
    """Where a test wants the process to die. Its calls do not return once it has."""

    async def taken(self, waiting: deque[Waiting]) -> list[Waiting]:
        """The next batch: no more of those that wait than may still go out."""
        ...

    async def answered(self, batch: list[Waiting]) -> None:
        """Postgres has answered for these writes; nobody was told yet."""
        ...


class Checkpointer:
    """Makes steps, starts and completions durable."""

    crash_point: ClassVar[CrashPoint | None] = None
    """For `dbos_async.testing.crash_at` alone."""

    def __init__(self, database: Database, *, application: str | None) -> None:
        self._database = database
        self._application = application
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self.obituary: BaseException = errors.DatabaseLostError(
            "the app has shut down; whether this was recorded shows at the next launch"
        )
        """What callers are told whose writes nobody will carry any more."""
        self._connection: Connection | None = None
        self._runner: asyncio.Task[object] | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._aside: set[asyncio.Task[None]] = set()
        self._one_aside = asyncio.Semaphore(1)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Checkpointer"]:
        """Write batches for the length of the block; leave none behind."""
        self._connection = await self._connect()
        try:
            async with running(self.close, checkpointer=self._run()):
                yield self
        finally:
            if self._flush is not None:
                self._flush.cancel()
            self._disconnect()
            self._give_up(self._waiting)

    def commit(self, write: Write) -> asyncio.Future[Landing]:
        """Done once `write` is durable: None, or what stands in its place. Outages only delay it.

        Raises:
            DatabaseRefusedError: Postgres rejected this write; its batch is unharmed.
            DeduplicatedError: another workflow holds the deduplication id.
            WorkflowConflictError: the child's id belongs to another workflow function.
        """
        if self._closing:
            raise self.obituary
        durable: asyncio.Future[Landing] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(write, durable))
        self._arrived.set()
        return durable

    def close(self) -> None:
        """Take no more writes; `open` ends once those that wait are durable, or `FLUSH` is over."""
        self._closing = True
        self._arrived.set()
        self._flush = asyncio.get_running_loop().call_later(FLUSH, self._stop_now)

    def drop(self, why: BaseException) -> None:
        """Send nothing more, and tell whoever waits. For tests."""
        self._closing = True
        self.obituary = why
        self._disconnect()
        self._stop_now()

    def _stop_now(self) -> None:
        for task in (self._runner, *self._aside):
            if task is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _run(self) -> None:
        self._runner = asyncio.current_task()
        while batch := await self._next_batch():
            with self._accountable(batch):
                await self._land(batch)
        await asyncio.gather(*self._aside)

    async def _next_batch(self) -> list[Waiting]:
        """Whatever waits now, up to a batch; nothing, once closed and drained."""
        limit = MAX_ROWS
        if not self._waiting and not self._closing:
            self._arrived.clear()
            await self._arrived.wait()
            if len(self._waiting) > MAX_IN_STEP:
                limit = min(limit, len(self._waiting) // 2)
        if self.crash_point is not None and self._waiting:
            batch = await self.crash_point.taken(self._waiting)
        else:
            batch = taken(self._waiting, limit)
        number_enqueues(batch)
        batch.sort(key=lambda waiting: sort_key(waiting.write))
        return batch

    async def _land(self, batch: list[Waiting]) -> None:
        losses = 0
        while True:
            try:
                await self._record(await self._connected(), batch)
            except ContendedError:
                if len(batch) > 1:
                    return await self._halve(batch)
                return self._set_aside(batch[0])
            except errors.DatabaseRefusedError as exc:
                if len(batch) > 1:
                    return await self._halve(batch)
                return batch[0].refuse(exc)
            except errors.DatabaseLostError as exc:
                self._disconnect()
                losses += not isinstance(exc.__cause__, PASSING)
                await self._database.back(exc)
                if losses > 1 and len(batch) > 1:
                    return await self._halve(batch)
                if losses > MAX_LOSSES:
                    log.warning("a write breaks its connections, trying on aside", why=str(exc))
                    return self._set_aside(batch[0])
            else:
                return None

    async def _halve(self, batch: list[Waiting]) -> None:
        """Go on in two halves, until the write to blame stands alone."""
        middle = len(batch) // 2
        await self._land(batch[:middle])
        await self._land(batch[middle:])

    def _set_aside(self, waiting: Waiting) -> None:
        task = asyncio.create_task(self._land_aside(waiting), name="dbos contended write")
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _land_aside(self, waiting: Waiting) -> None:
        """Wait for whoever holds the row, a turn at a time: others wait for other rows."""
        with self._accountable([waiting]):
            while True:
                try:
                    async with self._one_aside:
                        return await self._record_aside(waiting)
                except ContendedError:
                    continue
                except errors.DatabaseRefusedError as exc:
                    return waiting.refuse(exc)
                except errors.DatabaseLostError as exc:
                    await self._database.back(exc)

    async def _record_aside(self, waiting: Waiting) -> None:
        async with self._database.lease() as connection:
            await connection.execute(TURN)
            await self._record(connection, [waiting])
            await connection.execute(END_OF_TURN)

    async def _record(self, connection: Connection, batch: list[Waiting]) -> None:
        """Write a batch: what tells others something with the steps, then the rest, then receipts.

        Batches of nothing but starts, steps and ends, nearly all, are one statement.
        """
        effects = any(isinstance(waiting.write, EffectWrite) for waiting in batch)
        told: list[Waiting] = []
        others: list[Waiting] = []
        receipts: list[Waiting] = []
        for waiting in batch:
            if isinstance(waiting.write, ReceiptWrite):
                receipts.append(waiting)
            elif effects and isinstance(waiting.write, EffectWrite | StepWrite):
                told.append(waiting)
            else:
                others.append(waiting)
        for part in (told, others):
            if part:
                await self._record_together(connection, part)
        if receipts:
            await self._receive(connection, receipts)

    async def _receive(self, connection: Connection, batch: list[Waiting]) -> None:
        writes = [waiting.write for waiting in batch if isinstance(waiting.write, ReceiptWrite)]
        steps = columns(StepWrite, [write.step for write in writes])
        with translated():
            async with asyncio.timeout(DEADLINE):
                rows = await connection.fetch(
                    sql.RECORD_RECEIPTS,
                    *steps,
                    [write.topic for write in writes],
                    self._application,
                )
                received = {(row[0], row[2]): Recorded(*row) for row in rows}
                landed = [waiting for waiting in batch if key_of(waiting) in received]
                if landed and self.crash_point is not None:
                    await self.crash_point.answered(landed)
                for waiting in landed:
                    waiting.settle(received[key_of(waiting)])
                if len(landed) < len(batch):
                    await self._resolve(connection, [w for w in batch if w not in landed])

    async def _record_together(self, connection: Connection, batch: list[Waiting]) -> None:
        statement = statement_of([waiting.write for waiting in batch], self._application)
        with translated():
            async with asyncio.timeout(DEADLINE):
                if statement.counts_itself:
                    landed = await connection.fetchval(statement.text, *statement.values)
                else:
                    landed = count_of(await connection.execute(statement.text, *statement.values))
                if self.crash_point is not None:
                    await self.crash_point.answered(batch)
                if landed != statement.rows:
                    return await self._resolve(connection, batch)
        for waiting in batch:
            waiting.settle()
        return None

    async def _resolve(self, connection: Connection, batch: list[Waiting]) -> None:
        """Some did not land, or not now: tell each caller what stands."""
        steps = [step for waiting in batch if (step := step_of(waiting.write)) is not None]
        recorded = await connection.fetch(
            sql.FIND_STEPS, [step.workflow_id for step in steps], [step.key for step in steps]
        )
        owners = await connection.fetch(
            sql.FIND_OWNERS, [i for waiting in batch for i in ids_of(waiting.write)]
        )
        found = Found(
            {(row[0], row[2]): Recorded(*row) for row in recorded},
            {row[0]: Owner(*row) for row in owners},
        )
        for waiting in batch:
            try:
                landing = found.landing_of(waiting.write)
            except errors.DBOSError as exc:
                waiting.refuse(exc)
                continue
            if isinstance(landing, Renumber):
                await self._renumber(connection, waiting, landing.step)
            elif isinstance(landing, Deduplicated):
                await self._deduplicated(connection, waiting, landing.workflow)
            else:
                waiting.settle(landing)

    async def _renumber(self, connection: Connection, waiting: Waiting, step: StepWrite) -> None:
        """Another row has this step's number: keep the key, take the next number, go again."""
        step.step_key = step.key
        step.position = 1 + await connection.fetchval(sql.FIND_LAST_POSITION, step.workflow_id)
        self._waiting.appendleft(waiting)
        self._arrived.set()

    async def _deduplicated(
        self, connection: Connection, waiting: Waiting, write: WorkflowWrite
    ) -> None:
        holder = await connection.fetchval(
            sql.FIND_DEDUPLICATED, write.queue_name, write.deduplication_id
        )
        if holder is None:  # it has just let go
            self._waiting.appendleft(waiting)
            self._arrived.set()
        else:
            waiting.refuse(deduplicated(write, holder))

    @contextmanager
    def _accountable(self, batch: list[Waiting]) -> Iterator[None]:
        """Whatever happens within the block, none of these callers waits for ever."""
        try:
            yield
        except BaseException:
            self._give_up(batch)
            raise

    def _give_up(self, waiting: Iterable[Waiting]) -> None:
        for one in waiting:
            one.refuse(self.obituary)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    async def _connect(self) -> Connection:
        connection = await self._database.dial("checkpointer")
        with translated():
            async with asyncio.timeout(DEADLINE):
                await connection.execute(SESSION)
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class Renumber(NamedTuple):
    """Decision: the step's number is taken by another step."""

    step: StepWrite


class Deduplicated(NamedTuple):
    """Decision: the workflow was not created, though its id is free."""

    workflow: WorkflowWrite


class Found(NamedTuple):
    """What Postgres has of the things that a batch wrote."""

    steps: dict[tuple[str, str], Recorded]
    owners: dict[str, Owner]

    def landing_of(self, write: Write) -> Landing | Renumber | Deduplicated:
        """What became of `write`.

        Raises:
            WorkflowConflictError: a child's id belongs to another workflow function.
        """
        match write:
            case StepWrite():
                return self.landing_of_step(write)
            case WorkflowWrite():
                return self._landing_of_workflow(write)
            case ChildWrite(step, workflow):
                child = self.owners.get(workflow.workflow_id)
                if child is not None and child.creator == workflow.creator:
                    return None  # it landed, whatever has become of its parent since
                landing = self.landing_of_step(step)
                if (
                    isinstance(landing, Recorded)
                    and landing.child_workflow_id == workflow.workflow_id
                ):
                    return self._landing_of_workflow(workflow)
                return landing
            case CompletionWrite():
                owner = self.owners.get(write.workflow_id)
                ours = (
                    owner is not None
                    and owner.owner == write.owner
                    and owner.status == write.status
                )
                return None if ours else Fence.LOST
            case EffectWrite():
                if write.step is not None:
                    return self.landing_of_step(write.step)
                owner = self.owners.get(write.workflow_id)
                return None if is_held(owner, write.owner) else Fence.LOST
            case ReceiptWrite(step):
                landing = self.landing_of_step(step)
                return Fence.NO_MESSAGE if isinstance(landing, Renumber) else landing

    def landing_of_step(self, step: StepWrite) -> Recorded | Fence | Renumber:
        """What stands in the place of a step that did not land."""
        if not is_held(self.owners.get(step.workflow_id), step.owner):
            return Fence.LOST
        return self.steps.get((step.workflow_id, step.key)) or Renumber(step)

    def _landing_of_workflow(self, write: WorkflowWrite) -> Owner | Deduplicated | None:
        owner = self.owners.get(write.workflow_id)
        if owner is None:
            return Deduplicated(write)
        if owner.creator == write.creator:
            return None
        asked = (write.name, write.class_name or "", write.config_name or "")
        if asked != (owner.name, owner.class_name or "", owner.config_name or ""):
            raise errors.WorkflowConflictError(
                f"workflow id {write.workflow_id!r} belongs to a workflow of {owner.name!r}"
                f"{f' on {owner.config_name!r}' if owner.config_name else ''}, not of "
                f"{write.name!r}: choose another id",
                workflow_id=write.workflow_id,
            )
        return owner


def is_held(found: Owner | None, owner: str) -> bool:
    """Whether a workflow is PENDING under this owner's token."""
    return found is not None and found.status == "PENDING" and found.owner == owner


def deduplicated(write: WorkflowWrite, holder: str) -> errors.DeduplicatedError:
    """What the caller of an enqueue is told whose deduplication id another workflow has."""
    return errors.DeduplicatedError(
        f"the deduplication id {write.deduplication_id!r} of queue {write.queue_name!r} is held by "
        f"workflow {holder!r}",
        workflow_id=holder,
    )


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
        elif isinstance(write, StepWrite | EffectWrite):
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
        case EffectWrite():
            return sum(
                len(effect.message if isinstance(effect, MessageRow) else effect.value)
                for effect in write.effects
            )


def sort_key(write: Write) -> str:
    """Rows are locked in the order of their workflows."""
    return write.step.workflow_id if isinstance(write, ChildWrite) else write.workflow_id


def step_of(write: Write) -> StepWrite | None:
    """The step row in a write, if there is one."""
    if isinstance(write, ChildWrite | EffectWrite | ReceiptWrite):
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
    if EffectWrite in kinds:
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
