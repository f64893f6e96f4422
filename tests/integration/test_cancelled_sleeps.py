"""A branch that is cancelled in a sleep: its replay is, too, though the moment has long passed."""

import asyncio
import itertools
from typing import Any

import pytest

from dbos_async import DBOS
from dbos_async.testing import advance, crash_at

HOUR = 3600
PATIENCE = 20.0
"""Seconds after which what a test waits for will not come."""


class Life:
    """One launch of an app with a branch that sleeps between its steps."""

    def __init__(self, url: str, way: str) -> None:
        self.dbos = dbos = DBOS("sleepers", url, app_version="1")
        self.ran: list[str] = []

        @dbos.step(name="step")
        async def step(label: str) -> str:
            self.ran.append(label)
            return label

        async def naps(seconds: float) -> None:
            try:
                await dbos.sleep(0)
                await step("before")
                await dbos.sleep(seconds)
                await step("after")
            finally:
                await step("cleanup")

        async def failing() -> None:
            await step("work")
            raise ValueError("no")

        async def sibling(seconds: float) -> None:
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(naps(seconds))
                    await step("one")
                    await step("two")
                    group.create_task(failing())

        async def loser(seconds: float) -> None:
            task = asyncio.create_task(naps(seconds))
            await step("one")
            await step("two")
            quick = asyncio.create_task(step("work"))
            await dbos.wait([task, quick], return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            await asyncio.wait([task])

        @dbos.workflow(name="root")
        async def root(seconds: float) -> str:
            await (sibling if way == "sibling" else loser)(seconds)
            return await step("last")

        self.root: Any = root

    async def run(self, workflow_id: str, seconds: float) -> Any:
        async with asyncio.timeout(PATIENCE), self.dbos:
            return await self.root.with_options(workflow_id=workflow_id)(seconds)

    async def check(self, workflow_id: str) -> None:
        [report] = await self.dbos.check_replay(workflow_ids=[workflow_id])
        assert report.is_ok, report


@pytest.mark.parametrize("way", ["sibling", "loser"])
@pytest.mark.parametrize("seconds", [0, HOUR])
async def test_what_ended_a_sleep_ends_it_again_after_its_moment(
    dbos_database_url: str, way: str, seconds: float
) -> None:
    for checkpoint in itertools.count(1):
        workflow_id = f"w{checkpoint}"
        first = Life(dbos_database_url, way)
        with crash_at(checkpoint) as crash:
            await first.run(workflow_id, seconds)
        advance(HOUR)
        await Life(dbos_database_url, way).check(workflow_id)
        second = Life(dbos_database_url, way)
        assert await second.run(workflow_id, seconds) == "last"
        await Life(dbos_database_url, way).check(workflow_id)
        if seconds and "last" in first.ran:
            assert "cleanup" in first.ran
            assert "after" not in first.ran + second.ran
        if not crash.happened:
            return
