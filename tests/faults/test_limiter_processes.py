"""Limiters hold over processes, also while these are killed."""

import asyncio
import sys
import time
from pathlib import Path

from bench.fleet import Fleet, launched, most_at_once, most_in_a_window

SECONDS = 8.0
PATIENCE = 60.0


class LimitedFleet(Fleet):
    """Processes that call as much as their limiter lets them."""

    def __init__(self, url: str, ledger: Path, rate: int, period: float, concurrency: int) -> None:
        super().__init__(url, ledger)
        program = Path(__file__).with_name("limited.py")
        values = (str(rate), str(period), str(concurrency))
        self._command = (sys.executable, str(program), url, str(ledger), *values)

    def at_work_since(self, moment: float) -> set[str]:
        """The processes that began a call after this moment."""
        lines = [line.split() for line in self._ledger.read_text().splitlines()]
        return {pid for what, _, pid, at in lines if what == "begin" and float(at) > moment}

    def begun(self) -> list[float]:
        """When each call began, in milliseconds of the database's clock."""
        return [round(run.began * 1000, 3) for run in self.runs()]


async def test_no_window_holds_more_calls_than_the_rate_limit_over_three_processes(
    dbos_database_url: str, tmp_path: Path
) -> None:
    fleet = LimitedFleet(dbos_database_url, tmp_path / "ledger", 50, 1.0, 0)
    async with launched(fleet, 3):
        await asyncio.sleep(SECONDS)
    begun = fleet.begun()
    assert most_in_a_window(begun, 1000) == 50
    # Nearly all may be used; the machine may stand still for a moment, but not in every window.
    assert most_in_a_window(begun, 3000) >= 0.9 * 150


async def test_processes_that_are_killed_take_no_tokens_and_no_permits_along_nor_give_any_twice(
    dbos_database_url: str, tmp_path: Path
) -> None:
    fleet = LimitedFleet(dbos_database_url, tmp_path / "ledger", 100, 1.0, 5)
    async with launched(fleet, 3):
        for _ in range(4):
            await asyncio.sleep(1.5)
            await fleet.kill()
        killed_at = time.time()
        async with asyncio.timeout(PATIENCE):
            while len(fleet.at_work_since(killed_at)) < 3:
                await asyncio.sleep(0.05)
    assert most_in_a_window(fleet.begun(), 1000) <= 100
    assert most_at_once(fleet.runs()) == 5


async def test_permits_go_round_between_processes_that_are_always_busy(
    dbos_database_url: str, tmp_path: Path
) -> None:
    fleet = LimitedFleet(dbos_database_url, tmp_path / "ledger", 0, 1.0, 7)
    async with launched(fleet, 3):
        await asyncio.sleep(SECONDS)
    runs = fleet.runs()
    assert most_at_once(runs) == 7
    calls = [sum(run.workflow_id.startswith(pid) for run in runs) for pid in pids_of(fleet)]
    assert len(calls) == 3
    assert min(calls) >= sum(calls) * 2 / 7 * 0.5


def pids_of(fleet: Fleet) -> set[str]:
    """The processes that called."""
    return {run.workflow_id.partition("-")[0] for run in fleet.runs()}
