"""Enqueues in the user's own transaction: they commit or roll back with the user's rows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DatabaseRefusedError,
    DeduplicatedError,
    Queue,
    Workflow,
    WorkflowConflictError,
)

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
Flow = Workflow[[int], int]


class Shop:
    """An app with a table of the user's beside it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.dbos = DBOS("outbox", url, app_version="1")
        self.dbos.configure(recheck_interval=3600)  # what is taken, was told of
        self.queue: Queue = self.dbos.queue("queue")
        self.flow: Flow = self._flow()

    def _flow(self) -> Flow:
        @self.dbos.workflow(name="flow")
        async def flow(number: int) -> int:
            return number

        return flow

    async def ids(self) -> list[str]:
        return sorted(row.workflow_id for row in await self.dbos.list_workflows(limit=10_000))


class Own:
    """A connection of the user's, of some kind, in or outside of a transaction."""

    def __init__(
        self,
        connection: Any,
        execute: Callable[[str], Awaitable[Any]],
        begin: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        self.connection = connection
        self.execute = execute
        self.begin = begin


@pytest.fixture
async def shop(dbos_database_url: str, database: Any) -> AsyncIterator[Shop]:
    await database.execute("create table orders (id int primary key)")
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        yield shop


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[Own]:
    connection = await asyncpg.connect(url)
    try:
        yield Own(connection, connection.execute, connection.transaction)
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Own]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as proxy:
        yield Own(proxy, proxy.execute, proxy.transaction)


def sqlalchemy_connection(driver: str) -> Any:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Own]:
        engine = create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
        try:
            async with engine.connect() as connection:

                async def execute(statement: str) -> Any:
                    return await connection.execute(sqlalchemy.text(statement))

                yield Own(connection, execute, connection.begin)
        finally:
            await engine.dispose()

    return opened


def sqlalchemy_session(driver: str) -> Any:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Own]:
        engine = create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
        try:
            async with AsyncSession(engine) as session:

                async def execute(statement: str) -> Any:
                    return await session.execute(sqlalchemy.text(statement))

                yield Own(session, execute, session.begin)
        finally:
            await engine.dispose()

    return opened


KINDS: dict[str, Callable[[str], AbstractAsyncContextManager[Own]]] = {
    "asyncpg": asyncpg_connection,
    "asyncpg pool": asyncpg_pool,
    "sqlalchemy connection on asyncpg": sqlalchemy_connection("asyncpg"),
    "sqlalchemy connection on psycopg": sqlalchemy_connection("psycopg"),
    "sqlalchemy session on asyncpg": sqlalchemy_session("asyncpg"),
    "sqlalchemy session on psycopg": sqlalchemy_session("psycopg"),
}
SQLALCHEMY = [kind for kind in KINDS if kind.startswith("sqlalchemy")]


@pytest.fixture(params=KINDS)
async def own(request: pytest.FixtureRequest, shop: Shop) -> AsyncIterator[Own]:
    async with KINDS[request.param](shop.url) as own:
        yield own


class UndoError(Exception):
    """Rolls a transaction back."""


async def test_what_is_enqueued_commits_with_the_user_s_rows(shop: Shop, own: Own) -> None:
    named = shop.flow.with_options(workflow_id="w", connection=own.connection)
    async with own.begin():
        await own.execute("insert into orders values (1)")
        handle = await shop.queue.enqueue(named, 1)
        others = await shop.queue.enqueue_many(
            (shop.flow.bind(number) for number in range(2, 5)), connection=own.connection
        )
        assert await shop.ids() == []
    assert await handle.get_result(timeout=20) == 1
    assert [await other.get_result(timeout=20) for other in others] == [2, 3, 4]
    assert handle.workflow_id == "w"


async def test_what_is_enqueued_is_rolled_back_with_the_user_s_rows(
    shop: Shop, own: Own, database: Any
) -> None:
    with pytest.raises(UndoError):
        async with own.begin():
            await own.execute("insert into orders values (1)")
            await shop.queue.enqueue(shop.flow.with_options(connection=own.connection), 1)
            await shop.queue.enqueue_many(
                [shop.flow.bind(n) for n in range(1500)], connection=own.connection
            )
            raise UndoError
    assert await shop.ids() == []
    assert await database.fetchval("select count(*) from orders") == 0


