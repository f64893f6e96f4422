"""How often a workflow's process may die without progress before the workflow is given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest

from dbos_async import DBOS, RecoveryExhaustedError, Workflow

LOCK = "select pg_advisory_lock(hashtextextended('dbos_async executor dead', 0))"


def stuck(url: str, limit: int | None) -> tuple[DBOS, Any, asyncio.Event]:
    """An app whose workflow never gets past its first step."""
    dbos = DBOS("attempts", url, app_version="1")
    reached = asyncio.Event()

    @dbos.step
    async def wait() -> None:
        reached.set()
        await asyncio.Event().wait()

    @dbos.workflow(name="stuck", max_recovery_attempts=limit)
    async def workflow() -> None:
        await wait()

    flow: Workflow[[], None] = workflow.with_options(workflow_id="w")
    return dbos, flow, reached


@asynccontextmanager
async def dying(database: Any) -> AsyncIterator[None]:
    """What is PENDING looks, after the block, as if its process had been killed.

    Within the block that process holds its lock, or who runs in the block would take it over.
    """
    await database.execute(LOCK)
    await database.execute(
        "update dbos.workflow_status set executor_id = 'dead', owner_xid = 'dead' "
        "where status = 'PENDING'"
    )
    yield
    await database.execute("select pg_advisory_unlock_all()")


async def start(url: str, limit: int | None, database: Any, *, crash: bool) -> None:
    dbos, flow, reached = stuck(url, limit)
    await dbos.launch()
    await dbos.start_workflow(flow)
    async with asyncio.timeout(20):
        await reached.wait()
    async with dying(database) if crash else nullcontext():
        await dbos.shutdown(timeout=0)


async def test_a_workflow_whose_process_dies_too_often_is_given_up(
    dbos_database_url: str, database: Any
) -> None:
    for _ in range(3):  # the first run and two recoveries
        await start(dbos_database_url, 2, database, crash=True)
    dbos, _, reached = stuck(dbos_database_url, 2)
    async with asyncio.timeout(20), dbos:
        handle = await dbos.retrieve_workflow("w")
        with pytest.raises(RecoveryExhaustedError) as raised:
            await handle.get_result()
        status = await handle.get_status()
    assert raised.value.workflow_id == "w"
    assert status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
    assert not reached.is_set()


async def test_without_a_limit_it_is_recovered_however_often(
    dbos_database_url: str, database: Any
) -> None:
    await start(dbos_database_url, None, database, crash=True)
    await database.execute("update dbos.workflow_status set recovery_attempts = 1000")
    await start(dbos_database_url, None, database, crash=True)


async def test_deploys_do_not_count_as_crashes(dbos_database_url: str, database: Any) -> None:
    for _ in range(5):
        await start(dbos_database_url, 2, database, crash=False)
    status = await database.fetchval("select status from dbos.workflow_status")
    assert status == "PENDING"


async def test_a_pending_workflow_that_nobody_defines_is_left_and_told_of_once(
    dbos_database_url: str, database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await start(dbos_database_url, 2, database, crash=True)
    dbos = DBOS("attempts", dbos_database_url, app_version="1")
    dbos.configure(recheck_interval=0.05)

    @dbos.workflow(name="another")
    async def another() -> int:
        return 1

    def warnings() -> list[str]:
        return [text for record in caplog.records if "'stuck'" in (text := record.getMessage())]

    async with dbos, asyncio.timeout(20):
        while not warnings():
            await asyncio.sleep(0.01)
        assert await another() == 1
        for _ in range(5):
            await asyncio.sleep(0.05)
        (row,) = await dbos.list_workflows(name="stuck")
    assert row.status == "PENDING"
    assert len(warnings()) == 1
