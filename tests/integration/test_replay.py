"""What a replay gets: the same steps under the same names, whatever ran first the first time."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, DivergenceError, Workflow, WorkflowConflictError


@dataclass
class Order:
    name: str
    at: datetime


class Turnstile:
    """Lets its numbers through in a given order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self._gates = {number: asyncio.Event() for number in order}
        self._next = dict(pairwise(order))
        self._gates[order[0]].set()

    async def turn_of(self, number: int) -> None:
        await self._gates[number].wait()

    def done(self, number: int) -> None:
        if number in self._next:
            self._gates[self._next[number]].set()


def branching(
    life: Any,
    order: tuple[int, ...],
    calls: list[str],
    spawn: Callable[[list[Awaitable[list[str]]]], Awaitable[list[list[str]]]],
) -> Workflow[[], list[list[str]]]:
    """Three branches of two steps each, which end in this order."""
    turns = Turnstile(order)
    dbos: DBOS = life.dbos

    @dbos.step
    async def work(what: str) -> str:
        calls.append(what)
        return f"{what} in life {life.number}"

    async def branch(number: int) -> list[str]:
        await turns.turn_of(number)
        results = [await work(f"{number}a"), await work(f"{number}b")]
        turns.done(number)
        return results

    @dbos.workflow(name="branching")
    async def workflow() -> list[list[str]]:
        results = await spawn([branch(number) for number in (1, 2, 3)])
        await life.halt()
        results.append([await work("last")])
        return results

    return workflow


async def gathered(branches: list[Awaitable[list[str]]]) -> list[list[str]]:
    return list(await asyncio.gather(*branches))


async def grouped(branches: list[Any]) -> list[list[str]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch) for branch in branches]
    return [task.result() for task in tasks]


async def created(branches: list[Any]) -> list[list[str]]:
    tasks = [asyncio.create_task(branch) for branch in branches]
    return [await task for task in tasks]


async def completed(branches: list[Any]) -> list[list[str]]:
    tasks = [asyncio.create_task(branch) for branch in branches]
    await asyncio.wait(tasks)
    return [task.result() for task in tasks]


@pytest.mark.parametrize(
    ("order", "spawn"),
    [
        ((1, 2, 3), gathered),
        ((3, 2, 1), gathered),
        ((3, 2, 1), grouped),
        ((2, 3, 1), grouped),
        ((2, 3, 1), created),
        ((1, 2, 3), completed),
    ],
)
async def test_branches_that_end_in_another_order_replay_their_own_steps(
    lives: Any, order: tuple[int, ...], spawn: Any
) -> None:
    calls: list[str] = []
    second = tuple(reversed(order))
    result = await lives.both(
        lambda life: branching(life, order if life.is_first else second, calls, spawn)
    )
    assert result == [
        *([f"{n}a in life 1", f"{n}b in life 1"] for n in (1, 2, 3)),
        ["last in life 2"],
    ]
    assert sorted(calls) == ["1a", "1b", "2a", "2b", "3a", "3b", "last"]


async def test_half_done_branches_go_on_where_each_of_them_was(lives: Any) -> None:
    calls: list[str] = []

    def declare(life: Any) -> Workflow[[], list[list[str]]]:
        dbos: DBOS = life.dbos
        standing = asyncio.Semaphore(0)

        @dbos.step
        async def work(what: str) -> str:
            calls.append(what)
            return f"{what}{life.number}"

        async def branch(name: str, steps: int, done: int) -> list[str]:
            results = [await work(f"{name}{number}") for number in range(done)]
            standing.release()
            if life.is_first:
                await asyncio.Event().wait()
            return results + [await work(f"{name}{number}") for number in range(done, steps)]

        @dbos.workflow(name="half")
        async def workflow() -> list[list[str]]:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(branch(name, 3, done))
                    for name, done in (("a", 0), ("b", 1), ("c", 3))
                ]
                for _ in tasks:
                    await standing.acquire()
                await life.halt()
            return [task.result() for task in tasks]

        return workflow

    assert await lives.both(declare) == [
        ["a02", "a12", "a22"],
        ["b01", "b12", "b22"],
        ["c01", "c11", "c21"],
    ]
    assert len(calls) == len(set(calls)) == 9


