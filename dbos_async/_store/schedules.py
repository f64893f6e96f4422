"""Schedules in the database: written down, changed, fired.

A tick fires in one transaction: the schedules' rows are locked, what fires is decided by what they
say then, and the runs appear together with the note that the tick is decided. So any number of
processes may try, at once or after each other, and whichever dies.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.database import Connection, Database
from dbos_async._store.queues import Due

ENCODER: Final = msgspec.json.Encoder()
CHUNK: Final = 1_000
"""Runs that one statement fires; `FIRE` numbers no more."""


class ScheduleWrite(Struct, frozen=True, kw_only=True):
    """A schedule as it is asked for."""

    name: str
    workflow_name: str
    cron: str
    timezone: str
    queue_name: str | None
    context: str
    backfill: bool
    overlap: str
    jitter: float


class ScheduleRow(Struct, frozen=True):
    """A schedule as the database has it, whoever wrote it."""

    name: str
    workflow_name: str
    cron: str
    timezone: str | None
    queue_name: str | None
    status: str
    context: str
    backfill: bool
    overlap: str | None
    jitter: float | None
    last_fired_at: str | None
    application: str | None
    is_declared: bool
    decided_until_ms: int | None
    held_ms: int | None


class PlanRow(Struct, frozen=True):
    """When to look at a schedule again."""

    name: str
    cron: str
    timezone: str | None
    decided_until_ms: int | None
    is_holding: bool


class Locked(Struct, frozen=True):
    """A schedule that nobody else decides on meanwhile."""

    name: str
    workflow_name: str
    cron: str
    timezone: str | None
    foreign_context: str | None
    """The context, if it is no JSON."""
    backfill: bool
    overlap: str | None
    decided_until_ms: int | None
    held_ms: int | None
    last_fired_at: str | None


class ActiveRun(Struct, frozen=True):
    """A run of a schedule that has not ended."""

    schedule_name: str
    workflow_id: str


class ScheduleOwner(Struct, frozen=True):
    """Whose a schedule is."""

    name: str
    schedule_id: str
    application: str | None


class ScheduleName(Struct, frozen=True):
    """Just the name."""

    name: str


class Run(Struct, frozen=True):
    """A run to be fired."""

    workflow_id: str
    schedule_name: str
    moment: str
    """When it is due: ISO 8601, in UTC."""
    inputs: str | None = None
    """None: made of the moment and the schedule's context."""


class Decision(Struct, frozen=True):
    """What becomes of what is due of a schedule."""

    name: str
    decided_until_ms: int
    runs: Sequence[Run] = ()
    held_ms: int | None = None
    last_fired_at: str | None = None
    cancelled: Sequence[str] = ()


class Filter(Struct, frozen=True, kw_only=True):
    """Which schedules; None: whichever."""

    names: Sequence[str] | None = None
    statuses: Sequence[str] | None = None
    workflow_names: Sequence[str] | None = None
    prefixes: Sequence[str] | None = None
    applications: Sequence[str] | None = None


Decide = Callable[[Locked, Sequence[str]], Decision | None]
"""Decides on a schedule, knowing the ids of its runs that have not ended; None leaves it alone."""


async def fetch(database: Database, chosen: Filter, application: str | None) -> list[ScheduleRow]:
    """The schedules that fit, by name, of one application and of none; of any, for a client."""
    return await database.fetch(
        sql.FETCH_SCHEDULES,
        chosen.names,
        application,
        chosen.statuses,
        chosen.workflow_names,
        chosen.prefixes,
        chosen.applications,
        into=ScheduleRow,
    )


async def create(
    database: Database,
    schedule: ScheduleWrite,
    schedule_id: str,
    application: str | None,
    skew_ms: int,
) -> None:
    """Write a new schedule down. With the same id again, nothing happens.

    Raises:
        ConfigurationError: another app has the name.
        ValueError: there is one of this name.
    """
    text = ENCODER.encode([schedule]).decode()
    async with database.lease() as connection:
        if await connection.fetchval(
            sql.CREATE_SCHEDULE, text, application, schedule_id, skew_ms, False
        ):
            return
        await check_owners(connection, [schedule.name], application)
        rows = await connection.fetch(sql.FIND_SCHEDULE_OWNERS, [schedule.name])
    if rows and ScheduleOwner(*rows[0]).schedule_id != schedule_id:
        raise ValueError(
            f"there is a schedule {schedule.name!r} already: change it by apply_schedules, or "
            "delete it first"
        )


async def upsert(
    database: Database,
    schedules: Sequence[ScheduleWrite],
    application: str | None,
    skew_ms: int,
    *,
    declaring_version: str | None = None,
) -> None:
    """Write schedules down: new ones, and what is new of those there are; all, or none.

    Args:
        database: where.
        schedules: which.
        application: whose.
        skew_ms: how far a test is ahead.
        declaring_version: they are declared by this version of the app's code, and an older one
            than the newest changes nothing.

    Raises:
        ConfigurationError: another app has one of the names.
    """
    if not schedules:
        return
    text = ENCODER.encode(schedules).decode()
    async with database.lease() as connection, connection.transaction():
        await connection.execute(
            sql.UPSERT_SCHEDULES,
            text,
            application,
            None,
            skew_ms,
            declaring_version is not None,
            declaring_version,
        )
        await check_owners(connection, [schedule.name for schedule in schedules], application)


