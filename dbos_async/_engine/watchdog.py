"""Names the step that blocks the event loop, with its stack, while it does.

A thread, because a blocked loop cannot watch itself. The loop leaves a mark several times a second;
when the mark is too old, the thread looks at what the loop's thread is doing.
"""

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from dbos_async._engine.executor import Executor
from dbos_async._engine.pulse import INTERVAL, Pulse
from dbos_async._engine.steps import Steps
from dbos_async._log import log

LIMIT: Final = 0.9
"""Seconds that the loop may stand still before somebody is told: looks are 0.1 s apart, so that a
block of one second is seen for certain."""


class Watchdog:
    """Watches the loop of one app."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._stop = threading.Event()

    @contextmanager
    def open(self) -> Iterator["Watchdog"]:
        """Watch the running loop for the length of the block."""
        thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="dbos watchdog", daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self, loop_thread: int) -> None:
        told_of = 0.0
        while not self._stop.wait(INTERVAL):
            marked_at = self._pulse.at
            stood_still = time.monotonic() - marked_at
            if stood_still > LIMIT and told_of != marked_at:
                told_of = marked_at
                self._tell(sys._current_frames().get(loop_thread), stood_still)  # noqa: SLF001  # the documented way

    def _tell(self, frame: FrameType | None, seconds: float) -> None:
        step, workflow, workflow_id = blocker_of(frame)
        log.warning(
            f"step {step!r} blocks the event loop; nothing else runs meanwhile"
            if step
            else "something blocks the event loop; nothing else runs meanwhile",
            workflow=workflow,
            workflow_id=workflow_id,
            seconds=round(seconds, 1),
            stack="".join(traceback.format_stack(frame)[-6:]) if frame is not None else "",
        )


def blocker_of(frame: FrameType | None) -> tuple[str | None, str | None, str | None]:
    """The step, workflow and workflow id in whose code the loop's thread is."""
    workflow = workflow_id = None
    while frame is not None:
        if frame.f_code is Steps.run.__code__:
            execution = frame.f_locals["execution"]
            return frame.f_locals["step"].name, execution.name, execution.workflow_id
        if frame.f_code is Executor.call.__code__:  # read-only, and checked by a test
            execution = frame.f_locals["execution"]
            workflow, workflow_id = execution.name, execution.workflow_id
        frame = frame.f_back
    return None, workflow, workflow_id