async def test_nested_groups_with_children_replay(lives: Any) -> None:
    ran: list[str] = []

    def declare(life: Any) -> Workflow[[], Any]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def leaf(name: str) -> str:
            ran.append(name)
            return f"{name}{life.number}"

        @dbos.workflow(name="child")
        async def child(name: str) -> str:
            return await leaf(f"{name}/child")

        async def inner(name: str) -> list[str]:
            return list(await asyncio.gather(leaf(f"{name}/x"), child(name), leaf(f"{name}/y")))

        async def outer(name: str) -> list[list[str]]:
            head = [await leaf(f"{name}/head")]
            return [head, *await asyncio.gather(inner(f"{name}/1"), inner(f"{name}/2"))]

        @dbos.workflow(name="nested")
        async def workflow() -> Any:
            results = await asyncio.gather(outer("a"), outer("b"))
            await life.halt()
            return [*results, await child("last")]

        return workflow

    *branches, last = await lives.both(declare)
    for name, (head, first, second) in zip("ab", branches, strict=True):
        assert head == [f"{name}/head1"]
        assert first == [f"{name}/1/x1", f"{name}/1/child1", f"{name}/1/y1"]
        assert second == [f"{name}/2/x1", f"{name}/2/child1", f"{name}/2/y1"]
    assert last == "last/child2"
    assert len(ran) == len(set(ran)) == 15


async def test_step_ids_follow_the_task_tree(dbos_database_url: str) -> None:
    dbos = DBOS("keys", dbos_database_url)

    @dbos.step
    async def where() -> str | None:
        return dbos.step_id

    async def branch() -> list[str | None]:
        return [await where(), await where()]

    @dbos.workflow()
    async def workflow() -> list[Any]:
        first = await where()
        pair = await asyncio.gather(branch(), where())
        return [first, *pair, await where(), await asyncio.create_task(where())]

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        result = await handle.get_result()
        steps = await dbos.list_steps(handle.workflow_id)
    # A step that gather is given is called, and so numbered, in the task that gathers.
    assert result == ["1", ["2.1.1", "2.1.2"], "2", "3", "4"]
    assert [step.position for step in steps] == [1, 2, 3, 4, 5, 6]
    assert sorted(step.step_id for step in steps) == ["1", "2", "2.1.1", "2.1.2", "3", "4"]


async def test_wait_for_and_timeout_around_steps_replay(lives: Any) -> None:
    ran: list[int] = []

    def declare(life: Any) -> Workflow[[], list[int]]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def number(value: int) -> int:
            ran.append(value)
            return value

        async def two(value: int) -> int:
            return await number(value) + await number(value + 1)

        @dbos.workflow(name="timed")
        async def workflow() -> list[int]:
            first = await asyncio.wait_for(number(1), 10)
            async with asyncio.timeout(10):
                second = await number(2)
            third = await asyncio.wait_for(two(3), 10)
            fourth = await asyncio.shield(two(5))
            await life.halt()
            return [first, second, third, fourth, await number(7)]

        return workflow

    assert await lives.both(declare) == [1, 2, 7, 11, 7]
    assert ran == [1, 2, 3, 4, 5, 6, 7]


