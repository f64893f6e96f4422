"""What bounds a load: whose CPU it takes, what it writes, and what Postgres does meanwhile."""

import time
from asyncio import sleep
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress

from msgspec import Struct

from bench.processors import cpu_seconds_of, idle_seconds_of
from dbos_async._store.database import Connection

LOOK_INTERVAL = 0.02
"""Seconds between looks at what the backends do."""

# The backends of this database but for the onlooker's own; and what the server runs for all.
PROCESSES = """
select pid, backend_type = 'client backend' as is_backend
  from pg_stat_activity
 where pid <> pg_backend_pid()
   and (datname = current_database() or backend_type <> 'client backend')
"""
# What each does at this moment. Who is idle waits for its client as much as who is in a statement.
DOING = """
select pid,
       case when wait_event = 'ClientRead' then 'waits for Python'
            when wait_event is null then 'computes'
            when wait_event ilike 'wal%' then 'flushes WAL'
            else 'waits for something else'
       end
  from pg_stat_activity
 where pid <> pg_backend_pid()
   and datname = current_database() and backend_type = 'client backend'
"""
DOINGS = ("computes", "flushes WAL", "waits for Python")
# Of the whole server. Each backend counts its flushes, and tells them up to a second later.
WAL = """
select (pg_current_wal_insert_lsn() - '0/0')::float8,
       (select wal_sync from pg_stat_wal)::float8
"""
WAL_SINCE_18 = """
select (pg_current_wal_insert_lsn() - '0/0')::float8,
       (select sum(fsyncs) from pg_stat_io where object = 'wal' and context = 'normal')::float8
"""
VERSION = "select current_setting('server_version_num')::int"


class State(Struct, frozen=True):
    """What was used up to a moment."""

    moment: float
    backends: dict[int, float]
    """Seconds of CPU of each backend of this database."""
    others: dict[int, float]
    """The same of what Postgres runs for all databases: WAL writer, checkpointer and the like."""
    idle: float
    """Seconds that the processors of the load had nothing to do."""
    wal_bytes: float
    wal_flushes: float


class Evidence(Struct, frozen=True):
    """What a load took while it was looked at."""

    seconds: float
    backend_seconds: float
    other_seconds: float
    idle_seconds: float
    wal_bytes: float
    wal_flushes: float
    doing: dict[str, float]
    """Percent of the time of the backends that write, one for each process of the load."""


async def gathered(
    onlooker: Connection, seconds: float, *, writers: int, processors: Collection[int]
) -> Evidence:
    """Look on for so long, over a connection to the database of the load."""
    seen: defaultdict[int, Counter[str]] = defaultdict(Counter)
    before = await state_of(onlooker, processors)
    while (left := before.moment + seconds - time.monotonic()) > 0:
        for pid, what in await onlooker.fetch(DOING):
            seen[pid][what] += 1
        await sleep(min(left, LOOK_INTERVAL))
    after = await state_of(onlooker, processors)
    backends = used(before.backends, after.backends)
    busiest = sorted(backends, key=lambda pid: backends[pid])[-writers:]
    return Evidence(
        after.moment - before.moment,
        sum(backends.values()),
        sum(used(before.others, after.others).values()),
        after.idle - before.idle,
        after.wal_bytes - before.wal_bytes,
        after.wal_flushes - before.wal_flushes,
        shares_of(seen[pid] for pid in busiest),
    )


async def state_of(onlooker: Connection, processors: Collection[int]) -> State:
    """Everything that only grows."""
    is_new = await onlooker.fetchval(VERSION) >= 180000
    wal = (await onlooker.fetch(WAL_SINCE_18 if is_new else WAL))[0]
    backends: dict[int, float] = {}
    others: dict[int, float] = {}
    for pid, is_backend in await onlooker.fetch(PROCESSES):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            (backends if is_backend else others)[pid] = cpu_seconds_of(pid)
    return State(time.monotonic(), backends, others, idle_seconds_of(processors), *wal)


def used(before: dict[int, float], after: dict[int, float]) -> dict[int, float]:
    """What each of those that live has used in between."""
    return {pid: seconds - before.get(pid, 0.0) for pid, seconds in after.items()}


def shares_of(counts: Iterable[Counter[str]]) -> dict[str, float]:
    """Percent of all looks; what is missing from a hundred waited for something else."""
    looks: Counter[str] = Counter()
    for each in counts:
        looks += each
    return {what: 100 * looks[what] / max(1, looks.total()) for what in DOINGS}
