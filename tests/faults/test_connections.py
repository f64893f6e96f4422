"""No connection is left open by whoever was cancelled while it was being made."""

import asyncio
from typing import Any

import asyncpg
import pytest

from dbos_async._config import Settings
from dbos_async._store import connections
from dbos_async._store.database import Connection, Database

PATIENCE = 20.0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """All connections that are made."""
    made: list[Connection] = []
    connect = asyncpg.connect

    async def connected(*args: Any, **options: Any) -> Connection:
        made.append(await connect(*args, **options))
        return made[-1]

    monkeypatch.setattr(asyncpg, "connect", connected)
    return made


async def test_a_connection_that_is_being_set_up(
    dbos_database_url: str, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SETTINGS", "select pg_sleep(60)")
    database = Database(Settings(name="app", database_url=dbos_database_url), pool_size=1)
    async with asyncio.timeout(PATIENCE):
        dialling = asyncio.create_task(database.dial("test"))
        while not made:
            await asyncio.sleep(0.01)
        dialling.cancel()
        await asyncio.wait([dialling])
    assert [connection.is_closed() for connection in made] == [True]


async def test_a_connection_that_nobody_came_to_use(
    dbos_database_url: str, made: list[Connection]
) -> None:
    database = Database(Settings(name="app", database_url=dbos_database_url), pool_size=1)
    async with database.open():
        await database.dial("test")
    assert [connection.is_closed() for connection in made] == [True]
