"""Where figures come from: a commit, packages, a machine."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("asyncpg", "msgspec", "uvloop", "anyio", "dbos", "pgqueuer")
PROCESSORS = Path("/proc/cpuinfo")
GIT = ("git", "-C", str(ROOT))


def commit_of_this() -> str:
    """The commit that is checked out, and whether it is what runs; empty outside of git."""
    with suppress(OSError, subprocess.CalledProcessError):
        changes = said_by("status", "--porcelain", "--untracked-files=no")
        return said_by("rev-parse", "HEAD") + (" with changes" if changes else "")
    return ""


def said_by(*command: str) -> str:
    """What git answers."""
    ended = subprocess.run([*GIT, *command], capture_output=True, text=True, check=True)  # noqa: S603  # constants
    return ended.stdout.strip()


def package_versions() -> dict[str, str]:
    """What is installed beside this; a peer may have an environment of its own."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def processor_model() -> str:
    """What the processors call themselves."""
    with suppress(OSError):
        for line in PROCESSORS.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
