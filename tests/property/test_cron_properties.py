"""When schedules are due, compared with a second library, on days when the clocks change, too."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbos_async._engine.cron import Cron

croniter = pytest.importorskip("croniter").croniter

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",  # half an hour beside the others
    "America/Santiago",  # changes at midnight
    "Africa/Cairo",  # changes at midnight
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Kathmandu",
]


@cache
def changes_of(zone: str) -> list[datetime]:
    """When the clocks of a zone change, 2023 to 2026."""
    moments = [datetime(2023, 1, 1, tzinfo=UTC) + hours * HOUR for hours in range(4 * 8766)]
    offsets = [moment.astimezone(ZoneInfo(zone)).utcoffset() for moment in moments]
    pairs = zip(moments, offsets, offsets[1:], strict=False)
    hours = [moment for moment, before, after in pairs if before != after]
    return [next(minutes_at_change(hour, zone)) for hour in hours]


def minutes_at_change(hour: datetime, zone: str) -> Iterator[datetime]:
    for minutes in range(1, 61):
        later = hour + minutes * MINUTE
        here, before = (each.astimezone(ZoneInfo(zone)) for each in (later, later - MINUTE))
        if here.utcoffset() != before.utcoffset():
            yield later


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, *, star: bool = True) -> str:
    """A field of a cron expression. No range of one: the other library takes it for everything."""
    kinds = ["number", "list", "range"] + ["star", "star", "steps"] * star
    kind = draw(st.sampled_from(kinds))
    numbers = st.integers(low, high)
    if kind == "star":
        return "*"
    if kind == "steps":
        return f"*/{draw(st.sampled_from([2, 3, 4, 5, 7, 15, 30]))}"
    if kind == "range":
        first = draw(st.integers(low, high - 1))
        return f"{first}-{draw(st.integers(first + 1, high))}"
    if kind == "list":
        return ",".join(map(str, sorted(draw(st.sets(numbers, min_size=2, max_size=4)))))
    return str(draw(numbers))


@st.composite
def expressions(draw: st.DrawFn, *, with_days: bool = True, seconds: bool | None = None) -> str:
    """Five or six fields. Never both kinds of days: the libraries join them by other rules where
    one has a star in it."""
    parts = [draw(fields(0, 59)), draw(fields(0, 23)), "*", "*", "*"]
    kind = draw(st.sampled_from(["", "", "day", "weekday", "month"])) if with_days else ""
    if kind == "day":
        parts[2] = draw(fields(1, 28, star=False))
    elif kind == "weekday":
        parts[4] = draw(fields(0, 6, star=False))
    elif kind == "month":
        parts[3] = draw(fields(1, 12, star=False))
    if draw(st.booleans()) if seconds is None else seconds:
        parts.insert(0, draw(fields(0, 59)))
    return " ".join(parts)


MOMENTS = st.datetimes(datetime(2023, 1, 1), datetime(2026, 6, 1), timezones=st.just(UTC))


@st.composite
def places(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone, and a moment: any, or one up to a day and a half before the clocks change."""
    zone = draw(st.sampled_from(ZONES))
    moment = draw(MOMENTS)
    if changes_of(zone) and draw(st.booleans()):
        before = draw(st.integers(-2 * 3600, 36 * 3600))
        moment = draw(st.sampled_from(changes_of(zone))) - timedelta(seconds=before)
    return zone, moment.replace(microsecond=0)


@settings(max_examples=400, deadline=None)
@given(expressions(), places())
def test_both_libraries_agree_but_where_the_clocks_change(
    expression: str, place: tuple[str, datetime]
) -> None:
    """Up to two hours from a change the other one is due where the clocks jump, whatever they jump
    over, and takes both of an hour that comes twice for times of the day.
    """
    zone, moment = place
    ours = list(islice(Cron(expression, zone).after(moment), 20))
    there = moment.astimezone(ZoneInfo(zone))
    their_cron = croniter(expression, there, second_at_beginning=True)
    theirs = [their_cron.get_next(datetime).astimezone(UTC) for _ in range(20)]
    end = min(ours[-1], theirs[-1])
    odd = {tick for tick in set(ours) ^ set(theirs) if tick <= end}
    assert [tick for tick in odd if not is_near(tick, changes_of(zone))] == []


def is_near(moment: datetime, changes: list[datetime]) -> bool:
    return any(abs(moment - change) <= 2 * HOUR for change in changes)


