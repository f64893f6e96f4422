"""Transaction steps on another database: the table there, what is believed, what is deleted."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import bank as banks
import pytest
from bank import KINDS, Bank, add, run, soon

from dbos_async import DBOS, AsyncpgDatasource, ConfigurationError
from dbos_async._engine.tidying import Tidier
from dbos_async.testing import PostgresServer, crash_at


@pytest.fixture
async def bank(dbos_database_url: str, dbos_postgres: PostgresServer) -> AsyncIterator[Bank]:
    async with banks.opened(dbos_database_url, dbos_postgres, is_elsewhere=True) as bank:
        yield bank


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tidies up."""

    async def nothing(*_: Any) -> None: ...

    monkeypatch.setattr(Tidier, "_delete", nothing)
    monkeypatch.setattr(Tidier, "_sweep", nothing)


class App:
    """One life of an app that credits an account."""

    def __init__(self, bank: Bank, datasource: Any) -> None:
        self.calls = 0
        self.dbos = dbos = bank.app()

        @dbos.transaction(datasource, name="credit")
        async def credit(handle: Any, cents: int) -> int:
            self.calls += 1
            return await add(handle, "a", cents, dbos.workflow_id)

        @dbos.step(name="plain")
        async def plain() -> None: ...

        @dbos.workflow(name="body")
        async def body() -> list[int]:
            first = await credit(1)
            await plain()
            return [first, await credit(10)]

        self.body = body.with_options(workflow_id="w")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_table_is_made_once_and_rows_go_once_their_steps_are_recorded(
    bank: Bank, kind: str
) -> None:
    for total in (101, 112):
        app = App(bank, await bank.datasource(kind))
        async with app.dbos:
            handle = await app.dbos.start_workflow(app.body.with_options(workflow_id=str(uuid4())))
            assert await handle.get_result() == [total, total + 10]
            await soon(lambda: is_empty(bank))


async def is_empty(bank: Bank) -> bool:
    return await bank.outputs() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("lazy")
async def test_what_was_committed_before_a_crash_is_not_done_again(bank: Bank, kind: str) -> None:
    app = App(bank, await bank.datasource(kind))
    with crash_at(2, before=True) as crash:  # the start is 1, the first step's record 2
        async with app.dbos:
            await app.dbos.start_workflow(app.body)
            await asyncio.Event().wait()
    assert crash.happened
    assert await bank.outputs() == ["w 1"]
    again = App(bank, await bank.datasource(kind))
    async with again.dbos:
        handle = await again.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=20) == [101, 111]
    assert (again.calls, await bank.entries()) == (1, ["w", "w"])


@pytest.mark.usefixtures("lazy")
async def test_what_runs_again_after_a_rewind_is_done_again(bank: Bank) -> None:
    app = App(bank, await bank.datasource())
    async with app.dbos:
        handle = await app.dbos.start_workflow(app.body)
        assert await handle.get_result() == [101, 111]
        again = await app.dbos.rewind_workflow("w", from_step=2)
        assert await again.get_result(timeout=20) == [101, 121]
        again = await app.dbos.rewind_workflow("w")
        assert await again.get_result(timeout=20) == [122, 132]
        fork = await app.dbos.fork_workflow("w", from_step=2)
        assert await fork.get_result(timeout=20) == [122, 142]


@pytest.mark.usefixtures("lazy")
async def test_an_id_that_was_deleted_and_used_again_is_another_workflow(bank: Bank) -> None:
    app = App(bank, await bank.datasource())
    async with app.dbos:
        for last in (111, 122):
            handle = await app.dbos.start_workflow(app.body)
            assert await handle.get_result() == [last - 10, last]
            await app.dbos.delete_workflow("w")


