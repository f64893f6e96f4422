"""One run of one workflow in this process."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, Protocol

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.context import furthest_of
from dbos_async._engine.registry import Runnable
from dbos_async._store.records import Outcome, Recorded


class Stop(Enum):
    """Why a run ends before its workflow does. Nothing more of it is recorded."""

    ABANDONED = "left PENDING for a later start"
    LOST = "another owner has it"
    CANCELLED = "it was cancelled"


class Wait(Struct, eq=False, kw_only=True):
    """What a task of a workflow waits for, and the workflow with it."""

    key: str
    """The step that waits."""
    until_ms: float | None = None
    """When it ends by itself."""
    is_queued: bool = False
    """Whether it is for a workflow that this one enqueued."""
    task: "asyncio.Task[Any] | None" = None
    """The task that waits; `Execution.waiting` notes it."""


class Place(Protocol):
    """Where an execution counts against the limits of its queue."""

    def leave(self) -> None:
        """It only waits for others."""
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
        "deadline_ms",
        "done",
        "executor",
        "history",
        "is_settling",
        "kwargs",
        "last_position",
        "owner",
        "replaying",
        "root_id",
        "runnable",
        "slot",
        "steps_running",
        "stopped",
        "task",
        "tasks",
        "timer",
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
        self.history = history or {}
        self.replaying = bool(history)
        self.last_position = max(step.position for step in history.values()) if history else 0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[Any]] = set()  # its branches
        self.done: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self.stopped: Stop | None = None
        self.is_settling = False
        self.steps_running = 0
        self.waits: set[Wait] = set()
        self.slot: Place | None = None
        self._called: dict[str, tuple[str, Coroutine[Any, Any, Any]]] | None = None
        self._furthest: dict[str, tuple[int, int]] | None = None

    @property
    def name(self) -> str:
        """The workflow's registered name."""
        return self.runnable.definition.name

    @property
    def is_resting(self) -> bool:
        """Whether it only waits: in a durable sleep, or for another workflow."""
        return bool(self.waits) and self.steps_running == 0

    def rest(self) -> None:
        """Give up the place in its queue's limits if all it does is await what it enqueued."""
        if self.slot is not None and self.is_resting and all(wait.is_queued for wait in self.waits):
            self.slot.leave()

    @asynccontextmanager
    async def waiting(self, wait: Wait) -> AsyncIterator[None]:
        """Wait within the block, for something that may take long and is no step of the user's.

        However the waiting ends, also by a timeout or a cancelled task, the workflow goes on only
        with a slot.
        """
        wait.task = asyncio.current_task()
        self.waits.add(wait)
        self.executor.change()
        self.rest()
        try:
            yield
        finally:
            self.waits.discard(wait)
            if self.slot is not None and not self.waits and self.stopped is None:
                await self.slot.enter()

    def position_of(self, key: str) -> int:
        """The number of the row that this step has or will have."""
        recorded = self.history.get(key)
        if recorded is not None:
            return recorded.position
        self.last_position += 1
        return self.last_position

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
        if self._called is not None:
            self._called.pop(key, None)
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

    async def live(self, key: str) -> None:
        """This step is not recorded: from here on everything is new."""
        self.replaying = False

    def diverged(self, why: str) -> errors.DivergenceError:
        """What is raised where the code took another path than the recorded one."""
        return errors.DivergenceError(why)

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


class Started(Struct, frozen=True):
    """A workflow that exists now; `execution` if this call made it run here."""

    workflow_id: str
    execution: Execution | None = None
    is_queued: bool = False
    """Whether this call put it on a queue."""
