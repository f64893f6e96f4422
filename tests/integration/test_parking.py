"""Parking: a workflow that waits long leaves memory, and everybody sees it as waiting."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from dbos_async import (
    DBOS,
    Client,
    DeduplicatedError,
    WorkflowCancelledError,
    WorkflowStatus,
    WorkflowTimeoutError,
)
from dbos_async._engine.execution import Execution
from dbos_async.testing import advance

HOUR = 3600
SOON = 0.05
PATIENCE = 20.0
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class App:
    """One process, in which what waits for more than a moment is parked."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.dbos = dbos = DBOS("parking", url, app_version="1", **{"park_after": SOON} | settings)
        self.steps: list[str] = []
        self.unwound = 0

        @dbos.step(name="note")
        async def note(word: str) -> str:
            self.steps.append(word)
            return word

        @dbos.workflow(name="sleeper", max_recovery_attempts=1)
        async def sleeper(seconds: float, times: int = 1) -> str:
            await note("begin")
            for number in range(times):
                await dbos.sleep(seconds)
                await note(f"slept {number}")
            return "done"

        self.note, self.sleeper = note, sleeper

    @property
    def running(self) -> int:
        return len(self.dbos.launched().running)

    async def start(self, workflow_id: str, *args: Any) -> Any:
        return await self.dbos.start_workflow(
            self.sleeper.with_options(workflow_id=workflow_id), *args
        )

    async def parked(self, workflow_id: str = "w") -> WorkflowStatus:
        """Its status, once it is parked."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.dbos.list_workflows(workflow_ids=[workflow_id], status="DELAYED")
                if found and workflow_id not in self.dbos.launched().running:
                    return found[0]
                await asyncio.sleep(0.01)

    async def status(self, workflow_id: str = "w") -> WorkflowStatus:
        [status] = await self.dbos.list_workflows(workflow_ids=[workflow_id])
        return status

    async def result(self, workflow_id: str = "w") -> Any:
        handle = await self.dbos.retrieve_workflow(workflow_id)
        return await handle.get_result(timeout=PATIENCE)

    async def looked_at(self, workflow_id: str = "w") -> None:
        """Return once the parker has refused a workflow."""
        parker = self.dbos.launched().parker
        async with asyncio.timeout(PATIENCE):
            while not any(e.workflow_id == workflow_id for e in parker._refused):
                await asyncio.sleep(0.01)
        assert (await self.status(workflow_id)).status == "PENDING"


@pytest.fixture
def app(dbos_database_url: str) -> App:
    return App(dbos_database_url)


# A long sleep


async def test_a_long_sleeper_leaves_memory_and_goes_on_when_it_is_due(app: App) -> None:
    async with app.dbos:
        handle = await app.start("w", HOUR, 2)
        status = await app.parked()
        assert app.running == 0
        assert status.waiting_for == "sleep"
        assert status.delay_until is not None
        assert abs(status.delay_until - status.created_at - timedelta(hours=1)) < timedelta(
            minutes=1
        )
        assert status.started_at == status.created_at
        await advance(HOUR)
        again = await handle.get_status()
        while (again := await app.parked()).delay_until == status.delay_until:
            await asyncio.sleep(0.01)
        assert again.waiting_for == "sleep"
        await advance(HOUR)
        assert await handle.get_result(timeout=PATIENCE) == "done"
        last = await handle.get_status()
        assert (last.waiting_for, last.delay_until, last.started_at) == (
            None,
            None,
            status.started_at,
        )
    assert app.steps == ["begin", "slept 0", "slept 1"]


@pytest.mark.parametrize("park_after", [60, None, timedelta(minutes=1)])
async def test_a_shorter_wait_than_the_setting_stays_in_memory(
    dbos_database_url: str, park_after: Any
) -> None:
    app = App(dbos_database_url, park_after=park_after)
    async with app.dbos:
        handle = await app.start("w", 60 if park_after else HOUR)
        while not app.dbos.launched().running["w"].is_resting:
            await asyncio.sleep(0.01)
        assert not app.dbos.launched().parker._lingering
        await advance(HOUR)
        assert await handle.get_result(timeout=PATIENCE) == "done"


@pytest.mark.parametrize("park_after", [-1, float("nan"), float("inf")])
async def test_a_threshold_that_cannot_work_is_refused(
    dbos_database_url: str, park_after: Any
) -> None:
    with pytest.raises(ValueError, match="duration"):
        DBOS("parking", dbos_database_url, park_after=park_after)
    with pytest.raises(ValueError, match="duration"):
        DBOS("parking", dbos_database_url).configure(park_after=park_after)
    with pytest.raises(TypeError, match="duration"):
        DBOS("parking", dbos_database_url).configure(park_after="soon")


async def test_any_process_goes_on_with_what_another_has_parked(dbos_database_url: str) -> None:
    first, second = App(dbos_database_url), App(dbos_database_url)
    async with first.dbos:
        await first.start("w", HOUR)
        await first.parked()
    async with second.dbos:
        await advance(HOUR)
        assert await second.result() == "done"
    assert (first.steps, second.steps) == (["begin"], ["slept 0"])


async def test_two_hundred_parks_bury_nobody(app: App) -> None:
    async with app.dbos, asyncio.timeout(120):
        handle = await app.start("w", 0.1, 200)
        assert await handle.get_result() == "done"
        assert (await app.status()).recovery_attempts <= 1
    assert app.steps == ["begin", *[f"slept {number}" for number in range(200)]]


async def test_what_is_parked_is_garbage(app: App) -> None:
    async with app.dbos:
        handles = [await app.start(f"w-{i}", HOUR) for i in range(50)]
        for i in range(50):
            await app.parked(f"w-{i}")
        del handles
        gc.collect()
        executor = app.dbos.launched()
        left = [each for each in gc.get_objects() if isinstance(each, Execution)]
        assert not [each for each in left if each.executor is executor]


async def test_many_that_come_due_at_once_all_go_on(dbos_database_url: str) -> None:
    app = App(dbos_database_url)
    async with app.dbos, asyncio.timeout(60):
        handles = [await app.start(f"w-{i}", HOUR) for i in range(1_200)]
        while app.running:
            await asyncio.sleep(0.01)
        [delayed] = await app.dbos.count_workflows(status="DELAYED")
        assert delayed.count == 1_200
        await advance(HOUR)
        assert await asyncio.gather(*[h.get_result() for h in handles]) == ["done"] * 1_200


async def test_what_comes_due_together_goes_on_in_the_order_of_its_time(app: App) -> None:
    queue = app.dbos.queue("queue", worker_concurrency=1, park=True)
    went_on: list[int] = []

    @app.dbos.workflow(name="flow")
    async def flow(seconds: int) -> None:
        await app.dbos.sleep(seconds)
        went_on.append(seconds)

    async with app.dbos:
        due = [HOUR + 3, HOUR + 1, HOUR + 2]
        handles = [await queue.enqueue(flow.with_options(workflow_id=f"w-{i}"), i) for i in due]
        for seconds in due:
            await app.parked(f"w-{seconds}")
        await advance(2 * HOUR)
        for handle in handles:
            await handle.get_result(timeout=PATIENCE)
    assert went_on == sorted(due)


# Who waits for it


async def test_a_caller_waits_on_while_its_workflow_is_parked(app: App) -> None:
    async with app.dbos:
        call = asyncio.create_task(app.sleeper(HOUR))
        while not await app.dbos.list_workflows(status="DELAYED"):
            await asyncio.sleep(0.01)
        assert not call.done()
        await advance(HOUR)
        assert await asyncio.wait_for(call, PATIENCE) == "done"


async def test_a_parent_waits_on_in_memory_while_its_child_is_parked(app: App) -> None:
    @app.dbos.workflow(name="parent")
    async def parent() -> str:
        handle = await app.dbos.start_workflow(app.sleeper.with_options(workflow_id="w"), HOUR)
        return await handle.get_result()

    async with app.dbos:
        handle = await app.dbos.start_workflow(parent.with_options(workflow_id="parent"))
        await app.parked()
        assert (await app.status("parent")).status == "PENDING"
        await advance(HOUR)
        assert await handle.get_result(timeout=PATIENCE) == "done"


# Several tasks


async def branches(app: App, how: str) -> list[str]:
    async def branch(name: str, seconds: float) -> str:
        await app.dbos.sleep(seconds)
        return await app.note(name)

    if how == "gather":
        return await asyncio.gather(branch("a", HOUR), branch("b", 2 * HOUR))
    if how == "nested gather":
        inner = asyncio.gather(branch("b", 2 * HOUR))
        first, [second] = await asyncio.gather(branch("a", HOUR), inner)
        return [first, second]
    if how == "tasks":
        tasks = [asyncio.create_task(branch("a", HOUR)), asyncio.create_task(branch("b", 2 * HOUR))]
        return [await task for task in tasks]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch("a", HOUR)), group.create_task(branch("b", 2 * HOUR))]
    return [task.result() for task in tasks]


@pytest.mark.parametrize("how", ["gather", "nested gather", "tasks", "group"])
async def test_branches_that_all_sleep_are_parked_until_the_first_is_due(
    app: App, how: str
) -> None:
    @app.dbos.workflow(name="flow")
    async def flow() -> list[str]:
        return await branches(app, how)

    async with app.dbos:
        handle = await app.dbos.start_workflow(flow.with_options(workflow_id="w"))
        first = await app.parked()
        assert first.delay_until is not None
        await advance(HOUR)
        while (second := await app.parked()).delay_until == first.delay_until:
            await asyncio.sleep(0.01)
        assert second.delay_until is not None
        assert second.delay_until - first.delay_until >= timedelta(minutes=59)
        assert app.steps == ["a"]
        await advance(HOUR)
        assert await handle.get_result(timeout=PATIENCE) == ["a", "b"]
    assert app.steps == ["a", "b"]


async def busy(app: App, how: str, gate: asyncio.Event) -> None:  # noqa: PLR0912  # a list of cases
    """Sleep, while something goes on."""
    dbos = app.dbos

    @dbos.step(name="work")
    async def work() -> None:
        await gate.wait()

    @dbos.step(name="work_within")
    async def sleeps_within() -> None:
        await gate.wait()

    if how == "a step":
        await asyncio.gather(dbos.sleep(HOUR), work())
    elif how == "an event":
        await asyncio.gather(dbos.sleep(HOUR), gate.wait())
    elif how == "asyncio.sleep":
        await asyncio.gather(dbos.sleep(HOUR), asyncio.sleep(HOUR))
    elif how == "a task":
        outside = asyncio.get_running_loop().create_future()
        outside.add_done_callback(lambda _: None)
        await asyncio.gather(dbos.sleep(HOUR), outside)
    elif how == "asyncio.timeout":
        async with asyncio.timeout(HOUR):
            await dbos.sleep(2 * HOUR)
    elif how == "a timeout around a branch":
        async with asyncio.timeout(HOUR):
            await asyncio.gather(dbos.sleep(2 * HOUR))
    elif how == "wait_for":
        await asyncio.wait_for(dbos.sleep(2 * HOUR), HOUR)
    elif how == "anyio":
        with anyio.fail_after(HOUR):
            await dbos.sleep(2 * HOUR)
    elif how == "a timeout of one's own":
        async with Own(HOUR):
            await dbos.sleep(2 * HOUR)
    elif how == "a workflow beside a sleep":
        other = await app.start("other", 2 * HOUR)
        await dbos.wait([other, asyncio.create_task(dbos.sleep(HOUR))], timeout=3 * HOUR)
    elif how == "asyncio.wait":
        await asyncio.wait([asyncio.create_task(dbos.sleep(HOUR))])
    elif how == "a child":
        await asyncio.gather(dbos.sleep(HOUR), app.sleeper(0))


class Own:
    """A context manager of the user's around a timeout."""

    def __init__(self, seconds: float) -> None:
        self.timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self.timeout.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> Any:
        return await self.timeout.__aexit__(*exc_info)


