"""Which queues there are, so that an enqueue that cannot work is refused before it is written.

    launch, the dispatcher's polls ─▶ learn ─▶ known ─▶ flaw_in, mostly without a round trip
    news of a change, the recheck ─▶ forget ──┘

Nothing is refused on old knowledge: what looks wrong is looked up first. Nor is old knowledge kept:
what was on its way when a change was told of may be older than the change.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from dbos_async import errors
from dbos_async._engine.options import WorkflowOptions
from dbos_async._limits import Limits
from dbos_async._log import log
from dbos_async._store.queues import INTERNAL_QUEUE, limits_of
from dbos_async._store.records import QueueRow


class Catalog:
    """The queues that one app or client may put work on."""

    def __init__(
        self, fetch: Callable[[], Awaitable[list[QueueRow]]], *, accepts_any: bool
    ) -> None:
        self._fetch = fetch
        self._accepts_any = accepts_any  # where there is no queue yet, as before the first launch
        self._known: dict[str, Limits] = {}
        self.changes = 0
        """How many were told of: what is asked for now is news until the next one."""
        self._one_look = asyncio.Lock()
        self._looks = 0
        self._has_warned = False

    def learn(self, rows: Iterable[QueueRow], *, as_of: int) -> dict[str, Limits]:
        """These are all there are, by an answer that was asked for after so many changes."""
        known = {row.name: limits_of(row) for row in rows}
        if as_of == self.changes:
            self._known = known
        return known

    def forget(self) -> None:
        """Something has changed, or may have."""
        self.changes += 1
        self._known = {}

    async def flaw_in(
        self, queue_name: str, options: Sequence[WorkflowOptions]
    ) -> Exception | None:
        """Why calls with these options cannot be put on a queue; None if they can."""
        if queue_name == INTERNAL_QUEUE or flaw_by(self._known, queue_name, options) is None:
            return None
        looks = self._looks
        async with self._one_look:  # many who ask share it, unless it began before they asked
            known = self._known
            is_old = self._looks == looks or not known
            if is_old and flaw_by(known, queue_name, options) is not None:
                self._looks += 1
                as_of = self.changes
                known = self.learn(await self._fetch(), as_of=as_of)
        if not known and self._accepts_any:
            self._warn(queue_name)
            return None
        return flaw_by(known, queue_name, options)

    def _warn(self, queue_name: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the database has no queues yet: what is enqueued waits until an app is launched "
                "that declares its queue",
                queue=queue_name,
            )


def flaw_by(
    known: Mapping[str, Limits], queue_name: str, options: Sequence[WorkflowOptions]
) -> Exception | None:
    """Why calls with these options cannot be put on a queue, if these are all there are."""
    limits = known.get(queue_name)
    if limits is None:
        names = ", ".join(map(repr, sorted(known))) or "none"
        return errors.QueueNotFoundError(
            f"there is no queue named {queue_name!r}; there are: {names}. Declare it with "
            f"dbos.queue({queue_name!r}) in the app that works on it"
        )
    for given in options:
        if limits.is_partitioned is not ("partition_key" in given):
            return partition_flaw(queue_name, is_partitioned=limits.is_partitioned)
    return None


def partition_flaw(queue_name: str, *, is_partitioned: bool) -> ValueError:
    """A partition key is missing, or there should be none."""
    if is_partitioned:
        return ValueError(
            f"the queue {queue_name!r} is partitioned: give every workflow its partition, as in "
            "workflow.with_options(partition_key=…)"
        )
    return ValueError(
        f"the queue {queue_name!r} has no partitions, so partition_key= means nothing on it: "
        "declare it with a partition_… limit, or leave the key out"
    )
