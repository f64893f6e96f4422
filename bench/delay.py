"""A proxy that holds back what passes: a Postgres in another building, or in a cloud.

    python -m bench.delay DELAY_SECONDS PATH            # of a Unix socket
    python -m bench.delay DELAY_SECONDS HOST PORT

It says the port of 127.0.0.1 on which it listens, and ends when stdin does. What comes in at one
side goes out at the other so much later, in each direction; however much comes meanwhile is on its
way at the same time, as on a long cable.
"""

import asyncio
import selectors
import sys
from collections import deque
from collections.abc import Awaitable, Callable

Dial = Callable[[Callable[[], "End"]], Awaitable[tuple[asyncio.BaseTransport, "End"]]]


class End(asyncio.Protocol):
    """One end of a link; what arrives there leaves at the other."""

    def __init__(self, delay: float) -> None:
        self.other: End | None = None
        self._delay = delay
        self._on_its_way: deque[bytes] = deque()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._on_its_way.append(data)
        if self.other is not None:
            asyncio.get_running_loop().call_later(self._delay, self._deliver)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.close()

    def close(self) -> None:
        self._transport.close()

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def _deliver(self) -> None:
        # The oldest, whichever timer this is: they all wait equally long.
        assert self.other is not None
        self.other.send(self._on_its_way.popleft())


class Near(End):
    """The end at the app; the other is dialled when somebody connects."""

    def __init__(self, delay: float, dial: Dial) -> None:
        super().__init__(delay)
        self._dial = dial
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._dialling = asyncio.create_task(self._link())

    async def _link(self) -> None:
        try:
            _, self.other = await self._dial(lambda: End(self._delay))
        except OSError:
            self.close()
            return
        self.other.other = self
        for _ in self._on_its_way:  # what came before there was anybody to send it to
            asyncio.get_running_loop().call_later(self._delay, self._deliver)


async def main(delay: float, path_or_host: str, port: int | None) -> None:
    loop = asyncio.get_running_loop()

    async def dial(end: Callable[[], End]) -> tuple[asyncio.BaseTransport, End]:
        if port is None:
            return await loop.create_unix_connection(end, path_or_host)
        return await loop.create_connection(end, path_or_host, port)

    server = await loop.create_server(lambda: Near(delay, dial), "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


def precise_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are good to fractions of a millisecond: epoll's and uvloop's are not."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(
            main(float(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else None)
        )
