"""What every workload is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from bench import figures
from bench.figures import Turn
from bench.server import Server


class Sizes(Struct, frozen=True):
    """How much is run."""

    rounds: int = 5
    seconds: float = 1.0
    """What a turn of concurrent workflows takes at least."""
    workflows: int = 1_000
    steps: int = 10
    sequential_steps: int = 500
    peer_workflows: int = 100
    samples: int = 300
    """Enqueues to an idle queue in a round."""
    queued: int = 50_000
    """Workflows that a turn takes off a queue."""
    enqueued: int = 10_000
    """Workflows in one call of enqueue_many."""
    backlog: int = 1_000_000
    long_rounds: int = 1
    """Of workloads that take minutes; they have no warm-up."""
    snapshot_seconds: float = 60.0
    rate_seconds: float = 30.0
    kill_seconds: float = 60.0
    stream_seconds: float = 5.0
    """How long streams are written at their rate."""
    streamed: int = 500
    """Values of each stream that is written as fast as it goes."""
    transactions: int = 500
    """Transactions in a row."""
    transactions_each: int = 40
    """Transactions of each of the workflows that run at the same time."""
    finished: int = 1_000_000
    """Workflows that are pruned."""
    prune_seconds: float = 10.0
    """How long a turn with or without pruning is."""
    kept: int = 50_000
    """Workflows that a policy keeps, of ten times as many."""


QUICK = Sizes(
    rounds=2,
    seconds=0,
    workflows=10,
    steps=2,
    sequential_steps=5,
    peer_workflows=2,
    samples=3,
    queued=20,
    enqueued=20,
    backlog=100,
    snapshot_seconds=0.3,
    rate_seconds=1.5,
    kill_seconds=1.0,
    stream_seconds=0.1,
    streamed=2,
    transactions=5,
    transactions_each=2,
    finished=50,
    prune_seconds=1.0,
    kept=20,
)
"""Enough to see that everything works."""


class Progress(Protocol):
    """Who shows how far the bench is."""

    def begin(self, turns: int) -> None:
        """So many turns are ahead."""

    def turn(self, name: str) -> None:
        """A contender begins its turn."""


class Bench(Struct, frozen=True):
    """A server, and what is to be run on it."""

    server: Server
    sizes: Sizes
    progress: Progress
    peer_python: Path | None = None
    """The interpreter of the environment that has the official package; None to find or make it."""

    async def interleaved(self, turns: Mapping[str, Turn]) -> dict[str, tuple[float, ...]]:
        """What each contender measured, one value a round."""
        self.progress.begin((1 + self.sizes.rounds) * len(turns))
        return await figures.interleaved(turns, self.sizes.rounds, self.progress.turn)