async def test_a_refusal_leaves_the_transaction_usable_and_without_half_of_the_calls(
    shop: Shop, own: Own, database: Any
) -> None:
    flow = shop.flow
    held = flow.with_options(deduplication_id="d", delay=3600)
    wrong: Any = flow
    await shop.queue.enqueue(held.with_options(workflow_id="holder"), 0)
    foreign = shop.dbos.stub("foreign").with_options(workflow_id="taken", delay=3600)
    await shop.queue.enqueue(foreign)
    on = own.connection
    async with own.begin():
        await own.execute("insert into orders values (1)")
        many = [flow.bind(number) for number in range(1200)]
        with pytest.raises(DeduplicatedError) as raised:
            await shop.queue.enqueue_many([*many, held.bind(1)], connection=on)
        assert raised.value.workflow_id == "holder"
        with pytest.raises(WorkflowConflictError):
            await shop.queue.enqueue(flow.with_options(workflow_id="taken", connection=on), 1)
        with pytest.raises(TypeError):
            await shop.queue.enqueue_many([*many, wrong.bind(1, 2)], connection=on)
        with pytest.raises(ValueError, match="no queue"):
            await shop.dbos.enqueue("nowhere", flow.with_options(connection=on), 1)
        existing = held.with_options(duplication_policy="return_existing", connection=on)
        assert (await shop.queue.enqueue(existing, 2)).workflow_id == "holder"
        await shop.queue.enqueue(flow.with_options(workflow_id="w", connection=on), 3)
        again = await shop.queue.enqueue(flow.with_options(workflow_id="w", connection=on), 4)
        await own.execute("insert into orders values (2)")
    assert await again.get_result(timeout=20) == 3
    assert await shop.ids() == ["holder", "taken", "w"]
    assert await database.fetchval("select count(*) from orders") == 2


async def test_a_failed_transaction_is_told_as_such(shop: Shop, own: Own) -> None:
    with pytest.raises(DatabaseRefusedError, match="failed already"):
        async with own.begin():
            with pytest.raises(Exception, match="orders"):
                await own.execute("insert into orders select 1 from generate_series(1, 2)")
            await shop.queue.enqueue(shop.flow.with_options(connection=own.connection), 1)
    assert await shop.ids() == []


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_a_transaction_that_is_not_begun_yet_is_begun(
    shop: Shop, kind: str, until: Until
) -> None:
    async with KINDS[kind](shop.url) as own:
        call = shop.flow.with_options(workflow_id="w", connection=own.connection)
        await shop.queue.enqueue(call, 1)
        await own.connection.rollback()
        assert await shop.ids() == []
        handle = await shop.queue.enqueue(call, 1)
        await own.connection.commit()
        assert await handle.get_result(timeout=20) == 1


async def test_without_a_transaction_on_asyncpg_it_is_still_all_or_nothing(shop: Shop) -> None:
    held = shop.flow.with_options(deduplication_id="d")
    async with asyncpg_connection(shop.url) as own:
        calls = [*(shop.flow.bind(n) for n in range(1200)), held.bind(1)]
        await shop.queue.enqueue(held.with_options(delay=3600), 0)
        with pytest.raises(DeduplicatedError):
            await shop.queue.enqueue_many(calls, connection=own.connection)
        assert len(await shop.ids()) == 1
        handles = await shop.queue.enqueue_many(calls[:-1], connection=own.connection)
        assert [await handle.get_result(timeout=20) for handle in handles] == list(range(1200))


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_autocommit_is_refused_where_nothing_would_commit_together(
    shop: Shop, kind: str
) -> None:
    async with KINDS[kind](shop.url) as own:
        options = {"isolation_level": "AUTOCOMMIT"}
        if isinstance(own.connection, AsyncSession):
            await own.connection.connection(execution_options=options)
        else:
            await own.connection.execution_options(**options)
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await shop.queue.enqueue(shop.flow.with_options(connection=own.connection), 1)
    assert await shop.ids() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_closed_connection_is_told_as_such(shop: Shop, kind: str) -> None:
    async with KINDS[kind](shop.url) as own:
        connection = own.connection
    if isinstance(connection, AsyncSession):
        return  # a session that was closed may be used again
    with pytest.raises(DatabaseRefusedError, match="connection="):
        await shop.queue.enqueue(shop.flow.with_options(connection=connection), 1)
    assert await shop.ids() == []