async def check_owners(
    connection: Connection, names: Sequence[str], application: str | None
) -> None:
    """Refuse schedules that are another app's.

    Raises:
        ConfigurationError: there is one; choose another name.
    """
    if application is None:
        return
    for row in await connection.fetch(sql.FIND_SCHEDULE_OWNERS, list(names)):
        owner = ScheduleOwner(*row)
        if owner.application not in (None, application):
            raise errors.ConfigurationError(
                f"the schedule {owner.name!r} belongs to the app {owner.application!r} in this "
                f"database, so the app {application!r} cannot have one of this name: names of "
                "schedules are shared by all its apps. Choose another by name=…, or delete that "
                "one from its own app"
            )


async def find_undeclared(
    database: Database, names: Sequence[str], application: str
) -> list[ScheduleName]:
    """The schedules that an app declared once, and that are not among these."""
    return await database.fetch(sql.FIND_UNDECLARED, list(names), application, into=ScheduleName)


async def set_status(
    database: Database, name: str, application: str | None, status: str, skew_ms: int
) -> None:
    """Pause a schedule, or let it go on from now. Raises ScheduleNotFoundError."""
    if not await database.execute(sql.SET_SCHEDULE_STATUS, name, application, status, skew_ms):
        raise not_found(name)


async def delete(database: Database, name: str, application: str | None) -> bool:
    """Delete a schedule; its runs stay. Whether there was one."""
    return bool(await database.execute(sql.DELETE_SCHEDULE, name, application))


async def fetch_plans(
    database: Database, names: Sequence[str] | None, application: str
) -> list[PlanRow]:
    """When to look at the active ones of these schedules, or of all, again."""
    return await database.fetch(sql.FETCH_PLANS, names, application, into=PlanRow)


class Fired(Struct, frozen=True):
    """What came of deciding on schedules."""

    decisions: list[Decision]
    waiting: list[Due]
    """Where the new runs wait."""
    cancelled: list[str]
    """Earlier runs that were, and what they had started."""


async def decide_on(
    database: Database,
    names: Sequence[str],
    application: str,
    decide: Decide,
    skew_ms: int,
) -> Fired:
    """Decide on these schedules and fire what is due.

    Those that were paused, deleted or left alone meanwhile are not among the decisions.
    """
    async with database.lease() as connection, connection.transaction():
        rows = await connection.fetch(sql.LOCK_ACTIVE_SCHEDULES, list(names), application)
        locked = [Locked(*row) for row in rows]
        active = await find_active(connection, locked)
        decided = [decide(each, active.get(each.name, ())) for each in locked]
        decisions = [decision for decision in decided if decision is not None]
        roots = [workflow_id for decision in decisions for workflow_id in decision.cancelled]
        cancelled = await connection.fetch(sql.CANCEL, roots, True, skew_ms) if roots else []
        waiting = await fire(connection, decisions, skew_ms)
    return Fired(decisions, waiting, [row[0] for row in cancelled])


async def fire_now(
    database: Database,
    name: str,
    application: str | None,
    runs_of: Callable[[Locked], Sequence[Run]],
    skew_ms: int,
) -> tuple[Locked, Sequence[Run], list[Due]]:
    """Fire runs of a schedule whatever its state, and decide nothing.

    Raises:
        ScheduleNotFoundError: there is no such schedule.
        Exception: what `runs_of` raises; nothing was fired.
    """
    async with database.lease() as connection, connection.transaction():
        row = await connection.fetchrow(sql.LOCK_SCHEDULES, [name], application)
        if row is None:
            raise not_found(name)
        locked = Locked(*row)
        runs = runs_of(locked)
        waiting: list[Due] = []
        for start in range(0, len(runs), CHUNK):
            waiting += await insert(connection, runs[start : start + CHUNK], [], skew_ms)
    return locked, runs, waiting


async def find_active(
    connection: Connection, locked: Sequence[Locked]
) -> Mapping[str, Sequence[str]]:
    """The runs that have not ended, of those schedules to which it matters."""
    names = [each.name for each in locked if each.overlap not in (None, "allow")]
    active: defaultdict[str, list[str]] = defaultdict(list)
    for row in await connection.fetch(sql.FIND_ACTIVE_RUNS, names) if names else ():
        run = ActiveRun(*row)
        active[run.schedule_name].append(run.workflow_id)
    return active


async def fire(connection: Connection, decisions: Sequence[Decision], skew_ms: int) -> list[Due]:
    """Fire what was decided; where it waits."""
    waiting: list[Due] = []
    runs = [run for decision in decisions for run in decision.runs]
    for start in range(0, max(len(runs), 1), CHUNK):
        part = runs[start : start + CHUNK]
        waiting += await insert(
            connection, part, decisions if start == 0 else (), skew_ms, jitter=True
        )
    return waiting


async def insert(
    connection: Connection,
    runs: Sequence[Run],
    decisions: Sequence[Decision],
    skew_ms: int,
    *,
    jitter: bool = False,
) -> list[Due]:
    """One statement: runs, and what is decided."""
    rows = await connection.fetch(
        sql.FIRE,
        [run.workflow_id for run in runs],
        [run.schedule_name for run in runs],
        [run.moment for run in runs],
        [run.inputs for run in runs],
        [decision.name for decision in decisions],
        [decision.decided_until_ms for decision in decisions],
        [decision.held_ms for decision in decisions],
        [decision.last_fired_at for decision in decisions],
        jitter,
        skew_ms,
    )
    return [Due(*row) for row in rows]


def not_found(name: str) -> errors.ScheduleNotFoundError:
    """There is no schedule of this name."""
    return errors.ScheduleNotFoundError(
        f"there is no schedule named {name!r}: list_schedules() has those that there are"
    )
