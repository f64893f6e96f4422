"""Steps with results of 100 bytes to a mebibyte, beside bare batches of the same rows."""

import asyncio
import base64
import random
from collections.abc import Sequence
from functools import partial

from bench import bare
from bench.app import rate_of
from bench.bench import Bench, Sizes
from bench.figures import Figure, Turn, ratios
from bench.server import connected
from dbos_async import DBOS

LENGTHS = {
    "100 B": 100,
    "1 KiB": 1024,
    "10 KiB": 10 * 1024,
    "100 KiB": 100 * 1024,
    "1 MiB": 1024 * 1024,
}
"""Bytes of a step's result."""
MEGA = 1e6
CLEAR = "truncate dbos.workflow_status, dbos.operation_outputs cascade"


class Carriers:
    """Workflows whose steps return so much."""

    def __init__(self, url: str) -> None:
        self.dbos = DBOS("bench", url, app_version="1")
        texts = {name: text_of(length) for name, length in LENGTHS.items()}

        @self.dbos.step(name="produce")
        async def produce(name: str) -> str:
            return texts[name]

        @self.dbos.workflow(name="carry")
        async def carry(name: str, steps: int) -> None:
            for _ in range(steps):
                await produce(name)

        self._carry = carry

    async def at_once(self, name: str, workflows: int, steps: int) -> None:
        """Run so many workflows of so many steps, all started now."""
        await asyncio.gather(*[self._carry(name, steps) for _ in range(workflows)])


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second of each size, in turns with the bare loop."""
    size = bench.sizes
    async with bench.server.database() as url, bench.server.database(with_schema=True) as bare_url:
        carriers = Carriers(url)
        async with carriers.dbos, connected(url) as own, connected(bare_url) as connection:
            specimens: dict[str, bare.Specimen] = {}
            for name in LENGTHS:
                await carriers.at_once(name, 1, size.steps)
                specimens[name] = await bare.fetch_specimen(url, "carry")

            async def steps(name: str, workflows: int) -> float:
                await own.execute(CLEAR)
                return await rate_of(
                    lambda: carriers.at_once(name, workflows, size.steps),
                    workflows * size.steps,
                    size.seconds,
                )

            async def rows(name: str, workflows: int) -> float:
                await connection.execute(CLEAR)
                seconds = inserted = 0.0
                while inserted == 0 or seconds < size.seconds:
                    seconds += await bare.insert_batches(connection, specimens[name], workflows)
                    inserted += workflows * size.steps
                return inserted / seconds

            turns: dict[str, Turn] = {}
            for name, length in LENGTHS.items():
                turns[name] = partial(steps, name, workflows_of(size, length))
                turns[f"{name}, bare"] = partial(rows, name, workflows_of(size, length))
            values = await bench.interleaved(turns)
    return [
        figure
        for name in LENGTHS
        for figure in figures_of(name, values[name], values[f"{name}, bare"])
    ]


def workflows_of(size: Sizes, length: int) -> int:
    """How many at once: fewer where that would be more than `payload_bytes` in all."""
    return max(1, min(size.workflows, size.payload_bytes // (length * size.steps)))


def figures_of(name: str, steps: Sequence[float], rows: Sequence[float]) -> list[Figure]:
    """What one size comes to."""
    ours = partial(Figure, series="dbos_async", x=LENGTHS[name], x_unit="payload bytes")
    theirs = partial(Figure, series="bare batches", x=LENGTHS[name], x_unit="payload bytes")

    def megabytes(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(value * LENGTHS[name] / MEGA for value in values)

    return [
        ours(f"steps, {name}", "/s", tuple(steps)),
        theirs(f"bare batches, {name}", "/s", tuple(rows)),
        ours(f"throughput, {name}", "MB/s", megabytes(steps)),
        theirs(f"throughput of bare batches, {name}", "MB/s", megabytes(rows)),
        Figure(f"steps : bare batches, {name}", "x", ratios(steps, rows)),
    ]


def text_of(length: int) -> str:
    """Text that Postgres does not compress: what compresses well costs less than its size."""
    return base64.b64encode(random.randbytes(length)).decode()[:length]
