"""Where a step belongs: its identity follows the task tree, not time.

Within one asyncio task, steps are numbered in call order, at the call. A task that a workflow
spawns is a branch, named at the spawn by how many steps its parent had called and by its order
among the spawns since then. Names do not depend on which branch ran first, so TaskGroup, gather and
create_task replay as they ran.

    key of a step     2          the root task's second step
    name of a branch  2.1        the first task spawned after it
    key of a step     2.1.3      that branch's third step

A key has an odd number of parts, a branch's name an even one, so no two coincide.

Who knows: a task factory, one a loop, notes each new task's branch in `_branches`, a map from live
tasks; for the first segment of an eager task, which runs before the task can be noted, `_births`
has it. A ContextVar repeats it for threads. While a task runs a step, its branch says so;
tasks that a step spawns belong to the step, not to the tree, and what a callback of the loop spawns
belongs to neither. Another ContextVar says which transaction of the user's code is in: that is so
outside of workflows, too.
"""

import asyncio
import contextvars
import hashlib
import inspect
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from dbos_async import errors

Factory = Callable[..., "asyncio.Future[Any]"]


class RunningStep:
    """A step that runs, as code within it sees it."""

    __slots__ = ("attempt", "begun_by", "is_over", "key", "position")

    def __init__(self, key: str, position: int, begun_by: tuple[str, str] | None = None) -> None:
        self.key = key
        self.position = position
        self.begun_by = begun_by  # the id and the key that outside services know, if others
        self.attempt = 1
        self.is_over = False  # what it left running is outside from then on


class OpenTransaction:
    """A transaction of the user's; code within the block is in it."""

    __slots__ = ("_token", "datasource", "handle", "is_over", "name")

    def __init__(self, name: str, datasource: object, handle: object) -> None:
        self.name = name
        self.datasource = datasource
        self.handle = handle
        self.is_over = False  # what the function left running is outside from then on

    def __enter__(self) -> None:
        self._token = _transaction.set(self)
        _open.add(self)

    def __exit__(self, *exc_info: object) -> None:
        self.is_over = True
        _open.discard(self)
        _transaction.reset(self._token)


class Last(NamedTuple):
    """The last step that a task got recorded."""

    key: str
    completed_at_ms: int


class Call:
    """A step or a verb that a task is in."""

    __slots__ = ("coroutine", "key", "unrecorded")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.key = ""  # the last of its keys; a verb may have several
        self.unrecorded: set[str] = set()

    @property
    def is_under_way(self) -> bool:
        """Whether its task is in it still."""
        return inspect.getcoroutinestate(self.coroutine) in (
            inspect.CORO_SUSPENDED,
            inspect.CORO_RUNNING,
        )

    @property
    def open_keys(self) -> list[str]:
        """What a replay must not get beyond for the call not to return."""
        return sorted(self.unrecorded) or [self.key]


class Limit(Protocol):
    """What a branch knows of `dbos.timeout`."""

    def check_place(self) -> None:
        """The branch is about to go on; raises CancelledError if it must not."""
        ...


