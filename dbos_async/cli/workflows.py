"""Looking at workflows: `workflow list`, `get`, `steps`, `export`; and `import`."""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from dbos_async._client import Client
from dbos_async._handle import StepInfo, WorkflowStatus
from dbos_async._store import exports
from dbos_async.cli.filters import Chosen, filtered, shown_status
from dbos_async.cli.moments import shown_age, shown_moment, shown_seconds
from dbos_async.cli.options import AsJson, DatabaseUrl, asked
from dbos_async.cli.output import (
    FOUND,
    MISUSED,
    Row,
    counted,
    printable,
    show,
    show_json,
    show_pairs,
    stop,
)
from dbos_async.cli.standing import standing_of, surroundings_of
from dbos_async.errors import PortableWorkflowError, WorkflowConflictError

SOFT: Final = ("name", "about")
LONGEST_VALUE: Final = 2_000
"""Characters of an input or result that `get` prints."""
PLAIN: Final = (
    "executor_id",
    "app_version",
    "app_name",
    "queue_name",
    "partition_key",
    "deduplication_id",
    "class_name",
    "config_name",
    "parent_workflow_id",
    "forked_from",
    "authenticated_user",
    "assumed_role",
    "schedule_name",
)
"""What `get` prints as it is."""
DATA: Final = ("input", "output", "error")

WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="The workflow's id.")]
Full = Annotated[bool, typer.Option("--full", help="Cut nothing off.")]


@filtered
def list_workflows(
    *,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, help="How many at most.")] = 20,
    offset: Annotated[int, typer.Option("--offset", "-o", min=0, help="How many to skip.")] = 0,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="The oldest instead of the newest.")
    ] = False,
    with_data: Annotated[
        bool, typer.Option("--with-data", help="In JSON, also input, output and error.")
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
    chosen: Chosen,
) -> None:
    """List the workflows that fit all that is given, the newest first."""

    async def look(client: Client) -> list[WorkflowStatus]:
        whole = as_json and with_data
        found = await client.list_workflows(
            limit=limit + 1,
            offset=offset,
            newest_first=not oldest_first,
            load_input=whole,
            load_output=whole,
            **chosen,
        )
        return found if as_json else await with_errors(client, found)

    found = asked(database_url, look)
    shown, now = found[:limit], datetime.now(UTC)
    if as_json:
        show_json([fields_of(each, with_data=with_data) for each in shown])
    else:
        rows = tidy([workflow_row(each, now) for each in shown])
        show(rows, as_json=False, nothing="No workflow fits.", soft=SOFT)
    if len(found) > limit:
        are = "is" if limit == 1 else "are"
        more = f"{limit} {are} shown, and there are more: --limit {10 * limit}, or --offset"
        typer.echo(more, err=True)


