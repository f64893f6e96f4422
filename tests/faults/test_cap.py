"""The cap on connections is a hard one: Postgres itself never sees more of them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, DatabaseLostError
from dbos_async._store.database import Database

PATIENCE = 60.0
CAP = 6
NAME = "application_name like 'dbos_async capped%'"
COUNT = f"select count(*) from pg_stat_activity where {NAME}"
END_ONE = f"""
select pg_terminate_backend(pid) from pg_stat_activity where {NAME} order by random() limit 1
"""
BLOCKED = "select 1 from dbos.workflow_status where workflow_uuid = 'held' for update"


@pytest.fixture
async def database(dbos_database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dbos_database_url)
    yield connection
    connection.terminate()


class Capped:
    """An app that does all sorts of things at once."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("capped", url, app_version="1", max_connections=CAP, lease=2)
        dbos.configure(recheck_interval=0.2)
        self.mail = dbos.queue("mail", concurrency=20)

        @dbos.step
        async def step(number: int) -> int:
            return number

        @dbos.workflow(name="line")
        async def line(steps: int) -> int:
            return sum([await step(number) for number in range(steps)])

        self.line = line

    async def load(self, count: int) -> None:
        """Workflows, queued and not, while others read."""
        handles = [await self.dbos.start_workflow(self.line, 3) for _ in range(count)]
        handles += await self.mail.enqueue_many([self.line.bind(3) for _ in range(count)])
        reads = [read(handle) for handle in handles]
        await asyncio.gather(*[handle.get_result() for handle in handles], *reads)

    @property
    def database(self) -> Database:
        return self.dbos._own_session().database


async def read(handle: Any) -> None:
    while True:
        try:
            return await handle.get_status()
        except DatabaseLostError:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def counted(url: str) -> AsyncIterator[list[int]]:
    """How many connections there were at each moment of the block."""
    seen: list[int] = []
    watcher = await asyncpg.connect(url)

    async def watch() -> None:
        while True:
            seen.append(await watcher.fetchval(COUNT))

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait([task])
        watcher.terminate()


async def test_launches_loads_and_shutdowns_stay_under_the_cap(dbos_database_url: str) -> None:
    async with asyncio.timeout(PATIENCE), counted(dbos_database_url) as seen:
        for _ in range(3):
            app = Capped(dbos_database_url)
            async with app.dbos:
                await app.load(30)
    assert max(seen) == CAP  # all are used: the cap is what holds them


async def test_connections_that_die_under_load_are_replaced_one_for_one(
    dbos_database_url: str, database: Any
) -> None:
    app = Capped(dbos_database_url)
    async with asyncio.timeout(PATIENCE), counted(dbos_database_url) as seen, app.dbos:
        loading = asyncio.create_task(app.load(100))
        for _ in range(20):
            await database.execute(END_ONE)
            await asyncio.sleep(random.uniform(0, 0.05))
        await loading
    assert max(seen) <= CAP


async def test_connections_that_are_dropped_in_a_statement_count_until_it_ends(
    dbos_database_url: str, database: Any
) -> None:
    app = Capped(dbos_database_url)
    async with asyncio.timeout(PATIENCE), counted(dbos_database_url) as seen, app.dbos:
        held = app.line.with_options(workflow_id="held")
        await app.dbos.start_workflow(held, 1)
        async with database.transaction():
            await database.execute(BLOCKED)

            async def wait_for_it() -> None:
                try:
                    async with asyncio.timeout(0.2):
                        await app.database.execute(BLOCKED)
                except (TimeoutError, DatabaseLostError):
                    pass  # its session is still at it

            for _ in range(4):
                await asyncio.gather(*[wait_for_it() for _ in range(CAP)])
                for connection in list(app.database._dialled):
                    connection.terminate()
            await app.load(20)
    assert max(seen) == CAP


async def test_slots_come_back_when_the_server_is_gone_without_a_word(
    dbos_database_url: str, database: Any
) -> None:
    app = Capped(dbos_database_url)
    async with asyncio.timeout(PATIENCE), app.dbos:
        for _ in range(2 * CAP):
            await app.load(1)
            await database.execute(COUNT.replace("count(*)", "count(pg_terminate_backend(pid))"))
        await app.load(10)
