"""Everything that can be done from outside a workflow, and recorded from within one."""

import asyncio
import inspect
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

from msgspec import structs

from dbos_async import errors
from dbos_async._config import Seconds, Settings, seconds_of
from dbos_async._debouncer import Debouncer
from dbos_async._engine.context import asking_branch, calling_branch
from dbos_async._engine.execution import Started
from dbos_async._engine.executor import Executor
from dbos_async._engine.functions import Call, Workflow
from dbos_async._engine.intake import Call as AnyCall
from dbos_async._engine.outbox import refuse_connection
from dbos_async._engine.outcomes import text_of
from dbos_async._engine.registry import Address, WorkflowDefinition
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded, within_workflow
from dbos_async._handle import WorkflowHandle, WorkflowStatus, fetched_status
from dbos_async._log import log
from dbos_async._management import Management
from dbos_async._messaging import Messaging
from dbos_async._pruning import Pruning
from dbos_async._queue import Queue, name_of
from dbos_async._schedules import Scheduling
from dbos_async._service import Host
from dbos_async._store import codec, listing, queues, workflows
from dbos_async._store.listing import Filter
from dbos_async._store.payloads import is_reference
from dbos_async._store.queues import limits_of
from dbos_async._store.records import QueueRow, WorkflowRow
from dbos_async._streaming import StreamReading
from dbos_async._versions import Versioning

if TYPE_CHECKING:
    from obstore.store import ObjectStore as PayloadStore

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class Inquirer:
    """What handles ask: the session in charge at the moment of asking."""

    def __init__(self, acting: Callable[[], Session]) -> None:
        self._acting = acting

    def result_of(
        self, started: Started, decode: Callable[[str], Any], timeout: Seconds | None
    ) -> Coroutine[Any, Any, Any]:
        """A workflow's result; within a workflow, recorded."""
        seconds = None if timeout is None else seconds_of(timeout)
        branch = calling_branch("get_result")
        if branch is not None and branch.step is None:
            self._acting()
            executor: Executor = branch.execution.executor
            return executor.inner.get_result(branch, started, decode, seconds)
        return self._result_of(started, decode, seconds)

    async def status_of(self, workflow_id: str) -> WorkflowStatus:
        """Where a workflow stands; within a workflow, recorded."""
        session = self._acting()
        chosen = Filter(workflow_ids=[workflow_id])
        is_within = within_workflow()

        async def fetch() -> list[WorkflowRow]:
            rows = await listing.fetch_workflows(session.database, chosen, limit=1)
            return [await session.payloads.inlined(row) for row in rows] if is_within else rows

        rows = await recorded("DBOS.getStatus", fetch, list[WorkflowRow])
        if not rows:
            raise errors.WorkflowNotFoundError(workflow_id)
        return await fetched_status(
            rows[0], session.payloads, allow_pickle=session.settings.allow_pickle
        )

    async def _result_of(
        self, started: Started, decode: Callable[[str], Any], seconds: float | None
    ) -> Any:
        session = self._acting()
        try:
            async with asyncio.timeout(seconds):
                outcome = await session.outcome_of(started)
        except TimeoutError:
            raise TimeoutError(
                f"workflow {started.workflow_id!r} has not ended within {seconds} s; it goes on"
            ) from None
        text = text_of(outcome, allow_pickle=session.settings.allow_pickle)
        if is_reference(text):
            return await session.payloads.value(text, outcome.workflow_id, decode)
        return decode(text)


