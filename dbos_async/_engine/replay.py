"""What is recorded goes before what is new: the order of a replay that has races in it.

A replay answers from memory, so a body gets through all that is recorded of it within a few turns
of the loop; but its tasks do not know of each other. The loser of a race could call its next step
before the winner is found in the record, and a limit whose moment has long passed could expire in a
block that had been left in time. So whoever must not be early waits until nothing has moved, no
step was called and no task ended, for some turns of the loop:

    turns    what then happens
    10       a recorded `wait` returns: its losers, too, have come as far as they had
    20       a recorded timeout expires where it had expired, the innermost first
    30       a timeout that is not recorded goes by the clock
    40       steps that are not recorded begin

Each of these moves something, and the count begins anew. Only recorded histories with a race in
them are counted. A body that awaits something plain, such as `asyncio.sleep`, does not move: then a
step that lost may be called again, as it may be when its process dies.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from dbos_async._engine.execution import Execution

WAIT: Final = "DBOS.asyncio_wait"
TIMEOUT: Final = "DBOS.timeout"
RACES: Final = frozenset({WAIT, TIMEOUT})
"""Steps that make a history one with races."""

DECIDED: Final = 10
EXPIRED: Final = 20
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

    def __init__(self, execution: "Execution", keys: Iterable[str]) -> None:
        self.left = set(keys)
        """The recorded steps that have not been called again."""
        self.is_over = False
        """Whether new steps have begun."""
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

    def when(self, turns: int, callback: Callable[[], None]) -> None:
        """Call back after so many turns in which nothing moved."""
        self._waiting.append((turns, callback))
        self._count()

    async def quiet(self, turns: int) -> None:
        """Return after so many turns in which nothing moved."""
        quiet: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when(turns, partial(wake, quiet))
        await quiet

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
        moves = self._begun, len(self._execution.tasks)
        self._quiet = self._quiet + 1 if moves == self._moves else 0
        self._moves = moves
        if self._quiet == EXPIRED:
            self._expire()
        called = [entry for entry in self._waiting if entry[0] <= self._quiet]
        self._waiting = [entry for entry in self._waiting if entry[0] > self._quiet]
        for _, callback in called:
            callback()
        self.is_over = self.is_over or self._quiet >= NEW
        if self._quiet < NEW and not self._execution.done.done():
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


def wake(quiet: "asyncio.Future[None]") -> None:
    """Let whoever waits for it go on."""
    if not quiet.done():
        quiet.set_result(None)