@settings(max_examples=150, deadline=None)
@given(expressions(with_days=False, seconds=False), st.sampled_from(ZONES), st.data())
def test_around_a_change_of_the_clocks_every_minute_is_due_that_should_be(
    expression: str, zone: str, data: st.DataObject
) -> None:
    """Minute by minute: the other library says what wall clocks must show, and nothing of zones."""
    change = data.draw(st.sampled_from(changes_of(zone) or [datetime(2025, 1, 1, tzinfo=UTC)]))
    start, end = change - 5 * HOUR, change + 5 * HOUR
    minutes = [start + number * MINUTE for number in range(10 * 60 + 1)]
    walls = [minute.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for minute in minutes]
    is_at_set_times = not any(part.startswith("*") for part in expression.split()[:2])
    expected = set()
    for place, (minute, wall) in enumerate(zip(minutes, walls, strict=True)):
        if croniter.match(expression, wall) and not (is_at_set_times and wall in walls[:place]):
            expected.add(minute)
        if is_at_set_times and place and wall > walls[place - 1] + MINUTE:
            skipped = int((wall - walls[place - 1]) / MINUTE)
            jumped = [walls[place - 1] + number * MINUTE for number in range(1, skipped)]
            if any(croniter.match(expression, each) for each in jumped):
                expected.add(minute)
    due = list(Cron(expression, zone).between(start - MINUTE / 60, end))
    assert due == sorted(expected)


@settings(max_examples=300, deadline=None)
@given(expressions(), places(), st.integers(0, 10))
def test_what_is_due_does_not_depend_on_the_moment_from_which_one_asks(
    expression: str, place: tuple[str, datetime], later: int
) -> None:
    zone, moment = place
    cron = Cron(expression, zone)
    due = list(islice(cron.after(moment), 15))
    assert all(one < other for one, other in zip([moment, *due], due, strict=False))
    assert all(tick.tzinfo is UTC and not tick.microsecond for tick in due)
    for halfway in (due[later], due[later] + (due[later + 1] - due[later]) / 2):
        assert list(islice(cron.after(halfway), 14 - later)) == due[later + 1 :]
    between = due[later + 1] - timedelta(microseconds=1)
    assert cron.next_after(between) == due[later + 1]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text("0123456789*/-,#LW ", max_size=30)))
def test_any_text_is_a_schedule_or_a_value_error_that_quotes_it(text: str) -> None:
    try:
        cron = Cron(text)
    except ValueError as exc:
        assert repr(text) in str(exc) or "NUL" in str(exc) or "Unicode" in str(exc)
    else:
        assert cron.next_after(datetime(2026, 1, 1, tzinfo=UTC)) is not None


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("30 2 * * *", ["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]),
        ("15 30 2 * * *", ["2026-03-28T01:30:15", "2026-03-29T01:00", "2026-03-30T00:30:15"]),
        ("30 * * * *", ["2026-03-28T00:30", "2026-03-28T01:30", "2026-03-28T02:30"]),
    ],
)
def test_a_time_that_the_clocks_jump_over_is_due_when_they_jump(
    expression: str, due: list[str]
) -> None:
    cron = Cron(expression, "Europe/Berlin")
    found = islice(cron.after(datetime(2026, 3, 28, tzinfo=UTC)), 3)
    assert list(found) == [datetime.fromisoformat(f"{moment}+00:00") for moment in due]


def test_a_time_that_comes_twice_is_due_the_first_time() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    day = datetime(2026, 10, 25, tzinfo=UTC)
    assert list(cron.between(day, day + 24 * HOUR)) == [day + HOUR / 2]


def test_an_hour_that_comes_twice_has_its_intervals_twice() -> None:
    cron = Cron("*/20 2 * * *", "Europe/Berlin")
    day = datetime(2026, 10, 25, tzinfo=UTC)
    assert list(cron.between(day - MINUTE, day + 24 * HOUR)) == [
        day + number * 20 * MINUTE for number in range(6)
    ]


def test_a_day_that_a_zone_skipped_takes_no_time() -> None:
    cron = Cron("0-59 0-23 30 12 *", "Pacific/Apia")  # there was no such day in 2011
    change = datetime(2011, 12, 30, 10, tzinfo=UTC)
    assert cron.next_after(change - HOUR) == change
