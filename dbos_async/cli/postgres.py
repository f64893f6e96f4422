"""The embedded Postgres in ./.dbos: `postgres start`, `stop`, `psql`, `url`."""

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from dbos_async._app import EMBEDDED_DATABASE
from dbos_async._config import EMBEDDED_DIRECTORY
from dbos_async._store.databases import ensure_database
from dbos_async._store.embedded import EmbeddedPostgres
from dbos_async.cli.options import embedded, is_up
from dbos_async.cli.output import NO_DATABASE, run, show_json, stop
from dbos_async.errors import ConfigurationError

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def start() -> None:
    """Start it, or keep it up if it runs; it stays up until `postgres stop`. Prints its URL."""
    server = embedded()
    serving(server)
    server.keep()
    typer.echo(server.url(EMBEDDED_DATABASE))


def stop_server() -> None:
    """Stop it, whoever uses it."""
    server = embedded()
    was_up = is_up(server)
    guarded(server.stop)
    typer.echo("It is stopped." if was_up else f"None runs in ./{EMBEDDED_DIRECTORY}.")


def url(*, as_json: AsJson = False) -> None:
    """Print its URL, as for DBOS_SYSTEM_DATABASE_URL, whether or not it runs."""
    server = embedded()
    found, running = server.url(EMBEDDED_DATABASE), is_up(server)
    if as_json:
        show_json({"url": found, "is_running": running})
        return
    typer.echo(found)
    if not running:
        typer.echo("It does not run: dbos-async postgres start", err=True)


def psql(context: typer.Context) -> None:
    """Open psql on it, starting it if need be; arguments after -- are psql's."""
    server = embedded()
    serving(server)
    program = guarded(lambda: server.program("psql"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # psql's business, as long as it runs
    try:
        command = [str(program), server.url(EMBEDDED_DATABASE), *context.args]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        ended = subprocess.run(command, env=inherited, check=False)  # noqa: S603
    finally:
        signal.signal(signal.SIGINT, before)
    raise typer.Exit(ended.returncode)


def serving(server: EmbeddedPostgres) -> None:
    """Have it run, with our database in it."""
    guarded(server.start)
    run(ensure_database(server.url(), EMBEDDED_DATABASE))


def guarded(work: Callable[[], T]) -> T:
    """The result of `work`; what is wrong with the server ends the command."""
    try:
        return work()
    except ConfigurationError as exc:
        stop(str(exc), NO_DATABASE)
