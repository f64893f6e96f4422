"""How the tasks of a workflow are named, without any workflow: keys, branches, draws."""

import asyncio
import contextvars
from typing import Any

from dbos_async._engine.context import Branch, TaskTree, ambient, current_branch, task_tree


class Running:
    """As much of an execution as branches care for."""

    def __init__(self, root_id: str = "root") -> None:
        self.workflow_id = self.root_id = root_id
        self.tasks: set[asyncio.Task[Any]] = set()


def keys_of(branch: Branch, count: int) -> list[str]:
    return [branch.next_key() for _ in range(count)]


def test_steps_count_within_their_branch_and_branches_since_the_last_step() -> None:
    root = Branch(Running())
    assert keys_of(root, 2) == ["1", "2"]
    first, second = root.spawned(), root.spawned()
    assert keys_of(second, 2) == ["2.2.1", "2.2.2"]
    assert keys_of(first, 1) == ["2.1.1"]
    assert keys_of(first.spawned(), 1) == ["2.1.1.1.1"]
    assert keys_of(root, 1) == ["3"]
    assert keys_of(root.spawned(), 1) == ["3.1.1"]


def test_no_two_places_in_a_tree_share_a_key() -> None:
    seen: list[str] = []

    def grow(branch: Branch, depth: int) -> None:
        for _ in range(3):
            if depth:
                grow(branch.spawned(), depth - 1)
                grow(branch.spawned(), depth - 1)
            seen.append(branch.next_key())

    grow(Branch(Running()), 3)
    assert len(seen) == len(set(seen))
    assert all(key.count(".") % 2 == 0 for key in seen)


def test_draws_depend_on_the_root_the_place_and_what_was_recorded() -> None:
    def draws(root_id: str, completed_at_ms: int) -> list[Any]:
        root = Branch(Running(root_id))
        drawn = [root.uuid4(), root.uuid4(), root.spawned().uuid4(), root.spawned().uuid4()]
        root.recorded(root.next_key(), completed_at_ms)
        return [*drawn, root.uuid4(), root.spawned().uuid4()]

    assert draws("a", 1) == draws("a", 1)
    assert len(set(draws("a", 1) + draws("b", 1))) == 12
    assert draws("a", 1)[:4] == draws("a", 2)[:4]
    assert set(draws("a", 1)[4:]).isdisjoint(draws("a", 2)[4:])


async def test_tasks_outside_workflows_are_left_alone() -> None:
    with task_tree() as tree:
        assert asyncio.get_running_loop().get_task_factory() is tree
        assert await asyncio.create_task(asyncio.sleep(0, "done")) == "done"
        assert current_branch() is None
    assert asyncio.get_running_loop().get_task_factory() is None


async def test_the_last_of_several_apps_takes_the_tree_down() -> None:
    loop = asyncio.get_running_loop()
    with task_tree() as one:
        with task_tree() as two:
            assert one is two
        assert loop.get_task_factory() is one
    assert loop.get_task_factory() is None


async def test_a_factory_that_came_on_top_is_not_taken_down() -> None:
    loop = asyncio.get_running_loop()
    with task_tree():
        below = loop.get_task_factory()
        assert isinstance(below, TaskTree)

        def on_top(loop: Any, coro: Any, **options: Any) -> Any:
            return below(loop, coro, **options)

        loop.set_task_factory(on_top)
    assert loop.get_task_factory() is on_top
    assert await asyncio.create_task(asyncio.sleep(0, "works")) == "works"
    loop.set_task_factory(None)


async def test_names_and_contexts_of_tasks_are_passed_on() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    context = contextvars.copy_context()
    context.run(variable.set, "given")
    root = Branch(Running())

    async def look() -> tuple[str, Branch | None]:
        return variable.get(), current_branch()

    async def body() -> list[Any]:
        own = asyncio.create_task(look(), name="named", context=context)
        return [own.get_name(), *await own]

    with task_tree() as tree:
        name, value, branch = await tree.start(body(), root, "root")
    assert (name, value) == ("named", "given")
    assert isinstance(branch, Branch)
    assert branch.path == "0.1."


async def test_threads_learn_their_branch_from_their_context() -> None:
    branch = Branch(Running())
    with ambient(branch):
        assert await asyncio.to_thread(current_branch) is branch
    assert await asyncio.to_thread(current_branch) is None