async def test_a_failed_branch_fails_again_and_cancels_its_siblings(lives: Any) -> None:
    ran: list[str] = []

    def declare(life: Any) -> Workflow[[], list[str]]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def fail() -> None:
            ran.append("fail")
            raise ValueError("no")

        async def stand() -> None:
            await asyncio.Event().wait()

        @dbos.workflow(name="failing")
        async def workflow() -> list[str]:
            caught: list[str] = []
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(stand())
                    group.create_task(fail())
            except* ValueError as group_error:
                caught = [str(error) for error in group_error.exceptions]
            await life.halt()
            return caught

        return workflow

    assert await lives.both(declare) == ["no"]
    assert ran == ["fail"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_replay_as_lazy_ones_did(lives: Any) -> None:
    calls: list[str] = []

    def declare(life: Any) -> Workflow[[], list[list[str]]]:
        return branching(life, (1, 2, 3) if life.is_first else (3, 2, 1), calls, grouped)

    await lives.begin(declare)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # 3.12
    try:
        result = await lives.resume(declare)
    finally:
        loop.set_task_factory(None)
    assert result[0] == ["1a in life 1", "1b in life 1"]
    assert len(calls) == 7


async def test_a_task_factory_that_was_there_goes_on_making_the_tasks(
    dbos_database_url: str,
) -> None:
    made: list[str | None] = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(options.get("name"))
        return asyncio.Task(coro, loop=loop, **options)

    dbos = DBOS("factories", dbos_database_url)

    @dbos.step
    async def step() -> str | None:
        return dbos.step_id

    @dbos.workflow()
    async def workflow() -> list[str | None]:
        return list(await asyncio.gather(*[asyncio.create_task(step()) for _ in range(2)]))

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    async with dbos:
        made.clear()
        assert await workflow() == ["1", "2"]
        assert len(made) >= 3
    assert loop.get_task_factory() is factory
    loop.set_task_factory(None)


@pytest.mark.parametrize(
    ("second", "now"),
    [
        ([("pack", 1), ("pay", 2)], "pack"),
        ([("pay", 1), ("pack", 3)], "others"),
        ([("refund", 1), ("pack", 2)], "refund"),
    ],
)
async def test_code_that_took_another_path_is_a_divergence(
    lives: Any, second: list[tuple[str, int]], now: str
) -> None:
    ran: list[str] = []

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="changing")
        async def workflow() -> None:
            for name, value in [("pay", 1), ("pack", 2)] if life.is_first else second:
                await dbos.step(lambda value, name=name: ran.append(name), name=name)(value)
            await life.halt()

        return workflow

    await lives.begin(declare)
    with pytest.raises(DivergenceError) as raised:
        await lives.resume(declare)
    message = str(raised.value)
    for part in ("'changing'", "(w)", "is recorded", now, "patch", "app_version"):
        assert part in message
    assert ran == ["pay", "pack"]


async def test_a_child_called_with_other_arguments_is_a_divergence(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], int]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="child")
        async def child(number: int) -> int:
            return number

        @dbos.workflow(name="parent")
        async def parent() -> int:
            result = await child(1 if life.is_first else 2)
            await life.halt()
            return result

        return parent

    await lives.begin(declare)
    with pytest.raises(DivergenceError, match=r"step 1: 'child' with its arguments is recorded"):
        await lives.resume(declare)


async def test_arguments_that_only_look_different_are_the_same(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], int]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def count(tags: set[str], options: dict[str, int]) -> int:
            return len(tags)

        @dbos.workflow(name="sets")
        async def workflow() -> int:
            letters = "abcdef" if life.is_first else "fedcba"
            result = await count(set(letters), dict.fromkeys(letters, 1))
            await life.halt()
            return result

        return workflow

    assert await lives.both(declare) == 6


async def test_the_first_run_sees_what_a_replay_sees(lives: Any) -> None:
    seen: dict[int, Any] = {}

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def untyped():  # type: ignore[no-untyped-def]  # noqa: ANN202  # as users write it
            return (1, {"a": (2, 3)}, datetime(2026, 1, 1, tzinfo=UTC))

        @dbos.step
        async def typed() -> tuple[int, Order]:
            return 1, Order("o-1", datetime(2026, 1, 1, tzinfo=UTC))

        @dbos.step
        async def nothing() -> None: ...

        @dbos.workflow(name="faithful")
        async def workflow() -> None:
            seen[life.number] = (await untyped(), await typed(), await nothing())
            await life.halt()

        return workflow

    await lives.both(declare)
    assert seen[1] == seen[2]
    assert seen[1] == (
        [1, {"a": [2, 3]}, "2026-01-01T00:00:00Z"],
        (1, Order("o-1", datetime(2026, 1, 1, tzinfo=UTC))),
        None,
    )


