"""New code for workflows that are under way: who takes which path, and that a replay agrees."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbos_async import DBOS, Client, ConfigurationError, DivergenceError
from dbos_async._engine.context import furthest_of
from dbos_async.testing import crash_at

Body = Callable[["Shop"], Awaitable[Any]]


class Shop:
    """An app with one workflow, whose body is another from version to version."""

    def __init__(self, url: str, body: Body) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1")
        self.ran: list[str] = []

        @dbos.step(name="step")
        async def step(label: str) -> str:
            self.ran.append(label)
            return label

        @dbos.workflow(name="child")
        async def child(label: str) -> str:
            if await dbos.patch("in the child"):
                return await step(f"{label} patched")
            return await step(label)

        @dbos.workflow(name="buy")
        async def buy() -> Any:
            return await body(self)

        self.step, self.child, self.buy = step, child, buy

    async def steps(self, workflow_id: str) -> list[tuple[str, str]]:
        return [(step.step_id, step.name) for step in await self.dbos.list_steps(workflow_id)]


class Shops:
    """Runs one workflow through versions of the code, up to a checkpoint or to its end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ran: list[str] = []

    async def until(self, checkpoint: int, body: Body, workflow_id: str = "w") -> bool:
        """Die at this checkpoint; whether it was reached."""
        shop = Shop(self.url, body)
        with crash_at(checkpoint) as crash:
            await self._run(shop, workflow_id)
        self.ran += shop.ran
        return crash.happened

    async def result(self, body: Body, workflow_id: str = "w") -> Any:
        shop = Shop(self.url, body)
        try:
            return await self._run(shop, workflow_id)
        finally:
            self.ran += shop.ran

    async def recorded(self, workflow_id: str) -> set[str]:
        """The labels of the steps that are recorded; one in flight at a death may run again."""
        async with Client(self.url) as client:
            steps = await client.list_steps(workflow_id)
        return {step.output for step in steps if step.name == "step"}

    async def replays(self, body: Body, workflow_id: str) -> bool:
        """Whether a check of its replay agrees; it runs nothing."""
        shop = Shop(self.url, body)
        [report] = await shop.dbos.check_replay(workflow_ids=[workflow_id])
        assert not shop.ran
        return report.is_ok

    async def _run(self, shop: Shop, workflow_id: str) -> Any:
        async with asyncio.timeout(20), shop.dbos:
            return await shop.buy.with_options(workflow_id=workflow_id)()

    async def steps(self, workflow_id: str = "w") -> list[tuple[str, str]]:
        shop = Shop(self.url, old)
        async with shop.dbos:
            return await shop.steps(workflow_id)


@pytest.fixture
def shops(dbos_database_url: str) -> Shops:
    return Shops(dbos_database_url)


async def old(shop: Shop) -> list[str]:
    return [await shop.step("a"), await shop.step("b"), await shop.step("c")]


async def patched(shop: Shop) -> list[str]:
    results = [await shop.step("a")]
    if await shop.dbos.patch("x"):
        results.append(await shop.step("x"))
    return [*results, await shop.step("b"), await shop.step("c")]


async def deprecated(shop: Shop) -> list[str]:
    results = [await shop.step("a")]
    await shop.dbos.deprecate_patch("x")
    results.append(await shop.step("x"))
    return [*results, await shop.step("b"), await shop.step("c")]


async def new(shop: Shop) -> list[str]:
    return [await shop.step(label) for label in "axbc"]


# The start is checkpoint 1, the step a is 2, then the marker or b, and so on.


async def test_a_new_run_takes_the_new_path_and_says_so(shops: Shops) -> None:
    assert await shops.result(patched) == ["a", "x", "b", "c"]
    assert await shops.steps() == [
        ("1", "step"),
        ("2", "DBOS.patch-x"),
        ("3", "step"),
        ("4", "step"),
        ("5", "step"),
    ]


async def test_a_run_that_has_passed_the_place_takes_the_old_path(shops: Shops) -> None:
    await shops.until(3, old)
    assert await shops.result(patched) == ["a", "b", "c"]
    assert [name for _, name in await shops.steps()] == ["step"] * 3
    assert shops.ran == ["a", "b", "c"]


