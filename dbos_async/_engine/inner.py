"""What a workflow does besides calling steps: start children, await results, sleep.

Each is a step of the workflow that does it, numbered at the call. A child and its parent's step
land together or not at all; a result is recorded by the one who asked, so that its replay needs no
child; a sleep records when it ends before it begins.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from dbos_async import errors
from dbos_async._engine.bulk import Bulk
from dbos_async._engine.context import Branch, current_branch
from dbos_async._engine.execution import Execution, Started, Wait, cancel_later
from dbos_async._engine.intake import Call, Order
from dbos_async._engine.outcomes import text_of
from dbos_async._engine.replay import AWAKE, SLEEP
from dbos_async._engine.steps import StepDefinition, Steps, check_same, large_digest, lost
from dbos_async._store import codec, notifier, sql, stored
from dbos_async._store.arguments import digest as digest_of
from dbos_async._store.enqueues import Holders, Rows, enqueue_children
from dbos_async._store.payloads import is_reference
from dbos_async._store.pieces import Body
from dbos_async._store.portable_errors import encode_error
from dbos_async._store.records import ChildWrite, Fence, Recorded, StepWrite

if TYPE_CHECKING:
    from dbos_async._engine.executor import Executor

ENQUEUE_MANY: Final = "DBOS.enqueueMany"
GET_RESULT: Final = "DBOS.getResult"

IDS: Final = codec.decoder(list[str])
MOMENT: Final = codec.decoder(float)


class Inner:
    """The recorded verbs of the workflows of one executor."""

    def __init__(self, executor: "Executor", steps: Steps) -> None:
        self._executor = executor
        self._steps = steps
        self._payloads = executor.session.payloads

    def start_child(
        self, branch: Branch, call: Call, queue_name: str | None = None
    ) -> Coroutine[Any, Any, Started]:
        """Start or enqueue a child: a step of its parent, numbered now. Raises as `start` does."""
        execution: Execution = branch.execution
        key = branch.next_key()
        run = self._start_child(execution, key, execution.position_of(key), call, queue_name)
        execution.called(key, call.definition.name, run)
        return run

    def call_child(self, branch: Branch, call: Call) -> Coroutine[Any, Any, Any]:
        """Start a child and await its result: two steps of its parent, both numbered now."""
        execution: Execution = branch.execution
        key = branch.next_key()
        position = execution.position_of(key)
        result_key = branch.next_key()
        result_position = execution.position_of(result_key)
        run = self._call_child(execution, key, position, result_key, result_position, call)
        execution.called(key, call.definition.name, run)
        return run

    async def _call_child(
        self,
        execution: Execution,
        key: str,
        position: int,
        result_key: str,
        result_position: int,
        call: Call,
    ) -> Any:
        started = await self._start_child(execution, key, position, call)
        step = self._result_step(execution, result_key, started, call.definition.decode)
        return await self._steps.run(execution, result_key, result_position, step, (), {})

    async def _start_child(
        self,
        execution: Execution,
        key: str,
        position: int,
        call: Call,
        queue_name: str | None = None,
    ) -> Started:
        execution.begin(key)
        name = call.definition.name
        digest = await self._digest(execution, call.args, call.kwargs)
        branch = current_branch() or Branch(execution)
        recorded = execution.history.get(key)
        if recorded is not None:
            return self._replayed_child(
                execution, branch, name, digest, recorded, is_queued=queue_name is not None
            )
        await execution.live(key)
        step = self._new_step(execution, key, position, name, digest)
        if queue_name is not None:
            recorded = await self._with_its_step(execution, step, call, queue_name)
            if recorded is not None:
                return self._replayed_child(
                    execution, branch, name, digest, recorded, is_queued=True
                )
        try:
            order = await self._order(execution, key, call, queue_name)
        except errors.PayloadStoreError as exc:
            recorded = await self._refused(execution, step, exc)
            return self._replayed_child(
                execution, branch, name, digest, recorded, is_queued=queue_name is not None
            )
        step.child_workflow_id = order.write.workflow_id
        try:
            carrier = ChildWrite(step, order.write)
            landing = await self._executor.create(call, order, carrier, execution)
        except errors.WorkflowConflictError as exc:
            landing = await self._named_in_vain(execution, step, exc)
        if isinstance(landing, Recorded):
            return self._replayed_child(
                execution, branch, name, digest, landing, is_queued=queue_name is not None
            )
        if isinstance(landing, Fence):
            lost(execution)
        branch.recorded(key, step.completed_at_ms)
        return landing

    async def _order(
        self, execution: Execution, key: str, call: Call, queue_name: str | None
    ) -> Order:
        """What the call comes to. Raises PayloadStoreError after a while."""
        intake = self._executor.intake
        if not self._payloads.is_on:
            return intake.order_of(call, queue_name, parent=execution, key=key)
        return await self._payloads.patiently(
            lambda: intake.kept_order_of(call, queue_name, parent=execution, key=key),
            self._payloads.patience,
        )

    async def _digest(
        self, execution: Execution, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> int | None:
        if self._payloads.is_large((args, kwargs)):
            return await large_digest(execution, self._payloads, args, kwargs)
        return digest_of(args, kwargs)

    async def _named_in_vain(
        self, execution: Execution, step: StepWrite, why: errors.WorkflowConflictError
    ) -> Recorded:
        """A step has landed that names another function's workflow: let it be that error."""
        step.child_workflow_id, step.error = None, encode_error(why)
        database = self._executor.session.database
        amended = await self._executor.recorded_apart(
            execution,
            step.key,
            database.patiently(
                lambda: database.execute(
                    sql.REFUSE_CHILD, step.workflow_id, step.position, step.error, step.owner
                )
            ),
        )
        if not amended:
            lost(execution)
        return recorded_of(step)

    async def _with_its_step(
        self, execution: Execution, step: StepWrite, call: Call, queue_name: str
    ) -> Recorded | None:
        """Enqueue a child that may turn out to be another, or refuse it; None: it is a plain one.

        The plain one's step can be written together with it, in whatever batch; here the step
        depends on what becomes of the child.
        """
        if "deduplication_id" in call.options:
            child_id = f"{execution.workflow_id}-{step.key}"
            return await self._enqueue_together(
                execution, step, [call], queue_name, lambda _: child_id
            )
        flaw = await self._executor.session.catalog.flaw_in(queue_name, [call.options])
        return None if flaw is None else await self._refused(execution, step, flaw)

    def enqueue_many(
        self, branch: Branch, calls: Sequence[Call], queue_name: str
    ) -> Coroutine[Any, Any, list[Started]]:
        """Enqueue children together: one step of their parent, numbered now."""
        execution: Execution = branch.execution
        key = branch.next_key()
        run = self._enqueue_many(execution, key, execution.position_of(key), calls, queue_name)
        execution.called(key, ENQUEUE_MANY, run)
        return run

    async def _enqueue_many(
        self,
        execution: Execution,
        key: str,
        position: int,
        calls: Sequence[Call],
        queue_name: str,
    ) -> list[Started]:
        execution.begin(key)
        arguments = [(call.definition.name, call.args, call.kwargs) for call in calls]
        digest = await self._digest(execution, arguments, {})
        branch = current_branch() or Branch(execution)
        recorded = execution.history.get(key)
        if recorded is None:
            await execution.live(key)
            step = self._new_step(execution, key, position, ENQUEUE_MANY, digest)
            prefix = f"{execution.workflow_id}-{key}"
            recorded = await self._enqueue_together(
                execution, step, calls, queue_name, lambda place: f"{prefix}-{place + 1}"
            )
        self._accept(execution, branch, ENQUEUE_MANY, digest, recorded)
        ids: list[str] = stored.read(recorded.output, recorded.serialization, IDS)
        return [Started(workflow_id, is_queued=True) for workflow_id in ids]

    async def _enqueue_together(
        self,
        execution: Execution,
        step: StepWrite,
        calls: Sequence[Call],
        queue_name: str,
        id_of: Callable[[int], str],
    ) -> Recorded:
        """Enqueue children and record the step that does it in one transaction, or the refusal."""
        intake = self._executor.intake
        try:
            large = await self._payloads.patiently(
                lambda: intake.keep_large(calls, id_of), self._payloads.patience
            )
        except errors.PayloadStoreError as exc:
            return await self._refused(execution, step, exc)
        bulk = Bulk(intake, calls, queue_name, parent=execution, id_of=id_of, large=large)

        def step_of(holders: Holders) -> StepWrite:
            ids = [holders.get(workflow_id, workflow_id) for workflow_id in bulk.ids]
            if step.name == ENQUEUE_MANY:
                step.output = codec.encode(ids)
            else:
                [step.child_workflow_id] = ids
            return step

        session = self._executor.session
        flaw = await session.catalog.flaw_in(queue_name, [call.options for call in calls])
        if flaw is not None:
            return await self._refused(execution, step, flaw)
        rows = Rows(bulk, bulk.attaching)
        work = enqueue_children(session.database, rows, len(calls), session.application, step_of)
        try:
            landing = await self._executor.recorded_apart(execution, step.key, work)
        except (errors.DeduplicatedError, errors.WorkflowConflictError) as exc:
            return await self._refused(execution, step, exc)
        if landing is Fence.LOST:
            lost(execution)
        if isinstance(landing, Recorded):
            return landing
        session.tell(notifier.QUEUED, queue_name)
        session.tell_due(queue_name, bulk.due_ms)
        return recorded_of(step)

    async def _refused(self, execution: Execution, step: StepWrite, why: Exception) -> Recorded:
        """Record that an enqueue was refused: on replay the reason may be gone."""
        step.output = step.child_workflow_id = None
        step.error = encode_error(why)
        checkpointer = self._executor.session.checkpointer
        landing = await execution.landed(step.key, step, checkpointer.commit(step))
        if landing is None:
            return recorded_of(step)
        if not isinstance(landing, Recorded):
            lost(execution)
        return landing

    def _new_step(
        self, execution: Execution, key: str, position: int, name: str, digest: int | None
    ) -> StepWrite:
        now_ms = self._executor.clock.now_ms()
        return StepWrite(
            execution.workflow_id,
            position,
            name,
            None,
            None,
            None,
            now_ms,
            now_ms,
            execution.written_key(key, position),
            digest,
            execution.owner,
        )

    def _replayed_child(
        self,
        execution: Execution,
        branch: Branch,
        name: str,
        digest: int | None,
        recorded: Recorded,
        *,
        is_queued: bool,
    ) -> Started:
        self._accept(execution, branch, name, digest, recorded)
        child_id = recorded.child_workflow_id or ""
        return Started(child_id, is_queued=is_queued)

    def _accept(
        self,
        execution: Execution,
        branch: Branch,
        name: str,
        digest: int | None,
        recorded: Recorded,
    ) -> None:
        """Take a recorded start over, or raise what it came to."""
        check_same(execution, recorded, name, digest)
        branch.recorded(recorded.key, recorded.completed_at_ms or 0)
        if recorded.error is not None:
            raise stored.read_error(
                recorded.error, recorded.serialization, allow_pickle=self._executor.allow_pickle
            )

    def get_result(
        self,
        branch: Branch,
        started: Started,
        decode: Callable[[str], Any],
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """A workflow's result, as a step of the one that asks, numbered now."""
        step = self._result_step(branch.execution, branch.peek_key(), started, decode, timeout)
        return self._steps.call(branch, step, (), {})

    def _result_step(
        self,
        execution: Execution,
        key: str,
        started: Started,
        decode: Callable[[str], Any],
        timeout: float | None = None,
    ) -> StepDefinition:
        async def get_result() -> str | Body:
            async with execution.waiting(Wait(key=key, is_queued=started.is_queued)):
                async with asyncio.timeout(timeout):
                    outcome = await self._executor.result_of(started)
            text = text_of(outcome, allow_pickle=self._executor.allow_pickle)
            if not is_reference(text):
                return text
            return await self._payloads.patiently(
                lambda: self._payloads.body(text, outcome.workflow_id)
            )

        return StepDefinition(GET_RESULT, get_result, encode=str, decode=decode, is_internal=True)

    def sleep(self, branch: Branch, seconds: float) -> Coroutine[Any, Any, None]:
        """Sleep durably, as a step numbered now: its record is the moment to wake at."""
        execution: Execution = branch.execution
        key = branch.next_key()
        run = self._sleep(execution, key, execution.position_of(key), seconds)
        execution.called(key, SLEEP, run)
        return run

    async def _sleep(self, execution: Execution, key: str, position: int, seconds: float) -> None:
        async def wake_at() -> float:
            return self._executor.clock.now_ms() / 1000 + seconds

        step = StepDefinition(SLEEP, wake_at, decode=MOMENT, is_internal=True)
        wakes_at: float = await self._steps.run(execution, key, position, step, (), {})
        wakes_at_ms = wakes_at * 1000
        if execution.replay is not None and execution.replay.cut_short(key, wakes_at_ms):
            await execution.replay.quiet(AWAKE)
        try:
            async with execution.waiting(Wait(key=key, until_ms=wakes_at_ms)):
                await self._executor.clock.sleep_until(wakes_at_ms)
        except asyncio.CancelledError as exc:
            if self._executor.clock.now_ms() < wakes_at_ms or execution.ends_in(key):
                raise
            cancel_later(exc)


def recorded_of(step: StepWrite) -> Recorded:
    """A step that landed, as a replay will find it."""
    return Recorded(
        step.workflow_id,
        step.position,
        step.key,
        step.name,
        step.output,
        step.error,
        step.child_workflow_id,
        step.started_at_ms,
        step.completed_at_ms,
        step.digest,
        codec.PORTABLE_JSON,
    )
