"""The workflows that are measured."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from dbos_async import DBOS


class App:
    """A launched app, and the ways to load it."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.dbos = DBOS("bench", url)
        self.dbos.configure(**settings)

        @self.dbos.step(name="increment")
        async def increment(number: int) -> int:
            return number + 1

        @self.dbos.workflow(name="count")
        async def count(number: int, steps: int) -> int:
            for _ in range(steps):
                number = await increment(number)
            return number

        @self.dbos.workflow(name="watched")
        async def watched(steps: int) -> list[float]:
            """How many seconds each step took."""
            seconds = []
            for number in range(steps):
                started = time.perf_counter()
                await increment(number)
                seconds.append(time.perf_counter() - started)
            return seconds

        self.count = count
        self.watched = watched

    async def at_once(self, workflows: int, steps: int) -> None:
        """Run so many workflows of so many steps, all started now."""
        await asyncio.gather(*[self.count(number, steps) for number in range(workflows)])

    async def many(self, workflows: int, *, steps: int) -> None:
        """Run so many workflows, a hundred at a time."""
        left = iter(range(workflows))

        async def client() -> None:
            for number in left:
                await self.count(number, steps)

        await asyncio.gather(*[client() for _ in range(100)])

    async def in_flight(self, workflows: int, steps: int, *, until: float) -> int:
        """Replace each of so many workflows as it ends, until a time; how many ran in all."""

        async def client(number: int) -> int:
            ran = 0
            while ran == 0 or time.perf_counter() < until:
                await self.count(number, steps)
                ran += 1
            return ran

        return sum(await asyncio.gather(*[client(number) for number in range(workflows)]))


@asynccontextmanager
async def launched(url: str, **settings: Any) -> AsyncIterator[App]:
    """The app on the database of `url`."""
    app = App(url, **settings)
    async with app.dbos:
        yield app


async def rate_of(wave: Callable[[], Awaitable[None]], per_wave: int, seconds: float) -> float:
    """Repeat `wave` for at least so many seconds; how many of `per_wave` things a second it did."""
    started = time.perf_counter()
    waves = 0
    while waves == 0 or time.perf_counter() - started < seconds:
        await wave()
        waves += 1
    return waves * per_wave / (time.perf_counter() - started)
