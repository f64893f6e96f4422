"""Times as people write them, tables as they fit, and nothing that a terminal obeys."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from dbos_async.cli import output
from dbos_async.cli.moments import moment_in, seconds_in, shown_age, shown_moment, shown_seconds

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("1h30m", 5400), ("2d", 172_800), ("250ms", 0.25)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1x", "1 h", "1h 30m", "soon", "1h2", "٣h٣"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds_in(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("2026-06-30", datetime(2026, 6, 30, tzinfo=UTC)),
        ("2026-06-30T10:00", datetime(2026, 6, 30, 10, tzinfo=UTC)),
        ("2026-06-30T10:00:00+02:00", datetime(2026, 6, 30, 8, tzinfo=UTC)),
        ("2026-06-30T10:00:00Z", datetime(2026, 6, 30, 10, tzinfo=UTC)),
    ],
)
def test_moments_are_read(text: str, moment: datetime) -> None:
    assert moment_in(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "999999999999w"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        moment_in(text, NOW)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0312, "31ms"),
        (1, "1s"),
        (2.34, "2.3s"),
        (9.99, "10s"),
        (59.6, "1m"),
        (90, "1m30s"),
        (3600, "1h"),
        (7_260, "2h1m"),
        (86_400 * 3 + 7200, "3d2h"),
    ],
)
def test_durations_are_shown(seconds: float, shown: str) -> None:
    assert shown_seconds(seconds) == shown


def test_ages_and_moments_are_shown() -> None:
    assert shown_age(NOW - timedelta(seconds=119), NOW) == "119s"
    assert shown_age(NOW - timedelta(minutes=119), NOW) == "119m"
    assert shown_age(NOW - timedelta(hours=50), NOW) == "2d"
    assert shown_age(NOW + timedelta(hours=1), NOW) == "0s"
    assert shown_moment(NOW, NOW + timedelta(minutes=2)) == "2026-07-01 12:00:00 UTC (2m ago)"
    assert shown_moment(NOW, NOW - timedelta(minutes=2)) == "2026-07-01 12:00:00 UTC (in 2m)"


def drawn(rows: list[output.Row], width: int, *soft: str) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    with console.capture() as capture:
        console.print(output.table_of(rows, soft, width))
    return capture.get().splitlines()


ROWS: list[output.Row] = [
    {"workflow_id": "w" * 36, "name": "a" * 30, "about": "b" * 60},
    {"workflow_id": "v", "name": "short", "about": None},
]


def test_a_narrow_terminal_cuts_the_widest_of_the_soft_columns_first() -> None:
    header, first, second = drawn(ROWS, 80, "name", "about")
    assert header.split() == ["workflow", "id", "name", "about"]
    assert len(first) == 80
    assert "w" * 36 in first
    assert first.count("a") == first.count("b") == 19
    assert first.count("…") == 2
    assert second.split() == ["v", "short", "-"]


def test_a_wide_terminal_cuts_nothing() -> None:
    assert "…" not in "".join(drawn(ROWS, 160, "name", "about"))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("[red]x[/]", "[red]x[/]"),
        ("\x1b[2J\n1", r"\x1b[2J\n1"),
        ("\ud800", r"\ud800"),
        ("\u202egnp", r"\u202egnp"),
        ("Zoë", "Zoë"),
    ],
)
def test_a_text_does_nothing_to_the_terminal(text: str, printed: str) -> None:
    assert output.text_of(text) == printed
    [_, line] = drawn([{"name": text}], 80)
    assert line.rstrip() == printed


def test_lines_are_kept_where_there_is_room() -> None:
    assert output.text_of("a\n\x1bb", is_long=True) == "a\n\\x1bb"


def test_numbers_and_flags_are_shown_for_people() -> None:
    assert [output.text_of(each) for each in (9_999, 12_345, True, False, None)] == [
        "9999",
        "12,345",
        "yes",
        "",
        "-",
    ]
