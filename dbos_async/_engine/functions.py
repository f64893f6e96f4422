"""What the decorators make: workflows and steps that are called like the functions they were."""

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import (
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from msgspec import structs

from dbos_async import errors
from dbos_async._config import seconds_of
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.executor import Executor
from dbos_async._engine.intake import Call as AnyCall
from dbos_async._engine.options import (
    StepOptions,
    WorkflowOptions,
    checked_roles,
    checked_step_options,
    checked_workflow_options,
)
from dbos_async._engine.outcomes import text_of
from dbos_async._engine.registry import WorkflowDefinition
from dbos_async._engine.steps import StepDefinition, call_plainly
from dbos_async._engine.transacting import no_method
from dbos_async._limits import Limiter, checked_id
from dbos_async._store import codec
from dbos_async._store.arguments import Arguments
from dbos_async._store.payloads import is_reference

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R", covariant=True)


class Source(Protocol):
    """The app or router that a function was decorated with."""

    def launched(self) -> Executor:
        """The executor to run on; raises NotLaunchedError."""
        ...

    def find_launched(self) -> Executor | None:
        """The executor to run on, if there is one."""
        ...


class StepSource(Source, Protocol):
    """One that steps come from."""

    def add_limiter(self, limiter: Limiter) -> None:
        """Note a limiter that a step was given; raises ConfigurationError."""
        ...

    def add_step(self, step: "Step[..., Any]") -> None:
        """Note a step, so that other processes find it by its name."""
        ...


def awaited(function: T) -> T:
    """Tell web frameworks, which ask before they call, that its calls are to be awaited."""
    marked: Any = function
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(marked)
    else:
        marked._is_coroutine = vars(asyncio.coroutines)["_is_coroutine"]  # noqa: SLF001  # as 3.11 does
    return function


class Call(Generic[R]):
    """A workflow with its options and arguments, not started; for `enqueue_many`."""

    def __init__(self, asked: AnyCall) -> None:
        self.asked = asked


class Workflow(Generic[P, R]):
    """A durable function: awaiting a call runs it to its end, over crashes."""

    def __init__(
        self,
        source: Source,
        definition: WorkflowDefinition,
        options: WorkflowOptions | None = None,
        instance: object | None = None,
    ) -> None:
        self._source = source
        self._definition = definition
        self._options = options or WorkflowOptions()
        self._instance = instance
        if definition.function is not None:
            functools.update_wrapper(self, definition.function)
        awaited(self)

    def __set_name__(self, owner: type, name: str) -> None:
        if not (self._definition.is_static or is_static(owner, name)):
            self._definition.owner = owner

    @awaited
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Run the workflow and return its result; within a workflow, as its child.

        If the caller is cancelled, the workflow goes on.

        Raises:
            SerializationError: an argument cannot be stored. Nothing was started.
            WorkflowConflictError: another workflow function has the id; choose another.
            NotAuthorizedError: its caller has no role that it requires.
            WorkflowCancelledError: it was cancelled; `WorkflowTimeoutError`: by its deadline.
            Exception: what the workflow raised.
        """
        branch = inside_workflow(self._definition.name)
        call = self._bound(args, kwargs)
        if branch is not None:
            executor: Executor = branch.execution.executor
            return executor.inner.call_child(branch, call)
        return self._run(call)

    def with_options(self, **options: Unpack[WorkflowOptions]) -> "Workflow[P, R]":
        """This workflow with options for the next call, start or enqueue.

        Raises:
            TypeError: there is no such option.
            ValueError: its value cannot work.
        """
        merged: WorkflowOptions = {**self._options, **checked_workflow_options(options)}
        return Workflow(self._source, self._definition, merged, self._instance)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """This workflow with its arguments, to be enqueued later."""
        return Call(self._bound(args, kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: "Workflow[Concatenate[S, Q], T]", instance: S, owner: type
    ) -> "Workflow[Q, T]": ...
    def __get__(self, instance: Any, owner: type) -> "Workflow[..., Any]":
        """This workflow on an instance, when it is a method."""
        if instance is None or self._definition.owner is None:
            return self
        return Workflow(self._source, self._definition, self._options, instance)

    def __repr__(self) -> str:
        return f"<workflow {self._definition.name}>"

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AnyCall:
        instance = self._instance
        if instance is None and self._definition.owner is not None and args:
            instance, args = args[0], args[1:]
        return AnyCall(self._definition, instance, self._options, args, kwargs)

    async def _run(self, call: AnyCall) -> Any:
        executor = self._source.launched()
        outcome = await executor.result_of(await executor.start(call))
        text = text_of(outcome, allow_pickle=executor.allow_pickle)
        if is_reference(text):
            decode = self._definition.decode
            return await executor.session.payloads.value(text, outcome.workflow_id, decode)
        return self._definition.decode(text)


class Step(Generic[P, R]):
    """A function whose outcome is recorded once, when a workflow calls it."""

    def __init__(
        self,
        source: StepSource,
        definition: StepDefinition,
        instance: object | None = None,
    ) -> None:
        self._source = source
        self._definition = definition
        self._instance = instance
        self._arguments: Arguments | None = None
        functools.update_wrapper(self, definition.function)
        awaited(self)

    @property
    def definition(self) -> StepDefinition:
        """What it does, and how."""
        return self._definition

    @property
    def instance(self) -> object | None:
        """What it is a method of, where it was taken from an instance."""
        return self._instance

    @property
    def arguments(self) -> Arguments:
        """How its arguments are stored, where they are."""
        if self._arguments is None:
            definition = self._definition
            is_given_first = definition.is_method or definition.transaction is not None
            self._arguments = Arguments(definition.function, skip_first=is_given_first)
        return self._arguments

    def __set_name__(self, owner: type, name: str) -> None:
        if not (self._definition.is_static or is_static(owner, name)):
            if self._definition.transaction is not None:
                no_method(self._definition.name)
            self._definition = structs.replace(self._definition, is_method=True)

    @awaited
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Run the step: once, in a workflow; plainly, outside or within another step.

        Raises:
            StepRetriesExhaustedError: every attempt failed.
            DivergenceError: the workflow's code takes another path than the recorded one.
            SerializationError: the result cannot be stored.
            Exception: what the step raised.
        """
        definition = self._definition
        values = args if self._instance is None else (self._instance, *args)
        branch = calling_branch(f"the step {definition.name!r}")
        if branch is None or branch.step is not None:
            idle = self._source.find_launched() if branch is None else branch.execution.executor
            if idle is None:
                return call_plainly(definition, values, kwargs, None)
            return idle.steps.call_outside(definition, values, kwargs)
        executor: Executor = branch.execution.executor
        return executor.steps.call(branch, definition, values, kwargs)

    def with_options(self, **options: Unpack[StepOptions]) -> "Step[P, R]":
        """This step with other options. Raises TypeError and ValueError as the decorator does."""
        definition = optioned(self._definition, options, self._source)
        return Step(self._source, definition, self._instance)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self: "Step[Concatenate[S, Q], T]", instance: S, owner: type) -> "Step[Q, T]": ...
    def __get__(self, instance: Any, owner: type) -> "Step[..., Any]":
        """This step on an instance, when it is a method."""
        if instance is None or not self._definition.is_method:
            return self
        return Step(self._source, self._definition, instance)

    def __repr__(self) -> str:
        return f"<step {self._definition.name}>"


