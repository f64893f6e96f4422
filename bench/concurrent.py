"""A thousand workflows of ten steps at a time, beside bare batches of the same rows."""

import time

from bench import bare
from bench.app import launched, rate_of
from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.server import ConnectionCount, connected


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second, in turns with the bare loop; and the connections it took."""
    size = bench.sizes
    async with (
        bench.server.database() as url,
        bench.server.database(with_schema=True) as bare_url,
        launched(url) as app,
        connected(bare_url) as connection,
        connected(bench.server.url) as onlooker,
    ):
        await app.at_once(1, size.steps)
        specimen = await bare.fetch_specimen(url, "count")
        connections = ConnectionCount(url, onlooker)

        async def at_once() -> float:
            return await rate_of(
                lambda: app.at_once(size.workflows, size.steps),
                size.workflows * size.steps,
                size.seconds,
            )

        async def in_flight() -> float:
            started = time.perf_counter()
            until = started + size.seconds
            ran = await app.in_flight(size.workflows, size.steps, until=until)
            return ran * size.steps / (time.perf_counter() - started)

        async def bare_batches() -> float:
            seconds = rows = 0.0
            while rows == 0 or seconds < size.seconds:
                seconds += await bare.insert_batches(connection, specimen, size.workflows)
                rows += size.workflows * size.steps
            return rows / seconds

        values = await bench.interleaved(
            {
                "steps": lambda: connections.during(at_once),
                "bare batches": bare_batches,
                "steps, in flight": lambda: connections.during(in_flight),
            }
        )
    return [
        Figure("steps", "/s", values["steps"], Target(at_least=20_000)),
        Figure("steps, in flight", "/s", values["steps, in flight"]),
        Figure("bare batches, steps", "/s", values["bare batches"]),
        Figure(
            "steps : bare batches",
            "x",
            ratios(values["steps"], values["bare batches"]),
            Target(at_least=0.5),
        ),
        Figure("connections", "", tuple(map(float, connections.most)), Target(at_most=6)),
    ]
