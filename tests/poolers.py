"""PgBouncer in front of the server that the tests use.

`DBOS_TEST_PGBOUNCER=session` or `=transaction` puts one in front of every database of a run; the
tests of poolers ask for one themselves. What a test itself opens by asyncpg goes past it, so that
it may listen, lock and look whatever the mode is.

The binary is that of $PGBOUNCER, of the system, or what `.ci/pgbouncer` has unpacked beside the
environment; where there is none, who needs it is skipped.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from dbos_async.testing import free_port

Mode = Literal["session", "transaction"]

VARIABLE: Final = "DBOS_TEST_PGBOUNCER"
THROUGH_BOTH: Final = {
    "test_all_processes_together_run_no_more_than_concurrency",
    "test_no_more_start_within_a_period_than_the_rate_limit_allows",
    "test_a_thousand_enqueued_at_once_all_run",
    "test_queued_work_of_a_process_that_died_is_run_by_another",
    "test_a_deduplication_id_is_held_until_the_workflow_ends",
    "test_a_waiting_receiver_is_woken_from_a_web_handler_a_client_a_step_and_a_workflow",
    "test_two_receivers_and_one_message_one_gets_it_and_the_other_waits_its_whole_time",
    "test_everybody_who_waits_for_an_event_is_woken",
    "test_any_process_goes_on_with_what_another_has_parked",
    "test_what_a_workflow_and_its_steps_write_is_read_in_order",
    "test_exactly_the_first_writes_land",
    "test_what_a_killed_process_left_goes_on_in_another_each_step_once",
    "test_two_that_launch_at_once_run_each_workflow_once",
    "test_a_locked_row_holds_up_only_its_own_workflow",
    "test_a_refused_write_fails_alone_and_its_batch_lands",
    "test_the_record_wins_over_what_is_in_hand",
    "test_postgres_restarts_under_load_and_nothing_fails",
}
"""Tests that run through a pooler in either mode whenever they run."""
OF_NEWS: Final = {
    "test_work_of_a_clean_exit_goes_on_elsewhere_at_once",
    "test_nothing_is_lost_while_the_listening_connection_is_cut_again_and_again",
    "test_made_shorter_from_elsewhere_it_starts_at_once",
    "test_every_connection_is_killed_in_turn_and_all_resumes",  # they have no names of their own
    "test_the_listener_hears_again_after_its_connection_was_killed",
    "test_many_readers_share_one_look",  # fifty waits, one after the other
}
"""Tests of what is heard at once, most with all looking switched off: not where nothing is."""
UNPACKED: Final = Path(sys.prefix) / "pgbouncer"
"""What `.ci/pgbouncer` unpacks Debian's packages into."""
PATIENCE: Final = 20.0

INI: Final = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
max_client_conn = 1000
default_pool_size = {sessions}
server_idle_timeout = 3
server_login_retry = 0.01
ignore_startup_parameters = extra_float_digits,options
"""


class PgBouncer:
    """One pooler, in front of one server."""

    def __init__(self, port: int, mode: Mode) -> None:
        self.port = port
        self.mode = mode

    def url_of(self, url: str) -> str:
        """The same database, through it."""
        parts = urlsplit(url)
        return f"postgresql://{parts.username or 'postgres'}@127.0.0.1:{self.port}{parts.path}"

    @classmethod
    @contextmanager
    def running(cls, url: str, mode: Mode, *, sessions: int = 60) -> Iterator["PgBouncer"]:
        """One in front of the server of `url`, with so many sessions for each database."""
        with tempfile.TemporaryDirectory() as directory:
            port = free_port()
            ini, log = Path(directory) / "pgbouncer.ini", Path(directory) / "log"
            ini.write_text(
                INI.format(**place_of(url), listen_port=port, mode=mode, sessions=sessions)
            )
            command = [*command_of(), "-q", str(ini)]
            if os.getuid() == 0:  # as which it will not run
                command[-1:-1] = ["-u", user_of(url)]
            with log.open("wb") as errors:
                process = subprocess.Popen(command, stdout=errors, stderr=errors, env=environment())
            try:
                wait_for(port, process, log)
                yield cls(port, mode)
            finally:
                process.kill()
                process.wait()


class Bouncers:
    """A pooler for each server and mode that is asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[tuple[str, Mode], PgBouncer] = {}
        self._behind: dict[int, str] = {}
        """Ports of poolers, and URLs of the servers behind them."""

    def before(self, url: str, mode: Mode) -> str:
        """The URL of the same database through a pooler."""
        if not command_of():
            pytest.skip("there is no pgbouncer: install it, or run .ci/pgbouncer")
        server = str(place_of(url))
        if (server, mode) not in self._running:
            bouncer = self._stack.enter_context(PgBouncer.running(url, mode))
            self._running[server, mode] = bouncer
            self._behind[bouncer.port] = url
        return self._running[server, mode].url_of(url)

    def past(self, url: str) -> str:
        """The URL of the same database past the pooler, if there is one in it."""
        parts = urlsplit(url)
        behind = self._behind.get(parts.port or 0)
        return url if behind is None else urlsplit(behind)._replace(path=parts.path).geturl()


@contextmanager
def bouncers() -> Iterator[Bouncers]:
    """Those of a run. The tests' own connections go past them meanwhile."""
    with ExitStack() as stack:
        found = Bouncers(stack)
        connect = asyncpg.connect

        async def past(url: str | None = None, /, **options: Any) -> Any:
            if "connection_class" not in options and "statement_cache_size" not in options:
                url = None if url is None else found.past(url)
            return await connect(url, **options)

        asyncpg.connect = past
        stack.callback(setattr, asyncpg, "connect", connect)
        yield found


def command_of() -> list[str]:
    """What runs PgBouncer; nothing where there is none."""
    names = (os.environ.get("PGBOUNCER"), UNPACKED / "usr/sbin/pgbouncer", "pgbouncer")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    found = (shutil.which(str(name), path=path) for name in names if name)
    return [each for each in found if each][:1]


def environment() -> dict[str, str]:
    """Where it finds the libraries that were unpacked with it."""
    libraries = {str(each.parent) for each in UNPACKED.glob("usr/lib/**/*.so*")}
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(libraries))}


def place_of(url: str) -> dict[str, object]:
    """Where a server is."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return {
        "host": query.get("host") or parts.hostname,
        "port": query.get("port") or parts.port or 5432,
        "user": parts.username or "postgres",
    }


def user_of(url: str) -> str:
    """Who may connect to the server's socket, where it is none of the network's."""
    place = Path(str(place_of(url)["host"]))
    return place.owner() if place.is_absolute() else "nobody"


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when somebody listens."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise RuntimeError(f"pgbouncer does not run: {log.read_text(errors='replace')[-2000:]}")
