"""The bench's judgement: what it is sure of, what it keeps and draws, what it calls worse."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs

from bench import results, self_test
from bench.__main__ import CHECKED, LONG, WORKLOADS, measure
from bench.bench import QUICK, SHORT, Bench, Sizes
from bench.check import Change, Compared, compared, differences, worse, worse_again
from bench.confidence import ENOUGH, confidence_of, interval_of
from bench.figures import Figure, Target, Verdict, interleaved, ratios
from bench.plots import bins_of
from bench.report import Load, Measured, Report, percentiles_of, some_of, verdict_of
from bench.results import UnusableReferenceError, keep, reference_in
from dbos_async.testing import PostgresServer

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG"


# What a verdict takes.


def test_five_rounds_are_the_fewest_that_are_sure_of_their_median() -> None:
    assert interval_of([3.0, 1.0, 5.0, 2.0, 4.0]) == (1.0, 5.0, 0.9375)
    assert [confidence_of(rounds, 1) >= 0.9 for rounds in (1, 4, ENOUGH)] == [False, False, True]


def test_more_rounds_make_outliers_harmless() -> None:
    low, high, confidence = interval_of([*map(float, range(1, 9)), 1_000.0, 0.0])
    assert (low, high) == (1.0, 8.0), "the second of ten from either side"
    assert confidence == pytest.approx(1 - 2 * 11 / 1024)


@pytest.mark.parametrize(
    ("target", "values", "verdict"),
    [
        (Target(at_least=2.0), (2.0, 2.1, 2.2, 2.3, 9.0), Verdict.MET),
        (Target(at_least=2.0), (1.9, 2.1, 2.2, 2.3, 9.0), Verdict.UNSURE),
        (Target(at_least=2.0), (1.0, 1.1, 1.2, 1.3, 1.9), Verdict.MISSED),
        (Target(at_most=2.0), (1.0, 1.1, 1.2, 1.3, 2.0), Verdict.MET),
        (Target(at_most=2.0), (1.0, 1.1, 1.2, 1.3, 2.1), Verdict.UNSURE),
        (Target(at_most=2.0), (2.1, 2.2, 2.3, 2.4, 2.5), Verdict.MISSED),
        (Target(at_least=1.9, at_most=2.1), (1.9, 2.0, 2.0, 2.0, 2.1), Verdict.MET),
        (Target(at_least=1.9, at_most=2.1), (1.8, 2.0, 2.0, 2.0, 2.2), Verdict.UNSURE),
        (Target(at_least=1.9, at_most=2.1), (2.2, 2.3, 2.3, 2.3, 2.3), Verdict.MISSED),
        (None, (1.0, 1.0, 1.0, 1.0, 1.0), None),
    ],
)
def test_a_target_is_met_or_missed_only_by_all_that_the_median_may_be(
    target: Target | None, values: tuple[float, ...], verdict: Verdict | None
) -> None:
    assert Figure("steps", "/s", values, target).verdict is verdict


def test_a_figure_that_could_not_be_measured_gets_no_verdict() -> None:
    figure = Figure("steps", "/s", target=Target(at_least=1.0), failure="gone")
    assert figure.verdict is None
    assert verdict_of(figure, quick=False) == "≥ 1"


def test_a_ratio_without_a_target_says_when_it_may_be_none() -> None:
    around = Figure("a : b", "x", (0.9, 1.0, 1.1, 1.0, 1.0))
    beyond = Figure("a : b", "x", (1.1, 1.2, 1.1, 1.2, 1.3))
    assert verdict_of(around, quick=False) == "unsure which is more"
    assert verdict_of(beyond, quick=False) == ""
    assert verdict_of(structs.replace(around, unit="ms"), quick=False) == ""


# The self-test: known delays, on a clock of its own.


class Clock:
    """Time goes by as it is told to, slower from each turn to the next."""

    def __init__(self, slowdown: float = 1.0) -> None:
        self._now = 0.0
        self._pace = 1.0
        self._slowdown = slowdown

    def now(self) -> float:
        return self._now

    async def wait(self, seconds: float) -> None:
        self._now += seconds * self._pace
        self._pace *= self._slowdown


class Unseen:
    """Nobody watches the progress."""

    def begin(self, turns: int) -> None: ...

    def turn(self, name: str) -> None: ...


def on(sizes: Sizes) -> Bench:
    return Bench(None, sizes, Unseen())  # type: ignore[arg-type]  # no server is asked for


async def test_a_known_delay_is_measured_right() -> None:
    figures = await self_test.measure(on(structs.replace(QUICK, rounds=5)), Clock())
    assert [figure.values for figure in figures] == [
        pytest.approx((2.0,) * 5),
        pytest.approx((4.0,) * 5),
        pytest.approx((2.0,) * 5),
    ]
    assert figures[-1].verdict is Verdict.MET


async def test_a_machine_that_becomes_slower_slows_both_sides_of_a_ratio() -> None:
    sizes = structs.replace(QUICK, rounds=5, delays=1)
    slower, longer, ratio = await self_test.measure(on(sizes), Clock(slowdown=1.01))
    assert slower.highest > 1.08 * slower.lowest
    assert ratio.highest == pytest.approx(ratio.lowest)
    assert ratio.verdict is Verdict.MET
    assert longer.median / slower.median == pytest.approx(ratio.median)


async def test_a_clock_that_is_wrong_fails_the_self_test() -> None:
    class Late(Clock):
        async def wait(self, seconds: float) -> None:
            await super().wait(seconds + 0.001)

    figures = await self_test.measure(on(structs.replace(QUICK, rounds=5)), Late())
    assert figures[-1].verdict is Verdict.MISSED


async def test_the_real_clock_waits_as_long_as_it_is_told() -> None:
    clock = self_test.LoopClock()
    started = clock.now()
    await clock.wait(0.002)
    assert clock.now() - started >= 0.002


async def test_a_ratio_is_right_whatever_happens_between_the_rounds() -> None:
    pace = iter((1.0, 1.0, 5.0, 5.0, 0.1, 0.1, 3.0, 3.0))

    def contender(milliseconds: float) -> Callable[[], Awaitable[float]]:
        async def turn() -> float:
            return milliseconds * next(pace)

        return turn

    turns = {"a": contender(4.0), "b": contender(2.0)}
    values = await interleaved(turns, 3, lambda _: None)
    assert ratios(values["a"], values["b"]) == pytest.approx((2.0, 2.0, 2.0))


# What is kept, and drawn.


def test_percentiles_are_those_of_the_samples() -> None:
    assert percentiles_of([float(n) for n in range(101)], 50, 95, 99) == [50.0, 95.0, 99.0]
    assert percentiles_of([7.0], 50, 99) == [7.0, 7.0]


def test_what_is_kept_of_many_samples_has_the_same_percentiles() -> None:
    many = [float(n) for n in range(100_000)]
    kept = some_of(many)
    assert len(kept) == 1_001
    assert (kept[0], kept[-1]) == (0.0, 99_999.0)
    assert percentiles_of(kept, 50, 99) == pytest.approx(percentiles_of(many, 50, 99), rel=1e-3)


def test_a_report_says_where_it_comes_from_and_can_be_read_again(tmp_path: Path) -> None:
    report = report_of(ratio_of(1.5, 1.6), ratio_of(1.5, 1.5, name="other"))
    path = tmp_path / "run.json"
    report.write(path)
    written = json.loads(path.read_bytes())
    assert set(written) >= {"commit", "date", "packages", "processor", "settings", "sizes"}
    assert Report.read(path) == report
    assert '"values": [1.5, 1.6]' in path.read_text(), "numbers share a line"


def test_a_run_is_kept_with_a_plot_of_each_kind(tmp_path: Path) -> None:
    samples = tuple(float(n) for n in range(1, 200))
    report = report_of(
        ratio_of(1.5, 1.6, 1.7, 1.6, 1.5),
        Figure("dbos : dbos_async", "x", (0.01, 0.02)),
        Figure("dbos : nothing", "x", failure="nothing is not there"),
        Figure("step", "µs", (100.0, 101.0), samples=samples),
        *(
            Figure(f"{unit}, {x}", unit, (x + 1.0, x + 2.0), series="us", x=x, x_unit="at once")
            for unit in ("/s", "ms")
            for x in (1, 10, 10_000)
        ),
        Figure("/s, 7", "/s", failure="too many", series="us", x=7, x_unit="at once"),
    )
    words = keep(report, tmp_path, as_reference=True)
    drawn = tmp_path / "reference"
    assert words[1] == f"plots: {drawn}: overview, workload, workload-latency"
    names = {"overview", "workload", "workload-latency"}
    assert {path.name for path in drawn.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    assert all(path.read_bytes().startswith(PNG) for path in drawn.glob("*.png"))
    assert "nothing is not there" not in (drawn / "overview.svg").read_text()
    assert reference_in(tmp_path).workloads == report.workloads


def test_the_same_report_makes_the_same_files(tmp_path: Path) -> None:
    report = report_of(ratio_of(1.5, 1.6))
    for place in ("a", "b"):
        keep(report, tmp_path / place, as_reference=True)
    first, second = (tmp_path / place / "reference" / "overview.svg" for place in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_plots_of_an_older_reference_do_not_outlive_it(tmp_path: Path) -> None:
    keep(report_of(ratio_of(1.5, 1.6)), tmp_path, as_reference=True)
    keep(report_of(Figure("step", "µs", (1.0,), samples=(1.0,))), tmp_path, as_reference=True)
    assert {path.stem for path in (tmp_path / "reference").iterdir()} == {"workload-latency"}


def test_a_run_is_kept_under_its_time_unless_it_is_the_reference(tmp_path: Path) -> None:
    report = structs.replace(report_of(), date=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    keep(report, tmp_path, as_reference=False)
    assert [path.name for path in tmp_path.glob("*.json")] == ["2026-01-02-030405.json"]


def test_without_matplotlib_the_values_are_kept_and_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "bench.plots")
    monkeypatch.delattr("bench.plots", raising=False)
    values, plots = keep(report_of(ratio_of(1.0)), tmp_path, as_reference=True)
    assert values == f"values: {tmp_path / 'reference.json'}"
    assert plots == results.NO_PLOTS


def test_all_samples_are_in_some_bin() -> None:
    samples = [0.37, 12.0, 4_711.0]
    edges = bins_of(samples)
    assert edges[0] <= min(samples) * (1 + 1e-9)
    assert edges[-1] > max(samples)


# The reference, and what became worse.


def test_worse_is_what_is_beyond_the_noise_of_both_runs_in_the_bad_direction() -> None:
    before = ratio_of(1.4, 1.5, 1.5, 1.5, 1.6)
    assert change(before, ratio_of(1.9, 2.0, 2.0, 2.0, 2.1)) is Change.WORSE
    assert change(before, ratio_of(1.0, 1.0, 1.1, 1.1, 1.1)) is Change.BETTER
    assert change(before, ratio_of(1.5, 2.0, 2.0, 2.0, 2.1)) is Change.SAME, "the spreads overlap"


def test_a_difference_of_a_few_percent_is_that_of_two_runs() -> None:
    before = ratio_of(1.5, 1.5, 1.5, 1.5, 1.5)
    assert change(before, ratio_of(1.6, 1.6, 1.6, 1.6, 1.6)) is Change.SAME
    assert change(before, ratio_of(1.7, 1.7, 1.7, 1.7, 1.7)) is Change.WORSE


def test_the_target_says_which_direction_is_worse() -> None:
    high, low = (structs.replace(ratio_of(value), target=Target(at_least=1)) for value in (2, 1))
    assert change(high, low) is Change.WORSE
    assert change(low, high) is Change.BETTER


def test_only_ratios_with_a_direction_are_compared() -> None:
    rate = Figure("steps", "/s", (100.0,), Target(at_least=1))
    undirected = Figure("a : b", "x", (1.0,))
    exact = Figure("4 ms : 2 ms", "x", (2.0,), Target(at_least=1.9, at_most=2.1))
    failed = Figure("c : d", "x", target=Target(at_least=1), failure="gone")
    new = ratio_of(1.0, name="new")
    report = report_of(rate, undirected, exact, failed, ratio_of(1.5))
    pairs = compared(structs.replace(report, workloads=[*report_of(new).workloads]), report)
    assert pairs == []
    assert [pair.name for pair in compared(report, report)] == ["workload, step : bare insert"]


def test_only_what_is_worse_twice_is_worse() -> None:
    reference = report_of(ratio_of(1.5), ratio_of(1.5, name="other"))
    first = worse(compared(report_of(ratio_of(3.0), ratio_of(1.5, name="other")), reference))
    again = compared(report_of(ratio_of(3.0), ratio_of(3.0, name="other")), reference)
    assert [ratio.name for ratio in worse_again(first, again)] == ["workload, step : bare insert"]
    assert worse_again(first, compared(reference, reference)) == []


def test_what_else_is_not_the_same_is_said() -> None:
    here = report_of()
    there = structs.replace(here, processors=64, settings={"fsync": "off"})
    assert differences(structs.replace(here, settings={"fsync": "on"}), there) == [
        f"processors: 64 there, {here.processors} here",
        "fsync: off there, on here",
    ]


def test_without_a_reference_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UnusableReferenceError, match="python -m bench --full --reference"):
        reference_in(tmp_path)
    (tmp_path / "reference.json").write_text("{}")
    with pytest.raises(UnusableReferenceError, match=r"reference\.json is no report"):
        reference_in(tmp_path)


# The command.


def test_long_and_checked_workloads_exist_and_are_not_the_same() -> None:
    assert set(WORKLOADS) > LONG
    assert set(CHECKED) <= set(WORKLOADS) - LONG
    assert SHORT.rounds >= ENOUGH, "or no verdict is sure"


async def test_a_workload_that_fails_does_not_take_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: Bench) -> list[Figure]:
        raise TimeoutError("nobody answered")

    monkeypatch.setitem(WORKLOADS, "one_step", fail)
    measured = await measure("one_step", on(QUICK))
    assert Report({}, [measured], quick=True).failures() == [
        "one_step, all of it: TimeoutError: nobody answered"
    ]
    assert "Traceback" in capsys.readouterr().err


def test_a_check_without_a_reference_measures_nothing(tmp_path: Path) -> None:
    ended = bench("--check", "--results", str(tmp_path), url="postgresql://nowhere")
    assert ended.returncode == 1
    assert "there is no" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_quick_run_makes_no_reference() -> None:
    ended = bench("--reference", url="postgresql://nowhere")
    assert ended.returncode == 2
    assert "--quick makes no reference" in ended.stderr


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured() -> None:
    ended = bench("--json", "nowhere/figures.json", url="postgresql://nowhere")
    assert ended.returncode == 2
    assert "there is no directory nowhere" in ended.stderr


@pytest.mark.parametrize(
    ("reference", "status", "said"), [(1e6, 0, "better, by 100%"), (1e-6, 1, "WORSE: sequential")]
)
def test_a_check_measures_and_compares(
    dbos_postgres: PostgresServer, tmp_path: Path, reference: float, status: int, said: str
) -> None:
    load = Load(0.0, 0.0, 0.0)
    before = [Measured("sequential", [ratio_of(reference)], load, load)]
    keep(Report({}, before, quick=False), tmp_path, as_reference=True)
    ended = bench("--check", "sequential", "--results", str(tmp_path), url=dbos_postgres.url)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert said in ended.stdout
    assert "not the same: fsync: None there" in ended.stdout
    assert len(list(tmp_path.glob("*.json"))) == 1, "a check is no run to keep"


def test_a_run_leaves_values_plots_and_latencies(
    dbos_postgres: PostgresServer, tmp_path: Path
) -> None:
    ended = bench("self_test", "sequential", "--results", str(tmp_path), url=dbos_postgres.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "of single measurements" in ended.stdout
    (file,) = tmp_path.glob("*.json")
    report = Report.read(file)
    assert [measured.workload for measured in report.workloads] == ["self_test", "sequential"]
    step = report.workloads[1].figures[0]
    assert len(step.samples) == QUICK.rounds * QUICK.sequential_steps
    assert (tmp_path / file.stem / "sequential-latency.svg").exists()


def change(before: Figure, now: Figure) -> Change:
    return Compared("workload", now, before).change


def ratio_of(*values: float, name: str = "step : bare insert") -> Figure:
    return Figure(name, "x", values, Target(at_most=1.5))


def report_of(*figures: Figure) -> Report:
    load = Load(0.0, 0.0, 0.0)
    return Report({}, [Measured("workload", list(figures), load, load)], quick=False)


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
