"""DBOS: a client, a registry and a lifespan. It wires and does not work."""

import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio
from msgspec import structs

from dbos_async import errors
from dbos_async._client import Client, Verbs
from dbos_async._config import (
    DURATIONS,
    EMBEDDED_DIRECTORY,
    Retention,
    Seconds,
    Settings,
    seconds_of,
)
from dbos_async._engine import rehearsal
from dbos_async._engine.compensations import compensation_workflow
from dbos_async._engine.context import current_branch, task_tree
from dbos_async._engine.dispatcher import Dispatcher
from dbos_async._engine.executor import Executor
from dbos_async._engine.leader import Leader
from dbos_async._engine.limits import Turnstiles
from dbos_async._engine.pruning import Pruner
from dbos_async._engine.pulse import Pulse
from dbos_async._engine.recovery import Recovery
from dbos_async._engine.registry import Registry
from dbos_async._engine.rehearsal import ReplayReport, Stage
from dbos_async._engine.scheduler import Scheduler
from dbos_async._engine.session import Session
from dbos_async._engine.steps import Steps
from dbos_async._engine.sweeper import Sweeper
from dbos_async._engine.transactions import Transactions
from dbos_async._engine.watchdog import Watchdog
from dbos_async._limits import checked_id
from dbos_async._listing import WorkflowFilter
from dbos_async._router import Router
from dbos_async._schedule import declare_schedules
from dbos_async._store import notifier, queues, sql
from dbos_async._store.embedded import start_embedded
from dbos_async._store.lease import Identity, Lease
from dbos_async._store.listing import Filter
from dbos_async._versions import warn_of_stranded

if TYPE_CHECKING:
    from obstore.store import ObjectStore as PayloadStore

DEVELOPMENT_VERSION = "dev"
"""The version on the default embedded Postgres, so that an edit under --reload strands nothing."""
EMBEDDED_DATABASE = "dbos"
CHECK_TIMEOUT = 10.0
"""Seconds that the replay of one workflow may take, unless told otherwise."""
DRAIN = 10.0
"""Seconds that a shutdown gives to what works, unless told otherwise."""