async def test_a_connection_to_another_database_is_told_as_such(
    shop: Shop, dbos_postgres: Any
) -> None:
    async with asyncpg_connection(dbos_postgres.url) as own:
        with pytest.raises(ConfigurationError, match="system database"):
            await shop.queue.enqueue(shop.flow.with_options(connection=own.connection), 1)


@pytest.mark.parametrize("thing", [object(), "postgresql://", 1, sqlalchemy.create_mock_engine])
async def test_what_is_no_connection_is_a_type_error_that_says_what_is(
    shop: Shop, thing: Any
) -> None:
    for refused in (
        shop.queue.enqueue(shop.flow.with_options(connection=thing), 1),
        shop.queue.enqueue_many([shop.flow.bind(1)], connection=thing),
        shop.queue.enqueue_many([shop.flow.with_options(connection=thing).bind(1)]),
    ):
        with pytest.raises(TypeError, match=r"asyncpg Connection.*AsyncSession"):
            await refused
    assert await shop.ids() == []


async def test_calls_of_one_bulk_share_one_connection(shop: Shop) -> None:
    async with asyncpg_connection(shop.url) as one, asyncpg_connection(shop.url) as other:
        mixed = [shop.flow.with_options(connection=own.connection).bind(1) for own in (one, other)]
        with pytest.raises(ValueError, match="different connections"):
            await shop.queue.enqueue_many(mixed)
        with pytest.raises(ValueError, match="different connections"):
            await shop.queue.enqueue_many(mixed[:1], connection=other.connection)
        async with one.connection.transaction():
            [handle] = await shop.queue.enqueue_many(mixed[:1], connection=one.connection)
        assert await handle.get_result(timeout=20) == 1


async def test_within_a_workflow_it_is_done_in_a_step(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    dbos, queue, flow = shop.dbos, shop.queue, shop.flow

    @dbos.step
    async def order() -> list[str]:
        async with asyncpg_connection(dbos_database_url) as own, own.begin():
            one = await queue.enqueue(flow.with_options(connection=own.connection), 1)
            [two] = await queue.enqueue_many([flow.bind(2)], connection=own.connection)
            return [one.workflow_id, two.workflow_id]

    @dbos.workflow(name="outer")
    async def outer() -> list[str]:
        async with asyncpg_connection(dbos_database_url) as own:
            with pytest.raises(ConfigurationError, match="in a step"):
                await queue.enqueue(flow.with_options(connection=own.connection), 1)
            with pytest.raises(ConfigurationError, match="in a step"):
                await queue.enqueue_many([flow.bind(1)], connection=own.connection)
        return await order()

    async with dbos:
        handles = [await dbos.retrieve_workflow(workflow_id) for workflow_id in await outer()]
        assert [await handle.get_result() for handle in handles] == [1, 2]


async def test_a_client_enqueues_in_the_user_s_transaction_too(shop: Shop, own: Own) -> None:
    async with Client(shop.url) as client:
        stub = client.stub("flow").with_options(connection=own.connection)
        async with own.begin():
            handle = await client.enqueue("queue", stub, 5)
            assert await shop.ids() == []
        assert await handle.get_result(timeout=20) == 5


async def test_text_of_every_kind_arrives_as_it_was_given(shop: Shop, own: Own) -> None:
    odd = "\x00 :name %s $1 '\"\\ \u2028 \U0001f600"
    stub = shop.dbos.stub("nobody").with_options(attributes={":a": "%(b)s"})
    async with own.begin():
        handle = await shop.queue.enqueue(
            stub.with_options(connection=own.connection), odd, named=odd
        )
    status = await handle.get_status()
    assert status.input is not None
    assert (status.input.args, status.input.kwargs) == ((odd,), {"named": odd})
    assert status.attributes == {":a": "%(b)s"}


async def test_an_open_transaction_holds_nobody_else_up(shop: Shop, own: Own) -> None:
    call = shop.flow.with_options(workflow_id="w")
    async with own.begin():
        await shop.queue.enqueue(call.with_options(connection=own.connection), 1)
        same = asyncio.create_task(shop.queue.enqueue(call, 2))
        many = asyncio.create_task(shop.queue.enqueue_many([call.bind(3)]))
        other = await shop.queue.enqueue(shop.flow, 4)
        assert await other.get_result(timeout=20) == 4
        assert not same.done()
        assert not many.done()
    assert await (await same).get_result(timeout=20) == 1
    assert await (await many)[0].get_result(timeout=20) == 1
