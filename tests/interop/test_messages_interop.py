"""The official library's messages and events, and ours: each side hears, sends and reads."""

import asyncio
import base64
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, Client, SerializationError, WorkflowHandle

HOUR = 3_600.0
PATIENCE = 30.0


class Talk:
    """An app of ours that talks, and learns for the next hour only what it is told."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.dbos = dbos = DBOS("talk", url, app_version="1")
        dbos.configure(recheck_interval=HOUR, **settings)

        @dbos.workflow(name="receive")
        async def receive(count: int, topic: str | None = None) -> list[Any]:
            return [await dbos.recv(topic, timeout=HOUR) for _ in range(count)]

        @dbos.workflow(name="refuse")
        async def refuse() -> list[Any]:
            try:
                await dbos.recv(timeout=HOUR)
            except SerializationError as exc:
                return [str(exc), await dbos.recv(timeout=HOUR)]
            return []

        @dbos.workflow(name="publish")
        async def publish(key: str, value: Any) -> None:
            await dbos.recv("go", timeout=HOUR)
            await dbos.set_event(key, value)

        @dbos.workflow(name="watch")
        async def watch(key: str) -> Any:
            return await dbos.get_event("p", key, timeout=HOUR)

        self.receive, self.refuse, self.publish, self.watch = receive, refuse, publish, watch

    async def start(self, workflow: Any, *args: Any) -> WorkflowHandle[Any]:
        """Start it, and return once it waits."""
        handle = await self.dbos.start_workflow(workflow, *args)
        async with asyncio.timeout(PATIENCE):
            while not await self.dbos.list_steps(handle.workflow_id):
                await asyncio.sleep(0.01)
        return handle


@asynccontextmanager
async def talking(url: str, **settings: Any) -> AsyncIterator[Talk]:
    talk = Talk(url, **settings)
    async with asyncio.timeout(PATIENCE), talk.dbos:
        yield talk


@pytest.fixture
async def talk(dbos_database_url: str) -> AsyncIterator[Talk]:
    async with talking(dbos_database_url) as talk:
        yield talk


def portable() -> Any:
    from dbos import WorkflowSerializationFormat

    return WorkflowSerializationFormat.PORTABLE


async def test_its_messages_wake_our_receivers_at_once_and_in_order(
    talk: Talk, official: Any
) -> None:
    handle = await talk.start(talk.receive.with_options(workflow_id="r"), 3, "t")
    for number in range(3):
        await official.send_async("r", {"n": number}, "t", serialization_type=portable())
    assert await handle.get_result() == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_its_messages_of_one_transaction_are_received_in_order(
    talk: Talk, official: Any
) -> None:
    """Its own receivers have them in the order of milliseconds."""
    from dbos import SendMessage

    handle = await talk.start(talk.receive.with_options(workflow_id="r"), 100)
    sent = [SendMessage(destination_id="r", message=number) for number in range(100)]
    await asyncio.to_thread(official.send_bulk, sent, serialization_type=portable())
    assert await handle.get_result() == list(range(100))


async def test_a_key_is_one_for_both(talk: Talk, official: Any) -> None:
    handle = await talk.start(talk.receive.with_options(workflow_id="r"), 2)
    await official.send_async("r", 1, idempotency_key="k", serialization_type=portable())
    await talk.dbos.send("r", 2, idempotency_key="k")
    await talk.dbos.send("r", 3, idempotency_key="l")
    await official.send_async("r", 4, idempotency_key="l", serialization_type=portable())
    assert await handle.get_result() == [1, 3]


async def test_a_pickled_message_is_read_if_the_app_allows_it(
    dbos_database_url: str, official_on: Any
) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    async with (
        talking(dbos_database_url, allow_pickle=True) as talk,
        official_on(dbos_database_url) as official,
    ):
        handle = await talk.start(talk.receive.with_options(workflow_id="r"), 1)
        await official.send_async("r", {"at": moment})
        assert await handle.get_result() == [{"at": "2026-01-02T00:00:00Z"}]


async def test_a_pickled_message_is_refused_where_it_is_not_allowed_and_the_next_is_received(
    talk: Talk, official: Any
) -> None:
    handle = await talk.start(talk.refuse.with_options(workflow_id="r"))
    await official.send_async("r", 1)
    await talk.dbos.send("r", 2)
    refused, received = await handle.get_result()
    assert "allow_pickle=True" in refused
    assert received == 2


async def test_it_reads_our_events_and_sees_our_messages(talk: Talk, official: Any) -> None:
    await talk.start(talk.publish.with_options(workflow_id="p"), "k", {"done": 3})
    watching = asyncio.create_task(official.get_event_async("p", "k", 20))
    await talk.dbos.send("p", None, "go")
    assert await watching == {"done": 3}
    steps = await official.list_workflow_steps_async("p")
    assert [(step["function_id"], step["function_name"]) for step in steps] == [
        (1, "DBOS.recv"),
        (2, "DBOS.sleep"),
        (3, "DBOS.setEvent"),
    ]


async def test_events_of_its_workflows_wake_and_are_read(
    talk: Talk, dbos_database_url: str
) -> None:
    """Written as it writes them: pickled, or portable."""
    done = await talk.start(talk.publish.with_options(workflow_id="p"), "own", 1)
    watching = await talk.start(talk.watch.with_options(workflow_id="w"), "k")
    pickled = base64.b64encode(pickle.dumps({1, 2})).decode()
    connection = await asyncpg.connect(dbos_database_url)
    for key, value, kind in (("k", "[1]", "portable_json"), ("odd", pickled, "py_pickle")):
        await connection.execute(
            "insert into dbos.workflow_events values ('p', $1, $2, $3) "
            "on conflict (workflow_uuid, key) do update set value = excluded.value",
            key,
            value,
            kind,
        )
    await connection.close()
    assert await watching.get_result() == [1]
    async with Client(dbos_database_url) as client:
        assert await client.get_event("p", "k", as_=set[int]) == {1}
        for call in (client.get_event("p", "odd"), client.get_all_events("p")):
            with pytest.raises(SerializationError, match="allow_pickle=True"):
                await call
    async with talking(dbos_database_url, allow_pickle=True) as reading:
        assert await reading.dbos.get_event("p", "odd") == {1, 2}
        assert await reading.dbos.get_event("p", "odd", as_=list[int]) == [1, 2]
    await talk.dbos.cancel_workflow(done.workflow_id)


REFUSAL = """
create or replace function dbos.dbos_async_tell_message() returns trigger language plpgsql as $$
begin raise exception 'the trigger has fired'; end $$;
create or replace function dbos.dbos_async_tell_event() returns trigger language plpgsql as $$
begin raise exception 'the trigger has fired'; end $$
"""


async def test_our_own_verbs_do_not_pay_for_the_triggers(
    talk: Talk, official: Any, dbos_database_url: str
) -> None:
    """Each of our commits that notified would take a lock that all commits share."""
    from sqlalchemy.exc import DBAPIError

    connection = await asyncpg.connect(dbos_database_url)
    await connection.execute(REFUSAL)
    await connection.close()
    handle = await talk.start(talk.publish.with_options(workflow_id="p"), "k", 1)
    await talk.dbos.send("p", 1, "go")
    await handle.get_result()
    with pytest.raises(DBAPIError, match="the trigger has fired"):
        await official.send_async("p", 1)
