"""Queues shared with the official library: its clients enqueue for our workers, ours for its."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dbos_async import DBOS, Client, DeduplicatedError, PortableWorkflowError, RateLimit
from dbos_async.testing import advance

HOUR = 3600
FAST = {"polling_interval_sec": 0.02}
"""The official client does not listen for results, it asks."""


class App:
    """An app of ours whose workers do not look by themselves for a long time: they are told."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1")
        dbos.configure(recheck_interval=HOUR)
        self.mail = dbos.queue("mail", worker_concurrency=1)
        self.parted = dbos.queue("parted", partition_concurrency=1)
        self.ran: list[str] = []

        @dbos.workflow(name="send")
        async def send(to: str, *, text: str = "") -> str:
            self.ran.append(to)
            return f"{to}: {text}"

        self.send = send


@pytest.fixture
async def app(dbos_database_url: str) -> AsyncIterator[App]:
    app = App(dbos_database_url)
    async with app.dbos:
        yield app


def options(**more: Any) -> dict[str, Any]:
    given = {"workflow_name": "send", "queue_name": "mail", "serialization_type": "portable"}
    return given | more


# Their client, our workers


async def test_what_it_enqueues_starts_because_a_trigger_tells(app: App, official: Any) -> None:
    for number in range(3):
        handle = await official.enqueue_async(options(), f"m{number}", text="hello")
        async with asyncio.timeout(20):
            assert await handle.get_result(**FAST) == f"m{number}: hello"


async def test_what_it_enqueues_with_its_own_rows_starts_when_they_commit(
    app: App, official: Any, dbos_database_url: str
) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(dbos_database_url.replace("postgresql:", "postgresql+psycopg:"))

    def enqueue(*, commits: bool) -> str:
        with engine.connect() as connection:
            connection.execute(sa.text("create table if not exists orders (id int)"))
            handle = official.enqueue_in_transaction(connection, options(), "m")
            connection.commit() if commits else connection.rollback()
        return str(handle if isinstance(handle, str) else handle.workflow_id)

    try:
        lost = await asyncio.to_thread(enqueue, commits=False)
        kept = await asyncio.to_thread(enqueue, commits=True)
        handle = await app.dbos.retrieve_workflow(kept)
        assert await handle.get_result(timeout=20) == "m: "
        assert await app.dbos.list_workflows(workflow_ids=[lost]) == []
    finally:
        engine.dispose()


async def test_what_it_enqueues_starts_by_priority(app: App, official: Any) -> None:
    handles = [
        await official.enqueue_async(options(delay_seconds=HOUR, **more), str(more))
        for more in ({"priority": 3}, {"priority": 1}, {"priority": 2}, {})
    ]
    await advance(2 * HOUR)
    for handle in handles:
        await handle.get_result(**FAST)
    assert app.ran == ["{}", "{'priority': 1}", "{'priority': 2}", "{'priority': 3}"]


async def test_what_it_delays_starts_when_it_is_due(app: App, official: Any) -> None:
    handle = await official.enqueue_async(options(delay_seconds=HOUR), "m")
    assert (await handle.get_status()).status == "DELAYED"
    await advance(HOUR)
    assert await handle.get_result(**FAST) == "m: "


async def test_each_changes_the_delay_of_the_others(app: App, official: Any) -> None:
    theirs = await official.enqueue_async(options(delay_seconds=HOUR), "theirs")
    await app.dbos.set_workflow_delay(theirs.workflow_id, 0)
    assert await theirs.get_result(**FAST) == "theirs: "
    ours = await app.mail.enqueue(app.send.with_options(delay=HOUR), "ours")
    await official.set_workflow_delay_async(ours.workflow_id, delay_seconds=0)
    assert await ours.get_result(timeout=20) == "ours: "


async def test_one_deduplication_id_is_one_of_both(app: App, official: Any) -> None:
    from dbos import error

    first = await official.enqueue_async(options(deduplication_id="d", delay_seconds=HOUR), "m")
    with pytest.raises(DeduplicatedError) as caught:
        await app.mail.enqueue(app.send.with_options(deduplication_id="d"), "m")
    assert caught.value.workflow_id == first.workflow_id
    ours = app.send.with_options(deduplication_id="e", delay=HOUR)
    await app.mail.enqueue(ours, "m")
    with pytest.raises(error.DBOSQueueDeduplicatedError):
        await official.enqueue_async(options(deduplication_id="e"), "m")


async def test_its_partition_keys_are_ours(app: App, official: Any) -> None:
    handle = await official.enqueue_async(
        options(queue_name="parted", queue_partition_key="tenant"), "m"
    )
    assert await handle.get_result(**FAST) == "m: "
    status = await (await app.dbos.retrieve_workflow(handle.workflow_id)).get_status()
    assert status.partition_key == "tenant"


async def test_only_the_version_that_it_names_takes_it(app: App, official: Any) -> None:
    other = await official.enqueue_async(options(app_version="2"), "other")
    ours = await official.enqueue_async(options(app_version="1"), "ours")
    assert await ours.get_result(**FAST) == "ours: "
    assert (await other.get_status()).status == "ENQUEUED"
    assert app.ran == ["ours"]