class DBOS(Router, Client):
    """An app: its workflows, and, once launched, this process's part in running them.

    Construction does no I/O. `async with dbos:` connects, installs the schema, takes over what dead
    processes left, and leaves nothing running; `launch` and `shutdown` do the same in two calls.

    Args:
        name: the app's name; apps that share a database run only their own workflows.
        database_url: the system database; else $DBOS_SYSTEM_DATABASE_URL, else an embedded
            Postgres in ./.dbos.
        listen_url: where `database_url` is a pooler in transaction mode, a way to the same database
            past it, for what needs a session of its own; else $DBOS_LISTEN_URL.
        executor_id: names this process; else $DBOS__VMID, else a fresh id at every launch.
        app_version: work runs only on its own version; else $DBOS__APPVERSION, else a hash of the
            workflows' sources.
        max_connections: hard cap on this process's connections.
        migrate: False only verifies the schema, for roles that may not create anything.
        allow_pickle: read rows that the official library pickled. Reading pickle runs code.
        max_payload_bytes: the largest input or result that is stored.
        max_recovering: how many recovered workflows replay at a time.
        max_threads: how many synchronous steps run at a time.
        lease: seconds after which a process whose host or network is gone counts as dead; one that
            is killed is dead at once.
        stall_limit: seconds that a blocked event loop may stand still before others take over.
        park_after: seconds; a workflow that sleeps or waits for longer leaves memory until it is
            due, or what it waits for has come. None: none does.
        payload_store: where large inputs and results go: a URL such as s3://bucket/prefix or
            file:///var/payloads, or a store of obstore's; else $DBOS_PAYLOAD_STORE, else into the
            rows. All processes that use the database share one.
        payload_threshold: bytes of JSON above which an input or a result is large.
        admin_port: serve the admin API there; else $DBOS_ADMIN_PORT, else it is not served.
        admin_host: the address that it listens on; else $DBOS_ADMIN_HOST, else 127.0.0.1.
        admin_token: what its callers must show; else $DBOS_ADMIN_TOKEN. Required on an address that
            other machines reach.
        admin_allowed_hosts: names that it may be called by, beside localhost and its addresses.
        retention: how long workflows are kept that have ended; None: until somebody deletes them.
    """

    def __init__(
        self,
        name: str,
        database_url: str | None = None,
        *,
        listen_url: str | None = None,
        executor_id: str | None = None,
        app_version: str | None = None,
        max_connections: int = 6,
        migrate: bool = True,
        allow_pickle: bool = False,
        max_payload_bytes: int = 64 * 1024 * 1024,
        max_recovering: int = 500,
        max_threads: int = 40,
        lease: Seconds = 10.0,
        stall_limit: Seconds = 120.0,
        park_after: Seconds | None = 60.0,
        payload_store: "str | PayloadStore | None" = None,
        payload_threshold: int = 256 * 1024,
        admin_port: int | None = None,
        admin_host: str | None = None,
        admin_token: str | None = None,
        admin_allowed_hosts: Sequence[str] = (),
        retention: Retention | None = None,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            name=checked_id(name, "the app's name"),
            database_url=database_url,
            listen_url=listen_url,
            executor_id=executor_id,
            app_version=app_version,
            max_connections=max_connections,
            migrate=migrate,
            allow_pickle=allow_pickle,
            max_payload_bytes=max_payload_bytes,
            max_recovering=max_recovering,
            max_threads=max_threads,
            lease=seconds_of(lease),
            stall_limit=seconds_of(stall_limit),
            park_after=None if park_after is None else seconds_of(park_after),
            payload_store=payload_store,
            payload_threshold=payload_threshold,
            admin_port=admin_port,
            admin_host=admin_host,
            admin_token=admin_token,
            admin_allowed_hosts=admin_allowed_hosts,
            retention=retention,
        )
        self._session = None
        self._host = None
        self._routers: list[Router] = []

    @property
    def name(self) -> str:
        """The app's name."""
        return self._settings.name

    @property
    def executor_id(self) -> str | None:
        """What names this process; None before the launch, unless it was given."""
        return (self._session.settings if self._session else self._settings).executor_id

    @property
    def app_version(self) -> str | None:
        """The version that this process runs; None before the launch, unless it was given."""
        return (self._session.settings if self._session else self._settings).app_version

    def configure(self, **overrides: Any) -> None:
        """Change constructor arguments before the launch, for instance in tests.

        Raises:
            ConfigurationError: the app is launched.
            TypeError: there is no such setting, or a duration is none.
            ValueError: a duration is negative or endless.
        """
        self._check_open("a change of configuration")
        unknown = set(overrides) - set(Settings.__struct_fields__)
        if unknown:
            raise TypeError(f"unknown setting {min(unknown)!r}")
        durations = {
            name: seconds_of(overrides[name])
            for name in DURATIONS & overrides.keys()
            if overrides[name] is not None or name != "park_after"
        }
        self._settings = structs.replace(self._settings, **overrides | durations)

    def include(self, router: Router, /) -> None:
        """Take over what a router declares, now and later, before the launch.

        Raises:
            ConfigurationError: a name is held twice, or the app is launched.
        """
        self._check_open("a router")
        if isinstance(router, DBOS) or not isinstance(router, Router):
            raise TypeError(f"include takes a Router, not {router!r}")
        if router not in self._routers:
            self._routers.append(router)
            router._apps.append(self)

    async def launch(self) -> None:
        """Connect, install the schema, take over what dead processes left, start working.

        Raises:
            ConfigurationError: it is launched already, or cannot work; the message says why.
            DatabaseLostError: Postgres cannot be reached.
        """
        if self._host is not None and self._host.is_dropped:
            await self._close()
        if self._host is not None:
            raise errors.ConfigurationError(
                f"the app {self.name!r} is launched already: one `async with dbos` or lifespan is "
                "enough"
            )
        self._is_open = False
        try:
            await self._launch(self._running())
        except BaseException:
            self._is_open = True
            raise

    async def shutdown(self, *, timeout: Seconds = DRAIN) -> None:
        """Start nothing new, give what works `timeout` seconds, and leave the rest PENDING.

        Workflows that only sleep or wait are not waited for: they go on elsewhere at once, or at
        the next launch. Doing it twice does no harm.
        """
        executor = self.find_launched()
        try:
            if executor is not None:
                await executor.drain(seconds_of(timeout))
        finally:
            await self._close()
            self._is_open = True

    async def deactivate(self) -> None:
        """Take nothing more off queues and start nothing new, until the next launch.

        Once this returns, nothing more is taken. What runs goes on, and so does what is recovered;
        `start_workflow` raises NotLaunchedError; `list_executors` tells others. For a process that
        is to be replaced and still has work.

        Raises:
            NotLaunchedError: the app is not launched.
            DatabaseLostError: it is deactivated, but others do not know; ask again.
        """
        executor, session = self.launched(), self._own_session()
        executor.is_deactivated = True
        await executor.claims.back()
        await session.database.execute(
            sql.DEACTIVATE_EXECUTOR, session.settings.executor_id, session.intake.boot
        )

    async def __aenter__(self) -> Self:
        await self.launch()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    @asynccontextmanager
    async def lifespan(self, app: object = None, /) -> AsyncIterator[None]:
        """The app's lifespan for FastAPI, Starlette, Litestar, and aiohttp's `cleanup_ctx`."""
        async with self:
            yield

    async def check_replay(
        self,
        *,
        sample: int | None = None,
        timeout: Seconds = CHECK_TIMEOUT,
        **filter: Unpack[WorkflowFilter],
    ) -> list[ReplayReport]:
        """Replay recorded workflows on this process's code, and tell which no longer go their way.

        Every step is answered from the record: none is executed, and nothing is written. So it is
        fit for CI, on a copy of the data or with a role that may only SELECT, before a deploy that
        takes over what the last version began. It works on an app that is not launched, too: then
        it connects, and takes nothing over. What stands in workflows outside of steps runs.

            for report in await dbos.check_replay(sample=500, status="PENDING"):
                assert report.is_ok, report

        Args:
            sample: how many of the newest workflows that fit the filter; 100 unless given, or all
                those that `workflow_ids` names.
            timeout: seconds for one of them to come to its end, or to where it goes on.
            **filter: as in `list_workflows`.

        Raises:
            WorkflowNotFoundError: one of `workflow_ids` does not exist.
            ValueError: the sample is below 1, or a filter cannot work.
            TypeError: there is no such filter.
            ConfigurationError: a workflow or a step calls it, or there is no database of ours.
            DatabaseLostError: Postgres cannot be reached.
        """
        if current_branch() is not None:
            raise errors.ConfigurationError(
                "check_replay replays workflows beside each other, which cannot be done within "
                "one: call it from a test or a script"
            )
        chosen = Filter(**filter)
        if sample is not None and sample < 1:
            raise ValueError(f"sample must be at least 1, not {sample}")
        seconds = seconds_of(timeout)
        async with self._reading() as session:
            with task_tree() as tree:
                stage = Stage(
                    session.settings,
                    self._everything(),
                    tree,
                    session.payloads,
                    timeout=seconds,
                )
                return await check_replay(session, stage, chosen, sample)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Session]:
        """This app's session, or one for the length of the block."""
        if self._session is not None:
            yield self._session
            return
        registry = self._everything()
        settings = await self._settings_at_launch(registry)
        session = Session(settings, registry.address_of, application=settings.name)
        async with session.open_to_read():
            yield session

    def launched(self) -> Executor:
        """The executor that this app's workflows run on.

        Raises:
            NotLaunchedError: it is not launched; the message says what usually causes it.
        """
        executor = self._own_session().executor
        if executor is None:
            raise not_launched(self.name)
        return executor

    def find_launched(self) -> Executor | None:
        """The executor, if the app is launched."""
        return None if self._session is None else self._session.executor

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Session]:
        registry = self._everything()
        settings = (await self._settings_at_launch(registry)).served()
        addresses = registry.addresses()
        session = Session(settings, registry.address_of, application=settings.name)
        threads = anyio.CapacityLimiter(settings.max_threads)
        admin = None if settings.admin_port is None else admin_api(self, settings)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(session.open(migrate=settings.migrate))
            await declare(session, registry)  # whoever sees it alive may use its queues
            pulse = Pulse()
            stack.enter_context(pulse.open())
            lease = lease_of(session, pulse)
            await stack.enter_async_context(lease.open())
            turnstiles = Turnstiles(
                session.database, session.clock, session.notifier, settings.executor_id or ""
            )
            transactions = Transactions(session, registry.datasources)
            executor = Executor(
                settings,
                session,
                steps_of(session, threads, turnstiles, transactions),
                threads,
                stack.enter_context(task_tree()),
                addresses,
                pulse,
                registry=registry,
            )
            leader = Leader(session, executor, lease)
            lease.on_lost = leader.unsettled
            lease.on_usurped = executor.usurped
            recovery = Recovery(settings, session.database, executor, addresses)
            dispatcher = Dispatcher(settings, session, executor, addresses, registry)
            scheduler = Scheduler(session, executor, leader, registry.workflows)
            await warn_of_stranded(session)
            session.executor = executor
            session.on_news[notifier.ENDED].append(executor.news)
            session.on_news[notifier.QUEUED].append(dispatcher.news)
            session.on_news[notifier.CONFIGURED].append(dispatcher.configured)
            session.on_news[notifier.DELAYED].append(leader.delayed)
            session.on_news[notifier.DEAD].append(recovery.dead)
            session.on_news[notifier.PERMITS].append(turnstiles.news)
            session.on_recheck += [executor.recheck, dispatcher.recheck, turnstiles.recheck]
            sweeper = Sweeper(session.payloads, session.database)
            for part in (
                *(turnstiles, transactions, executor, recovery, dispatcher),
                *(leader, scheduler, Pruner(session, lease), sweeper),
            ):
                await stack.enter_async_context(part.open())
            stack.enter_context(Watchdog(pulse).open())
            if admin is not None:  # opened last, so closed first
                await stack.enter_async_context(admin)
            yield session

    def _everything(self) -> Registry:
        """This app's declarations and those of its routers."""
        everything = Registry()
        everything.include(self._registry)
        for router in self._routers:
            everything.include(router._registry)
        everything.add_own(compensation_workflow())
        return everything

    async def _settings_at_launch(self, registry: Registry) -> Settings:
        settings = self._settings.resolved()
        if settings.database_url is None:
            url = await start_embedded(EMBEDDED_DIRECTORY, database=EMBEDDED_DATABASE)
            version = settings.app_version or DEVELOPMENT_VERSION
            return structs.replace(settings, database_url=url, app_version=version)
        version = settings.app_version or registry.version(settings.name)
        return structs.replace(settings, app_version=version)

    def _own_session(self) -> Session:
        if self._session is None:
            raise not_launched(self.name)
        self._session.check_loop()
        return self._session

    def _decoder_of(self, name: str) -> Callable[[str], Any]:
        for router in (self, *self._routers):
            definition = router._registry.workflows.get(name)
            if definition is not None:
                return definition.decode
        return Verbs._decoder_of(self, name)


