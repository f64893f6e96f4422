"""Starts, replays and settles workflows.

    create ─▶ inputs durable ──┬─▶ a task of its own ─▶ call ─▶ settle ─▶ outcome durable
    claims ─▶ history loaded ──┘

The executor owns `running`, the executions of this process by workflow id, and their tasks. A
workflow's caller owns only a future: if the caller is cancelled, the workflow goes on.

What may be true at each await, and what happens if the process dies there:

- *inputs on their way*: the workflow exists or not; its caller was told nothing and starts it again
  under the same id, which attaches if it exists.
- *the body runs*: the row is PENDING under our executor id; a later start takes it over.
- *outcome on its way*: as before, or it has ended; the replay finds every step and repeats the end.

A run that is stopped (shutdown, takeover, cancel) is unwound by CancelledError and records nothing
more; `Execution.stopped` says why, and its awaiters look for the recorded outcome instead.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import anyio

from dbos_async import errors
from dbos_async._config import Settings
from dbos_async._engine import callers
from dbos_async._engine.catalog import Catalog
from dbos_async._engine.claims import Claims
from dbos_async._engine.context import Branch, TaskTree
from dbos_async._engine.execution import Execution, Started, Stop, Wait
from dbos_async._engine.inner import Inner
from dbos_async._engine.intake import Call, Intake, Order
from dbos_async._engine.parking import Parker
from dbos_async._engine.pulse import Pulse
from dbos_async._engine.readers import Readers
from dbos_async._engine.registry import Address, Registry, Runnable
from dbos_async._engine.steps import Steps, check_size
from dbos_async._engine.wakers import Wakers
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import codec, notifier, sql, workflows
from dbos_async._store.checkpointer import Checkpointer
from dbos_async._store.clock import Clock
from dbos_async._store.database import Database
from dbos_async._store.landings import Landing
from dbos_async._store.notifier import Notifier
from dbos_async._store.payloads import Payloads
from dbos_async._store.pieces import Body
from dbos_async._store.portable_errors import encode_error
from dbos_async._store.records import (
    ChildWrite,
    CompletionWrite,
    Fence,
    Outcome,
    Owner,
    QueueName,
    Recorded,
    WorkflowId,
    WorkflowWrite,
)

T = TypeVar("T")

STANDSTILL: Final = 2.0
"""Seconds of a loop that did not run, a paused process or machine, after which others may have
taken over: what is ours is looked up before another step begins."""
MAX_CANCELS: Final = 3
"""Cancellations of one workflow's task, by nobody of ours, that count as its own doing."""
HAND_BACK_DEADLINE: Final = 5.0
"""Seconds that a shutdown spends at most on telling the next process that it did not crash."""


class SessionParts(Protocol):
    """What an executor needs of its session."""

    settings: Settings
    clock: Clock
    intake: Intake
    database: Database
    checkpointer: Checkpointer
    notifier: Notifier
    outcomes: Wakers[str, Outcome]
    readers: Readers
    catalog: Catalog
    payloads: Payloads
    application: str | None

    async def outcome_of(self, started: Started) -> Outcome:
        """How a workflow ended, once it has."""
        ...

    def tell(self, channel: str, word: str) -> None:
        """Tell everybody, this process too."""
        ...

    def tell_due(self, queue_name: str, due_ms: int | None) -> None:
        """A workflow of this queue comes due at this moment."""
        ...


