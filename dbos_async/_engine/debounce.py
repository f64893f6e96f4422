"""Debounced calls: those of one key come to one workflow, which runs with the last one's arguments.

    call ─▶ is the key held? ─ no ─▶ a DELAYED workflow that holds it
                             ─ yes ─▶ that one, put off, with these arguments

Postgres decides in one statement, so no call is lost between a release and a bounce: it bounces
what waits, or begins the next one. Within a workflow the step row lands in the same transaction. If
the process dies before it commits, nothing happened and the replay repeats it; after, the replay
gets the same workflow and bounces nothing.
"""

from typing import Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.execution import Execution, Started
from dbos_async._engine.executor import Executor
from dbos_async._engine.inner import recorded_of
from dbos_async._engine.intake import Call
from dbos_async._engine.session import Session
from dbos_async._engine.steps import check_same, lost
from dbos_async._store import debounces, stored
from dbos_async._store.arguments import digest as digest_of
from dbos_async._store.debounces import Debounced, DebounceWrite
from dbos_async._store.landings import Landing
from dbos_async._store.portable_errors import encode_error
from dbos_async._store.records import Fence, Recorded, StepWrite

NAME: Final = "DBOS.debounce_delayed_workflow"


class Bounce(Struct, frozen=True):
    """One call of a debouncer."""

    call: Call
    queue_name: str
    key: str
    period_ms: int
    max_wait_ms: int | None


async def debounce(session: Session, bounce: Bounce) -> Started:
    """Begin the workflow of the key or bounce it; within a workflow, a step numbered now."""
    branch = calling_branch("debounce")
    if branch is not None and branch.step is None:
        return await _as_step(session, bounce, branch)
    write = write_of(session, bounce)
    await check_queue(session, bounce.queue_name)
    debounced = await session.database.patiently(
        lambda: debounces.debounce(session.database, write)
    )
    session.tell_due(bounce.queue_name, debounced.due_ms)
    return Started(debounced.workflow_id, is_queued=True)


def write_of(session: Session, bounce: Bounce) -> DebounceWrite:
    """What a call asks of the database.

    The workflow belongs to its key and not to whoever called first: it has no parent, whose cancel
    or deadline would end what others asked for, too.
    """
    order = session.intake.order_of(bounce.call, bounce.queue_name).write
    return DebounceWrite(
        workflow_id=order.workflow_id,
        name=order.name,
        queue_name=bounce.queue_name,
        deduplication_id=f"{order.name}-{bounce.key}",
        inputs=order.inputs,
        app_version=order.app_version,
        creator=order.creator,
        timeout_ms=order.timeout_ms,
        attributes=order.attributes,
        period_ms=bounce.period_ms,
        max_wait_ms=bounce.max_wait_ms,
        application=session.application,
        skew_ms=session.clock.skew_ms,
        caller=order.caller,
    )


async def check_queue(session: Session, queue_name: str) -> None:
    """Refuse a queue that cannot be debounced on.

    Raises:
        QueueNotFoundError: there is no such queue.
        ValueError: it has partitions.
    """
    flaw = await session.catalog.flaw_in(queue_name, [{}])
    if isinstance(flaw, errors.QueueNotFoundError):
        raise flaw
    if flaw is not None:
        raise ValueError(
            f"the queue {queue_name!r} is partitioned, but a debounce key is one of a whole queue: "
            "debounce on a queue without partitions"
        )


async def _as_step(session: Session, bounce: Bounce, branch: Branch) -> Started:
    execution: Execution = branch.execution
    key = branch.next_key()
    position = execution.position_of(key)
    execution.begin(key)
    call = bounce.call
    digest = digest_of((call.definition.name, bounce.key, *call.args), call.kwargs)
    recorded: Recorded | Fence | None = execution.history.get(key)
    if recorded is None:
        await execution.live(key)
        write = write_of(session, bounce)
        now_ms = session.clock.now_ms()
        step = StepWrite(
            execution.workflow_id,
            position,
            NAME,
            None,
            None,
            None,
            now_ms,
            now_ms,
            execution.written_key(key, position),
            digest,
            execution.owner,
        )
        executor: Executor = execution.executor
        recorded = await executor.recorded_apart(execution, key, _record(session, write, step))
    if isinstance(recorded, Fence):
        lost(execution)
    check_same(execution, recorded, NAME, digest)
    branch.recorded(recorded.key, recorded.completed_at_ms or 0)
    if recorded.error is not None:
        raise stored.read_error(
            recorded.error, recorded.serialization, allow_pickle=session.settings.allow_pickle
        )
    return Started(recorded.child_workflow_id or "", is_queued=True)


async def _record(session: Session, write: DebounceWrite, step: StepWrite) -> Recorded | Fence:
    """Make the call and its step durable, or the refusal, which a replay would not meet again."""
    landing: Landing | Debounced
    try:
        await check_queue(session, write.queue_name)
        landing = await session.database.patiently(
            lambda: debounces.debounce_within(session.database, write, step)
        )
    except (errors.DeduplicatedError, ValueError) as exc:
        step.child_workflow_id, step.error = None, encode_error(exc)
        landing = await session.checkpointer.commit(step)
    if isinstance(landing, Recorded | Fence):
        return landing
    if isinstance(landing, Debounced):
        session.tell_due(write.queue_name, landing.due_ms)
    return recorded_of(step)
