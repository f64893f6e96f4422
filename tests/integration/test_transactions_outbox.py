"""What is enqueued and sent in a transaction commits with it, and nobody sees it before."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import bank as banks
import pytest
from bank import KINDS, Bank, add, run
from test_outbox import KINDS as CONNECTIONS

from dbos_async import ConfigurationError, Message, WorkflowNotFoundError
from dbos_async.testing import PostgresServer


@pytest.fixture
async def bank(dbos_database_url: str, dbos_postgres: PostgresServer) -> AsyncIterator[Bank]:
    async with banks.opened(dbos_database_url, dbos_postgres) as bank:
        yield bank


class Post:
    """An app whose transactions enqueue and send; `fails` says how often they roll back first."""

    def __init__(self, bank: Bank, datasource: Any) -> None:
        self.fails = 0
        self.dbos = dbos = bank.app()
        dbos.configure(recheck_interval=3600)  # what is taken, was told of
        self.queue = queue = dbos.queue("queue")
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

        @dbos.workflow(name="receiver")
        async def receiver() -> list[Any]:
            return [await dbos.recv("topic", timeout=30) for _ in range(3)]

        @dbos.workflow(name="queued")
        async def queued(number: int) -> int:
            return number

        @dbos.transaction(datasource, name="post")
        async def post(handle: Any, to: str) -> list[str]:
            await add(handle, "a", 1)
            one = await queue.enqueue(queued, 1)
            more = await dbos.enqueue_many("queue", [queued.bind(2), queued.bind(3)])
            await dbos.send(to, "one", "topic")
            await dbos.send_many([Message(to, "two", "topic"), Message(to, "three", "topic")])
            self.begun.set()
            await self.gate.wait()
            if self.fails:
                self.fails -= 1
                await run(handle, "do 'begin raise sqlstate ''40001''; end'")
            return [each.workflow_id for each in [one, *more]]

        @dbos.workflow(name="sender")
        async def sender(to: str) -> list[str]:
            return await post(to)

        self.receiver, self.post, self.sender = receiver, post, sender

    async def queued_ids(self) -> list[str]:
        rows = await self.dbos.list_workflows(name="queued")
        return sorted(row.workflow_id for row in rows)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_enqueued_and_sent_is_seen_after_the_commit_and_once(
    bank: Bank, kind: str
) -> None:
    post = Post(bank, await bank.datasource(kind))
    post.fails = 2
    post.gate.clear()
    async with post.dbos as dbos:
        receiver = await dbos.start_workflow(post.receiver)
        sender = await dbos.start_workflow(post.sender, receiver.workflow_id)
        await post.begun.wait()
        assert await post.queued_ids() == []
        assert await bank.connection.fetchval("select count(*) from dbos.notifications") == 0
        post.gate.set()
        ids = await sender.get_result(timeout=20)
        assert await receiver.get_result(timeout=20) == ["one", "two", "three"]
        assert await post.queued_ids() == sorted(ids)
        for number, workflow_id in enumerate(ids, 1):
            handle = await dbos.retrieve_workflow(workflow_id)
            assert await handle.get_result(timeout=20) == number
        assert [step.name for step in await dbos.list_steps(sender.workflow_id)] == ["post"]
    assert await bank.cents("a") == 101


async def test_it_is_so_outside_of_workflows_too(bank: Bank) -> None:
    post = Post(bank, await bank.datasource())
    post.fails = 1
    async with post.dbos as dbos:
        receiver = await dbos.start_workflow(post.receiver)
        ids = await post.post(receiver.workflow_id)
        assert await receiver.get_result(timeout=20) == ["one", "two", "three"]
        assert await post.queued_ids() == sorted(ids)


async def test_a_message_to_nobody_is_an_error_that_the_transaction_survives(bank: Bank) -> None:
    dbos = bank.app()

    @dbos.transaction(await bank.datasource())
    async def careful(handle: Any) -> int:
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await dbos.send_many([Message(dbos.workflow_id or "", 1), Message("nobody", 2)])
        return await add(handle, "a", 1)

    @dbos.workflow(name="body")
    async def body() -> int:
        total = await careful()
        assert await dbos.recv(timeout=0) is None
        return total

    async with dbos:
        assert await body() == 101


async def test_a_transaction_on_another_database_is_told_where_to_do_it(
    dbos_database_url: str, dbos_postgres: PostgresServer
) -> None:
    async with banks.opened(dbos_database_url, dbos_postgres, is_elsewhere=True) as bank:
        dbos = bank.app()
        queue = dbos.queue("queue")

        @dbos.workflow(name="queued")
        async def queued() -> None: ...

        @dbos.transaction(await bank.datasource(), name="there")
        async def there(handle: Any) -> int:
            for call in (
                lambda: queue.enqueue(queued),
                lambda: dbos.enqueue_many("queue", [queued.bind()]),
                lambda: dbos.send("w", 1),
                lambda: dbos.send_many([Message("w", 1)]),
            ):
                with pytest.raises(ConfigurationError, match=r"'there'.*after the transaction"):
                    await call()
            return await add(handle, "a", 1)

        @dbos.workflow(name="body")
        async def body() -> int:
            return await there()

        async with dbos:
            assert await body() == 101
            assert await there() == 102


# On a connection of the user's


@pytest.mark.parametrize("kind", CONNECTIONS)
async def test_messages_are_sent_when_the_users_transaction_commits(
    bank: Bank, kind: str, dbos_database_url: str
) -> None:
    post = Post(bank, await bank.datasource())
    async with post.dbos as dbos, CONNECTIONS[kind](dbos_database_url) as own:
        receiver = await dbos.start_workflow(post.receiver)
        to = receiver.workflow_id
        with pytest.raises(LookupError):
            async with own.begin():
                await dbos.send(to, "undone", "topic", connection=own.connection)
                raise LookupError
        async with own.begin():
            await own.execute("update accounts set cents = 0 where name = 'b'")
            await dbos.send(to, "one", "topic", connection=own.connection)
            with pytest.raises(WorkflowNotFoundError):
                await dbos.send("nobody", 1, connection=own.connection)
            await dbos.send_many(
                [Message(to, "two", "topic", "key"), Message(to, "three", "topic")],
                connection=own.connection,
            )
            await dbos.send(to, "again", "topic", idempotency_key="key", connection=own.connection)
            await dbos.send_many([], connection=own.connection)
            assert await bank.connection.fetchval("select count(*) from dbos.notifications") == 0
        assert await receiver.get_result(timeout=20) == ["one", "two", "three"]
    assert await bank.cents("b") == 0


async def test_connections_that_cannot_be_used_are_refused(bank: Bank) -> None:
    dbos = bank.app()

    @dbos.workflow(name="body")
    async def body() -> str:
        with pytest.raises(ConfigurationError, match="in a step"):
            await dbos.send("w", 1, connection=bank.connection)
        return dbos.workflow_id or ""

    async with dbos:
        to = await body()
        with pytest.raises(TypeError, match="connection="):
            await dbos.send(to, 1, connection="postgresql://x")
        closed = await asyncpg.connect(bank.url)
        await closed.close()
        with pytest.raises(Exception, match="cannot be used"):
            await dbos.send(to, 1, connection=closed)
        assert await bank.connection.fetchval("select count(*) from dbos.notifications") == 0
