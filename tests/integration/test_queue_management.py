"""Queues while they run: listed, paused, changed, deleted; who works on which."""

import asyncio
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, Client, ConfigurationError, QueueNotFoundError, RateLimit, Router


def app_of(url: str, version: str = "1", name: str = "shop", **limits: Any) -> DBOS:
    """An app with a queue and a workflow that ends when its gate opens."""
    dbos = DBOS(name, url, app_version=version)
    dbos.queue("queue", **limits)
    return dbos


def flow_of(dbos: DBOS, gate: asyncio.Event, begun: list[int]) -> Any:
    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        begun.append(number)
        await gate.wait()
        return number

    return flow


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_queue_is_listed_and_retrieved_with_its_limits(dbos_database_url: str) -> None:
    limits: dict[str, Any] = {
        "concurrency": 9,
        "worker_concurrency": 8,
        "rate_limit": RateLimit(7, per=6.5),
        "worker_rate_limit": RateLimit(6, per=5.0),
        "partition_concurrency": 5,
        "partition_worker_concurrency": 4,
        "partition_rate_limit": RateLimit(3, per=2.0),
    }
    dbos = app_of(dbos_database_url, **limits)
    dbos.queue("another")
    async with dbos, Client(dbos_database_url) as client:
        for whoever in (dbos, client):
            assert [queue.name for queue in await whoever.list_queues()] == ["another", "queue"]
            found = await whoever.retrieve_queue("queue")
            assert {name: getattr(found.limits, name) for name in limits} == limits
            with pytest.raises(QueueNotFoundError, match="'nothing'"):
                await whoever.retrieve_queue("nothing")


async def test_a_paused_queue_takes_work_in_and_gives_none_out(dbos_database_url: str) -> None:
    dbos, gate, begun = app_of(dbos_database_url), asyncio.Event(), list[int]()
    flow = flow_of(dbos, gate, begun)
    async with dbos, asyncio.timeout(30), Client(dbos_database_url) as client:
        running = await dbos.enqueue("queue", flow, 1)
        await until(lambda: begun)
        queue = await client.retrieve_queue("queue")
        await queue.pause()
        await until(lambda: dispatcher_of(dbos)._lines["queue"].is_paused)
        handles = [await dbos.enqueue("queue", flow, number) for number in (2, 3)]
        gate.set()
        assert await running.get_result() == 1  # what runs goes on
        assert await queue.depth() == 2
        assert (await dbos.retrieve_queue("queue")).is_paused
        assert begun == [1]
        await queue.resume()
        assert [await handle.get_result() for handle in handles] == [2, 3]
        assert await queue.depth() == 0


@pytest.mark.parametrize(
    "change",
    [
        "update dbos.queues set is_paused = true",
        "create table gone as select * from dbos.queues; delete from dbos.queues",
    ],
    ids=["pause", "delete"],
)
async def test_a_pause_and_a_delete_hold_before_the_news_of_them_comes(
    dbos_database_url: str, database: Any, change: str
) -> None:
    dbos, gate, begun = app_of(dbos_database_url), asyncio.Event(), list[int]()
    flow_of(dbos, gate, begun)
    gate.set()
    async with dbos, asyncio.timeout(30):
        lines = dispatcher_of(dbos)._lines
        await until(lambda: "queue" in lines)
        line = lines["queue"]
        await database.execute(change)
        await database.execute(
            "select dbos.enqueue_workflow('flow', 'queue', array[to_json(1)], workflow_id => 'w', "
            "app_version => '1')"
        )
        await until(lambda: line.is_paused)
        assert begun == []
        if "delete" in change:
            await database.execute("insert into dbos.queues select * from gone")
        await (await dbos.retrieve_queue("queue")).resume()
        assert await (await dbos.retrieve_workflow("w")).get_result() == 1


