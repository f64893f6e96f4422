"""Options that many commands have, and what becomes of them."""

import importlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final, TypeVar

import typer

from dbos_async._app import DBOS, EMBEDDED_DATABASE
from dbos_async._client import Client
from dbos_async._config import DATABASE_URL_VARIABLE, EMBEDDED_DIRECTORY, check_url
from dbos_async._store.database import masked
from dbos_async._store.embedded import EmbeddedPostgres, server_in
from dbos_async.cli.output import MISUSED, run, stop
from dbos_async.errors import ConfigurationError

T = TypeVar("T")

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        "-s",
        envvar=DATABASE_URL_VARIABLE,
        metavar="URL",
        show_default=False,
        help="The system database, as in postgresql://user:password@host:5432/database; "
        "else a running embedded one in ./.dbos.",
    ),
]
AppDatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        "-s",
        metavar="URL",
        show_default=False,
        help="The system database, instead of the one that the app has in its code or finds in "
        f"{DATABASE_URL_VARIABLE}.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Do it, without being asked; without a terminal it is needed."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell which it would be.")]
Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="As in shop.main:dbos.")]

WHICH: Final = (
    f"which database? Give --database-url, or set {DATABASE_URL_VARIABLE}; the embedded one in "
    f"./{EMBEDDED_DIRECTORY} does not run here (dbos-async postgres start)"
)


def asked(url: str | None, question: Callable[[Client], Awaitable[T]]) -> T:
    """What a client of the database answers; what is wrong ends the command."""
    chosen = checked(url)

    async def ask() -> T:
        async with opened(chosen) as client:
            return await question(client)

    return run(ask())


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Client]:
    """A client for the length of the block.

    Raises:
        ConfigurationError: the database is none that it can use; the message says which it is.
    """
    async with AsyncExitStack() as stack:
        client = Client(url)
        try:
            await stack.enter_async_context(client)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{masked(url)}: {exc}") from exc
        yield client


def checked(url: str | None) -> str:
    """The database's URL, or the end of the command."""
    if url is None:
        server = embedded()
        if not is_up(server):
            stop(WHICH, MISUSED)
        return server.url(EMBEDDED_DATABASE)
    try:
        check_url(url)
    except ConfigurationError as exc:
        stop(str(exc), MISUSED)
    return url


def embedded() -> EmbeddedPostgres:
    """The embedded server of this directory."""
    return server_in(EMBEDDED_DIRECTORY)


def is_up(server: EmbeddedPostgres) -> bool:
    """Whether it runs; where it is not installed, it does not."""
    try:
        return server.is_running
    except ConfigurationError:
        return False


def imported(target: str) -> DBOS:
    """The app at MODULE:APP, found from this directory on, or the end of the command."""
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        stop(f"name the app as MODULE:APP, as in shop.main:dbos, not {target!r}", MISUSED)
    sys.path.insert(0, "")
    try:
        found: object = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as exc:  # noqa: BLE001 - the user's module may raise whatever it likes
        stop(f"cannot import {target}: {type(exc).__name__}: {exc}", MISUSED)
    if not isinstance(found, DBOS):
        stop(f"{target} is no DBOS app but {type(found).__name__}", MISUSED)
    return found


def placed(dbos: DBOS, database_url: str | None) -> None:
    """Give an app the database that was asked for, if one was."""
    if database_url is not None:
        dbos.configure(database_url=checked(database_url))


def has_database(dbos: DBOS) -> bool:
    """Whether an app knows its database without making one."""
    return dbos._settings.database_url is not None or DATABASE_URL_VARIABLE in os.environ
