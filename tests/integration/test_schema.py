"""The schema: installed by any number of processes, adopted from the official library, verified."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from dbos_async import errors
from dbos_async._store import schema
from dbos_async.testing import PostgresServer

Dial = Callable[[], Awaitable[Any]]

OFFICIAL_APP = """
import sys
from dbos import DBOS

@DBOS.step()
def double(number: int) -> int:
    return 2 * number

@DBOS.workflow()
def shop(number: int) -> int:
    DBOS.set_event("progress", "half")
    DBOS.write_stream("lines", "first")
    return double(number) + 1

DBOS(config={"name": "shop", "system_database_url": sys.argv[1], "run_admin_server": False})
DBOS.launch()
DBOS.register_queue("mail", concurrency=3)
for number in range(3):
    handle = DBOS.start_workflow(shop, number)
    DBOS.send(handle.workflow_id, "hello", "topic")
    handle.get_result()
DBOS.destroy()
"""

OFFICIAL_CLIENT = """
import json, sys
from dbos import DBOSClient

client = DBOSClient(system_database_url=sys.argv[1])
print(json.dumps([
    [w.status, w.name, w.input["args"], w.output, len(client.list_workflow_steps(w.workflow_id))]
    for w in client.list_workflows(sort_desc=False)
]))
client.destroy()
"""

COLUMNS = """
select format('%s.%s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
              a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where c.relnamespace = to_regnamespace('dbos') and c.relkind = 'r'
   and a.attnum > 0 and not a.attisdropped
"""
CONSTRAINTS = """
select format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
  from pg_constraint
 where connamespace = to_regnamespace('dbos') and contype <> 'n'
"""
SIGNATURES = """
select format('%s(%s) %s', proname, pg_get_function_arguments(oid), prorettype::regtype)
  from pg_proc
 where pronamespace = to_regnamespace('dbos') and prorettype <> 'trigger'::regtype
"""
INDEXES = "select indexdef from pg_indexes where schemaname = 'dbos'"


@asynccontextmanager
async def empty_database(
    server: PostgresServer, options: str = ""
) -> AsyncIterator[tuple[str, Dial]]:
    """A new database without our schema: its URL, and how to connect to it."""
    name = f"schema_{uuid4().hex}"
    url = server.url_of(name)
    connections = []

    async def dial() -> Any:
        connection = await asyncpg.connect(url)
        connections.append(connection)
        return connection

    maker = await asyncpg.connect(server.url)
    try:
        await maker.execute(f"create database {name} template template0 {options}")
        yield url, dial
        for connection in connections:
            await connection.close(timeout=5)
    finally:
        await maker.execute(f"drop database if exists {name} with (force)")
        await maker.close()


@pytest.fixture
async def dial(dbos_postgres: PostgresServer) -> AsyncIterator[Dial]:
    """Connects to an empty database."""
    async with empty_database(dbos_postgres) as (_, dial):
        yield dial


@pytest.fixture
async def installed(dial: Dial) -> Any:
    """A connection to a database with the schema."""
    connection = await dial()
    await schema.install(connection)
    return connection


@pytest.fixture
async def role(installed: Any) -> AsyncIterator[str]:
    """A role that may do nothing yet. `set role` makes a connection it."""
    if not await installed.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("making roles and becoming them takes a superuser")
    name = f"schema_role_{uuid4().hex}"
    await installed.execute(f"create role {name}")
    yield name
    await installed.execute(f"reset role; drop owned by {name} cascade; drop role {name}")


async def strings(connection: Any, statement: str) -> set[str]:
    return {row[0] for row in await connection.fetch(statement)}


async def outdate(connection: Any) -> None:
    """Make the database look like one that has tables, but not all that is ours."""
    await connection.execute("""
        alter table dbos.workflow_status drop column enqueue_order;
        drop index dbos.dbos_async_created_at;
        drop table dbos.dbos_async_schema
    """)


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # Postgres tells nobody who waits
            await asyncio.sleep(0.01)


# Installing


async def test_an_empty_database_gets_all_that_verify_asks_for(dial: Dial) -> None:
    connection = await dial()
    await schema.install(connection)
    await schema.verify(connection)
    assert await connection.fetchval(schema.FETCH_VERSION) == schema.SCHEMA_VERSION
    assert await connection.fetchval(schema.FETCH_OFFICIAL_VERSION) == schema.OFFICIAL_VERSION


async def test_ten_processes_install_at_once(dial: Dial) -> None:
    connections = [await dial() for _ in range(10)]
    await asyncio.gather(*map(schema.install, connections))
    await schema.verify(connections[0])


async def test_ten_processes_bring_old_tables_up_to_date_at_once(dial: Dial) -> None:
    connections = [await dial() for _ in range(10)]
    await schema.install(connections[0])
    await outdate(connections[0])
    await asyncio.gather(*map(schema.install, connections))
    await schema.verify(connections[0])


async def test_the_version_in_the_code_is_the_one_in_the_file(installed: Any) -> None:
    await installed.execute("delete from dbos.dbos_async_schema")
    await installed.execute(schema.parts_of(schema.schema_text()).version)
    assert await installed.fetchval(schema.FETCH_VERSION) == schema.SCHEMA_VERSION


async def test_an_up_to_date_schema_sees_no_ddl(dial: Dial, installed: Any) -> None:
    read_only = await dial()
    await read_only.execute("set default_transaction_read_only = on")
    await schema.install(read_only)


async def test_an_up_to_date_install_does_not_wait_for_anybody(dial: Dial, installed: Any) -> None:
    async with installed.transaction():
        await installed.execute("lock table dbos.workflow_status, dbos.operation_outputs")
        async with asyncio.timeout(20):
            await schema.install(await dial())


async def test_what_was_dropped_is_made_again(installed: Any) -> None:
    await installed.execute("drop table dbos.queues; drop index dbos.dbos_async_line")
    with pytest.raises(errors.ConfigurationError, match="queues"):
        await schema.verify(installed)
    await schema.install(installed)
    await schema.verify(installed)


async def test_the_file_may_be_applied_by_hand_and_again(dial: Dial) -> None:
    connection = await dial()
    await connection.execute(schema.schema_text())
    await connection.execute(schema.schema_text())
    await schema.verify(connection)


async def test_a_newer_schema_is_left_alone(installed: Any) -> None:
    await installed.execute("update dbos.dbos_async_schema set version = 99")
    await installed.execute("update dbos.dbos_migrations set version = 130")
    await schema.install(installed)
    await schema.verify(installed)
    await installed.execute(schema.schema_text())
    assert await installed.fetchval(schema.FETCH_VERSION) == 99
    assert await installed.fetchval(schema.FETCH_OFFICIAL_VERSION) == 130


async def test_an_open_transaction_delays_the_install_until_it_ends(
    dial: Dial, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", 0.05)
    await outdate(installed)
    reader = await dial()
    async with reader.transaction():
        await reader.execute("select from dbos.workflow_status")
        late = asyncio.create_task(schema.install(installed))
        await until(lambda: waits_for(reader))
        assert not late.done()
    await late
    await schema.verify(installed)


async def waits_for(reader: Any) -> bool:
    """Whether somebody waits for the lock that `reader` holds."""
    return bool(
        await reader.fetchval(
            "select exists (select from pg_locks where not granted"
            " and pg_backend_pid() = any (pg_blocking_pids(pid)))"
        )
    )


async def test_an_install_that_cannot_get_a_lock_gives_up_and_says_who_holds_it(
    dial: Dial, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", 0.05)
    await outdate(installed)
    reader = await dial()
    async with reader.transaction():
        await reader.execute("select from dbos.workflow_status")
        with pytest.raises(errors.DatabaseError) as caught:
            await schema.install(installed, patience=0.1)
    assert f"session {reader.get_server_pid()}" in str(caught.value)
    assert "AccessShareLock on dbos.workflow_status" in str(caught.value)


async def test_an_index_build_gives_up_too_and_leaves_nothing_that_the_next_trips_over(
    dial: Dial, installed: Any
) -> None:
    await outdate(installed)
    await installed.execute("alter table dbos.workflow_status add column enqueue_order bigint")
    writer = await dial()
    async with writer.transaction():
        await writer.execute("lock table dbos.workflow_status in row exclusive mode")
        with pytest.raises(
            errors.DatabaseError, match=r"RowExclusiveLock on dbos\.workflow_status"
        ):
            await schema.install(installed, patience=0.3)
    await schema.install(installed)
    await schema.verify(installed)
    assert await installed.fetchval("show lock_timeout") == "0"


async def test_an_invalid_leftover_of_a_build_is_built_again(installed: Any) -> None:
    await installed.execute("drop index dbos.dbos_async_step_key")
    await installed.execute("""
        insert into dbos.operation_outputs (workflow_uuid, function_id, step_key)
        values ('w', 1, 'a'), ('w', 2, 'a')
    """)
    with pytest.raises(asyncpg.UniqueViolationError):
        await installed.execute("""
            create unique index concurrently dbos_async_step_key
                on dbos.operation_outputs (workflow_uuid, step_key) where step_key is not null
        """)
    with pytest.raises(errors.ConfigurationError, match="lacks index dbos_async_step_key:"):
        await schema.verify(installed)
    await installed.execute("delete from dbos.operation_outputs where function_id = 2")
    await installed.execute("drop table dbos.dbos_async_schema")
    await schema.install(installed)
    await schema.verify(installed)


async def test_a_process_that_dies_while_installing_does_not_lock_the_others_out(
    dial: Dial,
) -> None:
    dying = await dial()
    assert await dying.fetchval(schema.TAKE_TURN)
    late = asyncio.create_task(schema.install(await dial()))
    dying.terminate()
    async with asyncio.timeout(10):
        await late


async def test_an_install_gives_up_when_another_never_ends(
    dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "TURN_PATIENCE", 0.1)
    assert await (await dial()).fetchval(schema.TAKE_TURN)
    with pytest.raises(errors.DatabaseError, match="another process has been installing"):
        await schema.install(await dial())


# Verifying


async def test_the_names_read_from_the_file_are_those_that_postgres_has(installed: Any) -> None:
    expected = schema.names_of(schema.schema_text())
    found = {schema.Name(*row) for row in await installed.fetch(schema.FETCH_NAMES)}
    of_constraints = await strings(
        installed,
        "select conname::text from pg_constraint where connamespace = to_regnamespace('dbos')",
    )
    assert len(expected) == len(set(expected))
    assert set(expected) == {name for name in found if name.name not in of_constraints}


async def test_verify_says_exactly_what_is_missing(installed: Any) -> None:
    await installed.execute("""
        drop table dbos.streams;
        alter table dbos.queues drop column concurrency;
        drop index dbos.dbos_async_pending;
        drop function dbos.send_message;
        drop sequence dbos.workflow_order
    """)
    with pytest.raises(errors.ConfigurationError) as caught:
        await schema.verify(installed)
    assert str(caught.value).startswith(
        "the schema dbos lacks table streams, column queues.concurrency, "
        "index dbos_async_pending, function send_message, sequence workflow_order: "
    )


async def test_verify_says_that_there_is_no_schema_and_makes_none(dial: Dial) -> None:
    connection = await dial()
    with pytest.raises(errors.ConfigurationError, match=r"no schema dbos .* migrate=True"):
        await schema.verify(connection)
    assert await connection.fetchval("select to_regnamespace('dbos')") is None


async def test_verify_says_which_version_is_there_and_which_is_needed(installed: Any) -> None:
    await installed.execute("update dbos.dbos_async_schema set version = 0")
    with pytest.raises(errors.ConfigurationError, match=r"at version 0, but .* needs \d+"):
        await schema.verify(installed)


# Rights


async def test_a_role_with_dml_only_launches_and_works(installed: Any, role: str) -> None:
    await installed.execute(f"""
        grant usage on schema dbos to {role};
        grant select, insert, update, delete on all tables in schema dbos to {role};
        grant usage on all sequences in schema dbos to {role};
        set role {role}
    """)
    await schema.install(installed)
    await schema.verify(installed)
    workflow_id = await installed.fetchval("select dbos.enqueue_workflow('w', 'q')")
    await installed.execute("select dbos.send_message($1, '1')", workflow_id)
    assert await installed.fetchval("select nextval('dbos.workflow_order')") == 1
    await installed.execute("delete from dbos.workflow_status")


async def test_a_role_without_rights_on_the_schema_is_told_what_to_grant(
    installed: Any, role: str
) -> None:
    await installed.execute(f"set role {role}")
    with pytest.raises(errors.ConfigurationError, match=f"role {role} cannot use .* grant it"):
        await schema.install(installed)


async def test_a_role_that_may_not_create_is_told_the_ways_out(installed: Any, role: str) -> None:
    await installed.execute(f"drop schema dbos cascade; set role {role}")
    with pytest.raises(errors.ConfigurationError, match=f"role {role} may not install") as caught:
        await schema.install(installed)
    assert "grant create on database" in str(caught.value)
    assert "schema.sql with psql" in str(caught.value)


async def test_a_role_that_does_not_own_old_tables_is_told_so(installed: Any, role: str) -> None:
    await outdate(installed)
    await installed.execute(f"grant all on schema dbos to {role}; set role {role}")
    with pytest.raises(errors.ConfigurationError, match=r"must be owner of|permission denied"):
        await schema.install(installed)


@pytest.mark.parametrize("granted", ["create on database", "create on schema"])
async def test_an_ordinary_role_installs(installed: Any, role: str, granted: str) -> None:
    database = await installed.fetchval("select quote_ident(current_database())")
    await installed.execute("drop schema dbos cascade")
    if granted == "create on database":
        await installed.execute(f"grant create on database {database} to {role}")
    else:
        await installed.execute(f"create schema dbos; grant usage, create on schema dbos to {role}")
    await installed.execute(f"set role {role}")
    await schema.install(installed)
    await schema.verify(installed)


# Adopting what the official library made


@pytest.fixture(scope="module")
def official_app() -> Callable[[str, str], str]:
    """Runs a program that uses the official library; what it printed."""
    pytest.importorskip("dbos", reason="the official library is a development dependency")

    def run(program: str, url: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, url],
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
async def official(
    dbos_postgres: PostgresServer, official_app: Callable[[str, str], str]
) -> AsyncIterator[tuple[str, Dial]]:
    """A database that the official library made and worked in: its URL, and how to connect."""
    async with empty_database(dbos_postgres) as (url, dial):
        await asyncio.to_thread(official_app, OFFICIAL_APP, url)
        yield url, dial


async def tables(connection: Any) -> dict[str, str]:
    """The tables of the schema, and the columns of each as a select list."""
    return dict(
        await connection.fetch("""
            select table_name::text, string_agg(quote_ident(column_name), ', ')
              from information_schema.columns where table_schema = 'dbos' group by 1
        """)
    )


async def rows(connection: Any, tables: dict[str, str]) -> dict[str, set[str]]:
    """Every row of the `tables`, in these columns."""
    return {
        table: await strings(
            connection,
            f"select to_jsonb(t)::text from (select {columns} from dbos.{table}) t",
        )
        for table, columns in tables.items()
    }


async def test_an_official_database_is_adopted_without_loss(
    official: tuple[str, Dial], official_app: Callable[[str, str], str]
) -> None:
    url, dial = official
    connection = await dial()
    theirs, indexes = await tables(connection), await strings(connection, INDEXES)
    before = await rows(connection, theirs)
    read_before = await asyncio.to_thread(official_app, OFFICIAL_CLIENT, url)

    await asyncio.gather(*[schema.install(await dial()) for _ in range(5)])

    await schema.verify(connection)
    assert await rows(connection, theirs) == before
    assert all(before[table] for table in ("workflow_status", "operation_outputs", "queues"))
    assert indexes < await strings(connection, INDEXES)
    read = await asyncio.to_thread(official_app, OFFICIAL_CLIENT, url)
    assert read == read_before
    assert [row[:4] for row in json.loads(read)] == [
        ["SUCCESS", "shop", [number], 2 * number + 1] for number in range(3)
    ]


async def test_the_official_library_goes_on_working_in_an_adopted_database(
    official: tuple[str, Dial], official_app: Callable[[str, str], str]
) -> None:
    url, dial = official
    connection = await dial()
    await schema.install(connection)
    await asyncio.to_thread(official_app, OFFICIAL_APP, url)
    assert await connection.fetchval("select count(*) from dbos.workflow_status") == 6


async def test_the_official_library_works_in_a_database_that_we_made(
    dbos_database_url: str, official_app: Callable[[str, str], str]
) -> None:
    await asyncio.to_thread(official_app, OFFICIAL_APP, dbos_database_url)
    read = json.loads(await asyncio.to_thread(official_app, OFFICIAL_CLIENT, dbos_database_url))
    assert [row[3] for row in read] == [1, 3, 5]


@pytest.mark.parametrize("what", [COLUMNS, CONSTRAINTS, SIGNATURES])
async def test_all_that_the_official_tables_have_ours_have_alike(
    official: tuple[str, Dial], installed: Any, what: str
) -> None:
    _, dial_official = official
    theirs = await strings(await dial_official(), what)
    ours = await strings(installed, what)
    assert theirs
    assert theirs - ours == set()


async def test_our_own_columns_ask_nothing_of_other_clients(
    official: tuple[str, Dial], installed: Any
) -> None:
    _, dial_official = official
    required = COLUMNS + "and a.attnotnull and not a.atthasdef"
    theirs = await strings(await dial_official(), required)
    ours = await strings(installed, required + " and c.relname not like 'dbos_async_%'")
    assert ours == theirs


@pytest.mark.parametrize("left", ["version 108", "no version", "no tables"])
async def test_an_older_official_database_is_refused_untouched(installed: Any, left: str) -> None:
    await outdate(installed)
    match left:
        case "version 108":
            await installed.execute("update dbos.dbos_migrations set version = 108")
        case "no version":
            await installed.execute("drop table dbos.dbos_migrations")
        case _:
            await installed.execute("drop schema dbos cascade; create schema dbos")
            await installed.execute("create table dbos.dbos_migrations as select 4::bigint version")
    before = await strings(installed, COLUMNS)
    with pytest.raises(errors.ConfigurationError, match=r"older DBOS Transact .*`dbos migrate`"):
        await schema.install(installed)
    assert await strings(installed, COLUMNS) == before


async def test_an_adopted_table_that_lacks_a_column_is_not_called_complete(installed: Any) -> None:
    await outdate(installed)
    await installed.execute("alter table dbos.workflow_status drop column inputs cascade")
    with pytest.raises(errors.ConfigurationError, match=r"lacks .*column workflow_status\.inputs"):
        await schema.install(installed)


# The functions for SQL clients


async def test_enqueue_workflow_makes_the_documented_row(installed: Any) -> None:
    workflow_id = await installed.fetchval("""
        select dbos.enqueue_workflow(
            'checkout', 'orders', array['1'::json, '"a"'], '{"x": null}',
            class_name => 'Shop', config_name => 'eu', workflow_id => 'o-1', app_version => 'v1',
            timeout_ms => 1000, deadline_epoch_ms => 5000, deduplication_id => 'd', priority => 7,
            queue_partition_key => 'p', authenticated_user => 'u', authenticated_roles => '["r"]',
            delay_until_epoch_ms => 2500, application_name => 'shop')
    """)
    row = await installed.fetchrow("select * from dbos.workflow_status")
    assert workflow_id == "o-1"
    assert row["owner_xid"]
    assert row["created_at"] == row["updated_at"]
    untimed = ("owner_xid", "created_at", "updated_at")
    assert {key: value for key, value in row.items() if value and key not in untimed} == {
        "workflow_uuid": "o-1",
        "status": "DELAYED",
        "name": "checkout",
        "class_name": "Shop",
        "config_name": "eu",
        "queue_name": "orders",
        "application_version": "v1",
        "application_name": "shop",
        "workflow_timeout_ms": 1000,
        "workflow_deadline_epoch_ms": 5000,
        "deduplication_id": "d",
        "priority": 7,
        "queue_partition_key": "p",
        "authenticated_user": "u",
        "authenticated_roles": '["r"]',
        "delay_until_epoch_ms": 2500,
        "serialization": "portable_json",
    }
    inputs = await installed.fetchval("select inputs from dbos.workflow_input")
    assert json.loads(inputs) == {"positionalArgs": [1, "a"], "namedArgs": {"x": None}}


async def test_enqueue_workflow_needs_no_more_than_two_names(installed: Any) -> None:
    workflow_id = await installed.fetchval("select dbos.enqueue_workflow('w', 'q', null, null)")
    row = await installed.fetchrow(
        "select * from dbos.workflow_status join dbos.workflow_input using (workflow_uuid)"
    )
    assert row["workflow_uuid"] == workflow_id
    assert (row["status"], row["priority"], row["recovery_attempts"]) == ("ENQUEUED", 0, 0)
    assert row["application_version"] is None
    assert json.loads(row[-2]) == {"positionalArgs": [], "namedArgs": {}}


async def test_enqueue_workflow_leaves_an_id_that_is_taken_as_it_is(installed: Any) -> None:
    for number in (1, 2):
        returned = await installed.fetchval(
            "select dbos.enqueue_workflow('w' || $1, 'q', array[$1::json], workflow_id => 'id')",
            str(number),
        )
        assert returned == "id"
    [row] = await installed.fetch("""
        select w.name, i.inputs
          from dbos.workflow_status w join dbos.workflow_input i using (workflow_uuid)
    """)
    assert row["name"] == "w1"
    assert json.loads(row["inputs"]) == {"positionalArgs": [1], "namedArgs": {}}


async def test_enqueue_workflow_refuses_a_deduplication_id_that_is_held(installed: Any) -> None:
    call = "select dbos.enqueue_workflow('w', 'q', deduplication_id => 'd')"
    await installed.execute(call)
    with pytest.raises(asyncpg.UniqueViolationError, match="DBOS queue duplicated"):
        await installed.execute(call)
    assert await installed.fetchval("select count(*) from dbos.workflow_input") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "'', 'q'",
        "null, 'q'",
        "'w', ''",
        "'w', null",
        "'w', 'q', workflow_id => ''",
        "'w', 'q', named_args => '[1]'",
        "'w', 'q', delay_until_epoch_ms => -1",
        "'w', 'q', timeout_ms => -1",
        "'w', 'q', priority => -1",
    ],
)
async def test_enqueue_workflow_refuses_nonsense(installed: Any, arguments: str) -> None:
    with pytest.raises(asyncpg.RaiseError):
        await installed.execute(f"select dbos.enqueue_workflow({arguments})")
    assert await installed.fetchval("select count(*) from dbos.workflow_status") == 0


async def test_send_message_delivers_once_per_message_id(installed: Any) -> None:
    await installed.execute("select dbos.enqueue_workflow('w', 'q', workflow_id => 'w')")
    for _ in range(2):
        await installed.execute("""select dbos.send_message('w', '{"a": 1}', 'topic', 'm')""")
    await installed.execute("select dbos.send_message('w', '2')")
    rows = await installed.fetch("""
        select destination_uuid, topic, message, serialization, consumed
          from dbos.notifications order by message
    """)
    assert [tuple(row) for row in rows] == [
        ("w", "__null__topic__", "2", "portable_json", False),
        ("w", "topic", '{"a": 1}', "portable_json", False),
    ]


async def test_send_message_refuses_a_workflow_that_does_not_exist(installed: Any) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="DBOS non-existent workflow"):
        await installed.execute("select dbos.send_message('nobody', '1')")


async def test_deleting_a_workflow_takes_what_refers_to_it_along(installed: Any) -> None:
    await installed.execute("""
        select dbos.enqueue_workflow('w', 'q', workflow_id => 'w');
        select dbos.send_message('w', '1');
        insert into dbos.workflow_events values ('w', 'k', '1');
        insert into dbos.workflow_events_history values ('w', 1, 'k', '1');
        insert into dbos.streams values ('w', 'k', '1', 0);
        delete from dbos.workflow_status
    """)
    for table in ("notifications", "workflow_events", "workflow_events_history", "streams"):
        assert await installed.fetchval(f"select count(*) from dbos.{table}") == 0


# The server, and the package


async def test_a_database_in_another_encoding_is_refused(dbos_postgres: PostgresServer) -> None:
    latin1 = "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"
    async with empty_database(dbos_postgres, latin1) as (_, dial):
        with pytest.raises(errors.ConfigurationError, match=r"encoding is LATIN1, .* needs UTF8"):
            await schema.check_server(await dial())


async def test_an_old_server_is_refused() -> None:
    old: Any = SimpleNamespace(get_server_version=lambda: SimpleNamespace(major=13))
    with pytest.raises(errors.ConfigurationError, match=r"Postgres 13, but .* needs 14 or newer"):
        await schema.check_server(old)


async def test_this_server_is_accepted(installed: Any) -> None:
    await schema.check_server(installed)


def test_the_package_carries_the_file_of_the_top_level() -> None:
    top = Path(__file__).parents[2]
    link = top / "dbos_async" / "schema.sql"
    assert link.readlink() == Path("../schema.sql")
    assert schema.schema_text() == (top / "schema.sql").read_text("utf-8")
