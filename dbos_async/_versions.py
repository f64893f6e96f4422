"""Versions of an app's code: which take work, what is left on each, and what nobody runs.

A process runs only work of its own version, so while the old ones finish what they began, new ones
run beside them. Work that names no version is for the newest. What is left of a version when its
last process ends is stranded: somebody runs that version again, or moves the work to another.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded
from dbos_async._log import log
from dbos_async._store import executors, notifier, versions
from dbos_async._store.clock import moment_of
from dbos_async._store.database import Database
from dbos_async._store.records import ExecutorRow, LeftBy
from dbos_async._store.versions import VersionRow, WorkCount

LAUNCH_LOOK: Final = 10_000
"""How much of a long line a launch looks at for what nobody runs."""

Key = tuple[str | None, str | None]
"""An app's name and a version."""


class ApplicationVersion(Struct, frozen=True, kw_only=True):
    """A version of an app's code that was launched at least once. Times are aware, in UTC."""

    name: str
    app_name: str | None
    created_at: datetime
    """When it was launched first."""
    latest_since: datetime
    """When it became the newest, by its first launch or `set_latest_application_version`."""


class VersionWork(Struct, frozen=True, kw_only=True):
    """What is left to do on a version, and who does it."""

    app_name: str | None
    """None: enqueued by somebody who named no app."""
    app_version: str | None
    """None: enqueued by somebody who named no version; the newest takes it."""
    is_latest: bool
    processes: int
    """How many live ones run it."""
    enqueued: int
    delayed: int
    pending: int

    @property
    def total(self) -> int:
        """How many workflows have not ended."""
        return self.enqueued + self.delayed + self.pending

    @property
    def is_stranded(self) -> bool:
        """Whether there is work that no live process will do."""
        return self.total > 0 and self.processes == 0


class ExecutorInfo(Struct, frozen=True, kw_only=True):
    """A process that runs workflows, or did; times are aware, in UTC."""

    executor_id: str
    app_name: str
    app_version: str
    hostname: str
    process_id: int
    started_at: datetime
    last_seen_at: datetime
    is_alive: bool
    """False: it died, and what it left is being taken over, or waits for its version."""
    workflows: int
    """How many it runs, or left PENDING."""
    is_deactivated: bool = False
    """It takes nothing new until its next launch; see `deactivate`."""


