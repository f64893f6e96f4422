"""Whatever dies, and wherever: every reader sees a prefix of one sequence, with no gap in it."""

import asyncio
import itertools
import json
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from load import backends, terminate
from proxy import Proxy
from streaming import BRANCHES, VALUES, WORKFLOW_ID, Streaming

from dbos_async import DBOS, Client
from dbos_async._store import databases
from dbos_async.testing import PostgresServer

AT_A_TIME = 4
FEWEST = 2 + 1 + BRANCHES * VALUES + VALUES + 1 + VALUES + 1 + 1
"""Checkpoints of the workflow: lest the test passes for having killed nothing."""
KEYS = ("workflow", "branches", "step")


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_streams_survive_kill_9_at_every_checkpoint(
    dbos_postgres: PostgresServer, dbos_database_template: str, moment: str
) -> None:
    async def life(checkpoint: int) -> bool:
        name = f"dbos_test_{uuid.uuid4().hex[:16]}"
        await databases.clone_database(dbos_postgres.url, name, dbos_database_template)
        try:
            async with asyncio.timeout(60):
                return await lives_on(dbos_postgres.url_of(name), checkpoint, moment)
        finally:
            await databases.drop_database(dbos_postgres.url, name)

    for first in itertools.count(1, AT_A_TIME):
        died = await asyncio.gather(*[life(first + i) for i in range(AT_A_TIME)])
        if not all(died):
            break
    assert sum(died) + first - 1 == FEWEST


async def lives_on(url: str, checkpoint: int, moment: str) -> bool:
    """Whether the process died; if so, the workflow is finished here, before everybody's eyes."""
    program = Path(__file__).with_name("streaming.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(checkpoint), moment
    )
    if (status := await process.wait()) == 0:
        return False
    assert status == -signal.SIGKILL
    landed = {key: await stored(url, key) for key in KEYS}
    streaming = Streaming(url)
    async with streaming.dbos, Client(url) as client:
        result = await streaming.stream()
        seen = {
            key: [value async for value in client.read_stream(WORKFLOW_ID, key)] for key in KEYS
        }
    assert result == seen["workflow"] == ["first", *range(VALUES)]
    for key in KEYS:
        assert seen[key][: len(landed[key])] == landed[key], "what was read stays"
    assert sorted(seen["branches"]) == [[n, v] for n in range(BRANCHES) for v in range(VALUES)]
    for number in range(BRANCHES):
        assert [v for n, v in seen["branches"] if n == number] == list(range(VALUES))
    whole = list(range(VALUES))
    assert seen["step"] in [whole[:begun] + whole for begun in range(VALUES + 1)]
    return True


async def stored(url: str, key: str) -> list[Any]:
    """What a reader would have got by now; there are no gaps."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        'select "offset", value::json::text as value from dbos.streams '
        "where workflow_uuid = $1 and key = $2 order by 1",
        WORKFLOW_ID,
        key,
    )
    await connection.close()
    assert [row["offset"] for row in rows] == list(range(len(rows)))
    values = [row["value"] for row in rows if "CLOSED" not in row["value"]]
    return [json.loads(value) for value in values]


class Talker:
    """An app whose workflow streams from itself and from a step, as long as it is let."""

    def __init__(self, url: str, *, values: int) -> None:
        self.dbos = dbos = DBOS("load", url, app_version="1")
        dbos.configure(recheck_interval=0.2)

        @dbos.step(name="say")
        async def say() -> None:
            for value in range(values):
                await dbos.write_stream("step", value)

        @dbos.workflow(name="talk")
        async def talk() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(say())
                for value in range(values):
                    await dbos.write_stream("workflow", value)

        self.talk = talk


async def test_a_write_whose_answer_is_cut_off_is_written_once(server_url: str) -> None:
    async with Proxy(server_url).open() as proxy, asyncio.timeout(60):
        talker = Talker(proxy.url, values=60)
        requests = 0

        def every_fifth_write(data: bytes) -> bool:
            nonlocal requests
            is_execution = data[:1] == b"B"  # Bind
            requests += is_execution
            return is_execution and requests % 5 == 0 and proxy.cuts < 20

        async with talker.dbos:
            proxy.on_request = every_fifth_write
            await talker.talk.with_options(workflow_id="w")()
            proxy.on_request = None
        assert proxy.cuts >= 5
    async with Client(server_url) as client:
        for key in ("step", "workflow"):
            assert [v async for v in client.read_stream("w", key)] == list(range(60))


async def test_readers_and_writers_outlive_all_their_connections(server_url: str) -> None:
    talker = Talker(server_url, values=300)
    async with asyncio.timeout(60), talker.dbos, Client(server_url) as client:
        handle = await talker.dbos.start_workflow(talker.talk.with_options(workflow_id="w"))

        async def read(key: str) -> list[int]:
            return [value async for value in client.read_stream("w", key, as_=int)]

        reading = [asyncio.create_task(read(key)) for key in ("step", "workflow")]
        for purpose in ("checkpointer", "notifier", "pool"):
            for pid in {(await backends(server_url)).get(purpose)} - {None}:
                await terminate(server_url, pid)
        await handle.get_result()
        assert await asyncio.gather(*reading) == [list(range(300))] * 2
