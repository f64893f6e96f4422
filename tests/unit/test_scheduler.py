"""What fires of the ticks that were missed, and beside earlier runs."""

from typing import Any

import pytest

from dbos_async._engine.cron import cron_of
from dbos_async._engine.ticks import AT_A_TIME, overlapped, ticks_of
from dbos_async._store.schedules import Locked

NOW = 1_800_000_000_000
"""A full hour, in milliseconds."""


def locked(**values: Any) -> Locked:
    usual: dict[str, Any] = {
        "name": "s",
        "workflow_name": "tick",
        "cron": "* * * * * *",
        "timezone": None,
        "foreign_context": None,
        "backfill": False,
        "overlap": None,
        "decided_until_ms": NOW,
        "held_ms": None,
        "last_fired_at": None,
    }
    return Locked(**(usual | values))


def missed(row: Locked, now_ms: int, slept_until_ms: int = 0) -> tuple[list[int], int]:
    """The ticks that fire, in seconds before now; and until when that is all."""
    ticks, until_ms = ticks_of(row, cron_of(row.cron, "UTC"), now_ms, slept_until_ms)
    return [(now_ms - tick) // 1000 for tick in ticks], until_ms


def test_what_is_due_now_fires_and_is_decided() -> None:
    assert missed(locked(), NOW + 1000) == ([0], NOW + 1000)
    assert missed(locked(), NOW + 1999) == ([0], NOW + 1999)
    assert missed(locked(), NOW) == ([], NOW)


def test_a_clock_that_is_behind_fires_nothing_again() -> None:
    assert missed(locked(), NOW - 5000) == ([], NOW)


def test_what_a_change_of_leaders_missed_fires_and_nothing_older() -> None:
    ticks, until_ms = missed(locked(), NOW + 3_600_000)
    assert ticks == list(range(15, -1, -1))
    assert until_ms == NOW + 3_600_000


@pytest.mark.parametrize(("late", "fires"), [(16, True), (60, True), (61, False), (3000, False)])
def test_the_last_tick_fires_up_to_a_minute_late(late: int, fires: bool) -> None:
    hourly = locked(cron="0 * * * *", decided_until_ms=NOW - 7_200_000)
    ticks, until_ms = missed(hourly, NOW + late * 1000)
    assert ticks == [late] * fires
    assert until_ms == NOW + late * 1000


def test_of_what_it_slept_through_a_process_fires_only_the_last() -> None:
    slept_until = NOW + 30_000
    assert missed(locked(), slept_until, slept_until)[0] == [0]
    assert missed(locked(), slept_until + 500, slept_until)[0] == [0]
    awake = locked(decided_until_ms=slept_until)
    assert missed(awake, slept_until + 2000, slept_until)[0] == [1, 0]


def test_a_backfill_takes_all_that_was_missed_in_parts() -> None:
    row = locked(backfill=True)
    ticks, until_ms = missed(row, NOW + 3_600_000, NOW + 3_600_000)
    assert len(ticks) == AT_A_TIME
    assert until_ms == NOW + AT_A_TIME * 1000
    hourly = locked(backfill=True, cron="0 * * * *", decided_until_ms=NOW - 10 * 3_600_000)
    assert missed(hourly, NOW)[0] == [3600 * hours for hours in range(9, -1, -1)]


def test_a_schedule_that_nobody_has_decided_on_begins_now() -> None:
    assert missed(locked(decided_until_ms=None), NOW) == ([], NOW)
    fired = "2027-01-15T07:59:58+00:00"  # two seconds ago, another library says
    assert missed(locked(decided_until_ms=None, last_fired_at=fired), NOW) == ([], NOW)
    row = locked(decided_until_ms=None, last_fired_at=fired, backfill=True)
    assert missed(row, NOW) == ([1, 0], NOW)
    row = locked(decided_until_ms=None, last_fired_at="lately", backfill=True)
    assert missed(row, NOW) == ([], NOW)


@pytest.mark.parametrize(
    ("overlap", "held", "ticks", "active", "expected"),
    [
        (None, None, [1, 2], ["r"], ([1, 2], None, ())),
        ("allow", None, [1, 2], ["r"], ([1, 2], None, ())),
        ("skip", None, [1, 2], [], ([1], None, ())),
        ("skip", None, [1, 2], ["r"], ([], None, ())),
        ("buffer_one", None, [1], [], ([1], None, ())),
        ("buffer_one", None, [1, 2, 3], [], ([1], 2, ())),
        ("buffer_one", None, [1, 2], ["r"], ([], 1, ())),
        ("buffer_one", 1, [2], ["r"], ([], 1, ())),
        ("buffer_one", 1, [2, 3], [], ([1], 2, ())),
        ("buffer_one", 1, [], [], ([1], None, ())),
        ("cancel_previous", None, [1, 2], ["r"], ([2], None, ["r"])),
        ("cancel_previous", None, [], ["r"], ([], None, ())),
    ],
)
def test_what_fires_beside_runs_that_have_not_ended(
    overlap: str | None, held: int | None, ticks: list[int], active: list[str], expected: Any
) -> None:
    fire, held_ms, cancelled = overlapped(locked(overlap=overlap, held_ms=held), ticks, active)
    assert (list(fire), held_ms, cancelled) == expected
