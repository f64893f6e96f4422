"""The filter of `list_workflows` as options, for all commands that take one.

A command that is decorated with `filtered` has a parameter `chosen: Chosen`, and gets there what
the options below say.
"""

import inspect
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, cast, get_args

import msgspec
import typer

from dbos_async._listing import WorkflowFilter
from dbos_async._store.records import Status
from dbos_async.cli.moments import EXAMPLES, moment_in
from dbos_async.cli.output import MISUSED, stop

DEAD: Final = "DEAD"
DEAD_LETTER: Final = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
Chosen = WorkflowFilter
"""What the options said; empty if they said nothing."""


def several(*names: str, metavar: str, help: str) -> Any:
    """An option that may be repeated."""
    return Annotated[list[str] | None, typer.Option(*names, metavar=metavar, help=f"{help}.")]


def moment(*names: str, help: str) -> Any:
    """An option that is a moment."""
    return Annotated[str | None, typer.Option(*names, metavar="WHEN", help=help)]


OPTIONS: Final = {
    "status": several(
        "--status",
        "-S",
        metavar="STATUS",
        help="PENDING (begun), ENQUEUED, DELAYED, SUCCESS, ERROR, CANCELLED, or DEAD for dead "
        "letters; repeatable, as all that follow but the times",
    ),
    "name": several("--name", "-n", metavar="NAME", help="The workflow function's name"),
    "queue_name": several("--queue", "-q", metavar="QUEUE", help="The queue that it is or was on"),
    "waiting_for": several(
        "--waiting-for",
        metavar="WHAT",
        help="What it waits for: message, event, sleep, workflow, slot, or exactly, as in "
        "'message approved'",
    ),
    "created_after": moment("--since", "-t", help=f"Created since: {EXAMPLES}."),
    "created_before": moment("--until", "-e", help="Created before; as --since."),
    "completed_after": moment("--ended-since", help="Ended since; as --since."),
    "completed_before": moment("--ended-until", help="Ended before; as --since."),
    "app_version": several("--app-version", metavar="VERSION", help="The version of the code"),
    "application_name": several("--app", "-a", metavar="APP", help="The app"),
    "executor_id": several("--executor", metavar="ID", help="The process that has or had it"),
    "user": several("--user", "-u", metavar="USER", help="On whose behalf it runs"),
    "schedule_name": several("--schedule", metavar="NAME", help="The schedule that started it"),
    "workflow_id_prefix": several("--prefix", metavar="TEXT", help="What its id begins with"),
    "parent_workflow_id": several("--parent", metavar="ID", help="The workflow that started it"),
    "forked_from": several("--forked-from", metavar="ID", help="What it is a fork of"),
    "attributes": several("--attribute", metavar="K=V", help="What it has, as in order=5"),
    "queues_only": Annotated[
        bool, typer.Option("--queued", help="Only what is or was on a queue.")
    ],
}
"""The options, by the fields of the filter that they are."""


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and what they say as its argument `chosen`."""
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.name != "chosen"]
    default = {"queues_only": False}
    more = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default.get(name), annotation=annotation
        )
        for name, annotation in OPTIONS.items()
    ]

    def with_options(**values: Any) -> None:
        given = {name: values.pop(name) for name in OPTIONS}
        command(**values, chosen=chosen_by(given))

    with_options.__doc__ = command.__doc__
    with_options.__name__ = command.__name__
    with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]  # typer reads it
        parameters=[*own, *more], return_annotation=None
    )
    return with_options


def chosen_by(values: dict[str, Any]) -> Chosen:
    """The filter that options mean; what they cannot mean ends the command."""
    now = datetime.now(UTC)
    chosen = {name: value for name, value in values.items() if value}
    try:
        for name in ("created_after", "created_before", "completed_after", "completed_before"):
            if name in chosen:
                chosen[name] = moment_in(chosen[name], now)
        if "status" in chosen:
            chosen["status"] = [status_in(each) for each in chosen["status"]]
        if "attributes" in chosen:
            chosen["attributes"] = attributes_in(chosen["attributes"])
    except ValueError as exc:
        stop(str(exc), MISUSED)
    return cast(Chosen, chosen)


def status_in(text: str) -> Status:
    """A status, however it is written.

    Raises:
        ValueError: there is none such.
    """
    word = text.strip().upper().replace("-", "_")
    known = get_args(Status)
    if word in (DEAD, "DEAD_LETTER"):
        word = DEAD_LETTER
    if word not in known:
        shown = ", ".join(DEAD if each == DEAD_LETTER else each for each in known)
        raise ValueError(f"{text!r} is no status; there are {shown}")
    return cast(Status, word)


def attributes_in(texts: Sequence[str]) -> dict[str, Any]:
    """Attributes, their values JSON where they are that, and else text.

    Raises:
        ValueError: one has no value.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"an attribute is written as name=value, not {text!r}")
        try:
            found[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[key] = value
    return found


def shown_status(status: str) -> str:
    """A status in a word that fits a table."""
    return DEAD if status == DEAD_LETTER else status
