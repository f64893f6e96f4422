"""An app whose workflows are managed by tests: what ran is in `calls`, and a gate holds them up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from dbos_async import DBOS

PATIENCE = 20.0
HOUR = 3_600.0
"""Seconds between rechecks: what happens within a test, happened because of news."""


class Managed:
    """One launch of the app."""

    def __init__(self, url: str, *, version: str = "1", **settings: Any) -> None:
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.fails = True
        self.dbos = dbos = DBOS("shop", url, app_version=version, **settings)
        dbos.configure(recheck_interval=HOUR)
        self.mail = dbos.queue("mail")

        @dbos.step(name="double")
        async def double(number: int) -> int:
            self.calls.append(f"double {number}")
            return 2 * number

        @dbos.step(name="hold")
        async def hold() -> str:
            self.calls.append("hold")
            await self.gate.wait()
            return version

        @dbos.step(name="risk")
        async def risk() -> str:
            self.calls.append("risk")
            if self.fails:
                raise ValueError("too risky")
            return "well"

        @dbos.workflow(name="simple")
        async def simple(number: int) -> int:
            return await double(number)

        @dbos.workflow(name="waiting")
        async def waiting(number: int) -> list[Any]:
            return [await double(number), await hold(), await double(number + 1)]

        @dbos.workflow(name="risky")
        async def risky() -> list[Any]:
            return [await double(1), await risk(), await double(2)]

        @dbos.workflow(name="family")
        async def family() -> list[Any]:
            return [await double(1), await risky(), await double(3)]

        @dbos.workflow(name="parent")
        async def parent(number: int) -> list[Any]:
            return [await double(number), await waiting(number)]

        async def branch(number: int) -> int:
            return await double(await double(number))

        @dbos.workflow(name="rich")
        async def rich() -> list[Any]:
            """Steps, branches of several steps each, a child, drawn values and a caught error."""
            first = await double(1)
            branches = await asyncio.gather(*[branch(10**n) for n in range(1, 4)])
            drawn = str(dbos.uuid4())
            inherited = await simple(7)
            try:
                await risk()
            except ValueError:
                drawn += str(dbos.uuid4())
            return [first, *branches, inherited, await double(5), drawn]

        self.simple, self.waiting, self.risky, self.rich = simple, waiting, risky, rich
        self.family, self.parent = family, parent

    async def hold(self, workflow_id: str = "w", workflow: Any = None) -> Any:
        """Start a workflow, and return once it stands at the gate."""
        held = self.calls.count("hold")
        asked = (workflow or self.waiting).with_options(workflow_id=workflow_id)
        handle = await self.dbos.start_workflow(asked, 1)
        await self.until(lambda: self.calls.count("hold") > held)
        return handle

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)

    async def status(self, workflow_id: str = "w") -> Any:
        return await (await self.dbos.retrieve_workflow(workflow_id)).get_status()

    async def until_status(self, wanted: str, workflow_id: str = "w") -> None:
        async def holds() -> bool:
            return bool((await self.status(workflow_id)).status == wanted)

        await eventually(holds)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.01)


async def result_of(handle: Any) -> Any:
    return await handle.get_result(timeout=PATIENCE)


@asynccontextmanager
async def managed(url: str, **settings: Any) -> AsyncIterator[Managed]:
    shop = Managed(url, **settings)
    async with shop.dbos:
        yield shop
