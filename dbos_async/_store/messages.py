"""Messages in the database: sent from outside workflows, and looked for by who waits.

What a workflow sends and receives is the checkpointer's, because it lands with a step.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.borrowed import borrow, explained
from dbos_async._store.database import DanglingError, Database
from dbos_async._store.records import MessageRow, WorkflowId

NO_TOPIC: Final = "__null__topic__"
"""What rows say that have no topic."""

_arrivals = itertools.count()


class Receiver(Struct, eq=False):
    """One call that waits for a message, and is like no other."""

    workflow_id: str
    topic: str
    arrival: int = field(default_factory=lambda: next(_arrivals))
    """Who came first is told first."""


class Unread(Struct, frozen=True):
    """How many messages wait, as many as were asked for at most."""

    workflow_id: str
    topic: str
    count: int


def word_of(receiver: Receiver) -> str:
    """What news calls those who wait for such a message."""
    return f"{receiver.workflow_id}::{receiver.topic}"


def word_to(message: MessageRow) -> str:
    """What news calls those whom this message is for."""
    return f"{message.destination_id}::{message.topic}"


async def send(database: Database, messages: Sequence[MessageRow]) -> None:
    """Send all of these, or none; what was sent under the same ids before is not sent again.

    Raises:
        WorkflowNotFoundError: one is for a workflow that does not exist.
    """
    columns = [
        [getattr(message, name) for message in messages] for name in MessageRow.__struct_fields__
    ]
    while True:
        try:
            await database.patiently(lambda: database.execute(sql.SEND_MESSAGES, *columns))
        except DanglingError:
            await check_known(database, messages)  # if it has come to be meanwhile: once more
        else:
            return


async def send_on(connection: object, messages: Sequence[MessageRow]) -> None:
    """Send all of these in the transaction of the user's connection, or none.

    Raises:
        WorkflowNotFoundError: one is for a workflow that does not exist; the transaction may go on.
        TypeError: it is of a kind that is not known here.
        DatabaseRefusedError, ConfigurationError: it cannot be used; the message says why.
    """
    transaction = await borrow(connection)
    text = msgspec.json.encode(messages).decode()
    with explained():
        async with transaction.savepoint():
            unknown = await transaction.fetch(sql.SEND_MESSAGES_AS_JSON, text)
    if unknown:
        raise errors.WorkflowNotFoundError(unknown[0][0])


async def check_known(database: Database, messages: Sequence[MessageRow]) -> None:
    """Refuse messages for workflows that do not exist.

    Raises:
        WorkflowNotFoundError: there is one; the error names the first.
    """
    ids = list(dict.fromkeys(message.destination_id for message in messages))
    unknown = await database.patiently(
        lambda: database.fetch(sql.FIND_UNKNOWN, ids, into=WorkflowId)
    )
    if unknown:
        raise errors.WorkflowNotFoundError(unknown[0].workflow_id)


async def find_unread(
    database: Database, receivers: Sequence[Receiver]
) -> Mapping[Receiver, Receiver]:
    """Those for whom there is a message: of three who wait for two, the first two who came."""
    lines: dict[tuple[str, str], list[Receiver]] = {}
    for receiver in sorted(receivers, key=lambda receiver: receiver.arrival):
        lines.setdefault((receiver.workflow_id, receiver.topic), []).append(receiver)
    rows = await database.fetch(
        sql.COUNT_UNREAD,
        [workflow_id for workflow_id, _ in lines],
        [topic for _, topic in lines],
        [len(line) for line in lines.values()],
        into=Unread,
    )
    return {
        receiver: receiver
        for row in rows
        for receiver in lines[row.workflow_id, row.topic][: row.count]
    }
