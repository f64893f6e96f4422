"""Every knob: its default, its unit, its environment variable. No I/O happens here."""

import ipaddress
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from dbos_async.errors import ConfigurationError

Seconds = float | timedelta
"""Every duration, everywhere: seconds as a number, or a timedelta."""

DATABASE_URL_VARIABLE: Final = "DBOS_SYSTEM_DATABASE_URL"
LISTEN_URL_VARIABLE: Final = "DBOS_LISTEN_URL"
EXECUTOR_ID_VARIABLE: Final = "DBOS__VMID"
APP_VERSION_VARIABLE: Final = "DBOS__APPVERSION"
PAYLOAD_STORE_VARIABLE: Final = "DBOS_PAYLOAD_STORE"
ADMIN_PORT_VARIABLE: Final = "DBOS_ADMIN_PORT"
ADMIN_HOST_VARIABLE: Final = "DBOS_ADMIN_HOST"
ADMIN_TOKEN_VARIABLE: Final = "DBOS_ADMIN_TOKEN"  # noqa: S105  # a name
ADMIN_HOSTS_VARIABLE: Final = "DBOS_ADMIN_ALLOWED_HOSTS"

LOOPBACK: Final = "127.0.0.1"
MAX_PORT: Final = 65_535
SHORTEST_TOKEN: Final = 16
"""Characters: at random, of 64 kinds, they have 96 bits."""
MAKE_A_TOKEN: Final = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"  # noqa: S105  # prose

EMBEDDED_DIRECTORY: Final = Path(".dbos")
OWN_CONNECTIONS: Final = 3
"""Connections outside the pool: checkpointer, notifier, executor's lock. `max_connections` counts
them, and what takes the place of one that is lost, too."""

LONGEST: Final = 100 * 365.25 * 86_400
"""Seconds of the longest duration: a hundred years, which no column overflows with."""


def seconds_of(duration: Seconds) -> float:
    """A duration in seconds.

    Raises:
        TypeError: it is neither a number nor a timedelta.
        ValueError: it is negative, not finite, or longer than a hundred years.
    """
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        raise TypeError(f"a duration is seconds or a timedelta, not {type(duration).__name__}")
    if not 0 <= duration <= LONGEST:
        raise ValueError(
            f"a duration must be finite, not negative and at most 100 years, not {duration!r}"
        )
    return float(duration)


Archive = str | os.PathLike[str] | Callable[[list[str]], Awaitable[object]]
"""Where workflows go before they are pruned: a file, or whoever keeps its lines."""

FOR_EVER_MS: Final = int(LONGEST * 10_000)
MOST_ROWS: Final = 10**15
"""Of more than any table has, Postgres need not be told."""


class Retention(Struct, frozen=True, kw_only=True):
    """How long workflows are kept that have ended: until any of the limits lets them go.

    What has not ended is kept in any case, and a child as long as its parent.

    Raises:
        ValueError: there is no limit, or one is negative or beyond all bounds.
        TypeError: one is of the wrong type.
    """

    max_age: Seconds | None = None
    """Seconds since the end. None: no limit."""

    max_rows: int | None = None
    """How many are kept, the newest by their time of creation. None: no limit."""

    keep_failed: bool | Seconds = False
    """Those that failed (ERROR, CANCELLED, dead letters): False, as all others; True, for ever; or
    seconds since their end. Unless False, `max_rows` does not count them."""

    archive: Archive | None = None
    """Each workflow is written there before it is deleted, as a line that `import_workflow` reads:
    a file that is appended to, or `async def keep(lines)`, which returns once they are safe. A
    crash may repeat lines, and loses none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises as the class says."""
        if self.max_age is None and self.max_rows is None:
            raise ValueError("give max_age= or max_rows=: without a limit nothing is pruned")
        if isinstance(self.max_age, bool):
            raise TypeError(f"max_age is seconds or a timedelta, not {self.max_age!r}")
        if self.max_age is not None:
            seconds_of(self.max_age)
        if not isinstance(self.keep_failed, bool):
            seconds_of(self.keep_failed)
        if self.max_rows is not None:
            if isinstance(self.max_rows, bool) or not isinstance(self.max_rows, int):
                raise TypeError(f"max_rows is a number of workflows, not {self.max_rows!r}")
            if not 0 <= self.max_rows <= MOST_ROWS:
                raise ValueError(f"max_rows is from 0 to {MOST_ROWS}, not {self.max_rows}")
        if self.archive is not None:
            check_archive(self.archive)

    @property
    def max_age_ms(self) -> int | None:
        """`max_age` in milliseconds."""
        return None if self.max_age is None else round(seconds_of(self.max_age) * 1000)

    @property
    def keep_failed_ms(self) -> int | None:
        """`keep_failed` in milliseconds; None: as all others."""
        if isinstance(self.keep_failed, bool):
            return FOR_EVER_MS if self.keep_failed else None
        return round(seconds_of(self.keep_failed) * 1000)


