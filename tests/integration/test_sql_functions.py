"""Work that arrives from plain SQL: psql, triggers, cron jobs, other languages."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    """An app that looks for lost notifications once an hour: what runs sooner was told of."""
    dbos = DBOS("sql", dbos_database_url, app_version="1")
    dbos.configure(recheck_interval=3600)
    return dbos


async def outcome(dbos: DBOS, workflow_id: str) -> Any:
    async with asyncio.timeout(20):
        return await (await dbos.retrieve_workflow(workflow_id)).get_result()


async def test_a_worker_takes_at_once_what_sql_enqueues(dbos: DBOS, database: Any) -> None:
    dbos.queue("queue")

    @dbos.workflow(name="greet")
    async def greet(name: str, *, sign: str = ".") -> str:
        return f"hello {name}{sign}"

    async with dbos:
        for _ in range(3):  # also when it has been idle in between
            workflow_id = await database.fetchval(
                "select dbos.enqueue_workflow('greet', 'queue', array['\"ann\"'::json], "
                '\'{"sign": "!"}\')'
            )
            assert await outcome(dbos, workflow_id) == "hello ann!"


async def test_it_is_taken_when_its_transaction_commits_and_not_before(
    dbos: DBOS, database: "asyncpg.Connection[Any]"
) -> None:
    dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return number

    async with dbos:
        async with database.transaction():
            call = "select dbos.enqueue_workflow('flow', 'queue', array[$1::json], workflow_id=>$2)"
            await database.execute(call, "1", "a")
            await database.execute(call, "2", "b")
            assert await dbos.list_workflows() == []
        assert [await outcome(dbos, "a"), await outcome(dbos, "b")] == [1, 2]
        with pytest.raises(ZeroDivisionError):
            async with database.transaction():
                await database.execute(call, "3", "c")
                raise ZeroDivisionError
        assert len(await dbos.list_workflows()) == 2


async def test_a_trigger_of_the_user_s_enqueues(dbos: DBOS, database: Any) -> None:
    dbos.queue("queue")

    @dbos.workflow(name="invoice")
    async def invoice(order: int) -> int:
        return order

    await database.execute("""
        create table orders (id int primary key);
        create function invoice_it() returns trigger language plpgsql as $$
        begin
            perform dbos.enqueue_workflow('invoice', 'queue', array[to_json(new.id)],
                                          workflow_id => 'invoice-' || new.id);
            return null;
        end $$;
        create trigger invoice_it after insert on orders
            for each row execute function invoice_it();
    """)
    async with dbos:
        await database.execute("insert into orders select generate_series(1, 20)")
        assert [await outcome(dbos, f"invoice-{n}") for n in range(1, 21)] == list(range(1, 21))


async def test_sql_enqueues_are_first_in_first_out_and_by_priority(
    dbos: DBOS, database: Any
) -> None:
    queue = dbos.queue("queue", worker_concurrency=1)
    ran: list[str] = []

    @dbos.workflow(name="flow")
    async def flow(name: str) -> None:
        ran.append(name)

    async with dbos:
        await queue.pause()
        for name, priority in (("c", 5), ("d", 5), ("b", 1), ("a", None)):
            await database.execute(
                "select dbos.enqueue_workflow('flow', 'queue', array[to_json($1::text)], "
                "workflow_id => $1, priority => $2)",
                name,
                priority,
            )
            await database.fetchval("select pg_sleep(0.002)")  # its place is its millisecond
        await queue.resume()
        for name in "abcd":
            await outcome(dbos, name)
    assert ran == ["a", "b", "c", "d"]


async def test_a_held_deduplication_id_is_an_error_that_names_it(dbos: DBOS, database: Any) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow() -> int:
        return 1

    call = "select dbos.enqueue_workflow('flow', 'queue', deduplication_id => 'd')"
    async with dbos:
        await queue.pause()
        workflow_id = await database.fetchval(call)
        with pytest.raises(asyncpg.UniqueViolationError, match="duplicated") as raised:
            await database.execute(call)
        assert "deduplication id d" in str(raised.value.detail)
        await queue.resume()
        assert await outcome(dbos, workflow_id) == 1
        assert await outcome(dbos, await database.fetchval(call)) == 1


async def test_a_repeated_call_under_one_id_enqueues_once(dbos: DBOS, database: Any) -> None:
    dbos.queue("queue")
    ran: list[int] = []

    @dbos.workflow(name="flow")
    async def flow() -> None:
        ran.append(1)

    async with dbos:
        for _ in range(3):
            await database.execute("select dbos.enqueue_workflow('flow','queue',workflow_id=>'w')")
        await outcome(dbos, "w")
        await database.execute("select dbos.enqueue_workflow('flow', 'queue', workflow_id => 'w')")
        await outcome(dbos, await database.fetchval("select dbos.enqueue_workflow('flow','queue')"))
    assert ran == [1, 1]


async def test_a_repeated_call_keeps_no_worker_from_the_workflow(
    dbos: DBOS, database: "asyncpg.Connection[Any]"
) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow() -> int:
        return 1

    call = "select dbos.enqueue_workflow('flow', 'queue', workflow_id => 'w')"
    async with dbos:
        await queue.pause()
        await database.execute(call)
        async with database.transaction():
            await database.execute(call)
            await queue.resume()
            assert await outcome(dbos, "w") == 1


async def test_every_option_of_the_function_reaches_the_worker(
    dbos: DBOS, database: Any, advance: Any
) -> None:
    dbos.queue("tenants", partition_concurrency=1)

    @dbos.workflow(name="flow")
    async def flow() -> None:
        await dbos.sleep(3600)

    async with dbos:
        workflow_id = await database.fetchval("""
            select dbos.enqueue_workflow(
                'flow', 'tenants', app_version => '1', timeout_ms => 50, priority => 7,
                queue_partition_key => 'p', application_name => 'sql',
                delay_until_epoch_ms => (extract(epoch from now()) * 1000)::bigint + 3600000)
        """)
        delayed = await (await dbos.retrieve_workflow(workflow_id)).get_status()
        assert (delayed.status, delayed.priority, delayed.partition_key) == ("DELAYED", 7, "p")
        advance(3600)
        with pytest.raises(TimeoutError, match="deadline"):
            await outcome(dbos, workflow_id)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("'', 'queue'", "workflow_name must be given"),
        ("'flow', ''", "queue_name must be given"),
        ("'flow', 'queue', workflow_id => ''", "must not be empty"),
        ("'flow', 'queue', named_args => '[]'", "must be a JSON object"),
        ("'flow', 'queue', delay_until_epoch_ms => -1", "must not be negative"),
    ],
)
async def test_nonsense_is_refused_and_nothing_written(
    dbos: DBOS, database: Any, arguments: str, words: str
) -> None:
    async with dbos:
        with pytest.raises(asyncpg.RaiseError, match=words):
            await database.execute(f"select dbos.enqueue_workflow({arguments})")
        assert await dbos.list_workflows() == []


async def test_a_message_reaches_the_mailbox_once_under_its_id(dbos: DBOS, database: Any) -> None:
    dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow() -> None: ...

    async with dbos:
        workflow_id = await database.fetchval("select dbos.enqueue_workflow('flow', 'queue')")
        await outcome(dbos, workflow_id)
        for message_id in ("m", "m", None):
            await database.execute(
                "select dbos.send_message($1, '{\"paid\": 1}', 'topic', $2)",
                workflow_id,
                message_id,
            )
        await database.execute("select dbos.send_message($1, '2')", workflow_id)
        rows = await database.fetch(
            "select topic, message, serialization, consumed from dbos.notifications "
            "where destination_uuid = $1 order by created_at_epoch_ms, topic desc",
            workflow_id,
        )
        plain = ("topic", '{"paid": 1}', "portable_json", False)
        nowhere = ("__null__topic__", "2", "portable_json", False)
        assert sorted(tuple(row.values()) for row in rows) == sorted([plain, plain, nowhere])
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="non-existent"):
            await database.execute("select dbos.send_message('nobody', '1')")


@pytest.mark.parametrize(
    "oddity",
    [
        "workflow_timeout_ms = 9223372036854775807",
        "workflow_deadline_epoch_ms = 9223372036854775807",
        "recovery_attempts = 9223372036854775807",
        "created_at = 9223372036854775807",
        "created_at = -9000000000000000",
        "priority = -2147483648",
        "name = null",
        "inputs = null",
        "inputs = 'no json'",
        "serialization = null",
        "serialization = 'unheard of'",
        "queue_partition_key = ''",
        "queue_partition_key = 'k'",
        "owner_xid = 'somebody'",
        "executor_id = 'somebody'",
        "class_name = 'C', config_name = ''",
    ],
)
@pytest.mark.parametrize("limits", [{}, {"concurrency": 1}, {"partition_concurrency": 1}])
async def test_an_odd_row_of_a_foreign_writer_stops_nobody_else(
    dbos: DBOS, database: Any, oddity: str, limits: Any
) -> None:
    dbos.queue("queue", **limits)

    @dbos.workflow(name="flow", max_recovery_attempts=None)
    async def flow(*numbers: int) -> int:
        return len(numbers)

    async with dbos, asyncio.timeout(30):
        queue = await dbos.retrieve_queue("queue")
        await queue.pause()
        odd = await database.fetchval("select dbos.enqueue_workflow('flow', 'queue')")
        await database.execute(f"update dbos.workflow_status set {oddity}")
        options: Any = {"partition_key": "k"} if "partition_concurrency" in limits else {}
        calls = [flow.with_options(**options).bind(1) for _ in range(3)]
        handles = await queue.enqueue_many(calls)
        await queue.resume()
        assert [await handle.get_result() for handle in handles] == [1, 1, 1]
        [row] = await dbos.list_workflows(workflow_ids=[odd])  # and it can be looked at
        assert row.queue_name == "queue"