def get_workflow(
    workflow_id: WorkflowId,
    *,
    full: Full = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show one workflow: where it stands, what it waits for, what went in and came out."""

    async def look(client: Client) -> tuple[WorkflowStatus, str]:
        handle = await client.retrieve_workflow(workflow_id)
        found = await handle.get_status()
        return found, standing_of(found, await surroundings_of(client, workflow_id))

    found, stands = asked(database_url, look)
    if as_json:
        show_json({**fields_of(found), "stands": stands})
    else:
        show_pairs(
            details_of(found, stands, datetime.now(UTC), longest=None if full else LONGEST_VALUE)
        )


def list_steps(
    workflow_id: WorkflowId,
    *,
    full: Full = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the steps of a workflow that are recorded, in the order of their start."""

    async def look(client: Client) -> list[StepInfo]:
        await client.retrieve_workflow(workflow_id)
        return await client.list_steps(workflow_id)

    steps = asked(database_url, look)
    if as_json:
        show_json([msgspec.structs.asdict(step) for step in steps])
        return
    rows = tidy([step_row(step, longest=None if full else LONGEST_VALUE) for step in steps])
    show(
        rows,
        as_json=False,
        nothing="No step has ended yet.",
        soft=("result",),
        folded=("name", "child"),
        is_whole=full,
    )


def export_workflow(
    workflow_id: WorkflowId,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; else it is printed.")
    ] = None,
    children: Annotated[
        bool, typer.Option(help="With everything that it started, directly or not.")
    ] = True,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Replace the file if it exists.")
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Write a workflow as JSON, with its steps, events, streams and messages, for `import`."""
    if output is not None and output.is_file() and not yes:
        stop(f"{output} exists: choose another name, or add --yes to replace it", FOUND)
    exported = asked(
        database_url, lambda client: client.export_workflow(workflow_id, children=children)
    )
    if output is None:
        typer.echo(exported)
        return
    try:
        output.write_text(exported, "utf-8")
    except OSError as exc:
        stop(f"cannot write {output}: {exc.strerror}", MISUSED)
    typer.echo(f"{workflow_id} was written to {output}.")


def import_workflow(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="An export, or an archive of them; - is stdin.")
    ],
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Let what had not ended go on here at once.")
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put exported workflows into this database; what had not ended is CANCELLED.

    Of one export all are put there, or none. Of an archive, an export a line as `prune` writes
    them, those are put there that are not there yet; stopped half-way, it may be repeated.
    """
    try:
        text = sys.stdin.read() if source == Path("-") else source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        stop(f"cannot read {source}: {exc}", MISUSED)
    lines = lines_in(text)
    if len(lines) > 1:
        single = newest_of(lines)
        done, existing = asked(
            database_url, lambda client: import_each(client, single, resume=resume)
        )
    else:
        done = asked(database_url, lambda client: client.import_workflow(text, resume=resume))
        existing = []
    show([{"workflow_id": each} for each in done], as_json=as_json, nothing="")
    typer.echo(f"{counted(len(done))} imported.", err=True)
    if existing:
        were = "was" if len(existing) == 1 else "were"
        left = f"{len(existing):,} {were} there already, and left as is: {', '.join(existing)}"
        typer.echo(printable(left), err=True)


def lines_in(text: str) -> list[str]:
    """The exports in an archive; of one export, however it is laid out, that alone."""
    first, _, rest = text.strip().partition("\n")
    try:
        msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return [text]
    return [first, *(line for line in rest.split("\n") if line.strip())]


def newest_of(lines: Sequence[str]) -> dict[str, str]:
    """Each workflow of an archive, by its id, as an export of its own; the last of the same one.

    What cannot be read ends the command, before anything is imported.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        try:
            workflows = exports.parse(line)
        except ValueError as exc:
            stop(f"line {number} of {len(lines)}: {exc}", MISUSED)
        for workflow in workflows:
            found[workflow.workflow_id] = exports.enclosed([workflow])
    return found


async def import_each(
    client: Client, single: Mapping[str, str], *, resume: bool
) -> tuple[list[str], list[str]]:
    """Import those that are not there yet; their ids, and those of the others."""
    done: list[str] = []
    existing: list[str] = []
    for workflow_id, export in single.items():
        try:
            done += await client.import_workflow(export, resume=resume)
        except WorkflowConflictError:
            existing.append(workflow_id)
    return done, existing


async def with_errors(client: Client, found: list[WorkflowStatus]) -> list[WorkflowStatus]:
    """The same, with the errors of those that failed: what the others returned may be large."""
    failed = [each.workflow_id for each in found if each.status == "ERROR"]
    if not failed:
        return found
    loaded = await client.list_workflows(workflow_ids=failed, limit=len(failed), load_input=False)
    by_id = {each.workflow_id: each for each in loaded}
    return [by_id.get(each.workflow_id, each) for each in found]


def workflow_row(workflow: WorkflowStatus, now: datetime) -> Row:
    """A workflow in a line."""
    return {
        "workflow_id": workflow.workflow_id,
        "status": shown_status(workflow.status),
        "name": workflow.name,
        "age": shown_age(workflow.created_at, now),
        "about": about(workflow, now) or "",
    }


def on_queue(workflow: WorkflowStatus) -> str | None:
    """The queue that it is on, unless that is nobody's business."""
    name = workflow.queue_name
    return None if name is None or name.startswith("_dbos_") else f"on {name}"


def about(workflow: WorkflowStatus, now: datetime) -> str | None:
    """What else a person wants to know at once."""
    match workflow.status:
        case "ERROR":
            return None if workflow.error is None else error_in_a_line(workflow.error)
        case "DELAYED":
            waits = workflow.waiting_for or on_queue(workflow)
            return ", ".join(filter(None, [waits, due_in(workflow, now)]))
        case "ENQUEUED":
            return on_queue(workflow)
        case "PENDING":
            waits = workflow.waiting_for and f"waits for {workflow.waiting_for}"
            return ", ".join(filter(None, [on_queue(workflow), waits]))
        case "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            return f"{workflow.recovery_attempts} attempts"
        case _:
            return None


def due_in(workflow: WorkflowStatus, now: datetime) -> str | None:
    """When one that is delayed goes on at the latest."""
    if workflow.delay_until is None:
        return None
    left = shown_seconds(max(0.0, (workflow.delay_until - now).total_seconds()))
    is_news = workflow.waiting_for is not None and workflow.waiting_for != "sleep"
    return f"gives up in {left}" if is_news else f"due in {left}"


def details_of(
    workflow: WorkflowStatus, stands: str, now: datetime, *, longest: int | None
) -> dict[str, object]:
    """A workflow in full; what it does not have is None."""
    moments = ("created_at", "started_at", "delay_until", "deadline", "completed_at")
    asked_for = workflow.input
    return {
        "workflow_id": workflow.workflow_id,
        "name": workflow.name,
        "status": shown_status(workflow.status),
        "stands": stands,
        **{name: moment_of(getattr(workflow, name), now) for name in moments},
        "timeout": None if workflow.timeout is None else shown_seconds(workflow.timeout),
        **{name: getattr(workflow, name) or None for name in PLAIN},
        "priority": workflow.priority or None,
        "attempts": workflow.recovery_attempts if workflow.recovery_attempts > 1 else None,
        "attributes": value_of(workflow.attributes, longest) if workflow.attributes else None,
        "input": None if asked_for is None else call_of(asked_for.args, asked_for.kwargs, longest),
        "output": value_of(workflow.output, longest) if workflow.status == "SUCCESS" else None,
        "error": None if workflow.error is None else shortened(error_of(workflow.error), longest),
    }


def moment_of(moment: datetime | None, now: datetime) -> str | None:
    """A moment for people, if there is one."""
    return None if moment is None else shown_moment(moment, now)


def call_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], longest: int | None) -> str:
    """Arguments, as in a call."""
    written = [json_in_a_line(each) for each in args]
    written += [f"{name}={json_in_a_line(value)}" for name, value in kwargs.items()]
    return shortened(f"({', '.join(written)})", longest)


