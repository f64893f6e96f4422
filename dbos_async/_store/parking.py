"""Parking in the database: many workflows at once, and none whose news has come."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from dbos_async._store import sql
from dbos_async._store.database import Database

NULL_TOPIC: Final = "__null__topic__"
"""What the column `topic` says of a message that has none."""


class Message(Struct, frozen=True):
    """News: a message to the workflow that waits."""

    topic: str
    """As the table has it."""

    @property
    def waiting_for(self) -> str:
        """What the column says, and the trigger on messages looks for."""
        return "message" if self.topic == NULL_TOPIC else f"message {self.topic}"


class Event(Struct, frozen=True):
    """News: the first value of an event of some workflow."""

    workflow_id: str
    key: str

    @property
    def waiting_for(self) -> str:
        """What the column says, and the trigger on events looks for."""
        return f"event {self.workflow_id} {self.key}"


News = Message | Event


class Park(Struct, frozen=True):
    """A workflow that is to be parked."""

    workflow_id: str
    owner: str
    until_ms: int
    news: News | None
    """What ends the waiting before that; None: nothing does."""

    @property
    def waiting_for(self) -> str:
        """What the column says."""
        return "sleep" if self.news is None else self.news.waiting_for


class Locked(Struct, frozen=True):
    """A workflow that nobody else can touch just now."""

    workflow_id: str
    owner: str | None
    """Its owner while it is PENDING."""


class Nobodys(Struct, frozen=True):
    """A workflow that was parked, and where it will be claimed from."""

    workflow_id: str
    queue_name: str


class Parked(Struct, frozen=True):
    """What became of it. What is in neither had news, or was locked by somebody."""

    queues: dict[str, str]
    """Of those that are parked now, by their ids."""
    lost: set[str]
    """Those that are not ours: cancelled, taken over, or parked before."""


async def park(database: Database, parks: Sequence[Park]) -> Parked:
    """Let go of these workflows, in one transaction.

    Raises:
        DatabaseLostError: it is not known which are parked.
        DatabaseRefusedError: none is.
    """
    sources = {each.news.workflow_id for each in parks if isinstance(each.news, Event)}
    async with database.lease() as connection, connection.transaction():
        ids = sorted({each.workflow_id for each in parks} | sources)
        locked = [Locked(*row) for row in await connection.fetch(sql.LOCK_PARKED, ids)]
        owners = {each.workflow_id: each.owner for each in locked}
        ready = [each for each in parks if owns(each, owners)]
        if sources:
            await connection.execute(sql.TOUCH, sorted(sources & owners.keys()))
        rows = await connection.fetch(sql.PARK, *columns_of(ready)) if ready else []
    parked = [Nobodys(*row) for row in rows]
    lost = {e.workflow_id for e in parks if owners.get(e.workflow_id, e.owner) != e.owner}
    return Parked({each.workflow_id: each.queue_name for each in parked}, lost)


def owns(park: Park, owners: dict[str, str | None]) -> bool:
    """Whether all that has to be locked is, and the workflow is ours."""
    if isinstance(park.news, Event) and park.news.workflow_id not in owners:
        return False
    return owners.get(park.workflow_id) == park.owner


def columns_of(parks: Sequence[Park]) -> tuple[list[object], ...]:
    """The arguments of the statement."""
    messages = [each.news if isinstance(each.news, Message) else None for each in parks]
    events = [each.news if isinstance(each.news, Event) else None for each in parks]
    return (
        [each.workflow_id for each in parks],
        [each.owner for each in parks],
        [each.until_ms for each in parks],
        [each.waiting_for for each in parks],
        [message and message.topic for message in messages],
        [event and event.workflow_id for event in events],
        [event and event.key for event in events],
    )
