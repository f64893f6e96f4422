"""Workflows enqueued ten thousand in a call."""

from bench.app import rate_of
from bench.bench import Bench
from bench.figures import Figure, Target
from bench.queued import paused


async def measure(bench: Bench) -> list[Figure]:
    """Workflows per second that are durably on the queue, and whose caller has their handles."""
    size = bench.sizes
    async with bench.server.database() as url, paused(url) as queued:

        async def enqueue() -> float:
            await queued.refill(0)
            return await rate_of(
                lambda: queued.feed_many(size.enqueued), size.enqueued, size.seconds
            )

        values = await bench.interleaved({"enqueued": enqueue})
    return [Figure("enqueued", "/s", values["enqueued"], Target(at_least=40_000))]
