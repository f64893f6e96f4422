"""The official client reads what our workflows leave."""

from datetime import UTC, datetime
from typing import Any

import pytest


async def test_it_reads_inputs_result_and_status(shop: Any, official: Any) -> None:
    await shop.dbos.start_workflow(
        shop.simple.with_options(workflow_id="s", attributes={"tenant": "a"}), 4, note="hé"
    )
    handle = await official.retrieve_workflow_async("s")
    assert await handle.get_result() == {"doubled": 8, "note": "hé"}
    status = await handle.get_status()
    ours = await (await shop.dbos.retrieve_workflow("s")).get_status()
    assert status.status == ours.status == "SUCCESS"
    assert status.name == ours.name == "simple"
    assert status.input == {"args": (4,), "kwargs": {"note": "hé"}}
    assert status.output == ours.output == {"doubled": 8, "note": "hé"}
    assert status.error is None
    assert (status.app_version, status.application_name) == ("1", "shop")
    assert status.executor_id == shop.dbos.executor_id
    assert status.attributes == {"tenant": "a"}
    assert status.created_at <= status.completed_at == round(ours.completed_at.timestamp() * 1000)


async def test_it_reads_what_json_has_no_word_for_as_the_text_it_became(
    shop: Any, official: Any
) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    text = 'quotes " \\ \n and 日本 😀'
    assert await shop.typed(at, text) == (at, text)
    [status] = await official.list_workflows_async(name="typed")
    assert status.input["args"][1] == text
    assert datetime.fromisoformat(status.output[0]) == at
    assert status.output[1] == text


async def test_it_reads_every_step_of_a_workflow_with_branches(shop: Any, official: Any) -> None:
    await shop.rich.with_options(workflow_id="r")()
    assert await (await official.retrieve_workflow_async("r")).get_result() == [
        2,
        40,
        400,
        2000,
        20000,
    ]
    steps = await official.list_workflow_steps_async("r")
    ours = await shop.dbos.list_steps("r")
    assert [step["function_id"] for step in steps] == list(range(1, 11))
    assert [(step["function_id"], step["function_name"], step["output"]) for step in steps] == [
        (step.position, step.name, step.output) for step in ours
    ]
    assert [step["child_workflow_id"] for step in steps] == [
        step.child_workflow_id for step in ours
    ]
    assert steps[5]["function_name"] == "child"
    assert steps[5]["child_workflow_id"] == "r-2"
    assert steps[7]["function_name"] == "DBOS.sleep"
    assert steps[8]["function_name"] == "fail"
    assert str(steps[8]["error"]) == "caught"
    assert all(step["started_at_epoch_ms"] <= step["completed_at_epoch_ms"] for step in steps)
    assert sorted(step["output"] for step in steps if step["function_name"] == "double") == [
        2,
        20,
        40,
        200,
        400,
        20000,
    ]


async def test_it_finds_children_by_their_parent(shop: Any, official: Any) -> None:
    await shop.rich.with_options(workflow_id="r")()
    [child] = await official.list_workflows_async(parent_workflow_id="r")
    assert (child.workflow_id, child.name, child.output) == ("r-2", "child", 2000)
    assert child.parent_workflow_id == "r"


async def test_it_raises_what_a_workflow_raised(shop: Any, official: Any) -> None:
    from dbos._serialization import PortableWorkflowError

    with pytest.raises(ValueError, match="no stock"):
        await shop.failing.with_options(workflow_id="f")("no stock")
    handle = await official.retrieve_workflow_async("f")
    with pytest.raises(PortableWorkflowError, match="no stock") as raised:
        await handle.get_result()
    assert raised.value.name == "ValueError"
    status = await handle.get_status()
    assert (status.status, status.error.name) == ("ERROR", "ValueError")
    [step] = await official.list_workflow_steps_async("f")
    assert (step["output"], step["error"].message) == (None, "no stock")


async def test_it_waits_for_a_workflow_that_runs(shop: Any, official: Any) -> None:
    await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="w"), 1)
    handle = await official.retrieve_workflow_async("w")
    assert (await handle.get_status()).status == "PENDING"
    shop.gate.set()
    assert await handle.get_result(polling_interval_sec=0.05) == 4


async def test_its_filters_find_ours(shop: Any, official: Any) -> None:
    await shop.simple.with_options(workflow_id="s-1")(1)
    await shop.child.with_options(workflow_id="c-1")(1)
    with pytest.raises(ValueError, match="x"):
        await shop.failing.with_options(workflow_id="f-1")("x")
    await (
        await shop.mail.enqueue(shop.child.with_options(workflow_id="c-2", priority=7), 2)
    ).get_result()

    async def found(**chosen: Any) -> list[str]:
        return [row.workflow_id for row in await official.list_workflows_async(**chosen)]

    assert await found() == ["s-1", "c-1", "f-1", "c-2"]
    assert await found(sort_desc=True, limit=2) == ["c-2", "f-1"]
    assert await found(status="ERROR") == ["f-1"]
    assert await found(name=["simple", "failing"]) == ["s-1", "f-1"]
    assert await found(workflow_id_prefix="c-") == ["c-1", "c-2"]
    assert await found(queue_name="mail") == ["c-2"]
    assert await found(app_version="1", application_name="shop", offset=3) == ["c-2"]
    assert await found(executor_id=shop.dbos.executor_id, name="simple") == ["s-1"]
    assert await found(start_time=datetime(2000, 1, 1, tzinfo=UTC).isoformat(), limit=1) == ["s-1"]
    [queued] = await official.list_workflows_async(queues_only=True, status=["SUCCESS"])
    assert (queued.workflow_id, queued.priority) == ("c-2", 7)
    assert queued.dequeued_at >= queued.created_at


async def test_it_sees_the_queues_that_we_declare(shop: Any, official: Any) -> None:
    [queue] = await official.list_queues_async()
    assert queue.name == "mail"


async def test_it_sees_which_versions_there_are(shop: Any, official: Any) -> None:
    assert [v["version_name"] for v in await official.list_application_versions_async()] == ["1"]
    assert (await official.get_latest_application_version_async())["version_name"] == "1"
