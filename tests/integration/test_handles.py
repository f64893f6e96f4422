"""Handles and reads: results typed, listings filtered, all of it recorded within workflows."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs

from dbos_async import (
    DBOS,
    Client,
    StepInfo,
    Workflow,
    WorkflowHandle,
    WorkflowNotFoundError,
    WorkflowStatus,
)


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("handles", dbos_database_url)


async def test_a_result_has_its_annotated_type_wherever_it_is_asked_for(
    dbos: DBOS, dbos_database_url: str
) -> None:
    @dbos.workflow(name="flow")
    async def workflow(day: int) -> tuple[datetime, set[int]]:
        return datetime(2026, 1, day, tzinfo=UTC), {day}

    expected = (datetime(2026, 1, 2, tzinfo=UTC), {2})
    async with dbos:
        handle = await dbos.start_workflow(workflow, 2)
        assert isinstance(handle, WorkflowHandle)
        assert await handle.get_result() == expected
        assert await handle.get_result() == expected
        retrieved = await dbos.retrieve_workflow(handle.workflow_id)
        assert await retrieved.get_result() == expected
        assert (await retrieved.get_status()).output == ["2026-01-02T00:00:00Z", [2]]
        async with Client(dbos_database_url) as client:
            foreign = await client.retrieve_workflow(handle.workflow_id)
            assert await foreign.get_result() == ["2026-01-02T00:00:00Z", [2]]


async def test_a_timeout_leaves_the_workflow_running(dbos: DBOS) -> None:
    opened = asyncio.Event()

    @dbos.workflow
    async def workflow() -> int:
        await opened.wait()
        return 1

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        for timeout in (0, 0.01, timedelta(milliseconds=10)):
            with pytest.raises(TimeoutError):
                await handle.get_result(timeout=timeout)
        opened.set()
        assert await handle.get_result(timeout=20) == 1
        assert await handle.get_result(timeout=20) == 1


async def test_what_another_process_runs_is_awaited_by_notification(
    dbos: DBOS, dbos_database_url: str
) -> None:
    opened = asyncio.Event()

    @dbos.workflow(name="flow")
    async def workflow() -> int:
        await opened.wait()
        return 1

    client = Client(dbos_database_url)
    client._settings = structs.replace(client._settings, recheck_interval=3600)  # it is told
    async with dbos, client:
        handle = await dbos.start_workflow(workflow)
        foreign = await client.retrieve_workflow(handle.workflow_id)
        waiting = asyncio.create_task(foreign.get_result())
        with pytest.raises(TimeoutError):
            await foreign.get_result(timeout=0.05)
        opened.set()
        assert await asyncio.wait_for(waiting, 20) == 1


async def test_unknown_ids_are_not_found(dbos: DBOS, dbos_database_url: str) -> None:
    async with dbos, Client(dbos_database_url) as client:
        for verbs in (dbos, client):
            for ask in (verbs.retrieve_workflow, verbs.list_steps, verbs.cancel_workflow):
                with pytest.raises(WorkflowNotFoundError) as raised:
                    await ask("nobody")
                assert raised.value.workflow_id == "nobody"
                assert "'nobody'" in str(raised.value)
        assert await dbos.list_workflows(workflow_ids=["nobody"]) == []


async def test_a_status_tells_everything_in_our_words(dbos: DBOS) -> None:
    @dbos.step(name="step")
    async def step() -> None:
        raise LookupError("no")

    @dbos.workflow(name="flow")
    async def workflow(number: int, *, note: str) -> None:
        await step()

    async with dbos:
        before = await dbos.now()
        handle = await dbos.start_workflow(
            workflow.with_options(workflow_id="w", timeout=60), 3, note="n"
        )
        with pytest.raises(LookupError):
            await handle.get_result()
        status = await handle.get_status()
        assert isinstance(status, WorkflowStatus)
        (info,) = await dbos.list_steps("w")
        after = await dbos.now()
        executor_id = dbos.executor_id
    assert (status.workflow_id, status.status, status.name) == ("w", "ERROR", "flow")
    assert status.input is not None
    assert (status.input.args, status.input.kwargs) == ((3,), {"note": "n"})
    assert status.output is None
    assert isinstance(status.error, LookupError)
    assert (status.executor_id, status.app_name) == (executor_id, "handles")
    assert (status.queue_name, status.parent_workflow_id, status.class_name) == (None,) * 3
    tolerance = timedelta(milliseconds=50)
    assert status.completed_at is not None
    assert status.deadline is not None
    assert before - tolerance <= status.created_at <= status.completed_at <= after + tolerance
    assert status.created_at.tzinfo is UTC
    asked_at = status.deadline - timedelta(seconds=60)  # a moment before it was created
    assert before - tolerance <= asked_at <= status.created_at + tolerance
    assert isinstance(info, StepInfo)
    assert (info.step_id, info.position, info.name, info.output) == ("1", 1, "step", None)
    assert isinstance(info.error, LookupError)
    assert info.child_workflow_id is None
    assert info.started_at is not None
    assert info.completed_at is not None
    assert before - tolerance <= info.started_at <= info.completed_at <= after + tolerance


async def test_workflows_are_listed_by_what_is_asked_for(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="good")
    async def good(number: int) -> int:
        return number

    @dbos.workflow(name="bad")
    async def bad(number: int) -> None:
        raise ValueError(number)

    async def ids(**filter: Any) -> list[str]:
        return [row.workflow_id for row in await dbos.list_workflows(newest_first=False, **filter)]

    async with dbos:
        await good.with_options(workflow_id="a-1")(1)
        await good.with_options(workflow_id="a_2")(2)
        with pytest.raises(ValueError, match="3"):
            await bad.with_options(workflow_id="b-3")(3)
        between = (await dbos.list_workflows(workflow_ids=["b-3"]))[0].created_at
        between += timedelta(milliseconds=1)
        async with asyncio.timeout(10):
            while await dbos.now() <= between:
                await asyncio.sleep(0.001)
        handle = await queue.enqueue(good.with_options(workflow_id="a-4"), 4)
        await handle.get_result()

        everything = ["a-1", "a_2", "b-3", "a-4"]
        assert await ids() == everything
        assert [row.workflow_id for row in await dbos.list_workflows()] == everything[::-1]
        assert await ids(status="SUCCESS") == ["a-1", "a_2", "a-4"]
        assert await ids(status=["SUCCESS", "ERROR"]) == everything
        assert await ids(status=[]) == []
        assert await ids(name="bad") == ["b-3"]
        assert await ids(name="nothing") == []
        assert await ids(queue_name="queue") == ["a-4"]
        assert await ids(workflow_id_prefix="a") == ["a-1", "a_2", "a-4"]
        assert await ids(workflow_id_prefix="a_") == ["a_2"]
        assert await ids(workflow_id_prefix="%") == []
        assert await ids(workflow_ids=["a-4", "a-1", "no"]) == ["a-1", "a-4"]
        assert await ids(created_before=between) == ["a-1", "a_2", "b-3"]
        assert await ids(created_after=between) == ["a-4"]
        assert await ids(created_after=between, name="bad") == []
        assert await ids(limit=2) == ["a-1", "a_2"]
        assert await ids(limit=2, offset=1) == ["a_2", "b-3"]
        assert await ids(offset=4) == await ids(limit=0) == []
        newest = await dbos.list_workflows(limit=1)
        assert (newest[0].output, newest[0].queue_name) == (4, "queue")


async def test_filters_that_cannot_work_are_refused(dbos: DBOS) -> None:
    list_workflows: Any = dbos.list_workflows
    async with dbos:
        for wrong, error in (
            ({"limit": -1}, ValueError),
            ({"offset": -1}, ValueError),
            ({"created_after": datetime(2026, 1, 1)}, ValueError),
            ({"status": "DONE"}, ValueError),
            ({"status": ["SUCCESS", "DONE"]}, ValueError),
            ({"statu": "ERROR"}, TypeError),
            ({"created_after": "2026-01-01"}, TypeError),
            ({"workflow_ids": "w-1"}, TypeError),
            ({"name": 3}, TypeError),
        ):
            with pytest.raises(error):
                await list_workflows(**wrong)


async def test_reads_within_a_workflow_are_recorded(lives: Any) -> None:
    seen: dict[int, list[Any]] = {}
    looked = asyncio.Event()

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="other")
        async def other() -> int:
            await looked.wait()
            await dbos.sleep(0.05)
            return 7

        @dbos.workflow(name="reader")
        async def reader() -> None:
            handle = await dbos.start_workflow(other)
            before = await handle.get_status()
            found = await dbos.list_workflows(name="other")
            looked.set()
            result = await handle.get_result()
            retrieved = await dbos.retrieve_workflow(handle.workflow_id)
            steps = await dbos.list_steps(handle.workflow_id)
            seen[life.number] = [
                before,
                found,
                result,
                await retrieved.get_result(),
                [step.name for step in steps],
            ]
            try:
                await dbos.retrieve_workflow("nobody")
            except WorkflowNotFoundError as exc:
                seen[life.number].append(exc.workflow_id)
            await life.halt()

        return reader

    await lives.both(declare)
    assert seen[1] == seen[2]
    assert seen[1][0].status == "PENDING"
    assert seen[1][2:] == [7, 7, ["DBOS.sleep"], "nobody"]


async def test_a_timed_out_wait_within_a_workflow_is_recorded(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], list[Any]]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="other")
        async def other() -> int:
            if life.is_first:
                await asyncio.Event().wait()
            return 7

        @dbos.workflow(name="waiter")
        async def waiter() -> list[Any]:
            handle = await dbos.start_workflow(other)
            try:
                result: Any = await handle.get_result(timeout=0.01)
            except TimeoutError:
                result = "late"
            await life.halt()
            return [result, await handle.get_result()]

        return waiter

    assert await lives.both(declare) == ["late", 7]


async def test_a_failed_child_is_recorded_and_fails_again(lives: Any) -> None:
    seen: list[str] = []

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="child")
        async def child() -> None:
            raise ValueError("child")

        @dbos.workflow(name="parent")
        async def parent() -> None:
            try:
                await child()
            except ValueError as exc:
                seen.append(f"{life.number} {exc}")
            await life.halt()

        return parent

    await lives.both(declare)
    assert seen == ["1 child", "2 child"]


async def test_awaiting_many_workflows_takes_no_connection_each(
    dbos: DBOS, dbos_database_url: str
) -> None:
    opened = asyncio.Event()

    @dbos.workflow(name="flow")
    async def workflow(number: int) -> int:
        await opened.wait()
        return number

    async with dbos, Client(dbos_database_url) as client:
        handles = [await dbos.start_workflow(workflow, number) for number in range(100)]
        foreign = [await client.retrieve_workflow(handle.workflow_id) for handle in handles]
        waiting = asyncio.gather(*[handle.get_result() for handle in foreign])
        await asyncio.sleep(0)
        assert len(await client.list_workflows(status="PENDING", limit=200)) == 100
        opened.set()
        assert await waiting == list(range(100))
