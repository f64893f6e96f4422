"""`python -m bench`: measure, and print what was found. See the package's docstring."""

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from msgspec import structs
from rich.console import Console
from rich.progress import Progress

from bench import (
    concurrent,
    enqueue_many,
    one_step,
    peer,
    queue_backlog,
    queue_idle,
    queue_limits,
    queue_snapshot,
    queue_throughput,
    retention,
    sequential,
    shards,
    streams,
    transactions,
    wake_up,
)
from bench.bench import QUICK, Bench, Sizes
from bench.figures import Figure
from bench.report import Load, Measured, Report
from bench.server import server

WORKLOADS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
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
}


def main() -> None:
    """Run the workloads that the command line names."""
    options = parser().parse_args()
    report = uvloop.run(run(options))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(report.table())
    for failure in report.failures():
        console.print("failed:", failure, markup=False, highlight=False)
    if options.json is not None:
        report.write(options.json)
    sys.exit(1 if report.failures() else 0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = Sizes()
    parser = argparse.ArgumentParser("python -m bench", description="Measure dbos_async.")
    parser.add_argument("workload", nargs="*", help=f"{', '.join(WORKLOADS)}; all unless named")
    parser.add_argument("--database-url", help="a server of yours, instead of an embedded one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to a file")
    parser.add_argument("--rounds", type=positive, help=f"{defaults.rounds} unless given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see that it works")
    parser.add_argument(
        "--peer-python",
        type=Path,
        metavar="PYTHON",
        help="an interpreter that has the official dbos package",
    )
    return parser


def positive(word: str) -> int:
    """A number of rounds."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


async def run(options: argparse.Namespace) -> Report:
    """Measure."""
    names = options.workload or list(WORKLOADS)
    if unknown := set(names) - set(WORKLOADS):
        sys.exit(
            f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}"
        )
    sizes = QUICK if options.quick else Sizes()
    if options.rounds is not None:
        sizes = structs.replace(sizes, rounds=options.rounds)
    async with server(options.database_url) as postgres:
        settings = await postgres.settings()
        console = Console(stderr=True)
        console.print(", ".join(f"{name} {value}" for name, value in settings.items()))
        with Progress(console=console) as progress:
            measured = [
                await measure(
                    name, Bench(postgres, sizes, Bar(progress, name), options.peer_python)
                )
                for name in names
            ]
    return Report(settings, measured, options.quick)


async def measure(name: str, bench: Bench) -> Measured:
    """Run one workload, and note the machine's load around it."""
    before = Load.now()
    figures = await WORKLOADS[name](bench)
    return Measured(name, figures, before, Load.now())


class Bar:
    """Shows how far a workload is."""

    def __init__(self, progress: Progress, workload: str) -> None:
        self._progress = progress
        self._workload = workload
        self._task = progress.add_task(workload, total=None)

    def begin(self, turns: int) -> None:
        """So many turns are ahead."""
        self._progress.update(self._task, total=turns)

    def turn(self, name: str) -> None:
        """A contender begins its turn."""
        self._progress.update(self._task, description=f"{self._workload}: {name}", advance=1)


if __name__ == "__main__":
    main()
