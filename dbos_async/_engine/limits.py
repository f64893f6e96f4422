"""How steps wait for their turn: the limiters of a launched app, leased from Postgres.

    enter ─▶ waiting ─▶ Turn: a token and a permit ─▶ begin ─▶ the call ─▶ end
                 ▲                                                          │ permit
                 └──────── Turnstile ◀── exchange, when due ──▶ Postgres ◀──┘

One turnstile a limiter. It owns the line of those who wait, the leases of tokens and the number of
permits; only the loop's thread changes them, never across an await, except for the counts of a
lease, which threads change under its lock. Its one task runs the exchanges, one at a time.

Tokens: a lease of n tokens lasts for `length` seconds from before it was asked for, by this
process's monotonic clock, so that it ends here no later than in the table. A token is used only
before that (`Turn.begin` looks, at the last moment), and is back one period after the end that is
in the table: for a lease of which all turns began, the moment of the last of them; else the end of
the lease. So any two uses of a token are a period apart, over all processes, whatever dies.

    period P, lease of P/20 (at least 0.1 s, at most 10 s): a token that is never used is out until
    its lease is settled, at most P/20 and a round trip; if nobody settles it, for P + P/20. One
    that is used is out for P from its use on, plus P/50 at most (`period_of`), plus P/256 at most,
    for moments are added up, plus the round trip r that finds it back: while callers wait,
    1 / (1 + 1/50 + 1/256 + r/P) of the allowance is usable, 97 % with r/P = 1/150. Measured on two
    cores with three processes: 98 % at 200 per 2 s, 97 % at 50 per 1 s, 95 % at 20 per 0.25 s.

    A chunk is what waits now, and what the last leases say will be wanted during this one, but
    nothing for the future once tokens are scarce, and never more than a tenth of the limit; or,
    where Postgres is far away, than what comes back while two exchanges travel.

Permits: at any await, the calls that run here are at most the permits that the table says we hold.
While an exchange travels, whose outcome may be lost, that is the calls that ran when it left.

If the process dies: its permits are free as soon as its executor's lock is; its tokens are out
until their lease has ended and a period has passed. An exchange that was lost on the way is
repeated; the lease that it may have made is settled as unused by the next one. An outage that is
longer than a lease only makes callers wait.
"""

import asyncio
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple, TypeVar

from dbos_async import errors
from dbos_async._limits import Limiter
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import limiters, notifier
from dbos_async._store.clock import Clock
from dbos_async._store.database import Database
from dbos_async._store.limiters import Asked, Ended, Exchanged, Leased, Permits
from dbos_async._store.notifier import Notifier

T = TypeVar("T")

LEASE_SHARE: Final = 20
"""A lease of tokens lasts for this part of the period …"""
SHORTEST_LEASE: Final = 0.1
LONGEST_LEASE: Final = 10.0
"""… within these bounds, in seconds: what dies with a process should be little."""
TRIPS: Final = 4
"""… but for at least as many round trips, or its tokens come too late."""
CHUNK_SHARE: Final = 10
"""One lease has at most this part of the limit, so that processes that all want more take turns."""
POLL: Final = 0.5
"""Seconds between exchanges while permits are held or waited for, though there is no news."""
FAREWELL: Final = 2.0
"""Seconds that a shutdown takes at most to give back."""


class Means(NamedTuple):
    """What an exchange is made with."""

    database: Database
    clock: Clock
    notifier: Notifier
    executor_id: str


class LateError(Exception):
    """The lease of a token was over before the call could begin; it waits again, first in line."""


