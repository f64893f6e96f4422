"""A schedule: as it is asked for, as it is declared, and as the database has it."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from msgspec import Struct

from dbos_async import errors
from dbos_async._config import Seconds, seconds_of
from dbos_async._engine.cron import cron_of
from dbos_async._engine.functions import Workflow
from dbos_async._engine.registry import ScheduleDefinition, WorkflowDefinition
from dbos_async._engine.session import Session
from dbos_async._engine.steps import check_size
from dbos_async._engine.ticks import PICKLED_NONE
from dbos_async._limits import checked_id
from dbos_async._log import log
from dbos_async._queue import Queue, name_of
from dbos_async._store import codec, schedules, stored
from dbos_async._store.clock import moment_of
from dbos_async._store.schedules import ScheduleRow, ScheduleWrite

Overlap = Literal["allow", "skip", "buffer_one", "cancel_previous"]
"""What happens at a tick while an earlier run of the schedule has not ended."""

ScheduleStatus = Literal["ACTIVE", "PAUSED"]

MAX_NAME_BYTES: Final = 200
"""The ids of runs are made of the name and a moment, and are 255 bytes at most."""

AnyWorkflow = Workflow[..., Any]


class ScheduleSpec(Struct, frozen=True):
    """A schedule as `apply_schedules` takes it; the arguments are those of `create_schedule`."""

    name: str
    workflow: AnyWorkflow
    cron: str
    context: Any = None
    timezone: str = "UTC"
    queue: str | Queue | None = None
    backfill: bool = False
    overlap: Overlap = "allow"
    jitter: Seconds = 0


class Schedule(Struct, frozen=True, kw_only=True):
    """A schedule as the database has it. Times are aware, in UTC."""

    name: str
    workflow_name: str
    cron: str
    timezone: str
    queue_name: str | None
    """None: its runs go wherever there is room."""
    status: ScheduleStatus
    context: Any
    """Plain JSON values."""
    backfill: bool
    overlap: Overlap
    jitter: float
    """Seconds."""
    app_name: str | None
    """Whose it is; None: the first app's that has the workflow."""
    is_declared: bool
    """By `@dbos.scheduled`, now or in an earlier version of the code."""
    last_fired_at: datetime | None
    """When that was due which fired last."""
    next_due_at: datetime | None
    """None: not before it is resumed, or never."""


class ScheduleOptions:
    """What is said of a schedule but its name and its workflow, checked."""

    def __init__(
        self,
        cron: str,
        context: Any,
        timezone: str,
        queue: str | Queue | None,
        *,
        backfill: bool,
        overlap: Overlap,
        jitter: Seconds,
    ) -> None:
        """Check it.

        Raises:
            ValueError: the expression, the time zone, the overlap or the jitter cannot work.
            TypeError: something is of the wrong type.
            SerializationError: the context cannot be stored.
        """
        self._cron = cron_of(checked_text(cron, "the cron expression"), timezone)
        self._context = codec.encoder(at="the context")(context)
        self._queue_name = None if queue is None else checked_id(name_of(queue), "the queue's name")
        if not isinstance(backfill, bool):
            raise TypeError(f"backfill is True or False, not {backfill!r}")
        self._backfill = backfill
        if overlap not in get_args(Overlap):
            choices = ", ".join(map(repr, get_args(Overlap)))
            raise ValueError(f"overlap is one of {choices}, not {overlap!r}")
        self._overlap = overlap
        self._jitter = seconds_of(jitter)

    def of(self, name: str, workflow: WorkflowDefinition) -> ScheduleWrite:
        """The schedule of this name.

        Raises:
            ValueError: the name cannot be stored, or is too long.
            TypeError: it is no str.
        """
        if len(checked_id(name, "the schedule's name").encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"the schedule's name is longer than {MAX_NAME_BYTES} bytes: {name[:40]!r}…"
            )
        return ScheduleWrite(
            name=name,
            workflow_name=workflow.name,
            cron=self._cron.expression,
            timezone=self._cron.timezone,
            queue_name=self._queue_name,
            context=self._context,
            backfill=self._backfill,
            overlap=self._overlap,
            jitter=self._jitter,
        )


def definition_of(workflow: object, *, is_here: bool = False) -> WorkflowDefinition:
    """What a schedule is to run.

    Raises:
        TypeError: it is no workflow, or none that takes a datetime and perhaps a context; or a stub
            where it must be defined here.
        ValueError: it has options, requires a role, or is a method of an instance.
    """
    if not isinstance(workflow, Workflow):
        raise TypeError(
            f"a schedule runs a workflow, not {workflow!r}: put @dbos.workflow below "
            "@dbos.scheduled, or name one that is not defined here by stub('name')"
        )
    call = workflow.bind().asked
    definition = call.definition
    if call.options:
        raise ValueError(f"the options {dict(call.options)} cannot be kept in a schedule")
    if definition.arguments is None:
        if is_here:
            raise TypeError(f"{definition.name!r} is a stub: use create_schedule for it")
        return definition
    check_function(definition)
    if definition.required_roles:
        raise ValueError(
            f"the workflow {definition.name!r} requires a role, and a schedule runs on nobody's "
            "behalf: schedule one that requires none and starts this one as its child, naming the "
            "caller by with_options"
        )
    if not definition.arguments.takes_tick:
        raise TypeError(
            f"the workflow {definition.name!r} cannot be scheduled: it must take the moment at "
            "which it is due, and perhaps a context: (due: datetime, context: Any = None)"
        )
    return definition


