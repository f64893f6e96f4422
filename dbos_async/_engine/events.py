"""Events: what a workflow publishes under keys, for everybody to read and to wait for.

    set_event ─▶ workflow_events, and its history ─▶ news ─▶ who waits for it, looks

Set in a workflow's own code, an event lands with a step; set within a step, at once, as long as the
workflow is still ours: the step that runs again sets it again. Reading in a workflow is a step.
"""

from collections.abc import Coroutine
from typing import Any, Final

from dbos_async import errors
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.deeds import Deed, Patience, expected, impatience, with_deadline
from dbos_async._engine.execution import Execution
from dbos_async._engine.session import Session
from dbos_async._engine.steps import check_size, lost, recorded
from dbos_async._store import codec, events, notifier, parking, stored
from dbos_async._store.events import Watcher
from dbos_async._store.portable_errors import encode_error
from dbos_async._store.records import EffectWrite, EventRow, Fence, Recorded

GET_EVENT: Final = "DBOS.getEvent"
GET_EVENTS: Final = "DBOS.get_events"
SET_EVENT: Final = "DBOS.setEvent"

ENCODE: Final = codec.encoder(at="the event's value")


def set_event(key: str, value: object) -> Coroutine[Any, Any, None]:
    """Publish a value, as a step of the workflow that calls, numbered now; within a step, at once.

    Raises:
        ConfigurationError: no workflow calls.
    """
    branch = calling_branch("set_event")
    if branch is None:
        raise errors.ConfigurationError(
            "set_event publishes a value of the workflow that calls it, but none does: call it in "
            "a workflow or one of its steps, or send a message to a workflow instead"
        )
    if branch.step is not None:
        return _set_at_once(branch, key, value)
    deed = Deed.called(branch, SET_EVENT, key, value)
    return deed.awaited(_set_as_step(deed, key, value))


async def _set_as_step(deed: Deed, key: str, value: object) -> None:
    session: Session = deed.execution.executor.session
    landing: Recorded | Fence | None = deed.recorded()
    if landing is None:
        row = row_of(session, key, value)
        await deed.go_live()
        step = deed.write()
        landing = await deed.land(
            EffectWrite(step.workflow_id, step.owner, step.position, step, [row])
        )
        session.tell(notifier.EVENTS, events.event_word(step.workflow_id, key))
    deed.accept(landing)


async def _set_at_once(branch: Branch, key: str, value: object) -> None:
    """The row is the running step's: it is forgotten where that step is."""
    execution: Execution = branch.execution
    session: Session = execution.executor.session
    step = branch.step
    assert step is not None
    session.check_loop()
    execution.begin(step.key)
    row = row_of(session, key, value)
    landing = await session.checkpointer.commit(
        EffectWrite(execution.workflow_id, execution.owner, step.position, None, [row])
    )
    if landing is not None:
        lost(execution)
    session.tell(notifier.EVENTS, events.event_word(execution.workflow_id, key))


def row_of(session: Session, key: str, value: object) -> EventRow:
    """A value as it is stored.

    Raises:
        SerializationError: it cannot be.
    """
    text = ENCODE(value)
    check_size(text, session.settings.max_payload_bytes, f"the value of the event {key!r}")
    return EventRow(key, text)


def get_event(
    session: Session, workflow_id: str, key: str, seconds: float, kind: Any
) -> Coroutine[Any, Any, Any]:
    """An event's value once it is set; within a workflow, as a step numbered now."""
    branch = calling_branch("get_event")
    if branch is None or branch.step is not None:
        return _get(session, Watcher(workflow_id, key), seconds, kind)
    deed, deadline = with_deadline(branch, GET_EVENT, workflow_id, key)
    return deed.awaited(_get_as_step(deed, deadline, Watcher(workflow_id, key), seconds, kind))


async def _get(session: Session, watcher: Watcher, seconds: float, kind: Any) -> Any:
    session.check_loop()
    patience = impatience(session.clock, seconds) if seconds else None
    event = await expected(session.events, watcher, session.clock, patience)
    if event is None:
        return None
    return stored.read_as(
        event.value,
        event.serialization,
        kind,
        at=what_of(watcher),
        allow_pickle=session.settings.allow_pickle,
    )


async def _get_as_step(
    deed: Deed, deadline: Deed, watcher: Watcher, seconds: float, kind: Any
) -> Any:
    deadline.execution.begin(deadline.key)
    landing: Recorded | Fence | None = deed.recorded()
    if landing is None:
        await deed.go_live()
        news = parking.Event(watcher.workflow_id, watcher.key)
        patience = deed.patience(deadline, seconds, news) if seconds else None
        landing = await _seen(deed, watcher, patience)
    accepted = deed.accept(landing)
    return stored.read_as(
        accepted.output,
        accepted.serialization,
        kind,
        at=what_of(watcher),
        allow_pickle=deed.execution.executor.allow_pickle,
    )


async def _seen(deed: Deed, watcher: Watcher, patience: Patience | None) -> Recorded | Fence:
    """Record the event's value, of whatever format, as ours."""
    session: Session = deed.execution.executor.session
    event = await expected(session.events, watcher, session.clock, patience)
    if event is None:
        return await deed.land(deed.write())
    try:
        text = stored.as_json(
            event.value, event.serialization, allow_pickle=session.settings.allow_pickle
        )
    except errors.SerializationError as exc:
        return await deed.land(deed.write(output=None, error=encode_error(exc)))
    return await deed.land(deed.write(output=text))


def get_all_events(session: Session, workflow_id: str) -> Coroutine[Any, Any, dict[str, Any]]:
    """All that a workflow has published; within a workflow, recorded."""

    async def fetch() -> dict[str, Any]:
        session.check_loop()
        found = await events.fetch_events(session.database, workflow_id)
        allow_pickle = session.settings.allow_pickle
        return {
            event.key or "": stored.read(
                event.value, event.serialization, codec.decode, allow_pickle=allow_pickle
            )
            for event in found
        }

    return recorded(GET_EVENTS, fetch, dict[str, Any])


def what_of(watcher: Watcher) -> str:
    """What errors call an event."""
    return f"the event {watcher.key!r} of workflow {watcher.workflow_id!r}"
