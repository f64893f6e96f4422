"""The pauses between attempts."""

from datetime import timedelta
from typing import Any

import pytest

from dbos_async import Retry


def test_pauses_grow_to_their_limit() -> None:
    retry = Retry(interval=1, backoff_rate=2, max_interval=10, jitter=0)
    assert [retry.pause_after(attempt) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_pauses_may_stay_the_same_and_be_timedeltas() -> None:
    retry = Retry(interval=timedelta(milliseconds=500), backoff_rate=1, jitter=0)
    assert [retry.pause_after(attempt) for attempt in (1, 100)] == [0.5, 0.5]


def test_endless_growth_stops_at_the_limit() -> None:
    assert Retry(interval=1, backoff_rate=10, jitter=0).pause_after(10_000) == 3600


@pytest.mark.parametrize("jitter", [0.1, 0.5, 1])
def test_jitter_is_a_fraction_of_the_pause(jitter: float) -> None:
    retry = Retry(interval=8, backoff_rate=1, jitter=jitter)
    pauses = [retry.pause_after(1) for _ in range(200)]
    assert all(8 * (1 - jitter) <= pause <= 8 * (1 + jitter) for pause in pauses)
    assert len(set(pauses)) > 100


@pytest.mark.parametrize(
    ("retry_on", "wanted", "unwanted"),
    [
        (OSError, FileNotFoundError(), ValueError()),
        ((OSError, KeyError), KeyError(), ValueError()),
        (lambda error: "busy" in str(error), ValueError("busy"), ValueError("gone")),
    ],
)
def test_retry_on_is_types_or_a_predicate(
    retry_on: object, wanted: Exception, unwanted: Exception
) -> None:
    retry = Retry(retry_on=retry_on)  # type: ignore[arg-type]  # one of the three
    assert retry.wants(wanted)
    assert not retry.wants(unwanted)


@pytest.mark.parametrize("kinds", [[ValueError], "ValueError", 3, (), (ValueError, "x"), int])
def test_what_is_retried_is_types_of_exceptions_or_a_function(kinds: Any) -> None:
    with pytest.raises(TypeError, match="retry_on"):
        Retry(retry_on=kinds)
