"""Rows in, writes out: msgspec structs whose fields stand in column order."""

from datetime import datetime
from enum import Enum
from typing import Final, Literal, get_args

from msgspec import Struct

Status = Literal[
    "ENQUEUED",
    "DELAYED",
    "PENDING",
    "SUCCESS",
    "ERROR",
    "CANCELLED",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED",
]
"""The documented states of a workflow; the last four are ends."""

STATUSES: Final = dict.fromkeys(get_args(Status)).keys()
ENDED: Final = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})
ALIVE: Final[tuple[Status, ...]] = ("ENQUEUED", "DELAYED", "PENDING")
STOPPED: Final[tuple[Status, ...]] = ("CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
"""The ends that a resume undoes."""
RESUMABLE: Final[tuple[Status, ...]] = (*ALIVE, *STOPPED)


class StepWrite(Struct, gc=False):
    """A step's outcome, on its way to `operation_outputs`."""

    workflow_id: str
    position: int
    name: str
    output: str | None
    error: str | None
    child_workflow_id: str | None
    started_at_ms: int
    completed_at_ms: int
    step_key: str | None  # None: exactly str(position)
    digest: int | None
    owner: str

    @property
    def key(self) -> str:
        """What identifies the step within its workflow."""
        return self.step_key or str(self.position)


class WorkflowWrite(Struct, kw_only=True, omit_defaults=True, gc=False):
    """A new workflow, on its way to `workflow_status`; as JSON, without what it does not have."""

    workflow_id: str
    status: Status
    name: str
    class_name: str | None = None
    config_name: str | None = None
    inputs: str
    executor_id: str | None = None
    app_version: str | None = None
    owner: str | None = None
    creator: str
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    queue_name: str | None = None
    deduplication_id: str | None = None
    priority: int = 0
    partition_key: str | None = None
    delay_until_ms: int | None = None
    parent_id: str | None = None
    attributes: str | None = None
    arrival: int | None = None
    """Its place among the enqueues of its batch; the checkpointer's to set."""
    caller: str | None = None
    """On whose behalf it runs, as JSON: user, roles, role; None: nobody's."""


class ChildWrite(Struct, gc=False):
    """A child workflow and its parent's step that says so: both land, or neither."""

    step: StepWrite
    workflow: WorkflowWrite


class CompletionWrite(Struct, gc=False):
    """How a workflow ended."""

    workflow_id: str
    owner: str
    status: Status
    output: str | None
    error: str | None


class MessageRow(Struct, gc=False):
    """A message, on its way to `notifications`."""

    message_id: str
    destination_id: str
    topic: str
    message: str


class EventRow(Struct, gc=False):
    """A value under a key, on its way to `workflow_events`."""

    key: str
    value: str


class StreamRow(Struct, gc=False):
    """A value of a stream, on its way to `streams`."""

    key: str
    value: str
    offset: int


class StreamEnd(Struct, frozen=True):
    """The last that there is of a stream."""

    offset: int
    is_closed: bool


class StreamValue(Struct, frozen=True, gc=False):
    """A value of a stream as Postgres has it, or none, for who asked for it."""

    place: int
    """Which of those that asked, from 1."""
    status: Status | None
    """Of the workflow; None: there is none."""
    offset: int | None
    value: str | None
    serialization: str | None


class EffectWrite(Struct, gc=False):
    """What a workflow tells others. It lands with the step that does it, or neither lands.

    From within a step of the user's nothing more is recorded: `step` is None, `position` that of
    the step which runs, and it lands if the workflow is still ours.
    """

    workflow_id: str
    owner: str
    position: int
    step: StepWrite | None
    effects: list[MessageRow] | list[EventRow] | list[StreamRow]


class ReceiptWrite(Struct, gc=False):
    """A step whose result is the oldest unread message of a topic, if there is one."""

    step: StepWrite
    topic: str
    is_found: bool = False
    """Whether there was a message when it was last tried; the checkpointer's to set."""

    @property
    def workflow_id(self) -> str:
        """The workflow that receives."""
        return self.step.workflow_id


class CompensationRow(Struct, gc=False):
    """A step that undoes something, on its way to `dbos_async_compensations`."""

    step_key: str
    """Under which it will be recorded."""
    name: str
    class_name: str | None
    config_name: str | None
    inputs: str


class SagaWrite(Struct, gc=False):
    """A step of a saga, and what it opens; or, if that is None, the end of all that the saga has.

    `step` is None where an earlier run has recorded it, and `position` says where: the compensation
    is open again if the workflow is ours.
    """

    workflow_id: str
    owner: str
    position: int
    step: StepWrite | None
    saga: str
    compensation: CompensationRow | None


Write = (
    StepWrite
    | WorkflowWrite
    | ChildWrite
    | CompletionWrite
    | EffectWrite
    | ReceiptWrite
    | SagaWrite
)


class Recorded(Struct, frozen=True, gc=False):
    """A step as Postgres has it."""

    workflow_id: str
    position: int
    key: str
    name: str
    output: str | None
    error: str | None
    child_workflow_id: str | None
    started_at_ms: int | None
    completed_at_ms: int | None
    digest: int | None
    serialization: str | None


class Owner(Struct, frozen=True, gc=False):
    """Who has a workflow, and who made it."""

    workflow_id: str
    status: Status
    name: str
    owner: str | None
    creator: str | None
    queue_name: str | None
    class_name: str | None
    config_name: str | None


class Fence(Enum):
    """What a write learns instead of landing."""

    LOST = "another owner has the workflow, or it has ended"
    NO_MESSAGE = "there is nothing to receive"


class Outcome(Struct, frozen=True, gc=False):
    """Where a workflow stands, and its result once it has ended."""

    workflow_id: str
    status: Status
    name: str
    output: str | None
    error: str | None
    serialization: str | None
    deadline_ms: int | None
    completed_at_ms: int | None


class Claimed(Struct, frozen=True, gc=False):
    """A workflow that this process took, to run or replay."""

    workflow_id: str
    status: Status
    name: str
    class_name: str | None
    config_name: str | None
    inputs: str | None
    serialization: str | None
    queue_name: str | None
    attempts: int
    deadline_ms: int | None
    root_id: str
    owner: str | None
    partition_key: str | None
    priority: int
    in_line_since_ms: int
    place: int
    user: str | None
    roles: str | None
    role: str | None
    is_fresh: bool
    """Nobody has touched it since it was enqueued, so it has no history."""
    is_scheduled: bool

    @property
    def position(self) -> tuple[int, int, int]:
        """Where it stood in its queue's line."""
        return self.priority, self.in_line_since_ms, self.place


class Replayable(Struct, frozen=True):
    """A workflow as a check of its replay reads it."""

    workflow_id: str
    status: Status
    name: str
    class_name: str | None
    config_name: str | None
    inputs: str | None
    output: str | None
    error: str | None
    serialization: str | None
    deadline_ms: int | None
    root_id: str
    user: str | None
    roles: str | None
    role: str | None
    is_scheduled: bool


class Use(Struct, frozen=True):
    """How much of the shared limits of a queue is in use."""

    running: int
    tokens_out: int
    back_in_ms: int | None
    """Until the first token is back."""
    paid: int
    """How many in the line have had their token."""


class PartitionUse(Struct, frozen=True):
    """How much of the shared limits of one partition is in use."""

    key: str
    running: int
    tokens_out: int
    back_in_ms: int | None
    paid: int


class WorkflowRow(Struct, frozen=True):
    """A workflow as the listing reads it."""

    workflow_id: str
    status: Status
    name: str
    class_name: str | None
    config_name: str | None
    inputs: str | None
    output: str | None
    error: str | None
    serialization: str | None
    executor_id: str | None
    app_version: str | None
    application_name: str | None
    queue_name: str | None
    created_at_ms: int
    updated_at_ms: int
    started_at_ms: int | None
    completed_at_ms: int | None
    timeout_ms: int | None
    deadline_ms: int | None
    delay_until_ms: int | None
    deduplication_id: str | None
    priority: int
    partition_key: str | None
    recovery_attempts: int | None
    parent_workflow_id: str | None
    forked_from: str | None
    attributes: str | None
    user: str | None = None
    schedule_name: str | None = None
    was_forked_from: bool = False
    waiting_for: str | None = None
    roles: str | None = None
    role: str | None = None


class CountRow(Struct, frozen=True):
    """How many workflows there are of a kind; what they were not grouped by is None."""

    count: int
    status: Status | None
    name: str | None
    queue_name: str | None
    app_version: str | None
    executor_id: str | None
    application_name: str | None
    bucket_ms: int | None


class Standing(Struct, frozen=True):
    """A workflow and the state that it is in, or was in before it was changed."""

    workflow_id: str
    status: Status


class Landmark(Struct, frozen=True):
    """A recorded step without what it came to."""

    position: int
    name: str
    has_failed: bool
    is_child: bool


class ForkRow(Struct, frozen=True):
    """Which function a workflow is of, and what it was forked from."""

    name: str
    forked_from: str | None


class QueueRow(Struct, frozen=True):
    """A queue as the database has it; periods are in seconds."""

    name: str
    concurrency: int | None
    worker_concurrency: int | None
    rate_limit_max: int | None
    rate_limit_period: float | None
    worker_rate_limit_max: int | None
    worker_rate_limit_period: float | None
    partition_concurrency: int | None
    partition_worker_concurrency: int | None
    partition_rate_limit_max: int | None
    partition_rate_limit_period: float | None
    is_paused: bool
    application_name: str | None


class Look(Struct, frozen=True):
    """What a leader has to see to."""

    dead: list[str]
    """Executors that are dead and have PENDING work."""
    server_uptime: float  # seconds
    due_ms: int | None
    """Until the next delayed workflow is due."""
    has_late: bool
    """Whether a deadline has passed that nobody kept."""


class LeftBy(Struct, frozen=True):
    """What an executor has PENDING."""

    executor_id: str
    is_alive: bool
    workflow_ids: list[str]


class ExecutorRow(Struct, frozen=True):
    """A process that runs workflows, or did."""

    executor_id: str
    application: str
    app_version: str
    hostname: str
    process_id: int
    started_at: datetime
    last_seen_at: datetime
    is_alive: bool
    workflows: int
    is_deactivated: bool = False


class WorkflowCount(Struct, frozen=True):
    """How many workflows share a name and instance."""

    name: str
    class_name: str
    config_name: str
    count: int


class Unclaimable(Struct, frozen=True):
    """Workflows in a line that this process cannot run."""

    name: str
    config_name: str
    app_version: str | None
    count: int


class VersionCount(Struct, frozen=True):
    """How many workflows wait for one version of the code."""

    app_version: str
    count: int


class WorkflowId(Struct, frozen=True):
    """Just the id."""

    workflow_id: str


class QueueName(Struct, frozen=True):
    """Just the name."""

    queue_name: str | None