async def test_it_gets_the_error_of_a_workflow_that_fails(app: App, official: Any) -> None:
    from dbos._serialization import PortableWorkflowError as Theirs

    handle = await official.enqueue_async(options(), 1)
    with pytest.raises(Theirs, match="to"):
        await handle.get_result(**FAST)


# One debounce key


@pytest.mark.parametrize("last", ["ours", "theirs"])
async def test_both_debounce_one_workflow_and_the_last_call_counts(
    app: App, official: Any, last: str
) -> None:
    from dbos import DebouncerClient

    debouncer = app.dbos.debouncer(app.send, period=HOUR, queue="mail")
    foreign = DebouncerClient(official, options(), debounce_timeout_sec=2 * HOUR)
    if last == "ours":
        theirs = await foreign.debounce_async("k", HOUR, "theirs")
        ours = await debouncer.debounce("k", "ours")
    else:
        ours = await debouncer.debounce("k", "ours")
        theirs = await foreign.debounce_async("k", HOUR, "theirs")
    assert ours.workflow_id == theirs.workflow_id
    await advance(HOUR)
    assert await ours.get_result(timeout=20) == f"{last}: "
    assert await theirs.get_result(**FAST) == f"{last}: "
    assert app.ran == [last]


# Their view of our queues


async def test_it_lists_and_reads_the_queues_that_we_declare(app: App, official: Any) -> None:
    await app.mail.update(rate_limit=RateLimit(100, per=60), concurrency=5)
    found = {
        queue.name: queue for queue in await official.list_queues_async(application_name="shop")
    }
    assert found.keys() == {"mail", "parted"}
    mail = await official.retrieve_queue_async("mail")
    assert await mail.get_worker_concurrency_async() == 1
    assert await mail.get_global_concurrency_async() == 5
    assert await mail.get_limiter_async() == {"limit": 100, "period": 60}
    parted = await official.retrieve_queue_async("parted")
    assert await parted.get_partition_concurrency_async() == 1


async def test_our_workers_follow_the_limits_that_it_sets(
    official: Any, until: Any, dbos_database_url: str
) -> None:
    gate, inside = asyncio.Event(), 0
    dbos = DBOS("shop", dbos_database_url)
    wide = dbos.queue("wide", worker_concurrency=1)

    @dbos.workflow(name="hold")
    async def hold() -> None:
        nonlocal inside
        inside += 1
        await gate.wait()

    async with dbos:
        handles = [await wide.enqueue(hold) for _ in range(3)]
        await until(lambda: inside == 1)
        queue = await official.retrieve_queue_async("wide")
        await queue.set_worker_concurrency_async(3)
        await until(lambda: inside == 3)
        gate.set()
        for handle in handles:
            await handle.get_result(timeout=20)


# Our client, their workers

WORKER = """
import sys
from dbos import DBOS

url, = sys.argv[1:]

@DBOS.workflow(name="send")
def send(to, *, text=""):
    if to == "nobody":
        raise ValueError("nobody is there")
    return {"to": to, "text": text}

DBOS(config={"name": "theirs", "system_database_url": url, "executor_id": "local",
             "application_version": "t1", "run_admin_server": False})
DBOS.launch()
DBOS.register_queue("theirs", polling_interval_sec=0.1)
DBOS.register_queue("their-parts", partition_concurrency=1, polling_interval_sec=0.1)
print("launched", flush=True)
sys.stdin.read()
DBOS.destroy()
"""


@asynccontextmanager
async def official_worker(url: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"launched\n"
            yield
            process.stdin.close()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_their_worker_runs_what_our_client_enqueues(dbos_database_url: str) -> None:
    async with official_worker(dbos_database_url), Client(dbos_database_url) as client:
        send = client.stub("send")
        plain = await client.enqueue("theirs", send, "m", text="hello")
        assert await plain.get_result(timeout=30) == {"to": "m", "text": "hello"}
        status = await plain.get_status()
        assert (status.status, status.app_name, status.app_version) == ("SUCCESS", "theirs", "t1")
        assert status.output == {"to": "m", "text": "hello"}

        failing = await client.enqueue("theirs", send, "nobody")
        with pytest.raises((ValueError, PortableWorkflowError), match="nobody is there"):
            await failing.get_result(timeout=30)

        keyed = send.with_options(partition_key="tenant", priority=3, app_version="t1", timeout=60)
        handle = await client.enqueue("their-parts", keyed, "keyed")
        assert await handle.get_result(timeout=30) == {"to": "keyed", "text": ""}

        later = send.with_options(delay=0.1, deduplication_id="d")
        handle = await client.enqueue("theirs", later, "later")
        assert await handle.get_result(timeout=30) == {"to": "later", "text": ""}

        debouncer = client.debouncer(send, period=0.1, queue="theirs")
        for number in range(3):
            debounced = await debouncer.debounce("k", f"d{number}")
        assert await debounced.get_result(timeout=30) == {"to": "d2", "text": ""}
