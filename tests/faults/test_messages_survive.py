"""Messages and events survive: kill -9 at every checkpoint, cut links, lost news."""

import asyncio
import itertools
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from load import terminate
from proxy import Proxy
from talkers import RESULT, Talkers

from dbos_async import DBOS
from dbos_async._store import databases
from dbos_async._store.notifier import Notifier
from dbos_async.testing import PostgresServer

AT_A_TIME = 4
FEWEST = 25
"""Checkpoints that the two workflows have at least, lest the test passes for having killed none."""
PATIENCE = 60.0


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_talking_workflows_survive_kill_9_at_every_checkpoint(
    dbos_postgres: PostgresServer, dbos_database_template: str, moment: str
) -> None:
    async def life(checkpoint: int) -> bool:
        name = f"dbos_test_{uuid.uuid4().hex[:16]}"
        await databases.clone_database(dbos_postgres.url, name, dbos_database_template)
        try:
            async with asyncio.timeout(PATIENCE):
                return await lives_on(dbos_postgres.url_of(name), checkpoint, moment)
        finally:
            await databases.drop_database(dbos_postgres.url, name)

    for first in itertools.count(1, AT_A_TIME):
        died = await asyncio.gather(*[life(first + i) for i in range(AT_A_TIME)])
        if not all(died):
            break
    assert sum(died) + first - 1 >= FEWEST


async def lives_on(url: str, checkpoint: int, moment: str) -> bool:
    """Whether the process died; if so, what it began is finished here."""
    program = Path(__file__).with_name("talkers.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(checkpoint), moment
    )
    status = await process.wait()
    if status:
        assert status == -signal.SIGKILL
        talkers = Talkers(url)
        async with talkers.dbos:
            assert await talkers.talk() == RESULT
    await check_rows(url)
    return bool(status)


async def check_rows(url: str) -> None:
    """Every message once, received; every event once in each place of the history."""
    connection = await asyncpg.connect(url)
    sent = await connection.fetch(
        "select destination_uuid, topic, message, consumed from dbos.notifications "
        "order by message_order"
    )
    events = await connection.fetch(
        "select key, value from dbos.workflow_events_history order by function_id, key"
    )
    await connection.close()
    assert all(row["consumed"] for row in sent)
    mail: dict[tuple[str, str], list[str]] = {}
    for row in sent:
        mail.setdefault((row[0], row[1]), []).append(row[2])
    assert mail == {
        ("pong", "ball"): ["0", "1"],
        ("ping", "ball"): ["0", "10"],
        ("ping", "__null__topic__"): ['"a"', '"b"'],
    }
    so_far = ["[0]", "[0,10]"]
    told = [("so far", value) for value in so_far]
    inside = [("inside", str(number)) for number in range(2)]
    assert [tuple(row) for row in events] == [
        *itertools.chain.from_iterable(zip(told, inside, strict=True)),
        ("end", '"done"'),
    ]


async def test_what_is_cut_off_before_its_answer_is_sent_and_received_once(
    server_url: str,
) -> None:
    async with Proxy(server_url).open() as proxy:
        talkers = Talkers(proxy.url)
        requests = 0

        def every_third_write(data: bytes) -> bool:
            nonlocal requests
            is_execution = data[:1] == b"B"  # Bind
            requests += is_execution
            return is_execution and requests % 3 == 0 and proxy.cuts < 40

        async with asyncio.timeout(PATIENCE), talkers.dbos:
            proxy.on_request = every_third_write
            assert await talkers.talk() == RESULT
            await talkers.dbos.send("pong", 1, "late")  # from outside, cut off or not
            proxy.on_request = None
        assert proxy.cuts >= 10
    connection = await asyncpg.connect(server_url)
    late = "delete from dbos.notifications where topic = 'late' returning message"
    assert len(await connection.fetch(late)) == 1
    await connection.close()
    await check_rows(server_url)


async def test_a_send_whose_answer_is_cut_off_sends_once(server_url: str) -> None:
    async with Proxy(server_url).open() as proxy:
        talkers = Talkers(proxy.url)

        def first_three(data: bytes) -> bool:
            return b"'word'" in data or (data[:1] == b"B" and b"word" in data and proxy.cuts < 3)

        async with asyncio.timeout(PATIENCE), talkers.dbos:
            handle = await talkers.dbos.start_workflow(talkers.pong)
            proxy.on_request = first_three
            await talkers.dbos.send("pong", "word", "other")
            proxy.on_request = None
            await talkers.dbos.cancel_workflow(handle.workflow_id)
        assert proxy.cuts == 3
    connection = await asyncpg.connect(server_url)
    assert await connection.fetchval("select count(*) from dbos.notifications") == 1
    await connection.close()


def waiting_app(url: str) -> tuple[DBOS, Any]:
    dbos = DBOS("load", url, app_version="1")
    dbos.configure(recheck_interval=3_600)

    @dbos.workflow(name="wait")
    async def wait() -> list[Any]:
        return [await dbos.recv(timeout=3_600), await dbos.get_event("w", "k", timeout=0)]

    return dbos, wait.with_options(workflow_id="w")


async def test_a_waiter_whose_listening_connection_was_cut_hears_what_it_missed(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is sent, and its notification lost, while nobody listens."""
    dbos, wait = waiting_app(server_url)
    connection = await asyncpg.connect(server_url)
    gate = asyncio.Event()
    reconnect = Notifier._reconnect

    async def late(notifier: Notifier, lost: Any) -> Any:
        await gate.wait()
        return await reconnect(notifier, lost)

    async with asyncio.timeout(PATIENCE), dbos:
        handle = await dbos.start_workflow(wait)
        watching = asyncio.create_task(dbos.get_event("w", "outside", timeout=3_600))
        while not await dbos.list_steps("w"):
            await asyncio.sleep(0.01)
        monkeypatch.setattr(Notifier, "_reconnect", late)
        await terminate(
            server_url,
            await connection.fetchval(
                "select pid from pg_stat_activity where datname = current_database() "
                "and application_name like '%notifier'"
            ),
        )
        await connection.execute("select dbos.send_message('w', '1')")
        await connection.execute(
            "insert into dbos.workflow_events (workflow_uuid, key, value) "
            "values ('w', 'outside', '2')"
        )
        gate.set()
        assert await handle.get_result() == [1, None]
        assert await watching == 2
    await connection.close()


async def test_everything_is_received_though_every_notification_is_dropped(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(dbos_database_url)
    await connection.execute(
        "drop trigger dbos_async_message_sent on dbos.notifications;"
        "drop trigger dbos_async_event_set on dbos.workflow_events"
    )
    await connection.close()
    monkeypatch.setattr(Notifier, "post", lambda *_: None)
    monkeypatch.setattr(Notifier, "_heard", lambda *_: None)
    here, there = Talkers(dbos_database_url), Talkers(dbos_database_url)
    async with asyncio.timeout(PATIENCE), here.dbos, there.dbos:
        pong = await there.dbos.start_workflow(there.pong)
        ping = await here.dbos.start_workflow(here.ping)
        assert [await ping.get_result(), await pong.get_result()] == RESULT
    await check_rows(dbos_database_url)