@pytest.mark.parametrize("checkpoint", [1, 2])
async def test_a_run_that_had_not_come_there_takes_the_new_path(
    shops: Shops, checkpoint: int
) -> None:
    await shops.until(checkpoint, old)
    assert await shops.result(patched) == ["a", "x", "b", "c"]
    assert shops.ran == ["a", "x", "b", "c"]


@pytest.mark.parametrize("checkpoint", range(1, 8))
async def test_a_run_of_the_new_path_stays_on_it_wherever_it_dies(
    shops: Shops, checkpoint: int
) -> None:
    await shops.until(checkpoint, patched)
    assert await shops.result(patched) == ["a", "x", "b", "c"]
    assert shops.ran == ["a", "x", "b", "c"]


@pytest.mark.parametrize("checkpoint", range(1, 7))
async def test_a_deprecated_patch_accepts_runs_with_the_marker(
    shops: Shops, checkpoint: int
) -> None:
    await shops.until(checkpoint, patched)
    assert await shops.result(deprecated) == ["a", "x", "b", "c"]
    assert shops.ran == ["a", "x", "b", "c"]


@pytest.mark.parametrize("checkpoint", range(1, 6))
async def test_a_deprecated_patch_accepts_runs_without_and_records_none(
    shops: Shops, checkpoint: int
) -> None:
    await shops.until(checkpoint, deprecated)
    assert await shops.result(deprecated) == ["a", "x", "b", "c"]
    assert [name for _, name in await shops.steps()] == ["step"] * 4


@pytest.mark.parametrize("checkpoint", range(1, 6))
async def test_a_patch_is_removed_when_only_runs_of_the_deprecated_one_are_left(
    shops: Shops, checkpoint: int
) -> None:
    await shops.until(checkpoint, deprecated)
    assert await shops.result(new) == ["a", "x", "b", "c"]
    assert shops.ran == ["a", "x", "b", "c"]


async def test_a_patch_that_is_removed_too_early_is_a_divergence_that_names_it(
    shops: Shops,
) -> None:
    await shops.until(3, patched)
    with pytest.raises(DivergenceError, match=r"DBOS\.patch-x.*is recorded"):
        await shops.result(new)


async def test_patches_may_follow_one_another_and_stand_in_loops(shops: Shops) -> None:
    async def once(shop: Shop) -> list[str]:
        return [await shop.step(label) for label in ("a", "b", "a", "b")]

    async def twice(shop: Shop) -> list[str]:
        results: list[str] = []
        for _ in range(2):
            results.append(await shop.step("a"))
            if await shop.dbos.patch("x"):
                results.append(await shop.step("x"))
            if await shop.dbos.patch("y"):
                results.append(await shop.step("y"))
            results.append(await shop.step("b"))
        return results

    await shops.until(4, once)  # a b a
    assert await shops.result(twice) == ["a", "b", "a", "x", "y", "b"]
    assert await shops.result(twice, "fresh") == ["a", "x", "y", "b"] * 2


async def test_a_branch_that_was_spawned_shows_that_the_place_was_passed(shops: Shops) -> None:
    """The step after the patch has no record yet; one of a task that was spawned after it does."""

    async def branches(shop: Shop) -> list[str]:
        async def slow() -> str:
            await asyncio.Event().wait()
            return await shop.step("slow")

        async def fast() -> str:
            return await shop.step("fast")

        return list(await asyncio.gather(slow(), fast()))

    async def before(shop: Shop) -> list[str]:
        return [await shop.step("a"), *await branches(shop)]

    async def after(shop: Shop) -> list[str]:
        async def slow() -> str:
            return await shop.step("slow")

        async def fast() -> str:
            return await shop.step("fast")

        results = [await shop.step("a")]
        if await shop.dbos.patch("x"):
            results.append(await shop.step("x"))
        return [*results, *await asyncio.gather(slow(), fast())]

    await shops.until(3, before)
    assert await shops.steps() == [("1", "step"), ("1.2.1", "step")]
    assert await shops.result(after) == ["a", "slow", "fast"]
    assert shops.ran == ["a", "fast", "slow"]


