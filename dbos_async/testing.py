"""For tests of durable code: a pytest plugin that gives every test a database of its own.

`pip install dbos_async` is enough for pytest to find it:

    async def test_checkout_survives(dbos_database_url):
        async with DBOS("shop", dbos_database_url) as dbos: ...

Which Postgres the databases live on, the environment says:

- `DBOS_TEST_DATABASE_URL`: a database on a server where databases may be made;
- `DBOS_TEST_POSTGRES=testcontainers`: one in a container; tests skip where no Docker answers;
- neither: the embedded one, 18 or the version in `DBOS_TEST_POSTGRES_VERSION`, in a temporary
  directory. One server a run, shared by the workers of pytest-xdist; fsync is on.

`crash_at` and `advance` are functions, and fixtures of the same names: how code survives the death
of its process, and what it does tomorrow, without waiting for either.
"""

import asyncio
import atexit
import gc
import os
import random
import shutil
import socket
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import pytest

from dbos_async._config import Seconds, seconds_of
from dbos_async._crash import CrashAt, Crashed
from dbos_async._store import databases
from dbos_async._store.clock import Clock
from dbos_async._store.embedded import DEFAULT_VERSION, EmbeddedPostgres, StopMode, server_in

T = TypeVar("T")

__all__ = ["Crashed", "EmbeddedServer", "PostgresServer", "advance", "crash_at"]

RUN_VARIABLE: Final = "DBOS_TEST_RUN"
DIRECTORY_PREFIX: Final = "dbos-test-"
ABANDONED_AFTER: Final = 3600
"""Seconds; no run makes itself a server and then does not use it for so long."""
PORTS: Final = range(20_000, 32_768)
"""Below the ports that the kernel hands out to clients."""


def pytest_configure() -> None:
    """Name this run, for its workers too, and clean up behind it."""
    if RUN_VARIABLE not in os.environ:
        os.environ[RUN_VARIABLE] = run = uuid.uuid4().hex
        atexit.register(_sweep, run)  # before the server is used: handlers run in reverse


class PostgresServer:
    """A server that the tests use, and somebody else runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        """A database of it, as its superuser or another role that may make databases."""

    def url_of(self, database: str) -> str:
        """The URL of another database on it."""
        return databases.url_of(self.url, database)


class EmbeddedServer(PostgresServer):
    """An embedded server that a test may stop, kill and start again, on a port of its own.

    Fault tests run a private one, for the length of a block:

        with EmbeddedServer.running(tmp_path) as server:
            server.stop("immediate")
            server.start()
    """

    def __init__(self, postgres: EmbeddedPostgres, url: str) -> None:
        super().__init__(url)
        self._postgres = postgres

    @classmethod
    @contextmanager
    def running(
        cls, directory: Path, *, version: int | None = None, **settings: str
    ) -> Iterator["EmbeddedServer"]:
        """Run a private server with its data in `directory`, over TCP on a free port.

        Whoever is on this machine may connect to it while it runs: no place for secrets.
        """
        port = free_port()
        tcp = {"listen_addresses": "127.0.0.1", "port": str(port), "max_connections": "300"}
        postgres = server_in(directory, version or embedded_version())
        postgres = EmbeddedPostgres(
            postgres.directory, postgres.version, tuple({**tcp, **settings}.items())
        )
        postgres.start()
        try:
            yield cls(postgres, f"postgresql://postgres@127.0.0.1:{port}/postgres")
        finally:
            postgres.stop("immediate")

    @property
    def data(self) -> Path:
        """The data directory; the server's log is the file `log` in it."""
        return self._postgres.data

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it: `fast` is a restart for maintenance, `immediate` a power cut."""
        self._postgres.stop(mode)

    def start(self) -> None:
        """Return when it accepts connections, after crash recovery if it needs that."""
        self._postgres.start()


@pytest.fixture(scope="session")
def dbos_postgres() -> Iterator[PostgresServer]:
    """The server of this run."""
    if url := os.environ.get("DBOS_TEST_DATABASE_URL"):
        yield PostgresServer(url)
    elif os.environ.get("DBOS_TEST_POSTGRES") == "testcontainers":
        with _container() as server:
            yield server
    else:
        with _embedded() as server:
            yield server


@pytest.fixture(scope="session")
def dbos_database_template(dbos_postgres: PostgresServer) -> Iterator[str]:
    """The name of a database with the schema in it; nobody may connect to it."""
    name = f"dbos_template_{uuid.uuid4().hex[:16]}"
    _wait_for(databases.ensure_database(dbos_postgres.url, name))
    try:
        _wait_for(databases.install_schema(dbos_postgres.url_of(name)))
        yield name
    finally:
        _wait_for(databases.drop_database(dbos_postgres.url, name))


@pytest.fixture
def dbos_database_url(dbos_postgres: PostgresServer, dbos_database_template: str) -> Iterator[str]:
    """The URL of a fresh database with the schema installed, for one test."""
    with _clone(dbos_postgres, dbos_database_template) as url:
        yield url


@pytest.fixture
def dbos_other_database_url(
    dbos_postgres: PostgresServer, dbos_database_template: str
) -> Iterator[str]:
    """The URL of another such database."""
    with _clone(dbos_postgres, dbos_database_template) as url:
        yield url


@contextmanager
def _clone(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"dbos_test_{uuid.uuid4().hex[:16]}"
    _wait_for(databases.clone_database(server.url, name, template))
    yield server.url_of(name)
    _wait_for(databases.drop_database(server.url, name))


def embedded_version() -> int:
    """The version that `DBOS_TEST_POSTGRES_VERSION` names, for the embedded servers of tests."""
    return int(os.environ.get("DBOS_TEST_POSTGRES_VERSION") or DEFAULT_VERSION)


def free_port() -> int:
    """A port that nobody listens on now."""
    while True:
        port = random.choice(PORTS)  # noqa: S311  # no secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def _embedded() -> Iterator[EmbeddedServer]:
    """The server of this run; the last of its processes to end stops it."""
    directory = Path(tempfile.gettempdir()) / (DIRECTORY_PREFIX + os.environ[RUN_VARIABLE])
    directory.mkdir(exist_ok=True)
    settings = (("max_connections", "300"),)
    postgres = EmbeddedPostgres(directory.resolve(), embedded_version(), settings)
    postgres.start()
    yield EmbeddedServer(postgres, postgres.url())


def _sweep(run: str) -> None:
    """Remove the server of this run, and those of runs that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*"):
        try:
            abandoned = time.time() - directory.stat().st_mtime > ABANDONED_AFTER
            is_ours = directory.name == DIRECTORY_PREFIX + run
            if (is_ours or abandoned) and server_in(directory).stop_if_unused():
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:  # another user's, or swept by another run
            continue


