"""From the enqueue in one process to the first line of the workflow in another, with nothing else
to do for either."""

import asyncio
import random
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from bench.bench import Bench
from bench.figures import Figure, Target
from bench.fleet import Fleet, launched
from dbos_async import Client

MILLISECONDS = 1e3
GAPS = (0.005, 0.05)
"""Seconds between the end of one workflow and the next enqueue: at random, not in step with any
poll."""


async def measure(bench: Bench) -> list[Figure]:
    """Percentiles of each round's samples; both processes read the same clock."""
    late: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        async with (
            bench.server.database(with_schema=True) as url,
            launched(Fleet(url, Path(directory) / "ledger"), 1),
            Client(url) as client,
        ):

            async def sample() -> float:
                await asyncio.sleep(random.uniform(*GAPS))
                enqueued_at = time.time()
                handle = await client.enqueue("fleet", client.stub("job"), 0)
                began_at: float = await handle.get_result()
                return (began_at - enqueued_at) * MILLISECONDS

            async def samples() -> float:
                waits = [await sample() for _ in range(bench.sizes.samples)]
                late.append(quantiles(waits, n=100, method="inclusive")[-1])
                return median(waits)

            values = await bench.interleaved({"enqueue to first line": samples})
    return [
        Figure("to first line, p50", "ms", values["enqueue to first line"], Target(at_most=5)),
        Figure("to first line, p99", "ms", tuple(late[1:]), Target(at_most=25)),
    ]
