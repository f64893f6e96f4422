"""Flow control: limits of the fleet, of a process, of a partition; turns; slots given up."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from dbos_async import DBOS, RateLimit, Workflow
from dbos_async._engine import line

App = tuple[DBOS, Workflow[..., Any]]


class Gauge:
    """How many are inside, in all and for each key, and how many were at most."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.order: list[str] = []
        self.opened = asyncio.Event()
        self.changed = asyncio.Condition()

    async def pass_through(self, key: str) -> None:
        async with self.changed:
            self.order.append(key)
            for what in ("all", key):
                self.inside[what] += 1
                self.peak[what] = max(self.peak[what], self.inside[what])
            self.changed.notify_all()
        try:
            await self.opened.wait()
        finally:
            self.inside.subtract(["all", key])

    async def has_had(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.order) >= count)


def app_of(url: str, gauge: Gauge, name: str = "flow", **limits: Any) -> App:
    """One process of an app whose queue has these limits, and its one workflow."""
    dbos = DBOS("flow", url, app_version="1")
    dbos.queue("queue", **limits)

    @dbos.workflow(name=name)
    async def flow(key: str) -> str:
        await gauge.pass_through(key)
        return key

    return dbos, flow


async def fleet(stack: AsyncExitStack, size: int, build: Callable[[], App]) -> list[App]:
    apps = [build() for _ in range(size)]
    for dbos, _ in apps:
        await stack.enter_async_context(dbos)
    return apps


def dispatcher_of(dbos: DBOS) -> Any:
    """The dispatcher, to see what it knows already."""
    session: Any = dbos._session
    return session.on_news["dbos_async_queued"][0].__self__


async def started(database: Any) -> list[int]:
    rows = await database.fetch(
        "select started_at_epoch_ms from dbos.workflow_status "
        "where queue_name = 'queue' and started_at_epoch_ms is not null"
    )
    return sorted(row[0] for row in rows)


def most_in_a_window(moments: list[int], window: int) -> int:
    return max(
        sum(begin <= moment < begin + window for moment in moments[place:])
        for place, begin in enumerate(moments)
    )