async def test_a_pause_outlives_a_restart_and_is_told_of(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        dbos, begun = app_of(dbos_database_url), list[int]()
        flow = flow_of(dbos, asyncio.Event(), begun)
        async with dbos:
            queue = await dbos.retrieve_queue("queue")
            await queue.pause()
            await dbos.enqueue("queue", flow, 1)
            assert (await dbos.retrieve_queue("queue")).is_paused
            while "queue is paused" not in caplog.text:
                await asyncio.sleep(0.01)
            caplog.clear()
        assert begun == []


async def test_workers_follow_a_change_of_the_limits(dbos_database_url: str) -> None:
    dbos, gate, begun = app_of(dbos_database_url, worker_concurrency=1), asyncio.Event(), []
    flow = flow_of(dbos, gate, begun)
    async with dbos, asyncio.timeout(30), Client(dbos_database_url) as client:
        handles = await dbos.enqueue_many("queue", [flow.bind(number) for number in range(4)])
        await until(lambda: len(begun) == 1)
        queue = await client.retrieve_queue("queue")
        await queue.update(worker_concurrency=3)
        assert queue.limits.worker_concurrency == 3
        await until(lambda: len(begun) == 3)
        await queue.update(worker_concurrency=None, concurrency=4)
        await until(lambda: len(begun) == 4)
        gate.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])


async def test_workers_follow_what_others_write_into_the_table(
    dbos_database_url: str, database: asyncpg.Connection
) -> None:
    dbos, begun = app_of(dbos_database_url, concurrency=1), list[int]()
    flow = flow_of(dbos, asyncio.Event(), begun)
    async with dbos, asyncio.timeout(30):
        await dbos.enqueue_many("queue", [flow.bind(number) for number in range(3)])
        await until(lambda: len(begun) == 1)
        await database.execute("update dbos.queues set concurrency = 3")
        await until(lambda: len(begun) == 3)


