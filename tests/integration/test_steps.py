"""Steps: called once, tried again, told who they are; plain calls where no workflow is."""

import asyncio
import functools
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

import pytest

from dbos_async import DBOS, Retry, StepRetriesExhaustedError, Workflow

AT_ONCE = Retry(max_attempts=3, interval=0)


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("steps", dbos_database_url)


class Flaky:
    """Fails as often as it is told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.calls


async def test_async_and_sync_steps_return_their_results(dbos: DBOS) -> None:
    threads: list[threading.Thread] = []

    @dbos.step
    async def double(number: int) -> int:
        return 2 * number

    @dbos.step()
    def half(number: int, *, rounded: bool = False) -> float:
        threads.append(threading.current_thread())
        return number // 2 if rounded else number / 2

    @dbos.workflow
    async def workflow() -> tuple[int, float, float]:
        return await double(4), await half(5), await half(5, rounded=True)

    async with dbos:
        assert await workflow() == (8, 2.5, 2)
        names = [
            step.name
            for step in await dbos.list_steps((await dbos.list_workflows())[0].workflow_id)
        ]
    assert [name.rpartition(".")[2] for name in names] == ["double", "half", "half"]
    assert threading.main_thread() not in threads


async def test_a_sync_step_does_not_hold_up_the_loop(dbos: DBOS) -> None:
    release = threading.Event()

    @dbos.step
    def wait() -> bool:
        return release.wait(10)

    @dbos.workflow()
    async def workflow() -> bool:
        return await wait()

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        await asyncio.sleep(0)
        release.set()
        assert await handle.get_result() is True


async def test_a_failing_step_is_tried_again_until_it_works(dbos: DBOS) -> None:
    flaky = Flaky(OSError("1"), OSError("2"))
    attempts: list[int] = []

    @dbos.step(retry=AT_ONCE)
    async def step() -> int:
        attempts.append(dbos.attempt)
        return await flaky()

    @dbos.workflow()
    async def workflow() -> int:
        return await step()

    async with dbos:
        assert await workflow() == 3
    assert attempts == [1, 2, 3]


async def test_a_step_without_retry_is_called_once_and_raises_what_it_raised(dbos: DBOS) -> None:
    flaky = Flaky(OSError("only"))

    @dbos.workflow()
    async def workflow() -> str:
        try:
            await dbos.step(flaky, name="flaky")()
        except OSError as exc:
            return str(exc)
        return "no error"

    async with dbos:
        assert await workflow() == "only"
    assert flaky.calls == 1


async def test_exhausted_retries_raise_one_error_with_all_attempts_errors(lives: Any) -> None:
    seen: list[StepRetriesExhaustedError] = []
    flaky = Flaky(OSError("first"), ValueError("second"), KeyError("third"))

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="exhausted")
        async def workflow() -> None:
            try:
                await dbos.step(flaky, name="flaky", retry=AT_ONCE)()
            except StepRetriesExhaustedError as exc:
                seen.append(exc)
            await life.halt()

        return workflow

    await lives.both(declare)
    assert flaky.calls == 3
    assert len(seen) == 2
    for error in seen:  # the first run's and the replay's
        assert [type(each) for each in error.errors] == [OSError, ValueError, KeyError]
        assert [each.args for each in error.errors] == [("first",), ("second",), ("third",)]
        assert isinstance(error.__cause__, KeyError)
        assert "'flaky'" in str(error)
        assert "3" in str(error)


async def test_exhausted_retries_reach_whoever_awaits_the_workflow(dbos: DBOS) -> None:
    @dbos.step(retry=Retry(max_attempts=2, interval=0))
    async def fail() -> None:
        raise ValueError("always")

    @dbos.workflow()
    async def workflow() -> None:
        await fail()

    async with dbos:
        with pytest.raises(StepRetriesExhaustedError) as raised:
            await workflow()
    assert [str(each) for each in raised.value.errors] == ["always", "always"]
    assert isinstance(raised.value.__cause__, ValueError)


async def test_only_errors_that_retry_on_wants_are_tried_again(dbos: DBOS) -> None:
    @dbos.workflow()
    async def workflow(which: int) -> int:
        flaky, retry_on = Flaky(OSError("again"), OSError("again")), choices[which][0]
        retry = Retry(max_attempts=5, interval=0, retry_on=retry_on)
        try:
            await dbos.step(flaky, name="flaky", retry=retry)()
        except OSError:
            assert flaky.calls == 1
        return flaky.calls

    choices: list[tuple[Any, int]] = [
        (OSError, 3),
        (ValueError, 1),
        ((ValueError, OSError), 3),
        (lambda error: "again" in str(error), 3),
        (lambda error: "never" in str(error), 1),
    ]
    async with dbos:
        for which, (_, calls) in enumerate(choices):
            assert await workflow(which) == calls


async def test_a_timeout_counts_for_each_attempt(dbos: DBOS) -> None:
    attempts: list[int] = []

    @dbos.step(timeout=timedelta(milliseconds=20), retry=AT_ONCE)
    async def slow_at_first() -> int:
        attempts.append(dbos.attempt)
        if dbos.attempt < 3:
            await asyncio.Event().wait()
        return dbos.attempt

    @dbos.step(name="slow", timeout=0.02)
    async def slow() -> None:
        await asyncio.Event().wait()

    @dbos.workflow()
    async def workflow() -> list[Any]:
        result: list[Any] = [await slow_at_first()]
        try:
            await slow()
        except TimeoutError as exc:
            result.append(str(exc))
        return result

    async with dbos:
        first, message = await workflow()
    assert first == 3
    assert attempts == [1, 2, 3]
    assert "'slow'" in message


async def test_a_sync_step_times_out_too(dbos: DBOS) -> None:
    release = threading.Event()

    @dbos.step(timeout=0.02)
    def slow() -> None:
        release.wait(10)

    @dbos.workflow()
    async def workflow() -> str:
        try:
            await slow()
        except TimeoutError:
            return "late"
        return "in time"

    async with dbos:
        assert await workflow() == "late"
        release.set()


async def test_any_callable_is_a_step_without_a_decorator(dbos: DBOS) -> None:
    def plain(number: int) -> str:
        return f"plain {number}"

    async def coroutine(number: int) -> str:
        return f"async {number}"

    @dbos.workflow()
    async def workflow() -> list[Any]:
        return [
            await dbos.step(plain, name="plain")(3),
            await dbos.step(coroutine)(4),
            await dbos.step(functools.partial(plain, 5), name="partial")(),
            await dbos.step(functools.partial(coroutine, 6))(),
            await dbos.step(lambda: 7, name="seven")(),
            await dbos.step(Flaky(), name="object")(),
            await dbos.step(max, name="builtin")(1, 2),
            await dbos.step(lambda: coroutine(8), name="returns a coroutine")(),
            await dbos.step(coroutine, name="retried", retry=AT_ONCE)(9),
        ]

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        assert await handle.get_result() == [
            "plain 3", "async 4", "plain 5", "async 6", 7, 1, 2, "async 8", "async 9",
        ]  # fmt: skip
        names = [step.name for step in await dbos.list_steps(handle.workflow_id)]
    assert names[0] == "plain"
    assert names[1] == coroutine.__qualname__
    assert names[2] == "partial"
    assert names[3] == coroutine.__qualname__


async def test_a_step_within_a_step_is_a_plain_call(dbos: DBOS) -> None:
    seen: list[Any] = []

    @dbos.step
    async def inner() -> object:
        seen.append((dbos.step_id, dbos.attempt))
        return seen  # no value is stored, so any may be returned

    @dbos.step
    def sync_inner() -> str | None:
        return dbos.step_id

    @dbos.step
    async def outer() -> list[Any]:
        same = await inner() is seen
        await dbos.sleep(0)
        return [same, await sync_inner(), dbos.step_id]

    @dbos.workflow()
    async def workflow() -> list[Any]:
        return await outer()

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        assert await handle.get_result() == [True, "1", "1"]
        assert len(await dbos.list_steps(handle.workflow_id)) == 1
    assert seen == [("1", 1)]


async def test_a_step_outside_workflows_is_a_plain_call_launched_or_not(dbos: DBOS) -> None:
    sentinel = object()

    @dbos.step(retry=AT_ONCE)
    async def step() -> object:
        return sentinel

    @dbos.step
    def sync_step(number: int) -> tuple[int, str | None, str | None]:
        return number, dbos.workflow_id, dbos.step_id

    assert await step() is sentinel
    assert await sync_step(1) == (1, None, None)
    async with dbos:
        assert await step() is sentinel
        assert await sync_step(2) == (2, None, None)
        assert await dbos.list_workflows() == []
    assert await step() is sentinel


async def test_outside_workflows_there_are_no_ids(dbos: DBOS) -> None:
    assert (dbos.workflow_id, dbos.step_id, dbos.attempt) == (None, None, 1)
    keys = {dbos.idempotency_key, dbos.idempotency_key}
    assert len({uuid.UUID(key) for key in keys}) == 2


async def test_steps_know_who_they_are_in_threads_and_tasks_too(dbos: DBOS) -> None:
    def told() -> list[Any]:
        return [dbos.workflow_id, dbos.step_id, dbos.attempt, dbos.idempotency_key]

    @dbos.step
    async def in_task() -> list[Any]:
        return told()

    @dbos.step
    def in_thread() -> list[Any]:
        return told()

    @dbos.step
    async def in_tasks_of_its_own() -> list[Any]:
        async def other() -> list[Any]:
            return told()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(other()) for _ in range(2)]
        return [*(task.result() for task in tasks), await asyncio.to_thread(told), told()]

    @dbos.workflow()
    async def workflow() -> list[Any]:
        return [
            dbos.workflow_id,
            dbos.step_id,
            await in_task(),
            await in_thread(),
            await in_tasks_of_its_own(),
            await in_task(),
        ]

    async with dbos:
        handle = await dbos.start_workflow(workflow.with_options(workflow_id="w"))
        own, none, *told_by = await handle.get_result()
    assert (own, none) == ("w", None)
    assert told_by[0] == ["w", "1", 1, "w-1"]
    assert told_by[1] == ["w", "2", 1, "w-2"]
    assert told_by[2] == [["w", "3", 1, "w-3"]] * 4
    assert told_by[3] == ["w", "4", 1, "w-4"]


async def test_the_idempotency_key_stays_over_attempts_and_recoveries(lives: Any) -> None:
    keys: list[tuple[int, str]] = []

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.step(retry=AT_ONCE)
        async def step() -> None:
            keys.append((dbos.attempt, dbos.idempotency_key))
            if dbos.attempt == 1:
                raise OSError
            await life.halt()

        @dbos.workflow(name="keyed")
        async def workflow() -> None:
            await asyncio.gather(asyncio.create_task(step()), asyncio.create_task(step()))

        return workflow

    await lives.both(declare)
    assert {attempt for attempt, _ in keys} == {1, 2}
    assert len({key for _, key in keys}) == 2
    assert len(keys) == 8


async def test_step_methods_need_no_registered_instance(dbos: DBOS) -> None:
    class Shop:
        def __init__(self, rate: int) -> None:
            self.rate = rate

        @dbos.step
        async def price(self, cents: int) -> int:
            return cents * self.rate

        @dbos.step
        def label(self, text: str) -> str:
            return f"{text} {self.rate}"

        @staticmethod
        @dbos.step
        async def tax(cents: int) -> int:
            return cents // 5

        @dbos.step
        @staticmethod
        def discount(cents: int) -> int:
            return cents // 2

    shop = Shop(3)

    @dbos.workflow()
    async def workflow() -> list[Any]:
        return [
            await shop.price(100),
            await shop.label("rate"),
            await Shop.tax(100),
            await shop.tax(50),
            await Shop.discount(100),
            await shop.discount(50),
        ]

    async with dbos:
        assert await workflow() == [300, "rate 3", 20, 10, 50, 25]
    assert await shop.price(1) == 3


async def test_with_options_changes_one_call_only(dbos: DBOS) -> None:
    flaky = Flaky(OSError("1"), OSError("2"))

    @dbos.step(retry=AT_ONCE)
    async def step() -> int:
        return await flaky()

    @dbos.workflow()
    async def workflow() -> list[Any]:
        results: list[Any] = []
        try:
            await step.with_options(retry=None, name="impatient")()
        except OSError as exc:
            results.append(str(exc))
        results.append(await step())
        return results

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        assert await handle.get_result() == ["1", 3]
        first, second = await dbos.list_steps(handle.workflow_id)
    assert first.name == "impatient"
    assert isinstance(first.error, OSError)
    assert second.name != "impatient"


async def test_a_task_that_a_step_leaves_behind_outlives_the_workflow(dbos: DBOS) -> None:
    """Clients that connect lazily keep a task that reads; it is theirs, not the workflow's."""
    kept: list[asyncio.Task[str]] = []
    finish = asyncio.Event()

    async def read() -> str:
        await finish.wait()
        return "read"

    @dbos.step
    async def connect() -> None:
        kept.append(asyncio.create_task(read()))

    @dbos.workflow()
    async def workflow() -> None:
        await connect()

    async with dbos:
        await workflow()
        finish.set()
        assert await kept[0] == "read"


async def test_many_sync_steps_run_at_the_same_time_but_not_more_than_allowed(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("threads", dbos_database_url, max_threads=3)
    lock = threading.Lock()
    running = peak = 0

    @dbos.step
    def work() -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(*[work() for _ in range(12)])

    async with dbos:
        await workflow()
    assert 2 <= peak <= 3
