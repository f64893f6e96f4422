"""The commands."""

import importlib
import logging
import sys
from typing import Annotated, Any

import typer

from dbos_async._app import DBOS
from dbos_async._client import Client
from dbos_async._config import DATABASE_URL_VARIABLE, check_url
from dbos_async._engine.rehearsal import ReplayReport
from dbos_async._store import versions as stored
from dbos_async._versions import VersionWork
from dbos_async.cli.output import FOUND, MISUSED, Row, run, show, stop
from dbos_async.errors import ConfigurationError

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        "-s",
        envvar=DATABASE_URL_VARIABLE,
        show_default=False,
        help="The system database, as in postgresql://user:password@host:5432/database.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

app = typer.Typer(
    help="Look after durable workflows. Exit codes: 0 all is well, 1 something needs a person, "
    "2 the command cannot be understood, 3 the database cannot be used.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
versions = typer.Typer(
    help="What is left to do on each version of the code, and who runs it.",
    invoke_without_command=True,
)
app.add_typer(versions, name="versions")


def main() -> None:
    """Run the command line."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    app()


@app.callback()
def _dbos_async() -> None:
    """Look after durable workflows."""


@versions.callback()
def list_versions(
    context: typer.Context, *, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """List the versions, newest first: who runs them, and what is left to do on each."""
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    work = run(version_work(checked(database_url)))
    show([version_row(each) for each in work], as_json=as_json, nothing="No app was launched yet.")


@versions.command("set-latest")
def set_latest(
    context: typer.Context,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="One that was launched at least once.")
    ],
    *,
    database_url: DatabaseUrl = None,
) -> None:
    """Let VERSION take the work that names no version, such as a client's."""

    async def change(url: str) -> None:
        async with Client(url) as client:
            await client.set_latest_application_version(version)

    run(change(checked(database_url or context.obj)))
    typer.echo(f"{version} takes the work that names no version.")


@versions.command()
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

    async def change(url: str) -> int:
        async with Client(url) as client:
            return await client.move_work(old, new, include_pending=include_pending)

    moved = run(change(checked(database_url or context.obj)))
    if as_json:
        show([{"moved": moved}], as_json=True, nothing="")
    else:
        typer.echo(f"{moved} workflows moved from {old} to {new}.")


@app.command("check-replay")
def check_replay(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="As in shop.main:dbos.")],
    *,
    workflow_id: Annotated[
        list[str] | None, typer.Option("--workflow-id", "-w", help="Check these; repeatable.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Check so many of the newest, 100 unless given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only workflows of this name.")] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Only those in this state, as PENDING; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for each workflow.")] = 10.0,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded workflows on the code in this directory; nothing is executed or written.

    Exits with 1 if one of them does not go its recorded way.
    """
    if workflow_id and sample is not None:
        stop("give --workflow-id or --sample, not both", MISUSED)
    dbos = imported(target)
    if database_url is not None:
        dbos.configure(database_url=checked(database_url))
    chosen = {"workflow_ids": workflow_id, "name": name, "status": status}
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value}
    reports = run(dbos.check_replay(sample=sample, timeout=timeout, **given))
    odd = [report for report in reports if not report.is_ok]
    if as_json or odd:
        shown = reports if as_json else odd
        show([report_row(report) for report in shown], as_json=as_json, nothing="")
    typer.echo(f"{len(reports) - len(odd)} of {len(reports)} workflows replay.", err=as_json)
    if odd:
        raise typer.Exit(FOUND)


@app.command()
def doctor(*, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Tell what needs a person, and what to do: work that nobody runs, and dead letters.

    Exits with 1 if there is something.
    """
    findings = run(examined(checked(database_url)))
    show(findings, as_json=as_json, nothing="Nothing needs you.")
    if findings:
        raise typer.Exit(FOUND)


async def version_work(url: str) -> list[VersionWork]:
    """What is left on each version."""
    async with Client(url) as client:
        return await client.list_version_work()


async def examined(url: str) -> list[Row]:
    """What needs a person."""
    async with Client(url) as client:
        work = await client.list_version_work()
        dead = await stored.count_dead_letters(client._own_session().database, None)
    findings: list[Row] = [
        {
            "finding": "stranded work",
            "app": each.app_name,
            "version": each.app_version,
            "workflows": each.total,
            "what_to_do": remedy_of(each),
        }
        for each in work
        if each.is_stranded
    ]
    if dead:
        findings.append(
            {
                "finding": "dead letters",
                "app": None,
                "version": None,
                "workflows": dead,
                "what_to_do": "their processes died too often: mend the cause, then resume them "
                "(list_workflows(status='MAX_RECOVERY_ATTEMPTS_EXCEEDED'))",
            }
        )
    return findings


def remedy_of(work: VersionWork) -> str:
    """How stranded work gets done."""
    if work.app_version is None:
        return "launch the newest version, or `dbos-async versions set-latest` one that runs"
    more = " --include-pending" if work.pending else ""
    return (
        "launch that version until it is done, or "
        f"`dbos-async versions move {work.app_version} NEW{more}`"
    )


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


def report_row(report: ReplayReport) -> Row:
    """A report as it is printed."""
    return {
        "workflow_id": report.workflow_id,
        "name": report.name,
        "status": report.status,
        "verdict": report.verdict,
        "detail": report.detail,
    }


def checked(url: str | None) -> str:
    """The database's URL, or the end of the command."""
    if url is None:
        stop(f"which database? Give --database-url, or set {DATABASE_URL_VARIABLE}", MISUSED)
    try:
        check_url(url)
    except ConfigurationError as exc:
        stop(str(exc), MISUSED)
    return url


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
