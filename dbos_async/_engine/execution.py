"""One run of one workflow in this process."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.callers import NOBODY, Caller
from dbos_async._engine.context import Call, current_branch, furthest_of
from dbos_async._engine.registry import Runnable
from dbos_async._engine.replay import NEW, replay_of
from dbos_async._store.landings import Landing
from dbos_async._store.parking import News
from dbos_async._store.records import Outcome, Recorded, Write

if TYPE_CHECKING:
    from dbos_async._engine.sagas import Sagas
    from dbos_async._engine.streams import Streams


T = TypeVar("T")


class Stop(Enum):
    """Why a run ends before its workflow does. Nothing more of it is recorded."""

    ABANDONED = "left PENDING for a later start"
    LOST = "another owner has it"
    CANCELLED = "it was cancelled"
    PARKED = "it waits outside of memory"
    BROKEN = "what is recorded of it cannot be read"


class Wait(Struct, eq=False, kw_only=True):
    """What a task of a workflow waits for, and the workflow with it."""

    key: str
    """The step that waits."""
    until_ms: float | None = None
    """When it ends at the latest; None: it may end any moment, by what nobody is told of who is not
    in memory."""
    news: News | None = None
    """What ends it before; None: nothing that comes from outside."""
    is_queued: bool = False
    """Whether it is for a workflow that this one enqueued."""
    is_for_tasks: bool = False
    """Whether it is for tasks of this workflow alone, and what they wait for has its own entry."""
    task: "asyncio.Task[Any] | None" = None
    """The task that waits; `Execution.waiting` notes it."""


class Limit(Protocol):
    """A `dbos.timeout` whose block is open."""

    key: str
    """Where its end will be recorded."""
    deadline_ms: float
    """When it expires, unless the record says otherwise."""

    def reach(self) -> None:
        """Its block has come to the call in which it had expired, and waits there."""
        ...

    def start(self) -> None:
        """Go by the clock from now on."""
        ...


class Place(Protocol):
    """Where an execution counts against the limits of its queue."""

    @property
    def is_free(self) -> bool:
        """Whether the queue has no limits on what runs."""
        ...

    @property
    def may_park(self) -> bool:
        """Whether a workflow of the queue may be parked."""
        ...

    def leave(self) -> None:
        """It only waits."""
        ...

    async def enter(self) -> None:
        """Return once it may go on."""
        ...

    def settle(self) -> None:
        """Its body is over; its outcome is on its way."""
        ...


class Execution:
    """The state of a run. The executor makes it, its own tasks change it, nobody else."""

    __slots__ = (
        "__weakref__",
        "_called",
        "_furthest",
        "args",
        "broken",
        "caller",
        "deadline_ms",
        "done",
        "executor",
        "expiries",
        "fetching",
        "frozen",
        "history",
        "is_fresh",
        "is_settling",
        "kwargs",
        "last_position",
        "limits",
        "owner",
        "parking",
        "replay",
        "replaying",
        "root_id",
        "runnable",
        "sagas",
        "slot",
        "steps_running",
        "stopped",
        "streams",
        "task",
        "tasks",
        "timer",
        "unread",
        "waits",
        "workflow_id",
    )

    def __init__(
        self,
        workflow_id: str,
        owner: str,
        runnable: Runnable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        deadline_ms: int | None,
        root_id: str,
        caller: Caller = NOBODY,
        history: dict[str, Recorded] | None = None,
        executor: Any = None,
    ) -> None:
        self.workflow_id = workflow_id
        self.owner = owner
        self.runnable = runnable
        self.executor = executor
        self.args = args
        self.kwargs = kwargs
        self.deadline_ms = deadline_ms
        self.root_id = root_id
        self.caller = caller
        self.history = history or {}
        self.is_fresh = history is None
        self.replaying = bool(history)
        self.last_position = max(step.position for step in history.values()) if history else 0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[Any]] = set()  # its branches
        self.done: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self.stopped: Stop | None = None
        self.is_settling = False
        self.steps_running = 0
        self.waits: dict[Wait, None] = {}
        self.slot: Place | None = None
        self.limits: tuple[Limit, ...] = ()  # whose blocks are open
        self.frozen: dict[str, list[Limit]] = {}  # steps that do not return: in them, limits expire
        self.expiries: tuple[asyncio.Future[Any], ...] = ()  # of limits, on their way to Postgres
        self.replay = replay_of(self, self.history)
        self.parking: asyncio.Event | None = None
        """Set once it is known whether this run is parked; meanwhile it does nothing."""
        self.streams: Streams | None = None
        self.broken: Exception | None = None
        """What the workflow ends with, whatever its code makes of being stopped."""
        self.fetching = 0
        """How many recorded values are on their way here."""
        self.unread: str | None = None
        """What stands for its arguments until they are fetched."""
        self.sagas: Sagas | None = None
        self._called: dict[str, tuple[str, Coroutine[Any, Any, Any]]] | None = None
        self._furthest: dict[str, tuple[int, int]] | None = None

    @property
    def name(self) -> str:
        """The workflow's registered name."""
        return self.runnable.definition.name

    @property
    def is_resting(self) -> bool:
        """Whether it only waits: in a durable sleep, or for another workflow."""
        return self.steps_running == 0 and not all(wait.is_for_tasks for wait in self.waits)

    def rest(self) -> None:
        """Give up the place in its queue if all it does is await what it enqueued.

        Where nothing limits what runs, any other wait will do.
        """
        if self.slot is None or not self.is_resting:
            return
        if self.slot.is_free or all(wait.is_queued or wait.is_for_tasks for wait in self.waits):
            self.slot.leave()

    @asynccontextmanager
    async def waiting(self, wait: Wait) -> AsyncIterator[None]:
        """Wait within the block, for something that may take long and is no step of the user's.

        However the waiting ends, also by a timeout or a cancelled task, the workflow goes on only
        with a slot.
        """
        wait.task = asyncio.current_task()
        self.waits[wait] = None
        self.executor.waits(self, wait)
        self.rest()
        try:
            yield
        finally:
            await self.unparked()
            self.waits.pop(wait, None)
            if self.slot is not None and not self.waits and self.stopped is None:
                await self.slot.enter()

    def position_of(self, key: str) -> int:
        """The number of the row that this step has or will have."""
        recorded = self.history.get(key)
        if recorded is not None:
            return recorded.position
        self.last_position += 1
        return self.last_position

    def keep_number(self, position: int) -> None:
        """Give this number to nobody: what comes after it has the one that its key says."""
        self.last_position = max(self.last_position, position)

    def furthest(self, path: str) -> tuple[int, int]:
        """The place that a branch had come to at least, by what is recorded of it."""
        if self._furthest is None:
            self._furthest = furthest_of(self.history)
        return self._furthest.get(path, (0, 0))

    def written_key(self, key: str, position: int) -> str | None:
        """The key that goes into the row; None if the number says it.

        A fork always writes it: what official clients copied into it is told by having none.
        """
        return None if key == str(position) and self.root_id == self.workflow_id else key

    def called(self, key: str, name: str, call: Coroutine[Any, Any, Any]) -> None:
        """Note a step that was called, until it is awaited."""
        if self._called is None:
            self._called = {}
        self._called[key] = (name, call)

    def begin(self, key: str) -> None:
        """A called step is awaited now.

        Raises:
            CancelledError: this run is over; whatever unwinds must not do anything more.
        """
        called = self._called.pop(key, None) if self._called is not None else None
        if self.limits:
            self._note_call(key, None if called is None else called[1])
        if self.replay is not None:
            self.replay.begun(key)
        if self.is_settling:
            raise asyncio.CancelledError(f"workflow {self.workflow_id} has returned already")
        if self.stopped is not None:
            raise asyncio.CancelledError(f"workflow {self.workflow_id}: {self.stopped.value}")

    def check_everything_awaited(self) -> None:
        """Complain of steps that were called and then forgotten.

        Raises:
            DBOSError: a step's call was never awaited, so it never ran.
        """
        for name, call in (self._called or {}).values():
            state = inspect.getcoroutinestate(call)
            call.close()
            if state == inspect.CORO_CREATED:
                raise errors.DBOSError(
                    f"workflow {self.name!r} ({self.workflow_id}) called {name!r} without awaiting "
                    f"it, so it did not run: write `await {name}(…)`"
                )

    def _note_call(self, key: str, coroutine: Coroutine[Any, Any, Any] | None) -> None:
        """Let the task's branch know what it is in, in case a limit expires there."""
        branch = current_branch()
        if branch is None:
            return
        if coroutine is not None:
            branch.call = Call(coroutine)
        if branch.call is not None:  # a verb's further keys come without a call of their own
            branch.call.key = key
            branch.call.unrecorded.add(key)

    async def live(self, key: str, *, is_registration: bool = False) -> None:
        """This step is not recorded: from here on everything is new.

        Once a limit has expired, that is durable before anything new begins, and so is what sagas
        have registered; what is new waits until what is recorded has been answered, and until it is
        sure that this run is ours.
        """
        if self.sagas is not None and not is_registration:
            await self.sagas.registered()
        if self.parking is not None:
            await self.unparked()
        if key in self.frozen:
            await self.stop_if_frozen(key)
        while self.expiries:
            await asyncio.wait(self.expiries)
        if self.replay is not None and not self.replay.is_over:
            await self.replay.quiet(NEW)
        if self.executor.is_unsure:
            await self.executor.sure()
        self.replaying = False

    async def landed(self, key: str, write: Write, landing: "asyncio.Future[Landing]") -> Landing:
        """What becomes of the write that step `key` comes to; a cancellation comes behind it.

        A replay finds the record, and so goes on from the step until it next has to wait: there
        whoever cancels its task meets it. So the first run must not be stopped in the step either.
        It is told what has landed, and the cancellation reaches it where it next waits. Not when it
        is over anyway, and not where a limit has expired: that this step does not return is
        recorded then.
        """
        try:
            return await landing
        except asyncio.CancelledError as exc:
            return await self.landed_late(key, write, landing, exc)

    async def landed_late(
        self,
        key: str,
        write: Write,
        landing: "asyncio.Future[Landing]",
        cancelled: asyncio.CancelledError,
    ) -> Landing:
        """The same, for whom a cancellation has reached while it waited for `landing`."""
        if self.ends_in(key):
            raise cancelled
        if landing.cancelled():
            landing = self.executor.session.checkpointer.again(write, landing)
        return await self.outlasting(key, landing, cancelled)

    async def outlasting(
        self,
        key: str,
        work: "asyncio.Future[T]",
        cancelled: asyncio.CancelledError | None = None,
    ) -> T:
        """What becomes of work that records step `key`; see `landed`. It is never cancelled."""
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as exc:
                if self.ends_in(key):
                    raise
                cancelled = exc
        if cancelled is not None:
            cancel_later(cancelled)
        return work.result()

    def ends_in(self, key: str) -> bool:
        """Whether a cancellation is the end of the run, or step `key` must not return."""
        is_over = self.stopped is not None or self.is_settling or self.executor.is_ending
        return is_over or key in self.frozen

    def freeze(self, keys: Iterable[str], limit: Limit) -> None:
        """These do not return any more: a limit expires in them, or has in an earlier run.

        They may have landed in the same instant; the run that saw them cancelled went another way.
        """
        for key in keys:
            self.history.pop(key, None)
            self.frozen.setdefault(key, []).append(limit)

    async def stop_if_frozen(self, key: str) -> None:
        """Never return if limits had expired in this step; they will again."""
        if key in self.frozen:
            for limit in self.frozen[key]:
                limit.reach()
            await asyncio.get_running_loop().create_future()

    def pass_by(self, keys: Iterable[str]) -> None:
        """These were called before a limit expired, and may not be called again."""
        if self.replay is not None:
            self.replay.left.difference_update(keys)

    def arm(self, limit: Limit) -> None:
        """Nothing is recorded of a limit's end, and all that is recorded has been answered."""
        limit.start()

    async def unparked(self) -> None:
        """Return once it is known that this run is not parked: until then it must not go on."""
        while self.parking is not None and self.stopped is None:
            await self.parking.wait()

    def diverged(self, why: str) -> errors.DivergenceError:
        """What is raised where the code took another path than the recorded one."""
        return errors.DivergenceError(why)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Within the block something that is recorded takes its time: a replay waits for it."""
        self.fetching += 1
        try:
            yield
        finally:
            self.fetching -= 1
            if self.replay is not None:
                self.replay.moved()

    def break_off(self, why: Exception) -> NoReturn:
        """Let the workflow end with this error, though its code may catch everything.

        Raises:
            CancelledError: always.
        """
        if self.stopped is None and not self.is_settling:
            self.broken = why
            self.stop(Stop.BROKEN)
        raise asyncio.CancelledError(str(why))

    def forget(self) -> None:
        """Let go of what only the run needed; a handle may keep the rest for long."""
        self.args, self.kwargs, self.history, self.waits = (), {}, {}, {}
        for _, call in (self._called or {}).values():
            call.close()
        self._called = None

    def fail(self, error: BaseException) -> None:
        """Tell awaiters here that this process will not see the end."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # nobody need be awaiting it

    def stop(self, why: Stop) -> None:
        """End the run at once, wherever it waits; one that is being settled is left to it."""
        if self.stopped is None and not self.is_settling:
            self.stopped = why
            for task in [self.task, *self.tasks]:
                if task is not None:
                    task.cancel()


def cancel_later(cancelled: asyncio.CancelledError) -> None:
    """Cancel the running task where it next waits, unless who cancelled it takes that back."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.call_soon(partial(cancel_again, task, task.cancelling(), cancelled.args))


def cancel_again(task: "asyncio.Task[Any]", requests: int, args: tuple[Any, ...]) -> None:
    """Deliver a cancellation that was counted when it was made."""
    if not task.done() and task.cancelling() >= requests > 0:
        task.uncancel()
        task.cancel(*args)


class Started(Struct, frozen=True):
    """A workflow that exists now; `execution` if this call made it run here."""

    workflow_id: str
    execution: Execution | None = None
    is_queued: bool = False
    """Whether this call put it on a queue."""
