"""Transaction steps: the user's rows and the record of the step are one, wherever they are."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import bank as banks
import pytest
import sqlalchemy
from bank import KINDS, Bank, add, run
from sqlalchemy.ext.asyncio import create_async_engine

from dbos_async import (
    DBOS,
    AsyncpgDatasource,
    ConfigurationError,
    DatabaseLostError,
    DatabaseRefusedError,
    Datasource,
    Retry,
    Router,
    SerializationError,
    SQLAlchemyDatasource,
    StepRetriesExhaustedError,
)
from dbos_async.testing import PostgresServer

LEVELS = ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED")


@pytest.fixture
async def bank(dbos_database_url: str, dbos_postgres: PostgresServer) -> AsyncIterator[Bank]:
    """In the app's own database."""
    async with banks.opened(dbos_database_url, dbos_postgres) as bank:
        yield bank


@pytest.fixture(params=["same", "other"])
async def any_bank(
    request: pytest.FixtureRequest, dbos_database_url: str, dbos_postgres: PostgresServer
) -> AsyncIterator[Bank]:
    """In the app's own database, and in another."""
    is_elsewhere = request.param == "other"
    async with banks.opened(dbos_database_url, dbos_postgres, is_elsewhere=is_elsewhere) as bank:
        yield bank


async def started(dbos: DBOS, body: Any, workflow_id: str = "w") -> Any:
    """The result of a workflow of this body."""
    handle = await dbos.start_workflow(body.with_options(workflow_id=workflow_id))
    return await handle.get_result(timeout=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
async def test_a_transaction_and_its_record_are_both_there(
    any_bank: Bank, kind: str, level: Any
) -> None:
    dbos = any_bank.app()
    levels: list[str] = []

    @dbos.transaction(await any_bank.datasource(kind), isolation_level=level, name="credit")
    async def credit(handle: Any, name: str, *, cents: int) -> int:
        [[found]] = await run(handle, "show transaction_isolation")
        levels.append(found)
        return await add(handle, name, cents, dbos.workflow_id)

    @dbos.workflow(name="body")
    async def body() -> int:
        return await credit("a", cents=5)

    async with dbos:
        assert await started(dbos, body) == 105
        [step] = await dbos.list_steps("w")
        assert (step.name, step.output, step.step_id) == ("credit", 105, "1")
        [report] = await dbos.check_replay()
        assert report.is_ok
    assert levels == [level.lower()]
    assert await any_bank.entries() == ["w"]
    if any_bank.is_elsewhere:
        assert await any_bank.outputs() == []


async def test_the_step_row_has_the_transaction_of_the_users_rows(bank: Bank) -> None:
    dbos = bank.app()

    @dbos.transaction(await bank.datasource())
    async def credit(connection: Any) -> int:
        return await add(connection, "a", 1)

    @dbos.workflow(name="body")
    async def body() -> int:
        return await credit()

    async with dbos:
        await started(dbos, body)
    assert await bank.connection.fetchval("""
        select o.xmin::text = e.xmin::text from dbos.operation_outputs o, entries e
    """)
    assert await bank.connection.fetchval("select to_regclass('dbos.datasource_outputs')") is None


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_rolls_back_and_is_what_the_step_came_to(any_bank: Bank, kind: str) -> None:
    dbos = any_bank.app()
    calls: list[int] = []

    @dbos.transaction(await any_bank.datasource(kind))
    async def credit(handle: Any) -> None:
        calls.append(1)
        await add(handle, "a", 5)
        raise LookupError("no")

    @dbos.workflow(name="body")
    async def body() -> str:
        try:
            await credit()
        except LookupError as exc:
            return str(exc)
        return "?"

    async with dbos:
        assert await started(dbos, body) == "no"
        [step] = await dbos.list_steps("w")
        assert isinstance(step.error, LookupError)
        fork = await dbos.fork_workflow("w", from_step=2)
        assert await fork.get_result() == "no"
    assert (await any_bank.cents("a"), calls) == (100, [1])


async def test_each_attempt_is_a_transaction(any_bank: Bank) -> None:
    dbos = any_bank.app()
    attempts: list[int] = []

    @dbos.transaction(await any_bank.datasource())
    async def credit(handle: Any) -> int:
        attempts.append(dbos.attempt)
        total = await add(handle, "a", 5)
        if dbos.attempt < 3:
            raise OSError("elsewhere")
        return total

    @dbos.workflow(name="body")
    async def body() -> int:
        again = credit.with_options(retry=Retry(max_attempts=3, interval=0.001))
        return await again()

    async with dbos:
        assert await started(dbos, body) == 105
    assert attempts == [1, 2, 3]


async def test_a_timeout_rolls_back(any_bank: Bank) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource(size=1))
    async def stuck(handle: Any) -> None:
        await add(handle, "a", 5)
        await run(handle, "select pg_sleep(60)")

    @dbos.transaction(await any_bank.datasource())
    async def read(handle: Any) -> int:
        [[cents]] = await run(handle, "select cents from accounts where name = 'a' for update")
        return int(cents)

    @dbos.workflow(name="body")
    async def body() -> int:
        with pytest.raises(TimeoutError):
            await stuck.with_options(timeout=0.1)()
        return await read()

    async with dbos:
        assert await started(dbos, body) == 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
