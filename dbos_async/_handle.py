"""A workflow from the outside: its result and where it stands."""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._config import Seconds
from dbos_async._engine.callers import shown_roles
from dbos_async._engine.execution import Started
from dbos_async._store import codec, stored
from dbos_async._store.clock import moment_of
from dbos_async._store.payloads import Payloads, is_reference
from dbos_async._store.records import Recorded, Status, WorkflowRow

R = TypeVar("R", covariant=True)


class WorkflowInput(Struct, frozen=True):
    """What a workflow was called with, as plain JSON values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class WorkflowStatus(Struct, frozen=True, kw_only=True):
    """A workflow as it stood when it was looked at. Times are aware, in UTC."""

    workflow_id: str
    status: Status
    name: str
    """The registered name of its function."""
    input: WorkflowInput | None
    output: Any
    """Its result as plain JSON values; None unless it succeeded."""
    error: Exception | None
    """What it raised; None unless it failed."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    """When it was first taken off its queue; None if it was started directly and not yet left
    memory to wait."""
    completed_at: datetime | None
    deadline: datetime | None
    delay_until: datetime | None
    """When a workflow that is DELAYED starts, or goes on; of others, until when they last were."""
    waiting_for: str | None
    """What a workflow waits for that has begun: `sleep`, `message <topic>`, `event <workflow id>
    <key>`, so that it takes no room in any process; `workflow`, one that it enqueued, or `slot`, to
    go on, so that it takes none in its queue. None while it runs or has not begun."""
    timeout: float | None
    """Seconds."""
    executor_id: str | None
    """The process that runs it, or ran it last."""
    app_version: str | None
    app_name: str | None
    queue_name: str | None
    deduplication_id: str | None
    priority: int
    partition_key: str | None
    recovery_attempts: int
    class_name: str | None
    config_name: str | None
    """The name of the instance whose method it is."""
    parent_workflow_id: str | None
    forked_from: str | None
    was_forked_from: bool
    """Whether forks were made of it."""
    attributes: dict[str, Any] | None
    authenticated_user: str | None
    """On whose behalf it runs, where its starter said so."""
    authenticated_roles: list[str]
    """That user's roles."""
    assumed_role: str | None
    """The one of them that the workflow requires."""
    schedule_name: str | None


class StepInfo(Struct, frozen=True, kw_only=True):
    """A recorded step. Times are aware, in UTC."""

    step_id: str
    """What identifies it within its workflow: its place in the task tree."""
    position: int
    """Its place in the order of starts."""
    name: str
    output: Any
    """Its result as plain JSON values; None if it failed."""
    error: Exception | None
    child_workflow_id: str | None
    started_at: datetime | None
    completed_at: datetime | None


class Inquiry(Protocol):
    """What a handle asks."""

    def result_of(
        self, started: Started, decode: Callable[[str], Any], timeout: Seconds | None
    ) -> Coroutine[Any, Any, Any]:
        """A workflow's result."""
        ...

    def status_of(self, workflow_id: str) -> Coroutine[Any, Any, WorkflowStatus]:
        """Where a workflow stands."""
        ...


class WorkflowHandle(Generic[R]):
    """A workflow that was started or enqueued, here or elsewhere."""

    def __init__(self, inquiry: Inquiry, started: Started, decode: Callable[[str], Any]) -> None:
        self.workflow_id = started.workflow_id
        self._inquiry = inquiry
        self._started = started
        self._decode = decode

    def get_result(self, *, timeout: Seconds | None = None) -> Coroutine[Any, Any, R]:
        """Its result, once it has ended. Within a workflow, a recorded step.

        Raises:
            TimeoutError: `timeout` passed first; the workflow goes on.
            WorkflowCancelledError: it was cancelled; `WorkflowTimeoutError`: by its deadline.
            RecoveryExhaustedError: it is a dead letter; resume it once the cause is mended.
            WorkflowNotFoundError: it was deleted.
            Exception: what the workflow raised.
        """
        return self._inquiry.result_of(self._started, self._decode, timeout)

    def get_status(self) -> Coroutine[Any, Any, WorkflowStatus]:
        """Where it stands now. Within a workflow, a recorded step.

        Raises:
            WorkflowNotFoundError: it was deleted.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        return self._inquiry.status_of(self.workflow_id)

    def __repr__(self) -> str:
        return f"<workflow handle {self.workflow_id}>"


def started_of(handle: WorkflowHandle[Any]) -> Started:
    """What the engine knows of a handle's workflow."""
    return handle._started  # noqa: SLF001  # ours


