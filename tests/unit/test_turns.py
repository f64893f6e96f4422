"""How slots are dealt out to the partitions of a queue."""

from hypothesis import given
from hypothesis import strategies as st

from dbos_async._limits import Limits, RateLimit
from dbos_async._store.claiming import cursor_after, partition_room, period_of, room_of, shares_of
from dbos_async._store.records import PartitionUse

ROOMS = st.lists(st.integers(0, 50), max_size=30)


def test_everybody_gets_one_before_anybody_gets_two() -> None:
    assert shares_of([9, 9, 9], 2) == [1, 1, 0]
    assert shares_of([9, 9, 9], 4) == [2, 1, 1]
    assert shares_of([1, 0, 9], 5) == [1, 0, 4]
    assert shares_of([], 5) == []


@given(rooms=ROOMS, slots=st.integers(0, 500))
def test_slots_are_dealt_out_as_far_as_there_is_room_and_in_turns(
    rooms: list[int], slots: int
) -> None:
    shares = shares_of(rooms, slots)
    assert sum(shares) == min(slots, sum(rooms))
    assert all(share <= room for share, room in zip(shares, rooms, strict=True))
    hungry = [share for share, room in zip(shares, rooms, strict=True) if share < room]
    assert not hungry or max(shares) <= min(hungry) + 1


def test_the_next_turn_begins_after_the_last_that_was_served() -> None:
    partitions = [PartitionUse(key, 0, 0, None, 0) for key in "abc"]
    assert cursor_after(partitions, [1, 1, 0]) == "b"
    assert cursor_after(partitions, [0, 0, 0]) == "c"


def test_room_is_the_least_that_any_limit_leaves() -> None:
    assert room_of(10, None, 99, None, 0) == 10
    assert room_of(10, 4, 3, None, 0) == 1
    assert room_of(10, None, 0, 2, 0) == 2
    assert room_of(10, None, 0, 2, 3) == 5  # three have paid already
    limits = Limits(
        partition_concurrency=4,
        partition_worker_concurrency=3,
        partition_rate_limit=RateLimit(9, per=1),
    )
    assert partition_room(limits, PartitionUse("k", 2, 0, None, 0), 10, 0) == 2
    assert partition_room(limits, PartitionUse("k", 0, 0, None, 0), 10, 2) == 1
    assert partition_room(limits, PartitionUse("k", 0, 9, 100, 0), 10, 0) == 0
    assert partition_room(limits, PartitionUse("k", 9, 0, None, 0), 10, 0) == 0


def test_a_token_is_back_no_sooner_than_a_period_after_it_was_taken() -> None:
    assert period_of(None) is None
    assert period_of(RateLimit(1, per=60)) == 60_020
    assert period_of(RateLimit(1, per=1)) == 1_020
    assert period_of(RateLimit(1, per=0.01)) == 11
