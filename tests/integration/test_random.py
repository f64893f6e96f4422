"""Time and chance in workflows: recorded, or derived so that a replay repeats them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from dbos_async import DBOS, Workflow

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def steps_in(database: Any) -> int:
    count: int = await database.fetchval("select count(*) from dbos.operation_outputs")
    return count


async def test_now_is_the_databases_time_and_recorded(lives: Any, database: Any) -> None:
    moments: list[datetime] = []

    def declare(life: Any) -> Workflow[[], None]:
        @life.dbos.workflow(name="timed")
        async def workflow() -> None:
            moments.append(await life.dbos.now())
            await life.halt()

        return workflow

    before = await database.fetchval("select clock_timestamp()")
    await lives.both(declare)
    after = await database.fetchval("select clock_timestamp()")
    first, second = moments
    assert first == second
    assert first.tzinfo is UTC
    tolerance = timedelta(milliseconds=50)
    assert before - tolerance <= first <= after + tolerance
    assert await steps_in(database) == 1


async def test_now_outside_workflows_is_a_plain_call(dbos_database_url: str, database: Any) -> None:
    dbos = DBOS("outside", dbos_database_url)
    async with dbos:
        assert abs(await dbos.now() - datetime.now(UTC)) < timedelta(seconds=10)
    assert await steps_in(database) == 0


async def test_draws_repeat_on_replay_and_write_nothing(lives: Any, database: Any) -> None:
    drawn: dict[int, list[Any]] = {}

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        def draw() -> list[Any]:
            numbers = dbos.random().sample(range(1000), 5)
            return [dbos.uuid4(), dbos.uuid4(), dbos.random().random(), *numbers]

        async def branch() -> list[Any]:
            before = draw()
            await dbos.step(life_number, name="step")()
            return before + draw()

        async def life_number() -> int:
            return int(life.number)

        @dbos.workflow(name="drawing")
        async def workflow() -> None:
            results = draw()
            for branch_results in await asyncio.gather(branch(), branch()):
                results += branch_results
            results += draw()
            await dbos.sleep(0)
            drawn[life.number] = results + draw()
            await life.halt()

        return workflow

    await lives.both(declare)
    assert drawn[1] == drawn[2]
    ids = [each for each in drawn[1] if isinstance(each, UUID)]
    assert len(ids) == len(set(ids)) == 14
    assert {each.version for each in ids} == {4}
    assert await steps_in(database) == 3


async def test_draws_differ_between_workflows_and_in_steps(dbos_database_url: str) -> None:
    dbos = DBOS("draws", dbos_database_url)

    @dbos.step
    async def in_step() -> list[Any]:
        return [str(dbos.uuid4()), dbos.random().random()]

    @dbos.workflow()
    async def child() -> list[Any]:
        return [str(dbos.uuid4()), dbos.random().random()]

    @dbos.workflow()
    async def workflow() -> list[Any]:
        own = [str(dbos.uuid4()), dbos.random().random()]
        return [*own, *await in_step(), *await in_step(), *await child(), *await child()]

    async with dbos:
        results = [*await workflow(), *await workflow(), str(dbos.uuid4()), dbos.random().random()]
    assert len(set(results)) == len(results) == 22


async def test_a_workflow_started_again_under_a_new_id_draws_anew(dbos_database_url: str) -> None:
    dbos = DBOS("anew", dbos_database_url)

    @dbos.workflow()
    async def workflow() -> UUID:
        return dbos.uuid4()

    async with dbos:
        first = await workflow.with_options(workflow_id="a")()
        assert await workflow.with_options(workflow_id="a")() == first
        assert await workflow.with_options(workflow_id="b")() != first


class Drawing:
    """An app whose workflow draws before each of its three steps, in the root and in a branch."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("drawing", url, app_version="1")
        dbos.configure(recheck_interval=0.1)  # the official client notifies nobody of ours

        @dbos.step
        async def step(number: int) -> int:
            return number

        async def line() -> list[str]:
            drawn = []
            for number in range(3):
                drawn.append(str(dbos.uuid4()))
                await step(number)
            return [*drawn, str(dbos.uuid4())]

        @dbos.workflow(name="draw")
        async def draw() -> list[list[str]]:
            return [await line(), await asyncio.create_task(line())]

        self.draw = draw


async def test_a_fork_by_the_official_client_draws_the_same_until_its_fork_point(
    dbos_database_url: str,
) -> None:
    official = pytest.importorskip("dbos", reason="the official library is for development")
    app = Drawing(dbos_database_url)
    url = dbos_database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    def forked(source: str, step: int) -> str:
        client = official.DBOSClient(system_database_url=url)
        try:
            fork_id: str = client.fork_workflow(source, step).workflow_id
            return fork_id
        finally:
            client.destroy()

    async with app.dbos:
        root, branch = await app.draw.with_options(workflow_id="source")()
        # Steps 1 to 3 are the root's, 4 to 6 the branch's; the fork keeps those below the number.
        fork_id = await asyncio.to_thread(forked, "source", 6)
        fork = await (await app.dbos.retrieve_workflow(fork_id)).get_result()
        again_id = await asyncio.to_thread(forked, fork_id, 3)
        again = await (await app.dbos.retrieve_workflow(again_id)).get_result()
    assert fork[0] == root
    assert fork[1][:3] == branch[:3]
    assert fork[1][3] != branch[3]
    assert again[0][:3] == root[:3]
    assert again[0][3] != root[3]
    assert again[1] != fork[1]
