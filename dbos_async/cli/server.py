"""A worker: `run`."""

import asyncio
import logging
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Final

import typer

from dbos_async import _config
from dbos_async._app import DBOS
from dbos_async._config import Settings
from dbos_async._log import log
from dbos_async.cli.moments import seconds_in
from dbos_async.cli.options import AppDatabaseUrl, Target, imported, placed
from dbos_async.cli.output import FOUND, MISUSED, LoopFactory, stop
from dbos_async.cli.output import run as answered
from dbos_async.errors import ConfigurationError

ENDS: Final = (signal.SIGTERM, signal.SIGINT)
ADMIN_PORT: Final = 3001
ADMIN_PORT_VARIABLE: Final = "DBOS_ADMIN_PORT"
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(
    target: Target,
    *,
    queues: Annotated[
        str | None,
        typer.Option("--queues", "-q", metavar="A,B", help="Work on these only; else on all."),
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            metavar="PORT",
            envvar=ADMIN_PORT_VARIABLE,
            help=f"Where the admin API answers; 0: nowhere. The app's own, else {ADMIN_PORT}.",
        ),
    ] = None,
    drain: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long steps may still take once it is to end."),
    ] = "30s",
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="What is logged, to stderr.")
    ] = "info",
    database_url: AppDatabaseUrl = None,
) -> None:
    """Run an app of this directory, as a worker, until SIGTERM or SIGINT.

    The first signal takes no more, lets running steps end within --drain, leaves the rest to
    others, and exits with 0. The second ends it at once; what it ran is taken over.
    """
    seconds = seconds_of(drain)
    dbos = imported(target)
    set_logging(log_level)
    placed(dbos, database_url)
    listen(dbos, queues)
    serve_admin(dbos, admin_port)
    check_settings(dbos)
    answered(work(dbos, seconds), loop_factory=loop_factory())


async def work(dbos: DBOS, drain: float) -> None:
    """Launch, wait for a signal, and shut down."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        for number in ENDS:  # from now on they kill, even while user code blocks the loop
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        asked.set()
        log.info("asked to end: takes no more work; a second signal ends it at once", drain=drain)

    for number in ENDS:
        loop.add_signal_handler(number, end)
    if await launched(dbos, asked):
        log.info("at work", app=dbos.name, version=dbos.app_version, executor_id=dbos.executor_id)
        await until_asked(dbos, asked)
    await dbos.shutdown(timeout=drain)
    if not asked.is_set():
        stop("the app stopped working; the log says why", FOUND)


async def launched(dbos: DBOS, asked: asyncio.Event) -> bool:
    """Launch, unless the end comes first; whether it did not."""
    launch, end = asyncio.create_task(dbos.launch()), asyncio.create_task(asked.wait())
    await asyncio.wait([launch, end], return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if not launch.done():
        launch.cancel()
        await asyncio.wait([launch])
        return False
    await launch
    return True


async def until_asked(dbos: DBOS, asked: asyncio.Event) -> None:
    """Return when the end is asked for, or the app stopped by itself."""
    assert dbos._host is not None
    ends = [asyncio.create_task(asked.wait()), asyncio.create_task(dbos._host.ended())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()


def serve_admin(dbos: DBOS, port: int | None) -> None:
    """Have the app serve the admin API on this port, in releases that have one."""
    if "admin_port" not in Settings.__struct_fields__:
        return
    if port is None:
        port = getattr(dbos._settings, "admin_port", None) or ADMIN_PORT
    dbos.configure(admin_port=port or None)


def check_settings(dbos: DBOS) -> None:
    """Refuse what cannot run whatever the database says, before it is asked."""
    try:
        settings = dbos._settings.resolved()
    except ConfigurationError as exc:
        stop(str(exc), MISUSED)
    try:
        if settings.served().admin_port is not None:
            import_module("dbos_async.admin.server")  # an extra
    except ConfigurationError as exc:
        stop(f"{exc}; or --admin-port 0, without the admin API", MISUSED)


def listen(dbos: DBOS, queues: str | None) -> None:
    """Have the app work on these queues only."""
    if queues is None:
        return
    names = [name.strip() for name in queues.split(",") if name.strip()]
    if not names:
        stop("which queues? As in --queues mail,bills", MISUSED)
    dbos.listen_queues(names)


def set_logging(level: str) -> None:
    """Log to stderr, unless the app has set up its own."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        stop(f"{level!r} is no log level: debug, info, warning or error", MISUSED)
    logging.basicConfig(stream=sys.stderr, level=number, format=LOG_FORMAT)


def seconds_of(text: str) -> float:
    """A duration, or the end of the command."""
    try:
        return _config.seconds_of(seconds_in(text))
    except ValueError as exc:
        stop(str(exc), MISUSED)


def loop_factory() -> LoopFactory | None:
    """What makes the event loop: uvloop's, where there is one."""
    if find_spec("uvloop") is None:
        return None
    factory: LoopFactory = import_module("uvloop").new_event_loop
    return factory