class Branch:
    """One task of a running workflow: its name, and how far it has counted."""

    __slots__ = (
        "_spawned",
        "_steps",
        "call",
        "draws",
        "execution",
        "last",
        "limits",
        "path",
        "seed",
        "step",
    )

    def __init__(self, execution: Any, path: str = "", seed: str = "") -> None:
        self.execution = execution
        self.path = path  # the name with a dot behind it; empty for the root
        self.seed = seed
        self.step: RunningStep | None = None  # the step that this task runs just now
        self.last: Last | None = None
        self.limits: tuple[Limit, ...] = ()  # of the blocks that it is in, outermost first
        self.call: Call | None = None  # the last one that it began while any limit was open
        self.draws = 0
        self._steps = 0
        self._spawned = 0

    def next_key(self) -> str:
        """Number the step that is called now.

        Raises:
            CancelledError: a limit expired before it got here, in an earlier run.
        """
        if self.limits:
            self._leave_place()
        self._steps += 1
        self._spawned = 0
        return f"{self.path}{self._steps}"

    def peek_key(self) -> str:
        """The key that the next step will have; nothing is numbered."""
        return f"{self.path}{self._steps + 1}"

    @property
    def place(self) -> tuple[int, int]:
        """How far it has come: its steps, and the tasks that it spawned after the last one."""
        return self._steps, self._spawned

    def spawned(self) -> "Branch":
        """The branch of a task that this one spawns now. Raises as `next_key` does."""
        if self.step is not None:
            inner = Branch(self.execution)
            inner.step = self.step
            return inner
        if self.limits:
            self._leave_place()
        self._spawned += 1
        path = f"{self.path}{self._steps}.{self._spawned}."
        return Branch(self.execution, path, f"{self._basis()}|{path}")

    def recorded(self, key: str, completed_at_ms: int) -> None:
        """This task has got a step recorded: what is drawn from now on depends on it."""
        self.last = Last(key, completed_at_ms)
        self.draws = 0
        if self.call is not None:
            self.call.unrecorded.discard(key)

    def draw(self) -> bytes:
        """Sixteen bytes that a replay draws again: from the last recorded step and a counter."""
        self.draws += 1
        return hashlib.blake2b(f"{self._basis()}|{self.draws}".encode(), digest_size=16).digest()

    def uuid4(self) -> UUID:
        """A UUID of version 4 from the next draw."""
        return UUID(bytes=self.draw(), version=4)

    def _leave_place(self) -> None:
        for limit in self.limits:
            limit.check_place()

    def _basis(self) -> str:
        root = self.execution.root_id
        if self.last is None:
            return f"{root}|{self.seed}"
        return f"{root}|{self.last.key}@{self.last.completed_at_ms}"


def furthest_of(keys: Iterable[str]) -> dict[str, tuple[int, int]]:
    """How far each branch has come: its steps, and the tasks that it spawned after the last one."""
    furthest: dict[str, tuple[int, int]] = {}
    for key in keys:
        numbers = key.split(".")
        for depth in range(0, len(numbers), 2):
            path = "".join(f"{number}." for number in numbers[:depth])
            task = int(numbers[depth + 1]) if depth + 1 < len(numbers) else 0
            furthest[path] = max(furthest.get(path, (0, 0)), (int(numbers[depth]), task))
    return furthest


def branch_of(task: "asyncio.Future[Any]") -> Branch | None:
    """The branch that a task is; None if it is in no tree."""
    return _branches.get(task) if isinstance(task, asyncio.Task) else None


_branches: "weakref.WeakKeyDictionary[asyncio.Task[Any], Branch]" = weakref.WeakKeyDictionary()
_ambient: contextvars.ContextVar[Branch | None] = contextvars.ContextVar("branch", default=None)
_transaction: contextvars.ContextVar[OpenTransaction | None] = contextvars.ContextVar(
    "transaction", default=None
)


_open: set[OpenTransaction] = set()
"""All of this process: mostly none, and then no context need be asked."""


class Birth(NamedTuple):
    """A task that is being made: who makes it, and where it belongs."""

    parent: "asyncio.Task[Any] | None"
    branch: Branch


class _Births(threading.local):
    current: Birth | None = None


_births = _Births()


def current_branch() -> Branch | None:
    """The branch that the calling code runs in; None outside workflows."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread
        return still_on(_ambient.get())
    if task is None:
        return None
    branch = _branches.get(task)
    if branch is None:
        birth = _births.current
        if birth is not None and birth.parent is not task:
            branch = birth.branch
    return still_on(branch)


def still_on(branch: Branch | None) -> Branch | None:
    """The branch, unless it belongs to a step that is over: what a step leaves behind is free."""
    if branch is None or branch.step is None or not branch.step.is_over:
        return branch
    return None


def open_transaction() -> OpenTransaction | None:
    """The transaction that the calling code is in, within workflows and outside."""
    found = _transaction.get() if _open else None
    return None if found is None or found.is_over else found


def calling_branch(what: str) -> Branch | None:
    """The branch of code that calls a step, a workflow or a verb, which is not for transactions.

    Raises:
        ConfigurationError: a transaction calls it; or `asking_branch` raises.
    """
    transaction = open_transaction()
    if transaction is not None:
        raise errors.ConfigurationError(
            f"{what} is called in the transaction {transaction.name!r}, which would stay open "
            f"meanwhile, and {what} would not be undone with it: call it in the workflow, before "
            "or after the transaction. Within one only enqueue, enqueue_many, send and send_many "
            "work, which commit with it"
        )
    return asking_branch()


def asking_branch() -> Branch | None:
    """The branch of code that calls something which transactions may do, too.

    Raises:
        ConfigurationError: a workflow's task calls it, but nobody knows the task's place, because
            a task factory was installed that does not call the one before it.
    """
    branch = current_branch()
    if branch is None:
        around = _ambient.get()
        if around is not None and around.step is None and not around.execution.done.done():
            raise errors.ConfigurationError(
                f"a task of workflow {around.execution.workflow_id} was made past dbos_async: "
                "install task factories before the launch, and let them call the one before them"
            )
    return branch


def current_task() -> "asyncio.Task[Any] | None":
    """The task that runs this code; None in callbacks and before the loop runs."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@contextmanager
