"""What is a race by nature has a recorded form: `dbos.wait` and `dbos.timeout`."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from dbos_async import DBOS, ReplayReport, Workflow, WorkflowCancelledError, WorkflowHandle
from dbos_async.testing import advance, crash_at

HOUR = 3600
PATIENCE = 20.0
"""Seconds after which what a test waits for will not come."""

Body = Callable[["Track"], Awaitable[Any]]


class Track:
    """An app whose workflow is a race, and what its steps were called for."""

    def __init__(self, url: str, body: Body, ran: list[str]) -> None:
        self.dbos = dbos = DBOS("races", url, app_version="1")
        self.jobs = dbos.queue("jobs")
        self.lane = dbos.queue("lane", concurrency=1)
        self.ran = ran
        self.gate = asyncio.Event()
        self.stuck_now = 0

        @dbos.step(name="quick")
        async def quick(word: str) -> str:
            ran.append(word)
            return word

        @dbos.step(name="slow")
        async def slow(word: str) -> str:
            ran.append(word)
            await asyncio.Event().wait()
            return word

        @dbos.step(name="stuck")
        async def stuck(word: str, number: int) -> None:
            """Never end; once so many of them are at it, the hour of every limit is over."""
            ran.append(word)
            self.stuck_now += 1
            if self.stuck_now == number:
                self.stuck_now = 0
                advance(HOUR + 1)
            await asyncio.Event().wait()

        @dbos.step(name="gated")
        async def gated(word: str) -> str:
            ran.append(word)
            await self.gate.wait()
            return word

        @dbos.step(name="failing")
        async def failing(word: str) -> str:
            ran.append(word)
            raise ValueError(word)

        @dbos.workflow(name="child")
        async def child(word: str) -> str:
            return await quick(word)

        @dbos.workflow(name="endless")
        async def endless() -> None:
            await dbos.sleep(10**6)

        @dbos.workflow(name="bad")
        async def bad() -> None:
            raise ValueError("bad")

        @dbos.workflow(name="race")
        async def race() -> Any:
            return await body(self)

        self.quick, self.slow, self.gated, self.failing = quick, slow, gated, failing
        self.stuck = stuck
        self.child, self.endless, self.bad = child, endless, bad
        self.race: Workflow[[], Any] = race

    async def run(self, workflow_id: str = "w") -> Any:
        """Start the race, or find it where a crash left it; its result."""
        async with asyncio.timeout(PATIENCE), self.dbos:
            return await self.race.with_options(workflow_id=workflow_id)()

    async def report(self, workflow_id: str = "w") -> ReplayReport:
        [report] = await self.dbos.check_replay(workflow_ids=[workflow_id])
        return report


class Outcome(NamedTuple):
    """How a race went that died once, at some checkpoint."""

    result: Any
    first: list[str]
    """What ran until it died."""
    second: list[str]
    """What ran afterwards."""


Crashes = Callable[..., Awaitable[list[Outcome]]]


@pytest.fixture
def crashes(dbos_database_url: str) -> Crashes:
    """Lets a race die at each of its checkpoints, or at every third, say; once it does not die."""

    async def outcomes_of(body: Body, every: int = 1) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for checkpoint in itertools.count(every, every):
            workflow_id, first, second = f"w{checkpoint}", list[str](), list[str]()
            result: Any = None
            with crash_at(checkpoint) as crash:
                result = await Track(dbos_database_url, body, first).run(workflow_id)
            if crash.happened:
                report = await Track(dbos_database_url, body, []).report(workflow_id)
                assert report.is_ok, (checkpoint, report)
                result = await Track(dbos_database_url, body, second).run(workflow_id)
            outcomes.append(Outcome(result, first, second))
            report = await Track(dbos_database_url, body, []).report(workflow_id)
            assert report.is_ok, (checkpoint, report)
            if not crash.happened:
                return outcomes
        raise AssertionError

    return outcomes_of


async def test_the_first_of_several_tasks_wins_again_after_every_crash(crashes: Crashes) -> None:
    async def body(track: Track) -> list[str]:
        quick = asyncio.create_task(track.quick("quick"))
        slow = asyncio.create_task(track.slow("slow"))
        done, pending = await track.dbos.wait([slow, quick], return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        slow.cancel()
        return [quick.result(), await track.quick("last")]

    outcomes = await crashes(body)
    assert len(outcomes) >= 5
    for result, first, second in outcomes:
        assert result == ["quick", "last"]
        decided = "last" in first
        assert not (decided and "slow" in second), "what had lost ran again"
    assert outcomes[-1].first == ["quick", "slow", "last"]


async def test_a_task_that_was_done_later_is_pending_again(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        first = asyncio.create_task(track.quick("first"))
        other = asyncio.create_task(track.gated("other"))
        done, pending = await track.dbos.wait({first, other}, return_when="FIRST_COMPLETED")
        was_pending = other in pending
        track.gate.set()
        both, none = await track.dbos.wait(pending | done)
        return [was_pending, len(done), len(both), len(none), await other]

    for result, *_ in await crashes(body):
        assert result == [True, 1, 2, 0, "other"]


async def test_the_first_exception_ends_the_wait(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        quick = asyncio.create_task(track.quick("quick"))
        failing = asyncio.create_task(track.failing("failing"))
        slow = asyncio.create_task(track.slow("slow"))
        done, pending = await track.dbos.wait(
            [quick, failing, slow], return_when=asyncio.FIRST_EXCEPTION
        )
        slow.cancel()
        return [failing in done, quick in done, pending == {slow}, await track.quick("last")]

    for result, first, second in await crashes(body):
        assert result == [True, True, True, "last"]
        assert "last" not in first or "slow" not in second


async def test_handles_and_tasks_race_each_other(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        endless = await track.dbos.start_workflow(track.endless)
        child = await track.jobs.enqueue(track.child, "child")
        slow = asyncio.create_task(track.slow("slow"))
        entrants: list[asyncio.Task[str] | WorkflowHandle[Any]] = [endless, slow, child]
        done, pending = await track.dbos.wait(entrants, return_when=asyncio.FIRST_COMPLETED)
        slow.cancel()
        await track.dbos.cancel_workflow(endless.workflow_id)
        again, _ = await track.dbos.wait(pending - {slow})
        return [
            [place for place, entrant in enumerate(entrants) if entrant in done],
            [place for place, entrant in enumerate(entrants) if entrant in again],
            await child.get_result(),
        ]

    for result, *_ in await crashes(body):
        assert result == [[2], [0], "child"]


async def test_a_workflow_that_failed_is_an_exception(crashes: Crashes) -> None:
    async def body(track: Track) -> list[bool]:
        endless = await track.dbos.start_workflow(track.endless)
        bad = await track.dbos.start_workflow(track.bad)
        done, pending = await track.dbos.wait([endless, bad], return_when=asyncio.FIRST_EXCEPTION)
        return [done == {bad}, pending == {endless}]

    for result, *_ in await crashes(body):
        assert result == [True, True]


async def test_a_wait_whose_time_is_up_tells_who_was_done(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        quick = asyncio.create_task(track.quick("quick"))
        slow = asyncio.create_task(track.slow("slow"))
        endless = await track.dbos.start_workflow(track.endless)
        done, pending = await track.dbos.wait([quick, slow, endless], timeout=0.3)
        slow.cancel()
        return [done == {quick}, len(pending), await track.quick("last")]

    for result, first, second in await crashes(body):
        assert result == [True, 2, "last"]
        assert "last" not in first or "slow" not in second


async def test_a_body_in_time_is_in_time_again(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        async with track.dbos.timeout(3600) as limit:
            words = await asyncio.gather(track.quick("a"), track.quick("b"))
        return [*words, limit.expired(), await track.quick("last")]

    for result, *_ in await crashes(body):
        assert result == ["a", "b", False, "last"]


async def test_a_step_in_which_the_limit_expired_does_not_run_again(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        limit = None
        try:
            async with track.dbos.timeout(0.2) as limit:
                await track.quick("before")
                await track.slow("slow")
        except TimeoutError:
            await track.quick("after")
        return [limit is not None and limit.expired(), await track.quick("last")]

    for result, first, second in await crashes(body):
        assert result == [True, "last"]
        assert "after" not in first or "slow" not in second
        assert len([word for word in first + second if word == "last"]) in (1, 2)


async def test_limits_expire_in_every_kind_of_wait(crashes: Crashes) -> None:
    async def body(track: Track) -> list[str]:
        expired: list[str] = []
        endless = await track.dbos.start_workflow(track.endless)
        kinds: dict[str, Callable[[], Awaitable[object]]] = {
            "sleep": lambda: track.dbos.sleep(10**6),
            "result": endless.get_result,
            "call": track.endless,
            "wait": lambda: track.dbos.wait([endless]),
            "timed wait": lambda: track.dbos.wait([endless], timeout=10**6),
            "plain": asyncio.Event().wait,
        }
        for name, wait in kinds.items():
            try:
                async with track.dbos.timeout(0.05):
                    await wait()
            except TimeoutError:
                expired.append(await track.quick(name))
        return expired

    for result, *_ in await crashes(body, every=4):
        assert result == ["sleep", "result", "call", "wait", "timed wait", "plain"]


async def test_limits_around_branches_expire(crashes: Crashes) -> None:
    async def body(track: Track) -> list[Any]:
        said: list[Any] = []

        async def branch(word: str) -> None:
            try:
                said.append(await track.quick(word))
                await track.stuck(f"{word} slow", 2)
            finally:
                await track.quick(f"{word} undone")

        try:
            async with track.dbos.timeout(HOUR), asyncio.TaskGroup() as group:
                for word in "ab":
                    group.create_task(branch(word))
        except TimeoutError:
            said.append("grouped")
        try:
            async with track.dbos.timeout(HOUR):
                await asyncio.gather(branch("c"), track.stuck("d", 2))
        except TimeoutError:
            said.append("gathered")
        return [*said, await track.quick("last")]

    for result, first, second in await crashes(body):
        assert {"grouped", "gathered", "last"} <= set(result)
        assert {"a", "b", "c"} & {*first, *second} >= {"a", "b", "c"} & set(result)
        if "last" in first:
            assert not any("slow" in word for word in second)
    assert sorted(result) == ["a", "b", "c", "gathered", "grouped", "last"]


async def test_limits_within_branches_and_within_each_other_expire(crashes: Crashes) -> None:
    async def body(track: Track) -> Any:
        async def branch(word: str, seconds: float) -> str:
            try:
                async with track.dbos.timeout(seconds):
                    await track.slow(word)
            except TimeoutError:
                return await track.quick(f"{word} is late")
            return "in time"

        async def nested() -> str:
            try:
                async with track.dbos.timeout(0.1):
                    try:
                        async with track.dbos.timeout(3600):
                            await track.slow("inner")
                    except TimeoutError:
                        return "the inner one"
                    finally:
                        await track.quick("unwound")
            except TimeoutError:
                return await track.quick("the outer one")
            return "none"

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(branch("a", 0.1)),
                group.create_task(branch("b", 0.2)),
                group.create_task(nested()),
            ]
        return [task.result() for task in tasks]

    for result, *_ in await crashes(body):
        assert result == ["a is late", "b is late", "the outer one"]


async def test_no_time_at_all(crashes: Crashes) -> None:
    async def body(track: Track) -> list[str]:
        try:
            async with track.dbos.timeout(0):
                await track.slow("slow")
        except TimeoutError:
            return ["late", await track.quick("last")]
        return []

    for result, *_ in await crashes(body):
        assert result == ["late", "last"]


async def test_deadlines_hold_over_a_restart(dbos_database_url: str) -> None:
    async def body(track: Track) -> list[Any]:
        said: list[Any] = []
        endless = await track.dbos.start_workflow(track.endless.with_options(workflow_id="e"))
        done, _ = await track.dbos.wait([endless], timeout=3600)
        said.append(len(done))
        try:
            async with track.dbos.timeout(3600):
                await track.slow("slow")
        except TimeoutError:
            said.append("late")
        return said

    async with asyncio.timeout(PATIENCE):
        for steps in (2, 4):  # the start of the child and a deadline; the wait and another one
            track = Track(dbos_database_url, body, [])
            async with track.dbos as dbos:
                await dbos.start_workflow(track.race.with_options(workflow_id="w"))
                while len(await dbos.list_steps("w")) < steps:
                    await asyncio.sleep(0.02)
            advance(3600)
        assert await Track(dbos_database_url, body, []).run() == [0, "late"]


async def test_nothing_is_recorded_of_a_block_that_is_abandoned(dbos_database_url: str) -> None:
    async def body(track: Track) -> str:
        async with track.dbos.timeout(3600):
            return await track.gated("gated")

    async with asyncio.timeout(PATIENCE):
        track = Track(dbos_database_url, body, [])
        await track.dbos.launch()
        await track.dbos.start_workflow(track.race.with_options(workflow_id="w"))
        while not track.ran:
            await asyncio.sleep(0.02)
        await track.dbos.shutdown(timeout=0)
        track = Track(dbos_database_url, body, [])
        track.gate.set()
        assert await track.run() == "gated"
        async with track.dbos as dbos:
            names = [(step.name, step.output) for step in await dbos.list_steps("w")]
    assert [name for name, _ in names] == ["DBOS.timeout", "gated", "DBOS.timeout.end"]
    assert names[-1] == ("DBOS.timeout.end", None)


async def test_a_cancelled_workflow_leaves_its_wait_at_once(dbos_database_url: str) -> None:
    async def body(track: Track) -> None:
        endless = await track.dbos.start_workflow(track.endless.with_options(workflow_id="e"))
        async with track.dbos.timeout(10**6):
            await track.dbos.wait([endless], timeout=10**6)

    track = Track(dbos_database_url, body, [])
    async with asyncio.timeout(PATIENCE), track.dbos as dbos:
        handle = await dbos.start_workflow(track.race.with_options(workflow_id="w"))
        while len(await dbos.list_steps("w")) < 3:
            await asyncio.sleep(0.02)
        await dbos.cancel_workflow("w")
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result()
        assert len(await dbos.list_steps("w")) == 3


@pytest.mark.parametrize("with_task", [False, True])
async def test_who_waits_for_what_it_enqueued_gives_its_slot_up(
    dbos_database_url: str, with_task: bool
) -> None:
    async def body(track: Track) -> str:
        child = await track.lane.enqueue(track.child, "child")
        entrants: list[Any] = [child]
        if with_task:
            entrants = [asyncio.create_task(child.get_result())]
        done, _ = await track.dbos.wait(entrants, timeout=10**6)
        assert done == set(entrants)
        return await child.get_result()

    track = Track(dbos_database_url, body, [])
    async with asyncio.timeout(PATIENCE), track.dbos:
        handle = await track.lane.enqueue(track.race)
        assert await handle.get_result() == "child"


async def test_a_branch_in_a_set_is_told_from_a_future_that_has_no_place(
    dbos_database_url: str,
) -> None:
    async def body(track: Track) -> str:
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        assert await track.dbos.wait([future]) == ({future}, set())
        with pytest.raises(TypeError, match="give wait a list"):
            await track.dbos.wait({future})
        return "done"

    assert await Track(dbos_database_url, body, []).run() == "done"


async def misuse(track: Track) -> str:
    dbos = track.dbos
    task = asyncio.create_task(asyncio.sleep(0))
    with pytest.raises(ValueError, match="nothing to wait for"):
        await dbos.wait([])
    with pytest.raises(ValueError, match="return_when is one of"):
        await dbos.wait([task], return_when="SOMETIMES")
    with pytest.raises(ValueError, match="not negative"):
        await dbos.wait([task], timeout=-1)
    with pytest.raises(ValueError, match="not negative"):
        dbos.timeout(-1)
    with pytest.raises(TypeError, match="create_task"):
        coroutine: Any = asyncio.sleep(0)
        await dbos.wait([coroutine])
    with pytest.raises(TypeError, match="wait takes a list"):
        single: Any = task
        await dbos.wait(single)
    with pytest.raises(TypeError, match="with no 3 in it"):
        three: Any = [3]
        await dbos.wait(three)
    await task
    return "refused"


async def test_what_makes_no_sense_is_refused_and_takes_no_number(dbos_database_url: str) -> None:
    track = Track(dbos_database_url, misuse, [])
    async with track.dbos as dbos:
        assert await track.race.with_options(workflow_id="w")() == "refused"
        assert await dbos.list_steps("w") == []
        assert await misuse(track) == "refused"


async def test_outside_of_workflows_and_in_steps_both_are_plain(dbos_database_url: str) -> None:
    async def use(track: Track) -> list[Any]:
        dbos = track.dbos
        done_at_once = asyncio.create_task(asyncio.sleep(0))
        never = asyncio.create_task(asyncio.sleep(10**6))
        await done_at_once
        first = await dbos.wait({done_at_once, never}, return_when=asyncio.FIRST_COMPLETED)
        endless, ended = [
            await dbos.retrieve_workflow(workflow_id) for workflow_id in ("endless", "ended")
        ]
        second = await dbos.wait([endless, ended], timeout=0)
        third = await dbos.wait([endless, never, ended], return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(TimeoutError):
            async with dbos.timeout(0.01) as limit:
                await never
        return [
            first == ({done_at_once}, {never}),
            second == ({ended}, {endless}),
            third == ({ended}, {endless, never}),
            limit.expired(),
        ]

    async def body(track: Track) -> Any:
        return await track.dbos.step(use, name="use")(track)

    track = Track(dbos_database_url, body, [])
    async with asyncio.timeout(PATIENCE), track.dbos as dbos:
        await dbos.start_workflow(track.endless.with_options(workflow_id="endless"))
        await track.child.with_options(workflow_id="ended")("ended")
        assert await use(track) == [True] * 4
        assert await track.race.with_options(workflow_id="w")() == [True] * 4
        assert [step.name for step in await dbos.list_steps("w")] == ["use"]
    await dbos_without_tasks(track)


async def dbos_without_tasks(track: Track) -> None:
    """Neither needs a launched app for what it does itself."""
    task = asyncio.create_task(asyncio.sleep(0))
    assert await track.dbos.wait([task]) == ({task}, set())
    async with track.dbos.timeout(10):
        pass
