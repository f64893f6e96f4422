"""Taking over what dead processes left PENDING.

    launch, or the leader's news that executors are dead, or news that some handed work back
      └▶ take some over (a new owner, fenced) ─▶ load their histories ─▶ adopt ─▶ again, with room

All live processes hear the news and take what they can run, a chunk at a time, so the work spreads
by how much room each has. A wrong suspicion does no harm: the fence stops whoever lost a workflow.

Bounds: at most `max_recovering` adopted workflows replay at a time; one gives its place back when
it ends or first waits durably, so ten thousand sleepers do not block the ten thousand and first.
If this process dies in the middle, what it took over is PENDING under its own id: the leader finds
that. What nobody here can run stays PENDING, and is logged.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from dbos_async._config import Settings
from dbos_async._engine.execution import Execution
from dbos_async._engine.executor import Executor
from dbos_async._engine.leader import LATENESS_MS, UPHEAVAL
from dbos_async._engine.registry import Address, Runnable, columns_of
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import executors, notifier, sql
from dbos_async._store.database import Database
from dbos_async._store.records import Claimed, VersionCount, WorkflowCount

CHUNK: Final = 200
"""Workflows taken over in one statement."""


class Recovery:
    """Adopts the workflows of executors that died."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        executor: Executor,
        addresses: Mapping[Address, Runnable],
    ) -> None:
        self._settings = settings
        self._database = database
        self._executor = executor
        self._addresses = addresses
        self._heard = asyncio.Event()
        self._left: dict[str, None] = {}  # executors, in the order in which they were told of
        self._changed = asyncio.Event()
        self._replaying: set[Execution] = set()
        self._told: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Recovery"]:
        """Recover for the length of the block; the first look is at once."""
        self._executor.watchers.append(self._changed.set)
        async with running(recovery=self._run()):
            yield self

    def dead(self, executor_ids: list[str]) -> None:
        """These have left work, it is said."""
        self._left.update(dict.fromkeys(executor_ids))
        self._heard.set()

    async def _run(self) -> None:
        self.dead(await self._database.persistently(self._find_left))
        while True:
            await self._heard.wait()
            self._heard.clear()
            while self._left:
                executor_id = next(iter(self._left))
                del self._left[executor_id]  # it may be told of again before this is over
                await self._database.persistently(partial(self._recover, executor_id))

    async def _find_left(self) -> list[str]:
        """Whose work there is at the launch: our own id's, and that of all who are dead now."""
        own, name = self._settings.executor_id or "", self._settings.name
        look = await executors.look_around(
            self._database, self._executor.clock.skew_ms, LATENESS_MS, name
        )
        return [own, *look.dead] if look.server_uptime > UPHEAVAL else [own]

    async def _recover(self, executor_id: str) -> None:
        """Adopt what this executor left, as places become free, beside all others who do."""
        found = 0
        while not self._executor.is_draining:
            room = await self._room()
            taken, adopted = await self._executor.claims.claim(
                partial(self._take, executor_id, min(CHUNK, room))
            )
            if not taken:
                break
            self._replaying.update(adopted)
            found += len(taken)
            for queue_name in {row.queue_name for row in taken if row.status == "ENQUEUED"}:
                self._executor.session.tell(notifier.QUEUED, queue_name or "")
        if found:
            log.info("recovered workflows", workflows=found, of_executor=executor_id)
        await self._tell_what_is_left(executor_id)

    async def _take(self, executor_id: str, limit: int, owner: str) -> list[Claimed]:
        return await self._database.fetch(
            sql.TAKE_OVER,
            executor_id,
            self._settings.executor_id,
            owner,
            self._settings.app_version,
            self._settings.name,
            *columns_of(self._addresses),
            self._executor.intake.boot,
            limit,
            into=Claimed,
        )

    async def _room(self) -> int:
        """How many more may replay, once there is any room."""
        while True:
            self._changed.clear()
            self._replaying = {e for e in self._replaying if not (e.done.done() or e.is_resting)}
            room = self._settings.max_recovering - len(self._replaying)
            if room > 0:
                return room
            await self._changed.wait()

    async def _tell_what_is_left(self, executor_id: str) -> None:
        """Log, once, what nobody here can run. It stays PENDING, for others."""
        version, name = self._settings.app_version, self._settings.name
        unknown = await self._database.fetch(
            sql.UNKNOWN_PENDING,
            executor_id,
            version,
            name,
            *columns_of(self._addresses),
            into=WorkflowCount,
        )
        for row in unknown:
            if (row.name, row.config_name) not in self._told:
                self._told.add((row.name, row.config_name))
                log.warning(
                    "pending workflows of a function or instance that is not registered here",
                    name=row.name,
                    instance=row.config_name or None,
                    workflows=row.count,
                )
        others = await self._database.fetch(
            sql.COUNT_OTHER_VERSIONS, executor_id, version, name, into=VersionCount
        )
        for other in others:
            if (executor_id, other.app_version) not in self._told:
                self._told.add((executor_id, other.app_version))
                log.warning(
                    "pending workflows wait for another version of this app",
                    app_version=other.app_version,
                    this_version=version,
                    workflows=other.count,
                )