async def test_a_step_hands_out_what_it_stored_and_not_the_object_it_returned(
    dbos_database_url: str,
) -> None:
    kept: list[list[int]] = []
    dbos = DBOS("copies", dbos_database_url)

    @dbos.step
    async def numbers() -> list[int]:
        kept.append([1, 2])
        return kept[-1]

    @dbos.workflow()
    async def workflow() -> bool:
        return await numbers() is kept[-1]

    async with dbos:
        assert await workflow() is False


async def test_a_failed_step_fails_the_same_on_replay(lives: Any) -> None:
    seen: list[tuple[type, tuple[Any, ...]]] = []
    ran: list[int] = []

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def fail() -> None:
            ran.append(life.number)
            raise KeyError("missing", 3)

        @dbos.workflow(name="failing")
        async def workflow() -> None:
            try:
                await fail()
            except KeyError as exc:
                seen.append((type(exc), exc.args))
            await life.halt()

        return workflow

    await lives.both(declare)
    assert seen == [(KeyError, ("missing", 3))] * 2
    assert ran == [1]


async def test_the_logger_is_silent_while_a_workflow_replays(
    lives: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbos_async")

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def step(name: str) -> None:
            dbos.logger.info("in step %s", name)

        @dbos.workflow(name="talking")
        async def workflow() -> None:
            dbos.logger.info("begins")
            await step("one")
            dbos.logger.info("goes on")
            await life.halt()
            await step("two")
            dbos.logger.info("ends")

        return workflow

    await lives.both(declare)
    said = [record.getMessage() for record in caplog.records]
    for sentence in ("begins", "in step one", "goes on", "in step two", "ends"):
        matching = [message for message in said if message.startswith(sentence)]
        assert len(matching) == 1, (sentence, said)
        assert "workflow_id='w'" in matching[0]


async def test_replay_of_a_finished_history_runs_no_step_again(
    lives: Any, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    ran: list[int] = []

    def declare(life: Any) -> Workflow[[], int]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def step(number: int) -> int:
            ran.append(number)
            return number

        @dbos.workflow(name="long")
        async def workflow() -> int:
            total = sum([await step(number) for number in range(20)])
            await dbos.sleep(0.01)
            await life.halt()
            return total

        return workflow

    assert await lives.both(declare) == 190
    assert ran == list(range(20))
    rows = await database.fetch("select function_id from dbos.operation_outputs order by 1")
    assert [row[0] for row in rows] == list(range(1, 22))


async def test_a_durable_sleep_wakes_when_it_was_due_and_not_later(lives: Any) -> None:
    def declare(life: Any) -> Workflow[[], float]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="sleeper")
        async def workflow() -> float:
            before = await dbos.now()
            if life.is_first:
                life.reached.set()
            await dbos.sleep(0.3)
            return ((await dbos.now()) - before).total_seconds()

        return workflow

    slept = await lives.both(declare)
    assert slept >= 0.3


@pytest.mark.parametrize("is_queued", [False, True])
async def test_a_child_id_that_another_function_has_is_refused_on_replay_too(
    lives: Any, is_queued: bool
) -> None:
    said: list[str] = []

    def declare(life: Any) -> Workflow[..., Any]:
        queue = life.dbos.queue("queue")

        @life.dbos.workflow(name="one")
        async def one() -> int:
            return 1

        @life.dbos.workflow(name="other")
        async def other() -> int:
            return 2

        @life.dbos.workflow(name="parent")
        async def parent() -> str:
            await one.with_options(workflow_id="taken")()
            named = other.with_options(workflow_id="taken")
            try:
                await (queue.enqueue(named) if is_queued else life.dbos.start_workflow(named))
            except WorkflowConflictError as exc:
                said.append(exc.workflow_id or "")
            await life.halt()
            return "done"

        return parent

    assert await lives.both(declare) == "done"
    assert said == ["taken", "taken"]
