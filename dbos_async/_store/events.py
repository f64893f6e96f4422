"""Events in the database: read, and looked for by who waits. Setting them is the checkpointer's."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.database import Database


class Watcher(Struct, eq=False):
    """One call that waits for an event, and is like no other."""

    workflow_id: str
    key: str


class Event(Struct, frozen=True):
    """The latest value under a key; of no key, that there is the workflow."""

    workflow_id: str
    key: str | None
    value: str | None
    serialization: str | None


def word_of(watcher: Watcher) -> str:
    """What news calls those who wait for such an event."""
    return event_word(watcher.workflow_id, watcher.key)


def event_word(workflow_id: str, key: str) -> str:
    """What news calls an event."""
    return f"{workflow_id}::{key}"


async def find_events(database: Database, watchers: Sequence[Watcher]) -> Mapping[Watcher, Event]:
    """The events that there are of those waited for."""
    groups: dict[tuple[str, str], list[Watcher]] = {}
    for watcher in watchers:
        groups.setdefault((watcher.workflow_id, watcher.key), []).append(watcher)
    rows = await database.fetch(
        sql.FIND_EVENTS,
        [workflow_id for workflow_id, _ in groups],
        [key for _, key in groups],
        into=Event,
    )
    return {
        watcher: event for event in rows for watcher in groups[event.workflow_id, event.key or ""]
    }


async def fetch_events(database: Database, workflow_id: str) -> list[Event]:
    """The latest values of all that a workflow has published, by key.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
    """
    rows = await database.patiently(
        lambda: database.fetch(sql.FETCH_EVENTS, workflow_id, into=Event)
    )
    if not rows:
        raise errors.WorkflowNotFoundError(workflow_id)
    return [event for event in rows if event.key is not None]
