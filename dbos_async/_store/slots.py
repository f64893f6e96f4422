"""The hard cap: a connection is opened on a slot, which is free once the server has ended the last.

    free ─▶ opening ─▶ held ─▶ leaving ─▶ free
                         │        └ until the server has closed its end, too: its process is gone
                         └ the client let go: closed it, dropped it, or was told of its end

Who drops a connection does not end it: the server's process may be in the middle of a statement,
and `pg_stat_activity` counts it meanwhile. So each connection has a witness, a second descriptor of
its socket, that outlives the driver's. It says that we are done, and sees the server's process go;
only then may another connection be opened in its place.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import asyncpg

C = TypeVar("C", bound="asyncpg.Connection[Any]")

LINGER: Final = 5.0
"""Seconds after which a connection counts as gone though its end was not seen: the network is, or
the host. Our sessions look every second whether we are still there, so others are quicker."""
FAREWELL: Final = 1.0
"""Seconds that the last ones have at the end."""


class Slots:
    """So many connections, and never one more. Those of one event loop."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._held: dict[asyncpg.Connection[Any], socket.socket | None] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.limit = limit

    @property
    def are_all_held(self) -> bool:
        """Whether every slot has a connection that is in use, so that none will soon be free."""
        self._sweep()
        return len(self._held) == self.limit

    async def open(self, connect: Callable[[], Awaitable[C]]) -> C:
        """What `connect` returns, once there is a slot for it. Raises what `connect` raises."""
        self._sweep()
        await self._free.acquire()
        try:
            connection = await connect()
        except BaseException as exc:
            is_known = isinstance(exc, (asyncpg.PostgresError, OSError))
            if is_known and not isinstance(exc, TimeoutError):  # it is not, or the server ended it
                self._free.release()
            else:
                asyncio.get_running_loop().call_later(LINGER, self._free.release)
            raise
        self._held[connection] = witness_of(connection)
        connection.add_termination_listener(self._leave)
        return connection

    async def close(self) -> None:
        """Return when all have gone, or soon."""
        for connection in list(self._held):
            self._leave(connection)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=FAREWELL)
        for task in self._leaving:
            task.cancel()

    def _sweep(self) -> None:
        """See off those that broke, which their owners need not have noticed yet."""
        for connection in [each for each in self._held if each.is_closed()]:
            self._leave(connection)

    def _leave(self, connection: Any) -> None:
        if connection not in self._held:
            return
        witness = self._held.pop(connection)
        if witness is None:
            self._free.release()
            return
        with suppress(OSError):  # the server was quicker
            witness.shutdown(socket.SHUT_WR)
        task = asyncio.create_task(self._see_off(witness), name="dbos connection's end")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _see_off(self, witness: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with witness, suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER):
                while await loop.sock_recv(witness, 65_536):
                    pass
        self._free.release()


def witness_of(connection: Any) -> socket.socket | None:
    """A second descriptor of the connection's socket."""
    shared = connection._transport.get_extra_info("socket")  # noqa: SLF001  # no public way
    if shared is None:
        return None
    witness = socket.socket(fileno=os.dup(shared.fileno()))
    witness.setblocking(False)
    return witness
