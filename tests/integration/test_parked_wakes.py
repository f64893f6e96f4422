"""What a parked workflow waits for wakes it, whoever sends it, and no wake-up is lost.

How a message or an event is received is not of interest here: the workflow waits, and says for
what.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS
from dbos_async._engine import still
from dbos_async._engine.context import current_branch
from dbos_async._engine.execution import Execution, Wait
from dbos_async._store import parking as store
from dbos_async._store import sql
from dbos_async._store.parking import NULL_TOPIC, Event, Message, News, Park
from dbos_async.testing import advance

HOUR = 3600
PATIENCE = 20.0
Connection = Any
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class App:
    """One process, in which what waits for more than a moment is parked."""

    def __init__(self, url: str) -> None:
        self.dbos = DBOS("wakes", url, app_version="1", park_after=0.05)
        self.dbos.configure(recheck_interval=HOUR)  # what goes on sooner was told
        self.runs = 0
        self.news: list[News | None] = []
        self.gate = asyncio.Event()
        self.gate.set()

        @self.dbos.workflow(name="waiter")
        async def waiter() -> int:
            until_ms = (await self.dbos.now()).timestamp() * 1000 + HOUR * 1000
            self.runs += 1
            await self.gate.wait()
            if self.runs == 1:
                await asyncio.gather(*[self.wait(news, until_ms) for news in self.news])
            return self.runs

        @self.dbos.workflow(name="other")
        async def other() -> None:
            await asyncio.Event().wait()

        self.waiter, self.other = waiter, other

    async def wait(self, news: News | None, until_ms: float) -> None:
        branch = current_branch()
        assert branch is not None
        execution: Execution = branch.execution
        async with execution.waiting(Wait(key="1", until_ms=until_ms, news=news)):
            await self.dbos.launched().clock.sleep_until(until_ms)

    async def start(self, *news: News | None, workflow_id: str = "w") -> Any:
        self.news = list(news)
        return await self.dbos.start_workflow(self.waiter.with_options(workflow_id=workflow_id))

    async def parked(self, *news: News | None, workflow_id: str = "w") -> Any:
        """Its handle, once it is parked."""
        handle = await self.start(*news, workflow_id=workflow_id)
        async with asyncio.timeout(PATIENCE):
            while not await self.dbos.list_workflows(status="DELAYED", workflow_ids=[workflow_id]):
                await asyncio.sleep(0.01)
        return handle

    async def refused(self, workflow_id: str = "w") -> None:
        """Return once a workflow was looked at, and was not parked."""
        parker = self.dbos.launched().parker
        async with asyncio.timeout(PATIENCE):
            while not any(e.workflow_id == workflow_id for e in parker._refused):
                await asyncio.sleep(0.01)

    async def waiting_for(self, workflow_id: str = "w") -> str | None:
        [status] = await self.dbos.list_workflows(workflow_ids=[workflow_id])
        return status.waiting_for


@pytest.fixture
async def app(dbos_database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[App]:
    # What waits here stands for a verb of the library's.
    monkeypatch.setattr(still, "OURS", str(Path(__file__).parents[2]))
    app = App(dbos_database_url)
    async with app.dbos:
        yield app


@pytest.fixture
async def another(dbos_database_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dbos_database_url)
    yield connection
    await connection.close()


async def send(connection: Connection, *destinations: str, topic: str | None = NULL_TOPIC) -> None:
    await connection.execute(
        "insert into dbos.notifications (destination_uuid, topic, message) "
        "select id, $2, '1' from unnest($1::text[]) as id",
        list(destinations),
        topic,
    )


async def publish(connection: Connection, workflow_id: str, *keys: str) -> None:
    await connection.execute(
        "insert into dbos.workflow_events (workflow_uuid, key, value) "
        "select $1, key, '1' from unnest($2::text[]) as key "
        "on conflict (workflow_uuid, key) do update set value = excluded.value",
        workflow_id,
        list(keys),
    )


async def start_other(app: App) -> None:
    await app.dbos.start_workflow(app.other.with_options(workflow_id="other"))


# Woken


@pytest.mark.parametrize("topic", ["t", "", "a b", NULL_TOPIC])
async def test_a_message_wakes_its_receiver(app: App, database: Connection, topic: str) -> None:
    handle = await app.parked(Message(topic))
    assert await app.waiting_for() == ("message" if topic == NULL_TOPIC else f"message {topic}")
    await send(database, "w", topic=topic)
    assert await handle.get_result(timeout=PATIENCE) == 2
    status = await handle.get_status()
    assert (status.waiting_for, status.delay_until) == (None, None)


async def test_an_event_wakes_those_who_wait_for_it(app: App, database: Connection) -> None:
    await start_other(app)
    handle = await app.parked(Event("other", "key"))
    assert await app.waiting_for() == "event other key"
    await publish(database, "other", "another key", "key")
    assert await handle.get_result(timeout=PATIENCE) == 2


async def test_a_bulk_of_messages_wakes_all_their_receivers(app: App, database: Connection) -> None:
    handles = [await app.parked(Message("t"), workflow_id=f"w-{i}") for i in range(1)]
    app.runs = 0
    handles += [await app.parked(Message("t"), workflow_id="w-1")]
    await send(database, "w-1", "w-0", "w-1", topic="t")
    for handle in handles:
        assert await handle.get_result(timeout=PATIENCE) >= 2


async def test_of_several_waits_the_one_for_news_ends_the_parking(
    app: App, database: Connection
) -> None:
    handle = await app.parked(None, Message("t"), None)
    assert await app.waiting_for() == "message t"
    await send(database, "w", topic="t")
    assert await handle.get_result(timeout=PATIENCE) == 2


async def test_it_goes_on_when_its_time_is_over_and_no_news_came(app: App) -> None:
    handle = await app.parked(Message("t"))
    await advance(HOUR)
    assert await handle.get_result(timeout=PATIENCE) == 2


# Not woken


@pytest.mark.parametrize("news", [None, Message("t"), Event("other", "key")])
async def test_what_it_does_not_wait_for_wakes_nobody(
    app: App, database: Connection, news: News | None
) -> None:
    await start_other(app)
    await app.parked(news)
    before = await app.waiting_for()
    await send(database, "w", "other", topic="another")
    await send(database, "other", topic="t")
    await publish(database, "other", "another key")
    await publish(database, "w", "key")
    assert await app.waiting_for() == before


async def test_what_was_sent_in_a_transaction_that_failed_wakes_nobody(
    app: App, database: Connection
) -> None:
    await app.parked(Message("t"))
    with pytest.raises(ZeroDivisionError):
        async with database.transaction():
            await send(database, "w", topic="t")
            raise ZeroDivisionError
    assert await app.waiting_for() == "message t"


# Not parked


async def test_what_waits_for_two_pieces_of_news_stays_in_memory(app: App) -> None:
    await app.start(Message("a"), Message("b"))
    await app.refused()
    assert await app.waiting_for() is None


async def test_what_has_its_news_already_is_not_parked(app: App, database: Connection) -> None:
    await start_other(app)
    await publish(database, "other", "key")
    await app.start(Event("other", "key"))
    await app.refused()
    assert (await app.dbos.list_workflows(workflow_ids=["w"]))[0].status == "PENDING"


async def test_what_waits_for_an_event_of_nobody_is_not_parked(app: App) -> None:
    await app.start(Event("nobody", "key"))
    await app.refused()


async def test_a_name_too_long_for_an_index_keeps_it_in_memory(app: App) -> None:
    await start_other(app)
    await app.start(Event("other", "k" * 3_000))
    await app.refused()


# At the same time


LEVELS = ["read_committed", "repeatable_read", "serializable"]
NEWS = [Message("t"), Event("other", "key")]


async def tell(connection: Connection, news: News) -> None:
    if isinstance(news, Message):
        await send(connection, "w", topic=news.topic)
    else:
        await publish(connection, news.workflow_id, news.key)


@pytest.mark.parametrize("news", NEWS)
@pytest.mark.parametrize("level", LEVELS)
async def test_a_sender_whose_snapshot_is_older_than_the_parking_wakes_or_fails(
    app: App, database: Connection, level: Any, news: News
) -> None:
    await start_other(app)
    app.gate.clear()
    await app.start(news)
    sending = database.transaction(isolation=level)
    await sending.start()
    assert await database.fetchval("select count(*) from dbos.workflow_status") == 2
    app.gate.set()
    handle = await app.parked(news)
    try:
        await tell(database, news)
        await sending.commit()
    except asyncpg.SerializationError:
        assert level != "read_committed"
        await sending.rollback()
        assert await app.waiting_for() == news.waiting_for
        async with database.transaction(isolation=level):
            await tell(database, news)
    assert await handle.get_result(timeout=PATIENCE) == 2


@pytest.mark.parametrize("news", NEWS)
@pytest.mark.parametrize("level", LEVELS)
async def test_nothing_is_parked_while_somebody_is_sending_it_news(
    app: App, database: Connection, level: Any, news: News
) -> None:
    await start_other(app)
    await app.dbos.start_workflow(app.other.with_options(workflow_id="w"))
    park = Park("w", app.dbos.launched().running["w"].owner, 2**50, news)
    async with database.transaction(isolation=level):
        await tell(database, news)
        parked = await store.park(app.dbos.launched().session.database, [park])
        assert parked == store.Parked({}, set())
    parked = await store.park(app.dbos.launched().session.database, [park])
    assert parked == store.Parked({}, set())


@pytest.mark.parametrize("news", NEWS)
async def test_who_sends_during_the_parking_waits_for_it_and_wakes(
    app: App, database: Connection, another: Connection, until: Until, news: News
) -> None:
    await start_other(app)
    await app.dbos.start_workflow(app.other.with_options(workflow_id="w"))
    park = Park("w", app.dbos.launched().running["w"].owner, 2**50, news)
    async with database.transaction():
        await database.execute(sql.LOCK_PARKED, ["other", "w"])
        sending = asyncio.create_task(tell(another, news))

        async def is_waiting() -> bool:
            blocked = "select cardinality(pg_blocking_pids($1)) > 0"
            waits: bool = await database.fetchval(blocked, another.get_server_pid())
            return waits

        await until(is_waiting)
        [(parked, _)] = await database.fetch(sql.PARK, *store.columns_of([park]))
        assert parked == "w"
    await sending
    statuses = "select array_agg(status) from dbos.workflow_status where workflow_uuid = 'w'"
    assert await database.fetchval(statuses) in (["ENQUEUED"], ["PENDING"])  # it may be claimed
