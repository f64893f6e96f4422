"""Which queues this process works on, and what wakes their lines.

    queues table, at a change and the recheck ─▶ one line a queue, configured as the table says
    NOTIFY, own enqueues, the recheck ─▶ the lines they name

A notification is a hint: with all of them lost, one statement still finds in each recheck interval
which lines have something, and the configuration is read as often. A queue whose row is deleted
is paused, not dropped: what it runs here goes on, and counts again when the row is back.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from msgspec import structs

from dbos_async._config import Settings
from dbos_async._engine.execution import Execution
from dbos_async._engine.executor import Executor
from dbos_async._engine.line import Line
from dbos_async._engine.registry import Address, Registry, Runnable, columns_of
from dbos_async._engine.session import Session
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import queues
from dbos_async._store.claiming import Claim
from dbos_async._store.queues import INTERNAL_QUEUE
from dbos_async._store.records import Claimed, Unclaimable

CLOSING: Final = 2.0
"""Seconds that a shutdown waits for claims that travel, so that what they bring is put back."""


class Dispatcher:
    """Keeps one line for each queue that this process works on."""

    def __init__(
        self,
        settings: Settings,
        session: Session,
        executor: Executor,
        addresses: Mapping[Address, Runnable],
        registry: Registry,
    ) -> None:
        self._session = session
        self._database = session.database
        self._executor = executor
        self._listened = registry.listened
        self._parking = {queue.name for queue in registry.queues.values() if queue.park}
        """The queues whose workflows are parked whatever their limits."""
        names, classes, configs = columns_of(addresses)
        self._claim = Claim(
            queue_name="",
            executor_id=settings.executor_id or "",
            owner="",
            app_version=settings.app_version or "",
            application=settings.name,
            names=names,
            classes=classes,
            configs=configs,
        )
        self._lines: dict[str, Line] = {}
        self._configured = asyncio.Event()
        self._is_closing = False
        self._runner: asyncio.Task[object] | None = None
        self._missed: set[str] = set()
        self._told: set[tuple[str, str, str | None]] = set()
        self._look_now = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Dispatcher"]:
        """Claim for the length of the block; claims that travel at its end come back first."""
        self._executor.claims.on_adopted = self._adopted
        async with (
            running(look_around=self._look_around()),
            running(self._close, dispatcher=self._run()),
        ):
            yield self

    def news(self, queue_names: list[str]) -> None:
        """These queues have something, it is said."""
        for name in queue_names:
            if name in self._lines:
                self._lines[name].wake()

    def configured(self, queue_names: list[str]) -> None:
        """These queues have other limits, it is said."""
        self._configured.set()

    def recheck(self) -> None:
        """Look at every queue."""
        self._configured.set()
        self._look_now.set()

    def _adopted(self, execution: Execution, claimed: Claimed) -> None:
        line = self._lines.get(claimed.queue_name or "")
        if line is not None:
            line.adopted(execution, claimed)

    async def _run(self) -> None:
        self._runner = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            self._line_of(INTERNAL_QUEUE, group)
            while not self._is_closing:
                self._configured.clear()
                await self._database.persistently(lambda: self._configure(group))
                await self._configured.wait()
            for line in self._lines.values():
                line.close()

    def _close(self) -> None:
        self._is_closing = True
        self._configured.set()
        for line in self._lines.values():
            line.close()
        if self._runner is not None:
            asyncio.get_running_loop().call_later(CLOSING, self._runner.cancel)

    async def _configure(self, group: asyncio.TaskGroup) -> None:
        """Let the lines be as the table says."""
        rows = {row.name: row for row in await self._session.queues()}
        for name, row in rows.items():
            if self._listened is None or name in self._listened:
                line = self._line_of(name, group)
                line.configure(queues.limits_of(row), is_paused=row.is_paused)
        for name, line in self._lines.items():
            if name not in rows and name != INTERNAL_QUEUE:
                line.configure(line.limits, is_paused=True)
        for name in set(self._listened or ()) - rows.keys() - self._missed:
            self._missed.add(name)
            log.warning("listen_queues names a queue that does not exist yet", queue=name)

    def _line_of(self, name: str, group: asyncio.TaskGroup) -> Line:
        if name not in self._lines:
            claim = structs.replace(self._claim, queue_name=name)
            line = Line(
                name,
                claim,
                self._database,
                self._session.notifier,
                self._executor,
                parks=name in self._parking,
            )
            self._lines[name] = line
            group.create_task(line.run(), name=f"dbos queue {name}")
        return self._lines[name]

    async def _look_around(self) -> None:
        """Wake the lines that have something, whatever was heard of it, and tidy up.

        What waits here and this process cannot run is logged, once: it waits on.
        """
        while True:
            await self._look_now.wait()
            self._look_now.clear()
            waiting = set(await self._database.persistently(self._find_waiting))
            for line in list(self._lines.values()):
                if line.name in waiting or line.has_returning:
                    line.wake()
                await self._database.persistently(line.tidy)
            for name in waiting:
                for row in await self._database.persistently(self._lines[name].find_unknown):
                    self._tell(name, row)

    async def _find_waiting(self) -> list[str]:
        return await queues.fetch_waiting(self._database, self._lines)

    def _tell(self, queue_name: str, row: Unclaimable) -> None:
        mine = self._claim.app_version
        if row.app_version not in (None, mine):
            if (queue_name, "", row.app_version) not in self._told:
                self._told.add((queue_name, "", row.app_version))
                log.warning(
                    "queued workflows wait for another version of this app: run it until they are "
                    "done, or give them to this one by `dbos-async versions move`",
                    queue=queue_name,
                    app_version=row.app_version,
                    this_version=mine,
                )
        elif (queue_name, row.name, row.config_name) not in self._told:
            self._told.add((queue_name, row.name, row.config_name))
            log.warning(
                "queued workflows of a function or instance that is not registered here: they wait "
                "for a process that has it",
                queue=queue_name,
                name=row.name,
                instance=row.config_name or None,
            )
