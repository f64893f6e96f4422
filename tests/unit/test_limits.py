"""The arithmetic of limiters: who gets which permits, and when a lease is back."""

import pytest

from dbos_async import Limiter
from dbos_async._engine.limits import Lease
from dbos_async._store.limiters import Asked, Leased, OtherPermits, Permits, permits_of


def asked(wanted: int, keep: int = 0) -> Asked:
    return Asked(Limiter("api", concurrency=1), "me", keep=keep, wanted=wanted)


def others(*held_and_wanted: tuple[int, int], second: int = 0) -> list[OtherPermits]:
    return [
        OtherPermits(f"other-{number}", held, wanted, second * 1000)
        for number, (held, wanted) in enumerate(held_and_wanted)
    ]


def test_a_process_alone_gets_what_it_wants_up_to_the_limit() -> None:
    assert permits_of(asked(4), 10, []) == Permits(4, 4, others_wait=False)
    assert permits_of(asked(40), 10, []) == Permits(10, 10, others_wait=False)


def test_a_share_is_as_large_for_all_who_want_more_and_what_others_leave_is_dealt_out() -> None:
    assert permits_of(asked(10), 9, others((3, 10), (3, 10))).held == 3
    assert permits_of(asked(10), 9, others((1, 1), (0, 0))).held == 8


def test_what_others_still_hold_is_not_given_twice() -> None:
    assert permits_of(asked(10), 10, others((10, 10))) == Permits(0, 5, others_wait=False)


def test_a_call_that_runs_keeps_its_permit_though_the_share_is_less() -> None:
    assert permits_of(asked(10, keep=10), 10, others((0, 10))) == Permits(10, 5, others_wait=True)


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_a_limit_smaller_than_the_number_of_processes_goes_round(processes: int) -> None:
    starving = [(0, 1)] * (processes - 1)
    shares = [
        permits_of(asked(1), 1, others(*starving, second=second)).share
        for second in range(processes)
    ]
    assert sum(shares) == 1


def test_a_lease_whose_turns_all_began_is_back_a_period_after_the_last_of_them() -> None:
    lease = leased(2)
    lease.grant()
    lease.grant()
    assert lease.begin(100.2)
    assert lease.begin(100.5)
    assert (lease.ended().used, lease.ended().ended_at_ms) == (2, 5_501)


def test_a_lease_with_a_turn_that_may_still_begin_is_back_a_period_after_its_end() -> None:
    lease = leased(2)
    lease.grant()
    lease.grant()
    assert lease.begin(100.2)
    assert lease.ended().ended_at_ms == 6_001


def test_nothing_begins_after_the_end_of_a_lease() -> None:
    lease = leased(1)
    lease.grant()
    assert not lease.begin(101.1)
    lease.forfeit()
    assert lease.ended().used == 0


def leased(tokens: int) -> Lease:
    """Tokens for a second of this process's clock, from 100 on; 5 seconds by the database's."""
    lease = Lease(asked_at=100.0, length=1.0)
    lease.filled(Leased(tokens, taken_at_ms=5_000, back_in_ms=None))
    return lease
