"""Taking workflows off queues, never more than their shared limits allow.

Without shared limits a claim is one statement: processes skip what others have locked. With them it
is a transaction that begins with the queue's advisory lock, as a statement of its own, so that
everything after it sees what the last claim did:

    lock ─▶ what is in use ─▶ how many may start (decided here) ─▶ claim, and pay the tokens

Whoever holds the lock is the only one who can start anything on the queue, so what was counted
can only shrink until the commit. If the process dies before the commit, nothing was taken, and
Postgres lets go of the lock; after it, the rows are PENDING under its id, their tokens are paid,
and recovery puts them back on the queue.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct, structs

from dbos_async._limits import Limits, RateLimit
from dbos_async._store import sql
from dbos_async._store.database import Connection, Database, count_of
from dbos_async._store.records import Claimed, PartitionUse, Use

MAX_PARTITIONS: Final = 256
MIN_PARTITIONS: Final = 32
"""Partitions that one claim looks at: at most, and even if it has room for one workflow only."""
STRAY_KEY: Final = "(none)"
"""The partition of what has no key and stands in the line of a partitioned queue."""
START: Final = (-(2**31), -(2**63), -(2**63))
"""Before the head of every line."""


class Claim(Struct, frozen=True, kw_only=True):
    """Who claims what; the fields are the first arguments of every claiming statement, in order."""

    queue_name: str
    executor_id: str
    owner: str
    app_version: str
    application: str
    names: list[str]
    classes: list[str]
    configs: list[str]
    skew_ms: int = 0  # how far a test has advanced the clock

    def by(self, owner: str, skew_ms: int) -> "Claim":
        """The same claim under a token, now."""
        return structs.replace(self, owner=owner, skew_ms=skew_ms)


class Taken(Struct, frozen=True):
    """What a claim brought, and when the next one may bring more."""

    claimed: list[Claimed]
    is_held_up: bool = False
    """Whether shared limits allowed less than was asked for."""
    due_ms: int | None = None
    """Until the first token is back that this claim could have used."""
    cursor: str = ""
    """The partition after which the next turn begins."""
    has_more_partitions: bool = False
    """Whether others wait than those that this claim looked at."""


async def claim(
    database: Database, wanted: Claim, slots: int, start: tuple[int, int, int]
) -> Taken:
    """Take up to `slots` workflows from the head of a line, from the place `start` on."""
    rows = await database.fetch(sql.CLAIM, *structs.astuple(wanted), slots, *start, into=Claimed)
    return Taken(in_line(rows))


async def claim_exactly(database: Database, wanted: Claim, limits: Limits, slots: int) -> Taken:
    """Take up to `slots` workflows from the head of a line whose limits processes share."""
    async with database.lease() as connection, connection.transaction():
        use = await fetch_use(connection, wanted, limits)
        tokens = tokens_of(limits.rate_limit, use.tokens_out)
        share = room_of(slots, limits.concurrency, use.running, tokens, use.paid)
        if share <= 0:
            return Taken([], is_held_up=True, due_ms=use.back_in_ms)
        rows = await connection.fetch(
            sql.CLAIM_EXACTLY,
            *structs.astuple(wanted),
            [""],
            [share],
            [None],
            tokens,
            period_of(limits.rate_limit),
            None,
        )
    return Taken(
        in_line([Claimed(*row) for row in rows]),
        is_held_up=share < slots or (tokens is not None and tokens < share),
        due_ms=use.back_in_ms or period_of(limits.rate_limit),
    )


async def claim_in_turns(
    database: Database,
    wanted: Claim,
    limits: Limits,
    slots: int,
    running_here: Mapping[str, int],
    cursor: str,
) -> Taken:
    """Take up to `slots` workflows from the heads of a queue's partitions, one turn each."""
    async with database.lease() as connection, connection.transaction():
        use = await fetch_use(connection, wanted, limits)
        tokens = tokens_of(limits.rate_limit, use.tokens_out)
        room = room_of(slots, limits.concurrency, use.running, tokens, use.paid)
        if room <= 0:
            return Taken([], is_held_up=True, due_ms=use.back_in_ms, cursor=cursor)
        count = min(MAX_PARTITIONS, max(MIN_PARTITIONS, 2 * room))
        partitions = await fetch_partitions(connection, wanted, limits, cursor, count)
        if not partitions:
            tag = await connection.execute(sql.KEY_STRAYS, wanted.queue_name, STRAY_KEY)
            return Taken([], is_held_up=room < slots, has_more_partitions=count_of(tag) > 0)
        rooms = [
            partition_room(limits, partition, room, running_here.get(partition.key, 0))
            for partition in partitions
        ]
        shares = shares_of(rooms, room)
        rows = await connection.fetch(
            sql.CLAIM_IN_TURNS,
            *structs.astuple(wanted),
            [partition.key for partition in partitions],
            shares,
            [tokens_of(limits.partition_rate_limit, p.tokens_out) for p in partitions],
            tokens,
            period_of(limits.rate_limit),
            period_of(limits.partition_rate_limit),
        )
    backs = [p.back_in_ms for p in partitions if p.back_in_ms is not None]
    backs += [] if use.back_in_ms is None else [use.back_in_ms]
    if rows and (period := period_of(limits.partition_rate_limit or limits.rate_limit)):
        backs.append(period)
    return Taken(
        in_turns([Claimed(*row) for row in rows], partitions),
        is_held_up=True,  # partitions may be full, or more than were looked at
        due_ms=min(backs, default=None),
        cursor=cursor_after(partitions, shares),
        has_more_partitions=len(partitions) >= count,
    )


