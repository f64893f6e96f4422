"""The server's queue of notifications is full: enqueues and commits do not care."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from dbos_async import DBOS, Client
from dbos_async._store import databases
from dbos_async.testing import EmbeddedServer

NAME = "max_notify_queue_pages"
FILL = "select pg_notify('filler', repeat('x', 7000) || i) from generate_series(1, 60) i"


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.running(tmp_path, max_notify_queue_pages="64") as server:
        yield server


async def test_a_full_notification_queue_costs_time_and_nothing_else(
    small_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    await databases.ensure_database(small_server.url, "full")
    url = small_server.url_of("full")
    probe = await asyncpg.connect(url)
    if not await probe.fetchval("select count(*) from pg_settings where name = $1", NAME):
        await probe.close()
        pytest.skip("the size of the queue can be set from Postgres 17 on")
    dbos = DBOS("full", url, app_version="1")
    dbos.configure(recheck_interval=0.2)
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    lagging = await asyncpg.connect(url)
    async with asyncio.timeout(60), dbos, Client(url) as client:
        await lagging.add_listener("filler", lambda *_: None)
        await lagging.execute("begin")  # it reads none until it commits, so none can be dropped
        with pytest.raises(asyncpg.ProgramLimitExceededError):
            while True:
                await probe.execute(FILL)
        assert await (await queue.enqueue(flow, 1)).get_result() == 1
        handle = await client.enqueue("queue", client.stub("flow"), 2)
        assert await handle.get_result() == 2
        foreign = await probe.fetchval(
            "select dbos.enqueue_workflow('flow', 'queue', array['3'::json])"
        )
        assert await (await dbos.retrieve_workflow(foreign)).get_result() == 3
    refusals = [r for r in caplog.records if "notifications are refused" in r.getMessage()]
    assert len(refusals) <= 3  # one a connection, not one a message
    await lagging.close()
    await probe.close()
