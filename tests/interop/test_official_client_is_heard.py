"""What the official client does to our workflows we act on at once, with no recheck in between."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dbos_async import WorkflowCancelledError

HOUR = 3_600.0
SOON = 30.0


@pytest.fixture
async def shop(dbos_database_url: str, shop_on: Any) -> AsyncIterator[Any]:
    """The app, which learns for the next hour only what it is told."""
    async with shop_on(dbos_database_url, recheck_interval=HOUR) as shop:
        yield shop


async def test_a_cancelled_workflow_stops(shop: Any, official: Any, until: Any) -> None:
    handle = await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await official.cancel_workflow_async("w")
    with pytest.raises(WorkflowCancelledError):
        await handle.get_result(timeout=SOON)
    await until(lambda: not shop.dbos.launched().running)
    assert shop.calls == ["double 1", "waits"]


async def test_a_cancelled_workflow_of_a_queue_stops(shop: Any, official: Any, until: Any) -> None:
    handle = await shop.dbos.enqueue("mail", shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await official.cancel_workflows_async(["w"])
    with pytest.raises(WorkflowCancelledError):
        await handle.get_result(timeout=SOON)
    await until(lambda: not shop.dbos.launched().running)


@pytest.mark.parametrize("queue_name", [None, "mail"])
async def test_a_resumed_workflow_goes_on(
    shop: Any, official: Any, until: Any, queue_name: Any
) -> None:
    await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await shop.dbos.cancel_workflow("w")
    shop.gate.set()
    await official.resume_workflow_async("w", queue_name=queue_name)
    assert await (await shop.dbos.retrieve_workflow("w")).get_result(timeout=SOON) == 4
    assert shop.calls == ["double 1", "waits", "waits", "double 2"]


async def test_a_running_workflow_that_is_resumed_starts_again_and_its_old_run_stops(
    shop: Any, official: Any, until: Any
) -> None:
    handle = await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await official.resume_workflow_async("w")
    await until(lambda: shop.calls.count("waits") == 2)
    shop.gate.set()
    assert await handle.get_result(timeout=SOON) == 4
    assert sorted(shop.calls) == ["double 1", "double 2", "waits", "waits"]


async def test_a_fork_runs(shop: Any, official: Any) -> None:
    await shop.simple.with_options(workflow_id="s")(1)
    fork = await official.fork_workflow_async("s", 2)
    ours = await shop.dbos.retrieve_workflow(fork.workflow_id)
    assert (await ours.get_result(timeout=SOON))["doubled"] == 2
    assert shop.calls == ["double 1"]


async def test_a_rewound_workflow_runs(shop: Any, official: Any) -> None:
    await shop.simple.with_options(workflow_id="s")(1)
    await official.rewind_workflow_async("s", start_step=1)
    async with asyncio.timeout(SOON):
        while shop.calls != ["double 1"] * 2:
            await asyncio.sleep(0.01)


async def test_it_lists_and_steps_through_what_we_managed(
    shop: Any, official: Any, until: Any
) -> None:
    await shop.rich.with_options(workflow_id="r")()
    fork = await shop.dbos.fork_workflow("r", 5, new_workflow_id="fork")
    assert await fork.get_result(timeout=SOON) == [2, 40, 400, 2000, 20000]
    await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await shop.dbos.cancel_workflow("w")
    [listed] = await official.list_workflows_async(forked_from="r")
    assert (listed.workflow_id, listed.status) == ("fork", "SUCCESS")
    [source] = await official.list_workflows_async(was_forked_from=True)
    assert source.workflow_id == "r"
    [stopped] = await official.list_workflows_async(status="CANCELLED")
    assert stopped.workflow_id == "w"
    ours, theirs = [await official.list_workflow_steps_async(i) for i in ("r", "fork")]
    assert [s["function_name"] for s in theirs] == [s["function_name"] for s in ours]


async def test_it_forks_a_fork_of_ours(shop: Any, official: Any) -> None:
    await shop.rich.with_options(workflow_id="r")()
    fork = await shop.dbos.fork_workflow("r", 6)
    expected = await fork.get_result(timeout=SOON)
    shop.calls.clear()
    again = await official.fork_workflow_async(fork.workflow_id, 12)
    ours = await shop.dbos.retrieve_workflow(again.workflow_id)
    assert await ours.get_result(timeout=SOON) == expected
    assert shop.calls == []


REFUSAL = """
create or replace function dbos.dbos_async_tell_change() returns trigger language plpgsql as $$
begin raise exception 'the trigger has fired'; end $$
"""


async def test_our_own_verbs_do_not_pay_for_the_trigger(
    shop: Any, official: Any, until: Any, dbos_database_url: str
) -> None:
    """Each of our commits that notified would take a lock that all commits share."""
    import asyncpg
    from sqlalchemy.exc import DBAPIError

    connection = await asyncpg.connect(dbos_database_url)
    await connection.execute(REFUSAL)
    await connection.close()
    await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await shop.dbos.cancel_workflow("w")
    await shop.dbos.resume_workflow("w", queue="mail")
    await until(lambda: shop.calls.count("waits") == 2)
    with pytest.raises(DBAPIError, match="the trigger has fired"):
        await official.cancel_workflow_async("w")
