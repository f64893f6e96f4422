"""One queue, as this process works on it.

    news, a freed slot, a due token, the recheck ─▶ wake ─▶ claim as much as there is room for
                                                     ▲                     │ adopt
                                                     └── a slot is freed ──┘

A line owns the slots that its workflows hold here, and one task, which alone claims. Only numbers
are kept in this process; what other processes must respect is decided in Postgres, by the claim.

A workflow that only awaits others which it enqueued gives its slot up meanwhile, or a queue whose
workflows wait for each other would stand still; before it goes on it takes a slot again, ahead of
everything that waits in the queue. Where the limit is shared by processes, both are written down:
`waiting_for` is 'workflow' while it waits, and 'slot' while it wants to go on, which claims count
as running. If the process dies meanwhile, recovery puts it back on the queue, and the mark goes.

Rescans: entries of rows that were claimed stay in the index until vacuum may remove them, which a
long transaction elsewhere forbids; walking over them would make every claim slower than the last.
So when a claim from the head of the line is slow, the next ones begin where it found its first
workflow, and the head is looked at again only as often as costs a tenth of the time.
"""

import asyncio
import random
from collections import Counter, deque
from typing import Final

from dbos_async._engine.execution import Execution
from dbos_async._engine.executor import Executor
from dbos_async._engine.window import Window
from dbos_async._limits import Limits
from dbos_async._log import log
from dbos_async._store import claiming, notifier, sql
from dbos_async._store.claiming import START, Claim, Taken
from dbos_async._store.database import Database
from dbos_async._store.notifier import Notifier
from dbos_async._store.records import Claimed, Outcome, Unclaimable

MAX_CLAIM: Final = 500
"""Workflows that one claim takes."""
UNLIMITED_SLOTS: Final = 1_000
"""Workflows of a queue without worker_concurrency that one process runs at a time."""
MAX_HERE: Final = 1_500
"""Workflows of a queue that run here or whose outcome is on its way."""
SHARED_POLL: Final = 1.0
"""Seconds between looks at a line whose limits other processes may have freed."""
SLOW: Final = 0.02
"""Seconds of a claim from which on the head of the line is skipped."""
RESCAN_SHARE: Final = 10
"""How many times as long as it took, a look at the head of a slow line is put off."""


