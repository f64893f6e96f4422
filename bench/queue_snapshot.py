"""A queue that never runs empty, while a transaction elsewhere keeps an old snapshot.

Vacuum can then remove nothing: every claim passes the index entries of all that were claimed since.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.queued import Queued, paused
from bench.server import connected
from dbos_async._service import running

END_SHARE = 6
"""The last part of the time whose rate is told apart: a sixth of a minute is ten seconds."""
CHUNKS = 4
"""Refills are a quarter of what waits."""


async def measure(bench: Bench) -> list[Figure]:
    """Workflows per second with a snapshot held and without, one after the other."""
    size = bench.sizes
    bench.progress.begin(2 * size.long_rounds)
    without: list[float] = []
    held: list[float] = []
    last: list[float] = []
    for _ in range(size.long_rounds):
        async with load(bench) as queued:
            bench.progress.turn("workflows")
            rate, _ = await rates_of(queued, size.queued, size.snapshot_seconds / 3)
            without.append(rate)
        async with load(bench) as queued, snapshot_held(queued.url):
            bench.progress.turn("with a snapshot held")
            rate, at_last = await rates_of(queued, size.queued, size.snapshot_seconds)
            held.append(rate)
            last.append(at_last)
    target = Target(at_least=0.7)
    return [
        Figure("workflows", "/s", tuple(without)),
        Figure("workflows, snapshot held", "/s", tuple(held)),
        Figure("the last sixth of it", "/s", tuple(last)),
        Figure("held : not held", "x", ratios(held, without), target),
        Figure("the last sixth : not held", "x", ratios(last, without), target),
    ]


@asynccontextmanager
async def load(bench: Bench) -> AsyncIterator[Queued]:
    """A filled queue in a database of its own: dead rows of one turn are not in the next."""
    async with bench.server.database() as url, paused(url) as queued:
        await queued.refill(bench.sizes.queued)
        yield queued


@asynccontextmanager
async def snapshot_held(url: str) -> AsyncIterator[None]:
    """A transaction with a snapshot, for the length of the block."""
    async with (
        connected(url) as connection,
        connection.transaction(isolation="repeatable_read"),
    ):
        await connection.fetchval("select count(*) from dbos.queues")
        yield


async def rates_of(queued: Queued, waiting: int, seconds: float) -> tuple[float, float]:
    """Workflows a second, in all and in the last part, while about so many wait."""
    stopped = asyncio.Event()

    async def feed() -> None:
        filled = 0
        while not stopped.is_set():
            if queued.ran - filled >= waiting // CHUNKS:
                await queued.fill(waiting // CHUNKS)
                filled += waiting // CHUNKS
            await asyncio.sleep(0.01)

    queued.ran = 0
    await queued.queue.resume()
    async with running(stopped.set, feed=feed()):
        started = time.perf_counter()
        await asyncio.sleep(seconds * (1 - 1 / END_SHARE))
        ran, then = queued.ran, time.perf_counter()
        await asyncio.sleep(seconds / END_SHARE)
        ended = time.perf_counter()
        rates = queued.ran / (ended - started), (queued.ran - ran) / (ended - then)
    await queued.queue.pause()
    await queued.rest()
    return rates