def check_archive(archive: object) -> None:
    """Refuse what nothing can be written to.

    Raises:
        TypeError: it is neither a path nor callable.
    """
    if not (isinstance(archive, str | os.PathLike) or callable(archive)):
        raise TypeError(f"an archive is a path or `async def keep(lines)`, not {archive!r}")


class Settings(Struct, frozen=True, kw_only=True):
    """What one app runs with. Built at construction, completed by `resolved` at launch."""

    name: str
    """The app's name: rows carry it, and an app only runs its own."""

    database_url: str | None = None
    """The system database; else $DBOS_SYSTEM_DATABASE_URL, else an embedded Postgres in ./.dbos."""

    listen_url: str | None = None
    """The same database past a pooler in transaction mode, for LISTEN and the executor's lock; else
    $DBOS_LISTEN_URL, else `database_url`."""

    executor_id: str | None = None
    """Names this process; else $DBOS__VMID, else a fresh id at every launch."""

    app_version: str | None = None
    """Work runs on its own version only; else $DBOS__APPVERSION, else a hash of the sources."""

    max_connections: int = 6
    """Hard cap on this process's connections, the three that are not pooled included."""

    migrate: bool = True
    """Install or upgrade the schema at launch; False only verifies it."""

    allow_pickle: bool = False
    """Read rows that the official library pickled. Reading pickle runs code: trusted rows only."""

    max_payload_bytes: int = 64 * 1024 * 1024
    """Arguments and results larger than this are refused."""

    max_recovering: int = 500
    """Recovered workflows that replay at the same time."""

    max_threads: int = 40
    """Synchronous steps that run at the same time."""

    lease: float = 10.0
    """Seconds after which Postgres gives up a process that it hears nothing of: a host or a network
    that is gone. A process that is killed is gone at once."""

    stall_limit: float = 120.0
    """Seconds that the event loop may stand still before others take this process's work over."""

    connect_timeout: float = 10.0
    """Seconds that one attempt to connect may take."""

    recheck_interval: float = 5.0
    """Seconds between looks at everything that waits, in case a notification was lost."""

    park_after: float | None = 60.0
    """Seconds; a workflow that waits for longer leaves memory meanwhile. None: none does."""

    payload_store: object = None
    """Where values go that are larger than `payload_threshold`: a URL such as s3://bucket/prefix or
    file:///var/payloads, or a store of obstore's; else $DBOS_PAYLOAD_STORE, else into the rows."""

    payload_threshold: int = 256 * 1024
    """Bytes of JSON above which a value goes to the payload store, if there is one."""

    retention: Retention | None = None
    """How long workflows are kept that have ended; None: until somebody deletes them."""

    prune_interval: float = 60.0
    """Seconds between rounds of pruning."""

    admin_port: int | None = None
    """Where the admin API is served; else $DBOS_ADMIN_PORT, else nowhere."""

    admin_host: str | None = None
    """The address that it listens on; else $DBOS_ADMIN_HOST, else 127.0.0.1: this machine only."""

    admin_token: str | None = None
    """What its callers must show; else $DBOS_ADMIN_TOKEN. Beyond this machine there must be one."""

    admin_allowed_hosts: Sequence[str] = ()
    """Names that it may be called by, beside this machine's own; else $DBOS_ADMIN_ALLOWED_HOSTS,
    separated by commas. `*`: any."""

    def __repr__(self) -> str:
        """Without the passwords in it."""
        return f"<settings of {self.name}>"

    def resolved(self, environment: Mapping[str, str] = os.environ) -> "Settings":
        """These settings completed from the environment.

        Raises:
            ConfigurationError: a value cannot work; the message names it and what it should be.
        """
        url, listen_url = self.database_url, self.listen_url
        settings = structs.replace(
            self,
            database_url=environment.get(DATABASE_URL_VARIABLE) if url is None else url,
            listen_url=environment.get(LISTEN_URL_VARIABLE) if listen_url is None else listen_url,
            executor_id=self.executor_id
            or environment.get(EXECUTOR_ID_VARIABLE)
            or uuid.uuid4().hex,
            app_version=self.app_version or environment.get(APP_VERSION_VARIABLE) or None,
            payload_store=environment.get(PAYLOAD_STORE_VARIABLE) or None
            if self.payload_store is None
            else self.payload_store,
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what cannot work. Raises ConfigurationError as `resolved` does."""
        for name in ("max_connections", *POSITIVE):
            if not isinstance(getattr(self, name), int):
                raise ConfigurationError(f"{name} must be an int, not {getattr(self, name)!r}")
        if self.max_connections < OWN_CONNECTIONS + 1:
            raise ConfigurationError(
                f"max_connections must be at least {OWN_CONNECTIONS + 1} "
                f"({OWN_CONNECTIONS} of its own and one to share), not {self.max_connections}"
            )
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.retention is not None and not isinstance(self.retention, Retention):
            raise ConfigurationError(f"retention is a Retention, not {self.retention!r}")
        for name in ("lease", "stall_limit"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1 second, not {getattr(self, name)}"
                )
        self.check_urls()

    def check_urls(self) -> None:
        """Refuse what leads to no database. Raises ConfigurationError as `resolved` does."""
        if self.database_url is not None:
            check_url(self.database_url)
        if self.listen_url is not None:
            check_listen_url(self.listen_url, self.database_url)

    def served(self, environment: Mapping[str, str] = os.environ) -> "Settings":
        """These settings with those of the admin API completed from the environment.

        Raises:
            ConfigurationError: a value cannot work; the message names it and what it should be.
        """
        port = environment.get(ADMIN_PORT_VARIABLE)
        token = self.admin_token
        settings = structs.replace(
            self,
            admin_port=port_of(port) if self.admin_port is None and port else self.admin_port,
            admin_host=self.admin_host or environment.get(ADMIN_HOST_VARIABLE) or LOOPBACK,
            admin_token=environment.get(ADMIN_TOKEN_VARIABLE) if token is None else token,
            admin_allowed_hosts=self.admin_allowed_hosts
            or names_of(environment.get(ADMIN_HOSTS_VARIABLE, "")),
        )
        settings.check_admin()
        return settings

    def check_admin(self) -> None:
        """Refuse an admin API that cannot work. Raises ConfigurationError as `served` does."""
        if self.admin_port is None:
            return
        if self.admin_token is not None:
            check_token(self.admin_token)
        port, host = self.admin_port, self.admin_host or LOOPBACK
        if type(port) is not int or not 1 <= port <= MAX_PORT:
            raise ConfigurationError(f"admin_port must be a port from 1 to {MAX_PORT}, not {port}")
        if isinstance(self.admin_allowed_hosts, str):
            raise ConfigurationError(
                f"admin_allowed_hosts is a list of names, not {self.admin_allowed_hosts!r}"
            )
        if self.admin_token is None and not is_loopback(host):
            raise ConfigurationError(
                f"the admin API on {host} is within reach of other machines: give it a token, "
                f"admin_token=… or {ADMIN_TOKEN_VARIABLE} ({MAKE_A_TOKEN})"
            )


POSITIVE: Final = ("max_payload_bytes", "max_recovering", "max_threads", "payload_threshold")
"""Settings that are numbers from 1 on."""

DURATIONS: Final = {
    "lease",
    "stall_limit",
    "connect_timeout",
    "recheck_interval",
    "park_after",
    "prune_interval",
}
"""Settings that are seconds, and may be given as a timedelta."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def port_of(text: str) -> int:
    """A port in the environment.

    Raises:
        ConfigurationError: it is no number.
    """
    if not text.strip().isdecimal():
        raise ConfigurationError(f"{ADMIN_PORT_VARIABLE} must be a port, not {text!r}")
    return int(text)


def names_of(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_token(token: object) -> None:
    """Refuse a token that no header can carry, without repeating it.

    Raises:
        ConfigurationError: it is such a one; the message says how to make one.
    """
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise ConfigurationError("the admin token must be a str of printable ASCII characters")
    if not token or " " in token:
        raise ConfigurationError(
            "the admin token is empty or has a space in it: a secret that is not set? "
            + MAKE_A_TOKEN
        )


def check_listen_url(url: str, database_url: str | None) -> None:
    """Refuse a way past the pooler that cannot be one.

    Raises:
        ConfigurationError: it is no postgresql:// URL, or there is nothing to be passed.
    """
    if database_url is None:
        raise ConfigurationError(
            f"listen_url ({LISTEN_URL_VARIABLE}) without database_url ({DATABASE_URL_VARIABLE}): "
            "the embedded Postgres has no pooler; leave it out"
        )
    try:
        check_url(url)
    except ConfigurationError as exc:
        raise ConfigurationError(f"listen_url ({LISTEN_URL_VARIABLE}): {exc}") from None


def check_url(url: str) -> None:
    """Refuse what cannot be a Postgres URL, without repeating its password.

    Raises:
        ConfigurationError: it is no postgresql:// URL.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if not url.strip():
        raise ConfigurationError(
            "the database URL is empty: a secret that is not set? Leave it out altogether, "
            f"{DATABASE_URL_VARIABLE} too, for the embedded Postgres"
        )
    if scheme.startswith("postgresql+"):
        raise ConfigurationError(
            f"the database URL is SQLAlchemy's: write postgresql://, not {scheme}://"
        )
    if scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "the database URL must look like postgresql://user:password@host:5432/database, "
            + (f"but its scheme is {scheme!r}" if scheme else "but it has no scheme")
        )
