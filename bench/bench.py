"""What every workload is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msgspec import Struct, structs

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
    delays: int = 50
    """Of each length, in a round of the self-test."""
    at_once: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    """Workflows that are started at once."""
    children: int = 1_000
    """Children that a workflow awaits."""
    singly_enqueued: int = 500
    """Workflows that a turn enqueues one by one, and a hundred at once."""
    clients: tuple[int, ...] = (1, 10, 100, 1_000)
    """Clients that each await the result of what they have enqueued."""
    limited: int = 20_000
    """Workflows that a turn takes off a queue with limits."""
    starts: int = 1_000
    """Starts a second that a rate limit allows."""
    pairs: tuple[int, ...] = (1, 10, 100)
    """Pairs of workflows that write to each other."""
    exchanges: int = 100
    """Messages that each of them gets in a turn."""
    waiting: int = 10_000
    """Workflows that wait, all at the same time."""
    nap_seconds: float = 15.0
    """How long they sleep, from the start of the first one; longer if they do not all get to it."""
    pending: int = 10_000
    """Workflows that a killed process leaves behind."""
    listed: int = 1_000_000
    """Workflows among which a page is listed."""
    lists: int = 100
    """Listings of each kind in a round."""
    payload_bytes: int = 64 * 1024 * 1024
    """What the results of one wave of workflows come to at most."""
    far_steps: int = 200
    """Steps in a row at each distance, and queries."""
    spell: float = 4.0
    """Seconds for which processes that work at the same time are watched."""
    long_run: tuple[int, ...] = (1_000_000, 5_000_000, 10_000_000)
    """Steps after which the rate is measured again in the same database."""


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
    delays=2,
    at_once=(1, 5),
    children=5,
    singly_enqueued=100,
    clients=(1, 5),
    limited=20,
    starts=10,
    pairs=(1, 2),
    exchanges=3,
    waiting=5,
    nap_seconds=2.0,
    pending=5,
    listed=4_000,
    lists=5,
    payload_bytes=100_000,
    far_steps=5,
    spell=0.3,
    long_run=(20, 60, 100),
)
"""Enough to see that everything works."""
SHORT = structs.replace(
    Sizes(),
    queued=20_000,
    samples=100,
    stream_seconds=1.0,
    streamed=200,
    transactions=200,
    transactions_each=15,
    exchanges=30,
    far_steps=50,
    spell=2.0,
)
"""Enough for a run of five minutes: smaller where a figure hardly depends on it."""


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
    processes: int = 4
    """The most processes that a workload which spreads its load makes."""

    async def interleaved(self, turns: Mapping[str, Turn]) -> dict[str, tuple[float, ...]]:
        """What each contender measured, one value a round."""
        self.progress.begin((1 + self.sizes.rounds) * len(turns))
        return await figures.interleaved(turns, self.sizes.rounds, self.progress.turn)