def status_of(row: WorkflowRow, *, allow_pickle: bool = False) -> WorkflowStatus:
    """A row in our vocabulary."""
    return WorkflowStatus(
        workflow_id=row.workflow_id,
        status=row.status,
        name=row.name,
        input=input_of(row, allow_pickle=allow_pickle),
        output=stored.shown(row.output, row.serialization, allow_pickle=allow_pickle),
        error=None
        if row.error is None
        else stored.read_error(row.error, row.serialization, allow_pickle=allow_pickle),
        created_at=moment_of(row.created_at_ms),
        updated_at=moment_of(row.updated_at_ms),
        started_at=maybe_moment(row.started_at_ms),
        completed_at=maybe_moment(row.completed_at_ms),
        deadline=maybe_moment(row.deadline_ms),
        delay_until=maybe_moment(row.delay_until_ms),
        waiting_for=row.waiting_for,
        timeout=None if row.timeout_ms is None else row.timeout_ms / 1000,
        executor_id=row.executor_id,
        app_version=row.app_version,
        app_name=row.application_name,
        queue_name=row.queue_name,
        deduplication_id=row.deduplication_id,
        priority=row.priority,
        partition_key=row.partition_key,
        recovery_attempts=row.recovery_attempts or 0,
        class_name=row.class_name,
        config_name=row.config_name,
        parent_workflow_id=row.parent_workflow_id,
        forked_from=row.forked_from,
        was_forked_from=row.was_forked_from,
        attributes=None if row.attributes is None else codec.decode(row.attributes),
        authenticated_user=row.user,
        authenticated_roles=shown_roles(row.roles),
        assumed_role=row.role,
        schedule_name=row.schedule_name,
    )


async def fetched_status(
    row: WorkflowRow, payloads: Payloads, *, allow_pickle: bool = False
) -> WorkflowStatus:
    """A row in our vocabulary, with what is in the payload store, as far as it is there."""
    fetched: dict[str, Any] = {}
    if is_reference(row.inputs, row.serialization):
        with suppress(errors.PayloadStoreError, errors.SerializationError):
            found = await payloads.arguments(row.inputs or "", row.workflow_id)
            fetched["input"] = WorkflowInput(*found)
    if is_reference(row.output, row.serialization):
        with suppress(errors.PayloadStoreError, errors.SerializationError):
            fetched["output"] = await payloads.value(
                row.output or "", row.workflow_id, codec.decode
            )
    status = status_of(row, allow_pickle=allow_pickle)
    return structs.replace(status, **fetched) if fetched else status


async def fetched_step(
    step: Recorded, payloads: Payloads, *, allow_pickle: bool = False
) -> StepInfo:
    """The same of a recorded step."""
    info = step_info_of(step, allow_pickle=allow_pickle)
    if is_reference(step.output, step.serialization):
        with suppress(errors.PayloadStoreError, errors.SerializationError):
            value = await payloads.value(step.output or "", step.workflow_id, codec.decode)
            return structs.replace(info, output=value)
    return info


def input_of(row: WorkflowRow, *, allow_pickle: bool) -> WorkflowInput | None:
    """What a workflow was called with, if it can be read here."""
    decoded = stored.shown_arguments(row.inputs, row.serialization, allow_pickle=allow_pickle)
    return None if decoded is None else WorkflowInput(*decoded)


def step_info_of(step: Recorded, *, allow_pickle: bool = False) -> StepInfo:
    """A step's row in our vocabulary."""
    return StepInfo(
        step_id=step.key,
        position=step.position,
        name=step.name,
        output=stored.shown(step.output, step.serialization, allow_pickle=allow_pickle),
        error=None
        if step.error is None
        else stored.read_error(step.error, step.serialization, allow_pickle=allow_pickle),
        child_workflow_id=step.child_workflow_id,
        started_at=maybe_moment(step.started_at_ms),
        completed_at=maybe_moment(step.completed_at_ms),
    )


def maybe_moment(milliseconds: int | None) -> datetime | None:
    """A moment, or none."""
    return None if milliseconds is None else moment_of(milliseconds)
