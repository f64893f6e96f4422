"""A workflow that lives more than once: its app is dropped midway, and another takes it over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from commands import Commands

from dbos_async import DBOS, Workflow, WorkflowHandle

PATIENCE = 20.0
"""Seconds after which what a test waits for will not come."""


class Life:
    """One launch of the app under test. The first stops at `halt`, those after it pass."""

    def __init__(self, dbos: DBOS, number: int) -> None:
        self.dbos = dbos
        self.number = number
        self.reached = asyncio.Event()

    @property
    def is_first(self) -> bool:
        return self.number == 1

    async def halt(self) -> None:
        """Stand still here in the first life."""
        if self.is_first:
            self.reached.set()
            await asyncio.Event().wait()


Declare = Callable[[Life], Workflow[..., Any]]


class Lives:
    """Runs what `declare` makes of each life: until its halt first, then to its end."""

    workflow_id = "w"

    def __init__(self, url: str) -> None:
        self.url = url
        self._number = 0

    def born(self, **settings: Any) -> Life:
        """The next life, not launched."""
        self._number += 1
        return Life(DBOS("lives", self.url, app_version="1", **settings), self._number)

    async def begin(self, declare: Declare, *args: Any) -> None:
        """Run the workflow until it halts, and drop its app there."""
        life = self.born()
        workflow = declare(life)
        async with asyncio.timeout(PATIENCE):
            await life.dbos.launch()
            handle = await life.dbos.start_workflow(
                workflow.with_options(workflow_id=self.workflow_id), *args
            )
            await first_of(life.reached.wait(), handle.get_result())
            await life.dbos.shutdown(timeout=0)
        assert life.reached.is_set(), "the first life ended without a halt"

    async def resume(self, declare: Declare) -> Any:
        """What the workflow returns in its next life."""
        life = self.born()
        declare(life)
        async with asyncio.timeout(PATIENCE), life.dbos:
            handle: WorkflowHandle[Any] = await life.dbos.retrieve_workflow(self.workflow_id)
            return await handle.get_result()

    async def both(self, declare: Declare, *args: Any) -> Any:
        """Begin, then resume."""
        await self.begin(declare, *args)
        return await self.resume(declare)


async def first_of(*awaitables: Awaitable[Any]) -> None:
    """Return when one is done; raise what it raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


@pytest.fixture
def lives(dbos_database_url: str) -> Lives:
    return Lives(dbos_database_url)


@pytest.fixture
async def database(
    dbos_database_url: str,
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(dbos_database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def until() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Waits until a condition of the database's holds, or fails."""

    async def wait(condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await condition():
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def cli(dbos_database_url: str) -> Commands:
    return Commands(dbos_database_url)
