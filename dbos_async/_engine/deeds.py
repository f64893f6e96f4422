"""What a workflow does by a verb of the library's: numbered at the call, recorded once.

    call ─▶ numbered ─▶ awaited ─▶ recorded? ─ yes ─▶ compared, and what is recorded
                                      └ no ─▶ done: its row lands together with what it does

A deed that waits takes two numbers: one for itself, and one for the moment at which it stops
waiting, which is recorded when it is found that there is something to wait for. So a replay waits
no longer than the first run would have.

If the process dies before the row has landed, nothing was done, and the replay does it; after it,
the replay finds it. Outside of workflows, and in steps, the same verbs are plain calls.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

from msgspec import Struct

from dbos_async._engine.context import Branch, current_branch
from dbos_async._engine.execution import Execution, Wait
from dbos_async._engine.inner import recorded_of
from dbos_async._engine.replay import SLEEP
from dbos_async._engine.steps import check_same, lost
from dbos_async._engine.wakers import Wakers
from dbos_async._store import codec, stored
from dbos_async._store.arguments import digest as digest_of
from dbos_async._store.checkpointer import Checkpointer
from dbos_async._store.clock import Clock
from dbos_async._store.parking import News
from dbos_async._store.records import (
    EffectWrite,
    Fence,
    ReceiptWrite,
    Recorded,
    SagaWrite,
    StepWrite,
)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
V = TypeVar("V")

NULL: Final = "null"
MOMENT: Final = codec.decoder(float)

Patience = Callable[[], AbstractAsyncContextManager[float]]
"""A block to wait in, and until when, in milliseconds of the database's clock."""


class Deed(Struct, eq=False):
    """One call of a verb by a workflow."""

    execution: Execution
    key: str
    position: int
    name: str
    digest: int | None = None
    """Of what it was called with."""
    started_at_ms: int = 0

    @classmethod
    def called(cls, branch: Branch, name: str, *arguments: object) -> "Deed":
        """Number a deed that is called now."""
        key = branch.next_key()
        execution: Execution = branch.execution
        digest = digest_of(arguments, {}) if arguments else None
        return cls(execution, key, execution.position_of(key), name, digest)

    def awaited(self, run: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """What the workflow has to await."""
        self.execution.called(self.key, self.name, run)
        return run

    def recorded(self) -> Recorded | None:
        """What is recorded of it; it begins now, or is replayed.

        Raises:
            CancelledError: this run is over.
        """
        self.execution.begin(self.key)
        return self.execution.history.get(self.key)

    async def go_live(self) -> None:
        """It is not recorded: return once it may be done."""
        await self.execution.live(self.key)
        self.started_at_ms = self.execution.executor.clock.now_ms()

    def write(self, *, output: str | None = NULL, error: str | None = None) -> StepWrite:
        """The row that it becomes."""
        return StepWrite(
            self.execution.workflow_id,
            self.position,
            self.name,
            output,
            error,
            None,
            self.started_at_ms,
            self.execution.executor.clock.now_ms(),
            self.execution.written_key(self.key, self.position),
            self.digest,
            self.execution.owner,
        )

    async def land(
        self, write: StepWrite | EffectWrite | ReceiptWrite | SagaWrite
    ) -> Recorded | Fence:
        """What is recorded of it once `write` is durable; `Fence.NO_MESSAGE` of a receipt.

        Raises:
            CancelledError: the workflow is no longer ours.
            DatabaseRefusedError: Postgres rejected the write.
        """
        checkpointer: Checkpointer = self.execution.executor.session.checkpointer
        landing = await self.execution.landed(self.key, write, checkpointer.commit(write))
        if landing is None:
            step = write if isinstance(write, StepWrite) else write.step
            assert step is not None
            return recorded_of(step)
        if not isinstance(landing, Recorded) and landing is not Fence.NO_MESSAGE:
            lost(self.execution)
        return landing

    def accept(self, recorded: Recorded | Fence) -> Recorded:
        """Take what is recorded for the outcome.

        Raises:
            DivergenceError: it is of another call.
            Exception: the error that it came to.
        """
        assert isinstance(recorded, Recorded)
        check_same(self.execution, recorded, self.name, self.digest)
        branch = current_branch() or Branch(self.execution)
        branch.recorded(recorded.key, recorded.completed_at_ms or 0)
        if recorded.error is not None:
            raise stored.read_error(
                recorded.error,
                recorded.serialization,
                allow_pickle=self.execution.executor.allow_pickle,
            )
        return recorded

    def patience(self, deadline: "Deed", seconds: float, news: News) -> Patience:
        """Wait for `news` until `seconds` after it began, or as long as `deadline` has it."""
        moment: float | None = None

        @asynccontextmanager
        async def waiting() -> AsyncIterator[float]:
            nonlocal moment
            if moment is None:
                moment = await deadline.moment(self.started_at_ms / 1000 + seconds)
            wait = Wait(key=self.key, until_ms=moment * 1000, news=news)
            async with self.execution.waiting(wait):
                yield moment * 1000

        return waiting

    async def moment(self, otherwise: float) -> float:
        """The moment that is recorded of a deadline; this one is, if none was."""
        recorded: Recorded | Fence | None = self.execution.history.get(self.key)
        if recorded is None:
            self.started_at_ms = self.execution.executor.clock.now_ms()
            recorded = await self.land(self.write(output=codec.encode(otherwise)))
        accepted = self.accept(recorded)
        moment: float = stored.read(accepted.output, accepted.serialization, MOMENT)
        return moment


def with_deadline(branch: Branch, name: str, *arguments: object) -> tuple[Deed, Deed]:
    """A deed that waits, and the moment until which; both are numbered now."""
    execution: Execution = branch.execution
    key, deadline_key = branch.next_key(), branch.next_key()
    position, deadline_position = positions_of(execution, key, deadline_key)
    deed = Deed(execution, key, position, name, digest_of(arguments, {}))
    return deed, Deed(execution, deadline_key, deadline_position, SLEEP)


def positions_of(execution: Execution, key: str, deadline_key: str) -> tuple[int, int]:
    """The numbers of a deed and its deadline: two in a row, though one may not be recorded.

    So what comes after them has the same number in a replay as it had in the first run.
    """
    deed, deadline = execution.history.get(key), execution.history.get(deadline_key)
    if deed is not None:
        after = deed.position + 1 if deadline is None else deadline.position
        execution.last_position = max(execution.last_position, after)
        return deed.position, after
    if deadline is not None:
        return deadline.position - 1, deadline.position
    return execution.position_of(key), execution.position_of(deadline_key)


def impatience(clock: Clock, seconds: float) -> Patience:
    """Wait outside of workflows, until `seconds` from now; nothing is recorded."""
    until_ms = clock.now_ms() + seconds * 1000

    @asynccontextmanager
    async def waiting() -> AsyncIterator[float]:
        yield until_ms

    return waiting


async def expected(
    wakers: Wakers[K, V], key: K, clock: Clock, patience: Patience | None
) -> V | None:
    """The answer once there is one, or None when `patience` has run out; without any, at once.

    Before it gives up, it looks once more: the news may have been lost.
    """
    async with wakers.asking(key) as asked:
        if await asked.first_look():
            return asked.answer.result()
        if patience is None:
            return None
        async with patience() as until_ms:
            if await clock.wait_until(until_ms, asked.answer):
                return asked.answer.result()
    async with wakers.asking(key) as asked:
        return asked.answer.result() if await asked.first_look() else None