def lease_of(session: Session, pulse: Pulse) -> Lease:
    """What shows others that this process lives."""
    settings = session.settings
    lease = Lease(
        session.database,
        Identity(
            settings.executor_id or "",
            settings.name,
            settings.app_version or "",
            session.intake.boot,
        ),
        seconds=settings.lease,
        stall_limit=settings.stall_limit,
        standstill=lambda: pulse.age,
    )
    session.on_drop = lease.drop
    return lease


def steps_of(
    session: Session,
    threads: anyio.CapacityLimiter,
    turnstiles: Turnstiles,
    transactions: Transactions,
) -> Steps:
    """What runs steps."""
    return Steps(
        session.checkpointer,
        session.clock,
        threads,
        turnstiles,
        session.payloads,
        transactions,
        max_payload_bytes=session.settings.max_payload_bytes,
        allow_pickle=session.settings.allow_pickle,
    )


async def check_replay(
    session: Session, stage: Stage, chosen: Filter, sample: int | None
) -> list[ReplayReport]:
    """The reports on the chosen workflows. Raises as `DBOS.check_replay` does."""
    if chosen.workflow_ids is not None and sample is None:
        ids = list(dict.fromkeys(chosen.workflow_ids))
        reports = await rehearsal.check(session.database, stage, ids)
        missing = set(ids) - {report.workflow_id for report in reports}
        if missing:
            raise errors.WorkflowNotFoundError(min(missing))
        return reports
    ids = await rehearsal.sample_of(
        session.database, session.settings.name, chosen, sample or rehearsal.SAMPLE
    )
    return await rehearsal.check(session.database, stage, ids)


