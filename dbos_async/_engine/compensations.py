"""Compensations: steps that undo something, found by name in whichever process runs them.

    compensate(refund, payment) ─▶ checked: a step, its arguments, a name that others know ─▶ row
    the workflow is cancelled ─▶ `{id}-compensate` ─▶ rows ─▶ step by name, typed arguments ─▶ run

`DBOS.compensate` is a workflow of the library's own, which every app can run. A trigger starts it
in the commit of the cancellation, on the same version of the code. It lists what is open, as a
step, runs each as a step, the latest first, and forgets those that succeeded, as a step; then it
ends, with `CompensationError` if any failed. If its process dies, it is recovered like any
workflow: what is recorded does not run again. If it has failed, it can be rewound to its first
step, and what is left is tried again.

A step that had begun in the cancelled workflow is known to outside services by the key that it has
here too, so an idempotent service does once what is asked for twice.
"""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, cast

from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._engine.context import Branch, asking_branch
from dbos_async._engine.executor import Executor
from dbos_async._engine.functions import Step, Workflow
from dbos_async._engine.registry import Address, WorkflowDefinition
from dbos_async._engine.steps import StepDefinition, recorded
from dbos_async._store import compensations
from dbos_async._store.compensations import COMPENSATE, OpenCompensation

LIST: Final = "DBOS.compensate.list"
DROP: Final = "DBOS.compensate.drop"

Run = Callable[[], Coroutine[Any, Any, object]]


class Undo(Struct, frozen=True):
    """A step and what it is to be called with."""

    step: Step[..., Any]
    instance: object | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: str
    """The arguments as they are stored."""

    @property
    def name(self) -> str:
        """The step's name."""
        return self.step.definition.name

    @property
    def values(self) -> tuple[Any, ...]:
        """All that its function is called with by position."""
        return self.args if self.instance is None else (self.instance, *self.args)

    def run_plainly(self) -> Coroutine[Any, Any, object]:
        """Call it where nothing is recorded."""
        is_bound = self.instance is None or self.step.instance is not None
        return self.step(*(self.args if is_bound else self.values), **self.kwargs)


def undo_of(step: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Undo:
    """What is to be undone, with its arguments as they read back from where they are stored.

    Raises:
        TypeError: it is no step, or the arguments do not fit it.
        SerializationError: an argument cannot be stored.
    """
    made = checked_step(step)
    instance = made.instance
    if made.definition.is_method and instance is None and args:
        instance, args = args[0], args[1:]
    made.arguments.bind(args, kwargs)
    try:
        text = made.arguments.encode(args, kwargs)
        args, kwargs = made.arguments.read_back(args, kwargs, text)
    except errors.SerializationError as exc:
        raise errors.SerializationError(
            f"step {made.definition.name!r} cannot be a compensation: {exc}"
        ) from exc
    return Undo(made, instance, args, kwargs, text)


def checked_step(step: object) -> Step[..., Any]:
    """Refuse what is no step. Raises TypeError."""
    if isinstance(step, Step):
        return cast(Step[..., Any], step)
    if inspect.iscoroutine(step):
        step.close()  # or Python complains that it was never awaited
        raise TypeError("compensate takes a step and its arguments: write compensate(refund, 42)")
    if isinstance(step, Workflow):
        raise TypeError(f"{step!r} is a workflow: let a step compensate, which may enqueue one")
    raise TypeError(
        f"a compensation is a step, not {step!r}: decorate the function with @dbos.step"
    )


async def run_all(runs: Iterable[Run]) -> list[Exception | None]:
    """Run compensations one after another, though some fail; what became of each.

    Raises:
        DivergenceError: the code took another path than the recorded one.
        CancelledError: this run is over.
    """
    outcomes: list[Exception | None] = []
    for run in runs:
        try:
            await run()
        except errors.DivergenceError:
            raise
        except Exception as exc:  # whatever a compensation raises is told at the end
            outcomes.append(exc)
        else:
            outcomes.append(None)
    return outcomes


def failure_of(
    what: str,
    names: Sequence[str],
    outcomes: Sequence[Exception | None],
    *,
    cause: BaseException | None = None,
) -> errors.CompensationError | None:
    """What is raised where compensations have failed; None: they have not.

    It names what they were to undo: a stored error keeps its message, and not its cause.
    """
    failures = [
        (name, error) for name, error in zip(names, outcomes, strict=True) if error is not None
    ]
    if not failures:
        return None
    each = "; ".join(f"{name!r} with {type(error).__name__}: {error}" for name, error in failures)
    why = "" if cause is None else f"failed with {type(cause).__name__}: {cause}, and "
    return errors.CompensationError(
        f"{what} {why}could not be undone, because of {len(failures)} of {len(names)} "
        f"compensations: {each}",
        [error for _, error in failures],
    )


async def compensate(workflow_id: str) -> None:
    """Undo what a cancelled workflow has open: the body of `DBOS.compensate`.

    Raises:
        CompensationError: some failed; they are open still.
    """
    branch = asking_branch()
    assert branch is not None
    executor: Executor = branch.execution.executor
    database = executor.session.database
    opened = await recorded(
        LIST,
        lambda: database.patiently(lambda: compensations.fetch_open(database, workflow_id)),
        list[OpenCompensation],
    )
    outcomes = await run_all([partial(undo, branch, workflow_id, one) for one in opened])
    done = [one.key for one, error in zip(opened, outcomes, strict=True) if error is None]
    await recorded(
        DROP,
        lambda: database.patiently(lambda: compensations.drop(database, workflow_id, done)),
        None,
    )
    failure = failure_of(f"workflow {workflow_id!r}", [one.name for one in opened], outcomes)
    if failure is not None:
        raise failure


def undo(branch: Branch, workflow_id: str, one: OpenCompensation) -> Coroutine[Any, Any, object]:
    """Run an open compensation as a step of this workflow, numbered now."""
    executor: Executor = branch.execution.executor
    address = Address(one.name, one.class_name or "", one.config_name or "")
    try:
        step = executor.registry.step_at(address)
        args, kwargs = step.arguments.decode(one.inputs)
        definition = step.definition
    except errors.DBOSError as exc:
        step, args, kwargs = None, (), {}
        definition = raising(one.name, exc)
    if step is not None and step.instance is not None:
        args = (step.instance, *args)
    known = structs.replace(definition, begun_by=(workflow_id, one.key))
    return executor.steps.call(branch, known, args, kwargs)


def raising(name: str, error: Exception) -> StepDefinition:
    """A step that fails, so that it is recorded that it cannot be run here."""

    async def fail() -> None:
        raise error

    return StepDefinition(name, fail, is_internal=True)


def compensation_workflow() -> WorkflowDefinition:
    """The workflow that undoes what another has open."""
    return WorkflowDefinition(COMPENSATE, compensate)