BUSY = [
    "a timeout of one's own",
    "a workflow beside a sleep",
    "a step",
    "an event",
    "asyncio.sleep",
    "a task",
    "asyncio.timeout",
    "a timeout around a branch",
    "wait_for",
    "anyio",
    "asyncio.wait",
]


@pytest.mark.parametrize("how", BUSY)
async def test_a_workflow_of_which_something_goes_on_stays_in_memory(app: App, how: str) -> None:
    gate = asyncio.Event()

    @app.dbos.workflow(name="flow")
    async def flow() -> None:
        await busy(app, how, gate)

    async with app.dbos:
        await app.dbos.start_workflow(flow.with_options(workflow_id="w"))
        await app.looked_at()


@pytest.mark.parametrize("what", ["a workflow", "a future"])
async def test_who_waits_for_what_may_end_any_moment_is_told_when_it_does(
    app: App, what: str
) -> None:
    outside: list[asyncio.Future[None]] = []

    @app.dbos.workflow(name="flow")
    async def flow() -> int:
        outside.append(asyncio.get_running_loop().create_future())
        other = await app.start("other", HOUR)
        done, _ = await app.dbos.wait([other if what == "a workflow" else outside[0]], timeout=HOUR)
        return len(done)

    async with app.dbos:
        handle = await app.dbos.start_workflow(flow.with_options(workflow_id="w"))
        await app.parked("other")
        assert (await app.status("w")).status == "PENDING"
        if what == "a workflow":
            await app.dbos.cancel_workflow("other")
        else:
            outside[0].set_result(None)
        assert await handle.get_result(timeout=PATIENCE) == 1