def value_of(value: object, longest: int | None) -> str:
    """A value as JSON, on lines of its own where it is long."""
    line = json_in_a_line(value)
    if len(line) <= 100:
        return line
    return shortened(msgspec.json.format(line.encode()).decode(), longest)


def json_in_a_line(value: object) -> str:
    """A value as JSON."""
    return msgspec.json.encode(value, enc_hook=repr).decode()


def shortened(text: str, longest: int | None) -> str:
    """A text, cut where it is longer than that."""
    if longest is None or len(text) <= longest:
        return text
    return f"{text[:longest]}\n… and {len(text) - longest:,} more characters: --full shows them"


def error_of(error: Exception) -> str:
    """An error with its lines."""
    if isinstance(error, PortableWorkflowError):
        return str(error)  # which says of what kind it was where it was raised
    return f"{type(error).__name__}: {error}"


def error_in_a_line(error: Exception) -> str:
    """An error's first line."""
    return error_of(error).partition("\n")[0]


def step_row(step: StepInfo, *, longest: int | None) -> Row:
    """A step in a line; so many characters of what came of it."""
    result = error_of(step.error) if step.error is not None else json_in_a_line(step.output)
    began, ended = step.started_at, step.completed_at
    took = None if began is None or ended is None else (ended - began).total_seconds()
    return {
        "step": step.position,
        "name": step.name,
        "started": None if began is None else f"{began:%m-%d %H:%M:%S}",
        "took": None if took is None else shown_seconds(max(0.0, took)),
        "result": result[:longest],
        "child": step.child_workflow_id,
    }


def tidy(rows: list[Row]) -> list[Row]:
    """The rows without the columns in which nobody has anything."""
    empty = {name for name in (rows[0] if rows else ()) if all(not row[name] for row in rows)}
    return [{name: row[name] for name in row if name not in empty} for row in rows]


def fields_of(workflow: WorkflowStatus, *, with_data: bool = True) -> dict[str, object]:
    """A workflow as JSON has it: the fields of `WorkflowStatus`."""
    fields: dict[str, object] = msgspec.structs.asdict(workflow)
    return {name: fields[name] for name in fields if with_data or name not in DATA}
