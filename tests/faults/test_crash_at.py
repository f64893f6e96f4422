"""`crash_at` and `advance`: the tools with which users test what outlives a process."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import asyncpg
import pytest

from dbos_async import DBOS, NotLaunchedError, WorkflowTimeoutError
from dbos_async.testing import Crashed, advance, crash_at


def shop(url: str) -> tuple[DBOS, list[int]]:
    dbos = DBOS("shop", url)
    called: list[int] = []

    @dbos.step
    async def count(n: int) -> int:
        called.append(n)
        return n

    @dbos.workflow
    async def total(n: int) -> int:
        return sum([await count(i) for i in range(n)])

    dbos.total = total  # type: ignore[attr-defined]
    return dbos, called


async def until_steps(dbos: DBOS, workflow_id: str, steps: int) -> None:
    async with asyncio.timeout(20):
        while len(await dbos.list_steps(workflow_id)) < steps:
            await asyncio.sleep(0.01)


async def rows_of(url: str) -> tuple[int, int]:
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(
        "select (select count(*) from dbos.workflow_status), "
        "(select count(*) from dbos.operation_outputs)"
    )
    await connection.close()
    return row[0], row[1]


@pytest.mark.parametrize("before", [False, True])
async def test_exactly_the_first_writes_land(dbos_database_url: str, before: bool) -> None:
    dbos, called = shop(dbos_database_url)
    with crash_at(4, before=before) as crash:
        async with dbos:
            await dbos.total.with_options(workflow_id="w")(5)
    assert crash.happened
    assert await rows_of(dbos_database_url) == (1, 2 if before else 3)
    assert called == [0, 1, 2]
    async with dbos:
        handle = await dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=20) == 10
    assert called == [0, 1, 2, 2, 3, 4] if before else [0, 1, 2, 3, 4]


async def test_of_many_at_once_exactly_the_first_writes_land(dbos_database_url: str) -> None:
    dbos, _ = shop(dbos_database_url)
    with crash_at(37):
        async with dbos, asyncio.TaskGroup() as group:
            for i in range(50):
                group.create_task(dbos.total.with_options(workflow_id=f"w{i}")(3))
    assert sum(await rows_of(dbos_database_url)) == 37


async def test_who_waits_elsewhere_gets_crashed(dbos_database_url: str) -> None:
    dbos, _ = shop(dbos_database_url)
    async with dbos:
        sleeper = asyncio.create_task(sleep_in(dbos))
        with crash_at(2) as crash:
            await asyncio.Event().wait()
        assert crash.happened
        with pytest.raises(Crashed):
            await sleeper
        with pytest.raises(NotLaunchedError):
            await dbos.total(1)


async def sleep_in(dbos: DBOS) -> int:
    return await dbos.total(3)


async def test_an_app_that_was_launched_outside_can_be_launched_again(
    dbos_database_url: str,
) -> None:
    dbos, called = shop(dbos_database_url)
    await dbos.launch()
    with crash_at(2):
        await dbos.total.with_options(workflow_id="w")(2)
    await dbos.launch()
    assert await (await dbos.retrieve_workflow("w")).get_result(timeout=20) == 1
    assert called == [0, 1]
    await dbos.shutdown()


async def test_a_checkpoint_that_is_not_reached_changes_nothing(dbos_database_url: str) -> None:
    dbos, _ = shop(dbos_database_url)
    with crash_at(6) as crash:
        async with dbos:
            assert await dbos.total(3) == 3
    assert not crash.happened


async def test_errors_of_the_block_are_not_swallowed(dbos_database_url: str) -> None:
    dbos, _ = shop(dbos_database_url)
    with pytest.raises(KeyError), crash_at(2):
        async with dbos:
            try:
                await dbos.total(3)
            finally:
                raise KeyError("mine")
    with pytest.raises(ValueError, match="the first checkpoint is 1"):
        crash_at(0)


def test_a_whole_loop_can_crash(dbos_database_url: str) -> None:
    dbos, _ = shop(dbos_database_url)

    async def run() -> None:
        async with dbos:
            await dbos.total(3)

    with crash_at(3) as crash:
        asyncio.run(run())
    assert crash.happened


def test_an_app_whose_loop_has_ended_without_it_does_not_matter(dbos_database_url: str) -> None:
    left, _ = shop(dbos_database_url)

    async def launch() -> None:
        await left.launch()

    async def crash() -> bool:
        dbos, _ = shop(dbos_database_url)
        with crash_at(1) as crash:
            async with dbos:
                await dbos.total(1)
        return crash.happened

    asyncio.run(launch())
    assert asyncio.run(crash())


def test_the_fixtures_are_the_functions(
    crash_at: Callable[..., object], advance: Callable[..., object]
) -> None:
    import dbos_async.testing as tools

    assert crash_at is tools.crash_at
    assert advance is tools.advance


async def test_durable_sleep_comes_due(dbos_database_url: str) -> None:
    dbos = DBOS("sleepers", dbos_database_url)

    @dbos.workflow
    async def nap() -> float:
        before = await dbos.now()
        await dbos.sleep(timedelta(days=30))
        return (await dbos.now() - before).total_seconds()

    async with dbos:
        handle = await dbos.start_workflow(nap.with_options(workflow_id="w"))
        await until_steps(dbos, "w", 2)
        advance(timedelta(days=29))
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.1)
        await advance(86_400)
        assert await handle.get_result(timeout=20) >= 30 * 86_400


async def test_an_app_that_is_launched_again_keeps_the_advanced_time(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("sleepers", dbos_database_url)

    @dbos.workflow
    async def nap() -> str:
        await dbos.sleep(3600)
        return "awake"

    async with dbos:
        advance(10 * 3600)
        await dbos.start_workflow(nap.with_options(workflow_id="w"))
        await until_steps(dbos, "w", 1)
    async with dbos:
        advance(3600)
        assert await (await dbos.retrieve_workflow("w")).get_result(timeout=20) == "awake"


async def test_time_is_put_back_between_tests(dbos_database_url: str) -> None:
    async with DBOS("clock", dbos_database_url) as dbos:
        connection = await asyncpg.connect(dbos_database_url)
        ahead = await dbos.now() - await connection.fetchval("select clock_timestamp()")
        await connection.close()
        assert abs(ahead) < timedelta(minutes=1)


@pytest.mark.parametrize("queued", [False, True])
async def test_timeouts_come_due(dbos_database_url: str, queued: bool) -> None:
    dbos = DBOS("late", dbos_database_url)
    queue = dbos.queue("q")

    @dbos.workflow
    async def for_ever() -> None:
        await dbos.sleep(10**6)

    async with dbos:
        advance(3600)  # as a test that is under way for long
        start = queue.enqueue if queued else dbos.start_workflow
        handle = await start(for_ever.with_options(timeout=600))
        await until_steps(dbos, handle.workflow_id, 1)
        assert (await handle.get_status()).status == "PENDING"
        advance(600)
        with pytest.raises(WorkflowTimeoutError):
            await handle.get_result(timeout=20)


async def test_delays_come_due(dbos_database_url: str) -> None:
    dbos = DBOS("later", dbos_database_url)
    queue = dbos.queue("q")

    @dbos.workflow
    async def job() -> str:
        return "done"

    async with dbos:
        handle = await queue.enqueue(job.with_options(delay=timedelta(hours=2)))
        assert (await handle.get_status()).status == "DELAYED"
        advance(7200)
        assert await handle.get_result(timeout=20) == "done"


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="negative"):
        advance(-1)