class Line:
    """Claims from one queue and counts what runs of it here."""

    def __init__(
        self,
        name: str,
        claim: Claim,
        database: Database,
        notifier: Notifier,
        executor: Executor,
        *,
        parks: bool = False,
    ) -> None:
        self.name = name
        self.parks = parks
        self.limits = Limits()
        self.is_paused: bool = False
        self._claim = claim
        self._database = database
        self._notifier = notifier
        self._executor = executor
        self._is_closed = False
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._held: set[Slot] = set()
        self._settling: set[Slot] = set()
        self._leaving: set[Slot] = set()
        self._entering: deque[Slot] = deque()
        self._starts = Window()
        self._start = START
        self._rescan_at = 0.0
        self._cursor = ""

    @property
    def has_returning(self) -> bool:
        """Whether workflows that run here want their slots back."""
        return bool(self._entering)

    # What others tell it

    def configure(self, limits: Limits, *, is_paused: bool) -> None:
        """Follow the queue's configuration."""
        if (limits, is_paused) != (self.limits, self.is_paused):
            if is_paused is not self.is_paused:
                log.warning(
                    "queue is paused, or gone: nothing is taken off it until somebody resumes it"
                    if is_paused
                    else "queue goes on",
                    queue=self.name,
                )
            self.limits, self.is_paused = limits, is_paused
            self.wake()

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    def close(self) -> None:
        """Claim nothing more; `run` returns once the claim that travels has come back."""
        self._is_closed = True
        self._wake.set()

    def adopted(self, execution: Execution, claimed: Claimed) -> None:
        """A workflow of this line is about to run here."""
        slot = Slot(self, execution, claimed.partition_key)
        execution.slot = slot
        self._held.add(slot)
        execution.done.add_done_callback(slot.ended)

    def settling(self, slot: "Slot") -> None:
        """The body of a workflow is over: another may take its slot while its outcome travels.

        So an end and the next claim cost one round trip, not two. Where the rows that run are
        counted, the next claim has to wait for the outcome to land.
        """
        if not self.limits.counts_running:
            self._held.discard(slot)
            self._settling.add(slot)
            self._wake.set()

    def ended(self, slot: "Slot") -> None:
        """The workflow runs here no more."""
        self._leaving.discard(slot)
        self._settling.discard(slot)
        self._held.discard(slot)
        if self.limits.counts_running:
            self._notifier.post(notifier.QUEUED, self.name)
        self._wake.set()

    # Claiming

    async def run(self) -> None:
        """Claim whenever there is reason to."""
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._is_closed:
                return
            await self._database.persistently(self._drain, what=f"the queue {self.name!r}")

    async def _drain(self) -> None:
        """Claim until the line is empty, or nothing more may start; who comes back goes first."""
        looked_at: set[str] = set()
        while True:
            await self._write_leaves()
            await self._admit()
            slots = 0 if self._is_closed or self._executor.is_draining else self._room()
            if slots <= 0:
                return
            taken = await self._claim_some(slots)
            if len(taken.claimed) == slots:
                continue
            if taken.has_more_partitions and taken.cursor not in looked_at:
                looked_at.add(taken.cursor)
            elif self._start != START:
                self._rescan_at = 0.0
            else:
                if taken.is_held_up:
                    self._wake_in(taken.due_ms)
                return

    def _room(self) -> int:
        """How many may start here now."""
        if self.is_paused or self._executor.is_deactivated:
            return 0
        limits = self.limits
        slots = (limits.worker_concurrency or UNLIMITED_SLOTS) - len(self._held)
        slots = min(slots - len(self._entering), MAX_HERE - len(self._held) - len(self._settling))
        if limits.worker_rate_limit is not None and slots > 0:
            room, back_in = self._starts.room(limits.worker_rate_limit, self._now())
            if room < slots:
                self._wake_in(back_in)
            slots = min(slots, room)
        return min(slots, MAX_CLAIM)

    async def _claim_some(self, slots: int) -> Taken:
        taken = Taken([])

        async def take(owner: str) -> list[Claimed]:
            nonlocal taken
            taken = await self._take(owner, slots)
            return taken.claimed

        await self._executor.claims.claim(take)
        self._cursor = taken.cursor
        if self.limits.worker_rate_limit is not None:
            self._starts.took(len(taken.claimed), self._now())
        return taken

    async def _take(self, owner: str, slots: int) -> Taken:
        claim = self._claim.by(owner, self._executor.clock.skew_ms)
        if self.limits.is_partitioned:
            here = Counter(slot.partition_key for slot in self._held)
            return await claiming.claim_in_turns(
                self._database, claim, self.limits, slots, here, self._cursor
            )
        if self.limits.is_shared:
            return await claiming.claim_exactly(self._database, claim, self.limits, slots)
        begun_at = self._now()
        if begun_at >= self._rescan_at:
            self._start = START
        taken = await claiming.claim(self._database, claim, slots, self._start)
        seconds = self._now() - begun_at
        if self._start == START and seconds > SLOW and taken.claimed:
            self._rescan_at = self._now() + RESCAN_SHARE * seconds
        self._start = (
            taken.claimed[0].position if self._now() < self._rescan_at and taken.claimed else START
        )
        return taken

    def _wake_in(self, milliseconds: int | None) -> None:
        """Wake when a token is back, or others may have freed something; the sooner counts."""
        seconds = random.uniform(0.8, 1.2) * SHARED_POLL  # noqa: S311  # spreads processes
        if milliseconds is not None:
            seconds = min(seconds, max(0.0, milliseconds / 1000))
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is None or self._timer.when() <= loop.time() or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(at, self._wake.set)

    async def tidy(self) -> None:
        """Forget tokens that are back of partitions that may never be claimed from again."""
        if self.limits.partition_rate_limit is not None:
            period = claiming.period_of(self.limits.partition_rate_limit)
            await self._database.execute(sql.FORGET_TOKENS, self.name, period)

    async def find_unknown(self) -> list[Unclaimable]:
        """What waits at the head of the line that nobody here can run."""
        claim = self._claim
        return await self._database.fetch(
            sql.UNKNOWN_WAITING,
            self.name,
            claim.app_version,
            claim.application,
            claim.names,
            claim.classes,
            claim.configs,
            into=Unclaimable,
        )

    # Slots that are given up and taken again

    def leave(self, slot: "Slot") -> None:
        """A workflow only waits."""
        was_full = self._is_full
        self._held.discard(slot)
        self._leaving.add(slot)
        if was_full or not self.limits.is_free:
            self._wake.set()

    def enter(self, slot: "Slot") -> None:
        """A workflow wants to go on."""
        if self.limits.is_free or (slot in self._leaving and self._has_room_for(slot)):
            self._leaving.discard(slot)  # nobody was told yet
            self._hold(slot)
        elif slot not in self._entering:
            self._entering.append(slot)
            self._wake.set()

    @property
    def _is_full(self) -> bool:
        """Whether no more of a queue without limits may start here."""
        held = len(self._held)
        return held >= UNLIMITED_SLOTS or held + len(self._settling) >= MAX_HERE

    def _hold(self, slot: "Slot") -> None:
        self._held.add(slot)
        slot.hold()

    def _has_room_for(self, slot: "Slot") -> bool:
        limits = self.limits
        if limits.worker_concurrency is not None and len(self._held) >= limits.worker_concurrency:
            return False
        here = sum(slot.partition_key == other.partition_key for other in self._held)
        return (
            limits.partition_worker_concurrency is None
            or here < limits.partition_worker_concurrency
        )

    async def _write_leaves(self) -> None:
        """Let other processes have the shared slots of what only waits."""
        leaving, self._leaving = list(self._leaving), set()
        if not leaving or not self.limits.counts_running:
            return
        try:
            await self._database.execute(
                sql.LEAVE_SLOTS,
                [slot.execution.workflow_id for slot in leaving],
                [slot.execution.owner for slot in leaving],
            )
        except BaseException:
            self._leaving.update(leaving)
            raise
        for slot in leaving:
            slot.is_written = True
        self._notifier.post(notifier.QUEUED, self.name)

    async def _admit(self) -> None:
        """Let those go on that want to, in the order in which they came, while there is room."""
        while self._entering:
            slot = self._entering[0]
            if not slot.is_asked_for:
                self._entering.popleft()
                continue
            if not self._has_room_for(slot):
                return  # a freed slot wakes
            if slot.is_written:
                if not await self._is_admitted(slot):
                    self._wake_in(None)
                    return
                slot.is_written = False
            self._entering.popleft()
            self._hold(slot)

    async def _is_admitted(self, slot: "Slot") -> bool:
        """Ask for a shared slot; one that is refused is kept free for it from now on."""
        async with self._database.lease() as connection, connection.transaction():
            await connection.execute(sql.LOCK_QUEUE, self.name)
            refused = await connection.fetchval(
                sql.ENTER_SLOT,
                self.name,
                slot.partition_key,
                slot.execution.workflow_id,
                slot.execution.owner,
                self.limits.concurrency,
                self.limits.partition_concurrency,
            )
        return not refused

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class Slot:
    """A workflow's place in the limits of its line."""

    def __init__(self, line: Line, execution: Execution, partition_key: str | None) -> None:
        self.execution = execution
        self.partition_key = partition_key or ""
        self.is_written = False
        """Whether its row says that the workflow does not run."""
        self._line = line
        self._asking = 0
        self._away: asyncio.Event | None = None  # set when it is held again

    @property
    def is_free(self) -> bool:
        """Whether nothing limits what runs of the line."""
        return self._line.limits.is_free

    @property
    def may_park(self) -> bool:
        """Whether a workflow of the line may be parked."""
        return self._line.parks or self.is_free

    @property
    def is_asked_for(self) -> bool:
        """Whether the workflow wants to go on."""
        return self._asking > 0 and not self.execution.done.done()

    def hold(self) -> None:
        """Let the workflow go on."""
        if self._away is not None:
            self._away.set()
            self._away = None

    def settle(self) -> None:
        """The body is over."""
        self._line.settling(self)

    def ended(self, done: "asyncio.Future[Outcome | None]") -> None:
        """The workflow runs here no more."""
        self._line.ended(self)

    def leave(self) -> None:
        """Give the slot up: the workflow only waits, in a way that allows it."""
        if self._away is None and not self.execution.done.done():
            self._away = asyncio.Event()
            self._line.leave(self)

    async def enter(self) -> None:
        """Return once the slot is held again."""
        away = self._away
        if away is None:
            return
        self._asking += 1
        try:
            if self._asking == 1:
                self._line.enter(self)
            await away.wait()
        finally:
            self._asking -= 1
