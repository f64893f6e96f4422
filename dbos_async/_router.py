"""Decorators and verbs for modules that cannot import the app."""

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import (
    Any,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    get_args,
    overload,
)

import structlog

from dbos_async import errors
from dbos_async._client import Verbs, call_of, check_workflow
from dbos_async._config import Seconds, seconds_of
from dbos_async._engine import events, messages, patches, races, sagas, timeouts
from dbos_async._engine.callers import NOBODY, Caller
from dbos_async._engine.context import Branch, asking_branch, calling_branch, current_branch
from dbos_async._engine.execution import Started
from dbos_async._engine.executor import Executor
from dbos_async._engine.functions import Step, StepDecorator, Workflow, in_step, workflow_of
from dbos_async._engine.registry import (
    OnConflict,
    QueueDefinition,
    Registry,
    ScheduleDefinition,
)
from dbos_async._engine.sagas import Saga
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded
from dbos_async._engine.timeouts import Timeout
from dbos_async._handle import WorkflowHandle, started_of
from dbos_async._limits import Limiter, Limits, RateLimit, checked_id, checked_kind, checked_word
from dbos_async._log import log
from dbos_async._queue import Queue, name_of
from dbos_async._schedule import Overlap, ScheduleOptions, definition_of
from dbos_async._streaming import StreamWriting
from dbos_async._transactional import Transactional

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
A = TypeVar("A")
E = TypeVar("E", bound="asyncio.Future[Any] | WorkflowHandle[Any]")
W = TypeVar(
    "W",
    bound=Callable[[datetime], Awaitable[object]] | Callable[[datetime, Any], Awaitable[object]],
)


class App(Protocol):
    """What a router knows of the apps that include it."""

    _is_open: bool

    @property
    def name(self) -> str:
        """The app's name."""
        ...

    def find_launched(self) -> Executor | None:
        """Its executor, if it is launched."""
        ...

    def _own_session(self) -> Session: ...