async def declare(session: Session, registry: Registry) -> None:
    """Write down which version, which queues and which schedules there are."""
    settings = session.settings
    await session.database.execute(sql.REGISTER_VERSION, settings.app_version, settings.name)
    for queue in registry.queues.values():
        await queues.declare(
            session.database,
            queue.name,
            queue.limits,
            queue.on_conflict,
            application=settings.name,
            app_version=settings.app_version or "",
        )
    await declare_schedules(session, registry.schedules.values())


def admin_api(dbos: DBOS, settings: Settings) -> AbstractAsyncContextManager[None]:
    """The admin API on its port, to be opened.

    The faces stand above the app, and what they need need not be installed: so the one that is
    asked for is looked up by its name, here and nowhere else.

    Raises:
        ConfigurationError: what it needs is not installed.
    """
    server = importlib.import_module("dbos_async.admin.server")
    context: AbstractAsyncContextManager[None] = server.serving(dbos, settings)
    return context


def not_launched(name: str) -> errors.NotLaunchedError:
    """Say that the app is not launched, and why that usually is."""
    return errors.NotLaunchedError(
        f"the app {name!r} is not launched. Usual causes: code outside `async with dbos:`; a "
        "TestClient used without `with`; an ASGITransport, which runs no lifespan; a web app made "
        "without lifespan=dbos.lifespan"
    )
