"""Debouncer: many calls of one key become one run, once no more come."""

from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar

from dbos_async._config import Seconds, seconds_of
from dbos_async._engine.debounce import Bounce, debounce
from dbos_async._engine.functions import Workflow
from dbos_async._engine.intake import Call
from dbos_async._engine.session import Session
from dbos_async._handle import Inquiry, WorkflowHandle
from dbos_async._limits import checked_id

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

TAKEN: Final = {
    "workflow_id": "calls of one key share a workflow, so none of them can choose its id",
    "deduplication_id": "the key is the deduplication id",
    "duplication_policy": "a call of a key that is held bounces its workflow",
    "delay": "the period is the delay",
    "priority": "calls of one key would give their workflow several",
    "partition_key": "a key is one of a whole queue",
    "connection": "a bounce is not yours to roll back: it changes what others called",
}
"""Options that a debounced workflow cannot have, and why."""


class Debouncer(Generic[P, R]):
    """Puts a workflow off for as long as calls of its key keep coming, then runs it once.

    Args:
        inquiry: what the handles ask.
        acting: the session in charge when a call is made.
        workflow: the function, with options that hold for every call.
        period: seconds without another call after which it runs.
        max_wait: seconds after the first call at which it runs even so; None for ever.
        queue_name: where it runs.
    """

    def __init__(
        self,
        inquiry: Inquiry,
        acting: Callable[[], Session],
        workflow: Workflow[P, R],
        *,
        period: Seconds,
        max_wait: Seconds | None,
        queue_name: str,
    ) -> None:
        unbound: Workflow[..., Any] = workflow
        check_debounceable(unbound.bind().asked)
        self._inquiry = inquiry
        self._acting = acting
        self._workflow = workflow
        self._period_ms = milliseconds_in(period, "period")
        self._max_wait_ms = None if max_wait is None else milliseconds_in(max_wait, "max_wait")
        self._queue_name = queue_name

    async def debounce(self, key: str, /, *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]:
        """Call the workflow: it runs `period` seconds from now, unless `key` is called again.

        While one waits under the key, a call puts it off and replaces its arguments and options,
        and the handles of all these calls are on the same workflow. Once it is due, the key is
        free: the next call begins another. Within a workflow, a recorded step.

        If the connection is lost in the middle, the call is made again: in the worst case it finds
        that the first one has run already, and the workflow runs once more with these arguments.

        Raises:
            TypeError: the arguments do not fit the function.
            SerializationError: an argument cannot be stored. Nothing was changed.
            DeduplicatedError: the key is held by a workflow that this function's debouncers did
                not begin; `workflow_id` is its id.
            QueueNotFoundError: there is no such queue.
            ValueError: the queue has partitions, or the key cannot be stored.
        """
        bound = self._workflow.bind(*args, **kwargs).asked
        bounce = Bounce(
            bound,
            self._queue_name,
            checked_id(key, "the debounce key"),
            self._period_ms,
            self._max_wait_ms,
        )
        started = await debounce(self._acting(), bounce)
        return WorkflowHandle(self._inquiry, started, bound.definition.decode)

    def __repr__(self) -> str:
        return f"<debouncer of {self._workflow!r}>"


def check_debounceable(call: Call) -> None:
    """Refuse what calls that share a workflow cannot have.

    Raises:
        TypeError: it is a method: calls on several instances would share a key.
        ValueError: it has an option that the debouncer itself decides.
    """
    if call.instance is not None or call.definition.owner is not None:
        raise TypeError(
            f"{call.definition.name} is a method, and only workflow functions can be debounced"
        )
    for name, why in TAKEN.items():
        if name in call.options:
            raise ValueError(f"a debounced workflow takes no {name}: {why}")


def milliseconds_in(duration: Seconds, what: str) -> int:
    """A duration that takes some time.

    Raises:
        TypeError: it is neither a number nor a timedelta.
        ValueError: it is not above 0.
    """
    seconds = seconds_of(duration)
    if seconds <= 0:
        raise ValueError(f"{what} must be above 0, not {duration!r}")
    return max(1, round(seconds * 1000))
