"""The plugin: a database per test, whichever way a project runs its async tests."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from dbos_async._store import databases
from dbos_async.testing import PORTS, EmbeddedServer, PostgresServer

OPTIONS = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:anyio", "-W", "error")
USES = """
import asyncio, asyncpg

async def use(url):
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select count(*) from dbos.workflow_status") == 0
    await connection.execute("create table mine ()")
    await connection.close()

def test_one(dbos_database_url):
    asyncio.run(use(dbos_database_url))

def test_two(dbos_database_url):
    asyncio.run(use(dbos_database_url))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.running(tmp_path / "private") as server:
        yield server


async def test_a_test_gets_a_database_with_the_schema(dbos_database_url: str) -> None:
    connection = await asyncpg.connect(dbos_database_url)
    assert await connection.fetchval("select to_regclass('dbos.workflow_status') is not null")
    assert await connection.fetchval("show fsync") == "on"
    await connection.close()


@pytest.mark.parametrize("run", [1, 2])
async def test_every_test_gets_a_database_of_its_own(dbos_database_url: str, run: int) -> None:
    connection = await asyncpg.connect(dbos_database_url)
    await connection.execute("create table mine ()")
    await connection.close()


async def test_a_database_goes_away_while_somebody_is_connected(
    dbos_postgres: PostgresServer,
) -> None:
    await databases.ensure_database(dbos_postgres.url, "busy")
    left_open = await asyncpg.connect(dbos_postgres.url_of("busy"))
    await databases.drop_database(dbos_postgres.url, "busy")
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await left_open.fetchval("select 1")
    left_open.terminate()


def test_a_project_without_async_plugins_can_use_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES)
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(passed=2)


def test_the_workers_of_xdist_can_use_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES)
    pytester.runpytest_subprocess(*OPTIONS, "-n", "2").assert_outcomes(passed=2)


def test_a_run_leaves_no_server_behind(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DBOS_TEST_RUN", "DBOS_TEST_DATABASE_URL", "DBOS_TEST_POSTGRES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(pytester.path))
    pytester.makepyfile(USES)
    pytester.runpytest_subprocess(*OPTIONS, "-n", "2").assert_outcomes(passed=2)
    assert not list(pytester.path.glob("dbos-test-*"))


def test_a_project_that_does_not_use_it_starts_no_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(pytester.path))
    pytester.makepyfile("def test_nothing(): pass")
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=1)
    assert not list(pytester.path.glob("dbos-test-*"))


def test_containers_are_skipped_with_a_reason_where_no_engine_answers(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBOS_TEST_DATABASE_URL", raising=False)
    monkeypatch.setenv("DBOS_TEST_POSTGRES", "testcontainers")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/none.sock")
    pytester.makepyfile(USES)
    result = pytester.runpytest_subprocess(*OPTIONS, "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*no Docker engine answers*"])


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_private_server_can_be_stopped_and_started(server: EmbeddedServer, mode: str) -> None:
    assert str(server.data).endswith("private/postgres")
    assert int(server.url.rpartition(":")[2].partition("/")[0]) in PORTS
    with psycopg.connect(server.url) as connection:
        connection.execute("create table kept ()")
    server.stop(mode)  # type: ignore[arg-type]  # parametrised
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url)
    server.start()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
