"""Deleted workflows: nothing of them is left, and what ran of them stops."""

import asyncio
from typing import Any

import pytest
from managed import Managed, managed, result_of

from dbos_async import Client, WorkflowNotFoundError
from dbos_async._store import listing

TABLES = {
    "workflow_status": "workflow_uuid",
    "workflow_input": "workflow_uuid",
    "workflow_output": "workflow_uuid",
    "operation_outputs": "workflow_uuid",
    "workflow_events": "workflow_uuid",
    "workflow_events_history": "workflow_uuid",
    "streams": "workflow_uuid",
    "notifications": "destination_uuid",
}
BELONGINGS = """
insert into dbos.workflow_input (workflow_uuid, inputs)
select workflow_uuid, '{}' from dbos.workflow_status;
insert into dbos.workflow_output (workflow_uuid, output)
select workflow_uuid, '1' from dbos.workflow_status;
insert into dbos.workflow_events (workflow_uuid, key, value)
select workflow_uuid, 'k', '1' from dbos.workflow_status;
insert into dbos.workflow_events_history (workflow_uuid, function_id, key, value)
select workflow_uuid, 1, 'k', '1' from dbos.workflow_status;
insert into dbos.streams (workflow_uuid, key, value, "offset")
select workflow_uuid, 'k', '1', 0 from dbos.workflow_status;
insert into dbos.notifications (destination_uuid, message)
select workflow_uuid, '1' from dbos.workflow_status;
"""


async def left_of(database: Any, workflow_id: str) -> dict[str, int]:
    """In which tables there are rows of a workflow."""
    counts = {
        table: await database.fetchval(
            f"select count(*) from dbos.{table} where {column} = $1", workflow_id
        )
        for table, column in TABLES.items()
    }
    return {table: count for table, count in counts.items() if count}


async def test_nothing_is_left_of_it_and_everything_of_the_others(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        for workflow_id in ("goes", "stays"):
            await shop.simple.with_options(workflow_id=workflow_id)(1)
        await database.execute(BELONGINGS)
        assert (await left_of(database, "goes")).keys() == TABLES.keys()
        await shop.dbos.delete_workflow("goes")
        assert await left_of(database, "goes") == {}
        assert (await left_of(database, "stays")).keys() == TABLES.keys()
        with pytest.raises(WorkflowNotFoundError):
            await shop.dbos.delete_workflow("goes")


@pytest.mark.parametrize("here", [True, False])
async def test_one_that_runs_stops_and_records_nothing_more(
    dbos_database_url: str, database: Any, here: bool
) -> None:
    async with managed(dbos_database_url) as shop, Client(dbos_database_url) as client:
        handle = await shop.hold()
        run = shop.dbos.launched().running["w"]
        await (shop.dbos if here else client).delete_workflow("w")
        with pytest.raises(WorkflowNotFoundError):
            await result_of(handle)
        await shop.until(lambda: not shop.dbos.launched().running)
        assert run.stopped is not None
        assert await left_of(database, "w") == {}
        assert shop.calls == ["double 1", "hold"]


async def test_a_step_that_ends_just_then_leaves_no_row(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        for number in range(10):
            workflow_id = f"w-{number}"
            await shop.hold(workflow_id)
            deletion = asyncio.create_task(shop.dbos.delete_workflow(workflow_id))
            shop.gate.set()
            await deletion
            shop.gate.clear()
        await shop.until(lambda: not shop.dbos.launched().running)
        orphans = "select count(*) from dbos.operation_outputs"
        assert await database.fetchval(orphans) == 0


async def test_its_children_go_with_it_if_asked(dbos_database_url: str, database: Any) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.hold("p-1", shop.parent)
        await shop.hold("p-2", shop.parent)
        await shop.dbos.delete_workflow("p-1")
        assert [row.workflow_id for row in await shop.dbos.list_workflows()] == [
            "p-2-2",
            "p-2",
            "p-1-2",
        ]
        await shop.dbos.delete_workflow("p-2", delete_children=True)
        assert [row.workflow_id for row in await shop.dbos.list_workflows()] == ["p-1-2"]
        assert await left_of(database, "p-2-2") == {}
        await shop.until(lambda: shop.dbos.launched().running.keys() == {"p-1-2"})


async def test_a_parent_that_goes_on_starting_children_leaves_none(dbos_database_url: str) -> None:
    shop = Managed(dbos_database_url)

    @shop.dbos.workflow(name="fertile")
    async def fertile() -> None:
        while True:
            await shop.dbos.enqueue("mail", shop.simple, 1)

    async with shop.dbos, asyncio.timeout(30):
        await shop.mail.pause()
        for number in range(3):
            workflow_id = f"f-{number}"
            await shop.dbos.start_workflow(fertile.with_options(workflow_id=workflow_id))
            while not await shop.dbos.list_workflows(parent_workflow_id=workflow_id, limit=1):
                await asyncio.sleep(0)
            await shop.dbos.delete_workflow(workflow_id, delete_children=True)
        await shop.until(lambda: not shop.dbos.launched().running)
        assert await shop.dbos.list_workflows() == []


async def finished(shop: Managed) -> None:
    for number in range(5):
        await shop.simple.with_options(workflow_id=f"s-{number}")(1)
    for number in range(5):
        with pytest.raises(ValueError, match="too risky"):
            await shop.risky.with_options(workflow_id=f"r-{number}")()


async def test_the_plural_deletes_what_fits_in_batches(
    dbos_database_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BATCH", 2)
    async with managed(dbos_database_url) as shop:
        await finished(shop)
        failed = [f"r-{number}" for number in range(5)]
        assert sorted(await shop.dbos.delete_workflows(dry_run=True, status="ERROR")) == failed
        assert len(await shop.dbos.list_workflows()) == 10
        assert sorted(await shop.dbos.delete_workflows(status="ERROR")) == failed
        left = await shop.dbos.list_workflows(newest_first=False)
        assert [row.workflow_id for row in left] == [f"s-{number}" for number in range(5)]
        assert await shop.dbos.delete_workflows(status="ERROR") == []
        steps = "select count(distinct workflow_uuid) from dbos.operation_outputs"
        assert await database.fetchval(steps) == 5


async def test_the_plural_with_children_tells_of_all_that_go(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BATCH", 2)
    async with managed(dbos_database_url) as shop:
        shop.gate.set()
        for number in range(3):
            await shop.parent.with_options(workflow_id=f"p-{number}")(1)
        everything = sorted(row.workflow_id for row in await shop.dbos.list_workflows())
        verb: Any = shop.dbos.delete_workflows
        for dry_run in (True, False):
            told = await verb(name="parent", delete_children=True, dry_run=dry_run)
            assert sorted(told) == everything
        assert await shop.dbos.list_workflows() == []


async def test_one_that_changes_state_meanwhile_is_not_deleted(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with managed(dbos_database_url) as shop:
        await finished(shop)
        found = listing.fetch_workflows

        async def rewound_once_found(*args: Any, **options: Any) -> Any:
            rows = await found(*args, **options)
            shop.fails = False
            await result_of(await shop.dbos.rewind_workflow("r-1", "risk"))
            return rows

        monkeypatch.setattr(listing, "fetch_workflows", rewound_once_found)
        deleted = await shop.dbos.delete_workflows(status="ERROR")
        assert sorted(deleted) == ["r-0", "r-2", "r-3", "r-4"]
        assert (await shop.status("s-1")).status == "SUCCESS"
