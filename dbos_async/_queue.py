"""Queue: what its methods do is done by the session in charge."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec, Protocol, TypedDict, TypeVar, Unpack

from dbos_async._engine.functions import Call, Workflow
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded
from dbos_async._handle import WorkflowHandle
from dbos_async._limits import Limits, RateLimit
from dbos_async._store import notifier, queues

P = ParamSpec("P")
T = TypeVar("T")


class QueueLimits(TypedDict, total=False):
    """The limits that `Queue.update` may change; None takes one away."""

    concurrency: int | None
    worker_concurrency: int | None
    rate_limit: RateLimit | None
    worker_rate_limit: RateLimit | None
    partition_concurrency: int | None
    partition_worker_concurrency: int | None
    partition_rate_limit: RateLimit | None


class Enqueuer(Protocol):
    """The app or client that a queue belongs to."""

    def enqueue(
        self,
        queue: "Queue",
        workflow: Workflow[P, T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, WorkflowHandle[T]]:
        """Put one workflow on the queue."""
        ...

    def enqueue_many(
        self, queue: "Queue", calls: Iterable[Call[T]], /, *, connection: object = None
    ) -> Coroutine[Any, Any, list[WorkflowHandle[T]]]:
        """Put many workflows on the queue."""
        ...


class Queue:
    """A durable queue; any process of the app puts work on it and takes work off it.

    Its limits are those that were declared or retrieved, and what `update` made of them since; they
    are not read again by themselves.
    """

    def __init__(
        self,
        enqueuer: Enqueuer,
        session: Callable[[], Session],
        name: str,
        limits: Limits,
        *,
        is_paused: bool = False,
    ) -> None:
        self.name = name
        self.limits = limits
        self.is_paused = is_paused
        self._enqueuer = enqueuer
        self._session = session

    @property
    def concurrency(self) -> int | None:
        """How many run at a time, over all processes."""
        return self.limits.concurrency

    @property
    def worker_concurrency(self) -> int | None:
        """How many run at a time, in each process."""
        return self.limits.worker_concurrency

    @property
    def rate_limit(self) -> RateLimit | None:
        """How many start within a period, over all processes."""
        return self.limits.rate_limit

    @property
    def worker_rate_limit(self) -> RateLimit | None:
        """How many start within a period, in each process."""
        return self.limits.worker_rate_limit

    @property
    def partition_concurrency(self) -> int | None:
        """How many run at a time, for each partition key."""
        return self.limits.partition_concurrency

    @property
    def partition_worker_concurrency(self) -> int | None:
        """The same, in each process."""
        return self.limits.partition_worker_concurrency

    @property
    def partition_rate_limit(self) -> RateLimit | None:
        """How many start within a period, for each partition key."""
        return self.limits.partition_rate_limit

    async def enqueue(
        self, workflow: Workflow[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[T]:
        """Put a workflow on this queue. Raises as `DBOS.enqueue` does."""
        return await self._enqueuer.enqueue(self, workflow, *args, **kwargs)

    async def enqueue_many(
        self, calls: Iterable[Call[T]], /, *, connection: object = None
    ) -> list[WorkflowHandle[T]]:
        """Put many workflows on this queue: all of them, or none if this raises.

        Args:
            calls: `workflow.bind(…)` calls, each with its own options.
            connection: an asyncpg connection, or SQLAlchemy's AsyncConnection or AsyncSession: all
                are enqueued when its transaction commits.

        Returns:
            Their handles, in order.

        Raises:
            DeduplicatedError: a live workflow of the queue has the deduplication id of one.
            ValueError, TypeError, SerializationError: as `DBOS.enqueue` does, for any of them.
        """
        return await self._enqueuer.enqueue_many(self, calls, connection=connection)

    async def depth(self) -> int:
        """How many workflows wait to be taken: ENQUEUED, neither delayed nor running.

        Raises:
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        database = self._session().database
        return await recorded("DBOS.queueDepth", lambda: queues.depth(database, self.name), int)

    async def pause(self) -> None:
        """Let no process take anything more; what runs goes on, and enqueues are still accepted.

        What is enqueued after this returns is not taken; a claim that travels meanwhile may still
        bring what waited before.

        It holds over restarts and deploys, until `resume`.

        Raises:
            QueueNotFoundError: the database has no such queue; it was deleted, or never launched.
        """
        await self._set_paused(is_paused=True)

    async def resume(self) -> None:
        """Let the processes take workflows again. Raises as `pause` does."""
        await self._set_paused(is_paused=False)

    async def update(self, **changes: Unpack[QueueLimits]) -> None:
        """Change limits at run time: all processes follow within a second, without a restart.

        A launch of the app's newest version makes the limits those of its code again, unless the
        queue is declared with `on_conflict="never_update"`.

        Raises:
            TypeError, ValueError: as `dbos.queue` does, of the limits as they would be.
            QueueNotFoundError: the database has no such queue; it was deleted, or never launched.
        """
        session = self._session()
        Limits().changed(dict(changes))  # what is wrong by itself is refused without asking

        async def update() -> Limits:
            limits = await queues.update(
                session.database,
                self.name,
                lambda before: before.changed(dict(changes)),
                session.application,
            )
            session.tell(notifier.CONFIGURED, self.name)
            return limits

        limits = await recorded("DBOS.updateQueue", update, Limits)
        self.limits = limits

    async def delete(self) -> None:
        """Remove the queue: nobody takes anything off it any more.

        What waits on it stays ENQUEUED, in sight, until a queue of this name is declared again;
        cancel it if it should not run then. The next launch of an app that declares it brings it
        back.

        Raises:
            QueueNotFoundError: there is none of this name.
        """
        session = self._session()

        async def delete() -> None:
            await queues.delete(session.database, self.name, session.application)
            session.tell(notifier.CONFIGURED, self.name)

        await recorded("DBOS.deleteQueue", delete, None)

    def __repr__(self) -> str:
        return f"<queue {self.name}{' (paused)' if self.is_paused else ''}>"

    async def _set_paused(self, *, is_paused: bool) -> None:
        session = self._session()

        async def change() -> None:
            await queues.pause(
                session.database, self.name, session.application, is_paused=is_paused
            )
            session.tell(notifier.CONFIGURED, self.name)
            if not is_paused:  # also for who never heard of the pause
                session.tell(notifier.QUEUED, self.name)

        await recorded("DBOS.pauseQueue" if is_paused else "DBOS.resumeQueue", change, None)
        self.is_paused = is_paused


def name_of(queue: object) -> str:
    """A queue's name.

    Raises:
        TypeError: it is neither a queue nor a name.
    """
    if isinstance(queue, Queue):
        return queue.name
    if not isinstance(queue, str):
        raise TypeError(f"a queue is a Queue or its name, not {queue!r}")
    return queue