class Verbs(Management, Messaging, Pruning, StreamReading, Versioning, Scheduling):
    """What can be done with workflows from anywhere."""

    def __init__(self) -> None:
        self._inquirer = Inquirer(self._acting)

    def stub(self, name: str, /) -> Workflow[..., Any]:
        """A workflow that this process does not define, to be enqueued by its registered name."""
        return Workflow(self, WorkflowDefinition(name, None))

    async def enqueue(
        self,
        queue: str | Queue,
        workflow: Workflow[P, T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> WorkflowHandle[T]:
        """Put a workflow on a queue, for whichever process of the app has room.

        In a `@dbos.transaction` function on the system database it commits with the transaction.

        Raises:
            QueueNotFoundError: there is no such queue; nothing was enqueued, as with all errors.
            TypeError: the arguments do not fit the function, or `connection` is none.
            ValueError: the options do not fit the queue, or each other.
            SerializationError: an argument cannot be stored.
            WorkflowConflictError: another workflow function has the id; choose another.
            NotAuthorizedError: its caller has no role that it requires; of a workflow that this
                process does not define, that shows when it is taken up.
            DeduplicatedError: a live workflow of the queue has the deduplication id.
            ConfigurationError: `connection` is given within a workflow, and not in a step; or a
                transaction on another database calls it.
        """
        check_workflow(workflow, "enqueue")
        return await self._enqueue(name_of(queue), workflow.bind(*args, **kwargs))

    async def enqueue_many(
        self,
        queue: str | Queue,
        calls: Iterable[Call[T]],
        /,
        *,
        connection: object = None,
    ) -> list[WorkflowHandle[T]]:
        """Put many workflows on a queue: all of them, or none. As `Queue.enqueue_many`."""
        asked = [call_of(call) for call in calls]
        session = self._acting()
        branch = asking_branch()
        if branch is not None and branch.step is None:
            refuse_connection([connection, *(call.options.get("connection") for call in asked)])
            executor: Executor = branch.execution.executor
            started = await executor.inner.enqueue_many(branch, asked, name_of(queue))
        else:
            started = await session.enqueue_many(asked, name_of(queue), connection)
        return [
            WorkflowHandle(self._inquirer, each, call.definition.decode)
            for each, call in zip(started, asked, strict=True)
        ]

    def _enqueue(self, queue_name: str, call: Call[T]) -> Coroutine[Any, Any, WorkflowHandle[T]]:
        asked = call_of(call)
        session = self._acting()
        branch = asking_branch()
        if branch is not None and branch.step is None:
            refuse_connection([asked.options.get("connection")])
            executor: Executor = branch.execution.executor
            started = executor.inner.start_child(branch, asked, queue_name)
        else:
            started = session.enqueue(asked, queue_name)
        return self._handled(started, asked)

    async def _handled(self, started: Awaitable[Started], call: AnyCall) -> WorkflowHandle[Any]:
        return WorkflowHandle(self._inquirer, await started, call.definition.decode)

    async def retrieve_workflow(self, workflow_id: str) -> WorkflowHandle[Any]:
        """A handle on a workflow that exists.

        Raises:
            WorkflowNotFoundError: it does not.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()

        async def find() -> str | None:
            found = await workflows.fetch_outcomes(session.database, [workflow_id])
            return found[0].name if found else None

        name = await recorded("DBOS.retrieveWorkflow", find, str | None)
        if name is None:
            raise errors.WorkflowNotFoundError(workflow_id)
        return WorkflowHandle(self._inquirer, Started(workflow_id), self._decoder_of(name))

    def debouncer(
        self,
        workflow: Workflow[P, T],
        /,
        *,
        period: Seconds,
        max_wait: Seconds | None = None,
        queue: str | Queue | None = None,
    ) -> Debouncer[P, T]:
        """Make bursts of calls one run: see `Debouncer.debounce`.

        Args:
            workflow: a workflow function or a stub; options such as `timeout` hold for its runs.
            period: seconds without another call of the same key after which it runs.
            max_wait: seconds after a key's first call at which it runs even so; None for ever.
            queue: where it runs, with that queue's limits; else wherever there is room.

        Raises:
            TypeError: it is no workflow function.
            ValueError: a duration is not above 0, or the workflow has an option that the debouncer
                itself decides.
        """
        check_workflow(workflow, "debouncer")
        return Debouncer(
            self._inquirer,
            self._acting,
            workflow,
            period=period,
            max_wait=max_wait,
            queue_name=queues.INTERNAL_QUEUE if queue is None else name_of(queue),
        )

    async def list_queues(self) -> list[Queue]:
        """The queues that the database has, of this app and of no app, by name.

        Raises:
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()
        rows = await recorded("DBOS.listQueues", session.queues, list[QueueRow])
        return [self._queue_of(row) for row in rows]

    async def retrieve_queue(self, name: str) -> Queue:
        """A queue with its limits as they are now.

        Raises:
            QueueNotFoundError: there is none of this name.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()
        rows = await recorded("DBOS.retrieveQueue", lambda: session.queues(name), list[QueueRow])
        if not rows:
            raise errors.QueueNotFoundError(f"there is no queue named {name!r}")
        return self._queue_of(rows[0])

    def _queue_of(self, row: QueueRow) -> Queue:
        return Queue(self, self._acting, row.name, limits_of(row), is_paused=bool(row.is_paused))

    def launched(self) -> Executor:
        """The executor that direct calls run on.

        Raises:
            NotLaunchedError: there is none here; enqueue instead.
        """
        raise errors.NotLaunchedError(
            "a client runs no workflows: enqueue them for an app's processes"
        )

    def find_launched(self) -> Executor | None:
        """The executor, if there is one."""
        return None

    def _acting(self) -> Session:
        """The session of the workflow that asks, else this app's or client's own."""
        branch = asking_branch()
        if branch is None:
            return self._own_session()
        session: Session = branch.execution.executor.session
        session.check_loop()
        return session

    def _own_session(self) -> Session:
        raise NotImplementedError

    def _decoder_of(self, name: str) -> Callable[[str], Any]:
        return codec.decode


class Client(Verbs):
    """Enqueues, lists and manages workflows from a process that runs none.

    Args:
        database_url: the app's system database; else $DBOS_SYSTEM_DATABASE_URL.
        payload_store: the app's payload store, for large inputs and results; see `DBOS`.
        payload_threshold: bytes of JSON above which an input is large.
        listen_url: a way to the database past a pooler in transaction mode; else $DBOS_LISTEN_URL.
            Without one, news is looked for every second there.
    """

    launched_here: ClassVar["weakref.WeakSet[Client]"] = weakref.WeakSet()
    """Every app and client of this process, for `dbos_async.testing.crash_at` alone."""

    def __init__(
        self,
        database_url: str | None = None,
        *,
        payload_store: "str | PayloadStore | None" = None,
        payload_threshold: int = 256 * 1024,
        listen_url: str | None = None,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            name="client",
            database_url=database_url,
            payload_store=payload_store,
            payload_threshold=payload_threshold,
            listen_url=listen_url,
        )
        self._session: Session | None = None
        self._host: Host[Session] | None = None

    def drop(self, why: BaseException) -> None:
        """Let go of everything as if the process had died; who waits gets `why`. For tests."""
        session, self._session = self._session, None
        if session is not None and self._host is not None and not self._host.is_over:
            session.drop(why)
            self._host.drop()

    async def __aenter__(self) -> Self:
        settings = self._settings.resolved()
        if settings.database_url is None:
            raise errors.ConfigurationError(
                "a client needs the URL of the app's system database: Client(url), or set "
                "DBOS_SYSTEM_DATABASE_URL"
            )
        await self._launch(self._opened(settings))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._close()

    @asynccontextmanager
    async def _opened(self, settings: Settings) -> AsyncIterator[Session]:
        # Its rows name no app and no version: whichever has the workflow and the queue takes them,
        # at its newest version.
        settings = structs.replace(settings, app_version=None)
        async with Session(settings, function_address, application=None).open() as session:
            yield session

    async def _launch(self, context: AbstractAsyncContextManager[Session]) -> None:
        Client.launched_here.add(self)
        self._host = Host(crashed)
        try:
            self._session = await self._host.open(context)
        except errors.DBOSError as exc:
            self._host = None
            raise exc.with_traceback(None) from None  # the sentence says it; our insides do not
        except BaseException:
            self._host = None
            raise

    async def _close(self) -> None:
        host, self._host = self._host, None
        try:
            if host is not None:
                await host.close()
        finally:
            self._session = None

    def _acting(self) -> Session:
        """The session of the workflow that asks, unless this one is open on another database.

        Raises:
            ConfigurationError: it is, and is not called in a step: it could not be recorded.
        """
        acting = super()._acting()
        own = self._session
        if own is None or own.database.url == acting.database.url:
            return acting
        branch = asking_branch()
        if branch is not None and branch.step is None:
            raise errors.ConfigurationError(
                f"workflow {branch.execution.workflow_id} uses an app or client of another "
                "database, where nothing can be recorded together with it: do that in a step"
            )
        return self._own_session()

    def _own_session(self) -> Session:
        if self._session is None:
            raise errors.NotLaunchedError(
                "the client is not open: `async with Client(url) as client:`"
            )
        self._session.check_loop()
        return self._session


def function_address(definition: WorkflowDefinition, instance: object | None) -> Address:
    """How rows name a workflow that this process does not define."""
    return Address(definition.name, "", "")


def check_workflow(given: object, verb: str) -> None:
    """Refuse what is no workflow.

    Raises:
        TypeError: it is something else, such as a workflow's call.
    """
    if isinstance(given, Workflow):
        return
    if inspect.iscoroutine(given):
        given.close()  # or Python complains that it was never awaited
    raise TypeError(
        f"{verb} takes the workflow and its arguments, as in {verb}(checkout, 'o-1'), not {given!r}"
    )


def call_of(call: Call[Any]) -> AnyCall:
    """What a bound workflow holds."""
    if not isinstance(call, Call):
        raise TypeError(f"enqueue_many takes workflow.bind(…) calls, not {call!r}")
    return call.asked


def crashed(error: BaseException) -> None:
    """A service of ours failed, which is a bug: say so loudly."""
    log.critical("dbos_async stopped working", error=repr(error), exc_info=error)
