"""What ended long ago is deleted, a little at a time, by whoever leads.

    leads ─▶ a round, once a minute:  limits ─▶ batch ─▶ rest ─▶ batch ─▶ rest ─▶ … ─▶ the last

A batch holds its locks for some 30 ms, and a rest is three times as long as the batch, so that a
round takes a quarter of one connection's time, and the workflows that run hardly notice. A limit of
a number is found by walking past so many workflows, so rounds become rarer where that takes long.

Two leaders at once (behind a pooler that gives every transaction another session all processes are
leaders), one that does not know yet that it leads no more, a person who prunes at the same time, a
death at any await: none does harm. Batches are transactions; each skips what another
has locked, and with an archive nothing is deleted before it is written, nor after it has changed
since. What may happen is that a workflow is archived twice.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from dbos_async._config import Archive, Retention
from dbos_async._engine.archives import keep
from dbos_async._engine.session import Session
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import exports, pruning
from dbos_async._store.database import Database
from dbos_async._store.lease import Lease
from dbos_async._store.pruning import Walk

T = TypeVar("T")

REST: Final = 3.0
"""How long a rest is, in batches: with 3, one connection is busy for a quarter of the time."""
LONGEST_REST: Final = 1.0
"""Seconds: what took so long was an outage."""
COUNTED: Final = 5_000
"""Workflows that a count looks at at a time: it locks nothing."""
LONG_WALK: Final = 1.0
"""Seconds; to find the limits may take so long in each round."""
LIMITS_SHARE: Final = 0.02
"""How much of the time may be spent on finding them where it takes longer."""


class Pruner:
    """Prunes while this process leads."""

    def __init__(self, session: Session, lease: Lease) -> None:
        self._session = session
        self._lease = lease
        self._retention = session.settings.retention
        self._interval = session.settings.prune_interval

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Pruner"]:
        """Prune for the length of the block, whenever it is this process's turn."""
        async with running(pruner=self._run()):
            yield self

    async def _run(self) -> None:
        while self._retention is not None:
            pause = self._interval
            if self._lease.leads:
                try:
                    pause = max(pause, await self._round(self._retention))
                except Exception as exc:  # the user's archive may raise whatever it likes
                    log.error("pruning failed, and goes on later", error=repr(exc))
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311  # jitter

    async def _round(self, retention: Retention) -> float:
        """Prune all that may go; seconds that should pass until the next round."""
        began = asyncio.get_running_loop().time()
        walk = await begin(self._session, retention, self._session.application)
        finding = asyncio.get_running_loop().time() - began
        pruned = await prune(
            self._session, walk, retention.archive, goes_on=lambda: self._lease.leads
        )
        if pruned:
            log.info("workflows pruned", workflows=pruned)
        return finding / LIMITS_SHARE if finding > LONG_WALK else 0.0


async def begin(session: Session, retention: Retention, application: str | None) -> Walk:
    """A walk through all workflows, by the policy as it is now."""
    return await session.database.patiently(
        lambda: pruning.begin(session.database, retention, application, session.clock.skew_ms)
    )


async def prune(
    session: Session,
    walk: Walk,
    archive: Archive | None,
    *,
    goes_on: Callable[[], bool] = lambda: True,
) -> int:
    """Delete all that may go; how many that were, but for batches whose answers were lost."""
    database, pruned = session.database, 0
    while not walk.is_over and goes_on():
        if archive is None:
            batch = await gently(database, partial(pruning.prune, database, walk))
            pruned += batch.deleted
            walk = walk.after(batch, batch.next_looks)
        else:
            walk, deleted = await prune_archived(session, walk, archive)
            pruned += deleted
    return pruned


async def prune_archived(session: Session, walk: Walk, archive: Archive) -> tuple[Walk, int]:
    """Write down and delete the next workflows; where that came to, and how many they were."""
    database = session.database
    found = await gently(database, partial(pruning.find, database, walk))
    looks, deleted = walk.looks, 0
    for part in await gently(database, partial(pruning.parts_of, database, found)):
        ids = found.workflow_ids[part]
        lines = await gently(
            database, partial(exports.export_lines, database, session.payloads, ids)
        )
        await keep(archive, lines)
        done = await gently(database, partial(pruning.delete, database, found, part, looks))
        looks, deleted = done.next_looks, deleted + done.deleted
    return walk.after(found, looks), deleted


async def count(database: Database, walk: Walk) -> int:
    """How many may go."""
    found_so_far = 0
    while not walk.is_over:
        found = await gently(database, partial(pruning.find, database, walk))
        found_so_far += len(found.workflow_ids)
        walk = walk.after(found, COUNTED)
    return found_so_far


async def gently(database: Database, operation: Callable[[], Awaitable[T]]) -> T:
    """The result of what may be done twice, outages waited out; and a rest for the others."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await database.patiently(operation)
    await asyncio.sleep(min(REST * (loop.time() - began), LONGEST_REST))
    return result
