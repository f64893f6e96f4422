"""A workflow that was asked for exists and runs, whoever loses interest, and when."""

import asyncio
import contextvars

import asyncpg
import pytest

from dbos_async import (
    DBOS,
    Client,
    PortableWorkflowError,
    SerializationError,
)
from dbos_async._store.landings import Found
from dbos_async._store.records import ChildWrite, Fence, Owner, StepWrite, WorkflowWrite


async def test_a_start_whose_caller_is_cancelled_on_the_way_runs_all_the_same(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("unattended", dbos_database_url)
    ran = asyncio.Event()

    @dbos.workflow
    async def note() -> None:
        ran.set()

    async with dbos:
        caller = asyncio.create_task(
            dbos.start_workflow(note.with_options(workflow_id="left-alone"))
        )
        await asyncio.sleep(0)  # the start is on its way to Postgres
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        async with asyncio.timeout(10):
            await ran.wait()
            await (await dbos.retrieve_workflow("left-alone")).get_result()


async def test_an_argument_of_another_type_is_refused_before_anything_exists(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("typed", dbos_database_url)

    @dbos.workflow
    async def double(number: int) -> int:
        return 2 * number

    async with dbos:
        with pytest.raises(SerializationError, match="number"):
            await double("two")  # type: ignore[arg-type]  # the point
        assert await dbos.list_workflows() == []


async def test_a_shutdown_that_the_body_turns_into_an_error_is_no_outcome(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("stubborn", dbos_database_url)
    waits = asyncio.Event()

    @dbos.workflow
    async def stubborn() -> str:
        if waits.is_set():
            return "done"
        waits.set()
        try:
            await dbos.sleep(3600)
        except asyncio.CancelledError:
            raise RuntimeError("I do not like to be cancelled") from None
        return "slept"

    async with dbos:
        handle = await dbos.start_workflow(stubborn)
        await waits.wait()
    async with Client(dbos_database_url) as client:
        (left,) = await client.list_workflows()
        assert left.status == "PENDING"
    async with dbos:
        again = await dbos.retrieve_workflow(handle.workflow_id)
        assert await again.get_result(timeout=10) == "done"


async def test_a_workflow_whose_task_somebody_cancels_goes_on(dbos_database_url: str) -> None:
    dbos = DBOS("cancelled", dbos_database_url)
    dbos.configure(recheck_interval=0.1)
    tasks: list[asyncio.Task[object]] = []
    go = asyncio.Event()

    @dbos.step
    async def wait_for_go() -> str:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await go.wait()
        return "gone on"

    @dbos.workflow
    async def patient() -> str:
        return await wait_for_go()

    async with dbos, asyncio.timeout(20):
        handle = await dbos.start_workflow(patient)
        while not tasks:
            await asyncio.sleep(0)
        tasks[0].cancel()
        while len(tasks) < 2:
            await asyncio.sleep(0.01)
        go.set()
        assert await handle.get_result() == "gone on"


async def test_an_error_that_is_no_exception_is_the_outcome_all_the_same(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("odd", dbos_database_url)

    class Odd(BaseException):
        pass

    @dbos.workflow
    async def odd() -> None:
        raise Odd("neither an Exception nor a cancellation")

    async with dbos:
        with pytest.raises(PortableWorkflowError, match="neither"):
            await odd()


async def test_what_is_ours_and_does_not_run_is_run(dbos_database_url: str) -> None:
    dbos = DBOS("orphans", dbos_database_url)
    dbos.configure(recheck_interval=0.1)

    @dbos.workflow
    async def note() -> str:
        return "run after all"

    @dbos.workflow
    async def nap() -> None:
        await dbos.sleep(3600)

    async with dbos, asyncio.timeout(20):
        await dbos.start_workflow(nap.with_options(workflow_id="nap"))
        connection = await asyncpg.connect(dbos_database_url)
        await connection.execute(
            """insert into dbos.workflow_status
                      (workflow_uuid, status, name, executor_id, application_version, inputs,
                       serialization, owner_xid, creator_xid, recovery_attempts, application_name)
               select 'orphan', status, $1, executor_id, application_version, inputs,
                      serialization, owner_xid || '0', owner_xid || '0', 1, application_name
                 from dbos.workflow_status where workflow_uuid = 'nap'""",
            note._definition.name,
        )
        await connection.close()
        await dbos.cancel_workflow("nap")
        orphan = await dbos.retrieve_workflow("orphan")
        dbos.launched().claims.doubt()
        assert await orphan.get_result() == "run after all"


def test_a_child_that_landed_is_run_whatever_became_of_its_parent_since() -> None:
    step = StepWrite("p", 1, "c", None, None, "p-1", 0, 0, None, None, "parent-token")
    child = WorkflowWrite(
        workflow_id="p-1",
        status="PENDING",
        name="c",
        inputs="{}",
        executor_id="e",
        app_version="v",
        owner="child-token",
        creator="child-token",
    )
    cancelled = Owner("p", "CANCELLED", "p", None, "parent-token", None, None, None)
    created = Owner("p-1", "PENDING", "c", "child-token", "child-token", None, None, None)
    found = Found({}, {"p": cancelled, "p-1": created})
    assert found.landing_of(ChildWrite(step, child)) is None
    assert found.landing_of(step) is Fence.LOST


async def test_a_workflow_that_cancels_itself_fails_in_the_end(dbos_database_url: str) -> None:
    dbos = DBOS("self", dbos_database_url)
    dbos.configure(recheck_interval=0.1)

    @dbos.workflow
    async def impatient() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with dbos, asyncio.timeout(20):
        with pytest.raises(PortableWorkflowError, match="CancelledError"):
            await impatient()


async def test_a_workflow_does_not_see_its_callers_context(dbos_database_url: str) -> None:
    dbos = DBOS("context", dbos_database_url)
    tenant = contextvars.ContextVar("tenant", default="nobody")

    @dbos.workflow
    async def who() -> str:
        return tenant.get()

    async with dbos:
        tenant.set("acme")
        assert await who() == "nobody"  # as it is after a recovery
