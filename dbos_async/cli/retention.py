"""`dbos-async prune`: delete what ended long ago, by a policy."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dbos_async._client import Client
from dbos_async._config import Retention
from dbos_async.cli.moments import seconds_in
from dbos_async.cli.options import AsJson, DatabaseUrl, DryRun, Yes, asked
from dbos_async.cli.output import MISUSED, agree, counted, show_json, stop

FOR_EVER: Final = "forever"


def prune(
    *,
    max_age: Annotated[
        str | None, typer.Option(help="What ended longer ago may go: 30d, 12h, 90m, 3600.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=0, help="Of those that ended, keep so many, the newest.")
    ] = None,
    keep_failed: Annotated[
        str | None,
        typer.Option(
            help="ERROR, CANCELLED and dead letters: so long after their end, or forever."
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Write each workflow to this file first, a line of JSON each."
        ),
    ] = None,
    application: Annotated[
        str | None, typer.Option("--app", help="Only of this app, and of none.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete workflows that ended long ago, or of which there are newer ones enough.

    What runs or waits is never deleted, and a child is kept as long as its parent. It goes in small
    transactions with rests, so that what runs hardly notices; stopped with Ctrl-C, it has deleted
    what it came to. Without --yes it is refused, and tells how many would be deleted.
    """
    try:
        policy = Retention(
            max_age=None if max_age is None else seconds_in(max_age),
            max_rows=max_rows,
            keep_failed=kept(keep_failed),
            archive=archive,
        )
    except ValueError as exc:
        stop(str(exc).replace("max_age=", "--max-age").replace("max_rows=", "--max-rows"), MISUSED)

    def pruned(*, dry_run: bool) -> int:
        return asked(
            database_url, lambda client: prune_with(client, policy, application, dry_run=dry_run)
        )

    if dry_run:
        return tell(pruned(dry_run=True), "would be deleted", as_json=as_json)
    if not yes:
        agree(f"delete {counted(pruned(dry_run=True))}", yes=False)
    return tell(pruned(dry_run=False), "deleted", as_json=as_json)


async def prune_with(
    client: Client, policy: Retention, application: str | None, *, dry_run: bool
) -> int:
    """How many a policy lets go; an archive that cannot be written to ends the command."""
    try:
        return await client.prune(policy, dry_run=dry_run, application_name=application)
    except OSError as exc:
        stop(f"cannot write the archive, so no more is deleted: {exc}", MISUSED)


def tell(count: int, what: str, *, as_json: bool) -> None:
    """Print how many."""
    if as_json:
        show_json({what.replace(" ", "_"): count})
    else:
        typer.echo(f"{counted(count)} {what}.")


def kept(text: str | None) -> bool | float:
    """How long those that failed are kept. Raises as `seconds_in` does."""
    if text is None:
        return False
    return True if text == FOR_EVER else seconds_in(text)