async def test_rivals_are_repeated_until_each_has_had_its_turn(
    any_bank: Bank, kind: str, level: Any
) -> None:
    dbos = any_bank.app()
    beginnings: list[str] = []

    @dbos.transaction(await any_bank.datasource(kind), isolation_level=level)
    async def transfer(handle: Any, source: str, target: str) -> None:
        beginnings.append(source)
        cents = dict(await run(handle, "select name, cents from accounts"))
        cents[source], cents[target] = cents[source] - 1, cents[target] + 1
        for name in sorted((source, target)):  # in any order, each would wait for a deadlock
            await run(
                handle, "update accounts set cents = :c where name = :n", c=cents[name], n=name
            )
        await add(handle, source, 0, dbos.workflow_id)

    @dbos.workflow(name="body")
    async def body() -> None:
        source, target = dbos.random().sample("abc", 2)
        await transfer(source, target)

    async with dbos:
        await asyncio.gather(*[started(dbos, body, f"w-{n:02}") for n in range(12)])
    assert await any_bank.total() == 300
    entries = await any_bank.entries()
    assert len(set(entries)) == len(entries) == 12
    assert len(beginnings) > 12


async def test_deadlocks_are_repeated(any_bank: Bank) -> None:
    dbos = any_bank.app()
    met = asyncio.Barrier(2)
    first = [True, True]

    @dbos.transaction(await any_bank.datasource(), isolation_level="READ COMMITTED")
    async def move(handle: Any, number: int) -> None:
        names = "ab" if number else "ba"
        await add(handle, names[0], -1)
        if first[number]:
            first[number] = False
            await met.wait()
        await add(handle, names[1], 1)

    @dbos.workflow(name="body")
    async def body(number: int) -> None:
        await move(number)

    async with dbos:
        await asyncio.gather(body(0), body(1))
    assert (await any_bank.cents("a"), await any_bank.cents("b")) == (100, 100)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_that_was_caught_is_explained(any_bank: Bank, kind: str) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource(kind))
    async def careless(handle: Any) -> None:
        await add(handle, "a", 1)
        with suppress(Exception):
            await run(handle, "select 1 / 0")

    @dbos.workflow(name="body")
    async def body() -> str:
        with pytest.raises(DatabaseRefusedError, match=r"caught an error.*savepoint") as raised:
            await careless()
        return str(raised.value)

    async with dbos:
        await started(dbos, body)
    assert await any_bank.cents("a") == 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_who_ends_the_transaction_himself_is_refused(
    any_bank: Bank, kind: str, end: str
) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource(kind))
    async def willful(handle: Any) -> None:
        await run(handle, end)

    @dbos.workflow(name="body")
    async def body() -> None:
        with pytest.raises(ConfigurationError, match="ended its transaction by itself"):
            await willful()

    async with dbos:
        await started(dbos, body)
        [step] = await dbos.list_steps("w")
        assert isinstance(step.error, ConfigurationError)


async def test_a_session_that_was_committed_is_refused(any_bank: Bank) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource("sqlalchemy+asyncpg"))
    async def willful(session: Any) -> None:
        await add(session, "a", 1)
        await session.commit()
        await add(session, "a", 1)

    @dbos.workflow(name="body")
    async def body() -> None:
        with pytest.raises(ConfigurationError, match="ended its transaction by itself"):
            await willful()

    async with dbos:
        await started(dbos, body)
    assert await any_bank.cents("a") == 101


async def test_savepoints_are_the_users(any_bank: Bank) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource())
    async def careful(connection: Any) -> int:
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await add(connection, "b", 50)
                await connection.fetch("select 1 / 0")
        return await add(connection, "a", 1)

    @dbos.workflow(name="body")
    async def body() -> int:
        return await careful()

    async with dbos:
        assert await started(dbos, body) == 101
    assert await any_bank.cents("b") == 100


