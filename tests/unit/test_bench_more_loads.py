"""The bench's loads over sizes, distances, processes and cores: what they stand on, and a run."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from bench.bench import Sizes
from bench.cores import extrapolated
from bench.crew import Work, at_work, crew, looked_at, rate_of, watched
from bench.evidence import shares_of, used
from bench.payloads import text_of, workflows_of
from bench.processors import NotHereError, children_of, find_postmaster, pinned
from bench.round_trips import address_of, by_way_of, delayed
from dbos_async.testing import PostgresServer

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
LOADS = ("list_queries", "payloads", "processes", "round_trips", "long_run")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")


@pytest.mark.parametrize(
    ("one", "two", "four", "eight"),
    [
        (100.0, 200.0, 400.0, 800.0),  # all of it runs in parallel
        (100.0, 100.0, 100.0, 100.0),  # none of it
        (300.0, 400.0, 480.0, 533.3),  # half of it
        (100.0, 300.0, 400.0, 800.0),  # never better than in proportion
        (100.0, 50.0, 100.0, 100.0),  # nor worse than one
    ],
)
def test_the_extrapolation_is_amdahls_law(
    one: float, two: float, four: float, eight: float
) -> None:
    assert extrapolated(one, two, 4) == pytest.approx(four)
    assert extrapolated(one, two, 8) == pytest.approx(eight, abs=0.1)


def test_large_results_come_from_fewer_workflows() -> None:
    size = Sizes(workflows=1_000, steps=10, payload_bytes=10_000_000)
    assert [workflows_of(size, length) for length in (100, 10_000, 10_000_000)] == [1_000, 100, 1]


def test_results_have_exactly_their_length() -> None:
    assert [len(text_of(length)) for length in (1, 100, 1024)] == [1, 100, 1024]


def test_processes_work_together_at_the_sum_of_their_rates() -> None:
    assert rate_of([Work(2.0, 10, 0.1), Work(4.0, 40, 0.1)]) == 15.0


def test_a_process_that_is_new_has_used_all_that_it_has_and_one_that_ended_does_not_count() -> None:
    assert used({1: 5.0, 2: 7.0}, {1: 6.5, 3: 2.0}) == {1: 1.5, 3: 2.0}


def test_shares_are_of_all_looks_even_those_that_saw_something_else() -> None:
    looks = [Counter({"computes": 3, "flushes WAL": 1}), Counter({"waits for something else": 4})]
    assert shares_of(looks) == {"computes": 37.5, "flushes WAL": 12.5, "waits for Python": 0.0}
    assert sum(shares_of([]).values()) == 0


@pytest.mark.parametrize(
    ("url", "address", "through"),
    [
        (
            "postgresql://me@/db?host=/tmp/x&port=5433",
            ("/tmp/x/.s.PGSQL.5433",),
            "postgresql://me@127.0.0.1:1/db",
        ),
        (
            "postgresql://me:p%40ss@db.example:6432/db?sslmode=require",
            ("db.example", "6432"),
            "postgresql://me:p%40ss@127.0.0.1:1/db?sslmode=require",
        ),
        (
            "postgresql://localhost/db",
            ("localhost", "5432"),
            "postgresql://127.0.0.1:1/db",
        ),
    ],
)
def test_the_proxy_stands_where_the_server_would(
    url: str, address: tuple[str, ...], through: str
) -> None:
    assert address_of(url) == address
    assert by_way_of(1, url) == through


async def test_the_proxy_holds_back_both_directions_and_keeps_the_order() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sent = b"".join(number.to_bytes(4, "big") for number in range(200_000))
    async with server, delayed(f"postgresql://127.0.0.1:{port}/db", 0.05) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", by_port(url))
        began = asyncio.get_running_loop().time()
        writer.write(sent[:4])
        async with asyncio.timeout(PATIENCE):
            first = await reader.readexactly(4)
            took = asyncio.get_running_loop().time() - began
            writer.write(sent[4:])
            rest = await reader.readexactly(len(sent) - 4)
        writer.close()
    assert first + rest == sent
    assert took >= 0.049


async def test_the_proxy_hangs_up_when_nobody_answers_behind_it() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with delayed(f"postgresql://127.0.0.1:{port}/db", 0) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", by_port(url))
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()


async def test_processes_are_at_work_only_when_they_are_told_to_be(dbos_database_url: str) -> None:
    async with crew(dbos_database_url, 2, workflows=2, steps=2) as members:
        async with at_work(members[:1], 0.1):
            (work,) = await watched(members[:1], 0.2)
        at_its_end, never_at_work = await looked_at(members)
        (later,) = await looked_at(members[:1])
    assert work.steps > 0
    assert work.cpu_seconds > 0
    assert never_at_work.steps == 0
    assert later.steps == at_its_end.steps >= work.steps


@on_linux
async def test_a_server_elsewhere_is_not_pinned(dbos_database_url: str) -> None:
    connection = await asyncpg.connect(dbos_database_url)
    try:
        await connection.execute("set search_path = elsewhere, pg_catalog")
        await connection.execute("create schema elsewhere")
        await connection.execute(
            f"create function elsewhere.pg_backend_pid() returns int return {os.getpid()}"
        )
        with pytest.raises(NotHereError, match="not on this machine"):
            await find_postmaster(connection)
    finally:
        await connection.close()


@on_linux
async def test_postgres_is_pinned_for_the_length_of_the_block(
    dbos_postgres: PostgresServer,
) -> None:
    connection = await asyncpg.connect(dbos_postgres.url)
    try:
        try:
            postmaster = await find_postmaster(connection)
            spared = await connection.fetchval("select pg_backend_pid()")
        except NotHereError as exc:
            pytest.skip(str(exc))
        before = os.sched_getaffinity(postmaster)
        one = {min(before)}
        with pinned(postmaster, [], one, spared=spared):
            assert os.sched_getaffinity(postmaster) == one
            assert os.sched_getaffinity(spared) == before
            assert os.sched_getaffinity(spared_of(postmaster, spared)) == one
        assert os.sched_getaffinity(postmaster) == before
        assert os.sched_getaffinity(spared_of(postmaster, spared)) == before
    finally:
        await connection.close()


def test_the_bench_measures_sizes_distances_and_processes(dbos_postgres: PostgresServer) -> None:
    ended = bench(*LOADS, url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for figure in ("rare name, p99", "1 MiB", "2 processes : 1 process", "steps, 1 ms"):
        assert figure in ended.stdout
    assert "after 100 steps : after 20 steps" in ended.stdout


def test_the_bench_measures_cores_or_says_why_not(dbos_postgres: PostgresServer) -> None:
    ended = bench("cores", url=dbos_postgres.url)
    if "could not be pinned" in ended.stdout:
        assert ended.returncode == 1
    else:
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "a writing backend flushes WAL" in ended.stdout


def spared_of(postmaster: int, spared: int) -> int:
    """Another child of the server, one that stays: the oldest."""
    return min(child for child in children_of(postmaster) if child != spared)


def by_port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def bench(*arguments: str, url: str) -> "subprocess.CompletedProcess[str]":
    """`python -m bench`, so small that its figures mean nothing."""
    return subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--database-url", url, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
