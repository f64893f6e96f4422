"""Limits that processes share hold while they are killed, and while news is lost."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from load import PATIENCE, backends

from bench.fleet import Fleet, launched, most_at_once, most_in_a_window, twice_at_once
from bench.worker import PERIOD
from dbos_async import DBOS, Client
from dbos_async._store.notifier import Notifier

Connection = asyncpg.Connection


class Worker:
    """A process of an app that notes what it ran."""

    def __init__(self, url: str, *, recheck_interval: float, **limits: Any) -> None:
        self.dbos = DBOS("load", url, app_version="1")
        self.dbos.configure(recheck_interval=recheck_interval)
        self.dbos.queue("queue", **limits)
        self.ran: list[str] = []

        @self.dbos.workflow(name="job")
        async def job() -> None:
            assert self.dbos.workflow_id is not None
            self.ran.append(self.dbos.workflow_id)


@pytest.fixture
async def client(dbos_database_url: str) -> AsyncIterator[Client]:
    async with Client(dbos_database_url) as client:
        yield client


@pytest.fixture
async def database(dbos_database_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dbos_database_url)
    yield connection
    await connection.close()


async def started(database: Connection) -> list[int]:
    """When each workflow was, in milliseconds of the database's clock."""
    rows = await database.fetch(
        "select started_at_epoch_ms from dbos.workflow_status where status <> 'ENQUEUED'"
    )
    return [row[0] for row in rows]


async def until_all_succeeded(database: Connection) -> None:
    async with asyncio.timeout(2 * PATIENCE):
        while await database.fetchval(
            "select exists (select from dbos.workflow_status where status <> 'SUCCESS')"
        ):
            await asyncio.sleep(0.05)


async def test_no_window_holds_more_starts_than_the_rate_limit_over_three_processes(
    dbos_database_url: str, database: Connection, client: Client, tmp_path: Path
) -> None:
    fleet = Fleet(dbos_database_url, tmp_path / "ledger", "--rate-limit", "50")
    async with launched(fleet, 3):
        await client.enqueue_many("fleet", [client.stub("job").bind(0) for _ in range(300)])
        await until_all_succeeded(database)
    moments = await started(database)
    assert len(moments) == 300
    assert most_in_a_window(moments, PERIOD * 1000) == 50
    assert len(fleet.runs()) == 300


async def test_processes_that_are_killed_at_random_never_run_too_many_nor_one_twice_at_once(
    dbos_database_url: str, database: Connection, client: Client, tmp_path: Path
) -> None:
    fleet = Fleet(dbos_database_url, tmp_path / "ledger", "--concurrency", "10")
    job = client.stub("job")
    enqueued = 0
    async with launched(fleet, 4), asyncio.timeout(4 * PATIENCE):
        while fleet.kills < 8 or not fleet.cut_off():  # some may hit a process that has no work
            calls = [job.bind(random.uniform(0.05, 0.25)) for _ in range(50)]
            enqueued += len(await client.enqueue_many("fleet", calls))
            await asyncio.sleep(random.uniform(0.2, 1.2))  # a kill comes at any moment
            await fleet.kill()
        await until_all_succeeded(database)
    runs = fleet.runs()
    assert len({run.workflow_id for run in runs}) == enqueued
    assert most_at_once(runs) == 10
    assert twice_at_once(runs) == []
    assert len(runs) > enqueued


@pytest.mark.parametrize("limits", [{}, {"concurrency": 3}], ids=["plain", "shared limit"])
async def test_everything_runs_though_every_notification_is_dropped(
    dbos_database_url: str,
    database: Connection,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, int],
) -> None:
    await database.execute("drop trigger dbos_async_enqueued on dbos.workflow_status")
    monkeypatch.setattr(Notifier, "post", lambda *_: None)
    heard: list[str] = []
    monkeypatch.setattr(Notifier, "_heard", lambda *news: heard.append(str(news)))
    workers = [Worker(dbos_database_url, recheck_interval=0.3, **limits) for _ in range(2)]
    job = client.stub("job")
    async with workers[0].dbos, workers[1].dbos:
        for _ in range(3):
            await client.enqueue_many("queue", [job.bind() for _ in range(10)])
            await until_all_succeeded(database)
            await client.enqueue("queue", job.with_options(delay=0.1))
            await until_all_succeeded(database)
    ran = [workflow_id for worker in workers for workflow_id in worker.ran]
    assert (len(ran), len(set(ran))) == (33, 33)
    assert heard == []


async def test_nothing_is_lost_while_the_listening_connection_is_cut_again_and_again(
    dbos_database_url: str, database: Connection, client: Client
) -> None:
    worker = Worker(dbos_database_url, recheck_interval=600, worker_concurrency=20)
    enqueued: list[str] = []
    cuts = 0
    async with worker.dbos, asyncio.timeout(PATIENCE):
        while cuts < 10:
            calls = [client.stub("job").bind() for _ in range(30)]
            handles = await client.enqueue_many("queue", calls)
            enqueued += [handle.workflow_id for handle in handles]
            listening = (await backends(dbos_database_url)).get("notifier")
            cuts += await database.fetchval("select pg_terminate_backend($1)", listening) is True
        await until_all_succeeded(database)
    assert sorted(worker.ran) == sorted(enqueued)
