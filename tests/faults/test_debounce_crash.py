"""A process that dies between a bounce and its step row has done neither."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS
from dbos_async.testing import Crashed

HOUR = 3600


@pytest.fixture
async def database(dbos_database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dbos_database_url)
    yield connection
    await connection.close()


def app(url: str) -> DBOS:
    """Its parent debounces, and tells which workflow that was."""
    dbos = DBOS("shop", url, app_version="1")

    @dbos.workflow(name="index")
    async def index(number: int) -> int:
        return number

    @dbos.workflow(name="parent")
    async def parent(number: int) -> str:
        debouncer = dbos.debouncer(index, period=HOUR)
        return (await debouncer.debounce("k", number)).workflow_id

    dbos.parent, dbos.index = parent, index  # type: ignore[attr-defined]
    return dbos


async def until(database: Any, condition: str) -> None:
    async with asyncio.timeout(20):
        while not await database.fetchval(f"select {condition}"):
            await asyncio.sleep(0.01)


WAITS = (
    "exists (select from pg_stat_activity where datname = current_database() "
    "and wait_event_type = 'Lock' and query like '%operation_outputs%')"
)
DEBOUNCED = """
select i.inputs::json -> 'positionalArgs' ->> 0
  from dbos.workflow_status w join dbos.workflow_input i using (workflow_uuid)
 where w.is_debounced
"""


async def die_between_bounce_and_step(url: str, database: Any, number: int) -> None:
    """The bounce was sent, its step row waits for a lock of ours, and there the process dies."""
    dbos: Any = app(url)
    await dbos.launch()
    await database.execute(
        "create or replace function dbos.hold() returns trigger language plpgsql as "
        "$$ begin perform pg_advisory_xact_lock(1); return new; end $$; "
        "create or replace trigger hold before insert on dbos.operation_outputs "
        "for each row execute function dbos.hold()"
    )
    await database.execute("select pg_advisory_lock(1)")
    await dbos.start_workflow(dbos.parent.with_options(workflow_id="w"), number)
    await until(database, WAITS)
    dbos.drop(Crashed("killed by the test"))
    await database.execute("select pg_advisory_unlock(1)")
    await until(database, f"not {WAITS}")
    await database.execute("drop trigger hold on dbos.operation_outputs")


async def test_it_debounces_once_when_it_is_replayed(dbos_database_url: str, database: Any) -> None:
    await die_between_bounce_and_step(dbos_database_url, database, 1)
    assert await database.fetch(DEBOUNCED) == []
    async with app(dbos_database_url) as dbos:
        handle = await dbos.retrieve_workflow("w")
        debounced = await handle.get_result(timeout=20)
        assert [step.child_workflow_id for step in await dbos.list_steps("w")] == [debounced]
    assert [row[0] for row in await database.fetch(DEBOUNCED)] == ["1"]


async def test_what_waited_is_as_it_was_until_the_replay(
    dbos_database_url: str, database: Any
) -> None:
    dbos: Any
    async with app(dbos_database_url) as dbos:
        held = await dbos.debouncer(dbos.index, period=HOUR).debounce("k", 1)
    await die_between_bounce_and_step(dbos_database_url, database, 2)
    assert [row[0] for row in await database.fetch(DEBOUNCED)] == ["1"]
    async with app(dbos_database_url) as dbos:
        handle = await dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=20) == held.workflow_id
    assert [row[0] for row in await database.fetch(DEBOUNCED)] == ["2"]
