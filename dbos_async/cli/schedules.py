"""Schedules: `schedule list`, `pause`, `resume`, `trigger`, `backfill`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from dbos_async._handle import WorkflowHandle
from dbos_async._schedule import Schedule
from dbos_async.cli.moments import EXAMPLES, moment_in, shown_age, shown_seconds
from dbos_async.cli.options import AsJson, DatabaseUrl, asked
from dbos_async.cli.output import MISUSED, Row, show, show_json, stop

FOLDED: Final = ("workflow", "schedule", "app", "cron")
Name = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The schedule's name.")]


def list_schedules(
    *,
    app: Annotated[
        list[str] | None, typer.Option("--app", "-a", metavar="APP", help="Of this app.")
    ] = None,
    prefix: Annotated[
        list[str] | None, typer.Option("--prefix", metavar="TEXT", help="Names that begin so.")
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the schedules: when each fired, and when it will."""
    found = asked(
        database_url,
        lambda client: client.list_schedules(
            application_name=app or None, name_prefix=prefix or None
        ),
    )
    if as_json:
        show_json([msgspec.structs.asdict(each) for each in found])
        return
    now = datetime.now(UTC)
    is_shared = len({each.app_name for each in found}) > 1
    rows = [row_of(each, now, with_app=is_shared) for each in found]
    show(rows, as_json=False, nothing="There are no schedules.", folded=FOLDED)


def pause_schedule(name: Name, *, database_url: DatabaseUrl = None) -> None:
    """Let a schedule fire nothing, until it is resumed; its runs go on."""
    asked(database_url, lambda client: client.pause_schedule(name))
    typer.echo(f"{name} is paused, until: dbos-async schedule resume {name}")


def resume_schedule(name: Name, *, database_url: DatabaseUrl = None) -> None:
    """Let a paused schedule go on from now; what was due meanwhile: schedule backfill."""
    asked(database_url, lambda client: client.resume_schedule(name))
    typer.echo(f"{name} goes on.")


def trigger_schedule(
    name: Name, *, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Run a schedule's workflow now, paused or not."""
    handle = asked(database_url, lambda client: client.trigger_schedule(name))
    tell([handle], f"{handle.workflow_id} is enqueued.", as_json=as_json)


def backfill_schedule(
    name: Name,
    *,
    since: Annotated[
        str, typer.Option("--since", "-t", metavar="WHEN", help=f"The first moment: {EXAMPLES}.")
    ],
    until: Annotated[
        str, typer.Option("--until", "-e", metavar="WHEN", help="Before this; 0s: until now.")
    ] = "0s",
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Run a schedule's workflow for what was due in a span; what ran does not run again."""
    now = datetime.now(UTC)
    try:
        start, end = moment_in(since, now), moment_in(until, now)
    except ValueError as exc:
        stop(str(exc), MISUSED)
    handles = asked(database_url, lambda client: client.backfill_schedule(name, start, end))
    tell(handles, f"{len(handles):,} runs were due; what had not run is enqueued.", as_json=as_json)


def row_of(schedule: Schedule, now: datetime, *, with_app: bool) -> Row:
    """A schedule in a line."""
    last, due = schedule.last_fired_at, schedule.next_due_at
    zone = "" if schedule.timezone == "UTC" else f" {schedule.timezone}"
    queue = "" if schedule.queue_name is None else f" on {schedule.queue_name}"
    return {
        "schedule": schedule.name,
        **({"app": schedule.app_name} if with_app else {}),
        "state": "paused" if schedule.status == "PAUSED" else "",
        "cron": schedule.cron + zone,
        "workflow": schedule.workflow_name + queue,
        "fired": None if last is None else shown_age(last, now),
        "next": None if due is None else f"in {shown_seconds((due - now).total_seconds())}",
    }


def tell(handles: list[WorkflowHandle[Any]], sentence: str, *, as_json: bool) -> None:
    """Say what runs now."""
    if as_json:
        show([{"workflow_id": each.workflow_id} for each in handles], as_json=True, nothing="")
    else:
        typer.echo(sentence)
