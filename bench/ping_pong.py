"""Pairs of workflows that send each other a message as soon as they have the other's."""

import asyncio
import time
import uuid

from bench.bench import Bench
from bench.figures import Figure
from bench.latency import Latency
from dbos_async import DBOS

PATIENCE = 60.0
"""Seconds that each waits for the other's message; it takes milliseconds."""


async def measure(bench: Bench) -> list[Figure]:
    """Round trips per second, and how long each took, by the number of pairs."""
    async with bench.server.database() as url:
        game = Game(url)
        matches = [Match(game, pairs, bench.sizes.exchanges) for pairs in bench.sizes.pairs]
        async with game.dbos:
            values = await bench.interleaved({match.name: match.play for match in matches})
    return [figure for match in matches for figure in match.figures(values[match.name])]


class Game:
    """An app of players; who serves times each round trip."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("bench", url)

        @dbos.workflow(name="serve")
        async def serve(other: str, exchanges: int) -> list[float]:
            seconds: list[float] = []
            for number in range(exchanges):
                started = time.perf_counter()
                await dbos.send(other, number, "ball")
                assert await dbos.recv("ball", timeout=PATIENCE) == number
                seconds.append(time.perf_counter() - started)
            return seconds

        @dbos.workflow(name="answer")
        async def answer(other: str, exchanges: int) -> None:
            for _ in range(exchanges):
                await dbos.send(other, await dbos.recv("ball", timeout=PATIENCE), "ball")

        self._serve = serve
        self._answer = answer

    async def play(self, exchanges: int) -> list[float]:
        """Let a new pair exchange so many messages; the seconds of each round trip."""
        one, other = str(uuid.uuid4()), str(uuid.uuid4())
        answer = self._answer.with_options(workflow_id=other)
        serve = self._serve.with_options(workflow_id=one)
        handle = await self.dbos.start_workflow(answer, one, exchanges)
        seconds = await serve(other, exchanges)
        await handle.get_result()
        return seconds


class Match:
    """So many pairs at the same time."""

    def __init__(self, game: Game, pairs: int, exchanges: int) -> None:
        self.name = f"{pairs:,} pair{'s' if pairs > 1 else ''}"
        self._game = game
        self._pairs = pairs
        self._exchanges = exchanges
        self._latency = Latency()

    async def play(self) -> float:
        """Round trips per second of all pairs."""
        started = time.perf_counter()
        seconds = await asyncio.gather(
            *[self._game.play(self._exchanges) for _ in range(self._pairs)]
        )
        rate = self._pairs * self._exchanges / (time.perf_counter() - started)
        self._latency.note([wait for waits in seconds for wait in waits])
        return rate

    def figures(self, rates: tuple[float, ...]) -> list[Figure]:
        """What was measured, as points of lines."""
        x, x_unit = self._pairs, "pairs at once"
        rate = Figure(
            f"round trips, {self.name}", "/s", rates, series="dbos_async", x=x, x_unit=x_unit
        )
        return [rate, *self._latency.figures(f"round trip, {self.name}", x=x, x_unit=x_unit)]
