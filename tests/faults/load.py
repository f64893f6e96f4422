"""An app under load, for tests that take its connections or its server away."""

import asyncio
from collections import Counter

import asyncpg

from dbos_async import DBOS, WorkflowHandle

PATIENCE = 60.0
"""Seconds after which what a test waits for will not come."""


class Load:
    """Many workflows of several steps; it counts what ran and what was recorded by then."""

    def __init__(self, url: str, *, pause: float = 0.02) -> None:
        self.dbos = dbos = DBOS("load", url, app_version="1")
        dbos.configure(recheck_interval=0.5)
        self.began: Counter[str] = Counter()
        self.handles: list[WorkflowHandle[int]] = []

        @dbos.step
        async def work(number: int) -> int:
            self.began[dbos.idempotency_key] += 1
            await asyncio.sleep(pause)
            return number

        async def branch(number: int) -> int:
            return await work(number) + await work(number)

        @dbos.workflow
        async def job(number: int, length: int) -> int:
            total = 0
            for _ in range(length):
                total += sum(await asyncio.gather(branch(number), branch(number)))
            return total

        self.job = job

    async def start(self, workflows: int, *, length: int = 10) -> None:
        self.length = length
        begun = len(self.handles)
        for i in range(begun, begun + workflows):
            call = self.job.with_options(workflow_id=f"w{i}")
            self.handles.append(await self.dbos.start_workflow(call, i, length))

    async def check(self) -> None:
        """Everything ended well, and each step ran once, for its process never died."""
        async with asyncio.timeout(PATIENCE):
            results = await asyncio.gather(*[handle.get_result() for handle in self.handles])
        assert results == [4 * i * self.length for i in range(len(self.handles))]
        assert set(self.began.values()) == {1}
        assert len(self.began) == len(self.handles) * self.length * 4


async def backends(url: str) -> dict[str, int]:
    """The process ids of the app's connections by their purpose."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "select application_name, pid from pg_stat_activity "
        "where datname = current_database() and application_name like 'dbos_async %'"
    )
    await connection.close()
    return {row[0].removeprefix("dbos_async load "): row[1] for row in rows}


async def terminate(url: str, pid: int) -> None:
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select pg_terminate_backend($1)", pid)
    await connection.close()
