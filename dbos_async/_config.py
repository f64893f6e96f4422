"""Every knob: its default, its unit, its environment variable. No I/O happens here."""

import os
import uuid
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from dbos_async.errors import ConfigurationError

Seconds = float | timedelta
"""Every duration, everywhere: seconds as a number, or a timedelta."""

DATABASE_URL_VARIABLE: Final = "DBOS_SYSTEM_DATABASE_URL"
EXECUTOR_ID_VARIABLE: Final = "DBOS__VMID"
APP_VERSION_VARIABLE: Final = "DBOS__APPVERSION"
PAYLOAD_STORE_VARIABLE: Final = "DBOS_PAYLOAD_STORE"

EMBEDDED_DIRECTORY: Final = Path(".dbos")
OWN_CONNECTIONS: Final = 3
"""Connections outside the pool: checkpointer, notifier, executor's lock."""

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


class Settings(Struct, frozen=True, kw_only=True):
    """What one app runs with. Built at construction, completed by `resolved` at launch."""

    name: str
    """The app's name: rows carry it, and an app only runs its own."""

    database_url: str | None = None
    """The system database; else $DBOS_SYSTEM_DATABASE_URL, else an embedded Postgres in ./.dbos."""

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

    def resolved(self, environment: Mapping[str, str] = os.environ) -> "Settings":
        """These settings completed from the environment.

        Raises:
            ConfigurationError: a value cannot work; the message names it and what it should be.
        """
        url = self.database_url
        settings = structs.replace(
            self,
            database_url=environment.get(DATABASE_URL_VARIABLE) if url is None else url,
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
        for name in ("lease", "stall_limit"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1 second, not {getattr(self, name)}"
                )
        if self.database_url is not None:
            check_url(self.database_url)


POSITIVE: Final = ("max_payload_bytes", "max_recovering", "max_threads", "payload_threshold")
"""Settings that are numbers from 1 on."""

DURATIONS: Final = {
    "lease",
    "stall_limit",
    "connect_timeout",
    "recheck_interval",
    "park_after",
}
"""Settings that are seconds, and may be given as a timedelta."""


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
