"""Fires what is due: once a tick, whoever of any number of processes does it, and whichever dies.

    schedules ─▶ plans, when each is due next ─▶ sleep until the first ─▶ decide ─▶ runs on a queue
        ▲                                                                    │
        └── news of changes, rechecks                   one transaction, the schedules' rows locked

The leader fires. Its plans only say when to look: what fires is decided by the locked row, whose
`decided_until` goes over every tick once, in the transaction in which the tick's run appears. So
two leaders at once, or one that does not know that it leads no more, fire a tick once, and a leader
that dies leaves it either fired or for its successor.

A tick may be missed, because nobody led or nothing ran. With `backfill` all that were missed fire.
Else those of the last `ticks.HANDOVER` seconds, which a change of leaders may take, and the last
one, if it is no older than `ticks.LATEST`; others never will. A process that stood still itself,
such as on a laptop that was closed, has not been replaced; of what it slept through it fires at
most the last.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.cron import Cron, cron_of
from dbos_async._engine.executor import Executor
from dbos_async._engine.leader import Leader
from dbos_async._engine.registry import WorkflowDefinition
from dbos_async._engine.session import Session
from dbos_async._engine.ticks import iso_of, next_of, overlapped, run_of, ticks_of
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import notifier, schedules
from dbos_async._store.queues import Due
from dbos_async._store.schedules import Decision, Locked, PlanRow, Run

STANDSTILL: Final = 5.0
"""Seconds in which this process did not run at all, and may have missed ticks by its own doing."""
BEAT: Final = 1.0
HELD_LOOK_MS: Final = 1_000
"""Milliseconds between looks whether the run has ended that another one waits for."""
LOCKED_PAUSE_MS: Final = 250
"""Milliseconds until another look at a schedule that somebody else has locked, or that is gone."""
BATCH: Final = 200
"""Schedules that are decided on in one transaction: some milliseconds of cron."""
AT_ONCE: Final = 2_000
"""Ticks after which a transaction takes no further schedule."""
REFUSED_PAUSE_MS: Final = 60_000
"""Milliseconds until another try to fire what Postgres refused."""


class Plan(Struct):
    """When to look at a schedule next, and what row says so."""

    next_ms: float
    is_holding: bool = False
    basis: PlanRow | None = None


class Round(Struct):
    """One transaction of decisions."""

    now_ms: int
    plans: dict[str, Plan]
    ticks: int = 0


class Scheduler:
    """Fires the schedules of one application while this process leads."""

    def __init__(
        self,
        session: Session,
        executor: Executor,
        leader: Leader,
        workflows: Mapping[str, WorkflowDefinition],
    ) -> None:
        self._session = session
        self._database = session.database
        self._executor = executor
        self._clock = session.clock
        self._application = session.settings.name
        self._leader = leader
        self._workflows = workflows
        self._plans: dict[str, Plan] = {}
        self._line: list[tuple[float, str]] = []  # when to look at whom; old entries stay in it
        self._holding: set[str] = set()  # those that hold a tick back
        self._changed: set[str] = set()
        self._is_new = True  # nothing is known yet, or all of it may be old
        self._awake = asyncio.Event()
        self._arrived: asyncio.Future[None] | None = None
        self._seen_ms = self._clock.now_ms()
        self._slept_until_ms = 0
        self._told: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Scheduler"]:
        """Fire for the length of the block, whenever it is this process's turn."""
        self._seen_ms = self._clock.now_ms()
        self._leader.on_leading.append(self.recheck)
        self._session.on_recheck.append(self.recheck)
        self._session.on_news[notifier.SCHEDULES].append(self.news)
        self._session.on_news[notifier.ENDED].append(self.ended)
        async with running(scheduler=self._run(), scheduler_beat=self._beat()):
            yield self

    def news(self, names: list[str]) -> None:
        """These schedules were changed, it is said."""
        self._changed.update(names)
        self._wake()

    def recheck(self) -> None:
        """Look at every schedule: this process leads now, or some news may have been lost."""
        self._is_new = True
        self._wake()

    def ended(self, workflow_ids: list[str]) -> None:
        """These ended: perhaps a run that another one waits for."""
        for name in list(self._holding):
            if any(each.startswith(f"sched-{name}-") for each in workflow_ids):
                self._plan(name, Plan(0, is_holding=True))
                self._wake()

    def _wake(self) -> None:
        self._awake.set()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def _run(self) -> None:
        while True:
            self._awake.clear()
            if not self._leader.leads:
                self._is_new = True
                await self._awake.wait()
            elif self._is_new or self._changed:
                await self._database.persistently(self._look)
            elif due := self._due():
                await self._decide_on(due)
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        """Return when something is due, or there is news."""
        if self._awake.is_set():
            return
        self._arrived = asyncio.get_running_loop().create_future()
        if self._line:
            await self._clock.wait_until(self._line[0][0], self._arrived)
        else:
            await self._arrived

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._look_at_clock()

    def _look_at_clock(self) -> int:
        """The time; notes a standstill."""
        now_ms = self._clock.now_ms()
        if now_ms - self._seen_ms > (BEAT + STANDSTILL) * 1000:
            self._slept_until_ms = now_ms
        self._seen_ms = now_ms
        return now_ms

    # What is due

    async def _look(self) -> None:
        """Read the schedules that changed, or all."""
        names = None if self._is_new else list(self._changed)
        self._is_new = False
        self._changed.clear()
        try:
            rows = await schedules.fetch_plans(self._database, names, self._application)
        except errors.DatabaseError:
            self._is_new = True
            raise
        for name in set(self._plans if names is None else names) - {row.name for row in rows}:
            self._drop(name)
        for place, row in enumerate(rows):
            self._plan_row(row)
            if place % BATCH == BATCH - 1:
                await asyncio.sleep(0)  # cron takes its time
        if names is None:
            self._line = [(plan.next_ms, name) for name, plan in self._plans.items()]
            heapq.heapify(self._line)

    def _plan_row(self, row: PlanRow) -> None:
        known = self._plans.get(row.name)
        if known is not None and known.basis == row:
            return
        cron = self._find_cron(row.name, row.cron, row.timezone)
        if cron is None:
            self._drop(row.name)
            return
        is_now = row.decided_until_ms is None or row.is_holding
        next_ms = 0 if is_now else next_of(cron, row.decided_until_ms or 0)
        self._plan(row.name, Plan(next_ms, row.is_holding, row))

    def _plan(self, name: str, plan: Plan) -> None:
        self._plans[name] = plan
        heapq.heappush(self._line, (plan.next_ms, name))
        if plan.is_holding:
            self._holding.add(name)
        else:
            self._holding.discard(name)

    def _drop(self, name: str) -> None:
        self._plans.pop(name, None)
        self._holding.discard(name)

    def _due(self) -> list[str]:
        """Some of those that are due."""
        now_ms = self._clock.now_ms()
        due: dict[str, None] = {}
        while self._line and len(due) < BATCH:
            next_ms, name = self._line[0]
            plan = self._plans.get(name)
            is_old = plan is None or plan.next_ms != next_ms
            if not is_old and next_ms > now_ms:
                break
            heapq.heappop(self._line)
            if not is_old:
                due[name] = None
        return list(due)

    def _find_cron(self, name: str, expression: str, timezone: str | None) -> Cron | None:
        """When a schedule is due; None, and logged once, if that cannot be read here."""
        try:
            return cron_of(expression, timezone or "UTC")
        except ValueError as exc:
            if (name, str(exc)) not in self._told:
                self._told.add((name, str(exc)))
                log.error("a schedule cannot be read and never fires", schedule=name, why=str(exc))
            return None

    # What becomes of it

    async def _decide_on(self, names: Sequence[str]) -> None:
        """Fire what is due of these. One that Postgres refuses holds up no other."""
        try:
            await self._database.patiently(partial(self._fire, names))
        except errors.DatabaseRefusedError as exc:
            if len(names) > 1:
                for name in names:
                    await self._decide_on([name])
                return
            log.error("Postgres refuses to fire a schedule", schedule=names[0], why=str(exc))
            self._plan(names[0], Plan(self._clock.now_ms() + REFUSED_PAUSE_MS))

    async def _fire(self, names: Sequence[str]) -> None:
        now_ms = self._look_at_clock()
        this = Round(now_ms, dict.fromkeys(names, Plan(now_ms + LOCKED_PAUSE_MS)))
        fired = await schedules.decide_on(
            self._database,
            names,
            self._application,
            partial(self._decide, this),
            self._clock.skew_ms,
        )
        self._executor.cancelled(fired.cancelled)
        tell_waiting(self._session, fired.waiting)
        for name in names:
            if name in this.plans:
                self._plan(name, this.plans[name])
            else:
                self._drop(name)

    def _decide(self, this: Round, row: Locked, active: Sequence[str]) -> Decision | None:
        """What becomes of a locked schedule, and when to look at it again."""
        cron = self._find_cron(row.name, row.cron, row.timezone)
        if cron is None:
            this.plans.pop(row.name, None)
            return None
        if this.ticks >= AT_ONCE:
            this.plans[row.name] = Plan(this.now_ms)
            return None
        ticks, until_ms = ticks_of(row, cron, this.now_ms, self._slept_until_ms)
        fire, held_ms, cancelled = overlapped(row, ticks, active)
        this.ticks += len(fire)
        next_ms, is_holding = next_of(cron, until_ms), held_ms is not None
        this.plans[row.name] = Plan(
            min(next_ms, this.now_ms + HELD_LOOK_MS) if is_holding else next_ms,
            is_holding,
            PlanRow(row.name, row.cron, row.timezone, until_ms, is_holding),
        )
        return Decision(
            row.name,
            until_ms,
            runs=[self._run_of(row, tick_ms) for tick_ms in fire],
            held_ms=held_ms,
            last_fired_at=iso_of(max(fire)) if fire else None,
            cancelled=cancelled,
        )

    def _run_of(self, row: Locked, tick_ms: int) -> Run:
        return run_of(
            row,
            iso_of(tick_ms),
            self._workflows.get(row.workflow_name),
            allow_pickle=self._session.settings.allow_pickle,
        )


def tell_waiting(session: Session, waiting: Iterable[Due]) -> None:
    """Tell of new runs on their queues."""
    for due in set(waiting):
        if due.delay_until_ms is None:
            session.tell(notifier.QUEUED, due.queue_name or "")
        else:
            session.tell_due(due.queue_name or "", due.delay_until_ms)