@contextmanager
def _container() -> Iterator[PostgresServer]:
    testcontainers = pytest.importorskip("testcontainers.postgres")
    if (silence := _silence_of_docker()) is not None:
        pytest.skip(f"no Docker engine answers: {silence}")
    container = testcontainers.PostgresContainer("postgres:18", driver=None)
    with container.with_command("postgres -c max_connections=300") as running:
        yield PostgresServer(running.get_connection_url())


def _silence_of_docker() -> str | None:
    """Why no engine answers; None when one does."""
    docker = pytest.importorskip("docker")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its client forgets sockets that fail
        reason: str | None = None
        try:
            docker.from_env(timeout=3).close()
        except docker.errors.DockerException as exc:
            reason = str(exc)
        gc.collect()
    return reason


def _wait_for(work: Coroutine[object, object, T]) -> T:
    """The result of `work`, run beside whatever loop this thread may have."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


# Dying and time


def crash_at(checkpoint: int, *, before: bool = False, kill: bool = False) -> CrashAt:
    """Let the process die at its nth checkpoint, counted within the block.

        with crash_at(3):
            async with dbos:
                await checkout("o-1", 4200)
        async with dbos:  # recovers what was left

    A checkpoint is a write of this process that makes progress durable: the start of a workflow,
    a step's outcome, a workflow's end. The first is 1. Exactly the first n land. Every app and
    client of the process is dropped as if it had died: it records nothing more, its connections are
    cut, its workflows' tasks are cancelled. The block ends there, whatever it awaits; tasks outside
    the block that await a workflow get `Crashed`. `happened`, on what the block is entered as, says
    whether the checkpoint was reached: a loop over n is done when it was not.

    Args:
        checkpoint: n.
        before: die before the nth write is sent, instead of after it has landed and before anybody
            is told. All earlier ones are then told of, and what they allowed may have begun.
        kill: really die, by SIGKILL: for the code of a subprocess.
    """
    return CrashAt(checkpoint, before=before, kill=kill)


def advance(duration: Seconds) -> "Advanced":
    """Let time pass without waiting for it: durable sleeps, delays and timeouts come due.

        advance(3600)
        await advance(timedelta(days=1))  # also lets those who are due begin to run

    Every app of the process is meant, also those launched later in the same test: the clock goes
    back only after it. `dbos.now()` tells the advanced time. What counts on the loop's time
    (`asyncio.sleep`, a step's timeout, pauses between attempts) takes as long as ever.

    Raises:
        ValueError: it is negative; what has happened cannot be undone.
    """
    Clock.advance(round(seconds_of(duration) * 1000))
    return Advanced()


class Advanced:
    """What `advance` returns: time has passed already, but it may be awaited."""

    def __await__(self) -> Generator[None, None, None]:
        """Give way to those who are due."""
        for _ in range(3):
            yield


@pytest.fixture(name="crash_at")
def _crash_at() -> Callable[..., CrashAt]:
    """The function `crash_at`."""
    return crash_at


@pytest.fixture(name="advance")
def _advance() -> Callable[[Seconds], Advanced]:
    """The function `advance`."""
    return advance


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Put the clocks back, once the test's fixtures have let go of them."""
    Clock.skew_ms = 0
