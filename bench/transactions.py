"""Transaction steps beside the same statements in plain transactions, on equal pools."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from bench.bench import Bench
from bench.figures import Figure, Target, Turn, ratios
from bench.server import connected
from dbos_async import DBOS, AsyncpgDatasource, SQLAlchemyDatasource

MICROSECONDS = 1e6
AT_ONCE = 50
POOL = 10
TABLES = """
create table accounts (id int primary key, cents bigint not null);
create table entries (id bigint generated always as identity primary key, account int, cents int);
insert into accounts select i, 0 from generate_series(1, 5000) i;
analyze accounts
"""
ADD = "update accounts set cents = cents + $2 where id = $1 returning cents"
NOTE = "insert into entries (account, cents) values ($1, $2)"

Book = Callable[[int, int], Awaitable[int]]
Row = Callable[[int, int], Awaitable[object]]
"""Books so many times in a row on an account."""


async def measure(bench: Bench) -> list[Figure]:
    """Microseconds a transaction, in a row and at once, and the ratios to plain ones."""
    size = bench.sizes
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(bench.server.database(with_schema=True))
        other = await stack.enter_async_context(bench.server.database())
        for each in (url, other):
            async with connected(each) as connection:
                await connection.execute(TABLES)
        rows = await stack.enter_async_context(contenders(url, other))

        turns: dict[str, Turn] = {}
        for name, row in rows.items():
            turns[f"{name}, in a row"] = lambda row=row: in_a_row(row, size.transactions)
            turns[f"{name}, at once"] = lambda row=row: at_once(row, size.transactions_each)
        values = await bench.interleaved(turns)
    return [
        *(Figure(name, "µs", values[name]) for name in turns),
        *(
            Figure(
                f"{name} : plain, {shape}",
                "x",
                ratios(values[f"{name}, {shape}"], values[f"plain, {shape}"]),
                Target(at_most=1.3) if name == "same database" else None,
            )
            for shape in ("in a row", "at once")
            for name in ("same database", "other database")
        ),
        *(
            Figure(
                f"SQLAlchemy : plain, {shape}",
                "x",
                ratios(values[f"SQLAlchemy, {shape}"], values[f"plain SQLAlchemy, {shape}"]),
            )
            for shape in ("in a row", "at once")
        ),
    ]


async def in_a_row(row: Row, times: int) -> float:
    """Microseconds of each of so many transactions, one after the other."""
    started = time.perf_counter()
    await row(1, times)
    return (time.perf_counter() - started) / times * MICROSECONDS


async def at_once(row: Row, times: int) -> float:
    """The same of 50 rows at a time; microseconds over all of them."""
    started = time.perf_counter()
    await asyncio.gather(*[row(1 + 97 * number, times) for number in range(AT_ONCE)])
    return (time.perf_counter() - started) / (AT_ONCE * times) * MICROSECONDS


@asynccontextmanager
async def contenders(url: str, other: str) -> AsyncIterator[dict[str, Row]]:
    """Each with a pool of its own."""
    async with AsyncExitStack() as stack:

        async def pool_of(url: str) -> "asyncpg.Pool[Any]":
            pool = asyncpg.create_pool(url, min_size=POOL, max_size=POOL)
            return await stack.enter_async_context(pool)

        engines = [
            create_async_engine(
                url.replace("postgresql://", "postgresql+asyncpg://"),
                pool_size=POOL,
                max_overflow=0,
                isolation_level="SERIALIZABLE",
            )
            for _ in range(2)
        ]
        for engine in engines:
            stack.push_async_callback(engine.dispose)
        plain = await pool_of(url)
        dbos = DBOS("bench", url)
        same = AsyncpgDatasource(await pool_of(url))
        elsewhere = AsyncpgDatasource(await pool_of(other))
        sessions = SQLAlchemyDatasource(engines[0])

        async def book(connection: "asyncpg.Connection[Any]", account: int, cents: int) -> int:
            total: int = await connection.fetchval(ADD, account, cents)
            await connection.execute(NOTE, account, cents)
            return total

        async def book_in(session: AsyncSession, account: int, cents: int) -> int:
            values = {"value_1": account, "value_2": cents}
            total = await session.scalar(named(ADD), values)
            await session.execute(named(NOTE), values)
            return int(total)

        async def plainly(account: int, cents: int) -> int:
            async with (
                plain.acquire() as connection,
                connection.transaction(isolation="serializable"),
            ):
                return await book(connection, account, cents)

        async def plainly_in(account: int, cents: int) -> int:
            async with AsyncSession(engines[1]) as session, session.begin():
                return await book_in(session, account, cents)

        rows = {
            "same database": flow_of(dbos, "same", dbos.transaction(same)(book)),
            "other database": flow_of(dbos, "other", dbos.transaction(elsewhere)(book)),
            "SQLAlchemy": flow_of(dbos, "session", dbos.transaction(sessions)(book_in)),
            "plain": row_of(plainly),
            "plain SQLAlchemy": row_of(plainly_in),
        }
        async with dbos:
            yield rows


def row_of(book: Book) -> Row:
    async def row(account: int, times: int) -> None:
        for cents in range(times):
            await book(account, cents)

    return row


def flow_of(dbos: DBOS, name: str, book: Book) -> Row:
    return dbos.workflow(name=name)(row_of(book))  # type: ignore[arg-type]  # it is async


def named(statement: str) -> sqlalchemy.TextClause:
    return sqlalchemy.text(statement.replace("$", ":value_"))