class StepDecorator:
    """`@dbos.step`, `@dbos.step(retry=…)`, and `dbos.step(function, name="x")(*args)`."""

    def __init__(self, source: StepSource, options: StepOptions | None = None) -> None:
        self._source = source
        self._options = options or StepOptions()

    @overload
    def __call__(
        self, function: Callable[P, Awaitable[T]], /, **options: Unpack[StepOptions]
    ) -> Step[P, T]: ...
    @overload
    def __call__(
        self, function: Callable[P, T], /, **options: Unpack[StepOptions]
    ) -> Step[P, T]: ...
    @overload
    def __call__(self, /, **options: Unpack[StepOptions]) -> "StepDecorator": ...
    def __call__(
        self, function: Callable[..., Any] | None = None, /, **options: Unpack[StepOptions]
    ) -> "Step[..., Any] | StepDecorator":
        """Make a step of `function`, or a decorator with these options.

        Raises:
            TypeError: it is no function, or there is no such option.
            ValueError: an option's value cannot work.
        """
        merged: StepOptions = {**self._options, **checked_step_options(options)}
        if function is None:
            return StepDecorator(self._source, merged)
        is_static = isinstance(function, staticmethod)
        if isinstance(function, staticmethod):
            function = function.__func__
        if isinstance(function, Workflow):
            raise TypeError(f"{function!r} is a workflow; a function is one or the other")
        if not callable(function):
            raise TypeError(
                f"a step is made of a function, not of {function!r}: @dbos.step(name=…)"
            )
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{name_of(function)} yields: a step returns one result, so it cannot")
        name = merged.get("name") or name_of(function)
        definition = structs.replace(step_of(name, function), is_static=is_static)
        step: Step[..., Any] = Step(self._source, optioned(definition, merged, self._source))
        self._source.add_step(step)
        return step


