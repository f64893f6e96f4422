"""`dbos.timeout`: a limit on a block of a workflow, which expires at the same place in a replay.

    async with dbos.timeout(5):   step n,   DBOS.timeout: when it expires, by the database's clock
        …                         steps of the body
                                  step n+1, DBOS.timeout.end: null, or where it expired

Both are numbered when the block is entered. A limit that expires notes where its task was, cancels
it as `asyncio.timeout` does, and no new step begins before that is durable. In a replay:

- *left in time*: no clock runs.
- *expired*: the task was within a step or a verb, and that does not return this time either,
  whether or not it landed in the same instant; or it awaited something else, such as its branches.
  It is cancelled once it and everybody else have come as far (see `replay`).
- *neither is recorded*: recorded steps are answered first, however late it is now; only then does
  the limit go by the clock, so that a body which had finished in time does so again.

If the process dies between the expiry and its record, nothing came of the expiry: the replay goes
by what is recorded, and then the limit expires where that ends.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from msgspec import Struct

from dbos_async._engine.context import Branch, asking_branch
from dbos_async._engine.execution import Execution
from dbos_async._engine.replay import DUE, TIMEOUT
from dbos_async._engine.steps import StepDefinition, check_same, lost
from dbos_async._store import codec, stored
from dbos_async._store.landings import Landing
from dbos_async._store.records import Fence, StepWrite

END: Final = "DBOS.timeout.end"


class Timeout(Protocol):
    """What `async with dbos.timeout(…) as limit` gives."""

    def expired(self) -> bool:
        """Whether it has expired, and the block was cancelled."""
        ...


class Where(Struct, frozen=True):
    """How far a branch had come when a limit of its expired."""

    steps: int
    spawned: int
    keys: list[str]
    """Steps that it was in, of one call; none if it awaited something else."""
    inside: int
    """Open blocks with a limit within the one that expired."""


ENCODE: Final = codec.encoder(Where | None)
DECODE: Final = codec.decoder(Where | None)


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[Timeout]:
    """Cancel the block once so much time has passed, and raise TimeoutError at its end."""
    branch = asking_branch()
    if branch is None or branch.step is not None:
        async with asyncio.timeout(seconds) as plain:
            yield plain
        return
    key, end = branch.next_key(), branch.next_key()
    limit = Limit(branch, end, await deadline_of(branch, key, seconds), seconds)
    try:
        async with asyncio.timeout(None) as inner:
            limit.open(inner)
            yield limit
        limit.check_in_time()
    except asyncio.CancelledError as exc:
        if limit.is_refused and not limit.is_cancelled_from_outside:
            raise limit.error() from exc
        raise
    except TimeoutError as exc:
        if exc.args or not limit.expired():
            raise
        raise limit.error() from exc.__cause__
    finally:
        limit.close()
        await limit.record()


async def deadline_of(branch: Branch, key: str, seconds: float) -> float:
    """When the limit expires, in milliseconds; recorded."""
    execution: Execution = branch.execution
    executor = execution.executor

    async def moment() -> float:
        at: float = executor.clock.now_ms() / 1000 + seconds
        return at

    step = StepDefinition(TIMEOUT, moment, decode=codec.decoder(float), is_internal=True)
    recorded: float = await called(execution, key, step)
    return recorded * 1000


async def called(execution: Execution, key: str, step: StepDefinition) -> Any:
    """A step that has a key and is awaited at once."""
    position = execution.position_of(key)
    run = execution.executor.steps.run(execution, key, position, step, (), {})
    execution.called(key, step.name, run)
    return await run


class Limit:
    """The limit of one block of a workflow."""

    def __init__(self, branch: Branch, key: str, deadline_ms: float, seconds: float) -> None:
        self.key = key
        self.deadline_ms = deadline_ms
        self.is_refused = False
        """Whether the body went on where it expired in an earlier run, and was stopped there."""
        self._seconds = seconds
        self._branch = branch
        self._execution: Execution = branch.execution
        self._recorded = self._execution.history.get(key)
        self._where: Where | None = None
        if self._recorded is not None:
            check_same(self._execution, self._recorded, END, None)
            self._where = stored.read(self._recorded.output, self._recorded.serialization, DECODE)
        self._inner: asyncio.Timeout | None = None
        self._has_expired = False
        self._is_in_call = False  # where it expired in an earlier run, if it was in one
        self._timer: asyncio.Task[None] | None = None
        self._cancelling = 0
        self._write: StepWrite | None = None
        self._landing: asyncio.Future[Landing] | None = None

    def expired(self) -> bool:
        """Whether it has expired, and the block was cancelled."""
        is_expiring = self._inner is not None and self._inner.expired()
        return is_expiring or self._has_expired or self.is_refused

    @property
    def depth(self) -> int:
        """How far down in the task tree it is."""
        return self._branch.path.count(".")

    def open(self, inner: asyncio.Timeout) -> None:
        """The block begins."""
        self._inner = inner
        self._cancelling = cancelling()
        self._branch.limits += (self,)
        execution = self._execution
        execution.limits += (self,)
        if self._recorded is None and execution.replay is not None:
            execution.replay.when(DUE, self._arm)
        elif self._recorded is None:
            self.start()
        elif self._where is not None and self._where.keys:
            execution.freeze(self._where.keys, self)
        elif self._where is not None and execution.replay is not None:
            execution.replay.expect(self)

    def close(self) -> None:
        """The block is left."""
        self._has_expired = self.expired()
        self._inner = None  # it knows its task, a weak key that must not be held from here
        self._branch.limits = tuple(limit for limit in self._branch.limits if limit is not self)
        execution = self._execution
        execution.limits = tuple(limit for limit in execution.limits if limit is not self)
        if self._execution.replay is not None:
            self._execution.replay.forget(self)
        if self._timer is not None:
            self._timer.cancel()

    def check_in_time(self) -> None:
        """The body has returned.

        Raises:
            TimeoutError: it had not, in an earlier run, and there it expired.
        """
        if self._where is not None and not self.expired():
            self.is_refused = True
            raise self.error()

    def error(self) -> TimeoutError:
        """What its block raises."""
        return TimeoutError(f"the block took longer than {self._seconds} s")

    @property
    def is_cancelled_from_outside(self) -> bool:
        """Whether somebody else has cancelled its task meanwhile."""
        return cancelling() > self._cancelling

    # Where it expired in an earlier run

    @property
    def is_reached(self) -> bool:
        """Whether the block has come to where it expired."""
        where = self._where
        if where is None or self.expired():
            return False
        if where.keys:
            return self._is_in_call
        is_in_another = self._branch.call is not None and self._branch.call.is_under_way
        return self._is_at(where) and not is_in_another

    def reach(self) -> None:
        """The block is in the call where it expired."""
        self._is_in_call = True
        if self._execution.replay is not None and not self.expired():
            self._execution.replay.expect(self)

    def check_place(self) -> None:
        """The branch is about to call a step or to spawn a task.

        Raises:
            CancelledError: it was cancelled before it did, in an earlier run.
        """
        where = self._where
        if where is None or where.keys or self.expired():
            return
        if self._is_at(where):
            self.is_refused = True
            raise asyncio.CancelledError

    def _is_at(self, where: Where) -> bool:
        here = *self._branch.place, self._inside
        return here == (where.steps, where.spawned, where.inside)

    @property
    def _inside(self) -> int:
        limits = self._branch.limits
        return len(limits) - 1 - limits.index(self)

    # Expiring

    def _arm(self) -> None:
        """What is recorded has been answered."""
        if self in self._execution.limits:
            self._execution.arm(self)

    def start(self) -> None:
        """Go by the clock from now on."""
        replay, clock = self._execution.replay, self._execution.executor.clock
        now_ms = clock.now_ms()
        if replay is not None and any(self._has_within(key) for key in replay.left):
            # The body awaits something plain before it goes on with what is recorded; it had got
            # over that in time.
            self.deadline_ms = max(self.deadline_ms, now_ms + self._seconds * 1000)
        if self.deadline_ms <= now_ms:
            self.expire()
        else:
            self._timer = self._execution.executor.aside(self._wait(), "dbos timeout")

    def _has_within(self, key: str) -> bool:
        """Whether a step was called after the block was entered; it has not been left."""
        path = self._branch.path
        if key == self.key or not key.startswith(path):
            return False
        return int(key[len(path) :].split(".", maxsplit=1)[0]) >= self._number

    @property
    def _number(self) -> int:
        """The last number that its branch had given out when the block was entered."""
        return int(self.key[len(self._branch.path) :])

    async def _wait(self) -> None:
        await self._execution.executor.clock.sleep_until(self.deadline_ms)
        self.expire()

    def expire(self) -> None:
        """Cancel the block where it is."""
        if self._inner is None or self.expired() or self._execution.stopped is not None:
            return
        self._inner.reschedule(0)
        if self._where is None:  # right behind the cancellation, before the task can move
            asyncio.get_running_loop().call_soon(self._note)
        else:
            numbers = range(self._number + 1, self._where.steps + 1)
            keys = [f"{self._branch.path}{number}" for number in numbers]
            self._execution.pass_by([self.key, *keys])

    def _note(self) -> None:
        """The task has been cancelled where it is: send that to Postgres."""
        execution = self._execution
        if self._inner is None or not self._inner.expired() or execution.stopped is not None:
            return
        call = self._branch.call
        keys = call.open_keys if call is not None and call.is_under_way else []
        execution.freeze(keys, self)
        where = Where(*self._branch.place, keys, self._inside)
        now_ms = execution.executor.clock.now_ms()
        position = execution.position_of(self.key)
        self._write = StepWrite(
            execution.workflow_id,
            position,
            END,
            ENCODE(where),
            None,
            None,
            now_ms,
            now_ms,
            execution.written_key(self.key, position),
            None,
            execution.owner,
        )
        landing: asyncio.Future[Landing] = execution.executor.session.checkpointer.commit(
            self._write
        )
        execution.expiries += (landing,)
        landing.add_done_callback(self._landed)
        self._landing = landing

    def _landed(self, landing: "asyncio.Future[Landing]") -> None:
        execution = self._execution
        execution.expiries = tuple(each for each in execution.expiries if each is not landing)
        if not landing.cancelled():
            landing.exception()  # the block's end raises it, if it gets there

    # Its end

    async def record(self) -> None:
        """Return once it is durable how the block ended.

        Raises:
            CancelledError: this run is over.
        """
        if self._landing is None or self._write is None:
            await called(self._execution, self.key, IN_TIME)
            return
        self._execution.begin(self.key)
        if isinstance(await asyncio.shield(self._landing), Fence):
            lost(self._execution)
        self._branch.recorded(self.key, self._write.completed_at_ms)


async def in_time() -> None:
    """The block was left before its limit expired."""


IN_TIME: Final = StepDefinition(END, in_time, encode=ENCODE, decode=DECODE, is_internal=True)


def cancelling() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
