"""The public API under mypy and pyright: what must check does, and what must not is refused.

The `uses_*.py` files beside this one are the contract, word for word, but for `uses_races.py` and
`uses_sagas.py`; they are checked, never run.
In `uses_that_must_not_check.py` a comment that begins with a number marks each line to be refused.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ACCEPTED = ("uses_that_check.py", "uses_sqlalchemy.py", "uses_races.py", "uses_sagas.py")
REFUSED = "uses_that_must_not_check.py"
FILES = [HERE / name for name in (*ACCEPTED, REFUSED)]
MARK = re.compile(r"#\s*\d+")

Complaints = dict[str, dict[int, str]]
"""What a checker says, by file name and line."""


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def complaints(request: pytest.FixtureRequest) -> Complaints:
    checkers: dict[str, Callable[[], Complaints]] = {"mypy": by_mypy, "pyright": by_pyright}
    return checkers[request.param]()


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_must_check_does(complaints: Complaints, name: str) -> None:
    assert complaints[name] == {}


def test_every_marked_line_is_refused(complaints: Complaints) -> None:
    said = complaints[REFUSED]
    assert [lines for lines in marked() if said.keys().isdisjoint(lines)] == []


def test_no_line_is_refused_but_the_marked_ones(complaints: Complaints) -> None:
    expected = set().union(*marked())
    assert {line: what for line, what in complaints[REFUSED].items() if line not in expected} == {}


def test_the_marks_are_found() -> None:
    assert len(marked()) == 15


def marked() -> list[set[int]]:
    """The lines to be refused; of a decorator, it or what it decorates."""
    lines = (HERE / REFUSED).read_text().splitlines()
    return [
        {number, number + 1} if line.startswith("@") else {number}
        for number, line in enumerate(lines, 1)
        if MARK.search(line)
    ]


def by_mypy() -> Complaints:
    said = run("mypy", "--strict", "--output", "json")
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return sorted_out(
        (each["file"], each["line"], each["message"])
        for each in found
        if each["severity"] == "error"
    )


def by_pyright() -> Complaints:
    said = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable))
    return sorted_out(
        (each["file"], each["range"]["start"]["line"] + 1, each["message"])
        for each in said["generalDiagnostics"]
        if each["severity"] == "error"
    )


def run(checker: str, *options: str) -> str:
    """What a checker prints about the files; 1 is its exit code when it complains."""
    command = [sys.executable, "-m", checker, *options, *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def sorted_out(found: Iterable[tuple[str, int, str]]) -> Complaints:
    said: Complaints = {file.name: {} for file in FILES}
    for file, line, message in found:
        if Path(file).name in said:
            said[Path(file).name][line] = message
    return said
