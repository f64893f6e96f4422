"""What may be said of one call: options of workflows and steps, checked where they are given."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any, Final, Literal, TypedDict, cast

from dbos_async._config import Seconds, seconds_of
from dbos_async._engine.retry import Retry
from dbos_async._limits import Limiter, checked_id
from dbos_async._store import codec

ENQUEUE_ONLY: Final = (
    "deduplication_id",
    "duplication_policy",
    "priority",
    "delay",
    "partition_key",
    "connection",
)
NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON; jsonb refuses it."""
MAX_PRIORITY: Final = 2**31 - 1
DUPLICATION_POLICIES: Final = ("reject", "return_existing")


class WorkflowOptions(TypedDict, total=False):
    """Options of one start or enqueue; those from `deduplication_id` on only fit an enqueue.

    workflow_id: chosen by the caller; a second start under it attaches to the first, whatever its
        arguments. timeout: seconds until the workflow and its children are cancelled; a queued
        one's run from its claim. app_version: which version of the code may recover it, or claim
        it off a queue. attributes: a JSON object to find it by. authenticated_user,
        authenticated_roles: on whose behalf it runs; its children, too, unless they name another.

    deduplication_id: one live workflow of the queue has it. duplication_policy: what another gets,
        a DeduplicatedError or the handle of the one that has it, whatever its own arguments.
        priority: 1 first, up to 2**31-1; unset before all. delay: seconds, or an aware datetime.
        partition_key: required on partitioned queues. connection: an asyncpg Connection, or
        SQLAlchemy's AsyncConnection or AsyncSession: enqueued when its transaction commits.
    """

    workflow_id: str
    timeout: Seconds | None
    app_version: str
    attributes: Mapping[str, Any]
    authenticated_user: str
    authenticated_roles: Sequence[str]
    deduplication_id: str
    duplication_policy: Literal["reject", "return_existing"]
    priority: int
    delay: Seconds | datetime
    partition_key: str
    connection: object


class StepOptions(TypedDict, total=False):
    """Options of a step.

    name: what rows call it; the function's `__qualname__` unless given. retry: a `Retry`, or None
        for one attempt. timeout: seconds for each attempt, after which it fails with TimeoutError;
        the thread of a synchronous step cannot be stopped and runs to its end unseen. limiter: a
        `Limiter`, whose turn each attempt waits for; the timeout begins with the turn.
    """

    name: str
    retry: Retry | None
    timeout: Seconds | None
    limiter: Limiter | None


def checked_workflow_options(options: WorkflowOptions) -> WorkflowOptions:
    """The options, once each was looked at.

    Raises:
        TypeError: an option that does not exist, or of the wrong type.
        ValueError: a value that cannot work.
        SerializationError: attributes that are no JSON.
    """
    unknown = set(options) - set(WorkflowOptions.__annotations__)
    if unknown:
        known = ", ".join(WorkflowOptions.__annotations__)
        raise TypeError(f"unknown workflow option {min(unknown)!r}; there are {known}")
    if "workflow_id" in options:
        checked_id(options["workflow_id"], "workflow_id")
    for name in ("deduplication_id", "partition_key", "app_version", "authenticated_user"):
        if name in options:
            checked_id(options.get(name), name)
    timeout = options.get("timeout")
    if timeout is not None:
        seconds_of(timeout)
    check_place(options)
    written_attributes(options.get("attributes", {}))
    checked_roles(options.get("authenticated_roles", ()), "authenticated_roles")
    return options


def written_attributes(attributes: object) -> str:
    """Attributes as they are stored.

    Raises:
        TypeError: they are no mapping.
        ValueError: Postgres cannot store them.
        SerializationError: they are no JSON.
    """
    if not isinstance(attributes, Mapping):
        raise TypeError(f"attributes is a mapping, not {type(attributes).__name__}")
    text = codec.encode(dict(cast(Mapping[str, Any], attributes)))
    if NUL.search(text):
        raise ValueError("attributes has a NUL character, which Postgres cannot store")
    return text


def checked_roles(roles: object, what: str) -> tuple[str, ...]:
    """Roles as they were given.

    Raises:
        TypeError: they are no list of texts.
        ValueError: one cannot be stored.
    """
    if isinstance(roles, str) or not isinstance(roles, Sequence | Set):
        raise TypeError(f"{what} is a list of roles, as in {what}=['clerk'], not {roles!r}")
    given = cast(Iterable[object], roles)
    return tuple(checked_id(role, f"a role in {what}") for role in given)


def check_place(options: WorkflowOptions) -> None:
    """Look at what says where and when in a queue. Raises as `checked_workflow_options` does."""
    priority = options.get("priority", 1)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority is an int, not {type(priority).__name__}")
    if not 1 <= priority <= MAX_PRIORITY:
        raise ValueError(f"priority must be from 1 to {MAX_PRIORITY}, not {priority}")
    delay = options.get("delay", 0)
    if not isinstance(delay, datetime):
        seconds_of(delay)
    elif delay.tzinfo is None:
        raise ValueError(f"delay={delay!r} has no time zone, so it names no moment: give it one")
    policy = options.get("duplication_policy", "reject")
    if policy not in DUPLICATION_POLICIES:
        raise ValueError(f"duplication_policy is 'reject' or 'return_existing', not {policy!r}")


def check_startable(options: WorkflowOptions) -> None:
    """Refuse options that only an enqueue can honour.

    Raises:
        ValueError: there is one.
    """
    for name in ENQUEUE_ONLY:
        if name in options:
            raise ValueError(
                f"{name} is an option of enqueues: use queue.enqueue(…), or leave it out"
            )


def check_enqueueable(options: WorkflowOptions) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: there are two such.
    """
    if "deduplication_id" not in options:
        if options.get("duplication_policy", "reject") != "reject":
            raise ValueError("duplication_policy='return_existing' needs a deduplication_id")
    elif "partition_key" in options:
        raise ValueError(
            "deduplication_id and partition_key do not go together: deduplication ids are one to a "
            "queue, whatever the partition"
        )


def checked_step_options(options: StepOptions) -> StepOptions:
    """The options, once each was looked at. Raises as `checked_workflow_options` does."""
    unknown = set(options) - set(StepOptions.__annotations__)
    if unknown:
        known = ", ".join(StepOptions.__annotations__)
        raise TypeError(f"unknown step option {min(unknown)!r}; there are {known}")
    if "name" in options:
        checked_id(options["name"], "name")
    retry = options.get("retry")
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"retry is a Retry, as in retry=Retry(max_attempts=5), not {retry!r}")
    timeout = options.get("timeout")
    if timeout is not None:
        seconds_of(timeout)
    limiter = options.get("limiter")
    if limiter is not None and not isinstance(limiter, Limiter):
        raise TypeError(
            f"limiter is a Limiter, as in limiter=Limiter('api', concurrency=10), not {limiter!r}"
        )
    return options
