"""The bench: sweep, children, single enqueues, limits, ping-pong, waiting and recovery."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.companion import companion
from bench.latency import Latency
from bench.queue_limits import share_used
from bench.queued import paused
from bench.relay import Relay
from bench.waiter import Crowd
from dbos_async.testing import PostgresServer

ROOT = Path(__file__).parents[2]
LOADS = (
    "sweep",
    "children",
    "enqueue_singly",
    "queue_end_to_end",
    "queue_limited",
    "ping_pong",
    "waiting",
    "recovery",
)
PARTITIONS = """
select queue_partition_key, count(*) from dbos.workflow_status group by 1 order by 1
"""


def test_every_load_runs_and_writes_its_figures(
    dbos_postgres: PostgresServer, tmp_path: Path
) -> None:
    figures = figures_of(dbos_postgres.url, tmp_path, *LOADS)
    assert {workload for workload, _ in figures} == set(LOADS)
    unsized = {name: f["values"] for (_, name), f in figures.items() if f["unit"] != "kB"}
    assert all(values and min(values) > 0 for values in unsized.values()), unsized
    assert figures["sweep", "steps, 5 at once"]["x"] == 5.0
    assert figures["ping_pong", "round trip, 2 pairs, p99"]["series"] == "p99"
    assert figures["waiting", "recv, parked: memory of each"]["values"]


def test_the_waits_of_the_warm_up_do_not_count() -> None:
    latency = Latency()
    for waits in ([9.0], [0.001, 0.002, 0.003], [0.004]):
        latency.note(waits)
    p50, p99 = latency.figures("round trip", x=1, x_unit="pairs")
    assert p50.values == pytest.approx((2.0, 4.0))
    assert p99.values == pytest.approx((2.98, 4.0))


def test_the_allowance_is_that_of_the_limit() -> None:
    starts = [float(second) for second in range(4) for _ in range(10)]
    assert share_used(starts, 10) == 1.0


async def test_a_queue_with_partitions_is_filled_evenly(dbos_database_url: str) -> None:
    async with paused(dbos_database_url, partitions=2, partition_concurrency=5) as queued:
        await queued.refill(6)
        rows = await queued.connection.fetch(PARTITIONS)
        assert [tuple(row) for row in rows] == [("partition 0", 3), ("partition 1", 3)]
        await queued.drain(6)
        assert queued.ran == 6


async def test_sleep_that_ends_before_all_sleep_is_not_measured(dbos_database_url: str) -> None:
    crowd = Crowd(dbos_database_url, "sleep", "memory", 1)
    async with crowd.dbos:
        assert await crowd.wait(0.0) is None


async def test_a_killed_relay_is_run_to_its_end_by_the_next(dbos_database_url: str) -> None:
    async with companion("relay", dbos_database_url, 3) as victim:
        assert await victim.hear() == "halted"
        await victim.kill()
    relay = Relay(dbos_database_url, halts=False)
    async with relay.dbos:
        await relay.finish(3)
    assert len(relay.took_over) == 3


async def test_a_process_that_does_not_launch_fails_its_workload() -> None:
    with pytest.raises(RuntimeError, match=r"bench\.relay ended; it said why on stderr"):
        async with companion("relay", "no url", 1):
            raise AssertionError("it was ready")


def figures_of(url: str, directory: Path, *workloads: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What a quick run measures: it shows that it works, not how fast."""
    file = directory / "figures.json"
    command = (sys.executable, "-m", "bench", "--quick", "--database-url", url)
    ended = subprocess.run(
        [*command, "--json", str(file), *workloads],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return {
        (measured["workload"], figure["name"]): figure
        for measured in json.loads(file.read_bytes())["workloads"]
        for figure in measured["figures"]
    }
