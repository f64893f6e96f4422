"""Programs in processes of their own, as their users start them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0
"""Seconds after which what a test waits for will not come."""


def eventually(look: Callable[[], T | None], *, what: str) -> T:
    """What `look` returns once it is something."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)  # between looks
    raise AssertionError(f"in vain waited for {what}")


class Program:
    """`python -m …`, in a session of its own."""

    def __init__(self, directory: Path, *command: str, **environment: str) -> None:
        self._said = directory / f"said-{time.monotonic_ns()}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DBOS_SYSTEM")}
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=directory,
                env={**inherited, "PYTHONPATH": str(ROOT), **environment},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has printed, on both outputs."""
        return self._said.read_text()

    def kill(self) -> None:
        """Kill it and its children, with no time for a last word."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Ask it to end; its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(PATIENCE)


Start = Callable[..., Program]
