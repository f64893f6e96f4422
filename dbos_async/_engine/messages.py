"""Messages: sent from anywhere, received by workflows.

    send ─▶ notifications ─▶ news ─▶ receivers look ─▶ who is told, receives: the oldest unread
                                        ▲                message becomes the step's result
                                        └── somebody else had it: wait on

In a workflow a message lands with the step that sends it, and is read with the step that receives
it, so both happen exactly once. From elsewhere a message has its id before it is first sent, so
an attempt whose answer was lost is not repeated. Of two receivers that are told of one message, one
gets it; the other waits on, until the moment that it has waited for anyway.
"""

import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.context import asking_branch, calling_branch
from dbos_async._engine.deeds import Deed, expected, with_deadline
from dbos_async._engine.outbox import connection_for, refuse_connection
from dbos_async._engine.session import Session
from dbos_async._engine.steps import check_size
from dbos_async._limits import checked_id, checked_word
from dbos_async._store import codec, messages, notifier, parking, stored
from dbos_async._store.database import DanglingError
from dbos_async._store.messages import NO_TOPIC, Receiver
from dbos_async._store.portable_errors import encode_error
from dbos_async._store.records import EffectWrite, Fence, MessageRow, ReceiptWrite, Recorded

RECV: Final = "DBOS.recv"
SEND: Final = "DBOS.send"
SEND_BULK: Final = "DBOS.send_bulk"

ENCODE: Final = codec.encoder(at="the message")


class Message(Struct, frozen=True):
    """A message to a workflow, for `send_many`."""

    workflow_id: str
    """Who receives it."""
    message: Any
    topic: str | None = None
    """Receivers ask for one topic, or for what has none."""
    idempotency_key: str | None = None
    """Of the messages to a workflow with the same key only the first is sent."""


def checked(message: Message) -> Message:
    """A message that may be sent.

    Raises:
        TypeError: it is none, or one of its names is no str.
        ValueError: a name cannot be stored.
    """
    if not isinstance(message, Message):
        raise TypeError(f"send_many takes dbos_async.Message(…), not {message!r}")
    checked_word(message.workflow_id, "the workflow id")
    checked_topic(message.topic)
    if message.idempotency_key is not None:
        checked_id(message.idempotency_key, "the idempotency key")
    return message


def checked_topic(topic: str | None) -> str:
    """A topic as rows have it. Raises as `checked` does."""
    return NO_TOPIC if topic is None else checked_word(topic, "the topic")


def send(
    session: Session, sent: Sequence[Message], name: str, connection: object = None
) -> Coroutine[Any, Any, None]:
    """Send messages, all or none; within a workflow, as a step numbered now."""
    check_keys(sent)
    branch = asking_branch()
    if branch is None or branch.step is not None:
        return _send(session, sent, connection_for(session, connection, "send"))
    refuse_connection([connection])
    arguments = [
        (each.workflow_id, each.message, each.topic, each.idempotency_key) for each in sent
    ]
    deed = Deed.called(branch, name, arguments)
    return deed.awaited(_send_as_step(session, deed, sent))


def check_keys(sent: Sequence[Message]) -> None:
    """Refuse messages of which all but the first would silently not be sent.

    Raises:
        ValueError: two to one workflow have the same idempotency key.
    """
    keyed = [
        (each.workflow_id, each.idempotency_key)
        for each in sent
        if each.idempotency_key is not None
    ]
    if len(set(keyed)) < len(keyed):
        raise ValueError(
            "two messages to one workflow have the same idempotency key, so only the first would "
            "be sent: give each its own"
        )


async def _send(session: Session, sent: Sequence[Message], connection: object) -> None:
    session.check_loop()
    rows = rows_of(session, sent, "")
    if not rows:
        return
    if connection is not None:  # once it commits, a trigger tells everybody
        await messages.send_on(connection, rows)
    else:
        await messages.send(session.database, rows)
        _tell(session, rows)


