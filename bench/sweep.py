"""The same steps by one workflow at a time, by ten at once, and so on to ten thousand."""

from bench.app import App, launched, rate_of
from bench.bench import Bench
from bench.figures import Figure, Turn


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second at each number of workflows, in turns."""
    async with bench.server.database() as url, launched(url) as app:
        values = await bench.interleaved(
            {f"{number:,} at once": turn_of(app, bench, number) for number in bench.sizes.at_once}
        )
    return [
        Figure(
            f"steps, {number:,} at once",
            "/s",
            values[f"{number:,} at once"],
            series="dbos_async",
            x=number,
            x_unit="workflows at once",
        )
        for number in bench.sizes.at_once
    ]


def turn_of(app: App, bench: Bench, workflows: int) -> Turn:
    """So many at once, and again when they are done."""
    steps = bench.sizes.steps

    async def turn() -> float:
        return await rate_of(
            lambda: app.at_once(workflows, steps), workflows * steps, bench.sizes.seconds
        )

    return turn