class Executor:
    """Runs the workflows of one launched app in this process."""

    def __init__(
        self,
        settings: Settings,
        session: "SessionParts",
        steps: Steps,
        threads: anyio.CapacityLimiter,
        tree: TaskTree,
        addresses: Mapping[Address, Runnable],
        pulse: Pulse,
        *,
        registry: Registry,
    ) -> None:
        self.allow_pickle = settings.allow_pickle
        self.registry = registry
        self.session = session
        self.clock = session.clock
        self.intake = session.intake
        self.steps = steps
        self.threads = threads
        self.running: dict[str, Execution] = {}
        self.arriving: Counter[str] = Counter()
        """Workflows on their way to Postgres, or back: they may have landed and do not run yet."""
        self.is_draining = False
        self.is_deactivated = False
        """Whether it only finishes what there is, and what it recovers."""
        self._hands_back = False  # whether what is abandoned was left in order, and not in a crash
        self.is_closed = False
        self.watchers: list[Callable[[], None]] = []
        """Called whenever an execution ends or begins to wait."""
        self._settings = settings
        self._database = session.database
        self._checkpointer = session.checkpointer
        self._notifier = session.notifier
        self._outcomes = session.outcomes
        self._tree = tree
        self._pulse = pulse
        self._recheck_now = asyncio.Event()
        self._sure = asyncio.Event()
        self._sure.set()
        self._suspicions = 0
        self._cancels: Counter[str] = Counter()
        self._watcher: asyncio.Task[object] | None = None
        self.claims = Claims(settings, session.database, self, addresses)
        self.parker = Parker(settings, session.database, self)
        self.inner = Inner(self, steps)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Executor"]:
        """Run workflows for the length of the block; none of their tasks outlives it."""
        try:
            async with running(executor=self._watch_owners(), parker=self.parker.run()):
                yield self
        finally:
            await self._abandon_all()

    # Starting

    async def start(self, call: Call) -> Started:
        """Make a workflow durable and run it here, or attach to the one that has its id.

        Raises:
            NotLaunchedError: the app is shutting down.
            SerializationError: an argument cannot be stored. Nothing was started.
            WorkflowConflictError: another workflow function has the id.
        """
        if self.is_draining or self.is_deactivated:
            why = "is shutting down" if self.is_draining else "was deactivated"
            raise errors.NotLaunchedError(f"the app {why}; nothing new is started")
        if self.session.payloads.is_on:
            order = await self.intake.kept_order_of(call)
        else:
            order = self.intake.order_of(call)
        return only_started(await self.create(call, order, order.write))

    async def enqueue(self, call: Call, queue_name: str) -> Started:
        """Make a workflow durable for whichever process has room. Raises as `start` does."""
        if self.session.payloads.is_on:
            order = await self.intake.kept_order_of(call, queue_name)
        else:
            order = self.intake.order_of(call, queue_name)
        return only_started(await self.create(call, order, order.write))

    async def apart(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what makes tasks of its own, which are no branches of the workflow that asks."""
        result: T = await self._tree.start(work, None, "dbos wait")
        return result

    async def recorded_apart(
        self, execution: Execution, key: str, work: Coroutine[Any, Any, T]
    ) -> T:
        """The same for what records step `key`: a cancellation comes behind that."""
        task: asyncio.Task[T] = self._tree.start(work, None, "dbos enqueue")
        try:
            return await execution.outlasting(key, task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def aside(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """A task that is no branch of the workflow that asks; who asks cancels it."""
        return self._tree.start(work, None, name)

    def beside(
        self, execution: Execution, work: Coroutine[Any, Any, T], name: str
    ) -> "asyncio.Task[T]":
        """A task of a workflow that is no branch of it: it ends with the run at the latest."""
        task: asyncio.Task[T] = self._tree.start(work, Branch(execution), name)
        execution.tasks.add(task)
        task.add_done_callback(execution.tasks.discard)
        return task

    async def create(
        self,
        call: Call,
        order: Order,
        carrier: WorkflowWrite | ChildWrite,
        parent: Execution | None = None,
    ) -> Started | Recorded | Fence:
        """Make a workflow durable and run it, even if whoever asked is cancelled meanwhile.

        A child's carrier has its parent's step, and that may turn out to be recorded or lost.
        """
        landed = self._checkpointer.commit(carrier)
        workflow_id = order.write.workflow_id
        self.arriving[workflow_id] += 1
        try:
            if isinstance(carrier, ChildWrite) and parent is not None:
                landing = await parent.outlasting(carrier.step.key, landed)
            else:
                landing = await asyncio.shield(landed)
        except asyncio.CancelledError:
            landed.add_done_callback(partial(self._run_unattended, call, order))
            raise
        except BaseException:
            self.arrived(workflow_id)
            raise
        created = (
            landing
            if isinstance(landing, Recorded | Fence)
            else self._started(call, order, landing)
        )
        self.arrived(workflow_id)
        if landing is not None:  # another attempt's row stands, with inputs of its own
            await self.session.payloads.discard(order.write.inputs, workflow_id)
        return created

    def arrived(self, workflow_id: str) -> None:
        """A workflow that was `arriving` runs now, or will not run here."""
        self.arriving[workflow_id] -= 1
        if not self.arriving[workflow_id]:
            del self.arriving[workflow_id]

    def _run_unattended(self, call: Call, order: Order, landed: "asyncio.Future[Landing]") -> None:
        if not landed.cancelled() and landed.exception() is None and landed.result() is None:
            self._started(call, order, None)
        self.arrived(order.write.workflow_id)

    def _started(self, call: Call, order: Order, landing: Owner | None) -> Started:
        write = order.write
        if landing is not None or self.is_closed:
            return Started(
                write.workflow_id,
                self.running.get(write.workflow_id),
                is_queued=write.queue_name is not None,
            )
        if write.queue_name is not None:
            self.session.tell(notifier.QUEUED, write.queue_name)
            self.session.tell_due(write.queue_name, write.delay_until_ms)
            return Started(write.workflow_id, is_queued=True)
        assert write.owner is not None
        execution = Execution(
            write.workflow_id,
            write.owner,
            Runnable(call.definition, call.instance),
            order.args,
            order.kwargs,
            deadline_ms=write.deadline_ms,
            root_id=write.workflow_id,
            caller=callers.read(write.caller),
            executor=self,
        )
        self.run(execution)
        return Started(write.workflow_id, execution)

    # Running

    def run(self, execution: Execution, refused: Exception | None = None) -> None:
        """Run a workflow that is ours, or settle it at once if its arguments are refused."""
        earlier = self.running.get(execution.workflow_id)
        if earlier is not None:
            earlier.stop(Stop.LOST)
        self.running[execution.workflow_id] = execution
        body = self._phases(execution, refused)
        execution.task = self._tree.start(body, Branch(execution), execution.name)
        execution.task.add_done_callback(partial(self._over, execution))
        if execution.deadline_ms is not None:
            execution.timer = self._tree.start(self._expire(execution), None, "dbos deadline")

    def _over(self, execution: Execution, task: "asyncio.Task[None]") -> None:
        """A task that is cancelled before its first moment never comes to its end by itself."""
        if not execution.done.done():
            execution.stop(Stop.ABANDONED)
            self.claims.doubt()
            self._forget(execution, None)

    async def _phases(self, execution: Execution, refused: Exception | None) -> None:
        outcome: Outcome | None = None
        try:
            completion = await self.call(execution, refused)
            if execution.broken is not None:
                completion = await broken(execution, execution.broken)
            if completion is not None:
                outcome = await self._settle(execution, completion)
        finally:
            self._forget(execution, outcome)

    async def call(
        self, execution: Execution, refused: Exception | None = None
    ) -> CompletionWrite | None:
        """Run the body and decide how the workflow ends; None if it does not end here."""
        try:
            if refused is not None:
                raise refused
            if execution.unread is not None:
                await self._fetch_arguments(execution, execution.unread)
            value = await self._body(execution)
            execution.check_everything_awaited()
            if self.session.payloads.is_large(value):
                output = await self._packed_result(execution, value)
            else:
                output = self._encoded_result(execution, value)
                if self.session.payloads.is_on:
                    output = await self._kept_result(execution, output)
        except KeyboardInterrupt:  # a person's
            raise
        except BaseException as exc:  # whatever the body raises is its outcome, sys.exit() too
            if execution.stopped is None and is_cancelled(execution, exc):
                self._abandon(execution)
            return None if execution.stopped is not None else failed(execution, exc)
        if execution.stopped is not None:
            return None
        return CompletionWrite(execution.workflow_id, execution.owner, "SUCCESS", output, None)

    async def _body(self, execution: Execution) -> Any:
        """What the body returns, once the sagas of all its tasks are over."""
        definition, instance = execution.runnable
        assert definition.function is not None
        self_ = () if instance is None else (instance,)
        try:
            return await definition.function(*self_, *execution.args, **execution.kwargs)
        finally:
            if execution.sagas is not None:
                await execution.sagas.over()

    def _abandon(self, execution: Execution) -> None:
        """Somebody cancelled its task, such as who ends the loop: if we live on, it goes on.

        One that is cancelled again and again does it to itself, and ends with that error.
        """
        self._cancels[execution.workflow_id] += 1
        if self._cancels[execution.workflow_id] < MAX_CANCELS:
            execution.stop(Stop.ABANDONED)
            self.claims.doubt()

    def _encoded_result(self, execution: Execution, value: object) -> str:
        try:
            definition = execution.runnable.definition
            text = definition.encode(value)
            codec.read_back(value, text, definition.encode, definition.decode, at="the result")
        except errors.SerializationError as exc:
            raise not_stored(execution, exc) from exc
        if not self.session.payloads.is_on:
            check_size(
                text, self._settings.max_payload_bytes, f"the result of workflow {execution.name!r}"
            )
        return text

    async def _packed_result(self, execution: Execution, value: object) -> str:
        """As `_encoded_result`, of a large value, for the row."""
        definition = execution.runnable.definition
        try:
            packed = await self.session.payloads.pack(
                value, definition.encode, definition.decode, keeps=False
            )
        except errors.SerializationError as exc:
            raise not_stored(execution, exc) from exc
        return await self._kept_result(execution, packed.text)

    async def _kept_result(self, execution: Execution, text: str | Body) -> str:
        """What stands in the row for a result; the store has a while to take it.

        Raises:
            PayloadStoreError: it did not.
        """
        payloads = self.session.payloads
        if isinstance(text, str) and not payloads.is_long(text):
            return text
        return await payloads.patiently(
            lambda: payloads.kept(execution.workflow_id, "result", text), payloads.patience
        )

    async def _fetch_arguments(self, execution: Execution, reference: str) -> None:
        """Fetch the arguments of a workflow that was claimed; an outage of the store is waited out.

        Raises:
            PayloadMissingError, SerializationError, TypeError: they cannot be had, or do not fit.
        """
        payloads, arguments = self.session.payloads, execution.runnable.definition.arguments
        assert arguments is not None
        execution.args, execution.kwargs = await payloads.patiently(
            lambda: payloads.arguments(reference, execution.workflow_id, arguments)
        )
        execution.unread = None
        arguments.bind(execution.args, execution.kwargs)

    async def _settle(self, execution: Execution, completion: CompletionWrite) -> Outcome | None:
        """Make the outcome durable; None if it was not ours to write."""
        execution.is_settling = True
        if execution.slot is not None:
            execution.slot.settle()
        for task in list(execution.tasks):
            if task is not execution.task:
                task.cancel()
        if completion.status == "ERROR" and self._is_late(execution):  # it failed because of that
            await self.cancel([execution.workflow_id], children=True)
            return None
        try:
            landing = await self._checkpointer.commit(completion)
        except errors.DatabaseRefusedError as exc:
            completion = failed(execution, exc)
            landing = await self._checkpointer.commit(completion)
        except errors.DatabaseLostError:  # shut down in an outage: whether it landed shows later
            execution.stopped = Stop.ABANDONED
            return None
        if landing is Fence.LOST:
            execution.stopped = Stop.LOST
            return None
        self._notifier.post(notifier.ENDED, execution.workflow_id)
        return Outcome(
            execution.workflow_id,
            completion.status,
            execution.name,
            completion.output,
            completion.error,
            codec.PORTABLE_JSON,
            execution.deadline_ms,
            self.clock.now_ms(),
        )

    def _forget(self, execution: Execution, outcome: Outcome | None) -> None:
        if self.running.get(execution.workflow_id) is execution:
            del self.running[execution.workflow_id]
        execution.forget()
        self.parker.forget(execution)
        execution.task = None  # a task is the weak key of what leads here, which must not hold it
        execution.slot = None  # nor may they hold each other: a cycle costs as much as the run
        if execution.timer is not None:
            execution.timer.cancel()
        if not execution.done.done():
            execution.done.set_result(outcome)
        self._outcomes.news([execution.workflow_id])
        self.session.readers.ended([execution.workflow_id])
        self.change()

    def waits(self, execution: Execution, wait: Wait) -> None:
        """An execution has begun to wait."""
        self.parker.waits(execution, wait)
        self.change()

    def change(self) -> None:
        """Tell whoever watches that an execution has ended or begun to wait."""
        for watcher in self.watchers:
            watcher()

    # Ending

    async def result_of(self, started: Started) -> Outcome:
        """How a workflow ended, once it has; it may run here or elsewhere.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        execution = started.execution or self.running.get(started.workflow_id)
        if execution is not None:
            outcome = await asyncio.shield(execution.done)
            if outcome is not None:
                return outcome
            if execution.stopped is Stop.ABANDONED and self.is_draining:
                raise errors.NotLaunchedError(
                    f"the app was shut down before workflow {started.workflow_id!r} ended; it goes "
                    "on at the next launch"
                )
        return await self._outcomes.wait(started.workflow_id)

    async def cancel(self, workflow_ids: Iterable[str], *, children: bool) -> list[str]:
        """Cancel these workflows wherever they are; the ids of those that had not ended."""
        ids = list(workflow_ids)
        cancelled = await self._database.patiently(
            lambda: workflows.cancel(
                self._database, ids, children=children, skew_ms=self.clock.skew_ms
            )
        )
        self.cancelled(cancelled)
        return cancelled

    def cancelled(self, workflow_ids: Iterable[str]) -> None:
        """These were cancelled: stop those that run here, and tell everybody."""
        for workflow_id in workflow_ids:
            execution = self.running.get(workflow_id)
            if execution is not None:
                execution.stop(Stop.CANCELLED)
            self.announce(workflow_id)

    def announce(self, workflow_id: str) -> None:
        """Tell everybody, here and elsewhere, that a workflow has ended."""
        self._notifier.post(notifier.ENDED, workflow_id)
        self._outcomes.news([workflow_id])
        self.session.readers.ended([workflow_id])

    def _is_late(self, execution: Execution) -> bool:
        return execution.deadline_ms is not None and self.clock.now_ms() >= execution.deadline_ms

    async def _expire(self, execution: Execution) -> None:
        assert execution.deadline_ms is not None
        await self.clock.sleep_until(execution.deadline_ms)
        await self.cancel([execution.workflow_id], children=True)

    # Watching

    def news(self, workflow_ids: list[str]) -> None:
        """Others say that these ended: if they run here, they were cancelled or taken over."""
        if not self.running.keys().isdisjoint(workflow_ids):
            self._recheck_now.set()

    def recheck(self) -> None:
        """Look whether everything that runs here is still ours."""
        self._recheck_now.set()

    @property
    def is_unsure(self) -> bool:
        """Whether others may have taken this process for dead: `sure` must be awaited first."""
        return self._pulse.age > STANDSTILL or not self._sure.is_set()

    async def sure(self) -> None:
        """Return once it is known again what is ours; what is not has been stopped by then."""
        if self._pulse.age > STANDSTILL:
            self.suspect()
        await self._sure.wait()

    def suspect(self) -> None:
        """This process stood still, or lost its lock: no new step begins before a look."""
        self._suspicions += 1
        self._sure.clear()
        self._recheck_now.set()

    @property
    def is_ending(self) -> bool:
        """Whether the whole loop is being torn down, this executor with it, and nobody said so."""
        return self._watcher is not None and (
            self._watcher.done() or self._watcher.cancelling() > 0
        )

    async def _watch_owners(self) -> None:
        self._watcher = asyncio.current_task()
        while True:
            await self._recheck_now.wait()
            self._recheck_now.clear()
            suspicions = self._suspicions
            await self._database.persistently(self._look)
            if suspicions == self._suspicions:
                self._sure.set()

    async def _look(self) -> None:
        """Stop what is no longer ours, and run what turned out to be."""
        await self.claims.again()
        owners = {i: execution.owner for i, execution in self.running.items()}
        if not owners:
            return
        rows = await self._database.fetch(
            sql.FIND_LOST, list(owners), list(owners.values()), into=WorkflowId
        )
        for row in rows:
            execution = self.running.get(row.workflow_id)
            if execution is not None and execution.owner == owners[row.workflow_id]:
                execution.stop(Stop.LOST)

    # Shutting down

    async def drain(self, timeout: float) -> None:
        """Start nothing new; give what works `timeout` seconds; for what waits, do not wait."""
        self.is_draining = self._hands_back = True
        changed = asyncio.Event()
        self.watchers.append(changed.set)
        try:
            async with asyncio.timeout(timeout):
                while any(not execution.is_resting for execution in self.running.values()):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            log.warning("shutdown leaves workflows PENDING", workflows=len(self.running))

    def usurped(self) -> None:
        """Another process has this executor's id and what it ran: start nothing more."""
        self.is_draining = True
        self.suspect()

    def drop(self, why: BaseException) -> None:
        """Abandon everything at once, also what is being settled; awaiters get `why`. For tests."""
        self.is_draining = True
        self._hands_back = False
        for execution in self.running.values():
            execution.is_settling = False
            execution.stop(Stop.ABANDONED)
            execution.fail(why)

    async def _abandon_all(self) -> None:
        self.is_closed = True
        tasks = [e.task for e in self.running.values() if e.task is not None]
        for execution in list(self.running.values()):
            execution.stop(Stop.ABANDONED)
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=5)
            if stubborn:
                log.warning(
                    "workflows ignore their cancellation", tasks=[t.get_name() for t in stubborn]
                )
        if self._hands_back:
            await self._hand_back()

    async def _hand_back(self) -> None:
        """Put what came off a queue back on it; let the recovery of the rest count as no crash."""
        try:
            async with asyncio.timeout(HAND_BACK_DEADLINE):
                await self._checkpointer.rest()  # what was done before is still ours to record
                rows = await self._database.fetch(
                    sql.HAND_BACK, self._settings.executor_id, self.intake.boot, into=QueueName
                )
                queues = {row.queue_name for row in rows if row.queue_name is not None}
                if queues:
                    payloads = list(notifier.payloads_of(queues))
                    await self._database.execute(sql.NOTIFY, notifier.QUEUED, payloads)
                if any(row.queue_name is None for row in rows):
                    payloads = list(notifier.payloads_of([self._settings.executor_id or ""]))
                    await self._database.execute(sql.NOTIFY, notifier.DEAD, payloads)
        except (errors.DatabaseError, TimeoutError) as exc:
            log.warning("this shutdown counts as a crash", error=str(exc))


async def broken(execution: Execution, why: Exception) -> CompletionWrite:
    """The end of a workflow that was broken off, once its task's own cancellation has passed."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    return failed(execution, why)


def not_stored(execution: Execution, why: Exception) -> errors.SerializationError:
    """What a workflow fails with whose result cannot be stored."""
    return errors.SerializationError(
        f"workflow {execution.name!r} ({execution.workflow_id}) returned what cannot be stored: "
        f"{why}"
    )


def only_started(created: Started | Recorded | Fence) -> Started:
    """A workflow that has no parent is started, or its start raises."""
    assert isinstance(created, Started)
    return created


def is_cancelled(execution: Execution, exc: BaseException) -> bool:
    """Whether the task of a workflow was cancelled from outside, and not by its own code."""
    if not isinstance(exc, asyncio.CancelledError) or execution.task is None:
        return False
    return execution.task.cancelling() > 0


def failed(execution: Execution, error: BaseException) -> CompletionWrite:
    """The end of a workflow that raised."""
    text = encode_error(error)
    return CompletionWrite(execution.workflow_id, execution.owner, "ERROR", None, text)
