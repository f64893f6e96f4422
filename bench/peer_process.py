"""The environments of the packages that dbos_async is measured beside, and their processes."""

import asyncio
import importlib.metadata
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A package, and the program that loads it."""

    name: str
    version: str
    program: Path


DBOS = Package("dbos", "3.4.0", Path(__file__).parent / "official.py")
PGQUEUER = Package("pgqueuer", "1.6.0", Path(__file__).parent / "jobs.py")
CACHE = Path(__file__).parent / ".cache"
PATIENCE = 120.0
"""Seconds for its launch, and for one turn; it takes a few."""


class PeerError(Exception):
    """A package could not be installed, started or run to the end."""


async def find_or_make_python(package: Package) -> Path:
    """The interpreter of an environment with the package: this one, or one made for it.

    Raises:
        PeerError: it could not be made.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        if importlib.metadata.version(package.name) == package.version:
            return Path(sys.executable)
    version = ".".join(map(str, sys.version_info[:2]))
    home = CACHE / f"{package.name}-{package.version}-python{version}"
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        await run(sys.executable, "-m", "venv", "--clear", str(home))
        wanted = (f"{package.name}=={package.version}", "asyncpg", "uvloop")
        await run(str(python), "-m", "pip", "install", "--quiet", *wanted)
        (home / "installed").touch()
    return python


async def run(*command: str) -> None:
    """Run a command to its end.

    Raises:
        PeerError: it failed; with the end of what it said.
    """
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    _, said = await process.communicate()
    if process.returncode:
        raise PeerError(f"{' '.join(command)} failed: {said.decode(errors='replace')[-500:]}")


@asynccontextmanager
async def peer(package: Package, python: Path, url: str, *sizes: int) -> AsyncIterator["Peer"]:
    """The package, launched on the database of `url`.

    Raises:
        PeerError: it could not be started.
    """
    # -P: else the modules beside the program stand in for those of the standard library.
    arguments = ("-P", str(package.program), url, *map(str, sizes))
    try:
        process = await asyncio.create_subprocess_exec(
            str(python), *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
    except OSError as exc:
        raise PeerError(f"cannot run {python}: {exc}") from exc
    launched = Peer(package, process)
    try:
        await launched.expect("ready")
        yield launched
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


class Peer:
    """Its process."""

    def __init__(self, package: Package, process: Process) -> None:
        self._name = f"{package.name} {package.version}"
        self._process = process

    async def do(self, what: str) -> None:
        """Have it do one of the things that its program knows.

        Raises:
            PeerError: it could not.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n".encode())
        await self.expect("done")

    async def expect(self, answer: str) -> None:
        """Wait for its answer.

        Raises:
            PeerError: it ended, or it is silent, or it says something else.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._process.stdout.readline()
        except TimeoutError as exc:
            raise PeerError(f"{self._name} has been silent for {PATIENCE:.0f} s") from exc
        if line.decode().strip() != answer:
            raise PeerError(f"{self._name} failed: {await self._last_words(line)}")

    async def _last_words(self, line: bytes) -> str:
        assert self._process.stderr is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        said = await self._process.stderr.read()
        return (line + said).decode(errors="replace").strip()[-500:] or "it ended without a word"
