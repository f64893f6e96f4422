"""Which queues there are, so that an enqueue that cannot work is refused before it is written.

    launch, the dispatcher's polls ─▶ learn ─▶ known ─▶ flaw_in, mostly without a round trip
    news of a change, the recheck ─▶ forget ──┘

Nothing is refused on old knowledge: what looks wrong is looked up first.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

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
        self._one_look = asyncio.Lock()
        self._looks = 0
        self._has_warned = False

    def learn(self, rows: Iterable[QueueRow]) -> None:
        """These are all there are."""
        self._known = {row.name: limits_of(row) for row in rows}

    def forget(self) -> None:
        """Something has changed, or may have."""
        self._known = {}

    async def flaw_in(
        self, queue_name: str, options: Sequence[WorkflowOptions]
    ) -> Exception | None:
        """Why calls with these options cannot be put on a queue; None if they can."""
        if queue_name == INTERNAL_QUEUE or self._flaw_in(queue_name, options) is None:
            return None
        looks = self._looks
        async with self._one_look:  # many who ask share it, unless it began before they asked
            is_old = self._looks == looks or not self._known
            if is_old and self._flaw_in(queue_name, options) is not None:
                self._looks += 1
                self.learn(await self._fetch())
        if not self._known and self._accepts_any:
            self._warn(queue_name)
            return None
        return self._flaw_in(queue_name, options)

    def _flaw_in(self, queue_name: str, options: Sequence[WorkflowOptions]) -> Exception | None:
        limits = self._known.get(queue_name)
        if limits is None:
            names = ", ".join(map(repr, sorted(self._known))) or "none"
            return errors.QueueNotFoundError(
                f"there is no queue named {queue_name!r}; there are: {names}. Declare it with "
                f"dbos.queue({queue_name!r}) in the app that works on it"
            )
        for given in options:
            if limits.is_partitioned is not ("partition_key" in given):
                return partition_flaw(queue_name, is_partitioned=limits.is_partitioned)
        return None

    def _warn(self, queue_name: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the database has no queues yet: what is enqueued waits until an app is launched "
                "that declares its queue",
                queue=queue_name,
            )


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
