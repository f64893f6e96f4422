"""All commands, wired: which noun has which verbs."""

import errno
import logging
import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from dbos_async._store.database import POOLED
from dbos_async.cli import (
    doctor,
    executors,
    postgres,
    queues,
    replay,
    retention,
    schedules,
    schema,
    server,
    verbs,
    versions,
    workflows,
)
from dbos_async.cli.output import EXIT_CODES, FOUND


def group(help: str, *, is_command: bool = False) -> typer.Typer:
    """A noun; `is_command`: which says something by itself, too."""
    return typer.Typer(
        help=help,
        epilog=EXIT_CODES,
        no_args_is_help=not is_command,
        invoke_without_command=is_command,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


app = group("Look after durable workflows.")

app.command("run")(server.run)
app.command("check-replay")(replay.check_replay)
app.command("executors")(executors.list_executors)
app.command("doctor")(doctor.doctor)
app.command("migrate")(schema.migrate)
app.command("reset")(schema.reset)
app.command("prune")(retention.prune)

workflow = group("Find workflows, see how they stand, change their course.")
app.add_typer(workflow, name="workflow")
workflow.command("list")(workflows.list_workflows)
workflow.command("get")(workflows.get_workflow)
workflow.command("steps")(workflows.list_steps)
workflow.command("cancel")(verbs.cancel)
workflow.command("resume")(verbs.resume)
workflow.command("fork")(verbs.fork)
workflow.command("restart")(verbs.restart)
workflow.command("rewind")(verbs.rewind)
workflow.command("delete")(verbs.delete)
workflow.command("export")(workflows.export_workflow)
workflow.command("import")(workflows.import_workflow)

queue = group("See queues, pause and resume them, change their limits.")
app.add_typer(queue, name="queue")
queue.command("list")(queues.list_queues)
queue.command("pause")(queues.pause_queue)
queue.command("resume")(queues.resume_queue)
queue.command("set")(queues.set_queue)

schedule = group("See schedules, pause and resume them, run them by hand.")
app.add_typer(schedule, name="schedule")
schedule.command("list")(schedules.list_schedules)
schedule.command("pause")(schedules.pause_schedule)
schedule.command("resume")(schedules.resume_schedule)
schedule.command("trigger")(schedules.trigger_schedule)
schedule.command("backfill")(schedules.backfill_schedule)

version = group("What waits for which version of the code, and who runs it.", is_command=True)
app.add_typer(version, name="versions")
version.callback()(versions.list_versions)
version.command("set-latest")(versions.set_latest)
version.command("move")(versions.move)

embedded = group("The embedded Postgres in ./.dbos, for development.")
app.add_typer(embedded, name="postgres")
embedded.command("start")(postgres.start)
embedded.command("stop")(postgres.stop_server)
embedded.command("url")(postgres.url)
embedded.command(
    "psql", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)(postgres.psql)


def show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way to call it
    """Print the release, and end the command."""
    if wanted:
        typer.echo(f"dbos-async {metadata.version('dbos_async')}")
        raise typer.Exit


@app.callback()
def dbos_async(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Print the release, and exit."
        ),
    ] = False,
) -> None:
    """Look after durable workflows."""
    del version  # its callback has done it
    if context.invoked_subcommand != "run":  # that one logs by itself
        shown = logging.StreamHandler(sys.stderr)
        shown.addFilter(is_for_a_command)
        logging.basicConfig(handlers=[shown], level=logging.WARNING, format="%(message)s")


def is_for_a_command(record: logging.LogRecord) -> bool:
    """Whether a warning concerns one who only asks: what a pooler slows down are apps."""
    return not record.getMessage().startswith(POOLED)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        typer.echo("dbos-async: there is no room for what was asked for", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is in its buffer
        sys.exit(FOUND)
