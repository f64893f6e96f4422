"""The one table of what the admin API has: method, path, permission, what is read and answered.

The application and its description are made of it, and a test walks it with no token, a wrong one
and the right one.
"""

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from dbos_async.admin import operations, workflows
from dbos_async.admin.call import Call
from dbos_async.admin.shapes import (
    CollectRequest,
    Forked,
    ForkRequest,
    QueueLength,
    QueueMetadata,
    Text,
    TimeoutRequest,
    WorkflowQuery,
    WorkflowsOutput,
    WorkflowSteps,
)

B = TypeVar("B")


class Permission(Enum):
    """Who may call a route."""

    ANYONE = "anyone, by any name: it says nothing that is worth hiding"
    OPERATOR = "who shows the token, if there is one"


ANYONE: Final = Permission.ANYONE
OPERATOR: Final = Permission.OPERATOR


class Route(Struct, Generic[B], frozen=True):
    """One thing that can be asked for."""

    method: str
    path: str
    """Its one parameter, if any, is `{name}`: the id of a workflow or the name of a queue."""
    permission: Permission
    endpoint: Callable[[Call[B]], Awaitable[Any]]
    """Its docstring is the description of the route."""
    body: type[B] | None = None
    """What is read; one that only has optional fields may be left out."""
    answer: Any = None
    """The type of the answer; `str` is plain text, None is 204."""
    changes: bool = False
    """Whether it changes anything, which is logged."""
    is_long: bool = False
    """Whether it acts on any number of workflows, and so takes its time."""

    @property
    def operation(self) -> str:
        """Its name in the description."""
        return f"{self.endpoint.__name__}_{self.method.lower()}"


ROUTES: Final[tuple[Route[Any], ...]] = (
    Route("GET", "/dbos-healthz", ANYONE, operations.health, answer=str),
    Route("GET", "/readyz", ANYONE, operations.readiness, answer=str),
    Route("GET", "/metrics/{name}", ANYONE, operations.measure_queue, answer=QueueLength),
    # The GET is the documented one; without a token the guard keeps links and images from it.
    Route("GET", "/deactivate", OPERATOR, operations.deactivate, answer=str, changes=True),
    Route("POST", "/deactivate", OPERATOR, operations.deactivate, answer=str, changes=True),
    Route(
        "POST",
        "/dbos-workflow-recovery",
        OPERATOR,
        operations.recover,
        body=list[Text],
        answer=list[str],
        changes=True,
    ),
    Route(
        "POST",
        "/dbos-garbage-collect",
        OPERATOR,
        operations.collect_garbage,
        body=CollectRequest,
        changes=True,
        is_long=True,
    ),
    Route(
        "POST",
        "/dbos-global-timeout",
        OPERATOR,
        operations.time_out,
        body=TimeoutRequest,
        changes=True,
        is_long=True,
    ),
    Route(
        "GET",
        "/dbos-workflow-queues-metadata",
        OPERATOR,
        operations.list_queues,
        answer=list[QueueMetadata],
    ),
    Route(
        "POST",
        "/queues",
        OPERATOR,
        workflows.list_queued,
        body=WorkflowQuery,
        answer=list[WorkflowsOutput],
    ),
    Route(
        "POST",
        "/workflows",
        OPERATOR,
        workflows.list_workflows,
        body=WorkflowQuery,
        answer=list[WorkflowsOutput],
    ),
    # An id may have slashes in it, so what follows an id is looked for first.
    Route(
        "GET",
        "/workflows/{name}/steps",
        OPERATOR,
        workflows.list_steps,
        answer=list[WorkflowSteps],
    ),
    Route("POST", "/workflows/{name}/cancel", OPERATOR, workflows.cancel, changes=True),
    Route("POST", "/workflows/{name}/resume", OPERATOR, workflows.resume, changes=True),
    Route(
        "POST",
        "/workflows/{name}/restart",
        OPERATOR,
        workflows.restart,
        answer=Forked,
        changes=True,
    ),
    Route(
        "POST",
        "/workflows/{name}/fork",
        OPERATOR,
        workflows.fork,
        body=ForkRequest,
        answer=Forked,
        changes=True,
    ),
    Route("GET", "/workflows/{name}", OPERATOR, workflows.get_workflow, answer=WorkflowsOutput),
    Route("DELETE", "/workflows/{name}", OPERATOR, workflows.delete, changes=True),
)
