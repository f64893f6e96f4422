"""Schedules shared with the official library: its clients make them, our leader fires them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dbos_async import DBOS

EVERY_SECOND = "* * * * * *"
NEVER_SOON = "0 0 1 1 *"
Until = Callable[[Callable[[], object]], Awaitable[None]]


class App:
    """An app of ours that is told of changes, and looks by itself only once in an hour."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1", **settings)
        dbos.configure(recheck_interval=3600)
        self.got: list[tuple[datetime, Any]] = []

        @dbos.workflow(name="both")
        async def both(due: datetime, context: Any) -> None:
            self.got.append((due, context))

        @dbos.workflow(name="one")
        async def one(due: datetime) -> None:
            self.got.append((due, "nothing"))

        self.both = both


@pytest.fixture
async def app(dbos_database_url: str) -> AsyncIterator[App]:
    app = App(dbos_database_url)
    async with app.dbos:
        yield app


@pytest.mark.parametrize(("workflow", "context"), [("both", None), ("one", "nothing")])
async def test_our_leader_fires_what_its_client_makes_pauses_resumes_and_deletes(
    app: App, official: Any, until: Until, workflow: str, context: Any
) -> None:
    await official.create_schedule_async(
        schedule_name="theirs", workflow_name=workflow, schedule=EVERY_SECOND
    )
    await until(lambda: app.got)
    due, got = app.got[0]
    assert (due.tzinfo, got) == (UTC, context)
    runs = await app.dbos.list_workflows(schedule_name="theirs", newest_first=False)
    assert runs[0].workflow_id == f"sched-theirs-{due.isoformat()}"

    await asyncio.to_thread(official.pause_schedule, "theirs")
    schedule = await app.dbos.get_schedule("theirs")
    assert schedule is not None
    assert (schedule.status, schedule.context, schedule.overlap) == ("PAUSED", None, "allow")
    [listed] = await official.list_schedules_async()
    last = max(due for due, _ in app.got)
    assert datetime.fromisoformat(listed["last_fired_at"]) >= last
    await asyncio.to_thread(official.resume_schedule, "theirs")
    fired = len(app.got)
    await until(lambda: len(app.got) > fired)
    await official.delete_schedule_async("theirs")
    assert await app.dbos.get_schedule("theirs") is None


async def test_a_context_that_it_pickled_is_read_if_the_app_allows_that(
    dbos_database_url: str, official_on: Any, until: Until
) -> None:
    app = App(dbos_database_url, allow_pickle=True)
    async with app.dbos, official_on(dbos_database_url) as official:
        await official.create_schedule_async(
            schedule_name="theirs",
            workflow_name="both",
            schedule=NEVER_SOON,
            context={"a": [1, None]},
        )
        schedule = await app.dbos.get_schedule("theirs")
        assert schedule is not None
        assert schedule.context == {"a": [1, None]}
        handle = await app.dbos.trigger_schedule("theirs")
        await handle.get_result(timeout=20)
    assert app.got[0][1] == {"a": [1, None]}


async def test_a_context_that_it_pickled_fails_the_run_with_what_to_do_otherwise(
    app: App, official: Any
) -> None:
    await official.create_schedule_async(
        schedule_name="theirs", workflow_name="both", schedule=NEVER_SOON, context={"a": 1}
    )
    handle = await app.dbos.trigger_schedule("theirs")
    with pytest.raises(Exception, match="allow_pickle=True"):
        await handle.get_result(timeout=20)
    assert app.got == []


async def test_its_client_reads_and_manages_ours(app: App, official: Any, until: Until) -> None:
    await app.dbos.create_schedule(
        "ours", app.both, NEVER_SOON, timezone="Europe/Berlin", backfill=True, overlap="skip"
    )
    found = await official.get_schedule_async("ours")
    expected = {
        "schedule_name": "ours",
        "workflow_name": "both",
        "workflow_class_name": None,
        "schedule": NEVER_SOON,
        "status": "ACTIVE",
        "last_fired_at": None,
        "automatic_backfill": True,
        "cron_timezone": "Europe/Berlin",
        "queue_name": None,
        "application_name": "shop",
    }
    assert found.items() >= expected.items()
    await official.apply_schedules_async(
        [
            {
                "schedule_name": "ours",
                "workflow_name": "both",
                "schedule": EVERY_SECOND,
                "application_name": "shop",
                "context": None,
                "workflow_class_name": None,
            }
        ]
    )
    await until(lambda: app.got)
    schedule = await app.dbos.get_schedule("ours")
    assert schedule is not None
    assert (schedule.cron, schedule.overlap, schedule.backfill) == (EVERY_SECOND, "skip", False)