async def test_a_change_that_cannot_work_is_refused_and_changes_nothing(
    dbos_database_url: str,
) -> None:
    dbos = app_of(dbos_database_url, concurrency=5)
    async with dbos:
        queue = await dbos.retrieve_queue("queue")
        with pytest.raises(ValueError, match=r"worker_concurrency=6 .*concurrency=5"):
            await queue.update(worker_concurrency=6)
        with pytest.raises(ValueError, match="at least 1"):
            await queue.update(concurrency=0)
        with pytest.raises(TypeError, match="no limit 'speed'"):
            await queue.update(speed=3)  # type: ignore[call-arg]  # what a person may try
        assert (await dbos.retrieve_queue("queue")).limits == queue.limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"concurrency": 2, "worker_concurrency": 3}, r"worker_concurrency=3 .*concurrency=2"),
        ({"concurrency": 2, "partition_concurrency": 3}, r"partition_concurrency=3 .*=2"),
        (
            {"partition_concurrency": 2, "partition_worker_concurrency": 3},
            r"partition_worker_concurrency=3 .*partition_concurrency=2",
        ),
        (
            {"worker_concurrency": 2, "partition_worker_concurrency": 3},
            r"partition_worker_concurrency=3 .*worker_concurrency=2",
        ),
        (
            {"rate_limit": RateLimit(2, per=1), "worker_rate_limit": RateLimit(3, per=1.0)},
            r"worker_rate_limit=3 .*rate_limit=2",
        ),
        (
            {"rate_limit": RateLimit(2, per=1), "partition_rate_limit": RateLimit(3, per=1)},
            r"partition_rate_limit=3 .*rate_limit=2",
        ),
        ({"concurrency": 0}, "at least 1"),
        ({"partition_worker_concurrency": -1}, "at least 1"),
        ({"on_conflict": "sometimes"}, "never_update"),
    ],
)
def test_limits_that_contradict_each_other_are_refused_with_both_numbers(
    limits: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DBOS("shop").queue("queue", **limits)


@pytest.mark.parametrize("limits", [{"concurrency": "2"}, {"rate_limit": 5}, {"concurrency": True}])
def test_limits_of_the_wrong_type_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        DBOS("shop").queue("queue", **limits)


@pytest.mark.parametrize(("limit", "per"), [(0, 1), (1, 0), (1, -1), (-1, 1)])
def test_a_rate_that_lets_nothing_through_is_refused(limit: int, per: float) -> None:
    with pytest.raises(ValueError, match=r"at least 1|more than 0|not negative"):
        RateLimit(limit, per)


async def test_a_deleted_queue_keeps_what_waits_until_it_is_declared_again(
    dbos_database_url: str,
) -> None:
    begun, gate = list[int](), asyncio.Event()
    gate.set()
    dbos = app_of(dbos_database_url)
    flow = flow_of(dbos, gate, begun)
    async with dbos:
        queue = await dbos.retrieve_queue("queue")
        await queue.pause()
        handle = await queue.enqueue(flow, 1)
        await queue.delete()
        with pytest.raises(QueueNotFoundError):
            await queue.delete()
        for change in (queue.pause, queue.resume, queue.update):
            with pytest.raises(QueueNotFoundError):
                await change()
        assert (await handle.get_status()).status == "ENQUEUED"
    dbos = app_of(dbos_database_url)
    flow_of(dbos, gate, begun)
    async with dbos, asyncio.timeout(20):
        again = await dbos.retrieve_workflow(handle.workflow_id)
        assert await again.get_result() == 1


@pytest.mark.parametrize(
    ("version", "policy", "stays"),
    [
        ("2", "update_if_latest_version", 7),
        ("1", "update_if_latest_version", 5),
        ("1", "always_update", 7),
        ("2", "never_update", 5),
    ],
)
async def test_a_launch_updates_the_limits_as_it_is_told(
    dbos_database_url: str, version: str, policy: Any, stays: int
) -> None:
    async with app_of(dbos_database_url, "1", concurrency=3), Client(dbos_database_url) as client:
        await (await client.retrieve_queue("queue")).update(concurrency=5)
        async with DBOS("shop", dbos_database_url, app_version="newer" if version == "1" else "2"):
            pass
    async with app_of(dbos_database_url, version, concurrency=7, on_conflict=policy) as dbos:
        assert (await dbos.retrieve_queue("queue")).limits.concurrency == stays


async def test_a_queue_of_another_app_is_left_alone(dbos_database_url: str) -> None:
    async with app_of(dbos_database_url, concurrency=3) as shop:
        with pytest.raises(ConfigurationError, match="belongs to the app 'shop'"):
            await app_of(dbos_database_url, name="bank", concurrency=4).launch()
        async with DBOS("bank", dbos_database_url) as bank:
            assert await bank.list_queues() == []
        assert (await shop.retrieve_queue("queue")).limits.concurrency == 3


async def test_a_process_works_on_the_queues_it_listens_to_and_on_no_others(
    dbos_database_url: str,
) -> None:
    gate = asyncio.Event()
    gate.set()

    def app(*listened: str) -> tuple[DBOS, Any]:
        dbos = DBOS("shop", dbos_database_url, app_version="1")
        queues = [dbos.queue("mail"), dbos.queue("bills")]
        if listened:
            dbos.listen_queues([queue for queue in queues if queue.name in listened])
        return dbos, flow_of(dbos, gate, [])

    (mail, flow), (bills, _) = app("mail"), app("bills")
    async with mail, bills, asyncio.timeout(30):
        handles = [await mail.enqueue(name, flow, 1) for name in ("mail", "bills") * 3]
        for handle in handles:
            await handle.get_result()
            status = await handle.get_status()
            expected = {"mail": mail, "bills": bills}[status.queue_name or ""]
            assert status.executor_id == expected.executor_id


async def test_listening_to_a_queue_that_is_not_there_is_told_of(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    dbos = app_of(dbos_database_url)
    dbos.listen_queues(["queue", "qeueu"])
    async with dbos, asyncio.timeout(20):
        while "listen_queues" not in caplog.text:
            await asyncio.sleep(0.01)
    assert "'qeueu'" in caplog.text


async def test_every_process_of_the_app_works_on_a_queue_that_only_one_declares(
    dbos_database_url: str,
) -> None:
    gate = asyncio.Event()
    gate.set()
    async with app_of(dbos_database_url):
        pass
    worker = DBOS("shop", dbos_database_url, app_version="1")
    flow = flow_of(worker, gate, [])
    async with worker, asyncio.timeout(20):
        assert await (await worker.enqueue("queue", flow, 1)).get_result() == 1


async def test_work_without_a_version_is_for_the_newest(dbos_database_url: str) -> None:
    gate = asyncio.Event()
    gate.set()
    old, new = app_of(dbos_database_url, "old"), app_of(dbos_database_url, "new")
    for dbos in (old, new):
        flow_of(dbos, gate, [])
    async with old, asyncio.timeout(30), Client(dbos_database_url) as client:
        first = await client.enqueue("queue", client.stub("flow"), 1)
        assert await first.get_result() == 1
        async with new:
            handles = [await client.enqueue("queue", client.stub("flow"), i) for i in range(9)]
            for handle in handles:
                await handle.get_result()
                assert (await handle.get_status()).app_version == "new"
            pinned = client.stub("flow").with_options(app_version="old")
            assert await (await client.enqueue("queue", pinned, 2)).get_result() == 2


async def test_a_workflow_that_nobody_registers_waits_in_sight_and_is_told_of_once(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    gate.set()
    dbos = app_of(dbos_database_url)
    dbos.configure(recheck_interval=0.05)
    flow = flow_of(dbos, gate, [])

    def told() -> int:
        return sum("'nobody'" in record.getMessage() for record in caplog.records)

    async with dbos, asyncio.timeout(30):
        lost = [await dbos.enqueue("queue", dbos.stub("nobody"), i) for i in range(3)]
        await until(told)
        assert await (await dbos.enqueue("queue", flow, 7)).get_result() == 7  # past the others
        for _ in range(5):
            await asyncio.sleep(0.05)
        assert {(await handle.get_status()).status for handle in lost} == {"ENQUEUED"}
    assert told() == 1


async def test_what_waits_for_another_version_is_told_of_once(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = app_of(dbos_database_url, "old")
    flow = flow_of(old, asyncio.Event(), [])
    async with old:
        await (await old.retrieve_queue("queue")).pause()
        handle = await old.enqueue("queue", flow, 1)
        await (await old.retrieve_queue("queue")).resume()
        await old.shutdown(timeout=0)
    new, begun = app_of(dbos_database_url, "new"), list[int]()
    new.configure(recheck_interval=0.05)
    flow_of(new, asyncio.Event(), begun)

    def told() -> int:
        return sum("another version" in record.getMessage() for record in caplog.records)

    async with new, asyncio.timeout(20):
        await until(told)
        for _ in range(5):
            await asyncio.sleep(0.05)
        again = await new.retrieve_workflow(handle.workflow_id)
        assert (await again.get_status()).status == "ENQUEUED"
    assert told() == 1
    assert begun == []


async def test_queues_are_managed_from_within_a_workflow_once(dbos_database_url: str) -> None:
    dbos = app_of(dbos_database_url, concurrency=3)

    @dbos.workflow(name="manage")
    async def manage() -> list[int | None]:
        queue = await dbos.retrieve_queue("queue")
        before = queue.limits.concurrency
        await queue.update(concurrency=4)
        await queue.pause()
        depth = await queue.depth()
        await queue.resume()
        return [before, queue.limits.concurrency, depth, len(await dbos.list_queues())]

    async with dbos:
        handle = await dbos.start_workflow(manage)
        assert await handle.get_result() == [3, 4, 0, 1]
        names = [step.name for step in await dbos.list_steps(handle.workflow_id)]
    assert names == [
        "DBOS.retrieveQueue",
        "DBOS.updateQueue",
        "DBOS.pauseQueue",
        "DBOS.queueDepth",
        "DBOS.resumeQueue",
        "DBOS.listQueues",
    ]


async def test_a_router_declares_queues_and_what_to_listen_to(dbos_database_url: str) -> None:
    router, dbos = Router(), DBOS("shop", dbos_database_url)
    queue = router.queue("queue", concurrency=2)
    router.listen_queues(["queue"])
    dbos.include(router)

    @router.workflow(name="flow")
    async def flow() -> int:
        return (await queue.depth()) + 1

    async with dbos, asyncio.timeout(20):
        assert await (await queue.enqueue(flow)).get_result() == 1
        with pytest.raises(ConfigurationError, match="too late"):
            dbos.listen_queues([])


def dispatcher_of(dbos: DBOS) -> Any:
    """The dispatcher, to see what it knows already."""
    session: Any = dbos._session
    return session.on_news["dbos_async_queued"][0].__self__


async def test_a_queue_becomes_partitioned_with_work_waiting_and_goes_on_at_once(
    dbos_database_url: str,
) -> None:
    dbos, gate = app_of(dbos_database_url), asyncio.Event()
    dbos.configure(recheck_interval=3600)
    gate.set()
    flow = flow_of(dbos, gate, [])
    async with dbos, asyncio.timeout(20):
        queue = await dbos.retrieve_queue("queue")
        await queue.pause()
        handles = await queue.enqueue_many([flow.bind(number) for number in range(5)])
        await queue.update(partition_concurrency=1)
        await queue.resume()
        assert [await handle.get_result() for handle in handles] == [0, 1, 2, 3, 4]
