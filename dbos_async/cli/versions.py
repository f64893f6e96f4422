"""What is left to do on each version of the code: `versions`, `set-latest`, `move`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from dbos_async._versions import VersionWork
from dbos_async.cli.options import AsJson, DatabaseUrl, asked
from dbos_async.cli.output import Row, counted, show


def list_versions(
    context: typer.Context, *, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """List the versions, newest first: who runs them, and what is left to do on each."""
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    work = asked(database_url, lambda client: client.list_version_work())
    rows = [version_row(each) for each in work]
    show(rows, as_json=as_json, nothing="No app was launched yet.", folded=("app", "version"))


def set_latest(
    context: typer.Context,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="One that was launched at least once.")
    ],
    *,
    database_url: DatabaseUrl = None,
) -> None:
    """Let VERSION take the work that names no version, such as a client's."""
    asked(
        database_url or context.obj,
        lambda client: client.set_latest_application_version(version),
    )
    typer.echo(f"{version} takes the work that names no version.")


def move(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The version whose work waits.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The version that shall run it.")],
    *,
    include_pending: Annotated[
        bool,
        typer.Option(
            "--include-pending",
            help="Also what a process had begun that is gone: run check-replay first.",
        ),
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give the work that waits for version OLD to version NEW."""
    moved = asked(
        database_url or context.obj,
        lambda client: client.move_work(old, new, include_pending=include_pending),
    )
    if as_json:
        show([{"moved": moved}], as_json=True, nothing="")
    else:
        typer.echo(f"{counted(moved)} moved from {old} to {new}.")


def shown_newest(app: str | None, work: Sequence[VersionWork]) -> str:
    """The newest version of an app, in words; of no app: those of all."""
    newest = [
        f"{each.app_version} of {each.app_name}"
        for each in work
        if each.is_latest and app in (None, each.app_name)
    ]
    return f"the newest version, {' or '.join(newest)}" if newest else "an app"


def version_row(work: VersionWork) -> Row:
    """A version as it is printed."""
    return {
        "app": work.app_name,
        "version": work.app_version,
        "is_latest": work.is_latest,
        "processes": work.processes,
        "enqueued": work.enqueued,
        "delayed": work.delayed,
        "pending": work.pending,
        "is_stranded": work.is_stranded,
    }
