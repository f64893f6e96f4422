"""Sagas: a block whose steps are undone if it fails, or if its workflow is cancelled in it.

    async with dbos.saga() as saga:        nothing is recorded
        payment = await charge(order)      step n
        saga.compensate(refund, payment)   step n+1, DBOS.saga.compensate; n+2 is kept for `refund`
        …
    left well                              DBOS.saga.end
    left by an error                       DBOS.saga.fail, step n+2: refund, …, DBOS.saga.end

A compensation is *open* from its `compensate` to the end of its saga: then there is a row of it in
`dbos_async_compensations`, which lands together with the one step and goes with the other. Nothing
of the workflow begins before what it has registered is durable. What an inner saga registered is
its own: once it has ended well, it is not undone with the outer one.

How a saga fails, and what is true if the process dies there:

- *DBOS.saga.fail is on its way*: nothing was undone. The replay fails in the same way; or, where
  what the block ran into is not recorded (an error outside of steps), it goes on.
- *it has landed*: decided. A replay that leaves the block in another way has diverged. The
  compensations run in the reverse order of their registration, with their own retries, each
  recorded under the key that was kept for it: what has landed does not run again. One that fails
  keeps none from running.
- *DBOS.saga.end has landed*: over, and told: the block's error, or `CompensationError` from it.

Both ways out are walked by a task beside the workflow's own, so that neither a limit nor a
TaskGroup stops them halfway: the CancelledError is raised at the end of the block instead.

A run that is *abandoned* (a shutdown, parking, a takeover) undoes nothing: the next one replays the
block. A workflow that is *cancelled* can record nothing more: what is open then is undone by a
workflow of its own (see `compensations`). A replay that comes to where everything is new opens
again what was open: of a fork, or after a rewind, the rows are not there.
"""

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from types import TracebackType
from typing import Any, Final, ParamSpec, Self

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.compensations import Run, Undo, failure_of, run_all, undo_of
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.deeds import Deed
from dbos_async._engine.execution import Execution
from dbos_async._engine.executor import Executor
from dbos_async._engine.functions import Step
from dbos_async._engine.replay import REGISTER
from dbos_async._engine.steps import check_same, check_size, lost
from dbos_async._store import codec, stored
from dbos_async._store.landings import Landing
from dbos_async._store.records import CompensationRow, Fence, Recorded, SagaWrite

P = ParamSpec("P")

FAIL: Final = "DBOS.saga.fail"
END: Final = "DBOS.saga.end"

SAGA: Final = codec.decoder(str)


class Registration:
    """A compensation on its way: it may be awaited, and need not be."""

    def __init__(self, task: "asyncio.Task[None] | None" = None) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, None]:
        """Return once it is durable."""
        if self._task is not None:
            yield from asyncio.shield(self._task).__await__()


