"""The official client starts, cancels, resumes and forks our workflows."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from dbos_async import errors


async def test_it_enqueues_for_our_workers(shop: Any, official: Any, until: Any) -> None:
    handle = await official.enqueue_async(
        {
            "workflow_name": "simple",
            "queue_name": "mail",
            "workflow_id": "e",
            "serialization_type": "portable",
            "application_name": "shop",
        },
        21,
        note="from afar",
    )
    assert await handle.get_result(polling_interval_sec=0.05) == {
        "doubled": 42,
        "note": "from afar",
    }
    ours = await (await shop.dbos.retrieve_workflow("e")).get_status()
    assert ours.input is not None
    assert (ours.input.args, ours.input.kwargs) == ((21,), {"note": "from afar"})


async def test_what_it_enqueues_for_nobody_in_particular_is_ours_once_claimed(
    shop: Any, official: Any
) -> None:
    handle = await official.enqueue_async(
        {"workflow_name": "child", "queue_name": "mail", "serialization_type": "portable"}, 1
    )
    assert await handle.get_result(polling_interval_sec=0.05) == 2
    status = await handle.get_status()
    assert (status.application_name, status.app_version) == ("shop", "1")


async def test_it_enqueues_with_every_option(shop: Any, official: Any) -> None:
    handle = await official.enqueue_async(
        {
            "workflow_name": "child",
            "queue_name": "mail",
            "serialization_type": "portable",
            "delay_seconds": 0.2,
            "priority": 3,
            "deduplication_id": "once",
            "workflow_timeout": 60,
            "attributes": {"a": 1},
            "app_version": "1",
            "application_name": "shop",
        },
        1,
    )
    assert await handle.get_result(polling_interval_sec=0.05) == 2
    status = await (await shop.dbos.retrieve_workflow(handle.workflow_id)).get_status()
    assert (status.priority, status.timeout, status.attributes) == (3, 60, {"a": 1})
    assert status.delay_until is not None
    assert status.started_at >= status.delay_until
    assert status.deadline is not None


async def test_its_arguments_that_do_not_fit_are_the_workflows_error(
    shop: Any, official: Any
) -> None:
    from dbos._serialization import PortableWorkflowError

    handle = await official.enqueue_async(
        {"workflow_name": "child", "queue_name": "mail", "serialization_type": "portable"}, "text"
    )
    with pytest.raises(PortableWorkflowError, match="number"):
        await handle.get_result(polling_interval_sec=0.05)


async def test_what_it_pickles_is_refused_with_the_way_out(shop: Any, official: Any) -> None:
    from dbos._serialization import PortableWorkflowError

    handle = await official.enqueue_async({"workflow_name": "child", "queue_name": "mail"}, 1)
    with pytest.raises(PortableWorkflowError, match="allow_pickle=True"):
        await handle.get_result(polling_interval_sec=0.05)
    assert shop.calls == []


async def test_it_cancels_a_workflow_that_runs_here(shop: Any, official: Any, until: Any) -> None:
    handle = await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await official.cancel_workflow_async("w")
    with pytest.raises(errors.WorkflowCancelledError):
        await handle.get_result(timeout=30)
    await until(lambda: not shop.dbos.launched().running)
    assert shop.calls == ["double 1", "waits"]


async def test_it_resumes_what_was_cancelled_from_its_last_step(
    shop: Any, official: Any, until: Any
) -> None:
    await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await shop.dbos.cancel_workflow("w")
    shop.gate.set()
    handle = await official.resume_workflow_async("w")
    assert await handle.get_result(polling_interval_sec=0.05) == 4
    assert shop.calls == ["double 1", "waits", "waits", "double 2"]


async def test_it_resumes_a_workflow_that_runs_here_and_the_old_run_stops(
    shop: Any, official: Any, until: Any
) -> None:
    first = await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await until(lambda: "waits" in shop.calls)
    await official.resume_workflow_async("w")
    await until(lambda: shop.calls.count("waits") == 2)
    shop.gate.set()
    assert await first.get_result(timeout=30) == 4
    assert Counter(shop.calls) == {"double 1": 1, "waits": 2, "double 2": 1}


@pytest.mark.parametrize("step", range(1, 12))
async def test_a_fork_repeats_exactly_the_steps_from_its_start(
    shop: Any, official: Any, step: int
) -> None:
    await shop.rich.with_options(workflow_id="r")()
    before = list(shop.calls)
    steps = {s.position: s for s in await shop.dbos.list_steps("r")}
    shop.calls.clear()
    fork = await official.fork_workflow_async("r", step)
    assert await fork.get_result(polling_interval_sec=0.05) == [2, 40, 400, 2000, 20000]
    expected = Counter(before) - Counter(
        f"double {s.output // 2}"
        for s in steps.values()
        if s.position < step and s.output is not None and s.name.endswith("double")
    )
    if step > 6:  # the child was copied with the step that started it
        expected -= Counter(["double 1000"])
    assert Counter(shop.calls) == expected
    forked = await shop.dbos.list_steps(fork.workflow_id)
    assert {s.step_id: (s.name, s.output) for s in forked if s.name != "DBOS.sleep"} == {
        s.step_id: (s.name, s.output) for s in steps.values() if s.name != "DBOS.sleep"
    }
    status = await (await shop.dbos.retrieve_workflow(fork.workflow_id)).get_status()
    assert status.forked_from == "r"


async def test_a_fork_of_a_fork_knows_its_branches_too(shop: Any, official: Any) -> None:
    await shop.rich.with_options(workflow_id="r")()
    last_branch_step = 6
    first = await official.fork_workflow_async("r", last_branch_step)
    second = await official.fork_workflow_async(first.workflow_id, last_branch_step)
    await first.get_result(polling_interval_sec=0.05)
    await second.get_result(polling_interval_sec=0.05)
    shop.calls.clear()
    third = await official.fork_workflow_async(second.workflow_id, 11)
    assert await third.get_result(polling_interval_sec=0.05) == [2, 40, 400, 2000, 20000]
    assert shop.calls == []
    assert [s.step_id for s in await shop.dbos.list_steps(third.workflow_id)] == [
        s.step_id for s in await shop.dbos.list_steps("r")
    ]


async def test_a_fork_that_took_another_path_than_its_source_keeps_its_own_keys(
    shop: Any, official: Any, dbos_database_url: str
) -> None:
    """A step of a fork may have the number and the name of another step of the source."""
    await shop.forking.with_options(workflow_id="source")()
    shop.forks = False
    fork = await official.fork_workflow_async("source", 2)
    assert await fork.get_result(polling_interval_sec=0.05) == [2, 4]
    assert [s.step_id for s in await shop.dbos.list_steps(fork.workflow_id)] == ["1", "2"]
    shop.calls.clear()
    again = await official.fork_workflow_async(fork.workflow_id, 3)
    assert await again.get_result(polling_interval_sec=0.05) == [2, 4]
    assert shop.calls == []


async def test_a_fork_draws_what_its_source_drew_before_its_first_step(
    shop: Any, official: Any
) -> None:
    drawn = await shop.drawing.with_options(workflow_id="d")()
    fork = await official.fork_workflow_async("d", 2)
    fork_of_fork = await official.fork_workflow_async(fork.workflow_id, 2)
    for handle in (fork, fork_of_fork):
        forked = await handle.get_result(polling_interval_sec=0.05)
        assert forked == drawn


async def test_a_fork_may_go_to_a_queue_of_ours(shop: Any, official: Any) -> None:
    await shop.simple.with_options(workflow_id="s")(1)
    fork = await official.fork_workflow_async("s", 1, queue_name="mail")
    assert (await fork.get_result(polling_interval_sec=0.05))["doubled"] == 2
    assert (await fork.get_status()).queue_name == "mail"
    assert shop.calls == ["double 1", "double 1"]


async def test_it_rewinds_what_has_ended(shop: Any, official: Any) -> None:
    await shop.rich.with_options(workflow_id="r")()
    before = [(s.step_id, s.name) for s in await shop.dbos.list_steps("r")]
    shop.calls.clear()
    handle = await official.rewind_workflow_async("r", start_step=9)
    assert await handle.get_result(polling_interval_sec=0.05) == [2, 40, 400, 2000, 20000]
    assert shop.calls == ["double 10000"]
    assert [(s.step_id, s.name) for s in await shop.dbos.list_steps("r")] == before


async def test_it_deletes_ours(shop: Any, official: Any) -> None:
    await shop.rich.with_options(workflow_id="r")()
    await official.delete_workflow_async("r", delete_children=True)
    assert await shop.dbos.list_workflows() == []
    with pytest.raises(errors.WorkflowNotFoundError):
        await shop.dbos.list_steps("r")


async def test_it_waits_for_the_first_of_several(shop: Any, official: Any) -> None:
    await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    await shop.dbos.start_workflow(shop.child.with_options(workflow_id="c"), 1)
    handles = [await official.retrieve_workflow_async(i) for i in ("w", "c")]
    first = await official.wait_first_async(handles, polling_interval_sec=0.05)
    assert first.workflow_id == "c"
    shop.gate.set()
    await asyncio.gather(*[handle.get_result(polling_interval_sec=0.05) for handle in handles])
