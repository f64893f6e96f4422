"""The schema: `migrate` and `reset`."""

from typing import Annotated

import typer

from dbos_async._store import setup
from dbos_async._store.database import masked
from dbos_async._store.schema import SCHEMA_VERSION, schema_text
from dbos_async.cli.options import DatabaseUrl, Yes, checked
from dbos_async.cli.output import FOUND, MISUSED, agree, counted, run, stop


def migrate(
    *,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the SQL, and change nothing.")
    ] = False,
    app_role: Annotated[
        str | None,
        typer.Option("--app-role", help="Give this role what an app needs that installs nothing."),
    ] = None,
    drop_foreign_indexes: Annotated[
        bool,
        typer.Option(
            "--drop-foreign-indexes",
            help="Drop the indexes of DBOS Transact, once no app of its runs here any more.",
        ),
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Install the schema, or bring it up to date. It may run again, and while apps do.

    Apps launched with migrate=False then need no right to create anything. Repeat --app-role with
    each release: its new tables need the rights, too.
    """
    if app_role is not None:
        check_role(app_role)
    if print_only:
        print_sql(app_role, database_url if drop_foreign_indexes else None)
        return
    url = checked(database_url)
    version = run(setup.install(url))
    typer.echo(f"The schema dbos in {masked(url)} is at version {version}.")
    if version > SCHEMA_VERSION:
        newer = f"It was left as it is: a newer release made it, this one's is {SCHEMA_VERSION}."
        typer.echo(newer, err=True)
    if app_role is not None:
        if not run(setup.grant(url, app_role)):
            why = "make it first, as in create role … login, and repeat this"
            stop(f"there is no role {app_role!r}: {why}", FOUND)
        typer.echo(f"The role {app_role} may run apps: launch them with migrate=False.")
    if drop_foreign_indexes:
        for name in run(setup.drop_foreign_indexes(url)):
            typer.echo(f"The index {name} is dropped.")


def print_sql(app_role: str | None, database_url: str | None) -> None:
    """Print what `migrate` would run."""
    if app_role is not None:
        typer.echo("\n".join(f"{grant};" for grant in setup.grants_of(app_role)))
    if database_url is not None:
        for index in run(setup.find_foreign_indexes(checked(database_url))):
            typer.echo(f"{index.drop};")
    if app_role is None and database_url is None:
        typer.echo(schema_text(), nl=False)


def check_role(name: str) -> None:
    """Refuse what can be no role, before anything is done."""
    try:
        setup.quoted(name)
    except ValueError as exc:
        stop(str(exc), MISUSED)


def reset(
    *,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop the schema, too; else its tables are emptied.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while processes run workflows here.")
    ] = False,
    yes: Yes = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete everything: workflows, queues, schedules, versions. There is no way back."""
    url = checked(database_url)
    where = masked(url)
    content = run(setup.look(url))
    if content is None:
        typer.echo(f"There is no schema dbos in {where}: nothing to reset.")
        return
    amount = f"{counted(content.workflows)}, {content.unfinished:,} of them not ended"
    if content.executors and not force:
        stop(
            f"this would delete all in {where}: {amount}; and processes run workflows there, "
            f"{len(content.executors)} of them, such as {content.executors[0]}: end them first, or "
            "add --force",
            FOUND,
        )
    agree(f"delete all in {where}: {amount}", yes=yes)
    run(setup.drop(url) if drop else setup.empty(url))
    typer.echo(f"Deleted in {where}: {amount}.")
