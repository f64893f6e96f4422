"""Whether the loop has run lately: a mark that it leaves several times a second."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

INTERVAL: Final = 0.1
"""Seconds between two marks."""


class Pulse:
    """When the loop ran last, on the monotonic clock; any thread may look."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def age(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self.at

    @contextmanager
    def open(self) -> Iterator["Pulse"]:
        """Mark the running loop for the length of the block."""
        self._beat(asyncio.get_running_loop())
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self.at = time.monotonic()
        self._timer = loop.call_later(INTERVAL, self._beat, loop)
