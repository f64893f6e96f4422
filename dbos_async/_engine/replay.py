"""What is recorded goes before what is new: the order of a replay that has races in it.

A replay answers from memory, so a body gets through all that is recorded of it within a few turns
of the loop; but its tasks do not know of each other. The loser of a race could call its next step
before the winner is found in the record, and a limit whose moment has long passed could expire in a
block that had been left in time. So whoever must not be early waits until nothing has moved, no
step was called and no task ended, for some turns of the loop:

    turns    what then happens
    10       a recorded `wait` returns: its losers, too, have come as far as they had
    20       a recorded timeout expires where it had expired, the innermost first
    25       a sleep that was cut short goes by the clock all the same
    30       a timeout that is not recorded goes by the clock
    40       steps that are not recorded begin

Each of these moves something, and the count begins anew. What is recorded and must be fetched from
elsewhere moves until it is there. A body that awaits something plain, such as `asyncio.sleep`, does
not move: then a step that lost may be called again, as it may be when its process dies. Only
recorded histories with a race in them are counted, and those with a sleep or a saga in a branch.

A branch may have been cancelled in a sleep, and its replay finds the moment long passed. What comes
next in the branch tells: if it began before the moment, the sleep waits for whoever cancels it
again. Else the sleep goes by the clock; and a cancellation that finds it over by the clock comes
behind it, as one does that finds a record on its way (`Execution.landed`), so that the next replay
does the same. Only a body that awaits something plain, when it is cancelled in a sleep, and calls
its next step after the moment, is taken for one that had slept.

With a saga the steps are also answered in the order in which they had landed; or, when nothing
has moved for 10 turns, the first of those that are called. Else the failure of one task could
cancel another before that is in its saga again, and what it has to undo would be forgotten.
"""

import asyncio
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from dbos_async._store.records import Recorded

if TYPE_CHECKING:
    from dbos_async._engine.execution import Execution

WAIT: Final = "DBOS.asyncio_wait"
TIMEOUT: Final = "DBOS.timeout"
SLEEP: Final = "DBOS.sleep"
REGISTER: Final = "DBOS.saga.compensate"
RACES: Final = frozenset({WAIT, TIMEOUT})
"""Steps that make a history one with races."""

DECIDED: Final = 10
EXPIRED: Final = 20
AWAKE: Final = 25
DUE: Final = 30
NEW: Final = 40


class Expiry(Protocol):
    """A limit that is recorded to have expired."""

    @property
    def depth(self) -> int:
        """How far down in the task tree its block is."""
        ...

    @property
    def is_reached(self) -> bool:
        """Whether its block has come to where it did."""
        ...

    def expire(self) -> None:
        """Let it expire now."""
        ...


