"""What a command prints: tables for people, JSON for scripts, complaints on stderr."""

import asyncio
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbos_async import errors

T = TypeVar("T")

FOUND: Final = 1
"""Exit code: something needs a person, is not there, or was refused."""
MISUSED: Final = 2
"""Exit code: the command cannot be understood, or makes no sense here."""
NO_DATABASE: Final = 3
"""Exit code: the database does not answer, or is none of ours."""
EXIT_CODES: Final = (
    "Exit codes: 0 it is done, and all is well; 1 something needs a person, there is no such "
    "thing, or it was refused without --yes; 2 the command cannot be understood, or makes no sense "
    "for what is there; 3 the database cannot be used."
)
ENDLESS: Final = 10_000
"""Characters of a line that goes to a file: nothing is cut off there."""
NARROWEST: Final = 8
"""Characters that a column keeps when it is cut or folded."""

MISSING: Final = (
    errors.WorkflowNotFoundError,
    errors.QueueNotFoundError,
    errors.ScheduleNotFoundError,
    errors.WorkflowConflictError,
    errors.PayloadStoreError,
)
COLOURS: Final = {
    "SUCCESS": "green",
    "ok": "green",
    "ERROR": "red",
    "DEAD": "bold red",
    "act": "bold red",
    "note": "yellow",
    "CANCELLED": "yellow",
    "PENDING": "cyan",
    "paused": "yellow",
    "dead": "red",
}
"""Of words that stand alone in a cell."""

Row = Mapping[str, object]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(work: Coroutine[Any, Any, T], *, loop_factory: LoopFactory | None = None) -> T:
    """The result of `work`; what is wrong with the question or the database ends the command."""
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(work)
    except MISSING as exc:
        stop(str(exc), FOUND)
    except (errors.DatabaseError, errors.ConfigurationError) as exc:
        stop(str(exc), NO_DATABASE)
    except (ValueError, TypeError, errors.SerializationError) as exc:
        stop(str(exc), MISUSED)


def stop(why: str, code: int) -> NoReturn:
    """Say why in one line on stderr, and end the command."""
    typer.echo(f"dbos-async: {printable(' '.join(why.split()))}", err=True)
    raise typer.Exit(code)


def show(
    rows: Sequence[Row],
    *,
    as_json: bool,
    nothing: str,
    soft: Collection[str] = (),
    folded: Collection[str] = (),
    is_whole: bool = False,
) -> None:
    """Print rows of the same keys: as a JSON array, or as a table.

    Args:
        rows: what to print.
        as_json: which of the two.
        nothing: what to say instead of an empty table; nothing at all if it is empty, too.
        soft: the columns to cut where the terminal is narrow, the widest first.
        folded: those to fold over several lines there, because one copies what is in them.
        is_whole: fold the soft ones, too, and keep the lines in them.
    """
    if as_json:
        show_json(list(rows))
    elif not rows:
        typer.echo(nothing, nl=bool(nothing))
    else:
        terminal = console()
        terminal.print(table_of(rows, soft, terminal.width, folded=folded, is_whole=is_whole))


def counted(count: int, noun: str = "workflow") -> str:
    """A number of things: `1 workflow`, `2,000 workflows`."""
    many = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def agree(deed: str, *, yes: bool, hint: str = "add --yes to do it") -> None:
    """Go on if a person says so, on the terminal or by --yes; else end the command."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        stop(f"this would {deed}: {hint}", FOUND)
    if not typer.confirm(f"This would {printable(deed)}. Do it?", err=True):
        stop("nothing was done", FOUND)


def show_json(value: object) -> None:
    """Print a value as JSON."""
    encoded = msgspec.json.encode(value, enc_hook=json_of)
    typer.echo(msgspec.json.format(encoded).decode())


def json_of(value: object) -> object:
    """What JSON has no word for."""
    if isinstance(value, errors.PortableWorkflowError):
        return {"type": value.name, "message": value.message}
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    return repr(value)


def show_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values, one a line; values of several lines keep them."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            table.add_row(name.replace("_", " "), cell_of(value, is_long=True))
    console().print(table)


def table_of(
    rows: Sequence[Row],
    soft: Collection[str],
    width: int,
    *,
    folded: Collection[str] = (),
    is_whole: bool = False,
) -> Table:
    """Rows with their keys on top. Names are text, whatever markup they look like."""
    table = Table(box=None, pad_edge=False)
    cells = {
        name: [cell_of(row[name], is_long=is_whole and name in soft) for row in rows]
        for name in rows[0]
    }
    widths = {
        name: max(len(name), *(measured(cell) for cell in column)) for name, column in cells.items()
    }
    shares = cut(widths, [name for name in cells if name in soft or name in folded], width)
    for name, value in rows[0].items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_folded = name in folded or (is_whole and name in soft)
        table.add_column(
            Text(name.replace("_", " ")),
            justify="right" if is_number else "left",
            no_wrap=not is_folded,
            overflow="fold" if is_folded else "ellipsis",
            max_width=shares[name],
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def measured(cell: Text) -> int:
    """The width of its longest line."""
    return max(line.cell_len for line in cell.split("\n", allow_blank=True))


def cut(widths: Mapping[str, int], soft: Sequence[str], width: int) -> dict[str, int]:
    """The widths that columns get: the widest of the soft ones gives first."""
    shares = dict(widths)
    excess = sum(shares.values()) + 2 * (len(shares) - 1) - width
    while excess > 0 and soft:
        widest = max(soft, key=lambda name: shares[name])
        if shares[widest] <= NARROWEST:
            break
        shares[widest] -= 1
        excess -= 1
    return shares


def cell_of(value: object, *, is_long: bool = False) -> Text:
    """A value for people."""
    text = text_of(value, is_long=is_long)
    return Text(text, style=COLOURS.get(text, ""))


def text_of(value: object, *, is_long: bool = False) -> str:
    """A value in plain characters; `is_long` keeps its lines."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return printable(str(value), is_long=is_long)


def printable(text: str, *, is_long: bool = False) -> str:
    """A text that does nothing to the terminal, whatever is in it."""
    kept = "\n" if is_long else ""
    return "".join(each if each.isprintable() or each in kept else escaped(each) for each in text)


def escaped(character: str) -> str:
    """A control character spelled out: the terminal must not obey what a row says."""
    return character.encode("unicode_escape").decode()


def console() -> Console:
    """The terminal with its colours, or a file without either."""
    return Console(width=None if sys.stdout.isatty() else ENDLESS, highlight=False)
