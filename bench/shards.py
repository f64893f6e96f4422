"""Two databases behind one app, beside each of them alone: on one server, with one process."""

import asyncio

from bench.app import rate_of
from bench.bench import Bench
from bench.figures import Figure, ratios
from dbos_async import DBOS, Router, Shards

router = Router()


@router.step(name="increment")
async def increment(number: int) -> int:
    """What each step does."""
    return number + 1


@router.workflow(name="count")
async def count(number: int, steps: int) -> int:
    """Take so many steps."""
    for _ in range(steps):
        number = await increment(number)
    return number


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second on the first, on the second, and on both at once."""
    size = bench.sizes
    async with bench.server.database() as first, bench.server.database() as second:
        shards = Shards({"a": DBOS("bench", first), "b": DBOS("bench", second)})
        shards.include(router)
        async with shards:

            async def rate(*names: str) -> float:
                wave = [names[number % len(names)] for number in range(size.workflows)]
                return await rate_of(
                    lambda: at_once(shards, wave, size.steps),
                    size.workflows * size.steps,
                    size.seconds,
                )

            values = await bench.interleaved(
                {"a": lambda: rate("a"), "b": lambda: rate("b"), "both": lambda: rate("a", "b")}
            )
    return [
        Figure("steps on the first", "/s", values["a"]),
        Figure("steps on the second", "/s", values["b"]),
        Figure("steps on both", "/s", values["both"]),
        Figure("both : first", "x", ratios(values["both"], values["a"])),
    ]


async def at_once(shards: Shards[DBOS], names: list[str], steps: int) -> None:
    """Start a workflow on each of the shards so named, and see all to their ends."""

    async def one(number: int, name: str) -> None:
        handle = await shards[name].start_workflow(count, number, steps)
        await handle.get_result()

    await asyncio.gather(*[one(number, name) for number, name in enumerate(names)])
