"""Limits that processes share: none is ever exceeded, and little of what they allow is wasted."""

import asyncio
import random
import tempfile
import time
from pathlib import Path

from bench.bench import Bench
from bench.figures import Figure, Target
from bench.fleet import Fleet, launched, most_at_once, most_in_a_window, twice_at_once
from bench.server import connected
from bench.worker import PERIOD
from dbos_async import Client

RATE_LIMIT = 50
CONCURRENCY = 10
JOBS_PER_SECOND = 60
"""A little less than slots of 0.15 s give when nobody is killed."""
LENGTHS = (0.05, 0.25)
"""Seconds that a workflow takes."""
BETWEEN_KILLS = (0.2, 1.5)
PATIENCE = 60.0
"""Seconds after the last kill in which everything ends; it takes a few."""

STARTED = """
select started_at_epoch_ms / 1000.0 from dbos.workflow_status
 where started_at_epoch_ms is not null and status <> 'ENQUEUED'
"""
UNFINISHED = "select count(*) from dbos.workflow_status where status <> 'SUCCESS'"


async def measure(bench: Bench) -> list[Figure]:
    """Both limits, one after the other, on databases of their own."""
    bench.progress.begin(2)
    with tempfile.TemporaryDirectory() as directory:
        async with bench.server.database(with_schema=True) as url:
            bench.progress.turn("rate limit")
            fleet = Fleet(url, Path(directory) / "rate", "--rate-limit", str(RATE_LIMIT))
            rate_limit = await measure_rate_limit(fleet, url, bench.sizes.rate_seconds)
        async with bench.server.database(with_schema=True) as url:
            bench.progress.turn("concurrency, with kills")
            fleet = Fleet(url, Path(directory) / "slots", "--concurrency", str(CONCURRENCY))
            concurrency = await measure_concurrency(fleet, url, bench.sizes.kill_seconds)
    return [*rate_limit, *concurrency]


async def measure_rate_limit(fleet: Fleet, url: str, seconds: float) -> list[Figure]:
    """Three processes with more to do than they may, for so long."""
    async with launched(fleet, 3), Client(url) as client, connected(url) as connection:
        job = client.stub("job")
        count = int(RATE_LIMIT * (seconds + 2 * PERIOD))
        await client.enqueue_many("fleet", [job.bind(0) for _ in range(count)])
        await asyncio.sleep(seconds)
        rows = sorted(float(row[0]) for row in await connection.fetch(STARTED))
    lines = [run.began for run in fleet.runs()]
    limit = Target(at_most=RATE_LIMIT)
    return [
        figure(f"starts in {PERIOD:.0f} s, rows", most_in_a_window(rows, PERIOD), limit),
        figure(f"starts in {PERIOD:.0f} s, first lines", most_in_a_window(lines, PERIOD), limit),
        Figure("allowance used", "", (share_used(rows),), Target(at_least=0.95)),
    ]


def share_used(starts: list[float], limit: int = RATE_LIMIT) -> float:
    """What started after the first full bucket, of what might have."""
    return (len(starts) - limit) / (limit * (starts[-1] - starts[0]) / PERIOD)


async def measure_concurrency(fleet: Fleet, url: str, seconds: float) -> list[Figure]:
    """Four processes, one of which is killed again and again, for so long and until all is done."""
    async with launched(fleet, 4), Client(url) as client, connected(url) as connection:
        job = client.stub("job")
        began = then = time.monotonic()
        while then < began + seconds:
            await asyncio.sleep(random.uniform(*BETWEEN_KILLS))
            await fleet.kill()
            now = time.monotonic()
            count = int(JOBS_PER_SECOND * (now - then))
            calls = [job.bind(random.uniform(*LENGTHS)) for _ in range(count)]
            await client.enqueue_many("fleet", calls)
            then = now
        given_up_at = time.monotonic() + PATIENCE
        while (unfinished := await connection.fetchval(UNFINISHED)) and (
            time.monotonic() < given_up_at
        ):
            await asyncio.sleep(0.1)
    runs = fleet.runs()
    return [
        figure("processes killed", fleet.kills),
        figure("workflows run", len({run.workflow_id for run in runs})),
        figure("unfinished", unfinished, Target(at_most=0)),
        figure("at most at once", most_at_once(runs), Target(at_most=CONCURRENCY)),
        figure("twice at once", len(twice_at_once(runs)), Target(at_most=0)),
    ]


def figure(name: str, value: float, target: Target | None = None) -> Figure:
    """A figure of one round."""
    return Figure(name, "", (float(value),), target)
