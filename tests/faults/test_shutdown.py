"""A shutdown lets running steps finish in time, and leaves the rest as a crash would: PENDING."""

import asyncio
from typing import Any

import pytest
from load import PATIENCE

from dbos_async import DBOS, Client, NotLaunchedError
from dbos_async._engine import dispatcher
from dbos_async._engine.session import Session
from dbos_async._store import notifier, sql
from dbos_async._store.batches import Waiting
from dbos_async._store.checkpointer import Checkpointer
from dbos_async.testing import Crashed


class Shop:
    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1")
        dbos.configure(recheck_interval=600)
        self.began: list[str] = []
        self.inside = asyncio.Event()
        self.gate = asyncio.Event()

        @dbos.step
        async def charge() -> str:
            self.began.append("charge")
            self.inside.set()
            await self.gate.wait()
            return "charged"

        @dbos.step
        async def refund() -> None:
            self.began.append("refund")

        @dbos.workflow(name="checkout")
        async def checkout() -> str:
            try:
                return await charge()
            finally:
                await refund()

        self.checkout = checkout.with_options(workflow_id="w")


async def test_a_running_step_gets_its_time(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await shop.dbos.launch()
    handle = await shop.dbos.start_workflow(shop.checkout)
    await shop.inside.wait()
    ending = asyncio.create_task(shop.dbos.shutdown(timeout=PATIENCE))
    await asyncio.sleep(0)
    with pytest.raises(NotLaunchedError):
        await shop.dbos.start_workflow(shop.checkout)
    shop.gate.set()
    assert await handle.get_result() == "charged"
    await ending
    assert shop.began == ["charge", "refund"]


async def test_what_takes_longer_is_left_pending_and_its_finally_runs_no_steps(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    await shop.dbos.launch()
    waiting = asyncio.create_task((await shop.dbos.start_workflow(shop.checkout)).get_result())
    await shop.inside.wait()
    await shop.dbos.shutdown(timeout=0.1)
    with pytest.raises(NotLaunchedError, match="next launch"):
        await waiting
    assert shop.began == ["charge"]
    again = Shop(dbos_database_url)
    again.gate.set()
    async with again.dbos:
        handle = await again.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=PATIENCE) == "charged"
    assert again.began == ["charge", "refund"]


async def test_a_step_that_ends_just_before_a_shutdown_is_recorded_before_others_go_on(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, again = Shop(dbos_database_url), Shop(dbos_database_url)
    record = Checkpointer._record
    under_way = asyncio.Event()

    async def slowly(checkpointer: Checkpointer, connection: Any, batch: list[Waiting]) -> None:
        under_way.set()
        await asyncio.sleep(0.5)  # on its way, while all else is fast
        await record(checkpointer, connection, batch)

    await shop.dbos.launch()
    await shop.dbos.start_workflow(shop.checkout)
    await shop.inside.wait()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_record", slowly)
        shop.gate.set()
        await under_way.wait()
        await shop.dbos.shutdown(timeout=0)
    async with again.dbos:
        handle = await again.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=PATIENCE) == "charged"
    assert again.began == ["refund"]


async def test_a_workflow_of_another_process_wakes_its_awaiter_by_notification(
    dbos_database_url: str,
) -> None:
    here, there = Shop(dbos_database_url), Shop(dbos_database_url)
    async with here.dbos, there.dbos:
        await there.dbos.start_workflow(there.checkout)
        handle = await here.dbos.retrieve_workflow("w")
        waiting = asyncio.create_task(handle.get_result())
        await there.inside.wait()
        while not here.dbos._session.outcomes._asked:  # type: ignore[union-attr]  # launched
            await asyncio.sleep(0.01)
        there.gate.set()
        async with asyncio.timeout(PATIENCE):
            assert await waiting == "charged"


async def test_when_all_notifications_are_lost_the_recheck_wakes(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "NOTIFY", "select $1::text, $2::text[]")
    here, there = Shop(dbos_database_url), Shop(dbos_database_url)
    here.dbos.configure(recheck_interval=0.3)
    there.dbos.configure(recheck_interval=0.3)
    queue = there.dbos.queue("q")
    here.dbos.listen_queues([])
    async with here.dbos, there.dbos:
        await here.dbos.enqueue(queue, here.checkout)
        handle = await here.dbos.retrieve_workflow("w")
        there.gate.set()
        assert await handle.get_result(timeout=PATIENCE) == "charged"
    assert there.began == ["charge", "refund"]


async def test_the_recheck_comes_though_there_is_always_something_to_tell(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    shop.dbos.configure(recheck_interval=0.1)
    rechecked = asyncio.Event()

    async def chatter(session: Session) -> None:
        while not rechecked.is_set():
            session.notifier.post(notifier.ENDED, "nobody's workflow")
            await asyncio.sleep(0)

    async with shop.dbos, asyncio.timeout(PATIENCE):
        session = shop.dbos._own_session()
        session.on_recheck.append(rechecked.set)
        await chatter(session)


async def test_what_a_shutdown_leaves_of_a_queue_goes_on_elsewhere_at_once(
    dbos_database_url: str,
) -> None:
    begun: list[str | None] = []
    gate = asyncio.Event()

    def app() -> tuple[DBOS, Any]:
        dbos = DBOS("queues", dbos_database_url, app_version="1")
        dbos.configure(recheck_interval=3600)
        dbos.queue("queue", worker_concurrency=3)

        @dbos.workflow(name="flow")
        async def flow(number: int) -> int:
            begun.append(dbos.workflow_id)
            await gate.wait()
            return number

        return dbos, flow

    (leaving, flow), (staying, _) = app(), app()
    await leaving.launch()
    handles = await leaving.enqueue_many("queue", [flow.bind(number) for number in range(3)])
    async with asyncio.timeout(30), Client(dbos_database_url) as client:
        while len(begun) < 3:
            await asyncio.sleep(0.01)
        async with staying:
            await leaving.shutdown(timeout=0)
            gate.set()
            for number, handle in enumerate(handles):
                elsewhere = await client.retrieve_workflow(handle.workflow_id)
                assert await elsewhere.get_result() == number
                status = await elsewhere.get_status()
                assert status.executor_id == staying.executor_id
                assert status.recovery_attempts == 1  # a deploy is no crash
    assert len(begun) == 6


@pytest.mark.parametrize("turns", [0, 1, 5, 20, 60])
async def test_a_shutdown_amid_claims_leaves_nothing_claimed(
    dbos_database_url: str, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "CLOSING", PATIENCE)  # a claim may travel for long
    dbos = DBOS("queues", dbos_database_url, app_version="1")
    dbos.queue("queue", worker_concurrency=50)

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        await asyncio.sleep(0)
        return number

    await dbos.launch()
    await dbos.enqueue_many("queue", [flow.bind(number) for number in range(400)])
    for _ in range(turns):
        await asyncio.sleep(0)
    await dbos.shutdown(timeout=0)
    async with Client(dbos_database_url) as client:
        left = await client.list_workflows(status=["PENDING", "ENQUEUED"], limit=400)
    assert {row.status for row in left} <= {"ENQUEUED"}
    assert {row.recovery_attempts for row in left} <= {0}


async def test_a_deactivated_process_finishes_and_recovers_and_takes_nothing_new(
    dbos_database_url: str,
) -> None:
    here, there = Shop(dbos_database_url), Shop(dbos_database_url)
    queue = here.dbos.queue("queue")
    there.dbos.listen_queues([])
    async with here.dbos:
        handle = await here.dbos.start_workflow(here.checkout)
        await here.inside.wait()
        await here.dbos.deactivate()
        [told] = await here.dbos.list_executors()
        assert told.is_deactivated
        with pytest.raises(NotLaunchedError, match="deactivated"):
            await here.dbos.start_workflow(here.checkout.with_options(workflow_id="new"))
        queued = await queue.enqueue(here.checkout.with_options(workflow_id="queued"))
        fork = await here.dbos.fork_workflow("w", new_workflow_id="fork")
        await there.dbos.launch()
        left = await there.dbos.start_workflow(there.checkout.with_options(workflow_id="left"))
        there.dbos.drop(Crashed("killed by the test"))
        await there.dbos.shutdown()
        here.gate.set()
        assert await handle.get_result() == "charged"
        again = await here.dbos.retrieve_workflow(left.workflow_id)
        assert await again.get_result(timeout=PATIENCE) == "charged"
        assert (await queued.get_status()).status == "ENQUEUED"
        assert (await fork.get_status()).status == "ENQUEUED"
    async with here.dbos:
        assert not any(each.is_deactivated for each in await here.dbos.list_executors())
        assert await (await here.dbos.retrieve_workflow("queued")).get_result() == "charged"
