"""What the admin API reads and writes: the documented names, as structs."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import Meta, Struct

from dbos_async._handle import StepInfo, WorkflowStatus
from dbos_async._limits import RateLimit
from dbos_async._queue import Queue
from dbos_async._store.clock import milliseconds_of
from dbos_async._store.records import Status

MOST: Final = 10_000
"""Workflows in one answer; further ones by `offset`, or by `start_time`."""
LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since the epoch."""
LATEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""Beyond it there are no later moments to be had."""

STORABLE: Final = {"pattern": "^[^\\u0000]*$"}
"""Says what `find_nul` refuses. Not as msgspec's own `pattern`: with that one in a union, Python
crashes now and then when it ends. Source: msgspec issue 717."""
Text = Annotated[str, Meta(max_length=1000, extra_json_schema=STORABLE)]
"""What Postgres can store."""
Texts = Text | list[Text]
Items = dict[str, object]
Moment = Annotated[
    datetime, Meta(tz=True, description="RFC 3339, with its offset: 2026-07-01T12:00:00Z")
]
EpochMs = Annotated[
    int, Meta(ge=0, le=LAST_MS, description="Milliseconds since 1970-01-01T00:00:00Z")
]

# --- asked --------------------------------------------------------------------------------------


class WorkflowQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which workflows; null, or a field left out, does not matter. Both ends of times included."""

    workflow_uuids: list[Text] | None = None
    workflow_id_prefix: Texts | None = None
    workflow_name: Texts | None = None
    status: Status | list[Status] | None = None
    start_time: Moment | None = None
    """Created then or later."""
    end_time: Moment | None = None
    completed_after: Moment | None = None
    completed_before: Moment | None = None
    dequeued_after: Moment | None = None
    dequeued_before: Moment | None = None
    application_version: Texts | None = None
    application_name: Texts | None = None
    authenticated_user: Texts | None = None
    executor_id: Texts | None = None
    forked_from: Texts | None = None
    parent_workflow_id: Texts | None = None
    queue_name: Texts | None = None
    schedule_name: Texts | None = None
    attributes: dict[str, Any] | None = None
    has_parent: bool | None = None
    was_forked_from: bool | None = None
    queues_only: bool | None = None
    limit: Annotated[int, Meta(ge=0, le=MOST)] | None = None
    offset: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    sort_desc: bool | None = None
    """The newest first; else the oldest."""
    load_input: bool | None = None
    """With their arguments, however large."""
    load_output: bool | None = None
    """With their results and errors."""


class ForkRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From which step on a workflow runs anew, and how."""

    start_step: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 1
    """The `function_id` of the first step that is not copied."""
    new_workflow_id: Text | None = None
    application_version: Text | None = None
    queue_name: Text | None = None


class CollectRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is old enough to be deleted: the stricter of the two counts, and one is needed."""

    cutoff_epoch_timestamp_ms: EpochMs | None = None
    """Created before it."""
    rows_threshold: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    """Created before the newest so many."""


class TimeoutRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Until when what has not ended must have been created to be cancelled."""

    cutoff_epoch_timestamp_ms: EpochMs


def find_nul(value: object, place: str = "$") -> str | None:
    """Where a request has a NUL character, which Postgres cannot store."""
    if isinstance(value, str):
        return place if "\0" in value else None
    if isinstance(value, dict):
        parts = {f"{place}.{name!r}": each for name, each in cast(Items, value).items()}
        parts |= {f"a name in {place}": "".join(cast(Items, value))}
    elif isinstance(value, list):
        parts = {f"{place}[{i}]": each for i, each in enumerate(cast(list[object], value))}
    elif isinstance(value, Struct):
        parts = {f"{place}.{name}": getattr(value, name) for name in value.__struct_fields__}
    else:
        return None
    found = (find_nul(part, at) for at, part in parts.items())
    return next((at for at in found if at is not None), None)


# --- answered -----------------------------------------------------------------------------------

ACRONYMS: Final = {"uuid": "UUID", "id": "ID", "ms": "MS"}


def documented(name: str) -> str:
    """A field's name in the documentation: WorkflowUUID, ExecutorID."""
    return "".join(ACRONYMS.get(word, word.title()) for word in name.split("_"))


