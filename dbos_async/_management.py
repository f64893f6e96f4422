"""Changing the course of workflows, from anywhere.

    alive ─▶ cancelled ─▶ resumed      ended ─▶ rewound      any ─▶ forked, deleted, exported

Within a workflow each of these is a step, done once and recorded. The plural verbs take the filter
of `list_workflows`; an empty one is refused, because it would mean everything.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, Unpack

from msgspec import Struct

from dbos_async import errors
from dbos_async._config import Seconds, seconds_of
from dbos_async._engine.context import asking_branch
from dbos_async._engine.execution import Started
from dbos_async._engine.options import written_attributes
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded
from dbos_async._handle import (
    Inquiry,
    WorkflowHandle,
)
from dbos_async._limits import checked_id
from dbos_async._listing import Listing, WorkflowFilter
from dbos_async._queue import Queue, name_of
from dbos_async._store import exports, listing, management, queues
from dbos_async._store.clock import milliseconds_of
from dbos_async._store.listing import Filter
from dbos_async._store.management import Cut, Fork
from dbos_async._store.records import (
    ALIVE,
    RESUMABLE,
    STOPPED,
)

FAMILIES: Final = 50
"""Workflows that are deleted in one transaction when each may have any number of children."""


class Forked(Struct, frozen=True):
    """A workflow that was made of another, or begun again."""

    workflow_id: str
    name: str


class Management(Listing):
    """The verbs that change the course of workflows, and those that look at them."""

    _inquirer: Inquiry

    async def cancel_workflow(self, workflow_id: str, *, cancel_children: bool = False) -> None:
        """Cancel a workflow, wherever it is; one that has ended is left as it is.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        session = self._acting()

        async def cancel() -> list[str]:
            await session.standing_of(workflow_id)
            return await session.cancel([workflow_id], children=cancel_children)

        await recorded("DBOS.cancelWorkflow", cancel, list[str])

    async def cancel_workflows(
        self, *, dry_run: bool = False, **filter: Unpack[WorkflowFilter]
    ) -> list[str]:
        """Cancel all workflows that fit the filter; their ids. `dry_run` only tells them.

        Raises:
            TypeError: there is no such filter, or a value is of the wrong type.
            ValueError: the filter is empty, and so would mean everything.
        """
        session = self._acting()
        chosen = checked(Filter(**filter), "cancel").within(ALIVE)
        return await recorded(
            "DBOS.cancelWorkflow",
            lambda: in_batches(
                session, chosen, lambda ids: session.cancel(ids, children=False), dry_run=dry_run
            ),
            list[str],
        )

    async def resume_workflow(
        self,
        workflow_id: str,
        *,
        queue: str | Queue | None = None,
        app_version: str | None = None,
    ) -> WorkflowHandle[Any]:
        """Let a workflow go on from its last recorded step, at once, wherever there is room.

        One that was cancelled, is a dead letter (MAX_RECOVERY_ATTEMPTS_EXCEEDED), or waits on a
        queue or for its time. One that is PENDING is taken from the process that has it: what that
        is doing stops, and the step in flight runs again. It has all its recovery attempts again,
        and no deadline; a timeout that it was enqueued with begins anew.

        Args:
            workflow_id: which one.
            queue: where it goes on, with that queue's limits; else wherever there is room.
            app_version: which version of the code goes on; the one that it was of unless given.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            ValueError: it has ended with SUCCESS or ERROR: rewind or fork it; or it was cancelled
                and what its sagas had done was undone: fork it.
            QueueNotFoundError: there is no such queue.
        """
        session = self._acting()
        queue_name = checked_destination(queue, app_version)

        async def resume() -> str:
            name, status = await session.standing_of(workflow_id)
            resumed = status in RESUMABLE and await session.resume(
                [workflow_id], RESUMABLE, queue_name, app_version
            )
            if not resumed:
                name, status = await session.standing_of(workflow_id)
                if status == "CANCELLED":
                    raise ValueError(management.compensated(workflow_id))
                raise ValueError(
                    f"workflow {workflow_id!r} has ended with {status}, so there is nothing to "
                    "resume: rewind_workflow runs it again, fork_workflow makes another of it"
                )
            return name

        name = await recorded("DBOS.resumeWorkflow", resume, str)
        return self._handle(workflow_id, name)

    async def resume_workflows(
        self, *, dry_run: bool = False, **filter: Unpack[WorkflowFilter]
    ) -> list[str]:
        """Resume all workflows that fit the filter and have stopped; their ids.

        Stopped are those that were cancelled and the dead letters. Others are resumed only if the
        filter's `status` names their state; those that ended with SUCCESS or ERROR never.

        Args:
            dry_run: only tell which.
            **filter: see `WorkflowFilter`; an empty one is refused.

        Raises:
            TypeError: there is no such filter, or a value is of the wrong type.
            ValueError: the filter is empty, and so would mean everything.
        """
        session = self._acting()
        chosen = checked(Filter(**filter), "resume")
        statuses = STOPPED if chosen.status is None else RESUMABLE
        chosen = chosen.within(statuses)

        async def resume(ids: list[str]) -> list[str]:
            asked: Any = chosen.texts("status")
            return await session.resume(ids, asked, queues.INTERNAL_QUEUE, None)

        return await recorded(
            "DBOS.resumeWorkflow",
            lambda: in_batches(session, chosen, resume, dry_run=dry_run),
            list[str],
        )

    async def fork_workflow(
        self,
        workflow_id: str,
        from_step: int | str = 1,
        *,
        from_last_failure: bool = False,
        new_workflow_id: str | None = None,
        app_version: str | None = None,
        queue: str | Queue | None = None,
        timeout: Seconds | None = None,
    ) -> WorkflowHandle[Any]:
        """Run a workflow anew under another id, from one of its steps on.

        The steps before that one are copied, so they do not run again; so are the events and stream
        values that they wrote, but no messages. The source may be in any state and is left alone.
        Of concurrent branches, what was called before that step is copied, whichever branch it is
        of, and what was called after it runs again.

        Args:
            workflow_id: the source.
            from_step: the position of the first step to run again, or its name, of which the last
                occurrence counts; the position after the last keeps them all.
            from_last_failure: instead, the last step that failed, or the last if none did. Where
                that awaited a child, the step that started the child.
            new_workflow_id: the fork's; a new one unless given. A fork of the same source that has
                it already is not made again.
            app_version: which version of the code runs it; the newest unless given.
            queue: where it runs, with that queue's limits; else wherever there is room.
            timeout: seconds from its start until it is cancelled; None for no limit, whatever the
                source had.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            ValueError: it has no such step; the message says which there are.
            WorkflowConflictError: another workflow has the new id.
            QueueNotFoundError: there is no such queue.
        """
        session = self._acting()
        cut = Cut(from_step, from_last_failure)
        queue_name = checked_destination(queue, app_version)
        if new_workflow_id is not None:
            checked_id(new_workflow_id, "new_workflow_id")
        timeout_ms = None if timeout is None else int(seconds_of(timeout) * 1000)
        own_id = id_maker(session)

        async def fork() -> Forked:
            await session.standing_of(workflow_id)
            await session.check_queue(queue_name)
            position = await management.find_cut(session.database, workflow_id, cut)
            made = Fork(
                workflow_id,
                new_workflow_id or own_id(),
                position,
                app_version,
                queue_name,
                timeout_ms,
            )
            name = await management.fork(session.database, made)
            session.tell_queued(queue_name)
            return Forked(made.workflow_id, name)

        forked = await recorded("DBOS.forkWorkflow", fork, Forked)
        return self._handle(forked.workflow_id, forked.name)

    async def rewind_workflow(
        self,
        workflow_id: str,
        from_step: int | str = 1,
        *,
        from_last_failure: bool = False,
        app_version: str | None = None,
        queue: str | Queue | None = None,
    ) -> WorkflowHandle[Any]:
        """Run a workflow that has ended again, under its own id, from one of its steps on.

        That step and all after it are forgotten, with its outcome; events are as they were before;
        messages that were received since then, or not at all, are deleted; stream values stay. A
        child that a forgotten step started is there still, so the step finds it again: delete the
        child first if it is to run again, too.

        Args:
            workflow_id: which one.
            from_step: the position of the first step to run again, or its name, of which the last
                occurrence counts.
            from_last_failure: instead, the last step that failed, or the last if none did.
            app_version: which version of the code runs it; the one that it was of unless given.
            queue: where it runs, with that queue's limits; else wherever there is room.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            ValueError: it has not ended, has no such step, or was cancelled and what its sagas had
                done was undone; the message says what to do.
            QueueNotFoundError: there is no such queue.
        """
        session = self._acting()
        cut = Cut(from_step, from_last_failure)
        queue_name = checked_destination(queue, app_version)

        async def rewind() -> str:
            name, _ = await session.standing_of(workflow_id)
            await session.check_queue(queue_name)
            await management.rewind(
                session.database, workflow_id, cut, queue_name=queue_name, app_version=app_version
            )
            session.tell_queued(queue_name)
            return name

        name = await recorded("DBOS.rewindWorkflow", rewind, str)
        return self._handle(workflow_id, name)

    async def delete_workflow(self, workflow_id: str, *, delete_children: bool = False) -> None:
        """Delete a workflow in whatever state, with its steps, events, streams and messages.

        One that runs is stopped first, as a cancelled one is; who awaits it gets a
        WorkflowNotFoundError.

        Args:
            workflow_id: which one.
            delete_children: also delete everything that it started, directly or not.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        session = self._acting()

        async def delete() -> list[str]:
            await session.standing_of(workflow_id)
            return await session.delete([workflow_id], None, children=delete_children)

        await recorded("DBOS.deleteWorkflow", delete, list[str])

    async def delete_workflows(
        self,
        *,
        dry_run: bool = False,
        delete_children: bool = False,
        **filter: Unpack[WorkflowFilter],
    ) -> list[str]:
        """Delete all workflows that fit the filter; the ids of all that were deleted.

        Args:
            dry_run: only tell which.
            delete_children: also delete everything that they started, whether it fits or not.
            **filter: see `WorkflowFilter`; an empty one is refused.

        Raises:
            TypeError: there is no such filter, or a value is of the wrong type.
            ValueError: the filter is empty, and so would mean everything.
        """
        session = self._acting()
        chosen = checked(Filter(**filter), "delete")
        statuses = chosen.states

        async def delete(ids: list[str]) -> list[str]:
            size = FAMILIES if delete_children else len(ids)
            deleted: list[str] = []
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                deleted += await session.delete(part, statuses, children=delete_children)
            return deleted

        async def would_delete(ids: list[str]) -> list[str]:
            return await management.find_family(session.database, ids) if delete_children else ids

        return await recorded(
            "DBOS.deleteWorkflow",
            lambda: in_batches(session, chosen, would_delete if dry_run else delete),
            list[str],
        )

    async def set_workflow_delay(self, workflow_id: str, delay: Seconds | datetime) -> None:
        """Let a delayed workflow come due at another time, sooner or later.

        Args:
            workflow_id: which one.
            delay: seconds from now, or an aware datetime; one that has passed is due at once.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            ValueError: it is not DELAYED any more, or the delay is negative or has no time zone.
        """
        session = self._acting()
        when = delay if isinstance(delay, datetime) else seconds_of(delay)
        if isinstance(when, datetime):
            milliseconds_of(when)  # a naive one is refused without asking

        async def change() -> None:
            due = await session.database.patiently(
                lambda: queues.set_delay(session.database, workflow_id, when, session.clock.skew_ms)
            )
            session.tell_due(due.queue_name or "", due.delay_until_ms)

        await recorded("DBOS.setWorkflowDelay", change, None)

    async def update_workflow_attributes(
        self, workflow_id: str, attributes: Mapping[str, Any] | None, *, merge: bool = False
    ) -> None:
        """Change the attributes that a workflow is found by, whatever state it is in.

        Args:
            workflow_id: which one.
            attributes: a JSON object; None for no attributes.
            merge: keep those that it has; of those with one key the new one counts.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            TypeError: the attributes are no mapping.
            ValueError: there is nothing to merge, or Postgres cannot store them.
            SerializationError: they are no JSON.
        """
        if merge and attributes is None:
            raise ValueError("merge=True needs attributes; without it, None takes all away")
        text = None if attributes is None else written_attributes(attributes)
        session = self._acting()

        async def update() -> None:
            if not await session.database.patiently(
                lambda: management.update_attributes(
                    session.database, workflow_id, text, merge=merge
                )
            ):
                raise errors.WorkflowNotFoundError(workflow_id)

        await recorded("DBOS.updateWorkflowAttributes", update, None)

    async def export_workflow(self, workflow_id: str, *, children: bool = True) -> str:
        """A workflow as JSON, with its steps, events, streams and messages, for `import_workflow`.

        Args:
            workflow_id: which one, in whatever state.
            children: with everything that it started, directly or not.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            PayloadStoreError: a large value of it is not to be had.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()

        async def export() -> str:
            await session.standing_of(workflow_id)
            ids = [workflow_id]
            if children:
                ids = await management.find_family(session.database, ids)
            return await exports.export(session.database, session.payloads, ids)

        return await recorded("DBOS.exportWorkflow", export, str)

    async def import_workflow(self, exported: str, *, resume: bool = False) -> list[str]:
        """Put exported workflows into this database, all or none; their ids.

        What had ended is there as it was. What had not must not run twice, here and where it came
        from, so it arrives as CANCELLED, to be resumed once the other one is cancelled or deleted.

        Args:
            exported: what `export_workflow` returned.
            resume: let what had not ended go on here at once, as `resume_workflow` does.

        Raises:
            WorkflowConflictError: a workflow with one of the ids exists. Nothing was imported, as
                with all errors.
            ValueError: it is no export, or one of a version that is not read here.
            DatabaseRefusedError: it holds what this database cannot.
            DatabaseLostError: whether it was imported is unknown; if it was, trying again is a
                WorkflowConflictError.
        """
        session = self._acting()
        found = exports.parse(exported)
        queue_name = queues.INTERNAL_QUEUE

        async def put() -> list[str]:
            ids = await exports.import_workflows(
                session.database,
                found,
                session.clock.now_ms(),
                resume_on=queue_name if resume else None,
            )
            if resume:
                session.tell_queued(queue_name)
            return ids

        return await recorded("DBOS.importWorkflow", put, list[str])

    def _handle(self, workflow_id: str, name: str) -> WorkflowHandle[Any]:
        started = Started(workflow_id, is_queued=True)
        return WorkflowHandle(self._inquirer, started, self._decoder_of(name))

    def _decoder_of(self, name: str) -> Callable[[str], Any]:
        raise NotImplementedError


