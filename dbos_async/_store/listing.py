"""Which workflows: filters, a page of those that fit, counts of them.

A page goes by one index, chosen here: a statement that serves every filter cannot choose.

    workflow_ids ─▶ their rows     parent_workflow_id ─▶ its children     forked_from ─▶ its forks
    status, without SUCCESS ─▶ what has not ended, and what failed by age
    waiting_for ─▶ what has not ended
    anything else ─▶ a walk through all by age, within created_after and created_before
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple, cast

from msgspec import Struct, structs

from dbos_async._store import codec, sql
from dbos_async._store.clock import milliseconds_of
from dbos_async._store.database import Database
from dbos_async._store.records import STATUSES, CountRow, Status, WorkflowRow

FIRST_MS: Final = -(2**63) + 1
LAST_MS: Final = 2**63 - 1
BATCH: Final = 1_000
"""Workflows that one statement of a bulk verb touches."""

Texts = str | Sequence[str]
"""One, or several of which any will do."""

TEXTS: Final = (
    "status",
    "name",
    "queue_name",
    "workflow_id_prefix",
    "parent_workflow_id",
    "forked_from",
    "app_version",
    "executor_id",
    "user",
    "schedule_name",
    "application_name",
    "waiting_for",
)
MOMENTS: Final = (
    "created_after",
    "created_before",
    "completed_after",
    "completed_before",
    "dequeued_after",
    "dequeued_before",
)
WAITING: Final[tuple[Status, ...]] = ("PENDING", "DELAYED")
"""States in which `waiting_for` counts; in others it may be left over."""
FLAGS: Final = ("queues_only", "was_forked_from", "is_fork", "has_parent")
GROUPS: Final = ("status", "name", "queue_name", "app_version", "executor_id", "application_name")
"""What counts may be grouped by."""


class Place(NamedTuple):
    """Where a page begins: after this workflow."""

    created_at_ms: int
    workflow_id: str


class Filter(Struct, frozen=True, kw_only=True):
    """Which workflows; a field left out does not matter."""

    workflow_ids: Sequence[str] | None = None
    status: Texts | None = None
    name: Texts | None = None
    queue_name: Texts | None = None
    workflow_id_prefix: Texts | None = None
    parent_workflow_id: Texts | None = None
    forked_from: Texts | None = None
    app_version: Texts | None = None
    executor_id: Texts | None = None
    user: Texts | None = None
    schedule_name: Texts | None = None
    application_name: Texts | None = None
    waiting_for: Texts | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    completed_after: datetime | None = None
    completed_before: datetime | None = None
    dequeued_after: datetime | None = None
    dequeued_before: datetime | None = None
    queues_only: bool | None = None
    was_forked_from: bool | None = None
    is_fork: bool | None = None
    has_parent: bool | None = None
    attributes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what would silently match nothing, or everything.

        Raises:
            TypeError: a value is of the wrong type.
            ValueError: there is no such status, or a time is naive.
            SerializationError: attributes are no JSON.
        """
        if isinstance(self.workflow_ids, str):
            raise TypeError(f"workflow_ids is a list of ids, not {self.workflow_ids!r}")
        self.texts("workflow_ids")
        for field in TEXTS:
            self.texts(field)
        for field in MOMENTS:
            self._bound(field)
        for field in FLAGS:
            if not isinstance(getattr(self, field), bool | None):
                raise TypeError(f"{field} is True or False, not {getattr(self, field)!r}")
        if not isinstance(self.attributes, Mapping | None):
            raise TypeError(f"attributes is a mapping, not {self.attributes!r}")
        unknown = set(self.texts("status") or ()) - STATUSES
        if unknown:
            raise ValueError(f"{min(unknown)!r} is no status; there are {', '.join(STATUSES)}")

    @property
    def is_empty(self) -> bool:
        """Whether it lets everything through."""
        return not any(self._restricts(field) for field in self.__struct_fields__)

    def within(self, statuses: Sequence[Status]) -> "Filter":
        """The same, only in these states."""
        asked = self.states
        return structs.replace(self, status=[s for s in statuses if asked is None or s in asked])

    @property
    def states(self) -> list[str] | None:
        """The states that it lets through; None if all."""
        asked = self.texts("status")
        if self.waiting_for is None:
            return asked
        return [status for status in WAITING if asked is None or status in asked]

    def texts(self, field: str) -> list[str] | None:
        """What a field lets through; None if everything.

        Raises:
            TypeError: it is neither a str nor several.
        """
        value: object = getattr(self, field)
        if value is None:
            return None
        if isinstance(value, str):
            return [value]
        several = list(cast(Sequence[object], value)) if isinstance(value, Sequence) else [None]
        if not all(isinstance(each, str) for each in several):
            raise TypeError(f"{field} is a str or a list of them, not {value!r}")
        return cast(list[str], several)

    def values(self, after: Place | None, *, newest_first: bool) -> tuple[object, ...]:
        """The filter and where to go on, as the first 26 arguments of a listing."""
        first_ms, last_ms = self._bound("created_after"), self._bound("created_before")
        first_ms = FIRST_MS if first_ms is None else first_ms
        last_ms = LAST_MS if last_ms is None else last_ms
        begin, from_id = (last_ms if newest_first else first_ms), None
        if after is not None:
            nearer = min if newest_first else max
            begin = nearer(begin, after.created_at_ms)
            from_id = after.workflow_id if begin == after.created_at_ms else None
        return (
            self.states,
            self.texts("name"),
            self.texts("queue_name"),
            self.texts("workflow_id_prefix"),
            first_ms if newest_first else begin,
            begin if newest_first else last_ms,
            from_id,
            newest_first,
            self.texts("workflow_ids"),
            self.texts("parent_workflow_id"),
            self.texts("forked_from"),
            self.texts("app_version"),
            self.texts("executor_id"),
            self.texts("user"),
            self.texts("schedule_name"),
            self.texts("application_name"),
            self._bound("completed_after"),
            self._bound("completed_before"),
            self._bound("dequeued_after"),
            self._bound("dequeued_before"),
            self.queues_only,
            self.was_forked_from,
            self.is_fork,
            self.has_parent,
            codec.encode(dict(self.attributes)) if self.attributes else None,
            self.texts("waiting_for"),
        )

    def _bound(self, field: str) -> int | None:
        """The first or last millisecond that a moment lets through: not before means earlier."""
        value: object = getattr(self, field)
        if value is None:
            return None
        if not isinstance(value, datetime):
            raise TypeError(f"{field} is a datetime, not {value!r}")
        return milliseconds_of(value) - field.endswith("_before")

    def _restricts(self, field: str) -> bool:
        value = getattr(self, field)
        if field == "workflow_id_prefix":
            return value is not None and "" not in (self.texts(field) or ["-"])
        if field in ("queues_only", "attributes"):
            return bool(value)
        return value is not None


