"""A TCP proxy that cuts, stalls and restores; it can look at what passes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from dbos_async.testing import free_port


class Proxy:
    """Stands between an app and its server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._server = (parts.hostname, parts.port or 5432)
        self.port = free_port()
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{self.port}"))
        self.on_request: Callable[[bytes], bool] | None = None
        """Looks at what goes to the server; if it says so, the answer to it is cut off."""
        self.cuts = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._doomed: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Proxy"]:
        listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks)

    def stall(self) -> None:
        """Freeze every link: nothing is lost, nothing arrives."""
        self._flows.clear()

    def restore(self) -> None:
        """Let everything flow again."""
        self._flows.set()

    def cut(self) -> None:
        """Reset every link."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, server = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, server}
        self._writers |= pair
        self._tasks.add(task := asyncio.current_task())
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.gather(
                self._pump(reader, server, writer, is_request=True),
                self._pump(upstream, writer, writer, is_request=False),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            pass  # asyncio's streams complain of cancelled tasks
        finally:
            self._writers -= pair
            self._doomed.discard(writer)
            for one in pair:
                one.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        *,
        is_request: bool,
    ) -> None:
        while data := await source.read(65536):
            await self._flows.wait()
            if is_request and self.on_request is not None and self.on_request(data):
                self._doomed.add(client)
            elif not is_request and client in self._doomed:
                self.cuts += 1
                break  # the server has answered; nobody hears it
            sink.write(data)
            await sink.drain()
        sink.transport.abort()
        client.transport.abort()