async def test_an_error_at_commit_is_the_steps(any_bank: Bank) -> None:
    await any_bank.connection.execute("""
        alter table entries add constraint known foreign key (account)
              references accounts (name) deferrable initially deferred
    """)
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource())
    async def credit(handle: Any) -> None:
        await add(handle, "a", 1)
        await run(handle, "update entries set account = 'nobody'")

    @dbos.workflow(name="body")
    async def body() -> None:
        with pytest.raises(Exception, match="foreign key"):
            await credit()

    async with dbos:
        await started(dbos, body)
    assert await any_bank.cents("a") == 100


async def test_a_result_that_cannot_be_stored_rolls_back(any_bank: Bank) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource())
    async def credit(handle: Any) -> Any:
        await add(handle, "a", 1)
        return object()

    @dbos.workflow(name="body")
    async def body() -> None:
        with pytest.raises(SerializationError):
            await credit()

    async with dbos:
        await started(dbos, body)
    assert await any_bank.cents("a") == 100


async def test_branches_run_transactions_at_the_same_time(any_bank: Bank) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource(), isolation_level="READ COMMITTED")
    async def credit(handle: Any, cents: int) -> int:
        await add(handle, "abc"[cents % 3], cents)
        return cents

    @dbos.step
    async def plain(cents: int) -> int:
        return cents

    @dbos.workflow(name="body")
    async def body() -> list[int]:
        return await asyncio.gather(*[(credit if n % 2 else plain)(n) for n in range(12)])

    async with dbos:
        assert await started(dbos, body) == list(range(12))
        assert [step.position for step in await dbos.list_steps("w")] == list(range(1, 13))
        [report] = await dbos.check_replay()
        assert report.is_ok
    assert await any_bank.total() == 300 + sum(range(1, 12, 2))


# Outside of workflows, and where it does not belong


@pytest.mark.parametrize("kind", KINDS)
async def test_outside_and_within_a_step_it_is_a_plain_transaction(
    any_bank: Bank, kind: str
) -> None:
    dbos = any_bank.app()

    @dbos.transaction(await any_bank.datasource(kind))
    async def credit(handle: Any, cents: int) -> int:
        total = await add(handle, "a", cents)
        if cents == 0:
            raise LookupError
        return total

    @dbos.step
    async def within() -> int:
        return await credit(2)

    @dbos.workflow(name="body")
    async def body() -> int:
        return await within()

    async with dbos:
        assert await credit(1) == 101
        with pytest.raises(LookupError):
            await credit(0)
        assert await started(dbos, body) == 103
        assert [step.name.rpartition(".")[2] for step in await dbos.list_steps("w")] == ["within"]
    assert len(await any_bank.entries()) == 2


async def test_steps_and_waits_in_a_transaction_are_refused_by_name(any_bank: Bank) -> None:
    dbos = any_bank.app()
    datasource = await any_bank.datasource()

    @dbos.step(name="a step")
    async def step() -> None: ...

    @dbos.transaction(datasource, name="the inner one")
    async def inner(handle: Any) -> None: ...

    @dbos.workflow(name="a child")
    async def child() -> None: ...

    calls: dict[str, Any] = {
        "a step": step,
        "the inner one": inner,
        "a child": child,
        "start_workflow": lambda: dbos.start_workflow(child),
        "sleep": lambda: dbos.sleep(0.01),
        "recv": dbos.recv,
        "get_event": lambda: dbos.get_event("w", "k"),
        "set_event": lambda: dbos.set_event("k", 1),
        "write_stream": lambda: dbos.write_stream("s", 1),
        "wait": lambda: dbos.wait([asyncio.current_task()]),
        "now": dbos.now,
        "listWorkflows": dbos.list_workflows,
        "cancelWorkflow": lambda: dbos.cancel_workflow("w"),
        "patch": lambda: dbos.patch("p"),
    }

    @dbos.transaction(datasource, name="the outer one")
    async def outer(handle: Any) -> int:
        for name, call in calls.items():
            with pytest.raises(ConfigurationError, match="in the transaction 'the outer one'") as e:
                await call()
            assert name in str(e.value)
        dbos.uuid4()
        dbos.random()
        return await add(handle, "a", 1)

    @dbos.workflow(name="body")
    async def body() -> int:
        return await outer()

    async with dbos:
        assert await started(dbos, body) == 101
        assert await outer() == 102
        assert len(await dbos.list_steps("w")) == 1