def check_function(definition: WorkflowDefinition) -> None:
    """Refuse a method: a schedule does not know on which instance it would run.

    Raises:
        ValueError: it is one.
    """
    if definition.owner is not None:
        raise ValueError(
            f"the workflow {definition.name!r} is a method, and a schedule has no instance to run "
            "it on: schedule a function or a static method"
        )


def write_of(spec: ScheduleSpec) -> ScheduleWrite:
    """A schedule as it is written down. Raises as `create_schedule` does."""
    if not isinstance(spec, ScheduleSpec):
        raise TypeError(f"apply_schedules takes ScheduleSpec(name, workflow, cron), not {spec!r}")
    definition = definition_of(spec.workflow)
    options = ScheduleOptions(
        spec.cron,
        spec.context,
        spec.timezone,
        spec.queue,
        backfill=spec.backfill,
        overlap=spec.overlap,
        jitter=spec.jitter,
    )
    return options.of(spec.name, definition)


async def check_schedules(session: Session, writes: Sequence[ScheduleWrite]) -> None:
    """Refuse schedules whose runs could not be enqueued.

    Raises:
        QueueNotFoundError: a queue does not exist.
        ValueError: a queue has partitions.
        SerializationError: a context is too large.
    """
    for write in writes:
        check_size(
            write.context,
            session.settings.max_payload_bytes,
            f"the context of schedule {write.name!r}",
        )
        if write.queue_name is None:
            continue
        flaw = await session.catalog.flaw_in(write.queue_name, [{}])
        if isinstance(flaw, errors.QueueNotFoundError):
            raise flaw
        if flaw is not None:
            raise ValueError(
                f"the queue {write.queue_name!r} is partitioned, but the runs of a schedule have "
                "no partition key: choose a queue without partitions"
            )


async def declare_schedules(session: Session, declared: Collection[ScheduleDefinition]) -> None:
    """Write down the schedules that an app declares, and log those that it once declared.

    Raises:
        ConfigurationError: another app has a name, or a schedule cannot run.
    """
    try:
        for definition in declared:
            check_function(definition.workflow)
        writes = [definition.write for definition in declared]
        await check_schedules(session, writes)
    except errors.ConfigurationError:
        raise
    except ValueError as exc:
        raise errors.ConfigurationError(str(exc)) from None
    settings = session.settings
    await schedules.upsert(
        session.database,
        writes,
        settings.name,
        session.clock.skew_ms,
        declaring_version=settings.app_version or "",
    )
    names = [write.name for write in writes]
    left = await schedules.find_undeclared(session.database, names, settings.name)
    for each in left:
        log.warning(
            "a schedule is not declared any more and still fires; once no process declares it, "
            f"remove it by `await dbos.delete_schedule({each.name!r})`",
            schedule=each.name,
        )


def schedule_of(row: ScheduleRow, now_ms: int, *, allow_pickle: bool) -> Schedule:
    """A row in our vocabulary."""
    return Schedule(
        name=row.name,
        workflow_name=row.workflow_name,
        cron=row.cron,
        timezone=row.timezone or "UTC",
        queue_name=row.queue_name,
        status="ACTIVE" if row.status == "ACTIVE" else "PAUSED",
        context=context_of(row.context, allow_pickle=allow_pickle),
        backfill=row.backfill,
        overlap=overlap_of(row.overlap),
        jitter=row.jitter or 0.0,
        app_name=row.application,
        is_declared=row.is_declared,
        last_fired_at=moment_in(row.last_fired_at),
        next_due_at=next_due_at(row, now_ms),
    )


def context_of(text: str, *, allow_pickle: bool) -> Any:
    """A context for people; the text itself where it cannot be read."""
    if text == PICKLED_NONE:
        return None
    return stored.shown(text, None, allow_pickle=allow_pickle)


def overlap_of(text: str | None) -> Overlap:
    """The overlap in a row; other words mean none of ours."""
    for known in get_args(Overlap):
        if text == known:
            overlap: Overlap = known
            return overlap
    return "allow"


def moment_in(text: str | None) -> datetime | None:
    """A moment that a row has as text, whoever wrote it; None if it is none."""
    try:
        moment = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment.astimezone(UTC)


def next_due_at(row: ScheduleRow, now_ms: int) -> datetime | None:
    """When a schedule fires next by itself."""
    if row.status != "ACTIVE":
        return None
    try:
        cron = cron_of(row.cron, row.timezone or "UTC")
    except ValueError:  # another library's dialect
        return None
    return cron.next_after(moment_of(max(now_ms, row.decided_until_ms or 0)))


def checked_text(value: object, what: str) -> str:
    """A str. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {value!r}")
    return value