class Lease:
    """Tokens that may be used until a moment of this process's clock."""

    def __init__(self, asked_at: float, length: float) -> None:
        self.id = uuid.uuid4().hex
        self.asked_at = asked_at
        self.length = length
        self.taken_at_ms = 0
        self.left = 0
        self._granted = 0
        self._begun = 0
        self._last_begun_at = asked_at
        self._lock = threading.Lock()

    @property
    def ends_at(self) -> float:
        """From when on none of it may be used."""
        return self.asked_at + self.length

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is left, and all its turns have begun."""
        return self.left <= 0 and self._begun >= self._granted

    @property
    def used(self) -> int:
        """How many tokens were given to turns that began or still may."""
        return self._granted

    def filled(self, leased: Leased) -> None:
        """This is what it has."""
        self.left, self.taken_at_ms = leased.tokens, leased.taken_at_ms

    def grant(self) -> None:
        """A turn gets a token."""
        with self._lock:
            self.left -= 1
            self._granted += 1

    def forfeit(self) -> None:
        """A turn that did not begin, and never will, gives its token up."""
        with self._lock:
            self.left += 1
            self._granted -= 1

    def begin(self, now: float) -> bool:
        """Use a token now; whether there still was time. Any thread may call it."""
        with self._lock:
            if now > self.ends_at:
                return False
            self._begun += 1
            self._last_begun_at = max(self._last_begun_at, now)
            return True

    def ended(self) -> Ended:
        """What the table shall say of it. One millisecond more, because moments are rounded."""
        with self._lock:
            last = self.length
            if self._begun >= self._granted:
                last = self._last_begun_at - self.asked_at
            return Ended(self.id, self._granted, self.taken_at_ms + 1 + math.ceil(last * 1000))


class Turn:
    """The right to one call: it begins before its lease ends, and holds its permit to its end."""

    def __init__(self, turnstile: "Turnstile", lease: Lease | None) -> None:
        self._turnstile = turnstile
        self._lease = lease
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_ended = False
        self._in_thread = False

    def begin(self) -> None:
        """The call begins now, within this very step of the loop. Raises LateError."""
        with self._lock:
            if self._is_ended or not (
                self._lease is None or self._lease.begin(self._turnstile.now())
            ):
                raise LateError
            self._has_begun = True

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """The call, in a thread that may outlive whoever waits for it. Raises LateError."""
        self.begin()
        with self._lock:
            self._in_thread = True
        try:
            yield
        finally:
            with self._lock:
                self._in_thread = False
                is_abandoned = self._is_ended
            if is_abandoned:
                self._turnstile.left_by_thread()

    def end(self) -> None:
        """The caller is through; a thread that still runs holds the permit until it ends."""
        with self._lock:
            if self._is_ended:
                return
            self._is_ended = True
            in_thread = self._in_thread
            if self._lease is not None and not self._has_begun:
                self._lease.forfeit()
        if not in_thread:
            self._turnstile.left()


class Turnstile:
    """One limiter, as the calls of this process pass it."""

    def __init__(self, limiter: Limiter, means: Means) -> None:
        self.limiter = limiter
        self._means = means
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._waiting: deque[asyncio.Future[Turn]] = deque()
        # Tokens
        self._leases: deque[Lease] = deque()
        self._over: list[Lease] = []
        self._trip = 0.0
        self._demand = 0.0  # tokens a second
        self._is_scarce = False
        self._more_tokens_at = 0.0
        # Permits
        self._in_use = 0
        self._permits: int | None = None  # None: nobody asked yet
        self._held = 0
        self._told = 0  # the number wanted that is in the table
        self._most = 0
        self._most_since = 0.0
        self._look_at = 0.0
        self._is_starved = False

    def __repr__(self) -> str:
        return (
            f"<turnstile {self.limiter.name} waiting={len(self._waiting)} in_use={self._in_use} "
            f"permits={self._permits} tokens={self._tokens()}>"
        )

    def now(self) -> float:
        """This process's clock, with what a test has advanced it by."""
        return time.monotonic() + self._means.clock.skew_ms / 1000

    async def through(self, call: Callable[[Turn], Awaitable[T]]) -> T:
        """What `call` returns, given a turn, which it begins itself."""
        is_late = False
        while True:
            turn = await self._enter(first=is_late)
            try:
                return await call(turn)
            except LateError:
                is_late = True
            finally:
                turn.end()

    def news(self) -> None:
        """Permits are free or wanted elsewhere, it is said."""
        self._look_at = 0.0
        self._wake.set()

    # Turns

    async def _enter(self, *, first: bool) -> Turn:
        if (first or not self._waiting) and self._has_turn():
            return self._turn()
        waiter: asyncio.Future[Turn] = self._loop.create_future()
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        self._wake.set()
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                waiter.result().end()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _has_turn(self) -> bool:
        if self.limiter.concurrency is not None and self._in_use >= (self._permits or 0):
            return False
        return self.limiter.rate_limit is None or self._tokens() > 0

    def _turn(self) -> Turn:
        lease = None
        if self.limiter.rate_limit is not None:
            lease = self._leases[0]
            lease.grant()
            if self._tokens() == 0:
                self._wake.set()
        self._in_use += 1
        self._most = max(self._most, self._in_use)
        return Turn(self, lease)

    def _admit(self) -> None:
        while self._waiting and self._has_turn():
            waiter = self._waiting.popleft()
            if not waiter.cancelled():
                waiter.set_result(self._turn())

    def left(self) -> None:
        """A call is over."""
        self._in_use -= 1
        self._admit()
        if self._waiting or self._held > (self._permits or 0):
            self._wake.set()

    def left_by_thread(self) -> None:
        """A call whose caller had given up is over; told by its thread."""
        with suppress(RuntimeError):  # the loop is closed: the process is about to end
            self._loop.call_soon_threadsafe(self.left)

    def _tokens(self) -> int:
        """Tokens that may be used now; what is over is put aside."""
        now = self.now()
        while self._leases and (self._leases[0].left <= 0 or self._leases[0].ends_at < now):
            self._over.append(self._leases.popleft())
        return sum(lease.left for lease in self._leases)

    # Exchanges

    async def run(self) -> None:
        """Give and take whenever there is reason to."""
        while True:
            self._wake.clear()
            pause = self._due_at() - self.now()
            if pause <= 0:
                await self._means.database.persistently(self._exchange)
                await asyncio.sleep(0)  # what was admitted begins now, and so can be settled
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause == math.inf else min(pause, self._nap())):
                    await self._wake.wait()

    def _nap(self) -> float:
        """Callers are looked after now and then, though the clock was advanced meanwhile."""
        return POLL if self._waiting else math.inf

    def _due_at(self) -> float:
        """When the next exchange is due; infinite, if only news can make it so."""
        due_at = math.inf
        if self.limiter.rate_limit is not None:
            if self._tokens_wanted() > 0:
                due_at = self._more_tokens_at
            for lease in (*self._leases, *self._over):
                due_at = min(due_at, 0.0 if lease.is_done else lease.ends_at + 0.001)
        if self.limiter.concurrency is not None:
            if self._permits_wanted() > self._told or self._gives_back():
                return 0.0
            if self._held or self._waiting or self._told:
                due_at = min(due_at, self._look_at)
        return due_at

    def _tokens_wanted(self) -> int:
        """How many tokens to lease now, for those who wait and for those who will."""
        limit = self.limiter.rate_limit
        if limit is None:
            return 0
        left = self._tokens()
        calls = len(self._waiting)
        if self.limiter.concurrency is not None:
            permits = self.limiter.concurrency if self._permits is None else self._permits
            calls = min(calls, max(0, permits - self._in_use))
        wanted = max(0, calls - left)
        if left == 0 and not self._is_scarce:
            wanted += math.ceil(self._demand * self._length())
        trips_worth = math.ceil(limit.limit * 2 * self._trip / (limit.period_ms / 1000))
        return min(wanted, limit.limit, max(1, limit.limit // CHUNK_SHARE, trips_worth))

    def _permits_wanted(self) -> int:
        if self.limiter.concurrency is None:
            return 0
        return min(self.limiter.concurrency, self._in_use + len(self._waiting))

    def _gives_back(self) -> bool:
        """Whether others wait for what was just freed here."""
        return self._held > (self._permits or 0) and self._in_use < self._held

    def _length(self) -> float:
        """Seconds that the next lease lasts."""
        assert self.limiter.rate_limit is not None
        usual = self.limiter.rate_limit.period_ms / 1000 / LEASE_SHARE
        return max(min(max(usual, SHORTEST_LEASE), LONGEST_LEASE), TRIPS * self._trip)

    async def _exchange(self) -> None:
        now = self.now()
        self._tokens()
        over = [known for known in self._over if known.is_done or known.ends_at < now]
        self._learn(over, now)
        tokens = self._tokens_wanted()
        lease = Lease(now, self._length() if tokens else 0.0)
        if self._permits is not None:
            self._permits = min(self._permits, self._in_use)
        asked = Asked(
            self.limiter,
            self._means.executor_id,
            keep=self._in_use if self.limiter.concurrency else 0,
            wanted=self._wanted(now),
            lease_id=lease.id,
            tokens=tokens,
            lasts_ms=math.ceil(lease.length * 1000),
            ended=[known.ended() for known in over],
            skew_ms=self._means.clock.skew_ms,
        )
        try:
            got = await limiters.exchange(self._means.database, asked)
        except BaseException:  # it may have landed all the same
            self._over.append(lease)
            raise
        self._over = [known for known in self._over if known not in over]
        self._take(asked, lease, got)

    def _learn(self, over: list[Lease], now: float) -> None:
        """How many tokens are used in a second, by the leases that are over."""
        known = [lease for lease in over if lease.taken_at_ms]
        if known:
            elapsed = max(now - known[0].asked_at, 0.001)
            self._demand = sum(lease.used for lease in known) / elapsed

    def _wanted(self, now: float) -> int:
        """Permits to ask for: so many as were in use at a time lately, or would be now."""
        wanted = max(self._most, self._permits_wanted())
        if now - self._most_since >= POLL:
            self._most, self._most_since = self._in_use, now
        return min(self.limiter.concurrency or 0, wanted)

    def _take(self, asked: Asked, lease: Lease, got: Exchanged) -> None:
        now = self.now()
        if got.permits is not None:
            self._take_permits(asked, got.permits, now)
        if got.leased is not None:
            self._trip = now - lease.asked_at
            self._is_scarce = got.leased.tokens < asked.tokens
            if got.leased.tokens:
                lease.filled(got.leased)
                self._leases.append(lease)
            back_in = POLL if got.leased.back_in_ms is None else got.leased.back_in_ms / 1000
            self._more_tokens_at = now + max(0.001, back_in) if self._is_scarce else 0.0
        self._admit()

    def _take_permits(self, asked: Asked, permits: Permits, now: float) -> None:
        gave_back = permits.held < self._held
        was_starved, self._is_starved = self._is_starved, permits.held < asked.wanted
        self._held = permits.held
        self._told = asked.wanted
        self._permits = min(permits.held, max(permits.share, 0)) if asked.wanted else None
        self._look_at = now + POLL
        if (self._is_starved and not was_starved) or (gave_back and permits.others_wait):
            self._means.notifier.post(notifier.PERMITS, self.limiter.name)

    def last_ask(self) -> Asked:
        """What gives everything back; nothing may begin any more."""
        while self._leases:
            self._over.append(self._leases.popleft())
        return Asked(
            self.limiter,
            self._means.executor_id,
            ended=[lease.ended() for lease in self._over],
            skew_ms=self._means.clock.skew_ms,
        )


class Turnstiles:
    """The turnstiles of a launched app, made when they are first passed."""

    def __init__(
        self, database: Database, clock: Clock, notifier: Notifier, executor_id: str
    ) -> None:
        self._means = Means(database, clock, notifier, executor_id)
        self._turnstiles: dict[str, Turnstile] = {}
        self._new: deque[Turnstile] = deque()
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Turnstiles"]:
        """Lease for the length of the block, and give back at its end."""
        await limiters.free_permits(self._means.database, self._means.executor_id)
        async with running(limits=self._run()):
            yield self
        await self._give_back()

    def of(self, limiter: Limiter) -> Turnstile:
        """The turnstile of a limiter.

        Raises:
            ConfigurationError: another limiter of this name has other limits.
        """
        known = self._turnstiles.get(limiter.name)
        if known is None:
            known = self._turnstiles[limiter.name] = Turnstile(limiter, self._means)
            self._new.append(known)
            self._arrived.set()
        if known.limiter is not limiter:
            limiter.check_agrees(known.limiter)
        return known

    def news(self, names: list[str]) -> None:
        """Permits of these limiters are free or wanted, it is said."""
        for name in names:
            if name in self._turnstiles:
                self._turnstiles[name].news()

    def recheck(self) -> None:
        """Look at every limiter."""
        self.news(list(self._turnstiles))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._new:
                    turnstile = self._new.popleft()
                    group.create_task(
                        turnstile.run(), name=f"dbos limiter {turnstile.limiter.name}"
                    )

    async def _give_back(self) -> None:
        """What cannot be given back now is back by itself, later."""
        database = self._means.database
        try:
            async with asyncio.timeout(FAREWELL):
                for turnstile in self._turnstiles.values():
                    asked = turnstile.last_ask()
                    if asked.ended:
                        await limiters.exchange(database, asked)
                if self._turnstiles:
                    await limiters.free_permits(database, self._means.executor_id)
        except (TimeoutError, errors.DatabaseError) as exc:
            log.warning("leased tokens and permits were not given back", error=str(exc))
