"""A queue of workflows that do nothing, filled beforehand and drained on command."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.server import connected
from dbos_async import DBOS, RateLimit
from dbos_async._store.database import Connection

LOOK_INTERVAL = 0.01
"""Seconds between looks whether everything that was claimed has ended."""

# Copies of the one workflow that the library enqueued itself, each younger than the one before; of
# $2 partitions in turn, if any.
FILL = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, inputs, executor_id,
        application_version, owner_xid, creator_xid, queue_name, queue_partition_key, priority,
        recovery_attempts, enqueue_order, serialization, application_name, created_at, updated_at)
select gen_random_uuid()::text, w.status, w.name, w.class_name, w.config_name, w.inputs,
       w.executor_id, w.application_version, w.owner_xid, w.creator_xid, w.queue_name,
       'partition ' || moment.n % $2::int, w.priority, w.recovery_attempts,
       nextval('dbos.workflow_order') * 1024, w.serialization, w.application_name, moment.ms,
       moment.ms
  from bench_specimen w,
       (select n, (extract(epoch from now()) * 1000)::bigint + n / 20 as ms
          from generate_series(1, $1::int) n order by n) moment
"""
KEEP_SPECIMEN = "create table bench_specimen as select * from dbos.workflow_status"
# What the library's own connections say: they notify by themselves, so the trigger need not.
OWN = "set dbos_async.own = on"
CLEAR = "truncate dbos.workflow_status cascade"
IS_RUNNING = """
select exists (select from dbos.workflow_status where queue_name = 'bench' and status = 'PENDING')
"""


class Queued:
    """A launched app with a paused queue, and the ways to load it."""

    def __init__(
        self,
        url: str,
        *,
        partitions: int | None = None,
        partition_concurrency: int | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        self.url = url
        self.partitions = partitions
        self.ran = 0
        """Workflows that have begun since the last fill."""
        self.dbos = DBOS("bench", url, app_version="1")
        self.queue = self.dbos.queue(
            "bench", partition_concurrency=partition_concurrency, rate_limit=rate_limit
        )
        self._enough = asyncio.Event()
        self._wanted = 0
        self.connection: Connection

        @self.dbos.workflow(name="noop")
        async def noop() -> None:
            self.ran += 1
            if self.ran == self._wanted:
                self._enough.set()

        @self.dbos.workflow(name="numbered")
        async def numbered(number: int) -> int:
            return number

        @self.dbos.workflow(name="feeder")
        async def feeder(at_once: int, each: int) -> None:
            await self.feed(at_once, each)

        self.noop = noop
        self.numbered = numbered
        self.feeder = feeder

    async def feed(self, at_once: int, each: int) -> None:
        """Enqueue one a call: so many calls at a time, so often."""

        async def client() -> None:
            for number in range(each):
                await self.queue.enqueue(self.numbered, number)

        await asyncio.gather(*[client() for _ in range(at_once)])

    async def feed_many(self, workflows: int) -> None:
        """Enqueue so many in one call."""
        calls = [self.numbered.bind(number) for number in range(workflows)]
        handles = await self.queue.enqueue_many(calls)
        assert len(handles) == workflows

    async def fill(self, workflows: int) -> None:
        """Put so many more on the queue, as rows."""
        await self.connection.execute(FILL, workflows, self.partitions)

    async def refill(self, workflows: int) -> None:
        """Put so many on the queue, and nothing else into the table."""
        await self.connection.execute(CLEAR)
        await self.fill(workflows)
        await self.vacuum()

    async def vacuum(self) -> None:
        """Do what autovacuum would do by and by."""
        await self.connection.execute("vacuum analyze dbos.workflow_status")

    async def drain(self, workflows: int) -> float:
        """Run so many and those that are claimed with them; how many a second, to the last end."""
        self.ran, self._wanted = 0, workflows
        self._enough.clear()
        started = time.perf_counter()
        await self.queue.resume()
        await self._enough.wait()
        await self.queue.pause()
        await self.rest()
        return self.ran / (time.perf_counter() - started)

    async def rest(self) -> None:
        """Return once nothing runs."""
        while await self.connection.fetchval(IS_RUNNING):
            await asyncio.sleep(LOOK_INTERVAL)


@asynccontextmanager
async def paused(url: str, **limits: Any) -> AsyncIterator[Queued]:
    """The app on the database of `url`, whose queue is paused and empty. Limits as of `Queued`."""
    async with Queued(url, **limits).dbos as first:
        await (await first.retrieve_queue("bench")).pause()
    queued = Queued(url, **limits)
    async with queued.dbos, connected(url) as queued.connection:
        await queued.connection.execute(OWN)
        specimen = queued.noop
        if queued.partitions is not None:
            specimen = specimen.with_options(partition_key="any")
        await queued.queue.enqueue(specimen)
        await queued.connection.execute(KEEP_SPECIMEN)
        await queued.connection.execute(CLEAR)
        yield queued
