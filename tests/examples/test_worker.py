"""The example worker: work that outlives it, and an end in good order."""

import asyncio

from programs import PATIENCE, Start

from dbos_async import Client


async def test_workers_share_the_work_of_one_that_is_killed(
    start: Start, dbos_database_url: str
) -> None:
    environment = {"DBOS_SYSTEM_DATABASE_URL": dbos_database_url}
    first = start("examples.worker", **environment)
    async with Client(dbos_database_url) as client:
        thumbnail = client.stub("thumbnail")
        names = [f"{number}.jpg" for number in range(200)]
        handles = [await client.enqueue("thumbnails", thumbnail, name) for name in names]
        await handles[0].get_result(timeout=PATIENCE)
        first.kill()
        second = start("examples.worker", **environment)
        results = await asyncio.gather(*(h.get_result(timeout=PATIENCE) for h in handles))
    assert results == [f"small-{name}" for name in names]
    assert await asyncio.to_thread(second.end) == 0
    assert "Traceback" not in second.said
