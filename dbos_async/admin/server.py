"""The admin API on a port of its own, in the app's event loop.

It is opened when everything else is, and answers while the app winds down: it is ready only then
when the app takes work. A process that finds the port taken runs without it, as the second worker
on a machine does.
"""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from dbos_async import errors
from dbos_async._app import DBOS
from dbos_async._config import LOOPBACK, Settings
from dbos_async._log import log
from dbos_async._service import running
from dbos_async.admin.application import application

try:
    import uvicorn

    from dbos_async.admin.connections import BACKLOG, Connection
except ModuleNotFoundError:
    raise errors.ConfigurationError(
        "admin_port needs uvicorn, which is not installed: `pip install 'dbos-async[admin]'` (in a "
        "source tree: `pip install '.[admin]'`)"
    ) from None

PATIENCE: Final = 5
"""Seconds that a shutdown gives to what is being answered."""


@asynccontextmanager
async def serving(dbos: DBOS, settings: Settings) -> AsyncIterator[None]:
    """Serve the admin API for the length of the block, unless its port is taken.

    Raises:
        ConfigurationError: there is no such address here, or its port may not be used.
    """
    host, port = settings.admin_host or LOOPBACK, settings.admin_port or 0
    listening = await listen(host, port)
    if listening is None:
        yield
        return
    hosts = [host, *settings.admin_allowed_hosts]
    server = Server(Configuration(application(dbos, settings.admin_token, hosts)))
    async with running(server.stop, admin=server.serve(sockets=[listening])):
        log.info("admin API", host=host, port=port, token=settings.admin_token is not None)
        yield


async def listen(host: str, port: int) -> socket.socket | None:
    """A socket that listens there; None if somebody else has the port.

    Raises:
        ConfigurationError: as `serving`.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            log.warning("the admin API's port is taken; going on without it", host=host, port=port)
            return None
        raise errors.ConfigurationError(
            f"the admin API cannot listen on {host} port {port}: {exc}"
        ) from exc


class Configuration(uvicorn.Config):
    """Plain HTTP in a loop that is there, in a process whose signals and logs are others'."""

    def __init__(self, app: object) -> None:
        super().__init__(
            app,  # type: ignore[arg-type]  # an ASGI app, in Starlette's words
            http=Connection,
            backlog=BACKLOG,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=PATIENCE,
        )

    def configure_logging(self) -> None:
        """Leave the logs of a uvicorn that serves the app itself as they are."""


class Server(uvicorn.Server):
    """Ends when it is told to; uvicorn's own wakes up ten times a second to see whether it is."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Take no more requests, and end once what was asked is answered."""
        self.should_exit = True
        self._stopped.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the app."""
        yield

    async def main_loop(self) -> None:
        """Return when it is told to stop."""
        await self.on_tick(0)
        await self._stopped.wait()
