"""The bench: its figures add up, and `python -m bench` runs. How fast is not for a test to say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import Figure, Target, Turn, interleaved, ratios
from bench.fleet import Run, most_at_once, most_in_a_window, twice_at_once
from bench.queue_limits import share_used
from bench.report import Load, Measured, Report, shown, verdict_of
from dbos_async.testing import PostgresServer

ROOT = Path(__file__).parents[2]
WITHOUT_PEER = (
    "sequential",
    "concurrent",
    "one_step",
    "queue_idle",
    "enqueue_many",
    "queue_backlog",
    "shards",
    "streams",
    "transactions",
    "wake_up",
)


def test_the_median_is_quoted_with_the_lowest_and_the_highest() -> None:
    figure = Figure("steps", "/s", (3.0, 100.0, 1.0, 2.0))
    assert (figure.median, figure.lowest, figure.highest) == (2.5, 1.0, 100.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratios((1.0, 10.0), (2.0, 5.0)) == (0.5, 2.0)


def test_a_ratio_of_different_numbers_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios((1.0, 2.0), (1.0,))


async def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def contender(name: str) -> Turn:
        async def turn() -> float:
            order.append(name)
            return float(len(order))

        return turn

    announced: list[str] = []
    turns = {"a": contender("a"), "b": contender("b")}
    values = await interleaved(turns, rounds=2, on_turn=announced.append)
    assert order == announced == ["a", "b"] * 3
    assert values == {"a": (3.0, 5.0), "b": (4.0, 6.0)}


def test_the_end_of_a_window_is_not_part_of_it() -> None:
    moments = [3.0, 0.0, 1.0, 0.5, 1.25]
    assert most_in_a_window(moments, 1.0) == 3, "0.5, 1.0 and 1.25, but not 0.0 with 1.0"
    assert most_in_a_window([], 1.0) == 0


def test_a_workflow_that_runs_again_while_it_runs_is_told_from_one_that_runs_again_later() -> None:
    again_later = [Run("a", 0.0, 1.0), Run("a", 1.0, 2.0)]
    again_at_once = [Run("b", 0.0, 3.0), Run("b", 1.0, 2.0)]
    assert twice_at_once([*again_later, *again_at_once]) == ["b"]
    assert most_at_once([*again_later, *again_at_once]) == 3


def test_the_first_bucket_is_no_part_of_the_allowance_used() -> None:
    bursts = [float(second) for second in range(11) for _ in range(50)]
    assert share_used(bursts) == 1.0
    assert share_used([begun for begun in bursts if begun != 5.0]) == 0.9


def test_a_failure_is_reported_and_not_dropped() -> None:
    figure = Figure("steps, dbos", "/s", target=Target(at_least=100), failure="it is not there")
    report = report_of(figure)
    assert report.failures() == ["peer, steps, dbos: it is not there"]
    assert report.table().row_count == 1


def test_a_quick_run_passes_no_verdict() -> None:
    figure = Figure("steps", "/s", (1.0,), Target(at_least=20_000))
    assert verdict_of(figure, quick=True) == "≥ 20,000"
    assert verdict_of(figure, quick=False) == "≥ 20,000 MISSED (1 round)"


def test_numbers_show_as_many_digits_as_one_can_believe() -> None:
    assert [shown(value) for value in (0.4567, 6.0, 99.5, 26_266.4)] == [
        "0.46",
        "6",
        "99.50",
        "26,266",
    ]


def test_the_bench_runs_and_writes_every_figure(
    dbos_postgres: PostgresServer, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    ended = bench("--json", str(file), *WITHOUT_PEER, url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stderr
    assert "steps : bare batches" in ended.stdout
    report = json.loads(file.read_bytes())
    assert report["settings"]["fsync"] in ("on", "off")
    assert [measured["workload"] for measured in report["workloads"]] == list(WITHOUT_PEER)
    figures = {
        figure["name"]: figure["values"]
        for measured in report["workloads"]
        for figure in measured["figures"]
    }
    assert all(len(values) >= 2 and min(values) > 0 for values in figures.values()), figures


def test_the_bench_holds_a_snapshot_and_kills_processes(dbos_postgres: PostgresServer) -> None:
    ended = bench("queue_snapshot", "queue_limits", url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the last sixth : not held" in ended.stdout
    assert "twice at once" in ended.stdout


def test_the_bench_prunes_beside_a_load(dbos_postgres: PostgresServer) -> None:
    ended = bench("retention", url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "size, 10 x : 2 x" in ended.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("pgqueuer") is None, reason="PgQueuer is not installed here"
)
def test_the_bench_measures_pgqueuer(dbos_postgres: PostgresServer) -> None:
    ended = bench("queue_throughput", "--rounds", "1", url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "workflows : jobs" in ended.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("dbos") is None, reason="the official package is not installed here"
)
def test_the_bench_measures_the_official_package(dbos_postgres: PostgresServer) -> None:
    ended = bench("peer", "--rounds", "1", url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "dbos_async : dbos" in ended.stdout


def test_a_peer_that_ends_at_once_is_reported_as_failed(dbos_postgres: PostgresServer) -> None:
    ended = bench("peer", "--peer-python", "/bin/false", url=dbos_postgres.url)
    assert ended.returncode == 1
    assert "failed: peer, steps, dbos: dbos 3.4.0 failed" in ended.stdout


def test_an_unknown_workload_is_refused() -> None:
    ended = bench("sequentail", url="postgresql://nowhere")
    assert ended.returncode == 1
    assert "no such workload: sequentail" in ended.stderr


def report_of(*figures: Figure) -> Report:
    load = Load(0.0, 0.0, 0.0)
    return Report({}, [Measured("peer", list(figures), load, load)], quick=False)


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
