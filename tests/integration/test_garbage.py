"""What has run leaves nothing behind that only the collector of cycles could remove."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from dbos_async import DBOS
from dbos_async._engine.context import Branch
from dbos_async._engine.execution import Execution
from dbos_async._engine.line import Slot

PATIENCE = 60.0
WORKFLOWS = 1_000


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> int:
    return sum(isinstance(each, Execution | Branch | Slot) for each in gc.get_objects())


@pytest.mark.parametrize("way", ["called", "started", "queued"])
@pytest.mark.usefixtures("uncollected")
async def test_a_run_is_gone_without_the_collector(dbos_database_url: str, way: str) -> None:
    dbos = DBOS("app", dbos_database_url, app_version="1")
    queue = dbos.queue("queue")

    @dbos.step
    async def doubled(number: int) -> int:
        return 2 * number

    @dbos.workflow(name="flow")
    async def flow(number: int) -> int:
        return await doubled(number)

    async with dbos, asyncio.timeout(PATIENCE):
        before = left()
        if way == "called":
            results = await asyncio.gather(*map(flow, range(WORKFLOWS)))
        elif way == "started":
            started = [await dbos.start_workflow(flow, number) for number in range(WORKFLOWS)]
            results = [await handle.get_result() for handle in started]
            del started
        else:
            queued = await queue.enqueue_many(map(flow.bind, range(WORKFLOWS)))
            results = [await handle.get_result() for handle in queued]
        assert results == [2 * number for number in range(WORKFLOWS)]
        while left() > before + 10:  # what the last frames and batches hold
            await asyncio.sleep(0.01)