def workflow_of(
    function: Any,
    name: str | None,
    max_recovery_attempts: int | None,
    required_roles: Sequence[str],
) -> WorkflowDefinition:
    """The definition of a workflow function.

    Raises:
        TypeError: it is no coroutine function, the limit no number, or the roles no list.
        ValueError: the limit is negative, or a role cannot be stored.
    """
    if max_recovery_attempts is not None:
        if isinstance(max_recovery_attempts, bool) or not isinstance(max_recovery_attempts, int):
            raise TypeError(f"max_recovery_attempts is an int, not {max_recovery_attempts!r}")
        if max_recovery_attempts < 0:
            raise ValueError(f"max_recovery_attempts is negative: {max_recovery_attempts}")
    plain = function.__func__ if isinstance(function, staticmethod) else function
    if isinstance(plain, Step):
        raise TypeError(f"{plain!r} is a step; a function is one or the other")
    if isinstance(plain, Workflow):
        raise TypeError(f"{plain!r} is a workflow already: decorate the function once")
    if inspect.isasyncgenfunction(plain):
        raise TypeError(f"{name_of(plain)} yields: a workflow returns one result, so it cannot")
    if not inspect.iscoroutinefunction(plain):
        what = getattr(plain, "__qualname__", repr(plain))
        raise TypeError(f"{what} must be `async def` to be a workflow; a `def` can be a step")
    roles = checked_roles(required_roles, "required_roles")
    definition = WorkflowDefinition(name or name_of(plain), plain, max_recovery_attempts, roles)
    definition.is_static = plain is not function
    return definition


def step_of(name: str, function: Callable[..., Any]) -> StepDefinition:
    """The definition of a step function."""
    annotation = codec.result_type(function)
    called = called_by(function)
    is_async = inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(
        getattr(called, "__call__", None)  # noqa: B004  # its type is asked for, not whether it is
    )
    return StepDefinition(
        checked_id(name, "the step's name"),
        function,
        is_async,
        encode=codec.encoder(annotation, at="the result"),
        decode=codec.decoder(annotation, at="the result"),
    )


def optioned(
    definition: StepDefinition, options: StepOptions, source: StepSource
) -> StepDefinition:
    """A definition with these options."""
    checked_step_options(options)
    as_given = ("name", "retry", "limiter")
    changes: dict[str, Any] = {key: options.get(key) for key in as_given if key in options}
    limiter = options.get("limiter")
    if limiter is not None:
        source.add_limiter(limiter)
    if "timeout" in options:
        timeout = options["timeout"]
        changes["timeout"] = None if timeout is None else seconds_of(timeout)
    return structs.replace(definition, **changes)


def name_of(function: Callable[..., Any]) -> str:
    """The name that a function is registered under unless one is given."""
    called = called_by(function)
    return getattr(called, "__qualname__", type(called).__qualname__)


def called_by(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, also of a partial."""
    return function.func if isinstance(function, functools.partial) else function


def is_static(owner: type, name: str) -> bool:
    """Whether `owner` has a staticmethod under this name."""
    return isinstance(inspect.getattr_static(owner, name), staticmethod)


def inside_workflow(name: str) -> Branch | None:
    """The branch of the workflow that calls another, None outside workflows.

    Raises:
        ConfigurationError: a step calls it.
    """
    branch = calling_branch(f"the workflow {name!r}")
    if branch is not None and branch.step is not None:
        in_step(name, branch)
    return branch


def in_step(name: str, branch: Branch) -> NoReturn:
    """Explain why a step starts no workflow."""
    raise errors.ConfigurationError(
        f"{name} is a workflow, and step {branch.step.key if branch.step else ''} of workflow "
        f"{branch.execution.workflow_id} calls it: a step may run twice and records only its "
        "result. Call it from the workflow, or enqueue it"
    )