async def test_the_fleet_together_never_runs_more_than_the_concurrency(
    dbos_database_url: str,
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        apps = await fleet(stack, 3, lambda: app_of(dbos_database_url, gauge, concurrency=4))
        dbos, flow = apps[0]
        handles = await dbos.enqueue_many("queue", [flow.bind("k") for _ in range(60)])
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert len(gauge.order) == 60
    assert gauge.peak["all"] <= 4


async def test_a_freed_slot_wakes_the_process_that_waits_for_it(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "SHARED_POLL", 3600)
    gauge = Gauge()
    (one, first), (two, second) = (
        app_of(dbos_database_url, gauge, name, concurrency=1) for name in ("first", "second")
    )
    for dbos in (one, two):
        dbos.configure(recheck_interval=3600)
    async with one, two, asyncio.timeout(30):
        await one.enqueue("queue", first, "k")
        await gauge.has_had(1)
        line_of_two = dispatcher_of(two)._lines["queue"]
        handles = [await two.enqueue("queue", second, "k") for _ in range(2)]
        for _ in handles:
            line_of_two._timer = None
            line_of_two.wake()
            while line_of_two._timer is None:  # it has looked, and goes by what it is told
                await asyncio.sleep(0.01)
        gauge.opened.set()
        assert [await handle.get_result() for handle in handles] == ["k", "k"]
    assert gauge.peak["all"] == 1


async def test_no_window_of_the_period_holds_more_starts_than_the_rate_limit(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        apps = await fleet(
            stack, 2, lambda: app_of(dbos_database_url, gauge, rate_limit=RateLimit(5, per=0.5))
        )
        dbos, flow = apps[0]
        handles = await dbos.enqueue_many("queue", [flow.bind("k") for _ in range(23)])
        await asyncio.gather(*[handle.get_result() for handle in handles])
    moments = await started(database)
    assert len(moments) == 23
    assert most_in_a_window(moments, 500) <= 5


async def test_neither_a_restart_nor_a_deletion_refills_the_rate_limit(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    limit = RateLimit(2, per=3600)
    dbos, flow = app_of(dbos_database_url, gauge, rate_limit=limit)
    async with dbos, asyncio.timeout(20):
        handles = await dbos.enqueue_many("queue", [flow.bind("k") for _ in range(2)])
        await asyncio.gather(*[handle.get_result() for handle in handles])
    await database.execute("delete from dbos.workflow_status")
    dbos, flow = app_of(dbos_database_url, gauge, rate_limit=limit)
    async with dbos, asyncio.timeout(20):
        waiting = await dbos.enqueue("queue", flow, "k")
        queue = await dbos.retrieve_queue("queue")
        for _ in range(3):  # each makes the line look again
            await queue.pause()
            await queue.resume()
        await queue.update(rate_limit=RateLimit(3, per=3600))
        assert await waiting.get_result() == "k"
        last = await queue.enqueue(flow, "k")
        await queue.update(rate_limit=limit)
        assert (await last.get_status()).status == "ENQUEUED"
    assert len(gauge.order) == 3


async def test_what_was_claimed_before_costs_no_token_again(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    dbos, flow = app_of(dbos_database_url, gauge, rate_limit=RateLimit(1, per=3600))
    await dbos.launch()
    handle = await dbos.enqueue("queue", flow, "first")
    other = await dbos.enqueue("queue", flow, "second")
    await gauge.has_had(1)
    await dbos.shutdown(timeout=0)
    assert (
        await database.fetchval(
            "select count(*) from dbos.workflow_status where status = 'ENQUEUED'"
        )
        == 2
    )
    dbos, flow = app_of(dbos_database_url, gauge, rate_limit=RateLimit(1, per=3600))
    gauge.opened.set()
    async with dbos, asyncio.timeout(20):
        again = await dbos.retrieve_workflow(handle.workflow_id)
        assert await again.get_result() == "first"
        waiting = await dbos.retrieve_workflow(other.workflow_id)
        assert (await waiting.get_status()).status == "ENQUEUED"
    assert gauge.order == ["first", "first"]


async def test_each_process_has_a_rate_limit_of_its_own(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        apps = await fleet(
            stack,
            2,
            lambda: app_of(dbos_database_url, gauge, worker_rate_limit=RateLimit(3, per=3600)),
        )
        dbos, flow = apps[0]
        await dbos.enqueue_many("queue", [flow.bind("k") for _ in range(20)])
        await gauge.has_had(6)
        gauge.opened.set()
        while len(await dbos.list_workflows(status="SUCCESS")) < 6:
            await asyncio.sleep(0.02)
        executors = Counter(row.executor_id for row in await dbos.list_workflows(status="SUCCESS"))
    assert sorted(executors.values()) == [3, 3]


async def test_a_partition_runs_no_more_than_its_concurrency(dbos_database_url: str) -> None:
    gauge = Gauge()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        apps = await fleet(
            stack,
            2,
            lambda: app_of(dbos_database_url, gauge, concurrency=5, partition_concurrency=2),
        )
        dbos, flow = apps[0]
        handles = await dbos.enqueue_many(
            "queue",
            [
                flow.with_options(partition_key=key).bind(key)
                for key in ["a"] * 12 + ["b"] * 3 + ["c"]
            ],
        )
        await gauge.has_had(5)
        assert gauge.inside == {"all": 5, "a": 2, "b": 2, "c": 1}
        gauge.opened.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert gauge.peak == {"all": 5, "a": 2, "b": 2, "c": 1}


async def test_a_process_runs_no_more_of_a_partition_than_allowed(dbos_database_url: str) -> None:
    gauge = Gauge()
    dbos, flow = app_of(dbos_database_url, gauge, partition_worker_concurrency=2)
    async with dbos, asyncio.timeout(60):
        handles = await dbos.enqueue_many(
            "queue",
            [flow.with_options(partition_key=key).bind(key) for key in "aaaaabbbbb"],
        )
        await gauge.has_had(4)
        assert gauge.inside == {"all": 4, "a": 2, "b": 2}
        gauge.opened.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert gauge.peak == {"all": 4, "a": 2, "b": 2}


async def test_each_partition_has_tokens_of_its_own_and_all_share_the_queues(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    dbos, flow = app_of(
        dbos_database_url,
        gauge,
        rate_limit=RateLimit(7, per=3600),
        partition_rate_limit=RateLimit(3, per=3600),
    )
    async with dbos, asyncio.timeout(60):
        await dbos.enqueue_many(
            "queue",
            [flow.with_options(partition_key=key).bind(key) for key in "aaaaabbbbbccccc"],
        )
        while len(await dbos.list_workflows(status="SUCCESS")) < 7:
            await asyncio.sleep(0.02)
        counts = Counter(gauge.order)
        assert counts.total() == 7
        assert max(counts.values()) <= 3
    tokens = dict(
        await database.fetch(
            "select partition_key, sum(tokens)::int from dbos.dbos_async_tokens group by 1"
        )
    )
    assert tokens == {"": 7, **counts}


async def test_one_job_of_a_tenant_waits_for_one_turn_of_another_with_thousands(
    dbos_database_url: str,
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    dbos, flow = app_of(dbos_database_url, gauge, worker_concurrency=1, partition_concurrency=1)
    async with dbos, asyncio.timeout(60):
        queue = await dbos.retrieve_queue("queue")
        await queue.pause()
        await dbos.enqueue_many(
            "queue", [flow.with_options(partition_key="big").bind("big") for _ in range(2000)]
        )
        small = await dbos.enqueue("queue", flow.with_options(partition_key="small"), "small")
        await queue.resume()
        await small.get_result()
    assert gauge.order.index("small") <= 1


async def test_partitions_take_turns_and_keep_priority_and_age_inside(
    dbos_database_url: str,
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    dbos, flow = app_of(dbos_database_url, gauge, worker_concurrency=1, partition_concurrency=1)
    async with dbos, asyncio.timeout(60):
        queue = await dbos.retrieve_queue("queue")
        await queue.pause()
        calls = [
            flow.with_options(partition_key=key, priority=priority).bind(f"{key}{priority}")
            for key in "abc"
            for priority in (3, 1, 2)
        ]
        handles = await queue.enqueue_many(calls)
        await queue.resume()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert sorted(gauge.order[:3]) == ["a1", "b1", "c1"]
    assert sorted(gauge.order[3:6]) == ["a2", "b2", "c2"]
    assert sorted(gauge.order[6:]) == ["a3", "b3", "c3"]


async def test_partitions_beyond_the_first_few_hundred_are_served_too(
    dbos_database_url: str,
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    dbos, flow = app_of(dbos_database_url, gauge, worker_concurrency=3, partition_concurrency=1)
    async with dbos, asyncio.timeout(60):
        handles = await dbos.enqueue_many(
            "queue",
            [flow.with_options(partition_key=f"k{i:04}").bind(f"k{i:04}") for i in range(700)],
        )
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert len(set(gauge.order)) == 700


async def test_what_others_put_on_a_partitioned_queue_without_a_key_runs_too(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    dbos, _ = app_of(dbos_database_url, gauge, partition_concurrency=1)
    async with dbos, asyncio.timeout(20):
        workflow_id = await database.fetchval(
            "select dbos.enqueue_workflow('flow', 'queue', array['\"k\"'::json])"
        )
        assert await (await dbos.retrieve_workflow(workflow_id)).get_result() == "k"


# Slots that are given up while a workflow only waits for what it enqueued


@pytest.mark.parametrize("is_step", [True, False])
@pytest.mark.parametrize(
    "limits",
    [
        {"worker_concurrency": 1},
        {"concurrency": 1},
        {"concurrency": 1, "worker_concurrency": 1},
    ],
)
async def test_parents_that_await_children_on_their_own_queue_do_not_stand_still(
    dbos_database_url: str, limits: dict[str, int], is_step: bool
) -> None:
    dbos = DBOS("flow", dbos_database_url, app_version="1")
    queue = dbos.queue("queue", **limits)  # type: ignore[arg-type]  # ints, all of them
    working = Counter[str]()

    async def work() -> None:
        working["now"] += 1
        working["most"] = max(working["most"], working["now"])
        await (asyncio.sleep(0.001) if is_step else dbos.sleep(0.001))
        working["now"] -= 1

    worker: Any = dbos.step(work) if is_step else work

    @dbos.workflow(name="tree")
    async def tree(depth: int) -> int:
        await worker()
        if depth == 0:
            return 1
        handles = [await queue.enqueue(tree, depth - 1) for _ in range(2)]
        results = await asyncio.gather(*[handle.get_result() for handle in handles])
        await worker()
        return sum(results)

    async with dbos, asyncio.timeout(60):
        assert await (await queue.enqueue(tree, 3)).get_result() == 8
    assert working["most"] == 1


@pytest.mark.parametrize("limits", [{"worker_concurrency": 1}, {"concurrency": 1}])
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_a_parent_takes_a_slot_again_however_its_waiting_ends(
    dbos_database_url: str, database: Any, limits: dict[str, int], how: str
) -> None:
    dbos = DBOS("flow", dbos_database_url, app_version="1")
    queue = dbos.queue("queue", **limits)  # type: ignore[arg-type]  # ints, all of them
    working = Counter[str]()

    async def work(seconds: float) -> None:
        working["now"] += 1
        working["most"] = max(working["most"], working["now"])
        await dbos.sleep(seconds)
        working["now"] -= 1

    @dbos.workflow(name="child")
    async def child() -> None:
        await work(0.2)

    @dbos.workflow(name="parent")
    async def parent() -> None:
        handle = await queue.enqueue(child)
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await handle.get_result(timeout=0.1)
        else:
            waiting = asyncio.create_task(handle.get_result())
            await asyncio.sleep(0.1)
            waiting.cancel()
            await asyncio.wait([waiting])
        await work(0.05)

    async with dbos, asyncio.timeout(60):
        handles = await queue.enqueue_many([parent.bind() for _ in range(3)])
        await asyncio.gather(*[handle.get_result() for handle in handles])
        while await dbos.list_workflows(status=["ENQUEUED", "PENDING"]):
            await asyncio.sleep(0.02)
    assert working["most"] == 1
    left = await database.fetchval(
        "select count(*) from dbos.workflow_status where waiting_for is not null"
    )
    assert left == 0


async def test_tokens_of_partitions_that_are_gone_are_forgotten(
    dbos_database_url: str, database: Any
) -> None:
    gauge = Gauge()
    gauge.opened.set()
    dbos, flow = app_of(dbos_database_url, gauge, partition_rate_limit=RateLimit(1, per=0.1))
    dbos.configure(recheck_interval=0.1)
    async with dbos, asyncio.timeout(30):
        await dbos.enqueue_many(
            "queue", [flow.with_options(partition_key=f"k{n}").bind("k") for n in range(20)]
        )
        await gauge.has_had(20)
        while await database.fetchval("select count(*) from dbos.dbos_async_tokens"):
            await asyncio.sleep(0.05)


async def test_a_parent_that_awaits_a_child_it_runs_itself_keeps_its_slot(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("flow", dbos_database_url, app_version="1")
    queue = dbos.queue("queue", worker_concurrency=1)
    gauge = Gauge()

    @dbos.workflow(name="inner")
    async def inner() -> None:
        await gauge.pass_through("inner")

    @dbos.workflow(name="outer")
    async def outer() -> None:
        await inner()

    async with dbos, asyncio.timeout(20):
        handles = await queue.enqueue_many([outer.bind(), outer.bind()])
        await gauge.has_had(1)
        assert len(await dbos.list_workflows(status="ENQUEUED")) == 1
        gauge.opened.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert gauge.peak["all"] == 1
