"""The same load from one process, from two, and so on: what more processes bring."""

from functools import partial

from bench.bench import Bench
from bench.crew import at_work, crew, rate_of, watched
from bench.figures import Figure, Turn, ratios


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second of all processes together; those whose turn it is not are idle."""
    size = bench.sizes
    numbers = range(1, bench.processes + 1)
    async with (
        bench.server.database(with_schema=True) as url,
        crew(url, bench.processes, workflows=size.workflows, steps=size.steps) as members,
    ):

        async def steps_of(number: int) -> float:
            async with at_work(members[:number], size.spell):
                return rate_of(await watched(members[:number], size.spell))

        turns: dict[str, Turn] = {name_of(number): partial(steps_of, number) for number in numbers}
        values = await bench.interleaved(turns)
    return [
        *(
            Figure(
                f"steps, {name_of(number)}",
                "/s",
                values[name_of(number)],
                series="dbos_async",
                x=number,
                x_unit="processes",
            )
            for number in numbers
        ),
        *(
            Figure(
                f"{name_of(number)} : 1 process",
                "x",
                ratios(values[name_of(number)], values[name_of(1)]),
            )
            for number in numbers[1:]
        ),
    ]


def name_of(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