async def test_a_step_that_was_called_beside_another_shows_it_too(shops: Shops) -> None:
    async def before(shop: Shop) -> Any:
        first, second = shop.step("first"), shop.step("second")
        try:
            await second
            return [await first, "second"]
        finally:
            first.close()  # the run dies before it begins

    async def after(shop: Shop) -> Any:
        new = await shop.dbos.patch("x")
        first, second = shop.step("first"), shop.step("second")
        return [*([await shop.step("x")] if new else []), await first, await second]

    await shops.until(2, before)
    assert await shops.steps() == [("2", "step")]
    assert await shops.result(after) == ["first", "second"]
    assert shops.ran == ["second", "first"]


async def test_each_branch_decides_for_itself(shops: Shops) -> None:
    async def before(shop: Shop) -> Any:
        async def branch(label: str) -> list[str]:
            if label == "late":
                await asyncio.Event().wait()
            return [await shop.step(label), await shop.step(f"{label} 2")]

        return await asyncio.gather(branch("late"), branch("early"))

    async def after(shop: Shop) -> Any:
        async def branch(label: str) -> list[str]:
            new = [await shop.step(f"{label} 0")] if await shop.dbos.patch("x") else []
            return [*new, await shop.step(label), await shop.step(f"{label} 2")]

        return await asyncio.gather(branch("late"), branch("early"))

    await shops.until(2, before)
    assert await shops.result(after) == [["late 0", "late", "late 2"], ["early", "early 2"]]


def branching(*, is_patched: bool, waits: bool = False) -> Body:
    """A branch of two rounds, whose parent calls a step after it, or beside it."""

    async def body(shop: Shop) -> Any:
        async def branch() -> list[str]:
            results: list[str] = []
            for number in range(2):
                results.append(await shop.step(f"in {number}"))
                if is_patched and await shop.dbos.patch("x"):
                    results.append(await shop.step(f"new {number}"))
                if waits:
                    await asyncio.Event().wait()
            return results

        task = asyncio.create_task(branch())
        results = [] if waits else await task
        return [*results, await shop.step("after"), *await task]

    return body


async def test_a_branch_that_has_ended_on_the_old_path_does_nothing_new(shops: Shops) -> None:
    await shops.until(4, branching(is_patched=False))
    assert await shops.steps() == [("0.1.1", "step"), ("0.1.2", "step"), ("1", "step")]
    rounds = ["in 0", "in 1"]
    assert await shops.result(branching(is_patched=True)) == [*rounds, "after", *rounds]
    assert shops.ran == [*rounds, "after"]


async def test_a_branch_that_goes_on_beside_its_parent_stays_on_the_new_path(shops: Shops) -> None:
    await shops.until(5, branching(is_patched=True, waits=True))
    assert sorted(shops.ran) == ["after", "in 0", "new 0"]
    rounds = ["in 0", "new 0", "in 1", "new 1"]
    assert await shops.result(branching(is_patched=True)) == [*rounds, "after", *rounds]
    assert sorted(shops.ran) == ["after", "in 0", "in 1", "new 0", "new 1"]


async def test_a_child_decides_for_itself(shops: Shops) -> None:
    async def parent(shop: Shop) -> Any:
        return await shop.child("c")

    assert await shops.result(parent) == "c patched"
    assert await shops.steps("w-1") == [("1", "DBOS.patch-in the child"), ("2", "step")]


async def test_a_run_of_the_old_path_draws_the_same_random_numbers(shops: Shops) -> None:
    drawn: list[Any] = []

    async def before(shop: Shop) -> None:
        await shop.step("a")
        drawn.append(shop.dbos.uuid4())
        await shop.step("b")

    async def after(shop: Shop) -> None:
        await shop.step("a")
        await shop.dbos.patch("x")
        drawn.append(shop.dbos.uuid4())
        await shop.step("b")

    await shops.until(3, before)
    await shops.result(after)
    assert len(set(drawn)) == 1


