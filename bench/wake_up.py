"""How soon who waits for a message or an event has it, from another process that is idle else.

A message is sent from here; the workflow there has it, and publishes when that was; who waits for
that event here has it. Both processes read the same clock.
"""

import asyncio
import random
import time
from statistics import median, quantiles

from bench.bench import Bench
from bench.companion import companion
from bench.figures import Figure, Target
from dbos_async import Client

MILLISECONDS = 1e3
GAPS = (0.005, 0.05)
"""Seconds between one message and the next: at random, not in step with any poll."""
PATIENCE = 60.0
MEDIAN, LATE = Target(at_most=5), Target(at_most=25)


async def measure(bench: Bench) -> list[Figure]:
    """Percentiles of each round's samples."""
    values: dict[str, list[float]] = {"recv": [], "get_event": []}
    late: dict[str, list[float]] = {"recv": [], "get_event": []}
    async with (
        bench.server.database(with_schema=True) as url,
        companion("listener", url),
        Client(url) as client,
    ):

        async def samples() -> float:
            waits = await woken(client, bench.sizes.samples)
            for name, some in waits.items():
                values[name].append(median(some))
                late[name].append(quantiles(some, n=100, method="inclusive")[-1])
            return median(waits["recv"])

        await bench.interleaved({"wake-up": samples})
    return [
        figure
        for name in values
        for figure in (
            Figure(f"{name} wakes, p50", "ms", tuple(values[name][1:]), MEDIAN),
            Figure(f"{name} wakes, p99", "ms", tuple(late[name][1:]), LATE),
        )
    ]


async def woken(client: Client, messages: int) -> dict[str, list[float]]:
    """Milliseconds until each message was received, and until each event was."""
    handle = await client.enqueue("listeners", client.stub("listen"), messages)
    waits: dict[str, list[float]] = {"recv": [], "get_event": []}
    for number in range(messages):
        answer = asyncio.create_task(
            client.get_event(handle.workflow_id, f"heard-{number}", timeout=PATIENCE, as_=float)
        )
        await asyncio.sleep(random.uniform(*GAPS))
        sent_at = time.time()
        await client.send(handle.workflow_id, number, "go")
        heard_at = await answer
        assert heard_at is not None
        waits["recv"].append((heard_at - sent_at) * MILLISECONDS)
        waits["get_event"].append((time.time() - heard_at) * MILLISECONDS)
    await handle.get_result()
    return waits
