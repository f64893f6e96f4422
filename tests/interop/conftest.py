"""An app of ours and the official library's client and workers, on one database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from dbos_async import DBOS
from dbos_async._engine.functions import Step

pytest.importorskip("dbos", reason="the official library is a development dependency")


class Shop:
    """An app of ours with one workflow of each kind; `calls` counts what really ran."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "shop",
        step_names: tuple[str, str] = ("double", "wait_for_gate"),
        recheck_interval: float = 0.2,
        **settings: Any,
    ) -> None:
        self.calls: list[str] = []
        self.dbos = dbos = DBOS(name, url, app_version="1", **settings)
        dbos.configure(recheck_interval=recheck_interval)
        self.mail = dbos.queue("mail")

        @dbos.step(name=step_names[0])
        async def double(number: int) -> int:
            self.calls.append(f"double {number}")
            return 2 * number

        @dbos.step(name="fail")
        async def fail(reason: str) -> None:
            raise ValueError(reason)

        @dbos.workflow(name="simple")
        async def simple(number: int, *, note: str = "") -> dict[str, Any]:
            return {"doubled": await double(number), "note": note}

        @dbos.workflow(name="failing")
        async def failing(reason: str) -> None:
            await fail(reason)

        @dbos.workflow(name="typed")
        async def typed(at: datetime, text: str) -> tuple[datetime, str]:
            return at, text

        @dbos.workflow(name="child")
        async def child(number: int) -> int:
            return await double(number)

        async def branch(number: int) -> int:
            return await double(await double(number))

        @dbos.workflow(name="rich")
        async def rich() -> list[int]:
            """Steps, branches of several steps each, a child, a sleep and a caught error."""
            first = await double(1)
            branches = await asyncio.gather(branch(10), branch(100))
            inherited = await child(1000)
            await dbos.sleep(0.01)
            try:
                await fail("caught")
            except ValueError:
                last = await double(10_000)
            return [first, *branches, inherited, last]

        @dbos.step(name=step_names[1])
        async def wait_for_gate() -> None:
            self.calls.append("waits")
            await self.gate.wait()

        @dbos.workflow(name="waiting")
        async def waiting(number: int) -> int:
            doubled = await double(number)
            await wait_for_gate()
            return await double(doubled)

        self.gate = asyncio.Event()
        self.simple, self.failing, self.typed = simple, failing, typed
        self.rich, self.waiting, self.child = rich, waiting, child
        self.declare_for_forks(double)

    def declare_for_forks(self, double: Step[[int], int]) -> None:
        """Workflows that show what a fork has of its source."""
        dbos = self.dbos

        @dbos.workflow(name="forking")
        async def forking() -> list[int]:
            """Its second step is in a branch or not."""
            first = await double(1)
            second = asyncio.create_task(child_step()) if self.forks else child_step()
            return [first, await second]

        async def child_step() -> int:
            return await double(2)

        @dbos.workflow(name="drawing")
        async def drawing() -> list[Any]:
            early = [str(dbos.uuid4()), dbos.random().random()]
            return [*early, await double(1), str(dbos.uuid4())]

        self.forking, self.drawing, self.forks = forking, drawing, True


@asynccontextmanager
async def launched(url: str, **settings: Any) -> AsyncIterator[Shop]:
    shop = Shop(url, **settings)
    async with shop.dbos:
        yield shop


@asynccontextmanager
async def official_client(url: str) -> AsyncIterator[Any]:
    from dbos import DBOSClient

    client = await asyncio.to_thread(DBOSClient, system_database_url=url)
    try:
        yield client
    finally:
        await asyncio.to_thread(client.destroy)


@pytest.fixture
def shop_on() -> Any:
    """Launches the app on a database, with these settings, for a block."""
    return launched


@pytest.fixture
def official_on() -> Any:
    """Opens the official client on a database for a block."""
    return official_client


@pytest.fixture
async def shop(dbos_database_url: str) -> AsyncIterator[Shop]:
    """The app, launched."""
    async with launched(dbos_database_url) as shop:
        yield shop


@pytest.fixture
async def official(dbos_database_url: str) -> AsyncIterator[Any]:
    """The official client on the same database."""
    async with official_client(dbos_database_url) as client:
        yield client


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Returns once a condition holds."""

    async def until(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # nobody tells
                await asyncio.sleep(0.01)

    return until
