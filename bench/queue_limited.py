"""What limits cost: a queue with partitions, and ones with a rate limit, beside one without limits.

The limits of the first two are out of reach, so that they cost what it takes to keep them. The
third is slower than what it limits: how much it lets through, of what it may.
"""

from contextlib import AsyncExitStack

from bench.bench import Bench
from bench.figures import Figure, Target, Turn, ratios
from bench.queue_limits import STARTED, share_used
from bench.queued import Queued, paused
from bench.worker import PERIOD
from dbos_async import RateLimit

PARTITIONS = 100
OUT_OF_REACH = 1_000_000
SECONDS_LIMITED = 3
"""How long a queue has work for that starts as much as it may."""


async def measure(bench: Bench) -> list[Figure]:
    """Workflows per second with limits and without, in turns; and the share of a limit used."""
    size = bench.sizes
    async with AsyncExitStack() as stack:

        async def queue(**limits: object) -> Queued:
            url = await stack.enter_async_context(bench.server.database())
            return await stack.enter_async_context(paused(url, **limits))

        limited = await queue(rate_limit=RateLimit(size.starts, per=PERIOD))
        values = await bench.interleaved(
            {
                "no limit": drained(await queue(), size.limited),
                "partitioned": drained(
                    await queue(partitions=PARTITIONS, partition_concurrency=OUT_OF_REACH),
                    size.limited,
                ),
                "rate limit": drained(
                    await queue(rate_limit=RateLimit(OUT_OF_REACH, per=PERIOD)), size.limited
                ),
                "allowance": lambda: allowance_used(limited, size.starts),
            }
        )
    free, partitioned, limited_rates = (
        values[name] for name in ("no limit", "partitioned", "rate limit")
    )
    return [
        Figure("workflows, no limit", "/s", free),
        Figure("workflows, 100 partitions", "/s", partitioned),
        Figure("workflows, rate limit out of reach", "/s", limited_rates),
        Figure("100 partitions : no limit", "x", ratios(partitioned, free)),
        Figure("rate limit out of reach : no limit", "x", ratios(limited_rates, free)),
        Figure(
            f"allowance used, of {size.starts:,}/s",
            "",
            values["allowance"],
            Target(at_least=0.95),
        ),
    ]


def drained(queued: Queued, workflows: int) -> Turn:
    """Fill it, and take everything off it."""

    async def turn() -> float:
        await queued.refill(workflows)
        return await queued.drain(workflows)

    return turn


async def allowance_used(queued: Queued, limit: int) -> float:
    """Let it start what it may; the bucket is full by now, for others had their turns."""
    await queued.refill(limit * (1 + SECONDS_LIMITED))
    await queued.drain(limit * (1 + SECONDS_LIMITED))
    rows = await queued.connection.fetch(STARTED)
    return share_used(sorted(float(row[0]) for row in rows), limit)