def checked(chosen: Filter, verb: str) -> Filter:
    """The filter of a plural verb.

    Raises:
        ValueError: it is empty.
    """
    if chosen.is_empty:
        raise ValueError(f"give a filter: an empty one would {verb} every workflow there is")
    return chosen


def checked_destination(queue: str | Queue | None, app_version: str | None) -> str:
    """The name of the queue that a workflow is to go on.

    Raises:
        TypeError, ValueError: it is no queue, or the version cannot be one.
    """
    if app_version is not None:
        checked_id(app_version, "app_version")
    return queues.INTERNAL_QUEUE if queue is None else name_of(queue)


async def in_batches(
    session: Session,
    chosen: Filter,
    act: Callable[[list[str]], Awaitable[list[str]]],
    *,
    dry_run: bool = False,
) -> list[str]:
    """Do something with all that fit, batch by batch; the ids that it says."""
    done: list[str] = []
    async for ids in listing.batches(session.database, chosen):
        done += ids if dry_run else await act(ids)
    return list(dict.fromkeys(done))


def id_maker(session: Session) -> Callable[[], str]:
    """What names a new workflow: within one, the step that makes it, so that a replay finds it."""
    branch = asking_branch()
    if branch is None or branch.step is not None:
        return session.intake.new_id

    def own_id() -> str:
        assert branch.step is not None
        return f"{branch.execution.workflow_id}-{branch.step.key}"

    return own_id
