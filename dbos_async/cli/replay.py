"""Would this code go the recorded ways? `check-replay`."""

from typing import Annotated, Any

import typer

from dbos_async._engine.rehearsal import ReplayReport
from dbos_async.cli.options import (
    AppDatabaseUrl,
    AsJson,
    Target,
    checked,
    has_database,
    imported,
    placed,
)
from dbos_async.cli.output import FOUND, MISUSED, Row, run, show, stop


def check_replay(
    target: Target,
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
    database_url: AppDatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded workflows on this directory's code; no step is run, nothing is written.

    Exits with 1 if one of them does not go its recorded way.
    """
    if workflow_id and sample is not None:
        stop("give --workflow-id or --sample, not both", MISUSED)
    dbos = imported(target)
    placed(dbos, database_url)
    if not has_database(dbos):  # it would start the embedded one
        dbos.configure(database_url=checked(None))
    chosen = {"workflow_ids": workflow_id, "name": name, "status": status}
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value}
    reports = run(dbos.check_replay(sample=sample, timeout=timeout, **given))
    odd = [report for report in reports if not report.is_ok]
    if as_json or odd:
        shown = reports if as_json else odd
        rows = [report_row(report) for report in shown]
        show(rows, as_json=as_json, nothing="", folded=("name", "detail"))
    typer.echo(f"{len(reports) - len(odd)} of {len(reports)} workflows replay.", err=as_json)
    if odd:
        raise typer.Exit(FOUND)


def report_row(report: ReplayReport) -> Row:
    """A report as it is printed."""
    return {
        "workflow_id": report.workflow_id,
        "name": report.name,
        "status": report.status,
        "verdict": report.verdict,
        "detail": report.detail,
    }
