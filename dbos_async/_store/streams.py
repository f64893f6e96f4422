"""Streams in the database: where they end, and what they hold from some place on."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from dbos_async._store import sql
from dbos_async._store.codec import PORTABLE_JSON
from dbos_async._store.database import Database
from dbos_async._store.records import StreamEnd, StreamValue

CLOSED: Final = '"__DBOS_STREAM_CLOSED__"'
"""The value, in portable JSON, that every DBOS library ends a stream with."""

MAX_VALUES: Final = 100
"""Values that one look brings of one stream."""
MAX_VALUE_BYTES: Final = 256 * 1024
"""Bytes of values that one look brings of one stream; a larger one comes alone."""


class Place(NamedTuple):
    """A place in a stream."""

    workflow_id: str
    key: str
    offset: int

    @property
    def word(self) -> str:
        """What news calls the stream."""
        return word_of(self.workflow_id, self.key)


def word_of(workflow_id: str, key: str) -> str:
    """What news calls a stream. A newline is in no id of ours."""
    return f"{workflow_id}\n{key}"


async def find_end(database: Database, workflow_id: str, key: str) -> StreamEnd | None:
    """The end of a stream, if it has a value."""
    rows = await database.fetch(sql.FETCH_STREAM_END, workflow_id, key, into=StreamEnd)
    return rows[0] if rows else None


async def fetch_values(database: Database, places: Sequence[Place]) -> list[list[StreamValue]]:
    """What there is from each of these places on, in order."""
    found: list[list[StreamValue]] = [[] for _ in places]
    async with database.lease() as connection:
        rows = await connection.fetch(
            sql.FETCH_STREAM_VALUES,
            [place.workflow_id for place in places],
            [place.key for place in places],
            [place.offset for place in places],
            MAX_VALUES,
            MAX_VALUE_BYTES,
        )
    for row in rows:
        value = StreamValue(*row)
        found[value.place - 1].append(value)
    return found


def may_have_more(values: Sequence[StreamValue]) -> bool:
    """Whether a look may have left some of a stream behind."""
    characters = sum(len(value.value or "") for value in values)
    return len(values) >= MAX_VALUES or characters * 4 >= MAX_VALUE_BYTES


def is_end(value: StreamValue) -> bool:
    """Whether it is not a value, but what closes the stream."""
    return value.value == CLOSED and value.serialization == PORTABLE_JSON
