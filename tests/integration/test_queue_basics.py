"""Queues: enqueued here or elsewhere, run where there is room, never more than allowed."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos_async import (
    DBOS,
    Client,
    DeduplicatedError,
    NotLaunchedError,
    RateLimit,
    Retry,
    Workflow,
)


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("queues", dbos_database_url)


class Gauge:
    """How many are inside, and how many were at most; they stay until it is opened."""

    def __init__(self) -> None:
        self.inside = self.peak = self.total = 0
        self.opened = asyncio.Event()
        self.changed = asyncio.Condition()

    async def pass_through(self) -> None:
        async with self.changed:
            self.inside += 1
            self.total += 1
            self.peak = max(self.peak, self.inside)
            self.changed.notify_all()
        try:
            await self.opened.wait()
        finally:
            async with self.changed:
                self.inside -= 1
                self.changed.notify_all()

    async def reaches(self, inside: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.inside >= inside)


async def test_the_twenty_lines_of_the_design_work_as_they_stand(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url)

    @dbos.step(retry=Retry(max_attempts=5))
    async def charge(order_id: str, cents: int) -> str:
        return f"paid {order_id} {cents}"

    @dbos.workflow()
    async def checkout(order_id: str, cents: int) -> str:
        payment = await charge(order_id, cents)
        await dbos.sleep(0.01)
        return payment

    emails = dbos.queue(
        "emails", concurrency=50, worker_concurrency=10, rate_limit=RateLimit(100, per=60)
    )

    async with dbos:
        assert await checkout("o-1", 4200) == "paid o-1 4200"
        handle = await dbos.start_workflow(checkout, "o-2", 4200)
        queued = await emails.enqueue(checkout, "o-3", 4200)
        same = await dbos.start_workflow(
            checkout.with_options(workflow_id="order-4", timeout=30), "o-4", 1
        )
        assert await handle.get_result() == "paid o-2 4200"
        assert await queued.get_result() == "paid o-3 4200"
        assert await same.get_result() == "paid o-4 1"
        assert same.workflow_id == "order-4"


async def test_what_is_enqueued_runs_and_says_where_it_came_from(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow(number: int, *, note: str = "") -> str:
        return f"{number}{note}"

    async with dbos:
        handles = [
            await queue.enqueue(flow, 1, note="a"),
            await dbos.enqueue("queue", flow, 2),
            await dbos.enqueue(queue, flow, 3),
            *await queue.enqueue_many(flow.bind(number) for number in (4, 5)),
            *await queue.enqueue_many([]),
        ]
        results = [await handle.get_result() for handle in handles]
        assert results == ["1a", "2", "3", "4", "5"]
        status = await handles[0].get_status()
        assert status.status == "SUCCESS"
        assert status.queue_name == "queue"
        assert status.started_at is not None
        assert status.executor_id == dbos.executor_id


async def test_a_thousand_enqueued_at_once_all_run(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    async with dbos:
        handles = await queue.enqueue_many(flow.bind(number) for number in range(1000))
        results = await asyncio.gather(*[handle.get_result() for handle in handles])
    assert results == list(range(1000))


async def test_what_nobody_takes_waits_for_the_next_launch(dbos_database_url: str) -> None:
    def app() -> tuple[DBOS, Workflow[[int], int]]:
        dbos = DBOS("queues", dbos_database_url)
        dbos.queue("queue")

        @dbos.workflow(name="flow")
        async def flow(number: int) -> int:
            return number

        return dbos, flow

    async with Client(dbos_database_url) as client:
        handle = await client.enqueue("queue", client.stub("flow"), 7)
        assert (await handle.get_status()).status == "ENQUEUED"
        with pytest.raises(NotLaunchedError, match="client"):
            await client.stub("flow")(7)
        dbos, _ = app()
        async with dbos:
            assert await asyncio.wait_for(handle.get_result(), 20) == 7


async def test_a_client_enqueues_by_stub_and_reads_the_result(
    dbos: DBOS, dbos_database_url: str
) -> None:
    dbos.queue("queue")
    dbos.configure(recheck_interval=3600)  # it is told

    @dbos.workflow(name="flow")
    async def flow(at: datetime, *, note: str) -> datetime:
        assert isinstance(at, datetime)
        return at + timedelta(days=len(note))

    async with dbos, Client(dbos_database_url) as client:
        stub = client.stub("flow").with_options(workflow_id="w", timeout=60)
        handle = await client.enqueue("queue", stub, datetime(2026, 1, 1, tzinfo=UTC), note="ab")
        assert await asyncio.wait_for(handle.get_result(), 20) == "2026-01-03T00:00:00Z"
        typed = await dbos.retrieve_workflow("w")
        assert await typed.get_result() == datetime(2026, 1, 3, tzinfo=UTC)
        again = await client.enqueue("queue", stub, "other arguments")
        assert await again.get_result() == "2026-01-03T00:00:00Z"
        assert (await handle.get_status()).timeout == 60


@pytest.mark.parametrize("many", [False, True])
async def test_what_a_client_enqueues_right_before_it_closes_is_told_of(
    dbos: DBOS, dbos_database_url: str, many: bool
) -> None:
    dbos.queue("queue")
    dbos.configure(recheck_interval=3600)

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    async with dbos:
        async with Client(dbos_database_url) as client:
            stub = client.stub("flow")
            if many:
                [handle] = await client.enqueue_many("queue", [stub.bind(7)])
            else:
                handle = await client.enqueue("queue", stub, 7)
        enqueued = await dbos.retrieve_workflow(handle.workflow_id)
        assert await enqueued.get_result(timeout=20) == 7


async def test_no_process_runs_more_than_worker_concurrency(dbos_database_url: str) -> None:
    def app() -> tuple[DBOS, Gauge, Workflow[[], None]]:
        dbos, gauge = DBOS("queues", dbos_database_url, app_version="1"), Gauge()
        dbos.queue("queue", worker_concurrency=3)

        @dbos.workflow(name="flow")
        async def flow() -> None:
            await gauge.pass_through()

        return dbos, gauge, flow

    (one, one_gauge, flow), (two, two_gauge, _) = app(), app()
    async with one, two:
        calls = [flow.bind() for _ in range(12)]
        handles = await one.enqueue_many("queue", calls)
        await one_gauge.reaches(3)
        await two_gauge.reaches(3)
        assert len(await one.list_workflows(status="ENQUEUED")) == 6
        one_gauge.opened.set()
        two_gauge.opened.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert (one_gauge.peak, two_gauge.peak) == (3, 3)
    assert one_gauge.total + two_gauge.total == 12


async def test_all_processes_together_run_no_more_than_concurrency(
    dbos_database_url: str,
) -> None:
    gauge = Gauge()

    def app() -> tuple[DBOS, Any, Workflow[[], None]]:
        dbos = DBOS("queues", dbos_database_url, app_version="1")
        queue = dbos.queue("queue", concurrency=4)

        @dbos.workflow(name="flow")
        async def flow() -> None:
            await gauge.pass_through()

        return dbos, queue, flow

    (one, queue, flow), (two, _, _), (three, _, _) = app(), app(), app()
    async with one, two, three:
        handles = await queue.enqueue_many(flow.bind() for _ in range(12))
        await gauge.reaches(4)
        assert len(await one.list_workflows(status="PENDING")) == 4
        gauge.opened.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert gauge.peak == 4
    assert gauge.total == 12


async def test_no_more_start_within_a_period_than_the_rate_limit_allows(dbos: DBOS) -> None:
    queue = dbos.queue("queue", rate_limit=RateLimit(3, per=timedelta(seconds=0.8)))

    @dbos.workflow(name="flow")
    async def flow() -> None: ...

    async with dbos:
        handles = await queue.enqueue_many(flow.bind() for _ in range(7))
        await asyncio.gather(*[handle.get_result() for handle in handles])
        rows = await dbos.list_workflows(name="flow")
    starts = sorted(row.started_at for row in rows if row.started_at is not None)
    assert len(starts) == 7
    for first, fourth in zip(starts, starts[3:], strict=False):
        assert fourth - first >= timedelta(seconds=0.79)


async def test_a_queue_is_first_in_first_out_and_by_priority(dbos: DBOS) -> None:
    queue = dbos.queue("queue", worker_concurrency=1)
    ran: list[str] = []

    @dbos.workflow(name="gate")
    async def gate() -> None:
        started.set()
        await opened.wait()

    @dbos.workflow(name="flow")
    async def flow(name: str) -> None:
        ran.append(name)

    started, opened = asyncio.Event(), asyncio.Event()
    async with dbos:
        await queue.enqueue(gate)
        await started.wait()
        handles = [
            await queue.enqueue(flow.with_options(priority=5), "five a"),
            await queue.enqueue(flow.with_options(priority=5), "five b"),
            await queue.enqueue(flow.with_options(priority=1), "one"),
            await queue.enqueue(flow, "none a"),
            await queue.enqueue(flow, "none b"),
            *await queue.enqueue_many(flow.bind(f"bulk {number}") for number in range(5)),
        ]
        opened.set()
        await asyncio.gather(*[handle.get_result() for handle in handles])
    assert ran == [
        *("none a", "none b", *(f"bulk {number}" for number in range(5))),
        *("one", "five a", "five b"),
    ]


async def test_a_delayed_workflow_starts_when_it_is_due(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow() -> None: ...

    async with dbos:
        due = await dbos.now() + timedelta(seconds=0.4)
        handles = [
            await queue.enqueue(flow.with_options(delay=0.4)),
            await queue.enqueue(flow.with_options(delay=timedelta(seconds=0.4))),
            await queue.enqueue(flow.with_options(delay=due)),
        ]
        far = await queue.enqueue(flow.with_options(delay=3600))
        status = await far.get_status()
        assert status.status == "DELAYED"
        assert status.delay_until is not None
        for handle in handles:
            await handle.get_result()
            started_at = (await handle.get_status()).started_at
            assert started_at is not None
            assert started_at >= due - timedelta(milliseconds=5)
        assert (await far.get_status()).status == "DELAYED"
        await dbos.cancel_workflow(far.workflow_id)
        assert (await far.get_status()).status == "CANCELLED"


async def test_a_queued_timeout_runs_from_the_start_and_not_from_the_enqueue(
    dbos: DBOS, advance: Any
) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow() -> None:
        await dbos.sleep(3600)

    async with dbos:
        handle = await queue.enqueue(flow.with_options(timeout=0.2, delay=3600))
        assert (await handle.get_status()).deadline is None
        advance(3600)
        with pytest.raises(TimeoutError):
            await handle.get_result()
        status = await handle.get_status()
        assert status.status == "CANCELLED"
        assert status.deadline is not None
        assert status.delay_until is not None
        assert status.deadline >= status.delay_until + timedelta(seconds=0.2)


async def test_a_deduplication_id_is_held_until_the_workflow_ends(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    dbos.queue("another queue")
    opened = asyncio.Event()

    @dbos.workflow(name="flow")
    async def flow() -> None:
        await opened.wait()

    once = flow.with_options(deduplication_id="user-1")
    async with dbos:
        handle = await queue.enqueue(once)
        with pytest.raises(DeduplicatedError) as raised:
            await queue.enqueue(once)
        assert raised.value.workflow_id == handle.workflow_id
        assert "'user-1'" in str(raised.value)
        await dbos.enqueue("another queue", once)
        opened.set()
        await handle.get_result()
        second = await queue.enqueue(once)
        await second.get_result()
        assert second.workflow_id != handle.workflow_id


async def test_a_child_may_be_enqueued_and_is_enqueued_once(lives: Any) -> None:
    ran: list[int] = []

    def declare(life: Any) -> Workflow[[], list[int]]:
        dbos: DBOS = life.dbos
        queue = dbos.queue("queue")

        @dbos.workflow(name="child")
        async def child(number: int) -> int:
            ran.append(number)
            return number

        @dbos.workflow(name="parent")
        async def parent() -> list[int]:
            handles = [await queue.enqueue(child, number) for number in (1, 2)]
            assert [handle.workflow_id for handle in handles] == ["w-1", "w-2"]
            handles += await queue.enqueue_many(child.bind(number) for number in (3, 4))
            results = [await handle.get_result() for handle in handles]
            await life.halt()
            return results

        return parent

    assert await lives.both(declare) == [1, 2, 3, 4]
    assert sorted(ran) == [1, 2, 3, 4]


async def test_queued_work_of_a_process_that_died_is_run_by_another(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], int]:
        dbos: DBOS = life.dbos
        dbos.queue("queue", concurrency=1)

        @dbos.workflow(name="flow")
        async def flow() -> int:
            await life.halt()
            return int(life.number)

        return flow

    first = lives.born()
    flow = declare(first)
    async with asyncio.timeout(20):
        await first.dbos.launch()
        await first.dbos.enqueue("queue", flow.with_options(workflow_id="w"))
        await first.reached.wait()
        await first.dbos.shutdown(timeout=0)
    assert await lives.resume(declare) == 2


async def test_enqueueing_from_a_step_or_outside_needs_no_workflow(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    @dbos.step
    async def step() -> str:
        return (await queue.enqueue(flow.with_options(workflow_id="from-step"), 1)).workflow_id

    @dbos.workflow(name="outer")
    async def outer() -> str:
        return await step()

    async with dbos:
        handle = await dbos.retrieve_workflow(await outer())
        assert await handle.get_result() == 1
        assert (await handle.get_status()).parent_workflow_id is None


async def test_a_queue_runs_only_what_this_process_defines(
    dbos_database_url: str, until: Any
) -> None:
    dbos = DBOS("queues", dbos_database_url, app_version="1")
    queue = dbos.queue("queue")

    @dbos.workflow(name="known")
    async def known() -> int:
        return 1

    async with dbos:
        unknown = await queue.enqueue(dbos.stub("unknown"))
        assert await (await queue.enqueue(known)).get_result() == 1
        assert (await unknown.get_status()).status == "ENQUEUED"
