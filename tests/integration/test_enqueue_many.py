"""Many workflows put on a queue at once: in order, all of them or none, once."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from msgspec import structs

from dbos_async import (
    DBOS,
    Call,
    Client,
    DatabaseLostError,
    DeduplicatedError,
    SerializationError,
    Workflow,
    WorkflowConflictError,
)
from dbos_async._store import checkpointer, enqueues, sql
from dbos_async._store.batches import columns
from dbos_async._store.records import WorkflowWrite


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("many", dbos_database_url, app_version="1")


Flow = Workflow[[int], int]


def flow_of(dbos: DBOS) -> Flow:
    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    return flow


async def test_ten_thousand_are_enqueued_at_once_in_order(dbos: DBOS, database: Any) -> None:
    dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        queue = await dbos.retrieve_queue("queue")
        await queue.pause()
        handles = await queue.enqueue_many(flow.bind(number) for number in range(10_000))
        assert await queue.depth() == 10_000
    rows = await database.fetch(
        "select workflow_uuid, inputs from dbos.workflow_status "
        "order by priority, created_at, enqueue_order"
    )
    assert [row["workflow_uuid"] for row in rows] == [handle.workflow_id for handle in handles]
    expected = [f'{{"positionalArgs":[{number}],"namedArgs":{{}}}}' for number in range(10_000)]
    assert [row["inputs"] for row in rows] == expected


async def test_an_id_that_nobody_chose_is_a_uuid_of_version_7_of_the_database_s_time(
    dbos: DBOS,
) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        before = await dbos.now()
        [handle] = await queue.enqueue_many([flow.bind(1)])
        after = await dbos.now()
    made = UUID(handle.workflow_id)
    assert str(made) == handle.workflow_id
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    at = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)
    assert before - timedelta(milliseconds=1) <= at <= after


async def test_each_call_has_its_own_options(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        handles = await queue.enqueue_many(
            [
                flow.with_options(workflow_id="a", priority=3).bind(1),
                flow.with_options(delay=3600, timeout=60, deduplication_id="d").bind(2),
                flow.with_options(attributes={"team": "é"}, app_version="2").bind(3),
                flow.bind(4),
            ]
        )
        rows = [await handle.get_status() for handle in handles]
        assert await handles[0].get_result() == 1
    assert rows[0].workflow_id == "a"
    assert [row.priority for row in rows] == [3, 0, 0, 0]
    assert rows[1].status == "DELAYED"
    assert rows[1].delay_until is not None
    assert (rows[1].timeout, rows[1].deduplication_id) == (60, "d")
    assert (rows[2].attributes, rows[2].app_version) == ({"team": "é"}, "2")
    assert [row.app_version for row in rows[::3]] == ["1", "1"]
    assert [row.app_name for row in rows] == ["many"] * 4


async def test_a_call_that_is_refused_leaves_nothing_of_the_others(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    wrong: Any = flow

    def calls(last: Any) -> Iterator[Any]:
        yield from (flow.bind(number) for number in range(2500))
        yield last

    async with dbos:
        await dbos.start_workflow(dbos_other(dbos, "taken"))
        await queue.enqueue(flow.with_options(deduplication_id="held", delay=3600), 0)
        before = len(await dbos.list_workflows(limit=10_000))
        for call, error in (
            (wrong.bind(1, 2), TypeError),
            (wrong.bind("x"), SerializationError),
            (flow.with_options(workflow_id="taken").bind(1), WorkflowConflictError),
            (flow.with_options(deduplication_id="held").bind(1), DeduplicatedError),
            (flow.with_options(partition_key="p").bind(1), ValueError),
        ):
            with pytest.raises(error):
                await queue.enqueue_many(calls(call))
        assert len(await dbos.list_workflows(limit=10_000)) == before


def dbos_other(dbos: DBOS, workflow_id: str) -> Workflow[[], None]:
    """A workflow of another function, which `dbos` need not know."""

    async def other() -> None: ...

    return DBOS("else").workflow(name="other")(other).with_options(workflow_id=workflow_id)


async def test_what_is_held_is_returned_if_its_call_asks_for_it(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    once = flow.with_options(deduplication_id="d", duplication_policy="return_existing", delay=3600)
    async with dbos:
        first = await queue.enqueue(once, 1)
        handles = await queue.enqueue_many([flow.bind(2), once.bind(3), flow.bind(4)])
        assert handles[1].workflow_id == first.workflow_id
        assert [await handles[0].get_result(), await handles[2].get_result()] == [2, 4]
        assert len(await dbos.list_workflows()) == 3


async def test_the_first_of_two_calls_with_one_id_stands_for_both(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    held = flow.with_options(deduplication_id="d", duplication_policy="return_existing")
    named = flow.with_options(workflow_id="w")
    async with dbos:
        handles = await queue.enqueue_many(
            [held.bind(1), named.bind(2), held.bind(3), named.bind(4)]
        )
        assert handles[0].workflow_id == handles[2].workflow_id
        assert [handle.workflow_id for handle in handles[1::2]] == ["w", "w"]
        assert [await handle.get_result() for handle in handles] == [1, 2, 1, 2]
        assert len(await dbos.list_workflows()) == 2
        rejected = flow.with_options(deduplication_id="e")
        with pytest.raises(DeduplicatedError, match="two of the calls"):
            await queue.enqueue_many([rejected.bind(1), rejected.bind(2)])
        with pytest.raises(WorkflowConflictError, match="two of the calls"):
            stub: Any = dbos.stub("other").with_options(workflow_id="v")
            await queue.enqueue_many([flow.with_options(workflow_id="v").bind(1), stub.bind(2)])


async def test_calls_that_exist_already_are_attached_to(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        calls = [flow.with_options(workflow_id=f"w-{n}").bind(n) for n in range(20)]
        await queue.enqueue_many(calls[:10])
        handles = await queue.enqueue_many(calls)
        assert [await handle.get_result() for handle in handles] == list(range(20))


async def test_two_callers_with_the_same_ids_enqueue_each_once(
    dbos: DBOS, dbos_database_url: str
) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    ids = [f"w-{number}" for number in range(1500)]
    async with dbos, Client(dbos_database_url) as client:
        stub = client.stub("flow")
        one, other = await asyncio.gather(
            queue.enqueue_many(flow.with_options(workflow_id=i).bind(1) for i in ids),
            client.enqueue_many(
                "queue", [stub.with_options(workflow_id=i).bind(1) for i in reversed(ids)]
            ),
        )
        assert [handle.workflow_id for handle in one] == ids
        assert [handle.workflow_id for handle in other] == ids[::-1]
        assert [await handle.get_result() for handle in one] == [1] * len(ids)


async def test_an_outage_in_the_middle_only_delays_it(
    dbos: DBOS, monkeypatch: pytest.MonkeyPatch, database: Any
) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    attempts: list[int] = []
    land_chunk = enqueues.land_chunk

    async def unlucky(transaction: Any, chunk: Any, *others: Any) -> Any:
        attempts.append(len(chunk))
        if attempts == [1000, 1000]:
            await database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name like '%pool' and datname = current_database()"
            )
        return await land_chunk(transaction, chunk, *others)

    monkeypatch.setattr(enqueues, "land_chunk", unlucky)
    async with dbos:
        handles = await queue.enqueue_many(flow.bind(number) for number in range(2500))
        results = await asyncio.gather(*[handle.get_result() for handle in handles])
    assert results == list(range(2500))
    assert attempts[:2] == [1000, 1000]
    assert attempts[-3:] == [1000, 1000, 500]  # from its beginning, on whichever connection lives


async def test_bad_input_after_an_outage_is_still_bad_input(
    dbos: DBOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    wrong: Any = flow

    land_chunk = enqueues.land_chunk
    losses = [DatabaseLostError("cut")]

    async def once_lost(*args: Any) -> Any:
        if losses:
            raise losses.pop()
        return await land_chunk(*args)

    monkeypatch.setattr(enqueues, "land_chunk", once_lost)
    async with dbos:
        with pytest.raises(TypeError):
            await queue.enqueue_many([*(flow.bind(n) for n in range(1500)), wrong.bind(1, 2)])
        assert await dbos.list_workflows() == []


async def test_children_are_enqueued_with_their_step_and_replayed(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], list[Any]]:
        dbos: DBOS = life.dbos
        queue = dbos.queue("queue")
        flow = flow_of(dbos)

        @dbos.workflow(name="parent")
        async def parent() -> list[Any]:
            handles = await queue.enqueue_many(flow.bind(n) for n in range(1200))
            named = await queue.enqueue_many([flow.with_options(workflow_id="named").bind(7)])
            none = await queue.enqueue_many(list[Call[int]]())
            await life.halt()
            ids = [handle.workflow_id for handle in handles + named + none]
            return [ids, await handles[-1].get_result(), await named[0].get_result()]

        return parent

    ids, last, named = await lives.both(declare)
    assert ids == [*(f"w-1-{place}" for place in range(1, 1201)), "named"]
    assert (last, named) == (1199, 7)
    async with Client(lives.url) as client:
        assert len(await client.list_workflows(name="flow", limit=10_000)) == 1201
        steps = await client.list_steps("w")
        assert [step.name for step in steps][:3] == ["DBOS.enqueueMany"] * 3
        [row] = await client.list_workflows(workflow_ids=["w-1-1"])
        assert row.parent_workflow_id == "w"


async def test_a_refusal_within_a_workflow_is_recorded(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], list[str]]:
        dbos: DBOS = life.dbos
        queue = dbos.queue("queue")
        if not life.is_first:
            dbos.queue("later")
        flow = flow_of(dbos)
        held = flow.with_options(deduplication_id="d")

        @dbos.workflow(name="parent")
        async def parent() -> list[str]:
            said: list[str] = []
            await queue.enqueue(held.with_options(workflow_id="holder", delay=3600), 1)
            for calls in ([held.bind(1)], [flow.bind(2), held.bind(2)]):
                try:
                    await queue.enqueue_many(calls)
                except DeduplicatedError as exc:
                    said.append(str(exc.workflow_id))
            try:
                await dbos.enqueue_many("later", [flow.bind(1)])
            except ValueError as exc:
                said.append(type(exc).__name__)
            await life.halt()
            return said

        return parent

    assert await lives.both(declare) == ["holder", "holder", "QueueNotFoundError"]
    async with Client(lives.url) as client:
        [row] = await client.list_workflows(name="flow")
        assert row.workflow_id == "holder"


async def test_from_within_a_step_it_is_a_plain_call(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)

    @dbos.step
    async def step() -> list[str]:
        handles = await queue.enqueue_many(flow.bind(n) for n in range(3))
        return [handle.workflow_id for handle in handles]

    @dbos.workflow(name="outer")
    async def outer() -> list[str]:
        return await step()

    async with dbos:
        ids = await outer()
        rows = await dbos.list_workflows(workflow_ids=ids)
        assert [row.parent_workflow_id for row in rows] == [None] * 3
        assert len(await dbos.list_steps((await dbos.list_workflows(name="outer"))[0].workflow_id))


async def test_a_branch_of_a_workflow_is_named_the_same_whether_enqueues_replay_or_not(
    lives: Any,
) -> None:
    def declare(life: Any) -> Workflow[[], list[str]]:
        dbos: DBOS = life.dbos
        queue = dbos.queue("queue")
        flow = flow_of(dbos)

        @dbos.step
        async def where() -> str:
            return str(dbos.step_id)

        @dbos.workflow(name="parent")
        async def parent() -> list[str]:
            await queue.enqueue_many(flow.bind(n) for n in range(1200))
            before = await asyncio.create_task(branch())
            await life.halt()
            return [before, await asyncio.create_task(branch())]

        async def branch() -> str:
            return await where()

        return parent

    assert await lives.both(declare) == ["1.1.1", "1.2.1"]
    async with Client(lives.url) as client:
        assert [step.step_id for step in await client.list_steps("w")] == ["1", "1.1.1", "1.2.1"]


async def test_both_ways_to_enqueue_write_the_same_row(
    dbos_database_url: str, database: "asyncpg.Connection[Any]"
) -> None:
    write = WorkflowWrite(
        workflow_id="w",
        status="DELAYED",
        name="flow",
        class_name="Shop",
        config_name="eu",
        inputs='{"positionalArgs":["\\u0000 é"]}',
        app_version="1",
        creator="token",
        timeout_ms=5,
        deadline_ms=6,
        queue_name="queue",
        deduplication_id="d",
        priority=7,
        delay_until_ms=8,
        partition_key="p",
        parent_id="parent",
        attributes='{"a": 1}',
        arrival=3,
        caller='{"user": "ann", "roles": ["admin"], "role": "admin"}',
    )
    given = [name for name in write.__struct_fields__ if getattr(write, name) is None]
    assert given == ["executor_id", "owner"]
    await database.execute(sql.CREATE_WORKFLOWS, *columns(WorkflowWrite, [write]), "app")
    other = structs.replace(write, workflow_id="v", deduplication_id="e")
    await database.fetchval(sql.ENQUEUE, enqueues.ENCODER.encode([other]).decode(), "app")
    one, two = [
        {key: value for key, value in row.items() if key not in DIFFERENT}
        for row in await database.fetch("select * from dbos.workflow_status")
    ]
    assert one == two
    assert checkpointer.MAX_ROWS <= 1024


DIFFERENT = {
    "workflow_uuid",
    "deduplication_id",
    "created_at",
    "updated_at",
    "enqueue_order",
}
