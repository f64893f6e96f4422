"""Taking over what dead processes left PENDING.

    every look:  executors with PENDING work whose advisory lock nobody holds
                   └▶ take some over (a new owner, fenced) ─▶ load their histories ─▶ adopt

An executor is alive while a session of its own holds its lock, so a killed process is dead as soon
as its socket closes. A wrong suspicion does no harm: the fence stops whoever lost the workflow.
Wrong suspicions are made rare all the same: right after Postgres itself started, everybody's lock
is gone for a moment, so nobody is declared dead then; and after the first look, an executor must
be found dead twice in a row.

Bounds: at most `max_recovering` adopted workflows replay at a time; one gives its place back when
it ends or first waits durably, so ten thousand sleepers do not block the ten thousand and first.
If this process dies in the middle, what it took over is PENDING under its own id: the next look of
another process finds it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from dbos_async._config import Settings
from dbos_async._engine.execution import Execution
from dbos_async._engine.executor import Executor
from dbos_async._engine.registry import Address, Runnable, columns_of
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import notifier, sql
from dbos_async._store.database import Database
from dbos_async._store.records import Claimed, DeadExecutor, VersionCount, WorkflowCount

SERVER_GRACE: Final = 3.0
"""Seconds after Postgres started in which a missing lock means nothing: all are reconnecting."""
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
        self._look_now = asyncio.Event()
        self._changed = asyncio.Event()
        self._replaying: set[Execution] = set()
        self._suspects: set[str] | None = None
        self._told: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Recovery"]:
        """Look for the length of the block; the first look is at once."""
        self._executor.watchers.append(self._changed.set)
        async with running(recovery=self._run()):
            yield self

    def recheck(self) -> None:
        """Look again."""
        self._look_now.set()

    async def _run(self) -> None:
        while True:
            wait = await self._database.persistently(self._look)
            try:
                async with asyncio.timeout(wait):
                    await self._look_now.wait()
            except TimeoutError:
                continue
            self._look_now.clear()

    async def _look(self) -> float | None:
        """Adopt what can be adopted; how soon to look again, None for the next recheck."""
        if self._executor.is_draining:
            return None
        dead = await self._database.fetch(sql.DEAD_EXECUTORS, into=DeadExecutor)
        uptime = min((executor.server_uptime for executor in dead), default=SERVER_GRACE)
        if uptime < SERVER_GRACE:
            return SERVER_GRACE - uptime
        ids = {executor.executor_id for executor in dead}
        own = {self._settings.executor_id or ""} if self._suspects is None else set[str]()
        certain = ids if self._suspects is None else ids & self._suspects
        for executor_id in sorted(certain | own):
            await self._recover(executor_id)
        self._suspects = ids
        return 1.0 if ids - certain else None

    async def _recover(self, executor_id: str) -> None:
        """Adopt everything that this executor left, as places become free."""
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
