"""Debounce: bursts of calls become one run, with the last call's arguments, and none is lost."""

import asyncio
import itertools
from typing import Any, assert_type

import pytest

from dbos_async import (
    DBOS,
    Client,
    Debouncer,
    DeduplicatedError,
    QueueNotFoundError,
    SerializationError,
    WorkflowHandle,
)
from dbos_async._engine.debounce import Bounce, write_of
from dbos_async._store import debounces
from dbos_async.testing import advance

HOUR = 3600


class Shop:
    """An app whose workflow tells what it was called with."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.dbos = dbos = DBOS("shop", url, **settings)
        self.ran: list[int] = []
        self.queue = dbos.queue("queue")
        self.parted = dbos.queue("parted", partition_concurrency=1)

        @dbos.workflow(name="index")
        async def index(number: int, *, note: str = "") -> str:
            self.ran.append(number)
            return f"{number}{note}"

        @dbos.workflow(name="other")
        async def other(number: int) -> int:
            return number

        self.index, self.other = index, other

    def debouncer(self, **options: Any) -> Debouncer[Any, str]:
        return self.dbos.debouncer(self.index, **{"period": HOUR} | options)


@pytest.fixture
def shop(dbos_database_url: str) -> Shop:
    return Shop(dbos_database_url)


async def test_a_burst_of_calls_runs_once_with_the_arguments_of_the_last(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.dbos.debouncer(shop.index, period=HOUR)
        handles = [await debouncer.debounce("k", n, note="!") for n in range(10)]
        handle = assert_type(handles[0], WorkflowHandle[str])
        assert {h.workflow_id for h in handles} == {handle.workflow_id}
        status = await handle.get_status()
        assert (status.status, status.queue_name) == ("DELAYED", "_dbos_internal_queue")
        assert status.deduplication_id == "index-k"
        assert status.input is not None
        assert (status.input.args, status.input.kwargs) == ((9,), {"note": "!"})
        await advance(HOUR)
        assert [await h.get_result(timeout=20) for h in handles] == ["9!"] * 10
    assert shop.ran == [9]


async def test_calls_of_different_keys_run_each(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.debouncer()
        handles = [await debouncer.debounce(key, n) for n, key in enumerate("aba")]
        await advance(HOUR)
        assert [await h.get_result(timeout=20) for h in handles] == ["2", "1", "2"]


async def test_every_call_puts_it_off_again(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.debouncer()
        first = await debouncer.debounce("k", 1)
        advance(HOUR - 60)
        await debouncer.debounce("k", 2)
        advance(HOUR - 60)
        with pytest.raises(TimeoutError):
            await first.get_result(timeout=0.2)
        await advance(60)
        assert await first.get_result(timeout=20) == "2"


async def test_it_runs_when_the_first_call_has_waited_long_enough(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.debouncer(max_wait=2 * HOUR)
        first = await debouncer.debounce("k", 1)
        before = (await first.get_status()).delay_until
        assert before is not None
        for number in (2, 3):
            advance(HOUR - 1)
            await debouncer.debounce("k", number)
        after = (await first.get_status()).delay_until
        assert after is not None
        assert (after - before).total_seconds() == HOUR
        await advance(3)
        assert await first.get_result(timeout=20) == "3"


async def test_a_wait_shorter_than_the_period_is_what_counts(shop: Shop) -> None:
    async with shop.dbos:
        handle = await shop.debouncer(max_wait=60).debounce("k", 1)
        await advance(60)
        assert await handle.get_result(timeout=20) == "1"


async def test_once_it_is_due_the_next_call_begins_another(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.debouncer()
        first = await debouncer.debounce("k", 1)
        await advance(HOUR)
        assert await first.get_result(timeout=20) == "1"
        second = await debouncer.debounce("k", 2)
        assert second.workflow_id != first.workflow_id
        assert (await second.get_status()).status == "DELAYED"


async def test_a_cancelled_one_frees_its_key(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.debouncer()
        first = await debouncer.debounce("k", 1)
        await shop.dbos.cancel_workflow(first.workflow_id)
        second = await debouncer.debounce("k", 2)
        await advance(HOUR)
        assert await second.get_result(timeout=20) == "2"
    assert shop.ran == [2]


async def test_no_call_is_lost_between_a_release_and_a_bounce(
    shop: Shop, dbos_database_url: str
) -> None:
    """No workflow runs with arguments that a call had replaced before: when it returned."""
    moments = itertools.count()
    called: dict[int, int] = {}
    returned: dict[int, int] = {}
    results: dict[int, int] = {}

    async def caller(debouncer: Debouncer[[int], Any], numbers: range) -> None:
        handles = {}
        for number in numbers:
            called[number] = next(moments)
            handles[number] = await debouncer.debounce("k", number)
            returned[number] = next(moments)
        for number, handle in handles.items():
            results[number] = int(await handle.get_result(timeout=30))

    async with shop.dbos, Client(dbos_database_url) as client:
        stub = client.stub("index")
        async with asyncio.TaskGroup() as group:
            group.create_task(caller(shop.debouncer(period=0.001), range(200)))
            group.create_task(caller(client.debouncer(stub, period=0.001), range(200, 400)))
    assert len(set(shop.ran)) == len(shop.ran) > 5, "releases raced with bounces"
    stale = [n for n, ran in results.items() if ran != n and returned[ran] < called[n]]
    assert stale == []


async def test_a_call_that_is_sent_again_after_it_ran_begins_no_second_workflow(
    shop: Shop,
) -> None:
    """As after a connection was lost with the answer on its way."""
    async with shop.dbos:
        session = shop.dbos._own_session()
        call = shop.index.bind(1).asked
        write = write_of(session, Bounce(call, "_dbos_internal_queue", "k", HOUR * 1000, None))
        first = await debounces.debounce(session.database, write)
        await advance(HOUR)
        handle = await shop.dbos.retrieve_workflow(first.workflow_id)
        assert await handle.get_result(timeout=20) == "1"
        again = await debounces.debounce(session.database, write)
        assert again.workflow_id == first.workflow_id
        assert len(await shop.dbos.list_workflows()) == 1


async def test_a_client_debounces_for_the_app(shop: Shop, dbos_database_url: str) -> None:
    async with shop.dbos, Client(dbos_database_url) as client:
        ours = await shop.debouncer(queue=shop.queue).debounce("k", 1)
        stub = client.stub("index")
        theirs = await client.debouncer(stub, period=HOUR, queue="queue").debounce("k", 2, note="?")
        assert theirs.workflow_id == ours.workflow_id
        await advance(HOUR)
        assert await theirs.get_result(timeout=20) == "2?"


async def test_it_runs_on_the_queue_that_was_named(shop: Shop) -> None:
    async with shop.dbos:
        for queue in (shop.queue, "queue"):
            handle = await shop.debouncer(queue=queue).debounce("k", 1)
            assert (await handle.get_status()).queue_name == "queue"
        await advance(HOUR)
        assert await handle.get_result(timeout=20) == "1"


async def test_the_options_of_the_last_call_count(shop: Shop) -> None:
    async with shop.dbos:
        patient = shop.index.with_options(timeout=60, attributes={"n": 1})
        await shop.dbos.debouncer(patient, period=HOUR).debounce("k", 1)
        hasty = shop.index.with_options(timeout=30, attributes={"n": 2}, app_version="2")
        handle = await shop.dbos.debouncer(hasty, period=HOUR).debounce("k", 2)
        status = await handle.get_status()
        assert (status.timeout, status.attributes, status.app_version) == (30, {"n": 2}, "2")


# What it refuses


@pytest.mark.parametrize(
    "options",
    [
        {"workflow_id": "w"},
        {"deduplication_id": "d"},
        {"delay": 1},
        {"priority": 1},
        {"partition_key": "p"},
        {"connection": None},
        {"duplication_policy": "return_existing"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_the_debouncer_decides_are_refused(shop: Shop, options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        shop.dbos.debouncer(shop.index.with_options(**options), period=1)


def test_durations_must_be_above_nothing(shop: Shop) -> None:
    with pytest.raises(ValueError, match="period must be above 0"):
        shop.debouncer(period=0)
    with pytest.raises(ValueError, match="max_wait must be above 0"):
        shop.debouncer(max_wait=0)
    with pytest.raises(ValueError, match="not negative"):
        shop.debouncer(period=-1)
    with pytest.raises(TypeError, match="seconds or a timedelta"):
        shop.debouncer(period="1")


def test_only_workflow_functions_are_debounced(shop: Shop) -> None:
    class Indexer:
        @shop.dbos.workflow()
        async def index(self) -> None: ...

    indexer = shop.dbos.register(Indexer(), name="i")
    for method in (indexer.index, Indexer.index):
        with pytest.raises(TypeError, match="is a method"):
            shop.dbos.debouncer(method, period=1)
    with pytest.raises(TypeError, match="takes the workflow"):
        shop.dbos.debouncer(print, period=1)  # type: ignore[arg-type]


async def test_arguments_and_keys_that_cannot_work_change_nothing(shop: Shop) -> None:
    async with shop.dbos:
        debouncer = shop.debouncer()
        handle = await debouncer.debounce("k", 1)
        with pytest.raises(TypeError, match="number"):
            await debouncer.debounce("k")
        with pytest.raises(SerializationError, match="number"):
            await debouncer.debounce("k", "text")
        with pytest.raises(ValueError, match="the debounce key must not be empty"):
            await debouncer.debounce("", 2)
        with pytest.raises(TypeError, match="the debounce key is a str"):
            await debouncer.debounce(1, 2)  # type: ignore[arg-type]
        await advance(HOUR)
        assert await handle.get_result(timeout=20) == "1"


async def test_a_queue_must_exist_and_have_no_partitions(shop: Shop) -> None:
    async with shop.dbos:
        with pytest.raises(QueueNotFoundError, match="nowhere"):
            await shop.debouncer(queue="nowhere").debounce("k", 1)
        with pytest.raises(ValueError, match="'parted' is partitioned"):
            await shop.debouncer(queue=shop.parted).debounce("k", 1)
        assert await shop.dbos.list_workflows() == []


async def test_a_key_that_another_workflow_holds_is_told_with_its_id(shop: Shop) -> None:
    async with shop.dbos:
        plain = shop.index.with_options(deduplication_id="index-k", delay=HOUR, workflow_id="plain")
        await shop.queue.enqueue(plain, 1)
        with pytest.raises(DeduplicatedError) as caught:
            await shop.debouncer(queue=shop.queue).debounce("k", 2)
        assert caught.value.workflow_id == "plain"

        held = await shop.dbos.debouncer(shop.other, period=HOUR).debounce("x-k", 1)
        clashing = shop.dbos.debouncer(shop.dbos.stub("other-x"), period=HOUR)
        with pytest.raises(DeduplicatedError) as caught:
            await clashing.debounce("k", 2)
        assert caught.value.workflow_id == held.workflow_id

        status = await held.get_status()
        assert status.input is not None
        assert status.input.args == (1,)


# Within workflows


async def test_a_replayed_call_gets_the_same_workflow_and_bounces_nothing(
    lives: Any, database: Any
) -> None:
    ticks: list[int] = []

    def declare(life: Any) -> Any:
        @life.dbos.workflow(name="index")
        async def index(number: int) -> int:
            return number

        debouncer = life.dbos.debouncer(index, period=HOUR)

        async def tick() -> None:
            await life.dbos.step(count, name="count")()

        async def count() -> None:
            ticks.append(1)

        @life.dbos.workflow(name="parent")
        async def parent() -> list[str]:
            first = await debouncer.debounce("k", 1)
            second = await debouncer.debounce("k", 2)
            await asyncio.create_task(tick())  # a branch, named by the tasks that came before it
            await life.halt()
            third = await debouncer.debounce("k", 3)
            return [first.workflow_id, second.workflow_id, third.workflow_id]

        return parent

    await lives.begin(declare)
    await database.execute(
        "update dbos.workflow_status set status = 'ENQUEUED', deduplication_id = null, "
        "queue_name = 'elsewhere' where is_debounced"
    )
    first, second, third = await lives.resume(declare)
    assert first == second != third
    assert ticks == [1]
    rows = await database.fetch(
        "select w.workflow_uuid, i.inputs::json -> 'positionalArgs' -> 0 "
        "from dbos.workflow_status w join dbos.workflow_input i using (workflow_uuid) "
        "where w.is_debounced order by w.created_at"
    )
    assert [tuple(row) for row in rows] == [(first, "2"), (third, "3")]
    steps = await database.fetch(
        "select function_name, child_workflow_id from dbos.operation_outputs "
        "where workflow_uuid = $1 order by function_id",
        lives.workflow_id,
    )
    name = "DBOS.debounce_delayed_workflow"
    assert [tuple(step) for step in steps] == [
        (name, first),
        (name, first),
        ("count", None),
        (name, third),
    ]


async def test_a_workflow_awaits_what_it_debounced(shop: Shop) -> None:
    debouncer = shop.debouncer(period=0.05)

    @shop.dbos.workflow()
    async def parent() -> list[str]:
        handles = await asyncio.gather(*[debouncer.debounce("k", n) for n in range(5)])
        return [await handle.get_result() for handle in handles]

    async with shop.dbos, asyncio.timeout(20):
        results = await parent()
    assert [int(result) in shop.ran for result in results] == [True] * 5


async def test_a_workflow_that_is_refused_is_refused_again_on_replay(
    lives: Any, database: Any
) -> None:
    def declare(life: Any) -> Any:
        queue = life.dbos.queue("queue")

        @life.dbos.workflow(name="index")
        async def index(number: int) -> None: ...

        @life.dbos.workflow(name="parent")
        async def parent() -> list[str | None]:
            plain = index.with_options(deduplication_id="index-k", delay=HOUR, workflow_id="plain")
            if life.is_first:
                await life.dbos.step(enqueue, name="enqueue")(queue, plain)
            else:
                await life.dbos.step(enqueue, name="enqueue")(None, None)
            refused: list[str | None] = []
            for name in ("queue", "nowhere"):
                try:
                    await life.dbos.debouncer(index, period=1, queue=name).debounce("k", 1)
                except DeduplicatedError as exc:
                    refused.append(exc.workflow_id)
                except QueueNotFoundError:
                    refused.append(name)
            await life.halt()
            return refused

        async def enqueue(queue: Any, plain: Any) -> None:
            await queue.enqueue(plain, 1)

        return parent

    await lives.begin(declare)
    await database.execute("update dbos.workflow_status set deduplication_id = null")
    await database.execute("insert into dbos.queues (name) values ('nowhere')")
    assert await lives.resume(declare) == ["plain", "nowhere"]


async def test_a_run_that_lost_its_workflow_bounces_nothing(
    shop: Shop, database: Any, until: Any
) -> None:
    debouncer = shop.debouncer()
    tried = asyncio.Event()

    @shop.dbos.workflow()
    async def parent() -> None:
        await database.execute("update dbos.workflow_status set owner_xid = 'somebody'")
        tried.set()
        await debouncer.debounce("k", 1)

    async def is_stopped() -> bool:
        return tried.is_set() and not shop.dbos.launched().running

    async with shop.dbos:
        await shop.dbos.start_workflow(parent)
        await until(is_stopped)
        assert await database.fetchval("select count(*) from dbos.workflow_status") == 1


async def test_within_a_step_it_is_a_plain_call(shop: Shop) -> None:
    debouncer = shop.debouncer()

    @shop.dbos.step()
    async def announce() -> str:
        return (await debouncer.debounce("k", 1)).workflow_id

    @shop.dbos.workflow()
    async def parent() -> str:
        return await announce()

    async with shop.dbos:
        handle = await shop.dbos.start_workflow(parent)
        workflow_id = await handle.get_result()
        assert [s.name for s in await shop.dbos.list_steps(handle.workflow_id)] == [
            announce.__qualname__
        ]
        held = await (await shop.dbos.retrieve_workflow(workflow_id)).get_status()
        assert (held.status, held.parent_workflow_id) == ("DELAYED", None)
