"""Behind a PgBouncer: what works how, what is said, and what is left in its sessions: nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from poolers import Bouncers, Mode, PgBouncer

from dbos_async import DBOS, Client, ConfigurationError
from dbos_async._store import databases, schema
from dbos_async._store.database import Database
from dbos_async.testing import PostgresServer

WARNING = "gives every transaction another session"
LEFT_BEHIND = """
select current_setting(name, true)
  from unnest(array['dbos_async.own', 'enable_seqscan', 'enable_sort', 'jit', 'lock_timeout',
                    'statement_timeout', 'idle_in_transaction_session_timeout',
                    'synchronous_commit', 'plan_cache_mode']) as name
"""
LOCKS = "select count(*) from pg_locks where locktype = 'advisory'"
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.fixture
def pooler_mode() -> None:
    """These tests ask for their poolers themselves."""


class App:
    """An app with one workflow of each kind; it hears of things, or it does not hear of them."""

    def __init__(self, url: str, *, recheck_interval: float = 3600, **settings: Any) -> None:
        self.dbos = dbos = DBOS("app", url, app_version="1", **settings)
        dbos.configure(recheck_interval=recheck_interval)
        self.mail = dbos.queue("mail", concurrency=5)
        self.plain = dbos.queue("plain")

        @dbos.step
        async def double(number: int) -> int:
            return 2 * number

        @dbos.workflow(name="simple")
        async def simple(number: int) -> int:
            return await double(await double(number))

        @dbos.workflow(name="listener")
        async def listener() -> Any:
            await dbos.set_event("ready", value=True)
            return await dbos.recv("news", timeout=60)

        @dbos.workflow(name="teller")
        async def teller(to: str) -> Any:
            await dbos.get_event(to, "ready", timeout=60)
            await dbos.send(to, "hello", topic="news")
            return await double(4)

        self.simple, self.listener, self.teller = simple, listener, teller

    async def do_everything(self) -> None:
        """Workflows, a queue, messages, events and a delay."""
        queued = await self.mail.enqueue_many([self.simple.bind(n) for n in range(20)])
        hears = await self.dbos.start_workflow(self.listener)
        tells = await self.mail.enqueue(self.teller, hears.workflow_id)
        late = await self.mail.enqueue(self.simple.with_options(delay=0.5), 3)
        assert [await handle.get_result() for handle in queued] == [4 * n for n in range(20)]
        assert [await hears.get_result(), await tells.get_result()] == ["hello", 8]
        assert await late.get_result() == 12


@asynccontextmanager
async def within(seconds: float, app: App) -> AsyncIterator[App]:
    async with asyncio.timeout(seconds), app.dbos:
        yield app


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_everything_works_in_either_mode_and_only_one_is_warned_of(
    dbos_database_url: str, poolers: Bouncers, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    async with within(60, App(poolers.before(dbos_database_url, mode))) as app:
        await app.do_everything()
        [executor] = await app.dbos.list_executors()
        assert executor.is_alive
    assert caplog.text.count(WARNING) == (mode == "transaction")
    assert ("listen_url" in caplog.text) == (mode == "transaction")


async def test_with_a_way_past_the_pooler_nothing_is_missing_and_nothing_said(
    dbos_database_url: str,
    poolers: Bouncers,
    database: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = poolers.before(dbos_database_url, "transaction")
    monkeypatch.setenv("DBOS_LISTEN_URL", dbos_database_url)
    async with within(60, App(url)) as one, within(60, App(url)) as two:
        locks = "select count(*) from dbos.dbos_async_alive where backend is not null"
        assert await database.fetchval(locks) >= 2
        await one.do_everything()  # their rechecks come in an hour
        handle = await one.mail.enqueue(two.simple, 1)
        assert await (await two.dbos.retrieve_workflow(handle.workflow_id)).get_result() == 4
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_one_session_for_all_does_for_an_app_and_keeps_nothing_of_it(
    dbos_database_url: str, database: Any, poolers: Bouncers
) -> None:
    poolers.before(dbos_database_url, "transaction")  # or there is none to be had
    with PgBouncer.running(dbos_database_url, "transaction", sessions=1) as bouncer:
        url = bouncer.url_of(dbos_database_url)
        other = await asyncpg.connect(url, statement_cache_size=0)
        before = await other.fetch(LEFT_BEHIND)
        async with within(60, App(url)) as app:
            await app.do_everything()
            assert [row[0] or None for row in await other.fetch(LEFT_BEHIND)] == [
                row[0] or None for row in before
            ]
            assert await other.fetchval("select count(*) from pg_prepared_statements") == 0
        assert await database.fetchval(LOCKS) == 0
        await other.close()


async def test_what_others_write_in_the_same_session_is_heard_by_who_listens(
    dbos_database_url: str, poolers: Bouncers
) -> None:
    poolers.before(dbos_database_url, "transaction")  # or there is none to be had
    with PgBouncer.running(dbos_database_url, "transaction", sessions=1) as bouncer:
        url = bouncer.url_of(dbos_database_url)
        other = await asyncpg.connect(url, statement_cache_size=0)
        async with within(60, App(url, listen_url=dbos_database_url)) as app:
            await app.do_everything()
            for number in range(5):
                workflow_id = await other.fetchval(
                    "select dbos.enqueue_workflow('simple', 'plain', array[$1::json])",
                    json.dumps(number),
                )
                handle = await app.dbos.retrieve_workflow(workflow_id)
                assert await handle.get_result() == 4 * number
        await other.close()


async def test_who_hears_nothing_is_heard(dbos_database_url: str, poolers: Bouncers) -> None:
    deaf = poolers.before(dbos_database_url, "transaction")
    async with within(60, App(dbos_database_url)) as app, Client(deaf) as client:
        for number in range(5):
            handle = await client.enqueue("mail", client.stub("simple"), number)
            assert await handle.get_result() == 4 * number
        hears = await app.dbos.start_workflow(app.listener)
        await client.send(hears.workflow_id, "hello", topic="news")
        assert await hears.get_result() == "hello"


async def test_a_pooler_that_was_not_recognised_is_when_its_sessions_differ(
    dbos_database_url: str,
    poolers: Bouncers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def is_direct(*_: object) -> bool:
        return False

    url = poolers.before(dbos_database_url, "transaction")
    monkeypatch.setattr(Database, "_shares_sessions", is_direct)
    async with within(60, App(url, lease=1)) as app:
        while not app.dbos._own_session().database.is_deaf:
            handle = await app.dbos.start_workflow(app.simple, 1)
            assert await handle.get_result() == 4
        await app.do_everything()
    assert caplog.text.count(WARNING) == 1


async def test_a_way_past_the_pooler_that_is_none_is_not_used(
    dbos_database_url: str, poolers: Bouncers, caplog: pytest.LogCaptureFixture
) -> None:
    shared = poolers.before(dbos_database_url, "transaction")
    async with within(60, App(dbos_database_url, listen_url=shared)) as app:
        await app.do_everything()
    assert "listen_url leads through a pooler" in caplog.text


async def test_a_way_to_another_database_is_refused(
    dbos_database_url: str, dbos_postgres: PostgresServer
) -> None:
    dbos = DBOS("app", dbos_database_url, listen_url=dbos_postgres.url)
    with pytest.raises(ConfigurationError, match="which is not the database at"):
        await dbos.launch()


@pytest.mark.parametrize(
    ("listen_url", "complaint"),
    [
        ("", "listen_url .DBOS_LISTEN_URL.: the database URL is empty"),
        ("mysql://localhost/x", "listen_url .DBOS_LISTEN_URL.: .* must look like postgresql://"),
        ("postgresql://127.0.0.1:1/x", "cannot reach Postgres at postgresql://127.0.0.1:1/x"),
    ],
)
async def test_a_way_that_leads_nowhere_is_named(
    dbos_database_url: str, listen_url: str, complaint: str
) -> None:
    dbos = DBOS("app", dbos_database_url, listen_url=listen_url)
    with pytest.raises(Exception, match=complaint):
        await dbos.launch()


async def test_a_way_past_the_embedded_server_is_refused() -> None:
    dbos = DBOS("app", listen_url="postgresql://localhost/x")
    with pytest.raises(ConfigurationError, match="the embedded Postgres has no pooler"):
        await dbos.launch()


async def test_an_empty_database_is_installed_in_one_transaction(
    dbos_postgres: PostgresServer, poolers: Bouncers, request: pytest.FixtureRequest
) -> None:
    name = f"dbos_empty_{abs(hash(request.node.nodeid))}"
    await databases.ensure_database(dbos_postgres.url, name)
    url = poolers.before(dbos_postgres.url_of(name), "transaction")
    try:
        apps = [DBOS(each, url, app_version="1") for each in ("one", "two")]
        async with asyncio.timeout(60):
            await asyncio.gather(*[app.launch() for app in apps])
            await asyncio.gather(*[app.shutdown() for app in apps])
    finally:
        await databases.drop_database(dbos_postgres.url, name)


async def test_an_older_schema_is_not_changed_through_a_pooler(
    dbos_database_url: str, poolers: Bouncers, database: Any
) -> None:
    await database.execute("update dbos.dbos_async_schema set version = version - 1")
    url = poolers.before(dbos_database_url, "transaction")
    with pytest.raises(ConfigurationError, match="launch once with listen_url="):
        await DBOS("app", url).launch()
    async with within(60, App(url, listen_url=dbos_database_url)):
        version = await database.fetchval("select version from dbos.dbos_async_schema")
        assert version == schema.SCHEMA_VERSION