async def test_a_sweep_deletes_what_nobody_needs_and_keeps_the_rest(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(bank, await bank.datasource())
    with crash_at(2, before=True):
        async with app.dbos:
            await app.dbos.start_workflow(app.body)
            await asyncio.Event().wait()
    [row] = await bank.connection.fetch("select workflow_id, step_id from dbos.datasource_outputs")
    ours = row["step_id"].partition("@")[2]
    system = ours.partition(".")[0]
    other = await bank.connection.fetch(
        """
        insert into dbos.datasource_outputs (workflow_id, step_id)
        select 'gone', n || '@' || $1 from generate_series(1, 1500) n
        union all values ('w', '1@' || $2 || '.an earlier one'), ('w', '1@another system.x'),
                         ('official', '1')
        returning 1
    """,
        ours,
        system,
    )
    assert len(other) == 1503
    connection = await asyncpg.connect(bank.url)
    await connection.execute("update dbos.workflow_status set status = 'CANCELLED'")
    monkeypatch.setattr(Tidier, "interval", 0.1)
    kept = ["official 1", "w 1", "w 1"]
    swept = App(bank, await bank.datasource())

    async def is_swept() -> bool:
        return await bank.outputs() == kept

    async with swept.dbos:
        await soon(is_swept)
        handle = await swept.dbos.resume_workflow("w")
        kept = ["official 1", "w 1"]
        assert await handle.get_result(timeout=20) == [101, 111]
        await soon(is_swept)
    await connection.close()
    assert swept.calls == 1


async def test_a_role_that_may_not_create_the_table_is_given_the_sql(bank: Bank) -> None:
    name = f"teller_{uuid4().hex[:12]}"
    await bank.connection.execute(f"""
        create role {name} login password '{name}';
        grant all on accounts, entries to {name}
    """)
    url = f"postgresql://{name}:{name}@{bank.accounts_url.partition('@')[2]}"
    try:
        with pytest.raises(ConfigurationError, match="may not create") as raised:
            await App(bank, AsyncpgDatasource(url)).dbos.launch()
        _, _, text = str(raised.value).partition("as one that may:\n")
        await bank.connection.execute(text.split("grant")[0])
        with pytest.raises(ConfigurationError, match="grant usage on schema dbos") as raised:
            await App(bank, AsyncpgDatasource(url)).dbos.launch()
        await bank.connection.execute(text.replace("the_role", name))
        app = App(bank, AsyncpgDatasource(url))
        async with app.dbos:
            handle = await app.dbos.start_workflow(app.body)
            assert await handle.get_result() == [101, 111]
            await soon(lambda: is_empty(bank))
    finally:
        await bank.connection.execute(f"drop owned by {name}; drop role {name}")


async def test_a_table_with_the_official_types_is_refused(bank: Bank) -> None:
    await bank.connection.execute("""
        create schema dbos;
        create table dbos.datasource_outputs (
            workflow_id text not null, step_id int4 not null, output text, error text,
            serialization text, created_at bigint not null, primary key (workflow_id, step_id))
    """)
    with pytest.raises(ConfigurationError, match=r"step_id integer.*official library"):
        await App(bank, await bank.datasource()).dbos.launch()


async def test_processes_that_launch_at_once_make_one_table(bank: Bank) -> None:
    apps = [App(bank, await bank.datasource()) for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        for app in apps:
            group.create_task(app.dbos.launch())
    for app in apps:
        await app.dbos.shutdown(timeout=0)
    assert await is_empty(bank)


async def test_a_row_commits_with_the_users_rows(bank: Bank) -> None:
    dbos = DBOS("bank", bank.url, app_version="1")
    seen: list[Any] = []

    @dbos.transaction(await bank.datasource())
    async def credit(handle: Any) -> None:
        seen.append(await run(handle, "select txid_current()::text"))

    @dbos.workflow(name="body")
    async def body() -> None:
        await credit()

    await bank.connection.execute("""
        create schema dbos;
        create table dbos.datasource_outputs (
            workflow_id text not null, step_id text not null, output text, error text,
            serialization text, created_at bigint not null default 0,
            primary key (workflow_id, step_id));
        create table noted (id text);
        create function note() returns trigger language plpgsql as
        'begin insert into noted values (txid_current()::text); return null; end';
        create trigger note after insert on dbos.datasource_outputs
        for each row execute function note()
    """)
    async with dbos:
        await body()
    assert [[tuple(row)] for row in await bank.connection.fetch("select id from noted")] == seen