class WorkflowsOutput(Struct, frozen=True, kw_only=True, rename=documented):
    """A workflow. Values are texts: times in milliseconds since the epoch, data as JSON."""

    workflow_uuid: str
    status: str
    workflow_name: str
    workflow_class_name: str | None
    workflow_config_name: str | None
    authenticated_user: str | None
    assumed_role: str | None
    authenticated_roles: str | None
    input: str | None
    output: str | None
    error: str | None
    created_at: str
    updated_at: str
    queue_name: str | None
    application_version: str | None
    executor_id: str | None
    workflow_timeout_ms: str | None
    workflow_deadline_epoch_ms: str | None
    deduplication_id: str | None
    priority: str
    queue_partition_key: str | None
    forked_from: str | None
    was_forked_from: bool
    parent_workflow_id: str | None
    dequeued_at: str | None
    delay_until_epoch_ms: str | None
    completed_at: str | None
    attributes: str | None
    schedule_name: str | None
    application_name: str | None


class WorkflowSteps(Struct, frozen=True, kw_only=True):
    """A recorded step. Times are texts, in milliseconds since the epoch; data is JSON."""

    function_id: int
    function_name: str
    output: str | None
    error: str | None
    child_workflow_id: str | None
    started_at_epoch_ms: str | None
    completed_at_epoch_ms: str | None


class Forked(Struct, frozen=True):
    """The id of a workflow that was made of another."""

    workflow_id: str


class QueueRate(Struct, frozen=True):
    """So many starts in so many seconds."""

    limit: int
    period: float


class QueueMetadata(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A queue and the limits that it has."""

    name: str
    concurrency: int | None = None
    worker_concurrency: int | None = None
    rate_limit: QueueRate | None = None


class QueueLength(Struct, frozen=True):
    """How many workflows wait on a queue or run off it."""

    queue_length: int


def workflow_of(status: WorkflowStatus) -> WorkflowsOutput:
    """A workflow in the documented words."""
    given = status.input
    return WorkflowsOutput(
        workflow_uuid=status.workflow_id,
        status=status.status,
        workflow_name=status.name,
        workflow_class_name=status.class_name,
        workflow_config_name=status.config_name,
        authenticated_user=status.authenticated_user,
        assumed_role=status.assumed_role,
        authenticated_roles=text_of(status.authenticated_roles or None),
        input=text_of(given and {"args": given.args, "kwargs": given.kwargs}),
        output=text_of(status.output),
        error=error_of(status.error),
        created_at=str(milliseconds_of(status.created_at)),
        updated_at=str(milliseconds_of(status.updated_at)),
        queue_name=status.queue_name,
        application_version=status.app_version,
        executor_id=status.executor_id,
        workflow_timeout_ms=None if status.timeout is None else str(round(status.timeout * 1000)),
        workflow_deadline_epoch_ms=moment_text(status.deadline),
        deduplication_id=status.deduplication_id,
        priority=str(status.priority),
        queue_partition_key=status.partition_key,
        forked_from=status.forked_from,
        was_forked_from=status.was_forked_from,
        parent_workflow_id=status.parent_workflow_id,
        dequeued_at=moment_text(status.started_at),
        delay_until_epoch_ms=moment_text(status.delay_until),
        completed_at=moment_text(status.completed_at),
        attributes=text_of(status.attributes),
        schedule_name=status.schedule_name,
        application_name=status.app_name,
    )


def step_of(step: StepInfo) -> WorkflowSteps:
    """A step in the documented words."""
    return WorkflowSteps(
        function_id=step.position,
        function_name=step.name,
        output=text_of(step.output),
        error=error_of(step.error),
        child_workflow_id=step.child_workflow_id,
        started_at_epoch_ms=moment_text(step.started_at),
        completed_at_epoch_ms=moment_text(step.completed_at),
    )


def metadata_of(queues: Iterable[Queue]) -> list[QueueMetadata]:
    """Queues in the documented words."""
    return [
        QueueMetadata(
            name=queue.name,
            concurrency=queue.concurrency,
            worker_concurrency=queue.worker_concurrency,
            rate_limit=rate_of(queue.rate_limit),
        )
        for queue in queues
    ]


def rate_of(rate: RateLimit | None) -> QueueRate | None:
    """A rate limit in the documented words."""
    return None if rate is None else QueueRate(rate.limit, rate.period_ms / 1000)


def text_of(value: object) -> str | None:
    """A value as JSON, or what Python prints of it where JSON has no word; None for nothing."""
    if value is None:
        return None
    return msgspec.json.encode(value, enc_hook=str).decode()


def error_of(error: Exception | None) -> str | None:
    """An error as a person reads it."""
    return None if error is None else f"{type(error).__name__}: {error}"


def just_after(moment: datetime) -> datetime:
    """The next millisecond: what was before it, was at `moment` or earlier."""
    return min(moment, LATEST) + timedelta(milliseconds=1)


def moment_text(moment: datetime | None) -> str | None:
    """A moment in milliseconds."""
    return None if moment is None else str(milliseconds_of(moment))
