"""A thousand workflows of one step at a time."""

from bench.app import launched, rate_of
from bench.bench import Bench
from bench.figures import Figure, Target


async def measure(bench: Bench) -> list[Figure]:
    """Workflows per second."""
    size = bench.sizes
    async with bench.server.database() as url, launched(url) as app:

        async def at_once() -> float:
            wave = size.workflows
            return await rate_of(lambda: app.at_once(wave, steps=1), wave, size.seconds)

        values = await bench.interleaved({"workflows": at_once})
    return [Figure("workflows", "/s", values["workflows"], Target(at_least=6_000))]
