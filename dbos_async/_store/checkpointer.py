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
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar, Final, Protocol

from dbos_async import errors
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import sql
from dbos_async._store.batches import (
    MAX_ROWS,
    Waiting,
    columns,
    ids_of,
    key_of,
    number_enqueues,
    sort_key,
    statement_of,
    step_of,
    taken,
)
from dbos_async._store.connections import adopt
from dbos_async._store.database import (
    DEADLINE,
    PASSING,
    Connection,
    ContendedError,
    Database,
    count_of,
    translated,
)
from dbos_async._store.landings import Deduplicated, Found, Landing, Renumber, deduplicated
from dbos_async._store.records import (
    EffectWrite,
    Owner,
    ReceiptWrite,
    Recorded,
    SagaWrite,
    StepWrite,
    WorkflowWrite,
    Write,
)

MAX_IN_STEP: Final = 64
"""When more than this arrives at once after a pause, half goes first. Else all callers march in
step: Postgres rests while they compute, and they while it writes. Measured: 1.2 to 1.5 x."""
MAX_LOSSES: Final = 10
"""Connections that one lone write may break before the others go on without it."""

FLUSH: Final = 5.0
"""Seconds that a shutdown waits for Postgres to take the last writes; they have no callers left."""

SETTINGS: Final = "set lock_timeout = '50ms'; set plan_cache_mode = force_generic_plan;"

# One turn of a write that waits for a row. A connection that a turn fails on is not used again.
TURN: Final = "set lock_timeout = '500ms';"
END_OF_TURN: Final = "set lock_timeout = 0;"


class CrashPoint(Protocol):
    """Where a test wants the process to die. Its calls do not return once it has."""

    async def taken(self, waiting: deque[Waiting]) -> list[Waiting]:
        """The next batch: no more of those that wait than may still go out."""
        ...

    async def committing(self, waiting: Waiting) -> None:
        """A transaction of the user's is about to commit, and its step's row with it."""
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
        self._travelling: list[Waiting] = []
        self._answered = asyncio.Event()
        self._closing = False
        self.obituary: BaseException = errors.DatabaseLostError(
            "the app has shut down; whether this was recorded shows at the next launch"
        )
        """What callers are told whose writes nobody will carry any more."""
        self._connection: Connection | None = None
        self._runner: asyncio.Task[object] | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._aside: dict[asyncio.Task[None], Waiting] = {}
        self._one_aside = asyncio.Semaphore(1)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Checkpointer"]:
        """Write batches for the length of the block; leave none behind."""
        await self._connected()
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

    def again(self, write: Write, durable: asyncio.Future[Landing]) -> asyncio.Future[Landing]:
        """Another future for a write whose caller was cancelled while it waited for `durable`.

        If the answer came in that moment, nobody has it: the write goes out again, and finds itself
        recorded. Raises as `commit` does.
        """
        for waiting in self._unanswered():
            if waiting.durable is durable:
                waiting.durable = asyncio.get_running_loop().create_future()
                return waiting.durable
        return self.commit(write)

    async def rest(self) -> None:
        """Return once whatever was given to `commit` before has been answered.

        Writes go on without their callers, so these may have been cancelled long ago.

        Raises:
            DatabaseLostError: there is an outage; when they will be answered is unknown.
        """
        earlier = set(self._unanswered())
        while not earlier.isdisjoint(self._unanswered()):
            if self._database.is_away:
                raise errors.DatabaseLostError("Postgres is away, and writes are left")
            self._answered.clear()
            await self._answered.wait()

    def _unanswered(self) -> list[Waiting]:
        return [*self._waiting, *self._travelling, *self._aside.values()]

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
            self._travelling = batch
            with self._accountable(batch):
                await self._land(batch)
            self._travelling = []
            self._answered.set()
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
                self._answered.set()
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
        self._aside[task] = waiting
        task.add_done_callback(self._back_from_aside)

    def _back_from_aside(self, task: asyncio.Task[None]) -> None:
        del self._aside[task]
        self._answered.set()

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
            await adopt(connection, TURN)
            await self._record(connection, [waiting])
            await adopt(connection, END_OF_TURN)

    async def _record(self, connection: Connection, batch: list[Waiting]) -> None:
        """Write a batch: what tells others something with the steps, then the rest, then receipts.

        What sagas open and drop goes by itself. Batches of nothing but starts, steps and ends,
        nearly all, are one statement.
        """
        kinds = {type(waiting.write) for waiting in batch}
        effects = EffectWrite in kinds
        if not effects and kinds.isdisjoint({ReceiptWrite, SagaWrite}):
            return await self._record_together(connection, batch)
        sagas: list[Waiting] = []
        told: list[Waiting] = []
        others: list[Waiting] = []
        receipts: list[Waiting] = []
        for waiting in batch:
            if isinstance(waiting.write, ReceiptWrite):
                receipts.append(waiting)
            elif isinstance(waiting.write, SagaWrite):
                sagas.append(waiting)
            elif effects and isinstance(waiting.write, EffectWrite | StepWrite):
                told.append(waiting)
            else:
                others.append(waiting)
        for part in (sagas, told, others):
            if part:
                await self._record_together(connection, part)
        if receipts:
            await self._receive(connection, receipts)
        return None

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
                found = {(row[0], row[2]) for row in rows}
                for write in writes:
                    write.is_found = (write.workflow_id, write.step.key) in found
                received = {
                    (row[0], row[2]): Recorded(*row[:-1]) for row in rows if row["has_landed"]
                }
                landed = [waiting for waiting in batch if key_of(waiting) in received]
                if landed and self.crash_point is not None:
                    await self.crash_point.answered(landed)
                for waiting in landed:
                    waiting.settle(received[key_of(waiting)])
                if len(landed) < len(batch):
                    others = [each for each in batch if key_of(each) not in received]
                    await self._resolve(connection, others)

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
            self._connection = await self._database.dial("checkpointer", SETTINGS)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
