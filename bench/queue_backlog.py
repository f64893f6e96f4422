"""The same drain from the head of a queue where a million workflows stay behind."""

from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.queued import paused


async def measure(bench: Bench) -> list[Figure]:
    """Workflows per second with a backlog and without, in turns."""
    size = bench.sizes
    async with (
        bench.server.database() as url,
        bench.server.database() as long_url,
        paused(url) as queued,
        paused(long_url) as behind,
    ):
        await behind.refill(size.backlog + size.queued)

        async def drain() -> float:
            await queued.refill(size.queued)
            return await queued.drain(size.queued)

        async def drain_some() -> float:
            rate = await behind.drain(size.queued)
            await behind.fill(behind.ran)
            await behind.vacuum()
            return rate

        values = await bench.interleaved({"workflows": drain, "with backlog": drain_some})
    without, with_backlog = values["workflows"], values["with backlog"]
    return [
        Figure("workflows", "/s", without),
        Figure("workflows, with backlog", "/s", with_backlog),
        Figure("with : without", "x", ratios(with_backlog, without), Target(at_least=0.8)),
    ]