async def fetch_use(connection: Connection, wanted: Claim, limits: Limits) -> Use:
    """What is in use of a queue's limits, once nobody else can change it."""
    await connection.execute(sql.LOCK_QUEUE, wanted.queue_name)
    row = await connection.fetchrow(
        sql.FETCH_USE,
        wanted.queue_name,
        limits.concurrency is not None,
        period_of(limits.rate_limit),
        wanted.skew_ms,
    )
    assert row is not None
    return Use(*row)


async def fetch_partitions(
    connection: Connection, wanted: Claim, limits: Limits, cursor: str, count: int
) -> list[PartitionUse]:
    """Partitions that wait, those after the cursor first, then from the beginning on."""

    async def after(key: str, limit: int) -> list[PartitionUse]:
        rows = await connection.fetch(
            sql.FETCH_PARTITIONS,
            wanted.queue_name,
            key,
            limit,
            limits.partition_concurrency is not None,
            period_of(limits.partition_rate_limit),
            wanted.skew_ms,
        )
        return [PartitionUse(*row) for row in rows]

    found = await after(cursor, count)
    if cursor and len(found) < count:
        known = {partition.key for partition in found}
        first = await after("", count - len(found))
        found += [partition for partition in first if partition.key not in known]
    return found


def tokens_of(limit: RateLimit | None, out: int) -> int | None:
    """How many tokens a bucket has; None if it needs none."""
    return None if limit is None else max(0, limit.limit - out)


def period_of(limit: RateLimit | None) -> int | None:
    """Milliseconds after which a token is back.

    A little later than the period: from a claim to the first line of its workflow it takes a few
    milliseconds, sometimes more and sometimes fewer, and no window measured there may hold more
    starts than the limit either.
    """
    return None if limit is None else limit.period_ms + max(1, min(20, limit.period_ms // 50))


def room_of(
    slots: int, concurrency: int | None, running: int, tokens: int | None, paid: int
) -> int:
    """How many may be taken at most: some that wait may have paid for a start already."""
    room = slots if concurrency is None else min(slots, concurrency - running)
    return room if tokens is None else min(room, tokens + paid)


def partition_room(limits: Limits, use: PartitionUse, room: int, running_here: int) -> int:
    """How many may be taken from one partition at most."""
    if limits.partition_worker_concurrency is not None:
        room = min(room, limits.partition_worker_concurrency - running_here)
    tokens = tokens_of(limits.partition_rate_limit, use.tokens_out)
    return max(0, room_of(room, limits.partition_concurrency, use.running, tokens, use.paid))


def shares_of(rooms: Sequence[int], slots: int) -> list[int]:
    """`slots` dealt out in turns: one to each that has room, then a second one, and so on."""
    shares = [0] * len(rooms)
    open_to: list[int] = [place for place, room in enumerate(rooms) if room > 0]
    while slots > 0 and open_to:
        turn = max(1, min(slots // len(open_to), *(rooms[i] - shares[i] for i in open_to)))
        for place in open_to[:slots]:
            shares[place] += turn
        slots -= turn * min(slots, len(open_to))
        open_to = [place for place in open_to if shares[place] < rooms[place]]
    return shares


def cursor_after(partitions: Sequence[PartitionUse], shares: Sequence[int]) -> str:
    """Where the next turn begins: after the last that got a share, or was looked at in vain."""
    served = [place for place, share in enumerate(shares) if share]
    return partitions[served[-1] if served else -1].key


def in_line(rows: list[Claimed]) -> list[Claimed]:
    """Workflows in the order of their line."""
    return sorted(rows, key=lambda row: row.position)


def in_turns(rows: list[Claimed], partitions: Sequence[PartitionUse]) -> list[Claimed]:
    """Workflows in the order of their turns."""
    place_of = {partition.key: place for place, partition in enumerate(partitions)}
    turns: dict[str | None, int] = {}
    order: list[tuple[int, int, Claimed]] = []
    for row in in_line(rows):
        turn = turns[row.partition_key] = turns.get(row.partition_key, 0) + 1
        order.append((turn, place_of.get(row.partition_key or "", 0), row))
    return [row for *_, row in sorted(order, key=lambda item: item[:2])]
