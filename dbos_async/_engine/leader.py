"""What one process of an application does for all: see who died, what is due, and what is late.

    lease ─▶ leads ─▶ look around, once a second ─┬─▶ dead executors  ─▶ told to everybody: recover
                        (one statement)           ├─▶ delays that are due ─▶ on their queues
                                                  └─▶ deadlines that passed ─▶ cancelled

The leader is whoever holds the application's advisory lock, on the session of its lease: it has a
successor within two seconds of its death. Its duties are idempotent, so two leaders at once, or one
that does not know yet that it leads no more, do no harm: who is dead is told twice and taken over
once, rows are released and cancelled once.

A missing lock does not always mean a death. A process whose session was cut takes its lock again
within a moment, so an executor must be found dead at two looks, `GRACE` apart. Right after Postgres
started, or this process itself lost its session, everybody's lock may be gone: nobody is declared
dead then for a while.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from dbos_async._engine.executor import Executor
from dbos_async._engine.session import LOOK_INTERVAL, Session
from dbos_async._service import running
from dbos_async._store import compensations, executors, notifier, queues
from dbos_async._store.lease import Lease
from dbos_async._store.records import Look

GRACE: Final = 0.8
"""Seconds between the two looks that find a death."""
UPHEAVAL: Final = 3.0
"""Seconds after a start of Postgres, or a loss of our own session, in which nobody is dead."""
LATENESS_MS: Final = 2_000
"""How late the leader is with a deadline, which is the business of whoever runs the workflow."""
HELD_MS: Final = 50
"""Milliseconds until another look at due workflows whose rows somebody else has locked."""
REPEAT: Final = 10
"""Looks after which a death is told of again, if work of the dead is still left."""
TIDY: Final = 60
"""Looks after which the rows of dead executors are removed, and those cancelled workflows are
compensated that the trigger has missed."""


class Leader:
    """Does the leader's work while this process leads."""

    def __init__(self, session: Session, executor: Executor, lease: Lease) -> None:
        self._session = session
        self._database = session.database
        self._executor = executor
        self._application = session.settings.name
        self._lease = lease
        self._changed = asyncio.Event()
        self._due = asyncio.Event()
        self._nap: asyncio.Timeout | None = None
        self._calm_at = 0.0
        self._suspects: dict[str, float] = {}  # when each was first found dead
        self._told: set[str] = set()
        self._looks = 0
        self.on_leading: list[Callable[[], None]] = []
        """Called when this process begins to lead, or no longer does."""
        self._compensated = ""  # the last workflow that was looked at for what it has open

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Leader"]:
        """Lead for the length of the block, whenever it is this process's turn."""
        self._lease.on_leading = self._leading
        async with running(leader=self._run()):
            yield self

    @property
    def leads(self) -> bool:
        """Whether this process does the leader's work."""
        return self._lease.leads and not self._executor.is_draining

    def delayed(self, queue_names: list[str]) -> None:
        """These queues have something that comes due soon, it is said."""
        self._due.set()
        if self._nap is not None:
            self._nap.reschedule(asyncio.get_running_loop().time())
            self._nap = None

    def unsettled(self) -> None:
        """Our own session was lost, and perhaps everybody's: others may have taken us for dead."""
        self._executor.suspect()
        self._calm_at = asyncio.get_running_loop().time() + UPHEAVAL

    def _leading(self) -> None:
        self._suspects = {}
        self._changed.set()
        for hear in self.on_leading:
            hear()

    async def _run(self) -> None:
        while True:
            if self.leads:
                await self._nap_for(await self._work())
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _work(self) -> float:
        """One look, and what follows from it; milliseconds until the next one."""
        self._due.clear()
        self._looks += 1
        if self._looks % TIDY == 0:
            await self._database.persistently(lambda: executors.forget_dead(self._database))
            await self._database.persistently(self._compensate)
        look = await self._database.persistently(self._look)
        pause = self._see_to_the_dead(look)
        if look.has_late:
            await self._database.persistently(self._cancel_late)
        if look.due_ms is not None and look.due_ms <= 0:
            released = await self._database.persistently(self._release)
            for name in Counter(released):
                self._session.tell(notifier.QUEUED, name)
            return 0 if released else HELD_MS
        return min(pause * 1000, LOOK_INTERVAL * 1000 if look.due_ms is None else look.due_ms)

    async def _look(self) -> Look:
        return await executors.look_around(
            self._database, self._executor.clock.skew_ms, LATENESS_MS, self._application
        )

    def _see_to_the_dead(self, look: Look) -> float:
        """Tell everybody who has died; seconds until the next look."""
        now = asyncio.get_running_loop().time()
        if now < self._calm_at or look.server_uptime < UPHEAVAL:
            self._suspects = {}
            return LOOK_INTERVAL
        self._suspects = {i: self._suspects.get(i, now) for i in look.dead}
        certain = [i for i, since in self._suspects.items() if now - since >= GRACE]
        news = set(certain) - self._told
        for executor_id in certain if self._looks % REPEAT == 0 else news:
            self._session.tell(notifier.DEAD, executor_id)
        self._told = set(certain)
        return LOOK_INTERVAL if len(certain) == len(look.dead) else GRACE

    async def _release(self) -> list[str]:
        return await queues.release_delayed(self._database, self._executor.clock.skew_ms)

    async def _compensate(self) -> None:
        """Start what a cancellation should have started; see `dbos_async_compensate`."""
        self._compensated = await compensations.start_missing(
            self._database, self._compensated, self._application
        )

    async def _cancel_late(self) -> None:
        late = await executors.fetch_late(
            self._database, self._executor.clock.skew_ms, LATENESS_MS, self._application
        )
        await self._executor.cancel(late, children=True)

    async def _nap_for(self, milliseconds: float) -> None:
        """Return then, or when something else comes due soon."""
        if self._due.is_set() or milliseconds <= 0:
            return
        try:
            async with asyncio.timeout(None) as self._nap:
                await self._executor.clock.sleep_until(self._executor.clock.now_ms() + milliseconds)
        except TimeoutError:
            return
        finally:
            self._nap = None
