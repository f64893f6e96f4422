"""Transactions, sagas, schedules, callers and the payload store, where they meet."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, AsyncpgDatasource, Queue

PATIENCE = 30
ANN = {"authenticated_user": "ann", "authenticated_roles": ["clerk"]}
TABLE = "create table if not exists public.entries (who text, cents int)"


class Shop:
    """An app whose transactions write entries."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.dbos = dbos = DBOS("shop", url, app_version="1", **settings)
        self.jobs: Queue = dbos.queue("jobs")
        self.bank = AsyncpgDatasource(url)

        @dbos.transaction(self.bank, name="enter")
        async def enter(connection: Any, who: str, cents: int) -> str:
            await connection.execute("insert into public.entries values ($1, $2)", who, cents)
            return f"{dbos.authenticated_user} entered {cents}"

        @dbos.transaction(self.bank, name="report")
        async def report(connection: Any, size: int) -> str:
            return "x" * size

        self.enter, self.report = enter, report

    async def prepare(self) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(TABLE)
        await connection.close()

    async def entries(self) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.url)
        rows = await connection.fetch("select who, cents from public.entries order by cents")
        await connection.close()
        return [tuple(row) for row in rows]


@pytest.fixture
async def shop(dbos_database_url: str, tmp_path: Path) -> Shop:
    shop = Shop(dbos_database_url, payload_store=f"file://{tmp_path}", payload_threshold=1000)
    await shop.prepare()
    return shop


async def test_a_transaction_compensates_on_behalf_of_the_same_caller(shop: Shop) -> None:
    @shop.dbos.workflow(name="buy")
    async def buy() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.enter, "back", -5)
            await shop.enter("pay", 5)
            raise ValueError("out of stock")

    async with asyncio.timeout(PATIENCE), shop.dbos:
        with pytest.raises(ValueError, match="out of stock"):
            await buy.with_options(workflow_id="b-1", **ANN)()
        assert await shop.entries() == [("back", -5), ("pay", 5)]
        steps = [step for step in await shop.dbos.list_steps("b-1") if step.name == "enter"]
        assert {step.output for step in steps} == {"ann entered 5", "ann entered -5"}
        [report] = await shop.dbos.check_replay(workflow_ids=["b-1"])
        assert report.is_ok, report


async def test_so_it_does_when_its_workflow_is_cancelled(shop: Shop) -> None:
    paid = asyncio.Event()

    @shop.dbos.workflow(name="buy")
    async def buy() -> None:
        async with shop.dbos.saga() as saga:
            await saga.compensate(shop.enter, "back", -5)
            await shop.enter("pay", 5)
            paid.set()
            await shop.dbos.sleep(3600)

    async with asyncio.timeout(PATIENCE), shop.dbos:
        handle = await shop.dbos.start_workflow(buy.with_options(workflow_id="b-1", **ANN))
        await paid.wait()
        await shop.dbos.cancel_workflow(handle.workflow_id)
        undone = await shop.dbos.retrieve_workflow("b-1-compensate")
        await undone.get_result()
        assert await shop.entries() == [("back", -5), ("pay", 5)]
        [step] = [s for s in await shop.dbos.list_steps("b-1-compensate") if s.name == "enter"]
        assert step.output == "ann entered -5"


async def test_a_large_result_of_a_transaction_is_kept_in_the_payload_store(
    shop: Shop, database: Any
) -> None:
    @shop.dbos.workflow(name="tell")
    async def tell(size: int) -> int:
        return len(await shop.report(size))

    async with asyncio.timeout(PATIENCE), shop.dbos:
        assert await tell.with_options(workflow_id="t-1")(100_000) == 100_000
        row = await database.fetchval(
            "select output from dbos.operation_outputs where workflow_uuid = 't-1'"
        )
        assert len(row) < 1000
        [step] = await shop.dbos.list_steps("t-1")
        assert step.output == "x" * 100_000
        fork = await shop.dbos.fork_workflow("t-1", from_step=2)
        assert await fork.get_result() == 100_000
        [report] = await shop.dbos.check_replay(workflow_ids=["t-1"])
        assert report.is_ok, report


async def test_a_transaction_with_a_large_argument_that_enqueues_one(shop: Shop) -> None:
    @shop.dbos.workflow(name="count")
    async def count(text: str) -> int:
        return len(text)

    @shop.dbos.transaction(shop.bank, name="hand_over")
    async def hand_over(connection: Any, text: str) -> str:
        await connection.execute("insert into public.entries values ('over', 1)")
        handle = await shop.jobs.enqueue(count, text)
        return handle.workflow_id

    @shop.dbos.workflow(name="deliver")
    async def deliver(text: str) -> str:
        return await hand_over(text)

    async with asyncio.timeout(PATIENCE), shop.dbos:
        workflow_id = await deliver("y" * 50_000)
        handle = await shop.dbos.retrieve_workflow(workflow_id)
        assert await handle.get_result() == 50_000
        assert await shop.entries() == [("over", 1)]


async def test_a_schedule_starts_a_saga_of_transactions(shop: Shop) -> None:
    @shop.dbos.workflow(name="nightly")
    async def nightly(due: datetime) -> str:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.enter, "back", -1)
            return await shop.enter("night", 1)

    async with asyncio.timeout(PATIENCE), shop.dbos:
        await shop.dbos.create_schedule("night", nightly, "0 3 * * *")
        handle = await shop.dbos.trigger_schedule("night")
        assert await handle.get_result() == "None entered 1"
        assert await shop.entries() == [("night", 1)]
        [run] = await shop.dbos.list_workflows(schedule_name="night")
        assert run.workflow_id == handle.workflow_id
