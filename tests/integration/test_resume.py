"""Workflows that stopped go on: cancelled ones, dead letters, and those that wait."""

import asyncio
from typing import Any

import pytest
from managed import Managed, eventually, managed, result_of

from dbos_async import (
    Client,
    QueueNotFoundError,
    WorkflowCancelledError,
    WorkflowNotFoundError,
)
from dbos_async._store import listing


async def test_what_was_cancelled_goes_on_from_its_last_step(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop, Client(dbos_database_url) as client:
        handle = await shop.hold()
        await client.cancel_workflow("w")
        with pytest.raises(WorkflowCancelledError):
            await result_of(handle)
        shop.gate.set()
        resumed = await client.resume_workflow("w")
        assert await result_of(resumed) == [2, "1", 4]
        assert shop.calls == ["double 1", "hold", "hold", "double 2"]
        status = await shop.status()
    assert (status.status, status.deadline) == ("SUCCESS", None)


async def test_a_dead_letter_is_listed_and_goes_on_with_all_its_attempts(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.hold()
        await shop.dbos.cancel_workflow("w")
        await database.execute("""
            update dbos.workflow_status
               set status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED', recovery_attempts = 102
        """)
        dead = await shop.dbos.list_workflows(status="MAX_RECOVERY_ATTEMPTS_EXCEEDED")
        assert [row.workflow_id for row in dead] == ["w"]
        shop.gate.set()
        handle = await shop.dbos.resume_workflow("w")
        assert await result_of(handle) == [2, "1", 4]
        assert (await shop.status()).recovery_attempts == 1


async def test_a_deadline_that_passed_is_forgotten_and_its_timeout_begins_anew(
    dbos_database_url: str, advance: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        queued = shop.waiting.with_options(workflow_id="w", timeout=60)
        handle = await shop.dbos.enqueue("mail", queued, 1)
        await shop.until(lambda: "hold" in shop.calls)
        advance(61)
        with pytest.raises(WorkflowCancelledError):
            await result_of(handle)
        before = (await shop.status()).deadline
        shop.gate.set()
        assert await result_of(await shop.dbos.resume_workflow("w")) == [2, "1", 4]
        after = (await shop.status()).deadline
    assert before < after


@pytest.mark.parametrize("delay", [None, 3600])
async def test_what_waits_goes_at_once(dbos_database_url: str, delay: Any) -> None:
    async with managed(dbos_database_url) as shop:
        mail = await shop.dbos.retrieve_queue("mail")
        await mail.pause()
        options: Any = {"workflow_id": "w"} if delay is None else {"workflow_id": "w", "delay": 60}
        await shop.dbos.enqueue("mail", shop.simple.with_options(**options), 4)
        assert await result_of(await shop.dbos.resume_workflow("w")) == 8


async def test_what_runs_is_handed_over_and_its_old_run_stops(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        handle = await shop.hold()
        old = shop.dbos.launched().running["w"]
        await shop.dbos.resume_workflow("w")
        await shop.until(lambda: shop.calls.count("hold") == 2)
        assert old.stopped is not None
        shop.gate.set()
        assert await result_of(handle) == [2, "1", 4]
        assert sorted(shop.calls) == ["double 1", "double 2", "hold", "hold"]


async def test_it_goes_on_with_its_version_unless_another_is_named(
    dbos_database_url: str,
) -> None:
    async with managed(dbos_database_url) as old, managed(dbos_database_url, version="2") as new:
        for workflow_id in ("stays", "moves"):
            await old.hold(workflow_id)
        await old.dbos.cancel_workflows(workflow_ids=["stays", "moves"])
        old.gate.set()
        new.gate.set()
        assert await result_of(await new.dbos.resume_workflow("stays")) == [2, "1", 4]
        moved = await old.dbos.resume_workflow("moves", app_version="2")
        assert await result_of(moved) == [2, "2", 4]


async def test_it_goes_on_within_the_limits_of_a_queue(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.hold()
        await shop.dbos.cancel_workflow("w")
        await shop.mail.pause()
        await shop.dbos.resume_workflow("w", queue=shop.mail)
        assert await shop.mail.depth() == 1
        with pytest.raises(QueueNotFoundError, match="nowhere"):
            await shop.dbos.resume_workflow("w", queue="nowhere")
        assert (await shop.status()).queue_name == "mail"
        paid = await database.fetchval("select rate_limited from dbos.workflow_status")
        assert not paid


async def test_what_has_ended_is_not_resumed(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.simple.with_options(workflow_id="good")(1)
        with pytest.raises(ValueError, match="too risky"):
            await shop.risky.with_options(workflow_id="bad")()
        before = await shop.dbos.list_workflows(load_output=False)
        for workflow_id, status in (("good", "SUCCESS"), ("bad", "ERROR")):
            with pytest.raises(ValueError, match=f"{status}.*rewind_workflow"):
                await shop.dbos.resume_workflow(workflow_id)
        with pytest.raises(WorkflowNotFoundError):
            await shop.dbos.resume_workflow("nobody")
        assert await shop.dbos.resume_workflows(workflow_ids=["good", "bad", "nobody"]) == []
        assert await shop.dbos.list_workflows(load_output=False) == before


async def prepared(shop: Managed) -> list[str]:
    """Five that were cancelled; one that succeeded, one that waits, one that runs."""
    await shop.mail.pause()
    ids = [f"c-{i}" for i in range(5)]
    for workflow_id in ids:
        await shop.dbos.enqueue("mail", shop.simple.with_options(workflow_id=workflow_id), 1)
    assert sorted(await shop.dbos.cancel_workflows(workflow_id_prefix="c-")) == ids
    await shop.simple.with_options(workflow_id="c-done")(1)
    await shop.dbos.enqueue("mail", shop.simple.with_options(workflow_id="c-queued"), 1)
    await shop.hold("c-runs")
    return ids


async def test_the_plural_resumes_what_has_stopped_in_batches(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BATCH", 2)
    async with managed(dbos_database_url) as shop:
        ids = await prepared(shop)
        would = await shop.dbos.resume_workflows(dry_run=True, workflow_id_prefix="c-")
        assert sorted(would) == ids
        assert (await shop.status("c-0")).status == "CANCELLED"
        assert sorted(await shop.dbos.resume_workflows(workflow_id_prefix="c-")) == ids
        for workflow_id in ids:
            assert await result_of(await shop.dbos.retrieve_workflow(workflow_id)) == 2
        assert shop.calls.count("hold") == 1
        assert (await shop.status("c-queued")).status == "ENQUEUED"


async def test_the_plural_resumes_other_states_that_are_named(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        await prepared(shop)
        states: Any = ["ENQUEUED", "PENDING", "SUCCESS"]
        resumed = await shop.dbos.resume_workflows(status=states)
        assert sorted(resumed) == ["c-queued", "c-runs"]
        assert await result_of(await shop.dbos.retrieve_workflow("c-queued")) == 2
        await shop.until(lambda: shop.calls.count("hold") == 2)


@pytest.mark.parametrize("verb", ["cancel_workflows", "resume_workflows", "delete_workflows"])
@pytest.mark.parametrize(
    "empty",
    [
        {},
        {"workflow_id_prefix": ""},
        {"workflow_id_prefix": ["", "a"]},
        {"queues_only": False},
        {"attributes": {}},
    ],
    ids=str,
)
async def test_a_filter_that_means_everything_is_refused(
    dbos_database_url: str, verb: str, empty: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        with pytest.raises(ValueError, match="every workflow"):
            await getattr(shop.dbos, verb)(**empty)
        with pytest.raises(TypeError):
            await getattr(shop.dbos, verb)(nam="simple")


async def test_workflows_that_manage_others_do_so_once(dbos_database_url: str) -> None:
    """The first life halts after its verbs; the second replays them."""

    def declared(is_first: bool) -> tuple[Managed, Any, asyncio.Event]:
        shop, reached = Managed(dbos_database_url), asyncio.Event()
        shop.gate.set()

        @shop.dbos.workflow(name="operator")
        async def operator() -> list[Any]:
            dbos = shop.dbos
            fork = await dbos.fork_workflow("source", 2)
            rewound = await dbos.rewind_workflow("source")
            resumed = await dbos.resume_workflows(workflow_ids=["stopped"])
            await dbos.delete_workflow("old")
            count = len(await dbos.export_workflow("source"))
            ended = [await fork.get_result(), await rewound.get_result()]
            if is_first:
                reached.set()
                await asyncio.Event().wait()
            return [fork.workflow_id, resumed, *ended, count > 0]

        return shop, operator, reached

    shop, operator, reached = declared(is_first=True)
    async with shop.dbos:
        for workflow_id in ("source", "old"):
            await shop.simple.with_options(workflow_id=workflow_id)(1)
        shop.gate.clear()
        await shop.hold("stopped")
        await shop.dbos.cancel_workflow("stopped")
        shop.gate.set()
        await shop.dbos.start_workflow(operator.with_options(workflow_id="o"))
        await asyncio.wait_for(reached.wait(), 20)
        await shop.dbos.shutdown(timeout=0)
    again, _, _ = declared(is_first=False)
    async with again.dbos:
        result = await result_of(await again.dbos.retrieve_workflow("o"))
        assert result == ["o-1", ["stopped"], 2, 2, True]
        rows = await again.dbos.list_workflows()
        assert {row.workflow_id for row in rows} == {"source", "stopped", "o", "o-1"}
        assert "double 1" not in again.calls


async def test_a_verb_of_an_outage_is_done_once_the_database_is_back(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.hold()
        await shop.dbos.cancel_workflow("w")
        shop.gate.set()
        await database.execute("""
            select pg_terminate_backend(pid) from pg_stat_activity
             where application_name like 'dbos_async%' and datname = current_database()
        """)
        handle = await shop.dbos.resume_workflow("w")
        assert await result_of(handle) == [2, "1", 4]

        async def has_ended() -> bool:
            return not shop.dbos.launched().running

        await eventually(has_ended)
