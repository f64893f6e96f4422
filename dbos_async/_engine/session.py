"""What a launched app or client holds: one database, and what speaks to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from dbos_async import errors
from dbos_async._config import OWN_CONNECTIONS, Settings
from dbos_async._engine.bulk import Bulk
from dbos_async._engine.catalog import Catalog
from dbos_async._engine.execution import Started
from dbos_async._engine.executor import Executor
from dbos_async._engine.intake import Call, Intake
from dbos_async._engine.outbox import connection_for
from dbos_async._engine.outcomes import find_ended
from dbos_async._engine.readers import Readers
from dbos_async._engine.registry import Address, WorkflowDefinition
from dbos_async._engine.wakers import Wakers
from dbos_async._store import (
    enqueues,
    events,
    management,
    messages,
    notifier,
    queues,
    schema,
    workflows,
)
from dbos_async._store.borrowed import check_kind
from dbos_async._store.checkpointer import Checkpointer
from dbos_async._store.clock import Clock
from dbos_async._store.database import Database, explained, translated
from dbos_async._store.events import Event, Watcher, find_events
from dbos_async._store.messages import Receiver, find_unread
from dbos_async._store.notifier import Notifier
from dbos_async._store.payloads import Payloads
from dbos_async._store.records import ALIVE, Outcome, QueueRow, Standing, Status

LOOK_INTERVAL: Final = 1.0
"""Seconds between the leader's looks at what is due and who is dead, unless it hears of something
that is due sooner."""


class Session:
    """The open parts, wired to each other; an app adds an executor."""

    def __init__(
        self,
        settings: Settings,
        address_of: Callable[[WorkflowDefinition, object | None], Address],
        *,
        application: str | None,
    ) -> None:
        self.settings = settings
        self.application = application
        self.clock = Clock()
        self.database = Database(settings, pool_size=settings.max_connections - OWN_CONNECTIONS)
        self.payloads = Payloads(self.database, settings.payload_store, settings.payload_threshold)
        self.checkpointer = Checkpointer(self.database, application=application)
        self.outcomes: Wakers[str, Outcome] = Wakers(
            self.database, partial(find_ended, self.database), str, "outcomes"
        )
        self.readers = Readers(self.database, self.clock, allow_pickle=settings.allow_pickle)
        self.messages: Wakers[Receiver, Receiver] = Wakers(
            self.database, partial(find_unread, self.database), messages.word_of, "messages"
        )
        self.events: Wakers[Watcher, Event] = Wakers(
            self.database, partial(find_events, self.database), events.word_of, "events"
        )
        self.notifier = Notifier(
            self.database,
            self.clock,
            recheck_interval=settings.recheck_interval,
            on_news=self._news,
            on_recheck=self._recheck,
        )
        self.intake = Intake(settings, self.clock, self.payloads, address_of)
        self.catalog = Catalog(self._every_queue, accepts_any=application is None)
        self.executor: Executor | None = None
        self.homes: set[object] = set()
        """Datasources whose database is this one."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_drop: Callable[[], None] = lambda: None
        """Called when everything is dropped. For tests."""
        self.on_news: dict[str, list[Callable[[list[str]], None]]] = {
            notifier.ENDED: [self.outcomes.news, self.readers.ended],
            notifier.QUEUED: [],
            notifier.CONFIGURED: [lambda _: self.catalog.forget()],
            notifier.DELAYED: [],
            notifier.PERMITS: [],
            notifier.SCHEDULES: [],
            notifier.DEAD: [],
            notifier.STREAMED: [self.readers.news],
            notifier.MESSAGES: [self.messages.news],
            notifier.EVENTS: [self.events.news],
        }
        self.on_recheck: list[Callable[[], None]] = [
            self.outcomes.recheck,
            self.readers.recheck,
            self.messages.recheck,
            self.events.recheck,
            self.catalog.forget,
        ]

    @asynccontextmanager
    async def open(self, *, migrate: bool | None = None) -> AsyncIterator["Session"]:
        """Connect for the length of the block.

        Args:
            migrate: install the schema, or only verify it; None only asks whether it is there.

        Raises:
            ConfigurationError: the database cannot be used; the message says what to change.
            DatabaseLostError: the server cannot be reached.
        """
        self.payloads.open()
        async with AsyncExitStack() as stack:
            await self._prepare_schema(migrate=migrate)
            await stack.enter_async_context(self.database.open())
            await stack.enter_async_context(self.checkpointer.open())
            await stack.enter_async_context(self.notifier.open())
            for wakers in (self.outcomes, self.messages, self.events, self.readers):
                await stack.enter_async_context(wakers.open())
            self._loop = asyncio.get_running_loop()
            yield self

    def check_loop(self) -> None:
        """Refuse to work for another event loop than the one that this was opened on.

        Raises:
            ConfigurationError: that is who calls.
        """
        try:
            calling = asyncio.get_running_loop()
        except RuntimeError:  # no loop at all
            return
        if self._loop is not None and calling is not self._loop:
            raise errors.ConfigurationError(
                "this app or client was opened on another event loop: await it there, as with "
                "asyncio.run_coroutine_threadsafe(…, loop), or open one for each loop"
            )

    @asynccontextmanager
    async def open_to_read(self) -> AsyncIterator["Session"]:
        """Only lend connections for the length of the block. Raises as `open` does."""
        self.payloads.open()
        await self._prepare_schema(migrate=None)
        async with self.database.open():
            yield self

    async def enqueue(self, call: Call, queue_name: str) -> Started:
        """Put a workflow on a queue.

        Raises:
            QueueNotFoundError: there is no such queue.
            ValueError: the call's options do not fit the queue, or each other.
            Exception: as `Executor.start` does.
        """
        connection = connection_for(self, call.options.get("connection"), "enqueue")
        if connection is not None:
            [started] = await self.enqueue_many([call], queue_name, connection)
            return started
        flaw = await self.catalog.flaw_in(queue_name, [call.options])
        if flaw is not None:
            raise flaw
        try:
            return await self._enqueue(call, queue_name)
        except errors.DeduplicatedError as exc:
            if (
                call.options.get("duplication_policy") != "return_existing"
                or exc.workflow_id is None
            ):
                raise
            return Started(exc.workflow_id, is_queued=True)

    async def enqueue_many(
        self, calls: Sequence[Call], queue_name: str, connection: object = None
    ) -> list[Started]:
        """Put workflows on a queue: all, or none; on the user's connection, with its transaction.

        Raises as `enqueue` does.
        """
        connection = connection_for(self, one_connection(calls, connection), "enqueue_many")
        flaw = await self.catalog.flaw_in(queue_name, [call.options for call in calls])
        if flaw is not None:
            raise flaw
        large = await self.intake.keep_large(calls, lambda _: self.intake.new_id())
        bulk = Bulk(self.intake, calls, queue_name, large=large)
        rows = enqueues.Rows(bulk, bulk.attaching)
        if connection is not None:  # once it commits, a trigger tells everybody
            holders = await enqueues.enqueue_on(connection, rows, self.application)
        else:
            holders = await enqueues.enqueue(self.database, rows, len(calls), self.application)
            self.tell(notifier.QUEUED, queue_name)
            self.tell_due(queue_name, bulk.due_ms)
        return [Started(holders.get(i, i), is_queued=True) for i in bulk.ids]

    async def _enqueue(self, call: Call, queue_name: str) -> Started:
        if self.executor is not None:
            return await self.executor.enqueue(call, queue_name)
        write = (await self.intake.kept_order_of(call, queue_name)).write
        if await self.checkpointer.commit(write) is None:
            self.tell(notifier.QUEUED, queue_name)
            self.tell_due(queue_name, write.delay_until_ms)
        else:
            await self.payloads.discard(write.inputs, write.workflow_id)
        return Started(write.workflow_id)

    async def queues(self, name: str | None = None) -> list[QueueRow]:
        """The queue of this name, or all that this app may know."""
        as_of = self.catalog.changes
        rows = await queues.fetch(self.database, name, self.application)
        if name is None:
            self.catalog.learn(rows, as_of=as_of)
        return rows

    async def _every_queue(self) -> list[QueueRow]:
        return await self.database.patiently(
            lambda: queues.fetch(self.database, None, self.application)
        )

    def tell(self, channel: str, word: str) -> None:
        """Tell everybody, this process too."""
        self.notifier.post(channel, word)
        self._news(channel, [word])

    def tell_due(self, queue_name: str, due_ms: int | None) -> None:
        """A workflow of this queue comes due at this moment; the next look for such may be late."""
        if due_ms is not None and due_ms < self.clock.now_ms() + LOOK_INTERVAL * 1000:
            self.tell(notifier.DELAYED, queue_name)

    async def outcome_of(self, started: Started) -> Outcome:
        """How a workflow ended, once it has."""
        if self.executor is not None:
            return await self.executor.result_of(started)
        return await self.outcomes.wait(started.workflow_id)

    async def cancel(self, workflow_ids: list[str], *, children: bool) -> list[str]:
        """Cancel workflows; the ids of those that had not ended."""
        if self.executor is not None:
            return await self.executor.cancel(workflow_ids, children=children)
        cancelled = await workflows.cancel(self.database, workflow_ids, children=children)
        for workflow_id in cancelled:
            self.notifier.post(notifier.ENDED, workflow_id)
        self.outcomes.news(cancelled)
        self.readers.ended(cancelled)
        return cancelled

    async def standing_of(self, workflow_id: str) -> tuple[str, Status]:
        """A workflow's registered name, and the state that it is in.

        Raises:
            WorkflowNotFoundError: there is none.
        """
        found = await self.database.patiently(
            lambda: workflows.fetch_outcomes(self.database, [workflow_id])
        )
        if not found:
            raise errors.WorkflowNotFoundError(workflow_id)
        return found[0].name, found[0].status

    async def resume(
        self,
        workflow_ids: Sequence[str],
        statuses: Sequence[Status],
        queue_name: str,
        app_version: str | None,
    ) -> list[str]:
        """Enqueue workflows again that are in one of these states; the ids of those that were.

        Raises:
            QueueNotFoundError: there is no such queue.
        """
        await self.check_queue(queue_name)
        resumed = await management.resume(
            self.database, workflow_ids, statuses, queue_name=queue_name, app_version=app_version
        )
        self._tell_taken(resumed)
        if resumed:
            self.tell_queued(queue_name)
        return [workflow.workflow_id for workflow in resumed]

    async def delete(
        self, workflow_ids: Sequence[str], statuses: Sequence[str] | None, *, children: bool
    ) -> list[str]:
        """Delete workflows that are in one of these states; the ids of all that were deleted."""
        deleted = await management.delete(self.database, workflow_ids, statuses, children=children)
        self._tell_taken(deleted)
        ids = [workflow.workflow_id for workflow in deleted]
        await self.payloads.forget(ids)
        return ids

    async def check_queue(self, queue_name: str) -> None:
        """Refuse a queue that does not exist.

        Raises:
            QueueNotFoundError: it is such a one.
        """
        flaw = await self.catalog.flaw_in(queue_name, [])
        if flaw is not None:
            raise flaw

    def tell_queued(self, queue_name: str) -> None:
        """This queue has something to claim."""
        self.tell(notifier.QUEUED, queue_name)

    def _tell_taken(self, changed: Sequence[Standing]) -> None:
        """Stop what ran until it was changed, here and elsewhere; who awaits it looks again."""
        for workflow in changed:
            if workflow.status in ALIVE:
                self.tell(notifier.ENDED, workflow.workflow_id)

    def drop(self, why: BaseException) -> None:
        """Record nothing more from now on, and tell whoever waits. For tests."""
        if self.executor is not None:
            self.executor.drop(why)
        self.checkpointer.drop(why)
        for wakers in (self.outcomes, self.messages, self.events, self.readers):
            wakers.drop(why)
        self.database.drop()
        self.on_drop()

    async def _prepare_schema(self, *, migrate: bool | None) -> None:
        await self.database.look()
        with explained(self.database.url):
            connection = await self.database.dial("schema", direct=True)
        try:
            with translated():
                await schema.check_server(connection)
                if migrate is True:
                    await schema.install(connection)
                elif migrate is False:
                    await schema.verify(connection)
                else:
                    await schema.check_installed(connection)
        finally:
            connection.terminate()

    def _news(self, channel: str, words: list[str]) -> None:
        for hear in self.on_news[channel]:
            hear(words)

    def _recheck(self) -> None:
        for look in self.on_recheck:
            look()


def one_connection(calls: Sequence[Call], connection: object) -> object:
    """The user's connection to enqueue on, or None.

    Raises:
        TypeError: it is of a kind that is not known here.
        ValueError: the calls name another, and one transaction cannot be on two.
    """
    for call in calls:
        given = call.options.get("connection")
        if given is None or given is connection:
            continue
        if connection is not None:
            raise ValueError(
                "the calls name different connections: enqueue those of each by themselves"
            )
        connection = given
    if connection is not None:
        check_kind(connection)
    return connection