class Saga:
    """A block whose steps are undone if it fails: `async with dbos.saga() as saga`."""

    def __init__(self) -> None:
        self._is_open = False

    async def __aenter__(self) -> Self:
        if self._is_open:
            raise RuntimeError("a saga is one block: call dbos.saga() for each")
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        if not isinstance(error, KeyboardInterrupt | GeneratorExit):
            await self._leave(error)

    def compensate(self, step: Step[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Registration:
        """Let a step with these arguments run if the block fails, or the workflow is cancelled.

        It need not be awaited: nothing of the workflow begins before it is durable. If the workflow
        is cancelled after a step and before this, that step is not undone; where that matters,
        register first, with what is known before, and let the compensation do no harm where there
        is nothing to undo.

        Raises:
            TypeError: it is no step, or the arguments do not fit it.
            SerializationError: an argument cannot be stored, or they are too large.
            ConfigurationError: another process could not find the step, or a step calls this, or
                the block is over; the message says what to do.
        """
        undo = undo_of(step, args, kwargs)
        if not self._is_open:
            raise errors.ConfigurationError(
                f"compensate({undo.name}) is called outside of the saga's block, where nothing "
                "runs it any more: call it within `async with dbos.saga()`"
            )
        return self._registered(undo)

    def _registered(self, undo: Undo) -> Registration:
        raise NotImplementedError

    async def _leave(self, error: BaseException | None) -> None:
        raise NotImplementedError


def saga() -> Saga:
    """A saga of the workflow that calls; outside of workflows and in steps, one in memory."""
    branch = calling_branch("saga")
    if branch is None or branch.step is not None:
        return PlainSaga(branch)
    return RecordedSaga(branch)


class PlainSaga(Saga):
    """A saga of which nothing is recorded."""

    def __init__(self, branch: Branch | None) -> None:
        super().__init__()
        self._branch = branch
        self._undos: list[Undo] = []

    def _registered(self, undo: Undo) -> Registration:
        self._undos.append(undo)
        return Registration()

    async def _leave(self, error: BaseException | None) -> None:
        if error is None or not self._undos or self._is_abandoned:
            return
        undos = self._undos[::-1]
        outcomes = await run_all([undo.run_plainly for undo in undos])
        names = [undo.name for undo in undos]
        failure = failure_of("the block", names, outcomes, cause=error)
        if failure is not None:
            raise failure from error

    @property
    def _is_abandoned(self) -> bool:
        """Whether it is in a step whose run is over: the step runs again, or never."""
        return self._branch is not None and self._branch.execution.stopped is not None


class Compensation(Struct, eq=False):
    """What a saga of a workflow has registered."""

    undo: Undo
    key: str
    """Under which it is recorded."""
    position: int
    """Of the step that registered it."""


class RecordedSaga(Saga):
    """A saga of a workflow."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self._branch = branch
        self._execution: Execution = branch.execution
        self._executor: Executor = self._execution.executor
        if self._execution.sagas is None:
            self._execution.sagas = Sagas(self._execution)
        self._sagas = self._execution.sagas
        self._compensations: list[Compensation] = []
        self._key = ""  # that of its first registration

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._sagas.entered(self)
        return self

    async def _leave(self, error: BaseException | None) -> None:
        try:
            if self._compensations and not self._is_abandoned(error):
                await self._walk_out(error)
        finally:
            self._sagas.left(self)

    def _is_abandoned(self, error: BaseException | None) -> bool:
        """Whether the run is over, so that another one goes on with the block or nobody does."""
        execution = self._execution
        is_torn_down = isinstance(error, asyncio.CancelledError) and self._executor.is_ending
        return execution.stopped is not None or execution.is_settling or is_torn_down

    # Registering

    def _registered(self, undo: Undo) -> Registration:
        branch = self._calling(undo)
        address = self._executor.registry.address_of_step(undo.step, undo.instance)
        limit = self._executor.session.settings.max_payload_bytes
        check_size(undo.inputs, limit, f"what step {undo.name!r} is to be called with")
        deed = Deed.called(branch, REGISTER, undo.name, undo.args, undo.kwargs)
        key = branch.next_key()
        self._execution.keep_number(deed.position + 1)
        recorded = deed.recorded()
        if recorded is not None:
            check_same(self._execution, recorded, REGISTER, deed.digest)
        self._key = self._key or deed.key
        self._compensations.append(Compensation(undo, key, deed.position))
        names = address.class_name or None, address.config_name or None
        row = CompensationRow(key, undo.name, *names, undo.inputs)
        if recorded is not None:
            self._sagas.replayed(self._key, self._write(deed, row))
            return Registration()
        return Registration(self._sagas.registering(self._register(deed, row)))

    def _calling(self, undo: Undo) -> Branch:
        """The branch that registers something.

        Raises:
            ConfigurationError: it is none of the saga's workflow.
        """
        branch = calling_branch("compensate")
        if branch is not None and branch.execution is self._execution and branch.step is None:
            return branch
        raise errors.ConfigurationError(
            f"compensate({undo.name}) registers something with a saga of workflow "
            f"{self._execution.workflow_id}, but "
            + ("a step calls it" if branch is not None else "no task of that workflow calls it")
            + ": call it in the body of the workflow"
        )

    async def _register(self, deed: Deed, row: CompensationRow) -> None:
        """Make a registration durable."""
        await self._execution.live(deed.key, is_registration=True)
        deed.started_at_ms = self._executor.clock.now_ms()
        write = self._write(deed, row)
        write.step = deed.write()
        landing = await deed.land(write)
        assert isinstance(landing, Recorded)
        check_same(self._execution, landing, REGISTER, deed.digest)

    def _write(self, deed: Deed, row: CompensationRow | None) -> SagaWrite:
        execution = self._execution
        return SagaWrite(
            execution.workflow_id, execution.owner, deed.position, None, self._key, row
        )

    # Leaving

    async def _walk_out(self, error: BaseException | None) -> None:
        """End the saga, or undo what it did; a cancellation comes behind that."""
        key, cause = self._exit(error)
        way_out = self._end_well(key) if cause is None else self._undo_all(key, cause)
        interrupted: asyncio.CancelledError | None = None
        if self._answers_at_once:
            way = await way_out
        else:
            task = self._executor.beside(self._execution, way_out, "dbos saga")
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError as exc:
                    if self._is_abandoned(exc):
                        raise
                    interrupted = exc
            way = task.result()
        self._branch.recorded(way.end.key, way.end.completed_at_ms or 0)
        if way.failure is not None:
            raise way.failure from cause or interrupted
        if way.refusal is not None:
            raise way.refusal
        if interrupted is not None:
            raise interrupted
        if cause is not None and cause is not error:
            raise cause

    def _exit(self, error: BaseException | None) -> tuple[str, BaseException | None]:
        """Number the exit, and say how the block is left.

        Whoever is cancelled by a limit when his turn comes, in a replay, was so in the block.
        """
        try:
            return self._branch.next_key(), error
        except asyncio.CancelledError as exc:
            return self._branch.next_key(), exc

    @property
    def _answers_at_once(self) -> bool:
        """Whether the exit is recorded, and nothing of it is waited for.

        Then it is walked here, so that a replay does not stop where the first run went on.
        """
        replay = self._execution.replay
        return self._sagas.has_ended(self._key) and (replay is None or not replay.is_ordered)

    async def _end_well(self, key: str) -> "WayOut":
        try:
            return WayOut(await self._end(key))
        except errors.DatabaseRefusedError as exc:  # the last registration was refused
            way = await self._undo_all(self._branch.next_key(), exc)
            way.refusal = exc
            return way

    async def _undo_all(self, key: str, cause: BaseException) -> "WayOut":
        execution = self._execution
        deed = Deed(execution, key, execution.position_of(key), FAIL)
        end = self._branch.next_key()  # a limit that expires from here on finds the saga over
        execution.keep_number(deed.position + 1)
        await deed.awaited(self._decide(deed))
        latest = sorted(self._compensations, key=lambda each: each.position, reverse=True)
        runs: list[Run] = [partial(self._undo, each) for each in latest]
        outcomes = await run_all(runs)
        what = f"a saga of workflow {execution.workflow_id!r}"
        names = [each.undo.name for each in latest]
        failure = failure_of(what, names, outcomes, cause=cause)
        return WayOut(await self._end(end), failure)

    async def _decide(self, deed: Deed) -> None:
        """Record that the saga fails."""
        landing: Recorded | Fence | None = deed.recorded()
        if landing is None:
            self._sagas.forget_refusal()
            await deed.go_live()
            landing = await deed.land(deed.write())
        deed.accept(landing)

    async def _undo(self, compensation: Compensation) -> None:
        """Run a compensation as a step of the workflow, in the order in which they run."""
        execution, key, undo = self._execution, compensation.key, compensation.undo
        step = undo.step.definition
        run = self._executor.steps.run(
            execution, key, execution.position_of(key), step, undo.values, undo.kwargs
        )
        execution.called(key, step.name, run)
        await run

    async def _end(self, key: str) -> Recorded:
        """Record that the saga is over: nothing of it is open any more."""
        deed = Deed(self._execution, key, self._execution.position_of(key), END)
        return await deed.awaited(self._drop(deed))

    async def _drop(self, deed: Deed) -> Recorded:
        landing: Recorded | Fence | None = deed.recorded()
        if landing is None:
            await deed.go_live()
            write = self._write(deed, None)
            write.step = deed.write(output=codec.encode(self._key))
            landing = await deed.land(write)
        return deed.accept(landing)


class WayOut(Struct):
    """How a block was left."""

    end: Recorded
    failure: errors.CompensationError | None = None
    refusal: errors.DatabaseRefusedError | None = None
    """Why the last compensation could not be registered, so that the block failed at its end."""


class Sagas:
    """The sagas of one run: whose blocks are open, and what they register."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._open: dict[RecordedSaga, asyncio.Task[Any] | None] = {}
        self._registering: set[asyncio.Task[None]] = set()
        self._replayed: list[SagaWrite] = []  # what an earlier run opened; is it open here?
        self._refusal: BaseException | None = None
        self._ended = frozenset(
            stored.read(step.output, step.serialization, SAGA)
            for step in execution.history.values()
            if step.name == END
        )

    def entered(self, saga: RecordedSaga) -> None:
        """The running task is in a saga now."""
        self._open[saga] = asyncio.current_task()

    def left(self, saga: RecordedSaga) -> None:
        """It is no more."""
        self._open.pop(saga, None)

    def has_ended(self, key: str) -> bool:
        """Whether it is recorded of a saga that it is over."""
        return key in self._ended

    def registering(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Let a registration travel."""
        executor: Executor = self._execution.executor
        task: asyncio.Task[None] = executor.beside(self._execution, work, "dbos compensation")
        self._registering.add(task)
        task.add_done_callback(self._has_registered)
        return task

    def replayed(self, key: str, write: SagaWrite) -> None:
        """An earlier run has registered this: if the saga goes on, it is to be open."""
        assert write.compensation is not None
        if not self.has_ended(key) and write.compensation.step_key not in self._execution.history:
            self._replayed.append(write)

    async def registered(self) -> None:
        """Return once all that is registered is durable.

        Raises:
            DatabaseRefusedError: Postgres rejects a registration.
        """
        again, self._replayed = self._replayed, []
        for write in again:
            self.registering(self._open_again(write))
        while self._registering:
            await asyncio.wait(self._registering)
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    def forget_refusal(self) -> None:
        """It is known."""
        self._refusal = None

    async def over(self) -> None:
        """Return once no task is in a saga: those that the body has left behind end now."""
        left = [task for task in self._open.values() if task is not asyncio.current_task()]
        tasks = [task for task in left if task is not None and not task.done()]
        if tasks and self._execution.stopped is None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _open_again(self, write: SagaWrite) -> None:
        executor: Executor = self._execution.executor
        landing: Landing = await executor.session.checkpointer.commit(write)
        if landing is not None:
            lost(self._execution)

    def _has_registered(self, task: "asyncio.Task[None]") -> None:
        self._registering.discard(task)
        if not task.cancelled() and isinstance(task.exception(), errors.DatabaseRefusedError):
            self._refusal = task.exception()