async def _send_as_step(session: Session, deed: Deed, sent: Sequence[Message]) -> None:
    recorded: Recorded | Fence | None = deed.recorded()
    if recorded is None:
        rows = rows_of(session, sent, f"{deed.execution.workflow_id}-{deed.key}-")
        await deed.go_live()
        recorded = await _landed(session, deed, rows)
        _tell(session, rows)
    deed.accept(recorded)


async def _landed(session: Session, deed: Deed, rows: list[MessageRow]) -> Recorded | Fence:
    """Send with the step, or record that there is no such workflow."""
    while True:
        step = deed.write()
        write = EffectWrite(step.workflow_id, step.owner, step.position, step, rows)
        try:
            return await deed.land(write)
        except DanglingError:
            try:
                await deed.execution.executor.apart(messages.check_known(session.database, rows))
            except errors.WorkflowNotFoundError as exc:
                return await deed.land(deed.write(output=None, error=encode_error(exc)))


def rows_of(session: Session, sent: Sequence[Message], prefix: str) -> list[MessageRow]:
    """The messages as they are stored.

    The ids are new ones, also in a workflow, where the step is what keeps a message from being sent
    again: by an id of the step's own, a workflow that is rewound would not send it again either.

    Raises:
        SerializationError: one cannot be stored.
    """
    rows: list[MessageRow] = []
    for place, each in enumerate(sent):
        what = "the message" if len(sent) == 1 else f"message {place} of {len(sent)}"
        text = ENCODE(each.message) if len(sent) == 1 else codec.encoder(at=what)(each.message)
        check_size(text, session.settings.max_payload_bytes, what)
        message_id = (
            f"{prefix}{uuid.uuid4()}"
            if each.idempotency_key is None
            else f"{each.idempotency_key}::{each.workflow_id}"
        )
        rows.append(MessageRow(message_id, each.workflow_id, checked_topic(each.topic), text))
    return rows


def _tell(session: Session, rows: Sequence[MessageRow]) -> None:
    for word in dict.fromkeys(messages.word_to(row) for row in rows):
        session.tell(notifier.MESSAGES, word)


def recv(topic: str, seconds: float, kind: Any) -> Coroutine[Any, Any, Any]:
    """Receive a message, as a step of the workflow that calls, numbered now.

    Raises:
        ConfigurationError: no workflow calls, or a step does.
    """
    branch = calling_branch("recv")
    if branch is None or branch.step is not None:
        where = "no workflow calls it" if branch is None else "a step calls it"
        raise errors.ConfigurationError(
            f"recv receives what was sent to the workflow that calls it, but {where}: call it in "
            "the body of a workflow, and give the message to the step"
        )
    deed, deadline = with_deadline(branch, RECV, topic)
    return deed.awaited(_recv(deed, deadline, topic, seconds, kind))


async def _recv(deed: Deed, deadline: Deed, topic: str, seconds: float, kind: Any) -> Any:
    deadline.execution.begin(deadline.key)
    recorded = deed.recorded() or await _received(deed, deadline, topic, seconds)
    accepted = deed.accept(recorded)
    return stored.read_as(
        accepted.output,
        accepted.serialization,
        kind,
        at=f"the message to workflow {deed.execution.workflow_id!r}{said_of(topic)}",
        allow_pickle=deed.execution.executor.allow_pickle,
    )


async def _received(deed: Deed, deadline: Deed, topic: str, seconds: float) -> Recorded | Fence:
    await deed.go_live()
    session: Session = deed.execution.executor.session
    receiver = Receiver(deed.execution.workflow_id, topic)
    patience = deed.patience(deadline, seconds, parking.Message(topic)) if seconds else None
    while await expected(session.messages, receiver, session.clock, patience):
        landing = await deed.land(ReceiptWrite(deed.write(output=None), topic))
        if landing is not Fence.NO_MESSAGE:
            return landing
    return await deed.land(deed.write())


def said_of(topic: str) -> str:
    """What errors add of a topic."""
    return "" if topic == NO_TOPIC else f" of topic {topic!r}"