class Router(Transactional, Verbs, StreamWriting):
    """Decorators and verbs for modules that cannot import the app; `dbos.include(router)`."""

    def __init__(self) -> None:
        super().__init__()
        self._registry = Registry()
        self._apps: list[App] = []
        self._is_open = True
        self.step = StepDecorator(self)
        """`@dbos.step`, `@dbos.step(retry=…)`, or ad hoc: `await dbos.step(function)(*args)`."""

    # Declaring

    @overload
    def workflow(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Workflow[P, T]: ...
    @overload
    def workflow(
        self,
        /,
        *,
        name: str | None = None,
        max_recovery_attempts: int | None = 100,
        required_roles: Sequence[str] = (),
    ) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Workflow[P, T]]: ...
    def workflow(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        max_recovery_attempts: int | None = 100,
        required_roles: Sequence[str] = (),
    ) -> Any:
        """Make an `async def` durable.

        Args:
            function: the workflow, when used without parentheses.
            name: what rows call it; its `__qualname__` unless given.
            max_recovery_attempts: how often in a row it is recovered from a crash without a new
                step recorded in between, before it is given up; None for no limit.
            required_roles: of which its caller must have one, as `with_options` names it; who
                starts or enqueues it otherwise gets NotAuthorizedError, and so does it itself where
                that could not be known.

        Raises:
            TypeError: it is no `async def`, the limit no int, or the roles no list.
            ValueError: the limit is negative, or a role empty.
            ConfigurationError: the name is taken, or the app is launched already.
        """

        def register(function: Any) -> Workflow[Any, Any]:
            definition = workflow_of(function, name, max_recovery_attempts, required_roles)
            self._check_open(f"the workflow {definition.name!r}")
            self._registry.add_workflow(definition)
            return Workflow(self, definition)

        return register if function is None else register(function)

    def queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        worker_concurrency: int | None = None,
        rate_limit: RateLimit | None = None,
        worker_rate_limit: RateLimit | None = None,
        partition_concurrency: int | None = None,
        partition_worker_concurrency: int | None = None,
        partition_rate_limit: RateLimit | None = None,
        on_conflict: OnConflict = "update_if_latest_version",
        park: bool = False,
    ) -> Queue:
        """Declare a queue, once per app; every process of the app works on it.

        Args:
            name: what rows call it; one name is one app's in a database.
            concurrency: how many of its workflows run at a time, over all processes.
            worker_concurrency: the same for each process.
            rate_limit: how many start within any period, over all processes.
            worker_rate_limit: the same for each process.
            partition_concurrency: `concurrency` for each partition key; any limit of a partition
                makes the queue a partitioned one: each enqueue names a key, and keys take turns.
            partition_worker_concurrency: the same for each process.
            partition_rate_limit: `rate_limit` for each partition key.
            on_conflict: what a launch does with limits that the database has already: overwrite
                them if this is the app's newest version, "always_update", or "never_update".
            park: let a workflow that waits long leave memory though the queue limits how many run:
                another takes its place, and when it is due it stands in line again. Without such a
                limit it does so anyway.

        Raises:
            ValueError: a limit is below 1, or larger than one that contains it.
            TypeError: a limit is of the wrong type.
            ConfigurationError: it is declared already, or the app is launched.
        """
        self._check_open(f"the queue {name!r}")
        checked_queue_name(name)
        if on_conflict not in get_args(OnConflict):
            choices = ", ".join(get_args(OnConflict))
            raise ValueError(f"on_conflict is one of {choices}, not {on_conflict!r}")
        limits = Limits(
            concurrency=concurrency,
            worker_concurrency=worker_concurrency,
            rate_limit=rate_limit,
            worker_rate_limit=worker_rate_limit,
            partition_concurrency=partition_concurrency,
            partition_worker_concurrency=partition_worker_concurrency,
            partition_rate_limit=partition_rate_limit,
        )
        limits.check()
        self._registry.add_queue(QueueDefinition(name, limits, on_conflict, park))
        return Queue(self, self._acting, name, limits)

    def listen_queues(self, queues: Iterable[str | Queue]) -> None:
        """Let this process work on these queues only; on all of the app's unless called.

        Raises:
            ConfigurationError: the app is launched.
            TypeError: it is no list of queues or names.
        """
        self._check_open("listen_queues")
        if isinstance(queues, str):
            raise TypeError(f"listen_queues takes a list: write listen_queues([{queues!r}])")
        self._registry.listened = frozenset(name_of(queue) for queue in queues)

    def register(self, instance: S, /, *, name: str) -> S:
        """Name an instance that has workflow methods, so that they are recovered on it.

        Raises:
            ConfigurationError: another instance of its class has the name, or the app is launched.
        """
        self._check_open(f"the instance {name!r}")
        self._registry.add_instance(instance, name)
        return instance

    def scheduled(
        self,
        cron: str,
        /,
        *,
        timezone: str = "UTC",
        queue: str | Queue | None = None,
        backfill: bool = False,
        overlap: Overlap = "allow",
        jitter: Seconds = 0,
        name: str | None = None,
        context: Any = None,
    ) -> Callable[[W], W]:
        """Run a workflow whenever it is due: once a tick, over all processes of the app.

            @dbos.scheduled("*/5 * * * *", timezone="Europe/Berlin")
            @dbos.workflow
            async def tidy(due: datetime) -> None: ...

        The workflow gets the moment at which it was due, aware, in UTC, and, if it has a second
        parameter, the context. The schedule is written down at the launch, where the app's newest
        version decides; one that was paused stays so.

        Args:
            cron: minute, hour, day of the month, month, day of the week; or six fields, with
                seconds first.
            timezone: whose clocks it goes by. Of times of the day, one that the clocks skip is due
                when they jump, and one that comes twice, the first time.
            queue: where its runs go; else they run wherever there is room.
            backfill: fire all ticks that were missed while nothing ran. Else of those only the last
                may fire, if it is no older than a minute.
            overlap: what happens at a tick while an earlier run has not ended: it fires too; it is
                skipped; one tick waits for the end ("buffer_one"); or what is left of the earlier
                ones is cancelled, with their children ("cancel_previous").
            jitter: seconds; each run begins up to so much later, to spread them.
            name: what the schedule is called, among all apps of the database; the workflow's name
                unless given.
            context: what the workflow gets as its second argument.

        Raises:
            ValueError: the expression, the time zone or another value cannot work; it says why.
            TypeError: it is no workflow, or not one that takes a datetime and perhaps a context.
            SerializationError: the context cannot be stored.
            ConfigurationError: the name is taken, or the app is launched already.
        """
        checked = ScheduleOptions(
            cron, context, timezone, queue, backfill=backfill, overlap=overlap, jitter=jitter
        )

        def register(workflow: W) -> W:
            definition = definition_of(workflow, is_here=True)
            given = definition.name if name is None else name
            self._check_open(f"the schedule {given!r}")
            self._registry.add_schedule(
                ScheduleDefinition(checked.of(given, definition), definition)
            )
            return workflow

        return register

    def _check_open(self, what: str) -> None:
        if not self._is_open or any(not app._is_open for app in self._apps):
            raise errors.ConfigurationError(
                f"{what} comes too late, the app is launched: declare it at import time, before "
                "`async with dbos`"
            )

    # Starting

    async def start_workflow(
        self, workflow: Workflow[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[T]:
        """Start a workflow on this process and return at once; within a workflow, a child.

        Raises:
            TypeError: it is no workflow, or the arguments do not fit it.
            SerializationError: an argument cannot be stored. Nothing was started.
            WorkflowConflictError: another workflow function has the id; choose another.
            NotAuthorizedError: its caller has no role that it requires.
            NotLaunchedError: the app is not launched.
        """
        check_workflow(workflow, "start_workflow")
        call = call_of(workflow.bind(*args, **kwargs))
        branch = calling_branch(f"start_workflow({call.definition.name!r})")
        if branch is not None:
            self._acting()
        if branch is None:
            started = self.launched().start(call)
        elif branch.step is not None:
            in_step(call.definition.name, branch)
        else:
            started = branch.execution.executor.inner.start_child(branch, call)
        return await self._handled(started, call)

    # Within workflows

    def sleep(self, duration: Seconds) -> Coroutine[Any, Any, None]:
        """Sleep durably: a workflow wakes when it is due, on whichever process has it then.

        Raises:
            ValueError: the duration is negative.
        """
        seconds = seconds_of(duration)
        branch = calling_branch("sleep")
        if branch is None or branch.step is not None:
            return asyncio.sleep(seconds)
        executor: Executor = branch.execution.executor
        return executor.inner.sleep(branch, seconds)

    @overload
    def wait(
        self, entrants: Iterable[E], *, return_when: str = ..., timeout: Seconds | None = None
    ) -> Coroutine[Any, Any, tuple[set[E], set[E]]]: ...
    @overload
    def wait(
        self, entrants: Iterable[Any], *, return_when: str = ..., timeout: Seconds | None = None
    ) -> Coroutine[Any, Any, tuple[set[Any], set[Any]]]: ...
    def wait(
        self,
        entrants: Iterable[Any],
        *,
        return_when: str = asyncio.ALL_COMPLETED,
        timeout: Seconds | None = None,
    ) -> Coroutine[Any, Any, tuple[set[Any], set[Any]]]:
        """Wait for tasks and workflows, as `asyncio.wait` does: those done, and those pending.

            first, others = await dbos.wait([task, handle], return_when=asyncio.FIRST_COMPLETED)

        Within a workflow who was done is recorded, and a replay returns the same, so a race has the
        same winner. Nothing is raised or cancelled; `get_result` tells what became of a workflow.

        Args:
            entrants: tasks, futures and handles, mixed. Within a workflow a set is put into order,
                which works for tasks that the workflow spawned, and for handles.
            return_when: as for `asyncio.wait`; a workflow that failed or was cancelled counts as an
                exception.
            timeout: seconds after which it returns in any case; durable within a workflow.

        Raises:
            ValueError: there is nothing to wait for, or no such mode, or the timeout is negative.
            TypeError: there is something else in it, such as a coroutine: create a task of it.
        """
        seconds = None if timeout is None else seconds_of(timeout)
        branch = calling_branch("wait")
        if branch is not None and branch.step is not None:
            branch = None
        elements, places = entered(entrants, branch)
        mode = races.checked_mode(return_when)
        if branch is not None:
            return parted(elements, races.wait(branch, places, mode, seconds))
        is_for_workflows = any(isinstance(place, Started) for place in places)
        race = races.Race(places, mode, self._acting() if is_for_workflows else None)
        return parted(elements, races.wait_plainly(race, seconds))

    def timeout(self, duration: Seconds) -> AbstractAsyncContextManager[Timeout]:
        """Limit the time of a block: it is cancelled, and TimeoutError is raised at its end.

            async with dbos.timeout(60) as limit:
                await confirmation()

        Within a workflow it is durable: the moment is recorded, and holds over recoveries, and a
        block that expired does so at the same place in a replay. Else it is `asyncio.timeout`.

        Raises:
            ValueError: the duration is negative.
            TimeoutError: at the end of the block, if it expired.
        """
        return timeouts.timeout(seconds_of(duration))

    def saga(self) -> Saga:
        """A block whose steps are undone if it fails, or if the workflow is cancelled in it.

            async with dbos.saga() as saga:
                payment = await charge(order)
                saga.compensate(refund, payment)
                await ship(order)

        Within a workflow the compensations are durable: they survive a crash, each is recorded as a
        step when it has run, and those of a workflow that is cancelled run in one of its own, named
        by its id and "-compensate". They run in reverse order, each with its own retry; one that
        fails keeps none of the others from running. A block that ends well drops them. Outside of
        workflows, and in steps, they are plain calls.

        Raises:
            CompensationError: at the end of the block, if it failed and compensations failed, too;
                from the block's own error.
        """
        return sagas.saga()

    def now(self) -> Coroutine[Any, Any, datetime]:
        """The database's time, aware, in UTC; within a workflow, recorded."""
        clock = self._acting().clock

        async def now() -> datetime:
            return clock.now()

        return recorded("DBOS.now", now, datetime)

    def uuid4(self) -> uuid.UUID:
        """A random UUID; within a workflow, one that a replay gets again. Nothing is written."""
        branch = asking_branch()
        return uuid.uuid4() if branch is None or branch.step is not None else branch.uuid4()

    def random(self) -> random.Random:
        """A generator of random numbers; within a workflow, seeded so that a replay repeats it."""
        branch = asking_branch()
        if branch is None or branch.step is not None:
            return random.Random()  # noqa: S311  # not for secrets
        return random.Random(branch.draw())  # noqa: S311  # not for secrets

    def patch(self, name: str) -> Coroutine[Any, Any, bool]:
        """Whether a workflow takes the new path here: True unless it has passed the place already.

            if await dbos.patch("check the address first"):
                await check_address(order)

        Runs that began on the old code, and had come further than this, go on as they did; all
        others take the new path, and record that they did. Once none of the former is left, call
        `deprecate_patch` in its place, and once none is left that has a marker, nothing. Let the
        versions share their work by `app_version=`.

        Raises:
            ConfigurationError: it is called outside of workflows, or in a step.
            ValueError: the name cannot be stored.
        """
        return patches.patch(checked_id(name, "the patch's name"))

    def deprecate_patch(self, name: str) -> Coroutine[Any, Any, bool]:
        """True, for all runs: those that have the patch's marker, and those that began after it.

        Raises:
            ConfigurationError: it is called outside of workflows, or in a step.
            ValueError: the name cannot be stored.
        """
        return patches.deprecate_patch(checked_id(name, "the patch's name"))

    @overload
    def recv(
        self, topic: str | None = None, *, timeout: Seconds = 60, as_: type[A]
    ) -> Coroutine[Any, Any, A | None]: ...
    @overload
    def recv(
        self, topic: str | None = None, *, timeout: Seconds = 60, as_: Any = ...
    ) -> Coroutine[Any, Any, Any | None]: ...
    def recv(
        self, topic: str | None = None, *, timeout: Seconds = 60, as_: Any = Any
    ) -> Coroutine[Any, Any, Any]:
        """The oldest message of a topic that this workflow has not received yet.

        It is received exactly once, by one call. One that does not fit `as_` is received, too.

        Args:
            topic: which messages; None for those that were sent without a topic.
            timeout: seconds to wait for one, from the first call on, whatever crashes in between;
                0 only looks. Then None.
            as_: its type; plain JSON values unless given.

        Raises:
            ConfigurationError: it is called outside of workflows, or in a step.
            SerializationError: the message does not fit `as_`, or is in a format that is not read
                here; the message says what to do.
            TypeError: an argument is of the wrong type.
            ValueError: the timeout is negative, or the topic cannot be stored.
        """
        kind = checked_kind(as_)
        return messages.recv(messages.checked_topic(topic), seconds_of(timeout), kind)

    def set_event(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Publish a value of this workflow under a key, for `get_event`; the latest one counts.

        In a workflow's own code it is a step, done exactly once. Within a step it is done at once,
        and again if the step runs again.

        Raises:
            ConfigurationError: it is called outside of workflows.
            SerializationError: the value cannot be stored, or is too large; it names the place.
            TypeError: the key is no str.
            ValueError: the key cannot be stored.
        """
        return events.set_event(checked_word(key, "the event's key"), value)

    @property
    def workflow_id(self) -> str | None:
        """The id of the workflow that runs this code; None outside workflows."""
        branch = current_branch()
        return None if branch is None else branch.execution.workflow_id

    @property
    def step_id(self) -> str | None:
        """The id of the step that runs this code; None outside steps."""
        branch = current_branch()
        return None if branch is None or branch.step is None else branch.step.key

    @property
    def attempt(self) -> int:
        """Which attempt of the step this is; the first is 1, also outside steps."""
        branch = current_branch()
        return 1 if branch is None or branch.step is None else branch.step.attempt

    @property
    def idempotency_key(self) -> str:
        """For outside services: the same over attempts and recoveries; outside, a fresh UUID."""
        branch = current_branch()
        if branch is None:
            return str(uuid.uuid4())
        workflow_id: str = branch.execution.workflow_id
        if branch.step is None:
            return workflow_id
        begun_by, key = branch.step.begun_by or (workflow_id, branch.step.key)
        return f"{begun_by}-{key}"

    @property
    def authenticated_user(self) -> str | None:
        """On whose behalf the workflow runs that runs this code; None if nobody said so."""
        return serving().user

    @property
    def authenticated_roles(self) -> tuple[str, ...]:
        """The roles of that user."""
        return serving().roles

    @property
    def assumed_role(self) -> str | None:
        """The one of them that the workflow requires; None if it requires none."""
        return serving().role

    @property
    def logger(self) -> structlog.stdlib.BoundLogger:
        """The library's logger with the ids bound; silent while a workflow is replayed."""
        branch = current_branch()
        if branch is None:
            return log
        if branch.execution.replaying and branch.step is None:
            return SILENT
        bound = log.bind(workflow_id=branch.execution.workflow_id)
        return bound if branch.step is None else bound.bind(step_id=branch.step.key)

    # Which app

    def add_limiter(self, limiter: Limiter) -> None:
        """Note a limiter that a step was given; `Limiter` says what for.

        Raises:
            ConfigurationError: another one of its name has other limits.
        """
        self._registry.add_limiter(limiter)

    def add_step(self, step: Step[..., Any]) -> None:
        """Note a step that is declared; one that is made while an app runs is ad hoc."""
        if self._is_open and all(app._is_open for app in self._apps):
            self._registry.add_step(step)

    def launched(self) -> Executor:
        """The executor of the one launched app that includes this router.

        Raises:
            NotLaunchedError: none is, or several are.
        """
        executor = self._own_session().executor
        assert executor is not None
        return executor

    def find_launched(self) -> Executor | None:
        """The executor of the one launched app that includes this router, if there is one."""
        launched = [app for app in self._apps if app.find_launched() is not None]
        return launched[0].find_launched() if len(launched) == 1 else None

    def _app(self) -> "App":
        launched = [app for app in self._apps if app.find_launched() is not None]
        if len(launched) == 1:
            return launched[0]
        if not launched:
            names = ", ".join(app.name for app in self._apps) or "none"
            raise errors.NotLaunchedError(
                f"this router needs one launched app that includes it; it is included by: {names}"
            )
        raise errors.NotLaunchedError(
            "this router is included by several launched apps, and which one is meant cannot be "
            f"told here: {', '.join(app.name for app in launched)}"
        )

    def _own_session(self) -> Session:
        return self._app()._own_session()

    def _decoder_of(self, name: str) -> Callable[[str], Any]:
        definition = self._registry.workflows.get(name)
        return super()._decoder_of(name) if definition is None else definition.decode


def entered(entrants: Iterable[E], branch: Branch | None) -> tuple[list[E], list[races.Entrant]]:
    """What is waited for, in an order that a replay finds again, and the same for the engine.

    Raises:
        ValueError: there is nothing.
        TypeError: there is something that cannot be waited for.
    """
    if isinstance(entrants, asyncio.Future | WorkflowHandle):
        raise TypeError(f"wait takes a list: write dbos.wait([{entrants!r}])")
    elements = list(entrants)
    if not elements:
        raise ValueError("wait was given nothing to wait for")
    if branch is not None and isinstance(entrants, set | frozenset):
        place = branch
        elements.sort(key=lambda element: races.rank(entrant_of(element), place))
    return elements, [entrant_of(element) for element in elements]


def entrant_of(element: object) -> races.Entrant:
    """A task or a workflow. Raises TypeError as `entered` does."""
    if isinstance(element, WorkflowHandle):
        return started_of(cast(WorkflowHandle[object], element))
    return races.checked_entrant(element)


async def parted(
    elements: Sequence[E], done: Coroutine[Any, Any, list[int]]
) -> tuple[set[E], set[E]]:
    """Those that are done, and the others."""
    places = set(await done)
    return (
        {element for place, element in enumerate(elements) if place in places},
        {element for place, element in enumerate(elements) if place not in places},
    )


def serving() -> Caller:
    """On whose behalf the workflow runs that runs this code; outside workflows, nobody's."""
    branch = current_branch()
    caller: Caller = NOBODY if branch is None else branch.execution.caller
    return caller


def checked_queue_name(name: object) -> str:
    """A name that a queue of a user may have.

    Raises:
        TypeError: it is no str.
        ValueError: it cannot be stored, or is the library's.
    """
    if checked_id(name, "the queue's name").startswith("_dbos_"):
        raise ValueError(f"names that begin with _dbos_ are the library's: {name!r}")
    return str(name)


def dropped(*_: Any) -> structlog.typing.EventDict:
    """Drop a log event."""
    raise structlog.DropEvent


SILENT: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger("dbos_async.replay"),
    processors=[dropped],
    wrapper_class=structlog.stdlib.BoundLogger,
)
"""Drops everything: what a workflow logs, it logs once."""