async def fetch_workflows(
    database: Database,
    chosen: Filter,
    *,
    limit: int,
    offset: int = 0,
    newest_first: bool = True,
    after: Place | None = None,
    load_input: bool = True,
    load_output: bool = True,
) -> list[WorkflowRow]:
    """A page of the chosen workflows, by time of creation."""
    return await database.fetch(
        statement_for(chosen, newest_first=newest_first),
        *chosen.values(after, newest_first=newest_first),
        limit,
        offset,
        load_input,
        load_output,
        into=WorkflowRow,
    )


async def batches(database: Database, chosen: Filter) -> AsyncIterator[list[str]]:
    """The ids of the chosen workflows, newest first: what is created meanwhile is not among them.

    What becomes of a batch makes no difference to the next: that begins after its last workflow.
    """
    after: Place | None = None
    while True:
        page = await database.patiently(next_page(database, chosen, after))
        if page:
            yield [row.workflow_id for row in page]
        if len(page) < BATCH:
            return
        after = Place(page[-1].created_at_ms, page[-1].workflow_id)


def next_page(database: Database, chosen: Filter, after: Place | None) -> Callable[[], Any]:
    """What fetches the page of a bulk verb that follows a place."""

    async def fetch() -> list[WorkflowRow]:
        return await fetch_workflows(
            database, chosen, limit=BATCH, after=after, load_input=False, load_output=False
        )

    return fetch


async def count_workflows(
    database: Database, chosen: Filter, groups: Sequence[str], bucket_ms: int | None
) -> list[CountRow]:
    """How many of the chosen workflows there are of each kind."""
    values = chosen.values(None, newest_first=True)
    return await database.fetch(
        sql.COUNT_WORKFLOWS, *values, list(groups), bucket_ms, into=CountRow
    )


def statement_for(chosen: Filter, *, newest_first: bool) -> LiteralString:
    """The listing that goes by the index that fits best."""
    if chosen.workflow_ids is not None:
        return sql.LIST_THESE
    if chosen.parent_workflow_id is not None:
        return sql.LIST_CHILDREN
    if chosen.forked_from is not None:
        return sql.LIST_FORKS
    if chosen.attributes:
        return sql.LIST_TAGGED
    if chosen.states is not None and "SUCCESS" not in chosen.states:
        return sql.LIST_UNSUCCESSFUL
    return sql.LIST_NEWEST if newest_first else sql.LIST_OLDEST
