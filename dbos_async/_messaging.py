"""Talking to workflows, from anywhere: messages to them, events of theirs.

Within a workflow each of these is a step, done once and recorded.
"""

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, overload

from dbos_async._config import Seconds, seconds_of
from dbos_async._engine import events, messages
from dbos_async._engine.messages import Message
from dbos_async._engine.session import Session
from dbos_async._limits import checked_kind, checked_word

A = TypeVar("A")


class Messaging:
    """The verbs that send messages and read events."""

    def send(
        self,
        workflow_id: str,
        message: Any,
        topic: str | None = None,
        *,
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> Coroutine[Any, Any, None]:
        """Send a message to a workflow, whatever state it is in; it receives it by `recv`.

        Messages of one topic are received in the order in which they were sent. From a workflow it
        is sent exactly once; from elsewhere once a call, also when the connection breaks, and with
        an idempotency key once for all calls. In a `@dbos.transaction` function on the system
        database it is sent when the transaction commits.

        Args:
            workflow_id: who receives it.
            message: anything that can be stored as JSON.
            topic: receivers ask for one topic, or for what has none.
            idempotency_key: of the messages to a workflow with this key only the first is sent,
                whoever sends them; the others are no error.
            connection: an asyncpg Connection, or SQLAlchemy's AsyncConnection or AsyncSession: sent
                when its transaction commits.

        Raises:
            WorkflowNotFoundError: there is no such workflow; nothing was sent, as with all errors.
            SerializationError: the message cannot be stored, or is too large; it names the place.
            TypeError: an argument is of the wrong type.
            ValueError: a name cannot be stored.
            ConfigurationError: `connection` is given within a workflow, and not in a step; or a
                transaction on another database calls it.
        """
        asked = messages.checked(Message(workflow_id, message, topic, idempotency_key))
        return messages.send(self._acting(), [asked], messages.SEND, connection)

    def send_many(
        self, sent: Iterable[Message], /, *, connection: object = None
    ) -> Coroutine[Any, Any, None]:
        """Send messages, to any workflows: all of them, or none; to each in this order.

        Raises as `send` does; also:
            ValueError: two to one workflow have the same idempotency key.
        """
        if isinstance(sent, Message):
            raise TypeError("send_many takes several messages: write send_many([message])")
        asked = [messages.checked(message) for message in sent]
        return messages.send(self._acting(), asked, messages.SEND_BULK, connection)

    @overload
    def get_event(
        self, workflow_id: str, key: str, *, timeout: Seconds = 60, as_: type[A]
    ) -> Coroutine[Any, Any, A | None]: ...
    @overload
    def get_event(
        self, workflow_id: str, key: str, *, timeout: Seconds = 60, as_: Any = ...
    ) -> Coroutine[Any, Any, Any | None]: ...
    def get_event(
        self, workflow_id: str, key: str, *, timeout: Seconds = 60, as_: Any = Any
    ) -> Coroutine[Any, Any, Any]:
        """The latest value that a workflow has published under a key, once it has published one.

        Args:
            workflow_id: whose; it need not exist yet.
            key: which.
            timeout: seconds to wait for it; 0 only looks. Then None.
            as_: its type; plain JSON values unless given.

        Raises:
            SerializationError: the value does not fit `as_`, or is in a format that is not read
                here; the message says what to do.
            TypeError: an argument is of the wrong type.
            ValueError: the timeout is negative.
        """
        checked_word(workflow_id, "the workflow id")
        checked_word(key, "the event's key")
        kind = checked_kind(as_)
        return events.get_event(self._acting(), workflow_id, key, seconds_of(timeout), kind)

    def get_all_events(self, workflow_id: str) -> Coroutine[Any, Any, dict[str, Any]]:
        """The latest value under each key that a workflow has published, as plain JSON values.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            SerializationError: a value is in a format that is not read here.
        """
        checked_word(workflow_id, "the workflow id")
        return events.get_all_events(self._acting(), workflow_id)

    def _acting(self) -> Session:
        """The session of the workflow that asks, else this app's or client's own."""
        raise NotImplementedError
