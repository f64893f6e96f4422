"""Streams between us and the official library: its client reads ours, and we read its."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, Client, SerializationError

PATIENCE = 30.0


class Streaming:
    """An app whose workflow streams from itself and from a step, and closes one of two streams."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("streaming", url, app_version="1")
        self.gate = asyncio.Event()

        @dbos.step(name="say")
        async def say() -> None:
            await dbos.write_stream("closed", {"from": "a step"})
            await dbos.write_stream("open", 1)

        @dbos.workflow(name="stream")
        async def stream() -> None:
            await dbos.write_stream("closed", "from the workflow")
            await say()
            await dbos.close_stream("closed")
            await self.gate.wait()
            await dbos.write_stream("open", 2)

        self.stream = stream.with_options(workflow_id="s")


@pytest.fixture
async def streaming(dbos_database_url: str) -> AsyncIterator[Streaming]:
    streaming = Streaming(dbos_database_url)
    async with streaming.dbos:
        yield streaming


async def test_it_reads_ours(streaming: Streaming, official: Any) -> None:
    handle = await streaming.dbos.start_workflow(streaming.stream)
    async with asyncio.timeout(PATIENCE):
        closed = [value async for value in official.read_stream_async("s", "closed")]
        assert closed == ["from the workflow", {"from": "a step"}]
        opened = []
        async for value in official.read_stream_async("s", "open"):
            opened.append(value)
            streaming.gate.set()
        assert opened == [1, 2]
        await handle.get_result()
    steps = await official.list_workflow_steps_async("s")
    assert [step["function_name"] for step in steps] == [
        "DBOS.writeStream",
        "say",
        "DBOS.closeStream",
        "DBOS.writeStream",
    ]


async def test_its_fork_of_ours_streams_on(streaming: Streaming, official: Any) -> None:
    streaming.gate.set()
    await streaming.stream()
    fork = await official.fork_workflow_async("s", 2)
    ours = await streaming.dbos.retrieve_workflow(fork.workflow_id)
    await ours.get_result(timeout=PATIENCE)
    values = [value async for value in streaming.dbos.read_stream(fork.workflow_id, "closed")]
    assert values == ["from the workflow", {"from": "a step"}]


async def test_we_read_its(dbos_database_url: str) -> None:
    """Its rows, as its own statements write them; its app would need a process of its own."""
    from dbos._sys_db import _dbos_stream_closed_sentinel as sentinel

    connection = await asyncpg.connect(dbos_database_url)
    async with asyncio.timeout(PATIENCE), Client(dbos_database_url) as client:
        await connection.execute(
            "insert into dbos.workflow_status (workflow_uuid, status, name) "
            "values ('s', 'PENDING', 'theirs')"
        )
        reading = asyncio.create_task(collected(client))
        for offset, value in enumerate(['{"a": [1, 2.5, null]}', '"ü"', f'"{sentinel}"']):
            await connection.execute(
                'insert into dbos.streams (workflow_uuid, key, value, "offset", function_id, '
                "serialization) values ('s', 'k', $1, $2, 1, 'portable_json')",
                value,
                offset,
            )
        assert await reading == [{"a": [1, 2.5, None]}, "ü"]
        await connection.execute("update dbos.streams set serialization = 'py_pickle'")
        with pytest.raises(SerializationError, match="allow_pickle"):
            await collected(client)
    await connection.close()


async def collected(client: Client) -> list[Any]:
    return [value async for value in client.read_stream("s", "k")]
