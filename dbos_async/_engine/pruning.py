"""What ended long ago is deleted, a little at a time, by whoever leads.

    leads ─▶ a round, once a minute:  limits ─▶ batch ─▶ rest ─▶ batch ─▶ rest ─▶ … ─▶ the last

A batch ends once it has held its locks for 25 ms, or is one workflow that takes longer. A rest is
three times as long, so that a round takes a quarter of one connection's time, and the workflows
that run hardly notice. A limit of a number is found by walking past so many workflows, so rounds
become rarer where that takes long.

Two leaders at once (behind a pooler that gives every transaction another session all processes are
leaders), one that does not know yet that it leads no more, a person who prunes at the same time, a
death at any await: none does harm. Batches are transactions; each skips what another
has locked, and with an archive nothing is deleted before it is written, nor after it has changed
since. What may happen is that a workflow is archived twice.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from dbos_async import errors
from dbos_async._config import Archive, Retention
from dbos_async._engine.archives import keep
from dbos_async._engine.session import Session
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import exports, pruning
from dbos_async._store.database import Database
from dbos_async._store.lease import Lease
from dbos_async._store.pruning import Found, Walk

T = TypeVar("T")
Lost = list[errors.PayloadMissingError]
"""What keeps workflows from being written down, one of each."""

REST: Final = 3.0
"""How long a rest is, in batches: with 3, one connection is busy for a quarter of the time."""
LONGEST_REST: Final = 1.0
"""Seconds: what took so long was an outage."""
SAID: Final = 10
"""Workflows that one line of the log names."""
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
    database, pruned, lost = session.database, 0, Lost()
    while not walk.is_over and goes_on():
        if archive is None:
            batch = await gently(database, partial(pruning.prune, database, walk))
            pruned += batch.deleted
            walk = walk.after(batch)
        else:
            found = await gently(database, partial(pruning.find, database, walk))
            pruned += await prune_archived(session, found, archive, lost)
            walk = walk.after(found)
    if lost:
        log.error(
            "workflows stay because they cannot be archived; delete_workflows deletes them",
            workflow_ids=[error.workflow_id for error in lost[:SAID]],
            workflows=len(lost),
            error=str(lost[0]),
        )
    return pruned


async def prune_archived(session: Session, found: Found, archive: Archive, lost: Lost) -> int:
    """Write down and delete what was found; how many they were, and what is lost of the others."""
    deleted, versions = 0, found.versions
    for part in await gently(session.database, partial(pruning.parts_of, session.database, found)):
        try:
            deleted += await prune_part(session, part, versions, archive)
        except errors.PayloadMissingError:
            for workflow_id in part:
                try:
                    deleted += await prune_part(session, [workflow_id], versions, archive)
                except errors.PayloadMissingError as exc:
                    lost.append(exc)
    return deleted


async def prune_part(
    session: Session, workflow_ids: Sequence[str], versions: Sequence[str], archive: Archive
) -> int:
    """Write these down and delete them, unless somebody needs them; how many were deleted.

    Raises:
        PayloadMissingError: one cannot be written down, so none was.
    """
    database = session.database
    ids = await gently(database, partial(pruning.unneeded, database, workflow_ids))
    if not ids:
        return 0
    lines = await gently(database, partial(exports.export_lines, database, session.payloads, ids))
    await keep(archive, lines)
    return await gently(database, partial(pruning.delete, database, ids, versions))


async def count(database: Database, walk: Walk) -> int:
    """How many may go."""
    found_so_far = 0
    while not walk.is_over:
        found = await gently(database, partial(pruning.find, database, walk, COUNTED, None))
        found_so_far += len(found.workflow_ids)
        walk = walk.after(found)
    return found_so_far


async def gently(database: Database, operation: Callable[[], Awaitable[T]]) -> T:
    """The result of what may be done twice, outages waited out; and a rest for the others."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await database.patiently(operation)
    await asyncio.sleep(min(REST * (loop.time() - began), LONGEST_REST))
    return result
