"""Workflows that wait long leave memory: their rows wait for them.

    a wait begins, further ahead than park_after ─▶ lingers ─▶ stands still? ─▶ one transaction
                                                       ▲            │ no         for all of them
                                                       └── refused ◀┘              │
    due, or its news ─▶ ENQUEUED ─▶ claimed ─▶ replayed up to its wait             ▼
                                                               DELAYED and nobody's, run stopped

The executor owns the runs; the parker owns two lines of them: `_lingering`, whose wait has begun
lately, for news that come at once should cost no replay; and `_refused`, which could not be parked
when their time came and are looked at again. A run that ends leaves both.

What may be true at each await, and what happens if the process dies there:

- *before the transaction*: all in memory, PENDING. A death is a crash like any other.
- *during it*: the run's row is ours until the commit, and nobody's after it. Meanwhile the run may
  have something to do, because its wait ends or is cancelled. It must not: `Execution.parking` is
  set from the decision to the answer, and whatever leaves a wait or begins a step awaits it. If the
  process dies, the row is PENDING, and recovered, or DELAYED, and waits.
- *the answer is lost*: either may be true, so no step of this process begins before a look at what
  is ours, which stops what is not.
- *after it*: the runs are stopped in the same breath, and unwind by CancelledError; who awaits the
  workflow here looks for its recorded outcome instead, as if it ran elsewhere. If news come in
  between, the row is claimed and may even run here again: the new run stops the old one.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from dbos_async import errors
from dbos_async._config import Settings
from dbos_async._engine.execution import Execution, Stop, Wait
from dbos_async._engine.still import is_still
from dbos_async._log import log
from dbos_async._store import parking
from dbos_async._store.database import Database
from dbos_async._store.parking import Park

if TYPE_CHECKING:
    from dbos_async._engine.executor import Executor

BATCH: Final = 1_000
"""Workflows parked in one transaction."""
LINGER: Final = 1.0
"""Seconds in memory before a workflow is parked, at most."""
MAX_LINGERING: Final = 1_000
"""Workflows that linger; the oldest of more are parked at once."""
RECHECK: Final = 10.0
"""Seconds until another look at a workflow that could not be parked."""
MAX_BYTES: Final = 1_000
"""Of what a workflow waits for; more does not fit into an index, and stays in memory."""


class Parker:
    """Parks the workflows of one executor."""

    def __init__(self, settings: Settings, database: Database, executor: "Executor") -> None:
        self._park_after = settings.park_after
        self._linger = min(LINGER, settings.park_after or 0.0)
        self._database = database
        self._executor = executor
        self._lingering: OrderedDict[Execution, float] = OrderedDict()  # and until when, in order
        self._refused: OrderedDict[Execution, float] = OrderedDict()
        self._something = asyncio.Event()
        self._is_open = False

    # What others tell it

    def waits(self, execution: Execution, wait: Wait) -> None:
        """A workflow has begun to wait."""
        if not self._is_far(wait) or not self._parks:
            return
        self._refused.pop(execution, None)
        self._lingering[execution] = asyncio.get_running_loop().time() + self._linger
        self._lingering.move_to_end(execution)
        if len(self._lingering) == 1 or len(self._lingering) > MAX_LINGERING:
            self._something.set()

    def forget(self, execution: Execution) -> None:
        """It runs here no more."""
        self._lingering.pop(execution, None)
        self._refused.pop(execution, None)

    async def run(self) -> None:
        """Park what has lingered long enough."""
        self._is_open = self._park_after is not None
        while True:
            await self._nap()
            await self._park(dict(self._ripe()))

    # Choosing

    @property
    def _parks(self) -> bool:
        """Whether anything is to be parked now: not by who takes nothing back."""
        executor = self._executor
        return self._is_open and not (executor.is_draining or executor.is_deactivated)

    def _is_far(self, wait: Wait) -> bool:
        if self._park_after is None or wait.until_ms is None:
            return False
        return wait.until_ms - self._executor.clock.now_ms() > self._park_after * 1000

    async def _nap(self) -> None:
        """Return when the first one has lingered long enough."""
        self._something.clear()
        if len(self._lingering) > MAX_LINGERING:
            return
        lines = (self._lingering, self._refused)
        firsts = [line[next(iter(line))] for line in lines if line]
        try:
            async with asyncio.timeout_at(min(firsts, default=None)):
                await self._something.wait()
        except TimeoutError:
            return

    def _ripe(self) -> Iterator[tuple[Execution, Park]]:
        """Those whose time has come and that may be parked, a batch at most."""
        now = asyncio.get_running_loop().time()
        found = 0
        while found < BATCH and (execution := self._next(now)) is not None:
            park = self._park_of(execution)
            if park is not None:
                found += 1
                yield execution, park
            elif any(wait.until_ms is not None for wait in execution.waits):
                self._refused[execution] = now + RECHECK

    def _next(self, now: float) -> Execution | None:
        for line in (self._lingering, self._refused):
            first = next(iter(line), None)
            crowded = line is self._lingering and len(line) > MAX_LINGERING
            if first is not None and (crowded or line[first] <= now):
                del line[first]
                return first
        return None

    def _park_of(self, execution: Execution) -> Park | None:
        """How to park a workflow; None: it must stay."""
        waits = execution.waits
        if not self._parks or execution.stopped is not None or not waits:
            return None
        if execution.slot is not None and not execution.slot.may_park:
            return None
        news = {wait.news for wait in waits if wait.news is not None}
        ends = [wait.until_ms for wait in waits if wait.until_ms is not None]
        ends += [limit.deadline_ms for limit in execution.limits]
        ends += [] if execution.deadline_ms is None else [execution.deadline_ms]
        until_ms = min(ends, default=0.0)
        left = until_ms / 1000 - self._executor.clock.now_ms() / 1000
        if len(news) > 1 or left <= (self._park_after or 0.0) - self._linger:
            return None
        park = Park(execution.workflow_id, execution.owner, int(until_ms), next(iter(news), None))
        fits = len(park.waiting_for.encode()) <= MAX_BYTES
        return park if fits and is_still(execution) else None

    # Parking

    async def _park(self, batch: dict[Execution, Park]) -> None:
        """Park a batch; its runs stand still until it is known what became of them."""
        if not batch:
            return
        answered = asyncio.Event()
        for execution in batch:
            execution.parking = answered
        try:
            parked = await self._parked(list(batch.values()))
            self._stop(batch, parked)
        except errors.DatabaseLostError as exc:
            self._executor.suspect()  # whatever was parked is stopped before it begins a step
            self._release(batch, answered)
            await self._database.back(exc)
        finally:
            self._release(batch, answered)

    async def _parked(self, parks: Sequence[Park]) -> parking.Parked:
        """Park these; one that Postgres refuses keeps no other from it."""
        try:
            return await parking.park(self._database, parks)
        except errors.DatabaseRefusedError as exc:
            if len(parks) == 1:
                log.error(
                    "a workflow stays in memory: Postgres refuses to park it",
                    workflow_id=parks[0].workflow_id,
                    error=str(exc),
                )
                return parking.Parked({}, set())
        half = len(parks) // 2
        first, second = await self._parked(parks[:half]), await self._parked(parks[half:])
        return parking.Parked(first.queues | second.queues, first.lost | second.lost)

    def _stop(self, batch: dict[Execution, Park], parked: parking.Parked) -> None:
        retry_at = asyncio.get_running_loop().time() + RECHECK
        for execution, park in batch.items():
            queue_name = parked.queues.get(execution.workflow_id)
            if queue_name is not None:
                execution.stop(Stop.PARKED)
                self._executor.session.tell_due(queue_name, park.until_ms)
            elif execution.workflow_id in parked.lost:
                execution.stop(Stop.LOST)
            elif execution.waits and execution.stopped is None:
                self._refused[execution] = retry_at

    def _release(self, batch: dict[Execution, Park], answered: asyncio.Event) -> None:
        """Let those go on that were not parked."""
        for execution in batch:
            if execution.parking is answered:
                execution.parking = None
        answered.set()