class Replay:
    """How far a run has come in what is recorded of it."""

    def __init__(
        self,
        execution: "Execution",
        history: Mapping[str, Recorded],
        order: Iterable[str] = (),
    ) -> None:
        self.left = set(history)
        """The recorded steps that have not been called again."""
        self.is_over = False
        """Whether new steps have begun."""
        self._to_land = deque(order)  # the first of them is in `left`, and none before it
        self._places = {key: place for place, key in enumerate(self._to_land)}
        self._line: dict[str, asyncio.Future[None]] = {}  # steps that wait for their turn
        self._began = begun_behind(history.values())
        self._execution = execution
        self._expiries: list[Expiry] = []
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._begun = 0
        self._moves = (0, 0)
        self._quiet = 0
        self._is_counting = False

    def begun(self, key: str) -> None:
        """A step is called."""
        self.left.discard(key)
        self._begun += 1
        if not self.is_over or self._expiries:
            self._count()

    def moved(self) -> None:
        """A recorded value that took its time has come: count anew."""
        self._quiet = 0
        self._count()

    def when(self, turns: int, callback: Callable[[], None]) -> None:
        """Call back after so many turns in which nothing moved."""
        self._waiting.append((turns, callback))
        self._count()

    async def quiet(self, turns: int) -> None:
        """Return after so many turns in which nothing moved."""
        quiet: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when(turns, partial(wake, quiet))
        await quiet

    def cut_short(self, key: str, moment_ms: float) -> bool:
        """Whether what is recorded next in this sleep's branch began before the sleep was over."""
        path, number = split(key)
        began = self._began[path]
        place = bisect_left(began, (number, 0))
        return place < len(began) and began[place][1] < moment_ms

    @property
    def is_ordered(self) -> bool:
        """Whether steps are answered in the order in which they had landed."""
        return bool(self._places)

    async def turn(self, key: str) -> None:
        """Return when it is the turn of this step to be answered, if they have an order."""
        if key not in self._places or not (self._line or self._has_earlier(key)):
            return
        self._line[key] = asyncio.get_running_loop().create_future()
        self._count()
        try:
            await self._line[key]
        finally:
            self._line.pop(key, None)

    def _has_earlier(self, key: str) -> bool:
        """Whether a step that landed before this one has not been called again."""
        while self._to_land and self._to_land[0] not in self.left:
            self._to_land.popleft()
        return bool(self._to_land) and self._places[self._to_land[0]] < self._places[key]

    def _answer_next(self) -> None:
        """Of the steps that wait for their turn, answer the first, if it has come."""
        waiting = [key for key, turn in self._line.items() if not turn.done()]
        key = min(waiting, key=self._places.__getitem__, default=None)
        if key is not None and (self._quiet >= DECIDED or not self._has_earlier(key)):
            self._quiet = 0
            wake(self._line[key])

    def expect(self, expiry: Expiry) -> None:
        """Let a limit expire as soon as its block has come to where it did."""
        self._expiries.append(expiry)
        self._count()

    def forget(self, expiry: Expiry) -> None:
        """Its block has been left."""
        if expiry in self._expiries:
            self._expiries.remove(expiry)

    def _count(self) -> None:
        if not self._is_counting:
            self._is_counting = True
            self._quiet = 0
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if self._execution.fetching:  # whose end counts anew
            self._is_counting = False
            return
        moves = self._begun, len(self._execution.tasks)
        self._quiet = self._quiet + 1 if moves == self._moves else 0
        self._moves = moves
        if self._quiet == EXPIRED:
            self._expire()
        self._answer_next()
        called = [entry for entry in self._waiting if entry[0] <= self._quiet]
        self._waiting = [entry for entry in self._waiting if entry[0] > self._quiet]
        for _, callback in called:
            callback()
        self.is_over = self.is_over or self._quiet >= NEW
        if (self._quiet < NEW or self._line) and not self._execution.done.done():
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._is_counting = False

    def _expire(self) -> None:
        """Of the limits whose blocks have come so far, those of the innermost task expire."""
        reached = [expiry for expiry in self._expiries if expiry.is_reached]
        deepest = max((expiry.depth for expiry in reached), default=0)
        for expiry in reached:
            if expiry.depth == deepest:
                expiry.expire()


def replay_of(execution: "Execution", history: Mapping[str, Recorded]) -> Replay | None:
    """What a run that has this history has to observe; None: nothing."""
    if not history:
        return None
    names = {step.name for step in history.values()}
    if REGISTER in names and any("." in key for key in history):
        landed = sorted(
            history.values(), key=lambda step: (step.completed_at_ms or 0, step.position)
        )
        return Replay(execution, history, [step.key for step in landed])
    sleeps = (key for key, step in history.items() if step.name == SLEEP)
    if names.isdisjoint(RACES) and not any("." in key for key in sleeps):
        return None
    return Replay(execution, history)


def begun_behind(steps: Iterable[Recorded]) -> defaultdict[str, list[tuple[int, int]]]:
    """By a branch's path: behind which of its steps something began, and when; in order.

    A step begins behind the one before it, a task that was spawned behind the last one called.
    """
    begun: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for step in steps:
        started_at_ms = step.started_at_ms or 0
        path, number = split(step.key)
        begun[path].append((number - 1, started_at_ms))
        while path:
            path, number = split(path.rsplit(".", 2)[0])
            begun[path].append((number, started_at_ms))
    for behind in begun.values():
        behind.sort()
    return begun


def split(key: str) -> tuple[str, int]:
    """A step's branch, as in `Branch.path`, and its number there."""
    path, dot, number = key.rpartition(".")
    return path + dot, int(number)


def wake(quiet: "asyncio.Future[None]") -> None:
    """Let whoever waits for it go on."""
    if not quiet.done():
        quiet.set_result(None)
