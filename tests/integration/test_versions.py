"""Versions side by side: who takes what, what is left on each, and what nobody runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dbos_async import DBOS, Client, ConfigurationError, Queue, VersionWork, Workflow
from dbos_async._store.versions import VersionRow, WorkCount
from dbos_async._versions import works_of

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Shop:
    """An app of some version that says which one ran."""

    def __init__(self, url: str, version: str, name: str = "shop", **settings: Any) -> None:
        self.dbos = dbos = DBOS(name, url, app_version=version, **settings)
        self.jobs: Queue = dbos.queue(f"{name} jobs")

        @dbos.workflow(name="job")
        async def job() -> str:
            return version

        @dbos.workflow(name="long")
        async def long() -> str:
            await dbos.sleep(3600)
            return version

        self.job: Workflow[[], str] = job
        self.long: Workflow[[], str] = long


async def left(dbos: DBOS | Client) -> dict[str | None, tuple[int, int, int, int]]:
    """By version: processes, and enqueued, delayed and pending workflows."""
    work = await dbos.list_version_work()
    return {w.app_version: (w.processes, w.enqueued, w.delayed, w.pending) for w in work}


async def until_left(dbos: DBOS | Client, expected: dict[str | None, tuple[int, ...]]) -> None:
    """Processes that have shut down count until Postgres has ended their sessions."""
    async with asyncio.timeout(20):
        while await left(dbos) != expected:
            await asyncio.sleep(0.01)


async def test_the_newest_launch_takes_unversioned_work_and_others_keep_their_own(
    dbos_database_url: str,
) -> None:
    old, new = Shop(dbos_database_url, "old"), Shop(dbos_database_url, "new")
    async with old.dbos, new.dbos, Client(dbos_database_url) as client:
        unversioned = await client.enqueue("shop jobs", client.stub("job"))
        assert await unversioned.get_result(timeout=20) == "new"
        handle = await old.jobs.enqueue(old.job)
        assert await handle.get_result(timeout=20) == "old"


async def test_set_latest_gives_unversioned_work_back_to_the_old_version(
    dbos_database_url: str,
) -> None:
    old, new = Shop(dbos_database_url, "old"), Shop(dbos_database_url, "new")
    async with old.dbos, new.dbos, Client(dbos_database_url) as client:
        for version in ("old", "new", "old"):
            await client.set_latest_application_version(version)
            assert (await new.dbos.get_latest_application_version()).name == version
            unversioned = await client.enqueue("shop jobs", client.stub("job"))
            assert await unversioned.get_result(timeout=20) == version


async def test_what_waits_for_the_newest_runs_at_once_when_that_is_another(
    dbos_database_url: str, until: Until
) -> None:
    old, new = Shop(dbos_database_url, "old"), Shop(dbos_database_url, "new")
    async with old.dbos:
        async with new.dbos:
            pass
        async with Client(dbos_database_url) as client:
            waiting = await client.enqueue("shop jobs", client.stub("job"))
            [stranded] = [w for w in await client.list_version_work() if w.is_stranded]
            assert (stranded.app_version, stranded.enqueued) == (None, 1)
            await client.set_latest_application_version("old")
            assert await waiting.get_result(timeout=20) == "old"


async def test_versions_are_listed_newest_first_with_aware_times(dbos_database_url: str) -> None:
    before = datetime.now(UTC)
    for version in ("1", "2"):
        async with Shop(dbos_database_url, version).dbos:
            pass
    shop = Shop(dbos_database_url, "1")
    async with shop.dbos, Client(dbos_database_url) as client:
        listed = await shop.dbos.list_application_versions()
        assert [version.name for version in listed] == ["2", "1"]
        assert {version.app_name for version in listed} == {"shop"}
        assert all(version.created_at.tzinfo is UTC for version in listed)
        assert (before - listed[0].created_at).total_seconds() < 60
        assert listed == await client.list_application_versions()
        await shop.dbos.set_latest_application_version("1")
        listed = await shop.dbos.list_application_versions()
        assert [version.name for version in listed] == ["1", "2"]
        assert listed[0].latest_since > listed[1].latest_since
        assert listed[0].created_at < listed[1].created_at


async def test_an_unknown_version_is_refused_and_the_known_ones_are_named(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url, "1")
    async with shop.dbos:
        with pytest.raises(ValueError, match="ever run version '2'; there are: '1'"):
            await shop.dbos.set_latest_application_version("2")
        with pytest.raises(ValueError, match="ever run version '2'; there are: '1'"):
            await shop.dbos.move_work("0", "2")
        with pytest.raises(ValueError, match="ever run version 'unheard of'; there are: '1'"):
            await shop.dbos.move_work("unheard of", "1")
        with pytest.raises(ValueError, match="already"):
            await shop.dbos.move_work("1", "1")


async def test_a_database_on_which_nothing_was_launched_has_no_latest_version(
    dbos_database_url: str,
) -> None:
    async with Client(dbos_database_url) as client:
        assert await client.list_application_versions() == []
        with pytest.raises(ConfigurationError, match="no version yet"):
            await client.get_latest_application_version()


async def test_an_app_knows_nothing_of_another_ones_versions(dbos_database_url: str) -> None:
    shop, bar = Shop(dbos_database_url, "1"), Shop(dbos_database_url, "2", "bar")
    async with shop.dbos, bar.dbos, Client(dbos_database_url) as client:
        assert list(await left(shop.dbos)) == ["1"]
        assert list(await left(bar.dbos)) == ["2"]
        assert sorted(str(name) for name in await left(client)) == ["1", "2"]
        assert {work.is_latest for work in await client.list_version_work()} == {True}
        with pytest.raises(ValueError, match="version '2'"):
            await shop.dbos.set_latest_application_version("2")


async def test_the_old_version_drains_beside_the_new_one_and_what_is_left_is_told(
    dbos_database_url: str, until: Until
) -> None:
    old, new = Shop(dbos_database_url, "old"), Shop(dbos_database_url, "new")
    await old.dbos.launch()
    sleeper = await old.dbos.start_workflow(old.long)
    await old.jobs.enqueue(old.job.with_options(delay=3600))
    async with new.dbos:
        await new.dbos.start_workflow(new.long)
        assert await left(new.dbos) == {"new": (1, 0, 0, 1), "old": (1, 0, 1, 1)}
        assert not any(work.is_stranded for work in await new.dbos.list_version_work())
        await old.dbos.cancel_workflow(sleeper.workflow_id)
        assert await left(new.dbos) == {"new": (1, 0, 0, 1), "old": (1, 0, 1, 0)}
        await old.dbos.shutdown(timeout=0)
        await until_left(new.dbos, {"new": (1, 0, 0, 1), "old": (0, 0, 1, 0)})
        [stranded] = [work for work in await new.dbos.list_version_work() if work.is_stranded]
        assert (stranded.app_version, stranded.total) == ("old", 1)


async def test_processes_of_a_version_are_counted(dbos_database_url: str) -> None:
    one, two = Shop(dbos_database_url, "1"), Shop(dbos_database_url, "1")
    async with one.dbos:
        async with two.dbos:
            assert await left(one.dbos) == {"1": (2, 0, 0, 0)}
        await until_left(one.dbos, {"1": (1, 0, 0, 0)})
    async with Client(dbos_database_url) as client:
        await until_left(client, {"1": (0, 0, 0, 0)})


async def strand(url: str) -> list[str]:
    """Leave one workflow on a queue, one delayed and one begun; their ids."""
    shop = Shop(url, "old")
    async with shop.dbos:
        begun = await shop.dbos.start_workflow(shop.long)
        await shop.jobs.pause()
        queued = await shop.jobs.enqueue(shop.job)
        delayed = await shop.jobs.enqueue(shop.job.with_options(delay=3600))
    async with Client(url) as client:
        await (await client.retrieve_queue("shop jobs")).resume()
    return [begun.workflow_id, queued.workflow_id, delayed.workflow_id]


async def test_a_launch_warns_of_work_that_nobody_runs_and_names_the_way_out(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await strand(dbos_database_url)
    with caplog.at_level(logging.WARNING, "dbos_async"):
        async with Shop(dbos_database_url, "new").dbos:
            pass
    [line] = [line for line in caplog.messages if "that no process runs" in line]
    assert "workflows={'old': 3}" in line
    assert "dbos-async versions move OLD NEW --include-pending" in line


async def test_a_launch_says_nothing_while_another_process_runs_the_old_version(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await strand(dbos_database_url)
    async with Shop(dbos_database_url, "old").dbos:
        with caplog.at_level(logging.WARNING, "dbos_async"):
            async with Shop(dbos_database_url, "new").dbos:
                pass
    assert not [line for line in caplog.messages if "that no process runs" in line]


async def test_stranded_work_is_moved_and_runs_on_the_other_version(
    dbos_database_url: str, database: Any
) -> None:
    begun, queued, delayed = await strand(dbos_database_url)
    new = Shop(dbos_database_url, "new")
    async with new.dbos, Client(dbos_database_url) as client:
        assert await client.move_work("old", "new") == 2
        handle = await client.retrieve_workflow(queued)
        assert await handle.get_result(timeout=20) == "new"
        versions = {row.workflow_id: row.app_version for row in await client.list_workflows()}
        assert versions == {begun: "old", queued: "new", delayed: "new"}
        await client.set_workflow_delay(delayed, 0)
        assert await (await client.retrieve_workflow(delayed)).get_result(timeout=20) == "new"


async def test_what_a_dead_process_had_begun_is_moved_if_asked(
    dbos_database_url: str, advance: Any
) -> None:
    begun, *_ = await strand(dbos_database_url)
    new = Shop(dbos_database_url, "new")
    async with new.dbos:
        assert await new.dbos.move_work("old", "new", include_pending=True) == 3
        handle = await new.dbos.retrieve_workflow(begun)
        advance(3700)
        assert await handle.get_result(timeout=20) == "new"
        assert await new.dbos.move_work("old", "new", include_pending=True) == 0


async def test_what_a_live_process_runs_is_not_moved(dbos_database_url: str) -> None:
    old, new = Shop(dbos_database_url, "old"), Shop(dbos_database_url, "new")
    async with old.dbos, new.dbos:
        await old.dbos.start_workflow(old.long)
        assert await new.dbos.move_work("old", "new", include_pending=True) == 0
        assert (await left(new.dbos))["old"] == (1, 0, 0, 1)


async def test_within_a_workflow_the_verbs_are_recorded(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url, app_version="1")

    @dbos.workflow
    async def look() -> list[Any]:
        await dbos.set_latest_application_version("1")
        with pytest.raises(ValueError, match="'0'"):
            await dbos.move_work("0", "1")
        return [
            [version.name for version in await dbos.list_application_versions()],
            (await dbos.get_latest_application_version()).name,
            [work.processes for work in await dbos.list_version_work()],
        ]

    async with dbos:
        handle = await dbos.start_workflow(look)
        assert await handle.get_result() == [["1"], "1", [1]]
        steps = await dbos.list_steps(handle.workflow_id)
    assert [step.name.removeprefix("DBOS.") for step in steps] == [
        "listApplicationVersions",
        "setLatestApplicationVersion",
        "listApplicationVersions",
        "moveWork",
        "listApplicationVersions",
        "getLatestApplicationVersion",
        "listVersionWork",
    ]


def test_unversioned_work_is_as_live_as_the_newest_version_of_its_app() -> None:
    known = [VersionRow("2", "shop", 2, 2), VersionRow("1", "shop", 1, 1)]
    work = [WorkCount(app, version, 1, 0, 0) for app in ("shop", None) for version in ("1", None)]

    def stranded(**processes: int) -> list[tuple[str | None, str | None]]:
        keys = [("shop", "2"), *[(row.application, row.app_version) for row in work]]
        counts = {key: processes.get(f"v{key[1]}", 0) if key[0] else 0 for key in keys}
        works: list[VersionWork] = works_of(known, work, counts)
        return [(each.app_name, each.app_version) for each in works if each.is_stranded]

    assert stranded(v1=1, v2=1) == []
    assert stranded(v1=1) == [("shop", None), (None, None)]
    assert stranded(v2=1) == [("shop", "1"), (None, "1")]
