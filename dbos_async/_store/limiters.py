"""What processes lease of limiters, exactly: tokens for a time, permits until they are given back.

    lock ─▶ settle leases that are over ─▶ hold permits ─▶ lease tokens

One exchange does all of it for one limiter, in one transaction, under an advisory lock that is
taken in a statement of its own. An exchange whose answer is lost may have happened; it is made to
be repeated: permits are written as absolute numbers, and a lease of which nothing is known is
settled by the next exchange as one of which nothing was used.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from dbos_async._limits import Limiter
from dbos_async._store import sql
from dbos_async._store.claiming import period_of, shares_of
from dbos_async._store.database import Connection, Database

ROTATION_MS: Final = 1000
"""How long the permits that cannot be divided evenly stay with the same processes."""
MOMENTS: Final = 256
"""Into how many parts a period is divided when used tokens are added up: what that costs is at most
one part in so many of the rate."""


class Ended(Struct, frozen=True):
    """A lease that is over: how many of its tokens were used, and when at the latest."""

    lease_id: str
    used: int
    ended_at_ms: int


class Asked(Struct, frozen=True):
    """What a process wants of a limiter, and what it gives back."""

    limiter: Limiter
    executor_id: str
    keep: int = 0
    """Permits in use, which cannot be given back."""
    wanted: int = 0
    """Permits that would be used, those in use included."""
    lease_id: str = ""
    tokens: int = 0
    lasts_ms: int = 0
    ended: Sequence[Ended] = ()
    skew_ms: int = 0


class Permits(Struct, frozen=True):
    """What a process holds; if its fair share is less, it gives back as its calls end."""

    held: int
    share: int
    others_wait: bool


class Leased(Struct, frozen=True):
    """Tokens, from a moment on, and how long until more are back."""

    tokens: int
    taken_at_ms: int
    back_in_ms: int | None


class OtherPermits(Struct, frozen=True):
    """What another live process holds and would use, and the time."""

    executor_id: str
    held: int
    wanted: int
    now_ms: int


class Exchanged(Struct, frozen=True):
    """The answer: None for what was not asked."""

    permits: Permits | None
    leased: Leased | None


async def exchange(database: Database, asked: Asked) -> Exchanged:
    """Give back and take, for one limiter."""
    async with database.lease() as connection, connection.transaction():
        await connection.execute(sql.LOCK_LIMITER, asked.limiter.name)
        permits = leased = None
        if asked.ended:
            await settle(connection, asked)
        if asked.limiter.concurrency is not None:
            permits = await hold(connection, asked, asked.limiter.concurrency)
        if asked.tokens:
            leased = await lease(connection, asked)
    return Exchanged(permits, leased)


async def free_permits(database: Database, executor_id: str) -> None:
    """Let nobody count what an executor of this id held."""
    await database.execute(sql.FREE_PERMITS, executor_id)


async def settle(connection: Connection, asked: Asked) -> None:
    """Note what was used of leases that are over."""
    period_ms = period_of(asked.limiter.rate_limit) or 1
    await connection.execute(
        sql.SETTLE_LEASES,
        asked.limiter.name,
        [ended.lease_id for ended in asked.ended],
        [ended.used for ended in asked.ended],
        [ended.ended_at_ms for ended in asked.ended],
        max(1, period_ms // MOMENTS),
    )


async def hold(connection: Connection, asked: Asked, concurrency: int) -> Permits:
    """Take the permits that are a process's by right, as far as they are free."""
    name, me = asked.limiter.name, asked.executor_id
    others = [OtherPermits(*row) for row in await connection.fetch(sql.FETCH_PERMITS, name, me)]
    permits = permits_of(asked, concurrency, others)
    await connection.execute(sql.HOLD_PERMITS, name, me, permits.held, asked.wanted)
    return permits


async def lease(connection: Connection, asked: Asked) -> Leased:
    """Take tokens, as far as there are any."""
    limit = asked.limiter.rate_limit
    assert limit is not None
    row = await connection.fetchrow(
        sql.LEASE_TOKENS,
        asked.limiter.name,
        asked.lease_id,
        asked.tokens,
        limit.limit,
        period_of(limit),
        asked.lasts_ms,
        asked.skew_ms,
    )
    assert row is not None
    return Leased(*row)


def permits_of(asked: Asked, concurrency: int, others: Sequence[OtherPermits]) -> Permits:
    """A process's permits: its fair share of the limit, as far as the others left it free.

    Shares are dealt out in turns to everybody who wants more, so each of n processes has at least
    floor(limit / n), or all that it wants; who begins changes every second, so that a limit smaller
    than n starves nobody. Processes may see different turns: what is free decides.
    """
    wanted = {other.executor_id: other.wanted for other in others}
    wanted[asked.executor_id] = asked.wanted
    names = sorted(name for name, number in wanted.items() if number > 0)
    turn = others[0].now_ms // ROTATION_MS % max(1, len(names)) if others else 0
    names = names[turn:] + names[:turn]
    shares = dict(zip(names, shares_of([wanted[name] for name in names], concurrency), strict=True))
    share = shares.get(asked.executor_id, 0)
    free = concurrency - sum(other.held for other in others)
    return Permits(
        held=max(asked.keep, min(share, free), 0),
        share=share,
        others_wait=any(other.wanted > other.held for other in others),
    )
