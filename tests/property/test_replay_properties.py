"""Whatever tree of tasks, steps and children a workflow is, a replay finds every step again."""

import asyncio
import random
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbos_async import DBOS, Workflow

PATIENCE = 20.0
"""Seconds after which what a test waits for will not come."""

Tree = list[Any]

ACTIONS = st.deferred(
    lambda: st.one_of(
        st.just(["step"]),
        st.tuples(st.just("steps"), st.integers(1, 3)).map(list),
        st.tuples(
            st.sampled_from(["gather", "group"]), st.lists(TREES, min_size=1, max_size=3)
        ).map(list),
        st.tuples(st.just("child"), TREES).map(list),
        st.just(["sleep"]),
    )
)
TREES: st.SearchStrategy[Tree] = st.lists(ACTIONS, max_size=3)


class Life:
    """One launch of an app that walks trees, in an order of its own."""

    def __init__(self, url: str, seed: int, *, crash_after: int | None = None) -> None:
        self.dbos = dbos = DBOS("trees", url, app_version="1")
        self.completed: list[str] = []
        self.draws: dict[str, UUID] = {}
        self.crashed = asyncio.Event()
        self._random = random.Random(seed)

        @dbos.step(name="step")
        async def step(label: str) -> list[str | None]:
            await self.dawdle()
            if crash_after is not None and len(self.completed) >= crash_after:
                self.crashed.set()
                await asyncio.Event().wait()
            self.completed.append(label)
            return [label, dbos.step_id]

        async def walk(tree: Tree, label: str) -> list[Any]:
            results: list[Any] = []
            for index, (kind, *rest) in enumerate(tree):
                here = f"{label}/{index}"
                await self.dawdle()
                self.draws[here] = dbos.uuid4()
                match kind:
                    case "step":
                        results.append(await step(here))
                    case "steps":
                        results += await asyncio.gather(
                            *[step(f"{here}.{number}") for number in range(rest[0])]
                        )
                    case "gather":
                        tasks = [walk(each, f"{here}.{i}") for i, each in enumerate(rest[0])]
                        results.append(list(await asyncio.gather(*tasks)))
                    case "group":
                        async with asyncio.TaskGroup() as group:
                            walks = [
                                group.create_task(walk(each, f"{here}.{i}"))
                                for i, each in enumerate(rest[0])
                            ]
                        results.append([each.result() for each in walks])
                    case "child":
                        results.append(await child(rest[0], here))
                    case _:
                        await dbos.sleep(0)
            return results

        @dbos.workflow(name="child")
        async def child(tree: Tree, label: str) -> list[Any]:
            return [dbos.workflow_id, *await walk(tree, label)]

        @dbos.workflow(name="root")
        async def root(tree: Tree) -> list[Any]:
            return await walk(tree, "")

        self.root: Workflow[[Tree], list[Any]] = root

    async def dawdle(self) -> None:
        """Give way to the others, now and then."""
        for _ in range(self._random.choice((0, 0, 1, 3, 10))):
            await asyncio.sleep(0)


@given(tree=TREES, seeds=st.tuples(st.integers(), st.integers()), crash_after=st.integers(0, 12))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_a_replay_gives_every_step_its_own_result_whatever_order_they_ended_in(
    dbos_database_url: str, tree: Tree, seeds: tuple[int, int], crash_after: int
) -> None:
    run = uuid4().hex
    first = Life(dbos_database_url, seeds[0], crash_after=crash_after)
    async with asyncio.timeout(PATIENCE):
        await first.dbos.launch()
        handle = await first.dbos.start_workflow(first.root.with_options(workflow_id=run), tree)
        ended = asyncio.create_task(handle.get_result())
        crash = asyncio.create_task(first.crashed.wait())
        await asyncio.wait([ended, crash], return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, crash):
            task.cancel()
        await asyncio.gather(ended, crash, return_exceptions=True)
        await first.dbos.shutdown(timeout=0)

    second = Life(dbos_database_url, seeds[1])
    async with asyncio.timeout(PATIENCE), second.dbos as dbos:
        result = await (await dbos.retrieve_workflow(run)).get_result()
        ran = first.completed + second.completed
        replayed = dict(second.draws)
        undisturbed = await second.root.with_options(workflow_id=f"{run}-again")(tree)
    assert len(ran) == len(set(ran))
    assert repr(result).replace(run, "") == repr(undisturbed).replace(f"{run}-again", "")
    again = {label: draw for label, draw in replayed.items() if label in first.draws}
    assert again == {label: first.draws[label] for label in again}
