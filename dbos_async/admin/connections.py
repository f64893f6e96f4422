"""What a connection to the admin API's port may cost: anyone can open one, without a token.

    opened ──▶ waits ──── a request ────▶ is answered ──┐
                 ▲  │                                   │
                 │  └─ REQUEST_TIMEOUT: closed          │
                 └──────────── the answer ──────────────┘

A connection that waits, for its first request or the next, or for the end of one that was answered
before it was read, has a deadline that single bytes do not put off. While a request is answered,
the application's own deadlines hold. An answer may be read slowly, but not be left unread.

At most `MOST_CONNECTIONS` are open, few beside the file descriptors of the workflows in the same
process. One more costs the one that has waited longest its place.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT: float = 10.0
"""Seconds until a request has arrived, and until a part of an answer is read."""
MOST_CONNECTIONS: int = 100
BACKLOG: Final = 32
"""Connections that the kernel keeps until they are accepted: all of them may be at once."""


class Connection(H11Protocol):
    """A connection that is closed when it holds a place for nothing."""

    waits_since = 0.0
    """When it last began to wait, by the loop's clock."""
    _deadline: asyncio.TimerHandle | None = None
    _unread = 0
    """Bytes of answers that were still to be sent when the deadline was set."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or close at once if all are taken by requests that are answered."""
        has_room = self._make_room()
        super().connection_made(transport)
        self._wait()
        if not has_room:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave nothing behind."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the rest of this one."""
        self._wait()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is done for it: no request is there, or its answers are not read."""
        # Before the first request there is no cycle, whatever its type says.
        is_answered = bool(getattr(self.cycle, "response_complete", True))
        return is_answered or self.flow.write_paused

    def _make_room(self) -> bool:
        """Whether there is a place for this connection, now that a place for nothing is cleared."""
        others: list[Connection] = [
            each
            for each in self.connections
            if isinstance(each, Connection) and not each.transport.is_closing()
        ]
        if len(others) < MOST_CONNECTIONS:
            return True
        idle = [each for each in others if each.is_idle]
        if not idle:
            return False
        min(idle, key=lambda each: each.waits_since).transport.abort()
        return True

    def _wait(self) -> None:
        """Begin to wait anew."""
        if self._deadline is not None:
            self._deadline.cancel()
        self.waits_since = self.loop.time()
        self._set_deadline()

    def _set_deadline(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        """Close, unless a request came meanwhile, or an answer is still being read."""
        if 0 < self.transport.get_write_buffer_size() < self._unread:
            self._set_deadline()
        elif self.is_idle:
            self.transport.abort()