@pytest.mark.parametrize("verb", ["patch", "deprecate_patch"])
async def test_a_patch_outside_of_workflows_or_in_a_step_is_refused(
    dbos_database_url: str, verb: str
) -> None:
    dbos = DBOS("shop", dbos_database_url)
    ask = getattr(dbos, verb)

    @dbos.step
    async def inside() -> bool:
        return bool(await ask("x"))

    @dbos.workflow
    async def buy() -> bool:
        return await inside()

    with pytest.raises(ConfigurationError, match="no workflow calls it"):
        await ask("x")
    async with dbos:
        with pytest.raises(ConfigurationError, match="no workflow calls it"):
            await ask("x")
        with pytest.raises(ConfigurationError, match=rf"{verb}\('x'\).*a step calls it"):
            await buy()


@pytest.mark.parametrize("name", ["", "\x00", 1])
async def test_a_patch_has_a_name_that_can_be_stored(name: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="patch's name"):
        DBOS("shop").patch(name)


def test_how_far_branches_have_come_is_told_by_keys() -> None:
    assert furthest_of([]) == {}
    assert furthest_of(["2", "10", "1.1.4", "10.2.1", "10.2.1.3.1"]) == {
        "": (10, 2),
        "1.1.": (4, 0),
        "10.2.": (1, 3),
        "10.2.1.3.": (1, 0),
    }


# Any program, with patches put in between at random: a run takes the old path through each patch
# that it had passed, and the new one through all others, and a replay agrees with it.

Program = list[Any]
ACTIONS: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(st.just("step"), st.lists(PROGRAMS, min_size=1, max_size=3))
)
PROGRAMS: st.SearchStrategy[Program] = st.lists(ACTIONS, max_size=4)


def interpreted(program: Program, patches: frozenset[int] | None, seed: int) -> Body:
    """A body that runs the program; with the patches of these numbers among its actions."""

    async def body(shop: Shop) -> list[str]:
        dawdling = random.Random(seed)

        async def walk(program: Program, label: str) -> list[str]:
            results: list[str] = []
            for place, action in enumerate(program):
                here = f"{label}/{place}"
                is_patched = patches is not None and hash_of(here) in patches
                if is_patched and await shop.dbos.patch(f"p{here}"):
                    results.append(await shop.step(f"new {here}"))
                for _ in range(dawdling.choice((0, 1, 3))):
                    await asyncio.sleep(0)
                if action == "step":
                    results.append(await shop.step(here))
                else:
                    walks = [walk(each, f"{here}.{n}") for n, each in enumerate(action)]
                    results += chain.from_iterable(await asyncio.gather(*walks))
            return results

        return await walk(program, "")

    return body


def hash_of(label: str) -> int:
    """One of four numbers, the same for the same label."""
    return sum(map(ord, label)) % 4


@given(
    program=PROGRAMS,
    patches=st.frozensets(st.integers(0, 3), min_size=1),
    deaths=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seeds=st.tuples(st.integers(), st.integers(), st.integers()),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_program_goes_on_through_any_patches(
    dbos_database_url: str,
    program: Program,
    patches: frozenset[int],
    deaths: tuple[int, int],
    seeds: tuple[int, int, int],
) -> None:
    shops = Shops(dbos_database_url)
    run = uuid4().hex  # not random, which hypothesis seeds alike for each example
    await shops.until(deaths[0], interpreted(program, None, seeds[0]), run)
    assert await shops.replays(interpreted(program, patches, seeds[2]), run)
    await shops.until(deaths[1], interpreted(program, patches, seeds[1]), run)
    assert await shops.replays(interpreted(program, patches, seeds[0]), run)
    ran, recorded = len(shops.ran), await shops.recorded(run)
    result: list[str] = await shops.result(interpreted(program, patches, seeds[2]), run)
    assert await shops.replays(interpreted(program, patches, seeds[1]), run)
    again = set(shops.ran[ran:])
    steps = {label for label in shops.ran if not label.startswith("new")}
    assert not again & recorded, "a recorded step ran again"
    assert set(shops.ran) == set(result)
    assert steps == set(await shops.result(interpreted(program, None, 0), f"{run}-old"))