async def test_what_a_transaction_leaves_running_is_outside_of_it(bank: Bank) -> None:
    dbos = bank.app()
    left: list[asyncio.Task[None]] = []
    is_over = asyncio.Event()

    @dbos.transaction(await bank.datasource())
    async def leave(handle: Any) -> None:
        async def late() -> None:
            await is_over.wait()
            await dbos.sleep(0)

        left.append(asyncio.create_task(late()))

    async with dbos:
        await leave()
        is_over.set()
        await left[0]


# Declaring


async def test_what_cannot_be_a_transaction_is_refused_where_it_is_declared() -> None:
    dbos = DBOS("bank")
    datasource = AsyncpgDatasource("postgresql://nobody@localhost:1/none")
    with pytest.raises(ValueError, match="SERIALIZABLE, REPEATABLE READ, READ COMMITTED"):
        dbos.transaction(datasource, isolation_level="CHAOS")(asyncio.sleep)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="datasource"):
        dbos.transaction("postgresql://x")(asyncio.sleep)  # type: ignore[arg-type]

    def plain(connection: Any) -> None: ...

    with pytest.raises(TypeError, match="async def"):
        dbos.transaction(datasource)(plain)  # type: ignore[arg-type]
    with pytest.raises((TypeError, RuntimeError)) as raised:

        class Shop:
            @dbos.transaction(datasource)
            async def sell(self, connection: Any) -> None: ...

    assert "staticmethod" in f"{raised.value} {raised.value.__cause__}"
    with pytest.raises(TypeError, match="pool or a URL"):
        AsyncpgDatasource(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_size"):
        AsyncpgDatasource("postgresql://x", max_size=0)
    with pytest.raises(TypeError, match="AsyncEngine"):
        SQLAlchemyDatasource("postgresql://x")  # type: ignore[arg-type]


async def test_a_router_declares_transactions_for_the_app_that_includes_it(bank: Bank) -> None:
    router = Router()

    @router.transaction(await bank.datasource())
    async def credit(connection: Any) -> int:
        return await add(connection, "a", 1)

    @router.workflow(name="body")
    async def body() -> int:
        return await credit()

    dbos = bank.app()
    dbos.include(router)
    async with dbos:
        assert await started(dbos, body) == 101
        assert len(await dbos.list_steps("w")) == 1


# The life of a datasource


async def test_a_pool_of_a_url_lives_from_launch_to_shutdown_and_again(any_bank: Bank) -> None:
    datasource = AsyncpgDatasource(any_bank.accounts_url, max_size=2)
    dbos = any_bank.app()

    @dbos.transaction(datasource)
    async def credit(connection: Any) -> int:
        await connection.execute("set local application_name = 'credit'")
        return await add(connection, "a", 1)

    with pytest.raises(ConfigurationError, match="launch"):
        await credit()
    for total in (101, 102):
        async with dbos:
            assert await credit() == total
        assert datasource._pool is None
    with pytest.raises(ConfigurationError, match="launch"):
        await credit()


async def test_a_given_pool_stays_the_users(any_bank: Bank) -> None:
    async with asyncpg.create_pool(any_bank.accounts_url, min_size=1, max_size=2) as pool:
        dbos = any_bank.app()

        @dbos.transaction(AsyncpgDatasource(pool))
        async def credit(connection: Any) -> int:
            return await add(connection, "a", 1)

        for total in (101, 103):
            async with dbos:
                assert await credit() == total
            assert await credit() == total + 1
    with pytest.raises(ConfigurationError, match="closed"):
        await dbos.launch()


async def test_two_apps_share_a_datasource(bank: Bank) -> None:
    datasource = AsyncpgDatasource(bank.url)
    apps = [DBOS("one", bank.url), DBOS("two", bank.url)]

    async def credit(connection: Any) -> int:
        return await add(connection, "a", 1)

    first, second = [dbos.transaction(datasource)(credit) for dbos in apps]
    async with apps[0]:
        async with apps[1]:
            assert (await first(), await second()) == (101, 102)
        assert await first() == 103
    assert datasource._pool is None


async def test_a_wrong_password_and_no_url_are_said_at_the_launch(bank: Bank) -> None:
    for url, word in (
        (urlsplit(bank.url)._replace(path="/no_such_database").geturl(), "no_such_database"),
        ("nonsense", "URL|cannot"),
    ):
        dbos = bank.app()

        @dbos.transaction(AsyncpgDatasource(url))
        async def credit(connection: Any) -> None: ...

        with pytest.raises(ConfigurationError, match=word):
            await dbos.launch()


async def test_a_datasource_that_is_away_at_the_launch_is_used_once_it_is_back(
    dbos_database_url: str, dbos_postgres: PostgresServer
) -> None:
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    dbos = DBOS("bank", dbos_database_url, app_version="1")

    @dbos.transaction(SQLAlchemyDatasource(engine))
    async def credit(session: Any) -> None: ...

    async with dbos:
        with pytest.raises(DatabaseLostError):
            await credit()
    await engine.dispose()


async def test_a_role_without_the_rights_is_told_which(
    bank: Bank,
) -> None:
    name = f"teller_{random.randrange(10**9)}"
    await bank.connection.execute(f"""
        create role {name} login password '{name}';
        grant all on accounts, entries to {name};
        grant usage on schema dbos to {name};
        grant select on dbos.workflow_status to {name}
    """)
    rest = bank.url.partition("@")[2] or bank.url.partition("://")[2]
    url = f"postgresql://{name}:{name}@{rest}"
    dbos = bank.app()

    @dbos.transaction(AsyncpgDatasource(url))
    async def credit(connection: Any) -> int:
        return await add(connection, "a", 1)

    @dbos.workflow(name="body")
    async def body() -> int:
        return await credit()

    try:
        with pytest.raises(ConfigurationError) as raised:
            await dbos.launch()
        grants = [line for line in str(raised.value).splitlines() if line.startswith("grant ")]
        assert [grant.partition(" to ")[0] for grant in grants] == [
            "grant update on dbos.workflow_status",
            "grant insert on dbos.operation_outputs",
        ]
        await bank.connection.execute("\n".join(grants))
        async with dbos:
            assert await started(dbos, body) == 101
    finally:
        await bank.connection.execute(f"drop owned by {name}; drop role {name}")


async def test_a_lost_connection_is_waited_out_at_home_and_an_error_elsewhere(
    any_bank: Bank,
) -> None:
    dbos = any_bank.app()
    calls: list[int] = []

    @dbos.transaction(await any_bank.datasource())
    async def credit(connection: Any) -> int:
        calls.append(1)
        total = await add(connection, "a", 1)
        if len(calls) == 1:
            await connection.fetch("select pg_terminate_backend(pg_backend_pid())")
        return total

    @dbos.workflow(name="body")
    async def body() -> int:
        return await credit.with_options(retry=Retry(max_attempts=1))()

    async with dbos:
        if any_bank.is_elsewhere:
            with pytest.raises(StepRetriesExhaustedError) as raised:
                await started(dbos, body)
            assert isinstance(raised.value, StepRetriesExhaustedError)
            assert await any_bank.cents("a") == 100
        else:
            assert await started(dbos, body) == 101


async def test_a_function_that_always_loses_its_connection_fails_in_the_end(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_async._engine.transactions.MAX_LOSSES", 2)
    dbos = bank.app()

    @dbos.transaction(await bank.datasource())
    async def poison(connection: Any) -> None:
        await connection.fetch("select pg_terminate_backend(pg_backend_pid())")

    @dbos.workflow(name="body")
    async def body() -> None:
        await poison()

    async with dbos:
        with pytest.raises(DatabaseLostError):
            await started(dbos, body)


async def test_cancel_and_shutdown_in_the_middle_leave_nothing(any_bank: Bank) -> None:
    dbos = any_bank.app()
    begun = asyncio.Event()

    @dbos.transaction(await any_bank.datasource())
    async def credit(handle: Any) -> None:
        await add(handle, "a", 1, dbos.workflow_id)
        begun.set()
        if (await run(handle, "select count(*) from entries"))[0][0] > 0:
            await asyncio.sleep(60)

    @dbos.workflow(name="body")
    async def body() -> None:
        await credit()

    async with dbos:
        handle = await dbos.start_workflow(body.with_options(workflow_id="cancelled"))
        await begun.wait()
        await dbos.cancel_workflow("cancelled")
        with pytest.raises(Exception, match="cancelled"):
            await handle.get_result()
        begun.clear()
        await dbos.start_workflow(body.with_options(workflow_id="shut down"))
        await begun.wait()
        await dbos.shutdown(timeout=0)
    assert (await any_bank.cents("a"), await any_bank.entries()) == (100, [])


async def test_a_datasource_is_one_of_its_kind() -> None:
    datasource: Datasource[Any] = AsyncpgDatasource("postgresql://me:secret@localhost/x")
    assert "secret" not in datasource.name
    engine = create_async_engine("postgresql+asyncpg://me:secret@localhost/x")
    assert "secret" not in SQLAlchemyDatasource(engine).name
    with pytest.raises(TypeError, match="AsyncEngine"):
        SQLAlchemyDatasource(sqlalchemy.create_engine("postgresql+psycopg://x"))  # type: ignore[arg-type]
