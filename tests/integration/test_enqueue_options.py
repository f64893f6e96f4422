"""What may be said of one enqueue, and what is refused before anything is written."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos_async import (
    DBOS,
    Call,
    Client,
    DeduplicatedError,
    QueueNotFoundError,
    RateLimit,
    Workflow,
)
from dbos_async._store import queues

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
Flow = Workflow[[int], int]


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("options", dbos_database_url, app_version="1")


def flow_of(dbos: DBOS) -> Flow:
    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    return flow


# Duplicates


async def test_the_holder_of_a_deduplication_id_is_returned_if_asked_for(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    once = flow.with_options(deduplication_id="d", duplication_policy="return_existing")
    async with dbos:
        await queue.pause()
        first = await queue.enqueue(once, 1)
        second = await queue.enqueue(once, 2)
        assert second.workflow_id == first.workflow_id
        await queue.resume()
        assert await second.get_result() == 1
        third = await queue.enqueue(once, 3)
        assert await third.get_result() == 3


async def test_a_client_gets_the_holder_or_an_error_that_names_it(
    dbos: DBOS, dbos_database_url: str
) -> None:
    dbos.queue("queue")
    async with dbos, Client(dbos_database_url) as client:
        held = client.stub("nobody").with_options(deduplication_id="d")
        first = await client.enqueue("queue", held)
        with pytest.raises(DeduplicatedError) as raised:
            await client.enqueue("queue", held)
        assert raised.value.workflow_id == first.workflow_id
        again = held.with_options(duplication_policy="return_existing")
        assert (await client.enqueue("queue", again)).workflow_id == first.workflow_id


async def test_many_at_once_get_the_one_holder(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    once = flow.with_options(deduplication_id="d", duplication_policy="return_existing", delay=3600)
    async with dbos:
        handles = await asyncio.gather(*[queue.enqueue(once, n) for n in range(200)])
        assert len({handle.workflow_id for handle in handles}) == 1
        assert len(await dbos.list_workflows(name="flow")) == 1


async def test_a_child_with_a_deduplication_id_is_the_holder_on_replay_too(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], list[Any]]:
        dbos: DBOS = life.dbos
        queue = dbos.queue("queue")
        flow = flow_of(dbos)
        once = flow.with_options(deduplication_id="d", delay=3600)
        again = once.with_options(duplication_policy="return_existing")

        @dbos.workflow(name="parent")
        async def parent() -> list[Any]:
            said: list[Any] = [(await queue.enqueue(once, 1)).workflow_id]
            said += [(await queue.enqueue(again, 2)).workflow_id]
            try:
                await queue.enqueue(once, 3)
            except DeduplicatedError as exc:
                said += [exc.workflow_id, str(exc)]
            await life.halt()
            await dbos.cancel_workflow("w-1")
            free = await queue.enqueue(flow.with_options(deduplication_id="d"), 4)
            return [*said, free.workflow_id, await free.get_result()]

        return parent

    said = "the deduplication id 'd' of queue 'queue' is held by workflow 'w-1'"
    assert await lives.both(declare) == ["w-1", "w-1", "w-1", said, "w-5", 4]
    async with Client(lives.url) as client:
        steps = await client.list_steps("w")
        assert [step.child_workflow_id for step in steps[:3]] == ["w-1", "w-1", None]
        assert isinstance(steps[2].error, DeduplicatedError)
        assert len(await client.list_workflows(name="flow")) == 2


# When and where


async def test_a_delay_is_seconds_a_timedelta_or_a_moment(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        now = await dbos.now()
        for delay in (3600, timedelta(hours=1), now + timedelta(hours=1)):
            handle = await queue.enqueue(flow.with_options(delay=delay), 1)
            status = await handle.get_status()
            assert status.status == "DELAYED"
            assert status.delay_until is not None
            late = status.delay_until - now - timedelta(hours=1)
            assert timedelta(milliseconds=-2) <= late < timedelta(minutes=1)


async def test_without_a_timeout_there_is_no_deadline(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        handle = await queue.enqueue(flow, 1)
        await handle.get_result()
        assert (await handle.get_status()).deadline is None


async def test_a_timeout_counts_from_the_claim_in_bulk_too(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="sleeper")
    async def sleeper() -> None:
        await dbos.sleep(3600)

    async with dbos:
        await queue.pause()
        [handle] = await queue.enqueue_many([sleeper.with_options(timeout=0.05).bind()])
        waiting = await handle.get_status()
        assert (waiting.status, waiting.timeout, waiting.deadline) == ("ENQUEUED", 0.05, None)
        resumed_at = await dbos.now()
        await queue.resume()
        with pytest.raises(TimeoutError):
            await handle.get_result()
        deadline = (await handle.get_status()).deadline
        assert deadline is not None
        assert deadline >= resumed_at + timedelta(milliseconds=48)


async def test_attributes_are_kept_on_a_queue(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        handle = await queue.enqueue(flow.with_options(attributes={"tenant": "a", "n": [1]}), 1)
        assert (await handle.get_status()).attributes == {"tenant": "a", "n": [1]}


async def test_only_the_version_that_is_asked_for_takes_it(
    dbos: DBOS, dbos_database_url: str
) -> None:
    other = DBOS("options", dbos_database_url, app_version="2")
    ran: list[str] = []

    def declare(app: DBOS) -> Workflow[[], None]:
        app.queue("queue")

        @app.workflow(name="where")
        async def where() -> None:
            ran.append(str(app.app_version))

        return where

    where = declare(dbos)
    declare(other)
    async with dbos, other:
        first = await dbos.enqueue("queue", where.with_options(app_version="2"))
        await first.get_result()
        second = await other.enqueue("queue", where.with_options(app_version="1"))
        await second.get_result()
    assert ran == ["2", "1"]


async def test_what_a_client_enqueues_is_for_the_newest_version(
    dbos: DBOS, dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBOS__APPVERSION", "of the web front end")
    newest = DBOS("options", dbos_database_url, app_version="2")
    for app in (dbos, newest):
        app.queue("queue")
        flow_of(app)
    async with dbos, newest, Client(dbos_database_url) as client:
        handles = [await client.enqueue("queue", client.stub("flow"), n) for n in range(5)]
        handles += await client.enqueue_many(
            "queue", [client.stub("flow").bind(n) for n in range(5)]
        )
        for handle in handles:
            await handle.get_result()
            assert (await handle.get_status()).app_version == "2"


# Refusals


async def test_an_unknown_queue_is_refused_with_the_names_of_those_there_are(
    dbos: DBOS, dbos_database_url: str
) -> None:
    dbos.queue("mails")
    dbos.queue("bills")
    flow = flow_of(dbos)
    async with dbos, Client(dbos_database_url) as client:
        for source, work in ((dbos, flow), (client, client.stub("flow"))):
            attempts: list[Awaitable[Any]] = [
                source.enqueue("mail", work, 1),
                source.enqueue_many("mail", [work.bind(1)]),
                source.enqueue_many("mail", list[Call[int]]()),
            ]
            for refused in attempts:
                with pytest.raises(QueueNotFoundError, match=r"'mail'.*'bills', 'mails'"):
                    await refused
        wrong: Any = None
        with pytest.raises(TypeError, match="queue"):
            await dbos.enqueue(wrong, flow, 1)
        assert await dbos.list_workflows() == []


async def test_a_queue_that_comes_or_goes_is_noticed(
    dbos: DBOS, dbos_database_url: str, until: Until
) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    later = DBOS("options", dbos_database_url, app_version="1")
    later.queue("later")
    async with dbos, Client(dbos_database_url) as client:
        await client.enqueue("queue", client.stub("flow"), 1)
        with pytest.raises(QueueNotFoundError):
            await dbos.enqueue("later", flow, 1)
        async with later:
            await dbos.enqueue("later", flow, 1)
            await client.enqueue("later", client.stub("flow"), 1)
        await queue.delete()
        with pytest.raises(QueueNotFoundError):
            await dbos.enqueue("queue", flow, 1)

        async def is_refused() -> bool:
            try:
                await client.enqueue("queue", client.stub("flow"), 1)
            except QueueNotFoundError:
                return True
            return False

        await until(is_refused)


async def test_an_enqueue_costs_one_round_trip_on_a_known_queue(
    dbos: DBOS, dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dbos.queue("queue")
    async with dbos, Client(dbos_database_url) as client:
        await client.enqueue("queue", client.stub("nobody"))
        session = client._session
        assert session is not None

        def no_lease(**_: Any) -> Any:
            raise AssertionError

        monkeypatch.setattr(session.database, "lease", no_lease)
        await client.enqueue("queue", client.stub("nobody"))


async def test_many_enqueues_at_once_look_a_queue_up_once(
    dbos: DBOS, dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dbos.queue("queue")
    looks: list[object] = []
    fetch = queues.fetch

    async def counted(*args: Any) -> Any:
        looks.append(args)
        return await fetch(*args)

    async with dbos:
        pass
    async with Client(dbos_database_url) as client:
        monkeypatch.setattr(queues, "fetch", counted)
        stub = client.stub("nobody")
        await asyncio.gather(*[client.enqueue("queue", stub) for _ in range(100)])
        assert len(looks) == 1
        refused = [client.enqueue("other", stub) for _ in range(100)]
        said = await asyncio.gather(*refused, return_exceptions=True)
        assert [type(error) for error in said] == [QueueNotFoundError] * 100
        assert len(looks) <= 3


async def test_before_the_first_launch_a_client_may_enqueue_and_is_warned_once(
    dbos: DBOS, dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Client(dbos_database_url) as client:
        with caplog.at_level(logging.WARNING, "dbos_async"):
            handle = await client.enqueue("queue", client.stub("flow"), 1)
            await client.enqueue_many("queue", [client.stub("flow").bind(2)])
        assert caplog.text.count("no queues yet") == 1
        dbos.queue("queue")
        flow_of(dbos)
        async with dbos:
            assert await handle.get_result() == 1
            with pytest.raises(QueueNotFoundError):
                await client.enqueue("other", client.stub("flow"), 1)


async def test_a_partition_key_is_given_where_there_are_partitions_and_nowhere_else(
    dbos: DBOS, dbos_database_url: str
) -> None:
    dbos.queue("plain")
    dbos.queue("tenants", partition_concurrency=1)
    dbos.queue("limited", partition_rate_limit=RateLimit(10, per=1))
    flow = flow_of(dbos)
    keyed = flow.with_options(partition_key="p")
    async with dbos, Client(dbos_database_url) as client:
        for name, work in (("plain", keyed), ("tenants", flow), ("limited", flow)):
            with pytest.raises(ValueError, match=f"{name}.*partition"):
                await dbos.enqueue(name, work, 1)
            with pytest.raises(ValueError, match=f"{name}.*partition"):
                await dbos.enqueue_many(name, [work.bind(1)])
            with pytest.raises(ValueError, match=f"{name}.*partition"):
                await client.enqueue(name, work, 1)
        with pytest.raises(ValueError, match="do not go together"):
            await dbos.enqueue("tenants", keyed.with_options(deduplication_id="d"), 1)
        assert await dbos.list_workflows() == []
        for name, work in (("plain", flow), ("tenants", keyed), ("limited", keyed)):
            assert await (await dbos.enqueue(name, work, 1)).get_result() == 1


async def test_a_partition_key_fits_the_limits_as_they_are_now(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        await queue.enqueue(flow, 1)
        await queue.update(partition_concurrency=2)
        with pytest.raises(ValueError, match="partition"):
            await queue.enqueue(flow, 1)
        await queue.enqueue(flow.with_options(partition_key="p"), 1)


IMPOSSIBLE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"priority": 0}, ValueError, "priority"),
    ({"priority": -1}, ValueError, "priority"),
    ({"priority": 2**31}, ValueError, "priority"),
    ({"priority": 1.5}, TypeError, "priority"),
    ({"priority": True}, TypeError, "priority"),
    ({"delay": -1}, ValueError, "negative"),
    ({"delay": timedelta(seconds=-1)}, ValueError, "negative"),
    ({"delay": float("nan")}, ValueError, "finite"),
    ({"delay": 1e300}, ValueError, "100 years"),
    ({"delay": "soon"}, TypeError, "duration"),
    ({"delay": datetime(2030, 1, 1)}, ValueError, "time zone"),
    ({"timeout": -1}, ValueError, "negative"),
    ({"timeout": 1e300}, ValueError, "100 years"),
    ({"deduplication_id": ""}, ValueError, "deduplication_id"),
    ({"deduplication_id": None}, TypeError, "deduplication_id"),
    ({"partition_key": ""}, ValueError, "partition_key"),
    ({"duplication_policy": "ignore"}, ValueError, "duplication_policy"),
    ({"duplication_policy": "return_existing"}, ValueError, "deduplication_id"),
    ({"attributes": [1]}, TypeError, "attributes"),
    ({"attributes": {"a": {"b": "\\\x00"}}}, ValueError, "NUL"),
    ({"connection": object()}, TypeError, "asyncpg Connection"),
    ({"unknown": 1}, TypeError, "unknown"),
]


@pytest.mark.parametrize(("options", "error", "words"), IMPOSSIBLE)
async def test_what_cannot_work_is_refused_before_it_is_written(
    dbos: DBOS, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    queue = dbos.queue("queue")
    flow: Any = flow_of(dbos)
    async with dbos:
        with pytest.raises(error, match=words):
            await queue.enqueue(flow.with_options(**options), 1)
        with pytest.raises(error, match=words):
            await queue.enqueue_many([flow.bind(1), flow.with_options(**options).bind(1)])
        assert await dbos.list_workflows() == []


async def test_priorities_reach_from_one_to_the_largest_integer(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        for priority in (1, 2**31 - 1):
            handle = await queue.enqueue(flow.with_options(priority=priority), 1)
            assert (await handle.get_status()).priority == priority
        past = flow.with_options(delay=datetime(2020, 1, 1, tzinfo=UTC))
        assert await (await queue.enqueue(past, 2)).get_result() == 2


async def test_arguments_that_do_not_fit_are_refused_here_or_end_the_run_there(
    dbos: DBOS, dbos_database_url: str
) -> None:
    queue = dbos.queue("queue")
    flow: Any = flow_of(dbos)
    async with dbos, Client(dbos_database_url) as client:
        with pytest.raises(TypeError, match="flow"):
            await queue.enqueue(flow, 1, 2)
        for args in ((), (1, 2), ("x",)):
            handle = await client.enqueue("queue", client.stub("flow"), *args)
            with pytest.raises(Exception, match=r"flow.*(number|argument)"):
                await handle.get_result()
            assert (await handle.get_status()).status == "ERROR"
        assert len(await dbos.list_workflows()) == 3


async def test_a_stub_is_enqueued_and_not_started(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url)

    @dbos.workflow(name="parent")
    async def parent() -> None:
        await dbos.start_workflow(dbos.stub("there"))

    async with dbos:
        for attempt in (dbos.start_workflow(dbos.stub("there")), dbos.stub("there")(), parent()):
            with pytest.raises(TypeError, match=r"'there' is a stub.*enqueue it"):
                await attempt
        assert await dbos.list_workflows(name="there") == []


async def test_a_backslash_in_an_attribute_is_no_nul(dbos: DBOS) -> None:
    queue = dbos.queue("queue")
    flow = flow_of(dbos)
    async with dbos:
        handle = await queue.enqueue(flow.with_options(attributes={"a": "\\u0000"}), 1)
        assert (await handle.get_status()).attributes == {"a": "\\u0000"}
