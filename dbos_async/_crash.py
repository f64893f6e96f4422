"""Dying at a chosen checkpoint, for tests.

`CrashAt` sits in the checkpointer's way. It lets exactly as many writes of this process reach
Postgres as were asked for, and then ends the process by SIGKILL, or drops every app and client in
it: their connections are cut, their tasks are cancelled and record nothing, and whoever waits gets
`Crashed`. The task that entered the block is cancelled, as by `asyncio.timeout`, and goes on behind
the block.
"""

import asyncio
import os
import signal
from collections import deque
from types import TracebackType
from typing import NoReturn, Self, cast

from dbos_async._client import Client
from dbos_async._store.batches import MAX_ROWS, Waiting, taken
from dbos_async._store.checkpointer import Checkpointer


class Crashed(BaseException):
    """The process has crashed, as `crash_at` was told to; like KeyboardInterrupt, no error."""


class CrashAt:
    """A block in which the process dies at a checkpoint. Made by `dbos_async.testing.crash_at`."""

    def __init__(self, checkpoint: int, *, before: bool = False, kill: bool = False) -> None:
        if checkpoint < 1:
            raise ValueError(f"the first checkpoint is 1, not {checkpoint}")
        self.happened = False
        """Whether the checkpoint was reached."""
        self._before = before
        self._kill = kill
        self._last = checkpoint - 1 if before else checkpoint  # the last write that may land
        self._travelling: list[Waiting] = []
        self._answered = 0
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        if Checkpointer.crash_point is not None:
            raise RuntimeError("one crash at a time: leave the block of the other crash_at first")
        Checkpointer.crash_point = self
        self._task = current_task()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        Checkpointer.crash_point = None
        if not self.happened:
            return False
        if self._task is not None:
            self._task.uncancel()
        return error is not None and is_crash(error)

    async def taken(self, waiting: deque[Waiting]) -> list[Waiting]:
        """See `CrashPoint.taken`. Other checkpointers of this process may have the last ones."""
        while self._answered < self._last:
            self._travelling = [one for one in self._travelling if not is_refused(one)]
            room = self._last - self._answered - len(self._travelling)
            if room > 0:
                batch = taken(waiting, min(room, MAX_ROWS))
                self._travelling += batch
                return batch
            await asyncio.sleep(0.01)
        return await self._crash()

    async def committing(self, waiting: Waiting) -> None:
        """See `CrashPoint.committing`."""
        await self.taken(deque([waiting]))

    async def answered(self, batch: list[Waiting]) -> None:
        """See `CrashPoint.answered`."""
        self._answered += len(batch)
        self._travelling = [one for one in self._travelling if one not in batch]
        if self._answered >= self._last and not self._before:
            await self._crash()

    async def _crash(self) -> NoReturn:
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        self.happened = True
        for client in list(Client.launched_here):
            client.drop(Crashed())
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        raise asyncio.CancelledError("crashed")


def is_refused(waiting: Waiting) -> bool:
    """Whether a write will never be answered for. A cancelled caller's write still travels."""
    return waiting.durable.done() and not waiting.durable.cancelled()


def current_task() -> asyncio.Task[object] | None:
    """The task that runs this code; None outside a loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def is_crash(error: BaseException) -> bool:
    """Whether an error is how a crash shows, and nothing but that."""
    if isinstance(error, BaseExceptionGroup):
        group = cast(BaseExceptionGroup[BaseException], error)
        return all(is_crash(one) for one in group.exceptions)
    return isinstance(error, Crashed | asyncio.CancelledError)
