"""Whether a workflow does nothing but wait: then it can leave memory, and nothing is missed.

All its tasks must be seen to stand still: each waits in one of the library's waits that end at a
known moment, or for others of these tasks, by awaiting them, in gather, or at the end of a
TaskGroup. Whatever else a task awaits, something may be going on there. So may a timer that will
cancel it: asyncio.timeout is not recorded, and a workflow that it surrounds stays where it is;
`dbos.timeout` is.

A coroutine that waits shows what it awaits, and the garbage collector what is on its stack: there
are the context managers that it is in.
"""

import asyncio
import contextlib
import gc
import inspect
import itertools
import types
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import anyio

from dbos_async._engine import timeouts
from dbos_async._engine.execution import Execution

OURS: Final = str(Path(__file__).parents[1])
"""Where the library's own code is, which sets no timers of this kind."""
GROUP_ENDS: Final = {
    method.__code__
    for name in ("__aexit__", "_aexit")  # the latter from Python 3.13 on
    if (method := getattr(asyncio.TaskGroup, name, None)) is not None
}
GATHERED: Final[type[Any]] = getattr(asyncio.tasks, "_GatheringFuture")  # noqa: B009
EXITS: Final = ("__exit__", "__aexit__")
METHODS: Final = (types.MethodType, types.BuiltinMethodType)
GENERATED: Final[type[Any]] = getattr(contextlib, "_GeneratorContextManagerBase")  # noqa: B009
STACKS: Final[type[Any]] = getattr(contextlib, "_BaseExitStack")  # noqa: B009
TIMEOUT: Final = inspect.unwrap(timeouts.timeout).__code__
"""`dbos.timeout` is recorded, and the parker knows when it expires."""
SAGAS: Final = f"{__package__}.sagas"
"""A saga ends by nothing of its own."""
TIMED: Final = ("dbos_async.", "async_timeout")
"""Modules whose context managers may end a wait."""


def is_still(execution: Execution) -> bool:
    """Whether all that is alive of it waits for a known moment."""
    if execution.steps_running or execution.expiries:
        return False
    if any(wait.until_ms is None and not wait.is_for_tasks for wait in execution.waits):
        return False
    every = [task for task in (execution.task, *execution.tasks) if task is not None]
    tasks = {task for task in every if not task.done()}
    waiting = {wait.task for wait in execution.waits}
    return waiting <= tasks and all(is_blocked(task, waiting, tasks) for task in tasks)


def is_blocked(
    task: "asyncio.Task[Any]",
    waiting: Collection["asyncio.Task[Any] | None"],
    tasks: Collection["asyncio.Task[Any]"],
) -> bool:
    """Whether a task can only go on when its wait ends, or another of the tasks."""
    awaited = getattr(task, "_fut_waiter", None)
    if awaited is None or awaited.done() or task.cancelling():
        return False
    frames = frames_of(task.get_coro())
    if not frames or any(is_timed(frame) for frame in frames):
        return False
    return task in waiting or is_for(awaited, tasks) or ends_group(frames[-1], tasks)


def is_for(awaited: Any, tasks: Collection["asyncio.Task[Any]"]) -> bool:
    """Whether a future is one of the tasks, or gathers some of them."""
    if isinstance(awaited, GATHERED):
        children: Any = getattr(awaited, "_children", [awaited])
        return all(child.done() or is_for(child, tasks) for child in children)
    return awaited in tasks


def ends_group(frame: Any, tasks: Collection["asyncio.Task[Any]"]) -> bool:
    """Whether a TaskGroup waits here for some of the tasks."""
    if not inspect.iscoroutine(frame) or frame.cr_code not in GROUP_ENDS:
        return False
    group = frame.cr_frame.f_locals.get("self") if frame.cr_frame is not None else None
    members: Any = getattr(group, "_tasks", None)
    return bool(members) and all(member in tasks for member in members)


def frames_of(coroutine: Any) -> list[Any]:
    """The coroutines and generators from here to the future that is awaited; none if unknown."""
    frames: list[Any] = []
    while type(coroutine).__name__ != "FutureIter":
        if inspect.iscoroutine(coroutine):
            awaited = coroutine.cr_await
        elif inspect.isgenerator(coroutine):
            awaited = coroutine.gi_yieldfrom
        else:
            return []
        frames.append(coroutine)
        coroutine = awaited
    return frames


def is_timed(frame: Any) -> bool:
    """Whether code of the user's is in a context that may end by itself."""
    code = frame.cr_code if inspect.iscoroutine(frame) else frame.gi_code
    if code.co_filename.startswith(OURS):
        return False
    return any(may_end(manager) for manager in managers_on(gc.get_referents(frame)))


def managers_on(stack: list[Any]) -> Iterator[Any]:
    """The context managers that a frame is in, by their `__exit__`, which it will call.

    From Python 3.14 on it is a function, and the manager lies behind it.
    """
    pairs: Iterator[tuple[Any, Any]] = itertools.pairwise([*stack, None])
    for method, after in pairs:
        if type(method) in METHODS and method.__name__ in EXITS:
            yield method.__self__
        elif type(method) is types.FunctionType and method.__name__ in EXITS:
            yield after


def may_end(manager: Any) -> bool:
    """Whether a context manager may cancel what it surrounds."""
    if type(manager).__module__ == SAGAS:
        return False
    if isinstance(manager, GENERATED):
        generator: Any = getattr(manager, "gen")  # noqa: B009
        code = generator.ag_code if inspect.isasyncgen(generator) else generator.gi_code
        if code is TIMEOUT:
            return False
        return code.co_filename.startswith(OURS) or any(
            may_end(each) for each in managers_on(gc.get_referents(generator))
        )
    if isinstance(manager, STACKS):
        entered: Any = getattr(manager, "_exit_callbacks", ())
        return any(may_end(each) for each in managers_on([exit_ for _, exit_ in entered]))
    return is_timer(manager) or any(map(is_timer, getattr(manager, "__dict__", {}).values()))


def is_timer(manager: Any) -> bool:
    """Whether it cancels what it surrounds when its time is up."""
    if isinstance(manager, anyio.CancelScope):
        return manager.deadline != float("inf")
    return isinstance(manager, asyncio.Timeout) or type(manager).__module__.startswith(TIMED)