class Versioning:
    """The verbs about versions, and who runs them."""

    async def list_executors(self) -> list[ExecutorInfo]:
        """The processes of the app, the oldest first; a client sees those of all apps.

        The view `dbos.executors` shows the same. Within a workflow, recorded.

        Raises:
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()
        rows = await recorded(
            "DBOS.listExecutors",
            lambda: executors.fetch(session.database, session.application),
            list[ExecutorRow],
        )
        return [executor_of(row) for row in rows]

    async def recover_executors(self, executor_ids: Sequence[str]) -> list[str]:
        """Have the live processes take over what dead executors left, now.

        The leader does so by itself within seconds; this is for who does not want to wait.

        Returns:
            The ids of the workflows that those executors left. Each runs on a process of its
            version, or waits for one.

        Raises:
            ValueError: an executor is unknown, or it lives, so that nothing was done.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        if isinstance(executor_ids, str):
            raise TypeError(f"executor_ids is a list of ids, not {executor_ids!r}")
        session = self._acting()

        async def recover() -> list[str]:
            left = await executors.fetch_left(session.database, executor_ids, session.application)
            check_dead(executor_ids, left)
            for one in left:
                session.tell(notifier.DEAD, one.executor_id)
            return sorted(workflow_id for one in left for workflow_id in one.workflow_ids)

        return await recorded("DBOS.recoverExecutors", recover, list[str])

    async def list_application_versions(self) -> list[ApplicationVersion]:
        """The versions that were launched, newest first. Within a workflow, recorded.

        Raises:
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        rows = await self._version_rows("DBOS.listApplicationVersions")
        return [version_of(row) for row in rows]

    async def get_latest_application_version(self) -> ApplicationVersion:
        """The newest version, which takes the work that names none. Within a workflow, recorded.

        Raises:
            ConfigurationError: no app has been launched on this database yet.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        rows = await self._version_rows("DBOS.getLatestApplicationVersion")
        if not rows:
            raise errors.ConfigurationError(
                "there is no version yet: an app writes its own down when it is launched"
            )
        return version_of(rows[0])

    async def set_latest_application_version(self, name: str) -> None:
        """Let a version take the work that names none: the new one at last, or the old one again.

        Raises:
            ValueError: no process has ever run this version.
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()
        known = await self._version_rows("DBOS.listApplicationVersions")
        check_known(name, known)

        async def change() -> None:
            await session.database.patiently(
                lambda: versions.set_latest(session.database, name, session.application)
            )
            for queue in await session.queues():
                session.tell(notifier.QUEUED, queue.name)

        await recorded("DBOS.setLatestApplicationVersion", change, None)

    async def list_version_work(self) -> list[VersionWork]:
        """What is left to do on each version, and how many processes run it; the newest first.

        It reads everything that waits, so it is for people rather than for a loop. Within a
        workflow, recorded.

        Raises:
            DatabaseLostError: Postgres cannot be reached; ask again.
        """
        session = self._acting()
        return await recorded(
            "DBOS.listVersionWork",
            lambda: fetch_work(session.database, session.application),
            list[VersionWork],
        )

    async def move_work(
        self, from_version: str, to_version: str, *, include_pending: bool = False
    ) -> int:
        """Give the work that waits for one version to another; how many workflows that were.

        It is replayed by the other version's code: `check_replay` tells whether that fits.

        Args:
            from_version: which version's work; what its own processes run meanwhile stays theirs.
            to_version: one that was launched at least once.
            include_pending: also what has begun: what is parked, and what a process had that is
                gone; and not only what is on queues or delayed.

        Raises:
            ValueError: the versions are the same, or no process has ever run one of them.
            DatabaseLostError: Postgres cannot be reached; some may have moved, so ask again.
        """
        if from_version == to_version:
            raise ValueError(f"the work is on version {to_version!r} already")
        known = await self._version_rows("DBOS.listApplicationVersions")
        check_known(to_version, known)
        session = self._acting()

        async def move() -> int:
            moved = 0
            while queues := await versions.move_work(
                session.database,
                from_version,
                to_version,
                session.application,
                pending=include_pending,
            ):
                moved += len(queues)
                for queue in set(queues):
                    session.tell(notifier.QUEUED, queue or "")
            return moved

        moved = await recorded("DBOS.moveWork", move, int)
        if moved == 0:
            check_known(from_version, known)
        return moved

    async def _version_rows(self, step: str) -> list[VersionRow]:
        session = self._acting()
        return await recorded(
            step,
            lambda: versions.fetch(session.database, session.application),
            list[VersionRow],
        )

    def _acting(self) -> Session:
        raise NotImplementedError


async def fetch_work(
    database: Database, application: str | None, *, at_most: int | None = None
) -> list[VersionWork]:
    """What is left to do on each version; of long lines, of the first `at_most` only."""
    known = await versions.fetch(database, application)
    work = await versions.count_work(database, application, at_most=at_most)
    keys = list(
        dict.fromkeys(
            [(row.application, row.name) for row in known]
            + [(row.application, row.app_version) for row in work]
        )
    )
    processes = await versions.count_processes(database, keys)
    return works_of(known, work, dict(zip(keys, processes, strict=True)))


def works_of(
    known: Sequence[VersionRow], work: Sequence[WorkCount], processes: dict[Key, int]
) -> list[VersionWork]:
    """Put together what is known of each version; newest first, then what is not in the list."""
    latest: dict[str | None, str] = {}
    for row in known:
        latest.setdefault(row.application, row.name)
    counts = {(row.application, row.app_version): row for row in work}

    def runners_of(key: Key) -> int:
        app, version = key
        apps = latest if app is None else [app]
        if version is None:
            return sum(processes.get((each, latest.get(each)), 0) for each in apps)
        return sum(processes.get((each, version), 0) for each in {*apps, app})

    def work_on(key: Key) -> VersionWork:
        app, version = key
        count = counts.get(key) or WorkCount(app, version, 0, 0, 0)
        return VersionWork(
            app_name=app,
            app_version=version,
            is_latest=version is not None and latest.get(app) == version,
            processes=runners_of(key),
            enqueued=count.enqueued,
            delayed=count.delayed,
            pending=count.pending,
        )

    return [work_on(key) for key in processes]


async def warn_of_stranded(session: Session) -> None:
    """Log, once a launch, the work of this app that waits for a version that nobody runs."""
    work = await fetch_work(session.database, session.application, at_most=LAUNCH_LOOK)
    stranded = [each for each in work if each.is_stranded and each.app_version is not None]
    if stranded:
        begun = " --include-pending" if any(each.pending for each in stranded) else ""
        log.warning(
            "work waits for versions of this app that no process runs: run them again until it is "
            f"done, or give it to another by `dbos-async versions move OLD NEW{begun}`",
            workflows={each.app_version: each.total for each in stranded},
            this_version=session.settings.app_version,
        )


def version_of(row: VersionRow) -> ApplicationVersion:
    """A row in our vocabulary."""
    return ApplicationVersion(
        name=row.name,
        app_name=row.application,
        created_at=moment_of(row.created_at_ms),
        latest_since=moment_of(row.latest_at_ms),
    )


def check_known(name: str, known: Sequence[VersionRow]) -> None:
    """Refuse a version that was never launched: its work would wait for ever.

    Raises:
        ValueError: it is none of those.
    """
    names = [row.name for row in known]
    if name not in names:
        shown = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"no process has ever run version {name!r}; there are: {shown}")


def check_dead(executor_ids: Sequence[str], left: Sequence[LeftBy]) -> None:
    """Refuse to recover what is not dead. Raises ValueError."""
    if unknown := set(executor_ids) - {one.executor_id for one in left}:
        raise ValueError(f"there is no executor {min(unknown)!r}; list_executors() has those known")
    if alive := [one.executor_id for one in left if one.is_alive]:
        raise ValueError(
            f"the executor {alive[0]!r} is alive and runs its workflows itself: end its process "
            "first, or cancel and resume the workflows that should run elsewhere"
        )


def executor_of(row: ExecutorRow) -> ExecutorInfo:
    """A process as callers see it."""
    return ExecutorInfo(
        executor_id=row.executor_id,
        app_name=row.application,
        app_version=row.app_version,
        hostname=row.hostname,
        process_id=row.process_id,
        started_at=row.started_at,
        last_seen_at=row.last_seen_at,
        is_alive=row.is_alive,
        workflows=row.workflows,
        is_deactivated=row.is_deactivated,
    )
