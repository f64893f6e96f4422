"""Schedules: declared, fired, overlapped, paused, made at run time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    QueueNotFoundError,
    Router,
    Schedule,
    ScheduleNotFoundError,
    ScheduleSpec,
)
from dbos_async._engine.cron import cron_of
from dbos_async._engine.ticks import iso_of
from dbos_async._store import schedules
from dbos_async._store.schedules import Decision, Locked, Run

Connection = Any  # of asyncpg
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]

EVERY_SECOND = "* * * * * *"
NEVER_SOON = "0 0 1 1 *"
SECOND = timedelta(seconds=1)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
RUNS = "select * from dbos.workflow_status where schedule_name = $1 order by workflow_uuid"


def app_on(url: str, name: str = "shop", version: str = "1") -> DBOS:
    dbos = DBOS(name, url, app_version=version)
    dbos.configure(recheck_interval=3600)  # it is told
    return dbos


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return app_on(dbos_database_url)


async def get(dbos: DBOS | Client, name: str) -> Schedule:
    schedule = await dbos.get_schedule(name)
    assert schedule is not None
    return schedule


def due_of(workflow_id: str) -> datetime:
    return datetime.fromisoformat(workflow_id.removeprefix("sched-tick-"))


# Firing


async def test_a_workflow_gets_the_moment_at_which_it_was_due_in_utc(
    dbos: DBOS, database: Connection, until: Until
) -> None:
    got: list[datetime] = []

    @dbos.scheduled(EVERY_SECOND, timezone="Asia/Kathmandu")
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None:
        got.append(due)

    async def enough() -> bool:
        return len(got) >= 3

    async with dbos:
        await until(enough)
        rows = await database.fetch(RUNS, "tick")
    assert all(due.tzinfo is UTC and not due.microsecond for due in got)
    assert got == [got[0] + number * SECOND for number in range(len(got))]
    assert [row["workflow_uuid"] for row in rows][:3] == [
        f"sched-tick-{due.isoformat()}" for due in got[:3]
    ]
    assert {row["queue_name"] for row in rows} == {"_dbos_internal_queue"}


async def test_a_second_parameter_gets_the_context_typed(dbos: DBOS) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()

    @dbos.scheduled(NEVER_SOON, context={"since": NEW_YEAR})
    @dbos.workflow(name="by position")
    async def by_position(due: datetime, context: dict[str, datetime]) -> None:
        got.put_nowait(context)

    @dbos.workflow(name="by name")
    async def by_name(due: datetime, *, context: dict[str, datetime]) -> None:
        got.put_nowait(context)

    @dbos.workflow(name="without")
    async def without(due: datetime) -> None:
        got.put_nowait(due)

    async with dbos:
        await dbos.create_schedule("b", by_name, NEVER_SOON, context={"since": NEW_YEAR})
        await dbos.create_schedule("c", without, NEVER_SOON, context={"since": NEW_YEAR})
        for name in ("by position", "b"):
            handle = await dbos.trigger_schedule(name)
            await handle.get_result(timeout=20)
            assert got.get_nowait() == {"since": NEW_YEAR}
        handle = await dbos.trigger_schedule("c")
        await handle.get_result(timeout=20)
        due = got.get_nowait()
        assert handle.workflow_id == f"sched-c-trigger-{due.isoformat()}"
        status = await handle.get_status()
        assert status.input is not None
        assert len(status.input.args) == 1
        fork = await dbos.fork_workflow(handle.workflow_id)  # of a run without a schedule
        await fork.get_result(timeout=20)
        reports = await dbos.check_replay(schedule_name=["by position", "b", "c"])
        assert [report.is_ok for report in reports] == [True] * 3, reports


async def test_a_router_declares_schedules_and_a_queue_takes_their_runs(
    dbos: DBOS, database: Connection, until: Until
) -> None:
    router = Router()
    queue = dbos.queue("mail")

    @router.scheduled(EVERY_SECOND, queue=queue, jitter=0.9, name="second")
    @router.scheduled(NEVER_SOON, name="yearly")
    @router.workflow(name="tick")
    async def tick(due: datetime) -> str:
        return due.isoformat()

    dbos.include(router)

    async def has_run() -> bool:
        rows = await database.fetch(RUNS, "second")
        return sum(row["status"] == "SUCCESS" for row in rows) >= 2

    async with dbos:
        await until(has_run)
        assert [each.name for each in await router.list_schedules()] == ["second", "yearly"]
    row = (await database.fetch(RUNS, "second"))[0]
    assert row["queue_name"] == "mail"
    due_ms = round(datetime.fromisoformat(row["workflow_uuid"][len("sched-second-") :]).timestamp())
    if row["delay_until_epoch_ms"] is not None:
        assert 0 < row["delay_until_epoch_ms"] - due_ms * 1000 <= 900
    assert row["output"] == f'"{row["workflow_uuid"][len("sched-second-") :]}"'


async def test_two_leaders_at_once_fire_a_tick_once_even_if_its_run_is_deleted(
    dbos: DBOS, database: Connection
) -> None:
    names = [f"s-{number:03}" for number in range(100)]
    tick = round(NEW_YEAR.timestamp() * 1000)

    def decide(row: Locked, active: object) -> Decision | None:
        moment = iso_of(tick)
        assert row.decided_until_ms is not None
        if row.decided_until_ms >= tick:
            return Decision(row.name, row.decided_until_ms)
        run = Run(f"sched-{row.name}-{moment}", row.name, moment)
        return Decision(row.name, tick, [run], last_fired_at=moment)

    async with dbos:
        specs = [ScheduleSpec(name, dbos.stub("nobody's"), NEVER_SOON) for name in names]
        await dbos.apply_schedules(specs)
        await database.execute("update dbos.workflow_schedules set decided_until_epoch_ms = 0")
        store = dbos._own_session().database

        async def fire() -> int:
            fired = 0
            for _ in range(5):  # what another one has locked is skipped
                done = await schedules.decide_on(store, names, "shop", decide, 0)
                fired += len(done.waiting)
            return fired

        counts = await asyncio.gather(*(fire() for _ in range(3)))
        assert sum(counts) == len(names)
        await database.execute("delete from dbos.workflow_status")
        assert await fire() == 0
    fired = await database.fetch("select last_fired_at from dbos.workflow_schedules")
    assert {row["last_fired_at"] for row in fired} == {NEW_YEAR.isoformat()}


# What was missed


async def test_a_launch_fires_what_a_change_of_leaders_missed_and_nothing_older(
    dbos: DBOS, database: Connection, until: Until
) -> None:
    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async with dbos:
        await dbos.pause_schedule("tick")
        await dbos.delete_workflows(schedule_name="tick")
    now = await database.fetchval("select (extract(epoch from now()) * 1000)::bigint")
    await database.execute(
        "update dbos.workflow_schedules set status = 'ACTIVE', decided_until_epoch_ms = $1",
        now - 3_600_000,
    )

    async def has_fired() -> bool:
        return bool(await database.fetch(RUNS, "tick"))

    async with dbos:
        await until(has_fired)
    dues = [due_of(row["workflow_uuid"]) for row in await database.fetch(RUNS, "tick")]
    assert dues == [dues[0] + number * SECOND for number in range(len(dues))]
    assert len(dues) >= 15
    assert dues[0].timestamp() * 1000 >= now - 15_000


async def test_with_backfill_everything_that_was_missed_fires_in_any_number(
    dbos: DBOS, database: Connection, until: Until
) -> None:
    @dbos.scheduled("*/3 * * * * *", backfill=True)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async with dbos:
        await dbos.pause_schedule("tick")
    await database.execute("delete from dbos.workflow_status")
    now = await database.fetchval("select (extract(epoch from now()) * 1000)::bigint")
    await database.execute(
        "update dbos.workflow_schedules set status = 'ACTIVE', decided_until_epoch_ms = $1",
        now - 3_600_000,
    )

    async def has_fired() -> bool:
        return len(await database.fetch(RUNS, "tick")) >= 1200

    async with dbos:
        await until(has_fired)
    dues = [due_of(row["workflow_uuid"]) for row in await database.fetch(RUNS, "tick")]
    assert dues == [dues[0] + number * 3 * SECOND for number in range(len(dues))]
    assert 0 < dues[0].timestamp() * 1000 - (now - 3_600_000) <= 3_000


async def test_what_is_due_while_a_schedule_is_paused_never_fires_even_with_backfill(
    dbos: DBOS, database: Connection, until: Until
) -> None:
    @dbos.scheduled(EVERY_SECOND, backfill=True)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async def count() -> int:
        return len(await database.fetch(RUNS, "tick"))

    async def fires() -> bool:
        return await count() > before

    async with dbos:
        before = 0
        await until(fires)
        await dbos.pause_schedule("tick")
        paused = await get(dbos, "tick")
        assert (paused.status, paused.next_due_at) == ("PAUSED", None)
        before = await count()
        await database.execute("select pg_sleep(2.5)")
        assert await count() == before
        resumed_at = await dbos.now()
        await dbos.resume_schedule("tick")
        await dbos.resume_schedule("tick")
        await until(fires)
        last = (await database.fetch(RUNS, "tick"))[before]
        assert due_of(last["workflow_uuid"]) > resumed_at - timedelta(milliseconds=50)


async def test_a_paused_schedule_stays_so_over_a_launch_and_hears_of_sql(
    dbos: DBOS, database: Connection, until: Until, dbos_database_url: str
) -> None:
    def declared(cron: str, version: str) -> DBOS:
        dbos = app_on(dbos_database_url, version=version)

        @dbos.scheduled(cron)
        @dbos.workflow(name="tick")
        async def tick(due: datetime) -> None: ...

        return dbos

    async def has_fired() -> bool:
        return bool(await database.fetch(RUNS, "tick"))

    old, new = declared(NEVER_SOON, "1"), declared(EVERY_SECOND, "2")
    async with old:
        await old.pause_schedule("tick")
    async with new:
        schedule = await get(new, "tick")
        assert (schedule.status, schedule.cron) == ("PAUSED", EVERY_SECOND)
    async with old:  # an older version again: it does not take the schedule back
        assert (await get(old, "tick")).cron == EVERY_SECOND
    async with new:
        assert not await has_fired()
        await database.execute("update dbos.workflow_schedules set status = 'ACTIVE'")
        await until(has_fired)


# Overlap


class Gated:
    """An app with a schedule of every second whose runs wait to be let go."""

    def __init__(self, url: str, overlap: Any) -> None:
        self.dbos = dbos = app_on(url)
        self.gate = asyncio.Event()
        self.dues: list[datetime] = []

        @dbos.workflow(name="child")
        async def child() -> None:
            await self.gate.wait()

        @dbos.scheduled(EVERY_SECOND, overlap=overlap)
        @dbos.workflow(name="tick")
        async def tick(due: datetime) -> None:
            self.dues.append(due)
            await child()


async def decided(database: Connection) -> int:
    """Until when the schedule is decided, in whole seconds."""
    moment: int = await database.fetchval(
        "select decided_until_epoch_ms / 1000 from dbos.workflow_schedules"
    )
    return moment


async def test_skip_fires_nothing_while_a_run_has_not_ended(
    dbos_database_url: str, database: Connection, until: Until
) -> None:
    app = Gated(dbos_database_url, "skip")

    async def three_ticks_later() -> bool:
        return bool(app.dues) and await decided(database) >= app.dues[0].timestamp() + 3

    async def fires_again() -> bool:
        return len(app.dues) > 1

    async with app.dbos:
        await until(three_ticks_later)
        assert len(app.dues) == 1
        app.gate.set()
        await until(fires_again)
    assert app.dues[1] - app.dues[0] > 3 * SECOND


async def test_buffer_one_holds_the_first_tick_back_until_the_run_has_ended(
    dbos_database_url: str, database: Connection, until: Until
) -> None:
    app = Gated(dbos_database_url, "buffer_one")

    async def three_ticks_later() -> bool:
        return bool(app.dues) and await decided(database) >= app.dues[0].timestamp() + 3

    async def fires_again() -> bool:
        return len(app.dues) > 1

    async with app.dbos:
        await until(three_ticks_later)
        assert len(app.dues) == 1
        app.gate.set()
        await until(fires_again)
    assert app.dues[1] == app.dues[0] + SECOND


async def test_cancel_previous_cancels_what_runs_and_its_children(
    dbos_database_url: str, database: Connection, until: Until
) -> None:
    app = Gated(dbos_database_url, "cancel_previous")

    async def three() -> bool:
        return len(app.dues) >= 3

    async def first_has_stopped() -> bool:
        return f"sched-tick-{app.dues[0].isoformat()}" not in app.dbos.launched().running

    async with app.dbos:
        await until(three)
        await until(first_has_stopped)
        first = f"sched-tick-{app.dues[0].isoformat()}"
        family = await database.fetch(
            "select status from dbos.workflow_status "
            "where $1 in (workflow_uuid, parent_workflow_id)",
            first,
        )
        assert {row["status"] for row in family} == {"CANCELLED"}
        running = [
            row for row in await database.fetch(RUNS, "tick") if row["status"] != "CANCELLED"
        ]
        assert len(running) == 1
        app.gate.set()


async def test_allow_runs_them_beside_each_other(
    dbos_database_url: str, database: Connection, until: Until
) -> None:
    app = Gated(dbos_database_url, "allow")

    async def two() -> bool:
        rows = await database.fetch(RUNS, "tick")
        return sum(row["status"] == "PENDING" for row in rows) >= 2

    async with app.dbos:
        await until(two)
        app.gate.set()


# By hand


async def test_backfill_runs_what_was_due_and_nothing_twice(
    dbos: DBOS, database: Connection
) -> None:
    ran: list[datetime] = []

    @dbos.scheduled("0 * * * *", timezone="Europe/Berlin", overlap="skip", jitter=3600)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None:
        ran.append(due)

    async with dbos:
        await dbos.pause_schedule("tick")
        start = NEW_YEAR
        first = await dbos.backfill_schedule("tick", start, start + timedelta(hours=3))
        more = await dbos.backfill_schedule("tick", start, start + timedelta(hours=4))
        for handle in more:
            await handle.get_result(timeout=20)
    assert [handle.workflow_id for handle in first] == [
        f"sched-tick-2026-01-01T0{hour}:00:00+00:00" for hour in range(3)
    ]
    assert sorted(ran) == [start + timedelta(hours=hour) for hour in range(4)]
    assert len(more) == 4


async def test_every_trigger_runs_once_whatever_the_state(dbos: DBOS) -> None:
    @dbos.scheduled(NEVER_SOON, overlap="skip")
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> datetime:
        return due

    async with dbos:
        await dbos.pause_schedule("tick")
        handles = await asyncio.gather(*(dbos.trigger_schedule("tick") for _ in range(50)))
        dues = [await handle.get_result(timeout=20) for handle in handles]
        listed = await dbos.list_workflows(schedule_name="tick", limit=1000)
    assert len(set(dues)) == len({handle.workflow_id for handle in handles}) == len(listed) == 50


async def test_a_client_makes_and_manages_schedules_of_workflows_it_does_not_define(
    dbos: DBOS, dbos_database_url: str, until: Until
) -> None:
    got: list[Any] = []

    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None:
        got.append(due)

    async def has_fired() -> bool:
        return bool(got)

    async with dbos, Client(dbos_database_url) as client:
        await client.create_schedule("c", client.stub("tick"), EVERY_SECOND, context=[1])
        await until(has_fired)
        await client.pause_schedule("c")
        assert [each.name for each in await client.list_schedules(status="PAUSED")] == ["c"]
        assert await client.list_schedules(status=["ACTIVE"]) == []
        assert [s.context for s in await client.list_schedules(name_prefix="c")] == [[1]]
        assert await client.list_schedules(workflow_name=["other"]) == []
        assert await client.list_schedules(application_name="shop") == []
        await client.apply_schedules([ScheduleSpec("c", client.stub("tick"), NEVER_SOON)])
        schedule = await get(client, "c")
        assert (schedule.status, schedule.cron, schedule.context) == ("PAUSED", NEVER_SOON, None)
        assert schedule.last_fired_at is not None
        handle = await client.trigger_schedule("c")
        await handle.get_result(timeout=20)
        await client.delete_schedule("c")
        assert await client.get_schedule("c") is None
        with pytest.raises(ScheduleNotFoundError, match="'c'"):
            await client.delete_schedule("c")


async def test_within_a_workflow_each_verb_is_a_step_done_once(dbos: DBOS) -> None:
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> datetime:
        return due

    @dbos.workflow(name="manager")
    async def manager() -> list[Any]:
        await dbos.create_schedule("s", tick, NEVER_SOON)
        await dbos.pause_schedule("s")
        found = await dbos.get_schedule("s")
        await dbos.resume_schedule("s")
        run = await dbos.trigger_schedule("s")
        due = await run.get_result()
        [old] = await dbos.backfill_schedule("s", NEW_YEAR, NEW_YEAR + SECOND)
        listed = [each.name for each in await dbos.list_schedules()]
        await dbos.delete_schedule("s")
        assert found is not None
        return [found.status, due == due_of_trigger(run.workflow_id), old.workflow_id, listed]

    def due_of_trigger(workflow_id: str) -> datetime:
        return datetime.fromisoformat(workflow_id.removeprefix("sched-s-trigger-"))

    async with dbos:
        handle = await dbos.start_workflow(manager)
        result = await handle.get_result(timeout=20)
        steps = await dbos.list_steps(handle.workflow_id)
        [report] = await dbos.check_replay(workflow_ids=[handle.workflow_id])
    assert result == ["PAUSED", True, f"sched-s-{NEW_YEAR.isoformat()}", ["s"]]
    assert report.is_ok
    assert [step.name for step in steps] == [
        "DBOS.createSchedule",
        "DBOS.pauseSchedule",
        "DBOS.getSchedule",
        "DBOS.resumeSchedule",
        "DBOS.now",
        "DBOS.triggerSchedule",
        "DBOS.getResult",
        "DBOS.backfillSchedule",
        "DBOS.listSchedules",
        "DBOS.deleteSchedule",
    ]


async def test_other_times_hold_from_now_on(dbos: DBOS, database: Connection) -> None:
    async with dbos:
        stub = dbos.stub("tick")
        await dbos.create_schedule("s", stub, NEVER_SOON, backfill=True)
        for change in ("schedule = '* * * * *'", "cron_timezone = 'Asia/Tokyo'"):
            await database.execute("update dbos.workflow_schedules set decided_until_epoch_ms = 1")
            await database.execute(f"update dbos.workflow_schedules set {change}")
            assert await decided(database) > 1_700_000_000
        await database.execute("update dbos.workflow_schedules set decided_until_epoch_ms = 1")
        await dbos.apply_schedules([ScheduleSpec("s", stub, "1 * * * *", backfill=True)])
        assert await decided(database) > 1_700_000_000
    assert await database.fetch(RUNS, "s") == []


# Whose, and no longer


async def test_a_name_that_another_app_has_is_refused_with_both_names(
    dbos: DBOS, dbos_database_url: str, database: Connection
) -> None:
    other = app_on(dbos_database_url, "bank")

    @dbos.scheduled(NEVER_SOON, name="nightly")
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    @other.scheduled(NEVER_SOON, name="nightly")
    @other.workflow(name="tock")
    async def tock(due: datetime) -> None: ...

    async with dbos:
        with pytest.raises(ConfigurationError, match=r"'nightly'.*'shop'.*'bank'.*name=…"):
            await other.launch()
    async with app_on(dbos_database_url, "bank") as bank:
        with pytest.raises(ConfigurationError, match=r"'shop'.*'bank'"):
            await bank.create_schedule("nightly", bank.stub("tock"), NEVER_SOON)
        specs = [ScheduleSpec(name, bank.stub("tock"), NEVER_SOON) for name in ("a", "nightly")]
        with pytest.raises(ConfigurationError, match=r"'shop'.*'bank'"):
            await bank.apply_schedules(specs)
        assert await bank.list_schedules() == []
        with pytest.raises(ScheduleNotFoundError):
            await bank.pause_schedule("nightly")
    rows = await database.fetch("select workflow_name from dbos.workflow_schedules")
    assert [row[0] for row in rows] == ["tick"]


async def test_a_schedule_that_the_code_has_no_more_is_told_of_and_left(
    dbos: DBOS, dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @dbos.scheduled(NEVER_SOON)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async with dbos:
        await dbos.create_schedule("made", tick, NEVER_SOON)
    with caplog.at_level(logging.WARNING, "dbos_async"):
        async with app_on(dbos_database_url, version="2") as later:
            assert [each.is_declared for each in await later.list_schedules()] == [False, True]
    assert caplog.text.count("await dbos.delete_schedule('tick')") == 1
    assert "made" not in caplog.text


async def test_a_schedule_that_cannot_be_read_stops_no_other(
    dbos: DBOS, database: Connection, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async def has_fired() -> bool:
        return bool(await database.fetch(RUNS, "tick"))

    async with dbos:
        await database.execute("""
            insert into dbos.workflow_schedules
                   (schedule_id, schedule_name, workflow_name, schedule, context, cron_timezone)
            values ('1', 'odd', 'tick', 'whenever', 'null', null),
                   ('2', 'far', 'tick', '* * * * *', 'null', 'Mars/Base')
        """)
        await database.execute("delete from dbos.workflow_status")
        await until(has_fired)
        assert (await get(dbos, "odd")).next_due_at is None
    assert "'whenever'" in caplog.text
    assert "'Mars/Base'" in caplog.text


async def test_a_schedule_that_postgres_refuses_to_fire_stops_no_other(
    dbos: DBOS, database: Connection, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async def has_fired_and_said_so() -> bool:
        fired = len(await database.fetch(RUNS, "tick"))
        return fired > 3 and "refuses to fire a schedule" in caplog.text

    async with dbos:
        await dbos.create_schedule("long", dbos.stub("tick"), EVERY_SECOND)
        await database.execute(
            "update dbos.workflow_schedules "
            "set workflow_class_name = repeat('x', 300) where schedule_name = 'long'"
        )
        await database.execute("delete from dbos.workflow_status")
        await until(has_fired_and_said_so)
        assert await database.fetch(RUNS, "long") == []


async def test_who_fires_need_not_know_the_workflow(
    dbos: DBOS, dbos_database_url: str, database: Connection, until: Until
) -> None:
    newer = app_on(dbos_database_url, version="2")
    got: list[datetime] = []

    @newer.scheduled(EVERY_SECOND)
    @newer.workflow(name="tick")
    async def tick(due: datetime) -> None:
        got.append(due)

    async def has_run() -> bool:
        rows = await database.fetch(RUNS, "tick")
        return bool(got) and any(row["status"] == "SUCCESS" for row in rows)

    async with dbos, newer:  # the old version leads
        await until(has_run)
        report = (await newer.check_replay(schedule_name="tick", status="SUCCESS", sample=1))[0]
    assert report.is_ok
    inputs = await database.fetchval(
        "select inputs from dbos.workflow_status where status = 'SUCCESS' order by created_at"
    )
    assert "null" not in inputs


async def test_an_open_transaction_on_one_schedule_holds_up_no_other(
    dbos: DBOS, database: Connection, until: Until
) -> None:
    for name in ("one", "two"):

        @dbos.scheduled(EVERY_SECOND)
        @dbos.workflow(name=name)
        async def tick(due: datetime) -> None: ...

    async def two_fires() -> bool:
        count = await database.fetchval(
            "select count(*) from dbos.workflow_status where schedule_name = 'two'"
        )
        return bool(count > 2)

    async def one_fires() -> bool:
        return bool(await database.fetch(RUNS, "one"))

    async with dbos:
        async with database.transaction():
            await database.execute(
                "select from dbos.workflow_schedules where schedule_name = 'one' for update"
            )
            await until(two_fires)
        await until(one_fires)


# Bad input


@pytest.mark.parametrize(
    ("cron", "options", "words"),
    [
        ("61 * * * *", {}, r"'61 \* \* \* \*' cannot be read: bad minute"),
        ("* * *", {}, "five fields"),
        ("", {}, "five fields"),
        ("0 0 30 2 *", {}, "bad day-of-month"),
        ("* * * * *", {"timezone": "Mars/Base"}, "no time zone 'Mars/Base'"),
        ("* * * * *", {"timezone": ""}, "no time zone ''"),
        ("* * * * *", {"overlap": "never"}, "overlap is one of 'allow', 'skip'"),
        ("* * * * *", {"jitter": -1}, "not negative"),
        ("* * * * *", {"jitter": float("nan")}, "finite"),
    ],
)
async def test_a_schedule_that_cannot_work_is_refused_where_it_is_declared(
    dbos: DBOS, cron: str, options: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dbos.scheduled(cron, **options)
    async with dbos:
        with pytest.raises(ValueError, match=words):
            await dbos.create_schedule("s", dbos.stub("tick"), cron, **options)
        good = ScheduleSpec("good", dbos.stub("tick"), NEVER_SOON)
        bad = ScheduleSpec("bad", dbos.stub("tick"), cron, **options)
        with pytest.raises(ValueError, match=words):
            await dbos.apply_schedules([good, bad])
        assert await dbos.list_schedules() == []


async def test_values_of_the_wrong_type_are_refused(dbos: DBOS) -> None:
    for options in ({"timezone": 1}, {"jitter": "1"}, {"backfill": 1}, {"queue": 7}):
        with pytest.raises(TypeError):
            dbos.scheduled("* * * * *", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        dbos.scheduled(5)  # type: ignore[arg-type]


async def test_what_is_no_workflow_that_takes_a_moment_cannot_be_scheduled(dbos: DBOS) -> None:
    every = dbos.scheduled("* * * * *")

    async def plain(due: datetime) -> None: ...

    with pytest.raises(TypeError, match=r"put @dbos.workflow below"):
        every(plain)
    with pytest.raises(TypeError, match="stub"):
        every(dbos.stub("tick"))

    @dbos.workflow(name="nothing")
    async def nothing() -> None: ...

    @dbos.workflow(name="three")
    async def three(one: int, two: int, three: int) -> None: ...

    for workflow in (nothing, three):
        with pytest.raises(TypeError, match="must take the moment"):
            every(workflow)  # type: ignore[arg-type]

    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    with pytest.raises(ValueError, match="options"):
        every(tick.with_options(timeout=3))  # type: ignore[type-var]
    every(tick)
    with pytest.raises(ConfigurationError, match=r"'tick' is declared twice.*name=…"):
        every(tick)
    with pytest.raises(ValueError, match="200 bytes"):
        dbos.scheduled("* * * * *", name="x" * 201)(tick)


async def test_a_method_cannot_be_scheduled(dbos: DBOS) -> None:
    class Shop:
        @dbos.scheduled("* * * * *")
        @dbos.workflow(name="tick")
        async def tick(self, due: datetime) -> None: ...

    with pytest.raises(ConfigurationError, match="'tick' is a method"):
        await dbos.launch()


async def test_bad_input_at_run_time_says_what_to_do(dbos: DBOS) -> None:
    dbos.queue("parted", partition_concurrency=1)
    tick = dbos.stub("tick")
    async with dbos:
        with pytest.raises(QueueNotFoundError):
            await dbos.create_schedule("s", tick, NEVER_SOON, queue="nowhere")
        with pytest.raises(ValueError, match="partition"):
            await dbos.create_schedule("s", tick, NEVER_SOON, queue="parted")
        with pytest.raises(TypeError, match="a schedule runs a workflow"):
            await dbos.create_schedule("s", "tick", NEVER_SOON)  # type: ignore[arg-type]
        await dbos.create_schedule("s", tick, EVERY_SECOND)
        with pytest.raises(ValueError, match=r"'s' already.*apply_schedules"):
            await dbos.create_schedule("s", tick, NEVER_SOON)
        with pytest.raises(ValueError, match="two schedules"):
            await dbos.apply_schedules([ScheduleSpec("a", tick, NEVER_SOON)] * 2)
        with pytest.raises(TypeError, match="several"):
            await dbos.apply_schedules(ScheduleSpec("a", tick, NEVER_SOON))  # type: ignore[arg-type]
        naive = NEW_YEAR.replace(tzinfo=None)
        with pytest.raises(ValueError, match="time zone"):
            await dbos.backfill_schedule("s", naive, NEW_YEAR)
        with pytest.raises(TypeError, match="datetimes"):
            await dbos.backfill_schedule("s", "2026", NEW_YEAR)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="before the start"):
            await dbos.backfill_schedule("s", NEW_YEAR, NEW_YEAR - SECOND)
        with pytest.raises(ValueError, match=r"more than 10,000.*shorter"):
            await dbos.backfill_schedule("s", NEW_YEAR, NEW_YEAR + timedelta(days=1))
        assert await dbos.list_workflows(workflow_id_prefix="sched-s-2026-01-01") == []
        assert await dbos.get_schedule("none") is None
        for verb in (
            dbos.pause_schedule,
            dbos.resume_schedule,
            dbos.delete_schedule,
            dbos.trigger_schedule,
        ):
            with pytest.raises(ScheduleNotFoundError, match="'none'"):
                await verb("none")
        with pytest.raises(ScheduleNotFoundError, match="'none'"):
            await dbos.backfill_schedule("none", NEW_YEAR, NEW_YEAR)


async def test_a_workflow_applies_no_schedules(dbos: DBOS) -> None:
    @dbos.workflow(name="applies")
    async def applies() -> None:
        await dbos.apply_schedules([])

    async with dbos:
        with pytest.raises(ConfigurationError, match="cannot be called in a workflow"):
            await applies()


def test_a_schedule_comes_too_late_after_the_launch(dbos: DBOS) -> None:
    @dbos.workflow(name="tick")
    async def tick(due: datetime) -> None: ...

    async def launch() -> None:
        async with dbos:
            with pytest.raises(ConfigurationError, match="too late"):
                dbos.scheduled("* * * * *")(tick)

    asyncio.run(launch())


def test_nicknames_are_read() -> None:
    assert cron_of("@hourly", "UTC").next_after(NEW_YEAR) == NEW_YEAR + timedelta(hours=1)