async def test_what_was_refused_is_parked_once_nothing_goes_on_any_more(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_async._engine.parking.RECHECK", 0.05)
    gate = asyncio.Event()

    @app.dbos.workflow(name="flow")
    async def flow() -> None:
        await busy(app, "an event", gate)

    async with app.dbos:
        await app.dbos.start_workflow(flow.with_options(workflow_id="w"))
        await app.looked_at()
        gate.set()
        await app.parked()


# Managed while it is parked


async def test_cancelled_with_its_parent(app: App) -> None:
    @app.dbos.workflow(name="parent")
    async def parent() -> None:
        await app.dbos.start_workflow(app.sleeper.with_options(workflow_id="w"), HOUR)
        await app.dbos.sleep(HOUR)

    async with app.dbos:
        handle = await app.dbos.start_workflow(parent.with_options(workflow_id="parent"))
        await app.parked()
        await app.parked("parent")
        waiting = asyncio.create_task(handle.get_result())
        await app.dbos.cancel_workflow("parent", cancel_children=True)
        with pytest.raises(WorkflowCancelledError):
            await asyncio.wait_for(waiting, PATIENCE)
        status = await app.status()
        assert (status.status, status.waiting_for) == ("CANCELLED", None)
        await advance(HOUR)
        assert (await app.status()).status == "CANCELLED"


async def test_its_deadline_still_holds(app: App) -> None:
    async with app.dbos:
        flow = app.sleeper.with_options(workflow_id="w", timeout=HOUR / 2)
        handle = await app.dbos.start_workflow(flow, HOUR)
        status = await app.parked()
        assert status.delay_until == status.deadline  # whoever has it then is not late
        await advance(HOUR / 2)
        with pytest.raises(WorkflowTimeoutError):
            await handle.get_result(timeout=PATIENCE)


async def test_resumed_it_goes_on_at_once_and_waits_again(app: App) -> None:
    async with app.dbos:
        handle = await app.start("w", HOUR)
        before = await app.parked()
        await app.dbos.resume_workflow("w")
        while (again := await app.parked()).updated_at == before.updated_at:
            await asyncio.sleep(0.01)
        assert again.delay_until == before.delay_until
        assert again.waiting_for == "sleep"
        await advance(HOUR)
        assert await handle.get_result(timeout=PATIENCE) == "done"
    assert app.steps == ["begin", "slept 0"]


async def test_its_sleep_is_not_a_delay_to_be_changed(app: App) -> None:
    async with app.dbos:
        await app.start("w", HOUR)
        before = await app.parked()
        with pytest.raises(ValueError, match="has not begun"):
            await app.dbos.set_workflow_delay("w", 0)
        assert await app.status() == before


async def test_deleted_forked_and_rewound(app: App) -> None:
    async with app.dbos:
        await app.start("w", HOUR)
        await app.parked()
        fork = await app.dbos.fork_workflow("w", 2)
        await app.parked(fork.workflow_id)
        with pytest.raises(ValueError, match="DELAYED"):
            await app.dbos.rewind_workflow("w", 1)
        await app.dbos.cancel_workflow("w")
        await app.dbos.rewind_workflow("w", 1)
        await app.parked()
        await app.dbos.delete_workflow(fork.workflow_id)
        await advance(HOUR)
        assert await app.result() == "done"
        assert app.steps == ["begin", "begin", "slept 0"]
        assert len(await app.dbos.list_workflows()) == 1


async def test_its_deduplication_id_is_still_taken(app: App) -> None:
    queue = app.dbos.queue("queue")
    flow = app.sleeper.with_options(workflow_id="w", deduplication_id="d")
    async with app.dbos:
        await queue.enqueue(flow, HOUR)
        await app.parked()
        with pytest.raises(DeduplicatedError):
            await queue.enqueue(app.sleeper.with_options(deduplication_id="d"), HOUR)
        async with Client(app.url) as client:
            [status] = await client.list_workflows(status="DELAYED")
        assert (status.queue_name, status.waiting_for) == ("queue", "sleep")


async def test_started_again_under_its_id_it_is_attached_to(app: App) -> None:
    async with app.dbos:
        await app.start("w", HOUR)
        await app.parked()
        again = await app.start("w", HOUR)
        await advance(HOUR)
        assert await again.get_result(timeout=PATIENCE) == "done"
    assert app.steps == ["begin", "slept 0"]


async def test_a_check_of_replays_takes_it_for_what_it_is(app: App) -> None:
    async with app.dbos:
        await app.start("w", HOUR)
        await app.parked()
        [report] = await app.dbos.check_replay()
        assert report.is_ok, report


async def test_what_waits_for_another_version_is_moved_only_with_what_has_begun(app: App) -> None:
    async with app.dbos:
        await app.start("w", HOUR)
        await app.parked()
        async with DBOS("parking", app.url, app_version="2"):
            assert await app.dbos.move_work("1", "2") == 0
            assert await app.dbos.move_work("1", "2", include_pending=True) == 1
        assert (await app.status()).app_version == "2"


async def test_a_shutdown_leaves_it_where_it_is(app: App) -> None:
    async with app.dbos:
        await app.start("w", HOUR)
        before = await app.parked()
    async with Client(app.url) as client:
        [after] = await client.list_workflows()
    assert after == before


# Queues


@pytest.mark.parametrize("limits", [{"worker_concurrency": 1}, {"concurrency": 1}])
async def test_on_a_queue_that_limits_what_runs_it_keeps_its_slot(
    app: App, limits: dict[str, int]
) -> None:
    queue = app.dbos.queue("queue", **limits)
    async with app.dbos:
        await queue.enqueue(app.sleeper.with_options(workflow_id="w"), HOUR)
        second = await queue.enqueue(app.sleeper, 0)
        while not app.steps:
            await asyncio.sleep(0.01)
        await app.looked_at()
        assert await queue.depth() == 1
        await advance(HOUR)
        assert await second.get_result(timeout=PATIENCE) == "done"
    assert app.steps == ["begin", "slept 0", "begin", "slept 0"]


@pytest.mark.parametrize("limits", [{"worker_concurrency": 1}, {"concurrency": 1}])
async def test_on_one_that_opted_in_another_takes_its_place(
    app: App, limits: dict[str, int]
) -> None:
    queue = app.dbos.queue("queue", park=True, **limits)
    async with app.dbos:
        first = await queue.enqueue(app.sleeper.with_options(workflow_id="w"), HOUR)
        second = await queue.enqueue(app.sleeper, 0)
        assert await second.get_result(timeout=PATIENCE) == "done"
        await app.parked()
        await advance(HOUR)
        assert await first.get_result(timeout=PATIENCE) == "done"


async def test_resting_workflows_do_not_block_a_line_without_limits(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_async._engine.line.UNLIMITED_SLOTS", 3)

    @app.dbos.workflow(name="parent")
    async def parent(number: int) -> str:
        await app.dbos.sleep(HOUR)
        return await app.sleeper.with_options(workflow_id=f"child-{number}")(HOUR)

    async with app.dbos:
        handles = [
            await app.dbos.start_workflow(parent.with_options(workflow_id=f"parent-{i}"), i)
            for i in range(10)
        ]
        for i in range(10):
            await app.parked(f"parent-{i}")
        await advance(HOUR)
        for i in range(10):
            await app.parked(f"child-{i}")
        await advance(HOUR)
        results = [await handle.get_result(timeout=PATIENCE) for handle in handles]
    assert results == ["done"] * 10
