"""Looking at workflows: a page of those that fit a filter, how many there are, their steps."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack

from msgspec import Struct

from dbos_async._config import Seconds, seconds_of
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded, within_workflow
from dbos_async._handle import StepInfo, WorkflowStatus, fetched_status, fetched_step
from dbos_async._store import listing, workflows
from dbos_async._store.clock import milliseconds_of, moment_of
from dbos_async._store.listing import GROUPS, Filter, Place, Texts
from dbos_async._store.records import CountRow, Recorded, Status, WorkflowRow

Group = Literal["status", "name", "queue_name", "app_version", "executor_id", "application_name"]


class WorkflowFilter(TypedDict, total=False):
    """Which workflows a listing or a management verb means; all that is given must fit.

    workflow_ids, status, name, queue_name, workflow_id_prefix, app_version, executor_id, user (the
        authenticated one), forked_from, parent_workflow_id, schedule_name, application_name: one,
        or several of which any will do.
    waiting_for: what it waits for, as `WorkflowStatus.waiting_for` says it, or the first word of
        that: "message", "event"; one, or several of which any will do.
    created_after, completed_after, dequeued_after: at this moment or later; …_before: earlier.
    queues_only: only those on a queue, or taken off one. was_forked_from: whether forks were made
        of it; is_fork: whether it is one; has_parent: whether a workflow started it.
    attributes: a JSON object that its attributes contain.
    """

    workflow_ids: Sequence[str]
    status: Status | Sequence[Status]
    name: Texts
    queue_name: Texts
    workflow_id_prefix: Texts
    parent_workflow_id: Texts
    forked_from: Texts
    app_version: Texts
    executor_id: Texts
    user: Texts
    schedule_name: Texts
    application_name: Texts
    waiting_for: Texts
    created_after: datetime
    created_before: datetime
    completed_after: datetime
    completed_before: datetime
    dequeued_after: datetime
    dequeued_before: datetime
    queues_only: bool
    was_forked_from: bool
    is_fork: bool
    has_parent: bool
    attributes: Mapping[str, Any]


class WorkflowCount(Struct, frozen=True, kw_only=True):
    """How many workflows there are of one kind; what was not grouped by is None."""

    count: int
    status: Status | None = None
    name: str | None = None
    queue_name: str | None = None
    app_version: str | None = None
    executor_id: str | None = None
    application_name: str | None = None
    created_at: datetime | None = None
    """The beginning of a bucket of times of creation, aware, in UTC."""


class Listing:
    """The verbs that look at workflows."""

    async def list_workflows(
        self,
        *,
        limit: int = 100,
        offset: int = 0,
        newest_first: bool = True,
        after: WorkflowStatus | None = None,
        load_input: bool = True,
        load_output: bool = True,
        **filter: Unpack[WorkflowFilter],
    ) -> list[WorkflowStatus]:
        """The workflows that fit the filter, by time of creation. Within a workflow, recorded.

        For the next page give the last workflow of this one as `after`: that takes as long as the
        first page, while `offset` counts off what it skips, and slips when workflows are deleted.

        These filters have an index, so that they take milliseconds among millions of others:
        workflow_ids, parent_workflow_id, forked_from, waiting_for, created_after with
        created_before, and status unless SUCCESS is in it. Any other is looked for among what these
        let through, by age until the page is full: give it one of these, too, if few workflows fit
        it.

        Args:
            limit: how many at most.
            offset: how many to skip.
            newest_first: or the oldest.
            after: the last of the page before, listed in the same order.
            load_input: False leaves the arguments where they are: `input` is None.
            load_output: False leaves results and errors: `output` and `error` are None.
            **filter: see `WorkflowFilter`.

        Raises:
            TypeError: there is no such filter, or a value is of the wrong type.
            ValueError: a number is negative, a time is naive, or there is no such status.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        for name, number in (("limit", limit), ("offset", offset)):
            if not isinstance(number, int):
                raise TypeError(f"{name} is a number, not {number!r}")
            if number < 0:
                raise ValueError(f"{name} must not be negative")
        if not isinstance(after, WorkflowStatus | None):
            raise TypeError(f"after is the last WorkflowStatus of the page before, not {after!r}")
        session = self._acting()
        chosen = Filter(**filter)
        is_within = within_workflow()

        async def fetch() -> list[WorkflowRow]:
            rows = await listing.fetch_workflows(
                session.database,
                chosen,
                limit=limit,
                offset=offset,
                newest_first=newest_first,
                after=None if after is None else place_of(after),
                load_input=load_input,
                load_output=load_output,
            )
            return [await session.payloads.inlined(row) for row in rows] if is_within else rows

        rows = await recorded("DBOS.listWorkflows", fetch, list[WorkflowRow])
        return [
            await fetched_status(row, session.payloads, allow_pickle=session.settings.allow_pickle)
            for row in rows
        ]

    async def count_workflows(
        self,
        group_by: Group | Sequence[Group] = "status",
        *,
        bucket: Seconds | None = None,
        **filter: Unpack[WorkflowFilter],
    ) -> list[WorkflowCount]:
        """How many workflows fit the filter, of each kind. Within a workflow, recorded.

        All that fit are looked at, about a million a second: give `created_after` for less.

        Args:
            group_by: what makes a kind: status, name, queue_name, app_version, executor_id,
                application_name; one or several.
            bucket: seconds; counts those created in each such span of time by themselves.
            **filter: see `WorkflowFilter`.

        Raises:
            TypeError: there is no such filter, or a value is of the wrong type.
            ValueError: workflows cannot be grouped by that, or the bucket is below 1 ms.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        if not isinstance(group_by, str | Sequence):
            raise TypeError(f"group_by is one or several of {', '.join(GROUPS)}, not {group_by!r}")
        groups = [group_by] if isinstance(group_by, str) else list(group_by)
        unknown = set(groups) - set(GROUPS)
        if unknown:
            raise ValueError(f"group_by is of {', '.join(GROUPS)}, not {min(unknown)!r}")
        bucket_ms = None if bucket is None else round(seconds_of(bucket) * 1000)
        if bucket_ms == 0:
            raise ValueError("a bucket is at least a millisecond long")
        session = self._acting()
        chosen = Filter(**filter)
        rows = await recorded(
            "DBOS.countWorkflows",
            lambda: listing.count_workflows(session.database, chosen, groups, bucket_ms),
            list[CountRow],
        )
        return sorted(map(count_of, rows), key=order_of_counts)

    async def list_steps(self, workflow_id: str) -> list[StepInfo]:
        """A workflow's recorded steps, in the order of their start. Within a workflow, recorded.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()
        is_within = within_workflow()

        async def fetch() -> list[Recorded]:
            steps = await workflows.fetch_steps(session.database, workflow_id)
            return [await session.payloads.inlined(step) for step in steps] if is_within else steps

        steps = await recorded("DBOS.listWorkflowSteps", fetch, list[Recorded])
        return [
            await fetched_step(step, session.payloads, allow_pickle=session.settings.allow_pickle)
            for step in steps
        ]

    def _acting(self) -> Session:
        raise NotImplementedError


def place_of(status: WorkflowStatus) -> Place:
    """Where a workflow stands in a listing."""
    return Place(milliseconds_of(status.created_at), status.workflow_id)


def count_of(row: CountRow) -> WorkflowCount:
    """A count in our vocabulary."""
    return WorkflowCount(
        count=row.count,
        status=row.status,
        name=row.name,
        queue_name=row.queue_name,
        app_version=row.app_version,
        executor_id=row.executor_id,
        application_name=row.application_name,
        created_at=None if row.bucket_ms is None else moment_of(row.bucket_ms),
    )


def order_of_counts(count: WorkflowCount) -> tuple[str, ...]:
    """By time, then by what they are grouped by."""
    moment = count.created_at.isoformat() if count.created_at is not None else ""
    return moment, *(getattr(count, group) or "" for group in GROUPS)
