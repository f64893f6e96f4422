"""Schedules at run time: made, changed, paused, fired by hand.

Each schedule is a row that all processes of the app share; its leader fires it. Within a workflow
each of these verbs is a step, done once and recorded.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final, get_args

from dbos_async import errors
from dbos_async._config import Seconds
from dbos_async._engine.context import asking_branch, calling_branch
from dbos_async._engine.cron import cron_of
from dbos_async._engine.scheduler import tell_waiting
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded
from dbos_async._engine.ticks import run_of
from dbos_async._handle import WorkflowHandle
from dbos_async._queue import Queue
from dbos_async._schedule import (
    AnyWorkflow,
    Overlap,
    Schedule,
    ScheduleSpec,
    ScheduleStatus,
    check_schedules,
    checked_text,
    schedule_of,
    write_of,
)
from dbos_async._store import schedules
from dbos_async._store.clock import milliseconds_of
from dbos_async._store.schedules import Filter, Locked, Run, ScheduleRow

MAX_BACKFILL: Final = 10_000
"""Runs that one call may fire."""

Texts = str | Collection[str]


class Scheduling:
    """The verbs about schedules."""

    async def create_schedule(
        self,
        name: str,
        workflow: AnyWorkflow,
        cron: str,
        *,
        context: Any = None,
        timezone: str = "UTC",
        queue: str | Queue | None = None,
        backfill: bool = False,
        overlap: Overlap = "allow",
        jitter: Seconds = 0,
    ) -> None:
        """Make a schedule, which begins now. `DBOS.scheduled` explains the arguments.

        Args:
            name: what it is called, among all apps of the database.
            workflow: a workflow, or `stub(…)` for one that this process does not define.
            cron: when it is due.
            context: what the workflow gets as its second argument, if it has a second parameter.
            timezone: whose clocks it goes by.
            queue: where its runs go.
            backfill: whether all that was missed fires.
            overlap: what happens while an earlier run has not ended.
            jitter: seconds that a run may begin later.

        Raises:
            ValueError: there is one of this name, or a value cannot work; it says why.
            TypeError: it is no workflow, or none that takes a datetime and perhaps a context.
            SerializationError: the context cannot be stored.
            ConfigurationError: another app has a schedule of this name.
            QueueNotFoundError: there is no such queue.
            DatabaseLostError: Postgres cannot be reached; whether it was made is unknown.
        """
        spec = ScheduleSpec(
            name, workflow, cron, context, timezone, queue, backfill, overlap, jitter
        )
        write = write_of(spec)
        session = self._acting()

        async def create() -> None:
            await check_schedules(session, [write])
            schedule_id = own_id(session)
            await session.database.patiently(
                lambda: schedules.create(
                    session.database, write, schedule_id, session.application, session.clock.skew_ms
                )
            )

        await recorded("DBOS.createSchedule", create, None)

    async def apply_schedules(self, specs: Iterable[ScheduleSpec], /) -> None:
        """Make schedules, or change those that there are: all of them, or none.

        One that is paused stays so. Other times hold from now on. Within a workflow it is refused,
        because a replay may be of another version of the code.

        Raises:
            ConfigurationError: a workflow calls it, or another app has one of the names.
            ValueError, TypeError, SerializationError, QueueNotFoundError: as `create_schedule`, for
                any of them; also two of one name.
            DatabaseLostError: Postgres cannot be reached; apply them again.
        """
        branch = calling_branch("apply_schedules")
        if branch is not None and branch.step is None:
            raise errors.ConfigurationError(
                "apply_schedules cannot be called in a workflow: call it at the start of the app, "
                "or in a step"
            )
        if isinstance(specs, ScheduleSpec):
            raise TypeError("apply_schedules takes several: write apply_schedules([spec])")
        writes = [write_of(spec) for spec in specs]
        names = [write.name for write in writes]
        if len(set(names)) < len(names):
            raise ValueError(f"two schedules have one name: {names}")
        session = self._acting()
        await check_schedules(session, writes)
        await session.database.patiently(
            lambda: schedules.upsert(
                session.database, writes, session.application, session.clock.skew_ms
            )
        )

    async def list_schedules(
        self,
        *,
        status: ScheduleStatus | Collection[ScheduleStatus] | None = None,
        workflow_name: Texts | None = None,
        name_prefix: Texts | None = None,
        application_name: Texts | None = None,
    ) -> list[Schedule]:
        """The schedules of this app and of no app, by name; a client sees those of all apps.

        Args:
            status: of one state, or of several.
            workflow_name: of one workflow, or of several.
            name_prefix: whose names begin like this.
            application_name: of one app, or of several.

        Raises:
            TypeError: a filter is no str and no list of such.
            ValueError: there is no such status.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        statuses = texts(status, "status")
        unknown = set(statuses or ()) - set(get_args(ScheduleStatus))
        if unknown:
            raise ValueError(f"status is ACTIVE or PAUSED, not {min(unknown)!r}")
        chosen = Filter(
            statuses=statuses,
            workflow_names=texts(workflow_name, "workflow_name"),
            prefixes=texts(name_prefix, "name_prefix"),
            applications=texts(application_name, "application_name"),
        )
        return await self._schedules("DBOS.listSchedules", chosen)

    async def get_schedule(self, name: str) -> Schedule | None:
        """A schedule as it is now; None if there is none of this name.

        Raises:
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        chosen = Filter(names=[checked_text(name, "the schedule's name")])
        found = await self._schedules("DBOS.getSchedule", chosen)
        return found[0] if found else None

    async def pause_schedule(self, name: str) -> None:
        """Let a schedule fire nothing, until it is resumed; its runs go on.

        Raises:
            ScheduleNotFoundError: there is none of this name.
            DatabaseLostError: Postgres cannot be reached; try again.
        """
        await self._set_status("DBOS.pauseSchedule", name, "PAUSED")

    async def resume_schedule(self, name: str) -> None:
        """Let a paused schedule go on from now: what was due meanwhile never fires by itself.

        Raises as `pause_schedule` does.
        """
        await self._set_status("DBOS.resumeSchedule", name, "ACTIVE")

    async def delete_schedule(self, name: str) -> None:
        """Remove a schedule; its runs stay. The next launch of an app that declares it brings it
        back.

        Raises as `pause_schedule` does.
        """
        checked_text(name, "the schedule's name")
        session = self._acting()
        may_be_done = False

        async def attempt() -> None:
            nonlocal may_be_done
            try:
                found = await schedules.delete(session.database, name, session.application)
            except errors.DatabaseLostError:
                may_be_done = True
                raise
            if not found and not may_be_done:
                raise schedules.not_found(name)

        await recorded("DBOS.deleteSchedule", partial(session.database.patiently, attempt), None)

    async def trigger_schedule(self, name: str) -> WorkflowHandle[Any]:
        """Run a schedule's workflow now, paused or not, whatever runs of it there are.

        Raises:
            ScheduleNotFoundError: there is none of this name; nothing was run.
            DatabaseLostError: Postgres cannot be reached; whether it runs is unknown.
        """
        checked_text(name, "the schedule's name")
        session = self._acting()

        async def now() -> str:
            return moment_of_call(session).isoformat()

        moment = await recorded("DBOS.now", now, str)
        return (await self._fire("DBOS.triggerSchedule", name, lambda _: [moment], "trigger-"))[0]

    async def backfill_schedule(
        self, name: str, start: datetime, end: datetime
    ) -> list[WorkflowHandle[Any]]:
        """Run a schedule's workflow for what was due from `start` until before `end`.

        What ran already does not run again: the handles are on the same workflows. A paused
        schedule is backfilled, too, and `overlap` and `jitter` do not matter.

        Returns:
            A handle for each, in order.

        Raises:
            ScheduleNotFoundError: there is none of this name; nothing was run, as with all errors.
            ValueError: a moment has no time zone, the end is before the start, or it would be more
                than 10,000 runs: take shorter spans.
            TypeError: a moment is no datetime.
            DatabaseLostError: Postgres cannot be reached; call it again.
        """
        checked_text(name, "the schedule's name")
        for moment in (start, end):
            if not isinstance(moment, datetime):
                raise TypeError(f"a schedule is backfilled between datetimes, not {moment!r}")
            milliseconds_of(moment)  # a naive one is refused
        if end < start:
            raise ValueError(f"the end {end} is before the start {start}")
        return await self._fire("DBOS.backfillSchedule", name, partial(ticks_in, start, end))

    async def _schedules(self, step: str, chosen: Filter) -> list[Schedule]:
        session = self._acting()

        async def fetch() -> tuple[int, list[ScheduleRow]]:
            now_ms = session.clock.now_ms()
            return now_ms, await schedules.fetch(session.database, chosen, session.application)

        now_ms, rows = await recorded(step, fetch, tuple[int, list[ScheduleRow]])
        allow_pickle = session.settings.allow_pickle
        return [schedule_of(row, now_ms, allow_pickle=allow_pickle) for row in rows]

    async def _set_status(self, step: str, name: str, status: ScheduleStatus) -> None:
        checked_text(name, "the schedule's name")
        session = self._acting()

        async def change() -> None:
            await session.database.patiently(
                lambda: schedules.set_status(
                    session.database, name, session.application, status, session.clock.skew_ms
                )
            )

        await recorded(step, change, None)

    async def _fire(
        self, step: str, name: str, moments_of: Callable[[Locked], list[str]], kind: str = ""
    ) -> list[WorkflowHandle[Any]]:
        session = self._acting()
        allow_pickle = session.settings.allow_pickle

        def runs_of(row: Locked) -> Sequence[Run]:
            return [
                run_of(row, moment, None, allow_pickle=allow_pickle, kind=kind)
                for moment in moments_of(row)
            ]

        async def fire() -> tuple[str, list[str]]:
            row, runs, waiting = await session.database.patiently(
                lambda: schedules.fire_now(
                    session.database, name, session.application, runs_of, session.clock.skew_ms
                )
            )
            tell_waiting(session, waiting)
            return row.workflow_name, [run.workflow_id for run in runs]

        workflow_name, ids = await recorded(step, fire, tuple[str, list[str]])
        return [self._handle(workflow_id, workflow_name) for workflow_id in ids]

    def _acting(self) -> Session:
        raise NotImplementedError

    def _handle(self, workflow_id: str, name: str) -> WorkflowHandle[Any]:
        raise NotImplementedError


def ticks_in(start: datetime, end: datetime, row: Locked) -> list[str]:
    """The moments at which a schedule is due from one moment until before another.

    Raises:
        ValueError: the expression cannot be read, or there are too many.
    """
    cron = cron_of(row.cron, row.timezone or "UTC")
    before = start - timedelta(microseconds=1)
    ticks = [tick for tick in islice(cron.between(before, end), MAX_BACKFILL + 1) if tick < end]
    if len(ticks) > MAX_BACKFILL:
        raise ValueError(
            f"the schedule {row.name!r} was due more than {MAX_BACKFILL:,} times from {start} to "
            f"{end}: backfill shorter spans, one after the other"
        )
    return [tick.isoformat() for tick in ticks]


def moment_of_call(session: Session) -> datetime:
    """Now, and never the same twice in a process, so that no two runs get one id."""
    boot, _, number = session.intake.next_owner().partition("-")
    microseconds = (int(boot, 16) + int(number)) % 1000
    return session.clock.now() + timedelta(microseconds=microseconds)


def own_id(session: Session) -> str:
    """What names a new row: within a workflow its step, so that a replay finds its own."""
    branch = asking_branch()
    if branch is None or branch.step is None:
        return session.intake.new_id()
    return f"{branch.execution.workflow_id}-{branch.step.key}"


def texts(value: Any, what: str) -> list[str] | None:
    """The texts that a filter allows. Raises TypeError if it is something else."""
    if value is None:
        return None
    values: list[object] = [value] if isinstance(value, str) else list(value)
    return [checked_text(each, what) for each in values]
