"""A fixture that starts programs, and lets none outlive its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs in this test's directory; none outlives the test."""
    programs: list[Program] = []

    def start(*command: str, **environment: str) -> Program:
        programs.append(Program(tmp_path, *command, **environment))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        print(program.said)
