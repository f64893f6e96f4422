"""Pages of a hundred out of a million workflows: first and deep ones, by each kind of filter."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median, quantiles
from typing import Any

from bench.app import launched
from bench.bench import Bench, Sizes
from bench.figures import Figure, Turn
from bench.server import connected
from dbos_async import Client, WorkflowStatus

PAGE = 100
PLACES = 10
"""Where deep pages may begin."""
RARE = 10_000
"""Of so many workflows one has the rare name."""
CUSTOMERS = 1_000
FEWER = 20
"""Listings that read far more than a page are made so many times less often."""
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
WINDOW = timedelta(seconds=1)
"""A thousand workflows' worth of time."""
MILLISECONDS = 1e3
CHUNK = 50_000

# Copies of a workflow that the library ran, a thousand a second since `BEGAN`. Nobody runs those
# that are ENQUEUED, for no process is there while they are listed.
KEEP_SPECIMEN = "create table bench_specimen as select * from dbos.workflow_status"
FILL = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, inputs, output, executor_id,
        application_version, creator_xid, queue_name, recovery_attempts, serialization,
        application_name, created_at, updated_at, completed_at, attributes)
select gen_random_uuid()::text,
       case when n % 1000 = 1 then 'ENQUEUED' when n % 100 = 0 then 'ERROR' else s.status end,
       case when n % $4::int = 3 then 'rare' else 'common ' || n % 10 end,
       s.class_name, s.config_name, s.inputs, s.output, s.executor_id, s.application_version,
       s.creator_xid, case when n % 1000 = 1 then 'bench' end, s.recovery_attempts,
       s.serialization, s.application_name, $3::bigint + n, $3::bigint + n, $3::bigint + n,
       jsonb_build_object('customer', n * 7919::bigint % $5::int)
  from generate_series($1::int, $2::int) n, bench_specimen s
 order by n
"""

Query = Callable[[], dict[str, Any]]
"""The arguments of one listing; each has others."""


async def measure(bench: Bench) -> list[Figure]:
    """Median and 99th percentile of each kind of listing, from its call to its records."""
    size = bench.sizes
    medians: dict[str, tuple[float, ...]]
    late: dict[str, list[float]] = {}
    async with bench.server.database() as url:
        await fill(url, size.listed)
        async with Client(url) as client:
            queries = await queries_of(client, size.listed)

            async def page(name: str) -> float:
                waits = await listed(client, queries[name], times_of(name, size))
                late.setdefault(name, []).append(quantiles(waits, n=100, method="inclusive")[-1])
                return median(waits)

            turns: dict[str, Turn] = {name: partial(page, name) for name in queries}
            medians = await bench.interleaved(turns)
    return [
        figure
        for name in queries
        for figure in (
            Figure(f"{name}, p50", "ms", medians[name]),
            Figure(f"{name}, p99", "ms", tuple(late[name][1:])),
        )
    ]


async def fill(url: str, workflows: int) -> None:
    """Make so many, and let the server look at them as autovacuum would by and by."""
    async with launched(url) as app:
        await app.count(1, 1)
    began_ms = int(BEGAN.timestamp() * MILLISECONDS)
    async with connected(url) as connection:
        await connection.execute(KEEP_SPECIMEN)
        for first in range(1, workflows + 1, CHUNK):
            last = min(workflows, first + CHUNK - 1)
            await connection.execute(FILL, first, last, began_ms, RARE, CUSTOMERS)
        await connection.execute("vacuum analyze dbos.workflow_status")


async def queries_of(client: Client, workflows: int) -> dict[str, Query]:
    """Every kind of listing; the deep ones go on half way through what fits."""
    span = timedelta(milliseconds=workflows)
    middle = BEGAN + span / 2

    async def places(**filter: Any) -> list[WorkflowStatus]:
        return await client.list_workflows(created_before=middle, limit=PLACES, **filter)

    def window() -> dict[str, Any]:
        begin = BEGAN + (span - WINDOW) * random.random()
        return {"created_after": begin, "created_before": begin + WINDOW}

    def customer() -> dict[str, Any]:
        return {"attributes": {"customer": random.randrange(CUSTOMERS)}}

    deep = await places()
    failed = await places(status="ERROR")
    named = await places(name="common 5")
    return {
        "newest": dict,
        "newest, deep": lambda: {"after": random.choice(deep)},
        "newest, by offset": lambda: {"offset": workflows // 10},
        "status ERROR": lambda: {"status": "ERROR"},
        "status ERROR, deep": lambda: {"status": "ERROR", "after": random.choice(failed)},
        "status ENQUEUED": lambda: {"status": "ENQUEUED"},
        "status SUCCESS": lambda: {"status": "SUCCESS"},
        "name": lambda: {"name": f"common {random.randrange(1, 10)}"},
        "name, deep": lambda: {"name": "common 5", "after": random.choice(named)},
        "rare name": lambda: {"name": "rare"},
        "a second": window,
        "attributes": customer,
        "attributes, deep": lambda: customer() | {"after": random.choice(deep)},
    }


def times_of(name: str, size: Sizes) -> int:
    """How often in a turn."""
    reads_far = name in ("newest, by offset", "rare name", "status ENQUEUED")
    return max(2, size.lists // FEWER) if reads_far else size.lists


async def listed(client: Client, query: Query, times: int) -> list[float]:
    """How many milliseconds each listing took."""
    waits = []
    for _ in range(times):
        arguments = query()
        started = time.perf_counter()
        page = await client.list_workflows(limit=PAGE, **arguments)
        waits.append((time.perf_counter() - started) * MILLISECONDS)
        assert page, f"nothing fits {arguments}"
        await asyncio.sleep(0)
    return waits
