"""`dbos-async migrate` and `reset`: from an empty database, for a role, and back."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg
import pytest
from commands import Commands
from managed import managed

from dbos_async import DBOS
from dbos_async._store import databases, schema, setup
from dbos_async.testing import PostgresServer


@pytest.fixture
async def empty(dbos_postgres: PostgresServer) -> AsyncIterator[Commands]:
    """The commands, on a database without the schema."""
    name = f"empty_{uuid4().hex}"
    await databases.ensure_database(dbos_postgres.url, name)
    yield Commands(dbos_postgres.url_of(name))
    await databases.drop_database(dbos_postgres.url, name)


async def fetch(url: str, question: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


@pytest.fixture
async def role(dbos_postgres: PostgresServer, empty: Commands) -> AsyncIterator[str]:
    """The name of a role that may do nothing, and has a name that needs quotes."""
    owner = await asyncpg.connect(empty.url)
    name = f'app "{uuid4().hex[:12]}'
    try:
        if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            pytest.skip("making roles takes a superuser")
        await owner.execute(f"create role {setup.quoted(name)} login password 'app'")
        yield name
        await owner.execute(f"drop owned by {setup.quoted(name)} cascade")
        await owner.execute(f"drop role {setup.quoted(name)}")
    finally:
        await owner.close()


async def test_a_database_without_the_schema_gets_it(empty: Commands) -> None:
    assert "`dbos-async migrate`" in await empty.refused("workflow", "list", code=3)
    done = await empty("migrate")
    assert f"is at version {schema.SCHEMA_VERSION}." in done.stdout
    assert await empty.json("workflow", "list") == []
    await empty("migrate")


async def test_a_newer_schema_is_left_alone_and_said_to_be_newer(empty: Commands) -> None:
    await empty("migrate")
    newer = schema.SCHEMA_VERSION + 1
    await fetch(empty.url, f"update dbos.dbos_async_schema set version = {newer}")
    done = await empty("migrate")
    assert f"is at version {newer}." in done.stdout
    assert f"this one's is {schema.SCHEMA_VERSION}" in done.stderr
    assert await fetch(empty.url, "select version from dbos.dbos_async_schema") == newer


async def test_printing_the_sql_needs_no_database(empty: Commands) -> None:
    printed = await empty("migrate", "--print", DBOS_SYSTEM_DATABASE_URL="")
    assert printed.stdout == schema.schema_text()
    grants = await empty("migrate", "--print", "--app-role", 'o"r', DBOS_SYSTEM_DATABASE_URL="")
    assert grants.stdout.splitlines()[0] == 'grant usage on schema dbos to "o""r";'
    assert await fetch(empty.url, "select to_regnamespace('dbos') is null")


async def test_the_printed_sql_is_what_migrate_does(empty: Commands) -> None:
    connection = await asyncpg.connect(empty.url)
    try:
        await connection.execute((await empty("migrate", "--print")).stdout)
        await schema.verify(connection)
    finally:
        await connection.close()


async def test_an_app_runs_with_what_its_role_was_given(empty: Commands, role: str) -> None:
    said = (await empty("migrate", "--app-role", role)).stdout
    assert f"The role {role} may run apps" in said
    parts = urlsplit(empty.url)
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}?{parts.query}"
    url = url.replace("://", f"://{quote(role)}:app@", 1).rstrip("?")
    async with managed(url, migrate=False) as shop:
        assert await shop.simple(2) == 4
    assert len(await Commands(url).json("workflow", "list")) == 1
    assert await Commands(url).json("doctor")


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("nobody_of_this_name", 1, "there is no role 'nobody_of_this_name'"),
        ("x; drop schema dbos cascade", 1, "there is no role"),
        ("x" * 64, 2, "is no name"),
        ("", 2, "is no name"),
    ],
    ids=["unknown", "sql", "long", "empty"],
)
async def test_a_role_that_cannot_be_is_refused(
    cli: Commands, name: str, code: int, why: str
) -> None:
    result = await cli("migrate", "--app-role", name, code=code)
    assert why in result.stderr
    assert await fetch(cli.url, "select to_regnamespace('dbos') is not null")


async def test_an_adopted_database_loses_the_indexes_that_nothing_of_ours_uses(
    empty: Commands,
) -> None:
    official = Path(sys.executable).with_name("dbos")
    command = [official, "migrate", "-s", empty.url]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    await empty("migrate")
    [note] = [each for each in await empty.json("doctor") if each["check"] == "foreign indexes"]
    assert note["state"] == "note"
    printed = (await empty("migrate", "--print", "--drop-foreign-indexes")).stdout.splitlines()
    assert "drop index concurrently if exists dbos.idx_workflow_status_in_flight_v2;" in printed
    dropped = (await empty("migrate", "--drop-foreign-indexes")).stdout
    assert dropped.count(" is dropped.") == len(printed) == 21
    connection = await asyncpg.connect(empty.url)
    try:
        await schema.verify(connection)
        assert await schema.find_foreign_indexes(connection) == []
    finally:
        await connection.close()
    async with managed(empty.url) as shop:
        assert await shop.simple(2) == 4


# Reset


async def fill(url: str) -> None:
    async with managed(url) as shop:
        await shop.simple(1)
        await shop.mail.enqueue(shop.simple.with_options(delay=3600), 1)


async def test_nothing_is_deleted_before_it_was_said(cli: Commands) -> None:
    await fill(cli.url)
    refusal = await cli.refused("reset")
    assert "2 workflows, 1 of them not ended: add --yes" in refusal
    assert len(await cli.json("workflow", "list")) == 2


@pytest.mark.parametrize("how", [[], ["--drop"]])
async def test_everything_is_deleted_once_it_was(cli: Commands, how: list[str]) -> None:
    await fill(cli.url)
    done = await cli("reset", "--yes", *how)
    assert "2 workflows, 1 of them not ended" in done.stdout
    if how:
        assert "migrate" in await cli.refused("workflow", "list", code=3)
        assert "nothing to reset" in (await cli("reset", "--yes")).stdout
        await cli("migrate")
    assert await cli.json("workflow", "list") == []
    assert await cli.json("queue", "list") == []
    assert await cli.json("versions") == []
    await fill(cli.url)


async def test_while_processes_run_nothing_is_deleted_but_by_force(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        await shop.simple(1)
        refusal = await cli.refused("reset", "--yes")
        assert shop.dbos.executor_id is not None
        assert shop.dbos.executor_id in refusal
        assert "1 workflow, 0 of them not ended; and processes run workflows there, 1" in refusal
        assert len(await cli.json("workflow", "list")) == 1
    await cli("reset", "--yes", "--force")
    assert await cli.json("workflow", "list") == []


async def test_the_password_is_in_nothing_that_is_printed(
    cli: Commands, dbos_postgres: PostgresServer
) -> None:
    parts = urlsplit(cli.url)
    secret = cli.url.replace(parts.netloc, "postgres:canary@" + parts.netloc.rpartition("@")[2], 1)
    for command in (["migrate"], ["reset"], ["reset", "--yes"], ["doctor"]):
        result = await Commands(secret)(*command, code=1 if command == ["reset"] else 0)
        assert "canary" not in result.output
    nowhere = "postgresql://somebody:canary@127.0.0.1:1/nothing"
    for command in (["migrate"], ["reset"], ["workflow", "list"], ["queue", "list"]):
        assert "canary" not in await cli.refused(*command, "-s", nowhere, code=3)


async def test_apps_of_other_names_are_no_obstacle(cli: Commands) -> None:
    async with DBOS("other", cli.url, app_version="1"):
        assert "1 of them" in await cli.refused("reset", "--yes")
