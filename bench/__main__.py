"""`python -m bench`: measure, and print what was found. See the package's docstring."""

import argparse
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop
from msgspec import structs
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from bench import (
    children,
    concurrent,
    cores,
    enqueue_many,
    enqueue_singly,
    list_queries,
    long_run,
    one_step,
    payloads,
    peer,
    ping_pong,
    processes,
    queue_backlog,
    queue_end_to_end,
    queue_idle,
    queue_limited,
    queue_limits,
    queue_snapshot,
    queue_throughput,
    recovery,
    retention,
    round_trips,
    self_test,
    sequential,
    shards,
    streams,
    sweep,
    transactions,
    waiting,
    wake_up,
)
from bench.bench import QUICK, SHORT, Bench, Sizes
from bench.check import compared, differences, table_of, workloads_of, worse, worse_again
from bench.figures import Figure
from bench.origin import commit_of_this
from bench.report import Load, Measured, Report
from bench.results import RESULTS, UnusableReferenceError, keep, reference_in
from bench.server import Server, server

WORKLOADS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "self_test": self_test.measure,
    "sequential": sequential.measure,
    "concurrent": concurrent.measure,
    "one_step": one_step.measure,
    "peer": peer.measure,
    "queue_idle": queue_idle.measure,
    "queue_throughput": queue_throughput.measure,
    "enqueue_many": enqueue_many.measure,
    "queue_backlog": queue_backlog.measure,
    "queue_snapshot": queue_snapshot.measure,
    "queue_limits": queue_limits.measure,
    "streams": streams.measure,
    "transactions": transactions.measure,
    "wake_up": wake_up.measure,
    "retention": retention.measure,
    "shards": shards.measure,
    "sweep": sweep.measure,
    "children": children.measure,
    "enqueue_singly": enqueue_singly.measure,
    "queue_end_to_end": queue_end_to_end.measure,
    "queue_limited": queue_limited.measure,
    "ping_pong": ping_pong.measure,
    "waiting": waiting.measure,
    "recovery": recovery.measure,
    "list_queries": list_queries.measure,
    "payloads": payloads.measure,
    "processes": processes.measure,
    "round_trips": round_trips.measure,
    "long_run": long_run.measure,
    "cores": cores.measure,
}

LONG = {
    "queue_backlog",
    "queue_snapshot",
    "queue_limits",
    "retention",
    "enqueue_singly",
    "queue_end_to_end",
    "queue_limited",
    "waiting",
    "recovery",
    "list_queries",
    "payloads",
    "processes",
    "long_run",
}
"""Those that take minutes: they run with `--full`, or when they are named."""
CHECKED = ("sequential", "concurrent", "peer")
"""Of `--check`: the ratios that much depends on, in under a minute. `--full` makes none of these
larger, so that a reference of any run will do."""


def main() -> None:
    """Do what the command line says; the exit status says whether all is well."""
    options = parsed()
    command = check if options.check else run
    try:
        is_well = uvloop.run(command(options))
    except UnusableReferenceError as exc:
        sys.exit(str(exc))
    sys.exit(0 if is_well else 1)


def parsed() -> argparse.Namespace:
    """What the command line says."""
    commands = parser()
    options = commands.parse_args()
    if unknown := set(options.workload) - set(WORKLOADS):
        sys.exit(
            f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}"
        )
    if options.reference and options.quick:
        commands.error("--quick makes no reference: its figures mean nothing")
    if options.json is not None and not options.json.parent.is_dir():
        commands.error(f"--json: there is no directory {options.json.parent}")
    return options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("python -m bench", description="Measure dbos_async.")
    parser.add_argument(
        "workload",
        nargs="*",
        help=f"{', '.join(WORKLOADS)}; unless named, all but {', '.join(sorted(LONG))}",
    )
    parser.add_argument("--database-url", help="a server of yours, instead of an embedded one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value here, too")
    parser.add_argument("--rounds", type=positive, help=f"{Sizes().rounds} unless given")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        default=4,
        help="the most that a workload spreads over; 4 unless given",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--full", action="store_true", help="all workloads, at their full sizes")
    sizes.add_argument("--quick", action="store_true", help="tiny sizes: see that it works")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--reference", action="store_true", help="keep this run as the reference")
    kind.add_argument(
        "--check",
        action="store_true",
        help=f"compare ratios with the reference; {', '.join(CHECKED)} unless named",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIRECTORY",
        help="where runs are kept; bench/results unless given, and no quick ones there",
    )
    parser.add_argument(
        "--peer-python",
        type=Path,
        metavar="PYTHON",
        help="an interpreter that has the official dbos package",
    )
    return parser


