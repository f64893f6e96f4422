"""One clock: the database's, kept between looks at it.

Deadlines and wake times are moments of the database's clock, so that every process agrees on them.
This process reads that clock now and then and counts on monotonically; no wall clock is involved.
"""

import asyncio
import contextvars
import time
import weakref
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

LONGEST_NAP: Final = 3_600.0
"""Seconds after which a long sleeper looks at the clock again, in case the two drift apart."""

TOLERANCE_MS: Final = 2.0
"""Two clocks that run this close agree."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """The database's time in milliseconds since the epoch."""

    running: ClassVar["weakref.WeakSet[Clock]"] = weakref.WeakSet()
    """Every clock of this process, for `dbos_async.testing.advance` alone."""

    skew_ms: ClassVar[int] = 0
    """How far a test has advanced this process's clocks; those of later launches, too."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._nowhere = contextvars.Context()
        """Where naps end. A loop keeps cancelled timers for long, and with them their context,
        which in a workflow is all of it."""
        self.sleepers: set[asyncio.Future[None]] = set()
        Clock.running.add(self)

    def now_ms(self) -> int:
        """The time."""
        return int(self._offset_ms + time.monotonic() * 1000) + self.skew_ms

    def now(self) -> datetime:
        """The time, aware, in UTC."""
        return moment_of(self.now_ms())

    def set(self, database_ms: float, *, asked_at: float, answered_at: float) -> None:
        """Take over the database's time, read between two moments of `time.monotonic`.

        An answer says no more than half its round trip; a difference within that changes nothing,
        so that the clock does not step back and forth.
        """
        offset_ms = database_ms - (asked_at + answered_at) * 500
        if abs(offset_ms - self._offset_ms) > (answered_at - asked_at) * 500 + TOLERANCE_MS:
            self._offset_ms = offset_ms

    async def sleep_until(self, deadline_ms: float) -> None:
        """Return at `deadline_ms` or after it, never before."""
        while (left := deadline_ms - self.now_ms()) > 0:
            await self._nap(left, asyncio.get_running_loop().create_future())

    async def wait_until(self, deadline_ms: float, future: "asyncio.Future[Any]") -> bool:
        """Return when `future` is done, or at `deadline_ms`; whether it is done."""
        while not future.done() and (left := deadline_ms - self.now_ms()) > 0:
            awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def hear(_: object, awake: "asyncio.Future[None]" = awake) -> None:
                wake(awake)

            future.add_done_callback(hear)
            try:
                await self._nap(left, awake)
            finally:
                future.remove_done_callback(hear)
        return future.done()

    async def _nap(self, milliseconds: float, awake: "asyncio.Future[None]") -> None:
        nap = min(milliseconds / 1000, LONGEST_NAP)
        timer = awake.get_loop().call_later(nap, wake, awake, context=self._nowhere)
        self.sleepers.add(awake)
        try:
            await awake
        finally:
            timer.cancel()
            self.sleepers.discard(awake)

    @classmethod
    def advance(cls, milliseconds: int) -> None:
        """Let time pass at once, for the whole process: all sleepers look at their clock."""
        cls.skew_ms += milliseconds
        for clock in list(cls.running):
            for sleeper in list(clock.sleepers):
                if not sleeper.get_loop().is_closed():
                    sleeper.get_loop().call_soon_threadsafe(wake, sleeper)


def wake(sleeper: asyncio.Future[None]) -> None:
    """End a nap."""
    if not sleeper.done():
        sleeper.set_result(None)


def moment_of(milliseconds: int) -> datetime:
    """Milliseconds since the epoch as an aware datetime in UTC, the last there is at most."""
    return EPOCH + timedelta(milliseconds=min(max(0, milliseconds), LAST_MS))


def milliseconds_of(moment: datetime) -> int:
    """An aware datetime as milliseconds since the epoch.

    Raises:
        ValueError: it is naive, and so names no moment.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone: give an aware datetime")
    return (moment - EPOCH) // timedelta(milliseconds=1)


LAST_MS: Final = milliseconds_of(datetime.max.replace(tzinfo=UTC))
"""The last moment that a datetime can name."""
