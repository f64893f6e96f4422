"""What a command prints: tables for people, JSON for scripts, complaints on stderr."""

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbos_async import errors

T = TypeVar("T")

FOUND: Final = 1
"""Exit code: something needs a person."""
MISUSED: Final = 2
"""Exit code: the command cannot be understood."""
NO_DATABASE: Final = 3
"""Exit code: the database does not answer, or is none of ours."""
ENDLESS: Final = 10_000
"""Characters of a line that goes to a file: nothing is cut off there."""

Row = Mapping[str, object]


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; what is wrong with the question or the database ends the command."""
    try:
        return asyncio.run(work)
    except (errors.DatabaseError, errors.ConfigurationError) as exc:
        stop(str(exc), NO_DATABASE)
    except (ValueError, TypeError, errors.WorkflowNotFoundError) as exc:
        stop(str(exc), MISUSED)


def stop(why: str, code: int) -> NoReturn:
    """Say why in one line on stderr, and end the command."""
    typer.echo(f"dbos-async: {' '.join(why.split())}", err=True)
    raise typer.Exit(code)


def show(rows: Sequence[Row], *, as_json: bool, nothing: str) -> None:
    """Print rows of the same keys: as a JSON array, or as a table."""
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(list(rows))).decode())
    elif not rows:
        typer.echo(nothing)
    else:
        console().print(table_of(rows))


def table_of(rows: Sequence[Row]) -> Table:
    """Rows with their keys on top. Names are text, whatever markup they look like."""
    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*[Text(text_of(value)) for value in row.values()])
    return table


def text_of(value: object) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    return "".join(each if each.isprintable() else escaped(each) for each in str(value))


def escaped(character: str) -> str:
    """A control character spelled out: the terminal must not obey what a row says."""
    return character.encode("unicode_escape").decode()


def console() -> Console:
    """The terminal with its colours, or a file without either."""
    return Console(width=None if sys.stdout.isatty() else ENDLESS, highlight=False)
