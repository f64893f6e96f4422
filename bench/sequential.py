"""One workflow whose steps follow each other, beside the bare insert of the same row."""

from statistics import median

from bench import bare
from bench.app import launched
from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.server import connected

MICROSECONDS = 1e6


async def measure(bench: Bench) -> list[Figure]:
    """Median times of a step and of an insert, in turns."""
    steps = bench.sizes.sequential_steps
    samples: dict[str, list[list[float]]] = {"step": [], "bare insert": []}
    async with (
        bench.server.database() as url,
        bench.server.database(with_schema=True) as bare_url,
        launched(url) as app,
        connected(bare_url) as connection,
    ):
        await app.watched(1)
        specimen = await bare.fetch_specimen(url, "watched")

        async def step() -> float:
            samples["step"].append(await app.watched(steps))
            return median(samples["step"][-1]) * MICROSECONDS

        async def bare_insert() -> float:
            seconds = await bare.insert_singly(connection, specimen.steps[0], steps)
            samples["bare insert"].append(seconds)
            return median(seconds) * MICROSECONDS

        values = await bench.interleaved({"step": step, "bare insert": bare_insert})
    return [
        *(
            Figure(name, "µs", values[name], samples=microseconds(some[1:]))
            for name, some in samples.items()
        ),
        Figure(
            "step : bare insert",
            "x",
            ratios(values["step"], values["bare insert"]),
            Target(at_most=1.5),
        ),
    ]


def microseconds(rounds: list[list[float]]) -> tuple[float, ...]:
    """All samples of the rounds that count."""
    return tuple(seconds * MICROSECONDS for some in rounds for seconds in some)