def ambient(branch: Branch | None) -> Iterator[None]:
    """Let threads started within the block know their branch."""
    token = _ambient.set(branch)
    try:
        yield
    finally:
        _ambient.reset(token)


class TaskTree:
    """The task factory of one loop. Apps on the same loop share it; the last one takes it down."""

    def __init__(self, inner: Factory | None) -> None:
        self.inner = inner
        self.users = 0
        self._root: Branch | None = None

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> "asyncio.Future[Any]":
        """Make a task, as `loop.set_task_factory` asks for."""
        maker = current_task()
        birth = _births.current
        if birth is not None and birth.parent is maker:  # named already, by a tree around this one
            return self._make(loop, coro, options)
        branch = self._root
        if branch is not None:
            self._root = None
        else:
            parent = current_branch()
            if parent is None:
                with ambient(None):
                    return self._make(loop, coro, options)
            try:
                branch = parent.spawned()
            except asyncio.CancelledError:
                coro.close()
                raise
        _births.current = Birth(maker, branch)
        try:
            with ambient(branch):
                task = self._make(loop, coro, options)
        finally:
            _births.current = birth
        if isinstance(task, asyncio.Task):
            _branches[task] = branch
            if branch.step is None:  # what a step leaves running is not the workflow's to cancel
                branch.execution.tasks.add(task)
                task.add_done_callback(branch.execution.tasks.discard)
        return task

    def start(
        self, coro: Coroutine[Any, Any, Any], root: Branch | None, name: str
    ) -> "asyncio.Task[Any]":
        """A task that begins a tree of its own, or none."""
        loop = asyncio.get_running_loop()
        if root is None:
            return _outside(loop, coro, name)
        # A context of its own: what the caller's holds, a recovery would not have. And not through
        # the loop: somebody may have put a factory over ours.
        context = contextvars.Context()
        context.run(_ambient.set, root)
        if self.inner is None:
            task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, name=name, context=context)
            _branches[task] = root
            return task
        self._root = root
        made = self(loop, coro, context=context)
        assert isinstance(made, asyncio.Task)
        made.set_name(name)
        return made

    def _make(
        self, loop: asyncio.AbstractEventLoop, coro: Any, options: dict[str, Any]
    ) -> "asyncio.Future[Any]":
        if self.inner is not None:
            return self.inner(loop, coro, **options)
        return asyncio.Task(coro, loop=loop, **options)


def _outside(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], name: str
) -> "asyncio.Task[Any]":
    """A task that is in no tree, though a workflow's task may be what asks for it."""
    context = contextvars.copy_context()
    context.run(_ambient.set, None)
    return asyncio.Task(coro, loop=loop, name=name, context=context)


@contextmanager
def task_tree() -> Generator[TaskTree, None, None]:
    """Name the tasks of the running loop for the length of the block."""
    loop = asyncio.get_running_loop()
    found = loop.get_task_factory()
    if isinstance(found, TaskTree):
        tree = found
    else:
        tree = TaskTree(found)
        loop.set_task_factory(tree)
    tree.users += 1
    try:
        yield tree
    finally:
        tree.users -= 1
        if tree.users == 0 and loop.get_task_factory() is tree:
            loop.set_task_factory(tree.inner)
