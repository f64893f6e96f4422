"""Other code for workflows that are under way: a patch asks which of the two a run began on.

A run that comes to `patch("x")` for the first time takes the new path and records a marker, a step
of the name `DBOS.patch-x`. A replay finds the marker and takes it again. A run of the old code has
no marker there; it has passed the place if its branch has recorded anything that comes after it,
and then it takes the old path, as if the call were not there: it gets no number.

`deprecate_patch("x")` stands where the old path is gone: it steps over a marker and records none.

Branches ask for themselves: what comes after is told by the keys of their own steps and of the
tasks that they spawned, and by the steps that their ancestors called after them. If the process
dies before the marker has landed, the replay asks again, and nothing of the new path has run.
"""

from collections.abc import Coroutine
from typing import Any, Final

from dbos_async import errors
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.execution import Execution
from dbos_async._engine.steps import StepDefinition
from dbos_async._store import codec

PREFIX: Final = "DBOS.patch-"


def patch(name: str) -> Coroutine[Any, Any, bool]:
    """Whether the calling workflow takes the new path; decided now, recorded when awaited.

    Raises:
        ConfigurationError: no workflow calls it, or a step does.
    """
    branch = _branch_of("patch", name)
    execution: Execution = branch.execution
    recorded = execution.history.get(branch.peek_key())
    if recorded is None:
        is_new = not _has_passed(branch, PREFIX + name)
    else:
        is_new = recorded.name == PREFIX + name
    return _marked(branch, name) if is_new else _answer(value=False)


def deprecate_patch(name: str) -> Coroutine[Any, Any, bool]:
    """True, always; a marker that the calling workflow has here is stepped over.

    Raises:
        ConfigurationError: no workflow calls it, or a step does.
    """
    branch = _branch_of("deprecate_patch", name)
    execution: Execution = branch.execution
    recorded = execution.history.get(branch.peek_key())
    if recorded is not None and recorded.name == PREFIX + name:
        return _marked(branch, name)
    return _answer(value=True)


def _has_passed(branch: Branch, marker: str) -> bool:
    """Whether the recorded run came further than this place, or may have.

    A branch leaves no record of its end. Once one that it stems from has called a step after the
    spawn, it may have ended on the old path, so it stays there; unless it has the patch's marker.
    """
    execution: Execution = branch.execution
    if execution.furthest(branch.path) > branch.place:
        return True
    numbers = branch.path.split(".")[:-1]
    went_on = any(
        execution.furthest("".join(f"{number}." for number in numbers[:depth]))[0]
        > int(numbers[depth])
        for depth in range(0, len(numbers), 2)
    )
    return went_on and not any(
        step.name == marker and key.rpartition(".")[0] == branch.path.removesuffix(".")
        for key, step in execution.history.items()
    )


def _branch_of(verb: str, name: str) -> Branch:
    branch = calling_branch(f"{verb}({name!r})")
    if branch is not None and branch.step is None:
        return branch
    where = "a step calls it" if branch is not None else "no workflow calls it"
    raise errors.ConfigurationError(
        f"{verb}({name!r}) decides which code a workflow goes on with, but {where}: call it in the "
        f"body of a workflow, as in `if await dbos.{verb}({name!r}):`"
    )


def _marked(branch: Branch, name: str) -> Coroutine[Any, Any, bool]:
    async def mark() -> bool:
        return True

    step = StepDefinition(PREFIX + name, mark, decode=codec.decoder(bool), is_internal=True)
    called: Coroutine[Any, Any, bool] = branch.execution.executor.steps.call(branch, step, (), {})
    return called


async def _answer(*, value: bool) -> bool:
    return value
