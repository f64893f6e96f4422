"""Which processors Postgres and the bench may use, and what they used of them. Linux tells."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbos_async._store.database import Connection

PROC = Path("/proc")
WHERE = "select pg_backend_pid(), current_database()"


class NotHereError(Exception):
    """Postgres is on another machine, or may not be pinned; the message says which."""


async def find_postmaster(connection: Connection) -> int:
    """The process whose children are the server's processes.

    Raises:
        NotHereError: they are not on this machine.
    """
    backend, database = (await connection.fetch(WHERE))[0]
    try:
        title = (PROC / str(backend) / "cmdline").read_bytes().decode(errors="replace")
    except OSError as exc:
        raise NotHereError("the server is not on this machine, or this is not Linux") from exc
    if "postgres" not in title or database not in title:
        raise NotHereError("the server is not on this machine")
    return parent_of(backend)


@contextmanager
def pinned(
    postmaster: int, others: Collection[int], processors: set[int], *, spared: int
) -> Iterator[None]:
    """Postgres and the other processes use these processors alone; a spared one uses any.

    Raises:
        NotHereError: the system does not allow it.
    """
    before = os.sched_getaffinity(postmaster)
    try:
        pin(postmaster, others, processors)
        os.sched_setaffinity(spared, before)
        yield
    finally:
        with suppress(NotHereError):
            pin(postmaster, others, before)


def pin(postmaster: int, others: Iterable[int], processors: set[int]) -> None:
    """The server, whose later children inherit it, those it has, and the others: all threads."""
    try:
        pin_one(postmaster, processors)
        for process in (*children_of(postmaster), *others):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                pin_one(process, processors)
    except PermissionError as exc:
        raise NotHereError(f"the system does not allow it: {exc}") from exc


def pin_one(process: int, processors: set[int]) -> None:
    """Its threads, and those that they start."""
    for thread in (PROC / str(process) / "task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


def children_of(parent: int) -> list[int]:
    """The processes that it started and that live."""
    children = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                if parent_of(int(entry.name)) == parent:
                    children.append(int(entry.name))
    return children


def parent_of(process: int) -> int:
    """Who started it."""
    return int(fields_of(process)[1])


def cpu_seconds_of(process: int) -> float:
    """What it has used so far, as user and in the kernel, to a hundredth or so."""
    user, kernel = fields_of(process)[11:13]
    return (int(user) + int(kernel)) / os.sysconf("SC_CLK_TCK")


def idle_seconds_of(processors: Collection[int]) -> float:
    """How long these have had nothing to do so far, or have waited for a disk."""
    names = {f"cpu{number}" for number in processors}
    lines = [line.split() for line in (PROC / "stat").read_text().splitlines()]
    idle = sum(int(line[4]) + int(line[5]) for line in lines if line[0] in names)
    return idle / os.sysconf("SC_CLK_TCK")


def fields_of(process: int) -> list[str]:
    """Its /proc/…/stat from the third field on: the second, its name, may hold anything."""
    stat = (PROC / str(process) / "stat").read_text()
    return stat.rpartition(")")[2].split()
