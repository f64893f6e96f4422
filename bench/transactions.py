"""Transaction steps beside the same statements in plain transactions, on equal pools.

A booking of four statements: look at an account, take from one, add to the other, write an entry.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from bench.bench import Bench
from bench.figures import Figure, Target, Turn, ratios
from bench.server import connected
from dbos_async import DBOS, AsyncpgDatasource, SQLAlchemyDatasource

MICROSECONDS = 1e6
AT_ONCE = 50
APART = 450
"""From one row's account to the next: on one page they could be taken for a conflict."""
POOL = 10
TABLES = """
create table accounts (id int primary key, cents bigint not null) with (fillfactor = 50);
create table entries (id bigint generated always as identity primary key, account int, cents int);
insert into accounts select i, 0 from generate_series(1, 25000) i;
analyze accounts
"""
FIND = "select cents from accounts where id = $1 for update"
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
    await asyncio.gather(*[row(1 + APART * number, times) for number in range(AT_ONCE)])
    return (time.perf_counter() - started) / (AT_ONCE * times) * MICROSECONDS


@asynccontextmanager
async def contenders(url: str, other: str) -> AsyncIterator[dict[str, Row]]:
    """Each with a pool of its own."""
    async with AsyncExitStack() as stack:
        same, elsewhere, plain = [
            await stack.enter_async_context(asyncpg.create_pool(each, min_size=POOL, max_size=POOL))
            for each in (url, other, url)
        ]
        engines = [engine_of(url), engine_of(url)]
        for engine in engines:
            stack.push_async_callback(engine.dispose)
        dbos = DBOS("bench", url)
        steps = {
            "same database": dbos.transaction(AsyncpgDatasource(same))(book),
            "other database": dbos.transaction(AsyncpgDatasource(elsewhere))(book),
            "SQLAlchemy": dbos.transaction(SQLAlchemyDatasource(engines[0]))(book_in),
        }
        rows = {name: flow_of(dbos, name, step) for name, step in steps.items()}
        async with dbos:
            yield {
                **rows,
                "plain": row_of(partial(plainly, plain)),
                "plain SQLAlchemy": row_of(partial(plainly_in, engines[1])),
            }


def engine_of(url: str) -> AsyncEngine:
    return create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"),
        pool_size=POOL,
        max_overflow=0,
        isolation_level="SERIALIZABLE",
    )


async def book(connection: "asyncpg.Connection[Any]", account: int, cents: int) -> int:
    await connection.fetchval(FIND, account)
    await connection.execute(ADD, account + 1, -cents)
    total: int = await connection.fetchval(ADD, account, cents)
    await connection.execute(NOTE, account, cents)
    return total


async def book_in(session: AsyncSession, account: int, cents: int) -> int:
    values = {"value_1": account, "value_2": cents}
    await session.scalar(named(FIND), {"value_1": account})
    await session.execute(named(ADD), {"value_1": account + 1, "value_2": -cents})
    total = await session.scalar(named(ADD), values)
    await session.execute(named(NOTE), values)
    return int(total)


async def plainly(pool: "asyncpg.Pool[Any]", account: int, cents: int) -> int:
    while True:
        try:
            async with (
                pool.acquire() as connection,
                connection.transaction(isolation="serializable"),
            ):
                return await book(connection, account, cents)
        except asyncpg.SerializationError:
            pass


async def plainly_in(engine: AsyncEngine, account: int, cents: int) -> int:
    while True:
        try:
            async with AsyncSession(engine) as session, session.begin():
                return await book_in(session, account, cents)
        except sqlalchemy.exc.DBAPIError as exc:
            if getattr(exc.orig, "sqlstate", None) != "40001":
                raise


def row_of(book: Book) -> Row:
    async def row(account: int, times: int) -> None:
        for cents in range(times):
            await book(account, cents)

    return row


def flow_of(dbos: DBOS, name: str, book: Book) -> Row:
    return dbos.workflow(name=name)(row_of(book))  # type: ignore[arg-type]  # it is async


def named(statement: str) -> sqlalchemy.TextClause:
    return sqlalchemy.text(statement.replace("$", ":value_"))
