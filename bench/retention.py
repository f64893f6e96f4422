"""Workflows that run while a million are pruned; and how large a policy lets the tables grow."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from bench.app import App, launched
from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.server import connected
from dbos_async import Retention
from dbos_async._service import running
from dbos_async._store import pruning, sql
from dbos_async._store.database import Connection, Database
from dbos_async._store.pruning import Batch, Walk

CLIENTS = 40
STEPS = 10
"""Of each workflow that runs."""
PERIODS = 10
"""Times that as many workflows are processed as are kept."""
EVERYTHING = Retention(max_age=3_600)

# Copies of a workflow that the library ran, a thousand a second, until long ago.
KEEP_SPECIMEN = """
create table bench_specimen as
select w.*, o.function_id, o.function_name, o.output as step_output, o.completed_at_epoch_ms,
       o.arguments_digest
  from dbos.workflow_status w join dbos.operation_outputs o using (workflow_uuid)
"""
FILL = """
with made as (
    insert into dbos.workflow_status
           (workflow_uuid, status, name, class_name, config_name, inputs, output, executor_id,
            application_version, creator_xid, recovery_attempts, serialization, application_name,
            created_at, updated_at, completed_at)
    select gen_random_uuid()::text, s.status, s.name, s.class_name, s.config_name, s.inputs,
           s.output, s.executor_id, s.application_version, s.creator_xid, s.recovery_attempts,
           s.serialization, s.application_name, 1700000000000 + n, 1700000000000 + n,
           1700000000000 + n
      from generate_series($1::int, $2::int) n,
           (select * from bench_specimen where function_id = 1) s
     order by n
    returning workflow_uuid
)
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, completed_at_epoch_ms, serialization,
        application_name, arguments_digest)
select m.workflow_uuid, s.function_id, s.function_name, s.step_output, s.completed_at_epoch_ms,
       s.serialization, s.application_name, s.arguments_digest
  from made m, bench_specimen s
"""
CHUNK = 50_000
PRUNE = sql.PRUNE.replace(
    "b.is_last", "b.is_last, 1000 * extract(epoch from clock_timestamp() - now())::float8"
)
LEFT = "select count(*) from dbos.workflow_status where created_at < 1710000000000"
SIZE = """
select sum(pg_total_relation_size(c.oid))::bigint from pg_class c
 where c.relnamespace = 'dbos'::regnamespace and c.relkind = 'r'
"""
COUNT = "select count(*) from dbos.workflow_status"


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second with and without pruning, its longest batch, and the size of the tables."""
    return [*await beside(bench), *await bounded(bench)]


async def beside(bench: Bench) -> list[Figure]:
    """Steps per second while a million are pruned, and while nothing is, in turns until the end."""
    size = bench.sizes
    without: list[float] = []
    with_pruning: list[float] = []
    pruned: list[float] = []
    async with (
        bench.server.database() as url,
        launched(url) as app,
        connected(url) as connection,
    ):
        await fill(app, connection, size.finished)
        load = Load(app)
        with batches() as seen:
            async with load.running():
                await load.rate(size.prune_seconds)
                while await connection.fetchval(LEFT):
                    bench.progress.turn("steps")
                    without.append(await load.rate(size.prune_seconds / 2))
                    bench.progress.turn("steps, pruning")
                    before = await connection.fetchval(LEFT)
                    async with pruning_of(app):
                        with_pruning.append(await load.rate(size.prune_seconds))
                    after = await connection.fetchval(LEFT)
                    pruned.append((before - after) / size.prune_seconds)
    return [
        Figure("steps", "/s", tuple(without)),
        Figure("steps, pruning", "/s", tuple(with_pruning)),
        Figure("pruning : not", "x", ratios(with_pruning, without), Target(at_least=0.8)),
        Figure("pruned", "/s", tuple(pruned)),
        Figure("a batch", "ms", tuple(seen)),
        Figure("longest batch", "ms", (max(seen),), Target(at_most=100)),
    ]


async def bounded(bench: Bench) -> list[Figure]:
    """The size of the tables after ten times as many as are kept, by that after twice as many."""
    kept = bench.sizes.kept
    sizes: list[float] = []
    counts: list[float] = []
    async with (
        bench.server.database() as url,
        launched(url, retention=Retention(max_rows=kept), prune_interval=1.0) as app,
        connected(url) as connection,
    ):
        for period in range(PERIODS):
            bench.progress.turn(f"{period + 1} x {kept} workflows")
            await app.many(kept, steps=2)
            sizes.append(await connection.fetchval(SIZE) / 1e6)
            counts.append(await connection.fetchval(COUNT))
    return [
        Figure("size of the tables", "MB", tuple(sizes)),
        Figure("rows", "", tuple(counts)),
        Figure("size, 10 x : 2 x", "x", (sizes[-1] / sizes[1],), Target(at_most=1.5)),
    ]


class Load:
    """Workflows that run all the time."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._ended = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let them run for the length of the block."""
        async with running(load=self._run()):
            yield

    async def rate(self, seconds: float) -> float:
        """Steps per second for so long."""
        ended, started = self._ended, time.perf_counter()
        await asyncio.sleep(seconds)
        return (self._ended - ended) * STEPS / (time.perf_counter() - started)

    async def _run(self) -> None:
        await asyncio.gather(*[self._client(number) for number in range(CLIENTS)])

    async def _client(self, number: int) -> None:
        while True:
            await self._app.count(number, STEPS)
            self._ended += 1


async def fill(app: App, connection: Connection, count: int) -> None:
    await app.count(1, 2)
    await connection.execute(KEEP_SPECIMEN)
    for first in range(1, count + 1, CHUNK):
        await connection.execute(FILL, first, min(count, first + CHUNK - 1), timeout=600)
    await connection.execute("vacuum analyze", timeout=600)


@contextmanager
def batches() -> Iterator[list[float]]:
    """The milliseconds that each batch takes the server, in which all its locks are taken."""
    seen: list[float] = []
    prune = pruning.prune

    async def timed(database: Database, walk: Walk) -> Batch:
        async with database.lease() as connection:
            *batch, took_ms = await connection.fetchrow(PRUNE, *walk.values(), pruning.MOST)
        seen.append(took_ms)
        return Batch(*batch)

    pruning.prune = timed
    try:
        yield seen
    finally:
        pruning.prune = prune


@asynccontextmanager
async def pruning_of(app: App) -> AsyncIterator[None]:
    """Prune as the leader does, for the length of the block."""
    task = asyncio.create_task(app.dbos.prune(EVERYTHING))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