def positive(word: str) -> int:
    """How many of something."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


async def run(options: argparse.Namespace) -> bool:
    """Measure, and keep what was found; whether everything could be measured."""
    names = options.workload or [name for name in WORKLOADS if options.full or name not in LONG]
    async with server(options.database_url) as postgres:
        report = await measured(postgres, names, options)
    console = output()
    console.print(report.table())
    if report.latencies().row_count:
        console.print(report.latencies())
    for failure in report.failures():
        say(console, f"failed: {failure}")
    if options.json is not None:
        report.write(options.json)
    if options.results is not None or not options.quick:
        for words in keep(report, options.results or RESULTS, as_reference=options.reference):
            say(console, words)
    return not report.failures()


async def check(options: argparse.Namespace) -> bool:
    """Compare ratios with those of the reference; whether none became worse.

    Raises:
        UnusableReferenceError: there is none.
    """
    console = output()
    reference = reference_in(options.results or RESULTS)
    async with server(options.database_url) as postgres:
        report = await measured(postgres, options.workload or CHECKED, options)
        ratios = compared(report, reference)
        console.print(table_of(ratios, reference))
        found = worse(ratios)
        if found:
            say(console, "measured again, what seems worse:")
            again = compared(await measured(postgres, workloads_of(found), options), reference)
            console.print(table_of(again, reference))
            found = worse_again(found, again)
    for words in [
        *(f"not the same: {difference}" for difference in differences(report, reference)),
        *(f"failed: {failure}" for failure in report.failures()),
        *(f"WORSE: {ratio.name}" for ratio in found),
    ]:
        say(console, words)
    if not ratios:
        say(console, "the reference has no ratio of these workloads: nothing was compared")
    return bool(ratios) and not found and not report.failures()


def output() -> Console:
    """Where results are printed."""
    return Console(width=None if sys.stdout.isatty() else 120)


def say(console: Console, words: str) -> None:
    """Print as it is."""
    console.print(words, markup=False, highlight=False, soft_wrap=True)


async def measured(postgres: Server, names: Sequence[str], options: argparse.Namespace) -> Report:
    """Run these workloads, one after the other."""
    sizes, commit = sizes_of(options), commit_of_this()
    settings = await postgres.settings()
    console = Console(stderr=True)
    console.print(", ".join(f"{name} {value}" for name, value in settings.items()))
    if (load := Load.now()).is_busy:
        say(console, f"the machine is busy, load {load}: expect wide spreads, and 'unsure'")
    workloads = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bars:
        all_of_them = bars.add_task("workloads", total=len(names))
        for name in names:
            bar = Bar(bars, name)
            one = Bench(postgres, sizes, bar, options.peer_python, options.processes)
            workloads.append(await measure(name, one))
            bar.end()
            bars.advance(all_of_them)
    return Report(settings, workloads, options.quick, sizes, commit=commit)


def sizes_of(options: argparse.Namespace) -> Sizes:
    """How much is run."""
    sizes = QUICK if options.quick else Sizes() if options.full else SHORT
    return sizes if options.rounds is None else structs.replace(sizes, rounds=options.rounds)


async def measure(name: str, bench: Bench) -> Measured:
    """Run one workload, and note the machine's load around it; or why it failed."""
    before = Load.now()
    try:
        figures = await WORKLOADS[name](bench)
    except Exception as exc:  # noqa: BLE001  # an hour of other figures is not lost to one
        traceback.print_exc()
        figures = [Figure("all of it", "", failure=f"{type(exc).__name__}: {exc}")]
    return Measured(name, figures, before, Load.now())


class Bar:
    """Shows how far a workload is."""

    def __init__(self, progress: Progress, workload: str) -> None:
        self._progress = progress
        self._workload = workload
        self._task = progress.add_task(workload, total=None)
        self._turns = 0

    def begin(self, turns: int) -> None:
        """So many turns are ahead."""
        self._progress.update(self._task, total=turns)

    def turn(self, name: str) -> None:
        """A contender begins its turn: the one before has ended."""
        words = f"{self._workload}: {name}"
        self._progress.update(self._task, description=words, completed=self._turns)
        self._turns += 1

    def end(self) -> None:
        """All have had their turns."""
        turns = max(self._turns, 1)
        self._progress.update(self._task, description=self._workload, total=turns, completed=turns)


if __name__ == "__main__":
    main()
