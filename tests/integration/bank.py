"""An app with accounts in a database of the user's, which may be the app's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import asyncpg
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from dbos_async import DBOS, AsyncpgDatasource, Datasource, SQLAlchemyDatasource
from dbos_async._store import databases
from dbos_async.testing import PostgresServer

KINDS = ("asyncpg", "sqlalchemy+asyncpg", "sqlalchemy+psycopg")
TABLES = """
create table accounts (name text primary key, cents int not null check (cents >= 0));
create table entries (workflow_id text, account text, cents int);
insert into accounts values ('a', 100), ('b', 100), ('c', 100)
"""


async def run(handle: Any, statement: str, **values: object) -> list[Any]:
    """A statement on whatever the function got; its rows as tuples."""
    if isinstance(handle, asyncpg.Connection):
        for place, name in enumerate(values, 1):
            statement = statement.replace(f":{name}", f"${place}")
        return [tuple(row) for row in await handle.fetch(statement, *values.values())]
    result = await handle.execute(sqlalchemy.text(statement), values)
    return [tuple(row) for row in result] if result.returns_rows else []


async def add(handle: Any, name: str, cents: int, workflow_id: str | None = None) -> int:
    """Change an account, and write down who did it."""
    [[total]] = await run(
        handle,
        "update accounts set cents = cents + :cents where name = :name returning cents",
        cents=cents,
        name=name,
    )
    await run(
        handle,
        "insert into entries values (:workflow_id, :name, :cents)",
        workflow_id=workflow_id,
        name=name,
        cents=cents,
    )
    return int(total)


class Bank:
    """Where the accounts are, and who asks."""

    def __init__(self, url: str, elsewhere: str | None, connection: Any) -> None:
        self.url = url
        self.accounts_url = elsewhere or url
        self.is_elsewhere = elsewhere is not None
        self.connection = connection
        """To the accounts, the test's own."""
        self._stack = AsyncExitStack()

    async def datasource(self, kind: str = "asyncpg", size: int = 10) -> Datasource[Any]:
        """One that is closed with the test."""
        if kind == "asyncpg":
            pool = asyncpg.create_pool(self.accounts_url, min_size=0, max_size=size)
            self._stack.callback(terminate, pool)
            return AsyncpgDatasource(pool)
        driver = kind.partition("+")[2]
        engine = create_async_engine(
            self.accounts_url.replace("postgresql://", f"postgresql+{driver}://"), pool_size=size
        )
        self._stack.push_async_callback(engine.dispose)
        return SQLAlchemyDatasource(engine)

    def app(self, **settings: Any) -> DBOS:
        return DBOS("bank", self.url, app_version="1", **settings)

    async def total(self) -> int:
        return int(await self.connection.fetchval("select sum(cents) from accounts"))

    async def cents(self, name: str) -> int:
        return int(
            await self.connection.fetchval("select cents from accounts where name = $1", name)
        )

    async def entries(self) -> list[str]:
        rows = await self.connection.fetch("select workflow_id from entries order by 1")
        return [row[0] for row in rows]

    async def outputs(self) -> list[str]:
        """The rows that steps have left elsewhere: their workflows and steps."""
        rows = await self.connection.fetch(
            "select workflow_id || ' ' || split_part(step_id, '@', 1) from dbos.datasource_outputs"
        )
        return sorted(row[0] for row in rows)

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def opened(
    url: str, server: PostgresServer, *, is_elsewhere: bool = False
) -> AsyncIterator[Bank]:
    """A bank on `url`, or beside it."""
    name = f"accounts_{uuid4().hex[:16]}"
    elsewhere = None
    if is_elsewhere:
        await databases.ensure_database(server.url, name)
        elsewhere = server.url_of(name)
    connection = await asyncpg.connect(elsewhere or url)
    bank = Bank(url, elsewhere, connection)
    try:
        await connection.execute(TABLES)
        yield bank
    finally:
        await connection.close()
        await bank.close()
        if is_elsewhere:
            await databases.drop_database(server.url, name)


def terminate(pool: Any) -> None:
    with suppress(asyncpg.InterfaceError):  # it was never used
        pool.terminate()


async def soon(condition: Any) -> None:
    """Return once it holds, or fail."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)
