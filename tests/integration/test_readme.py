"""What the README shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks_of(language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def output_of(code: str, database_url: str, directory: Path) -> str:
    """What a program prints that uses this database."""
    program = directory / "program.py"
    program.write_text(code)
    environment = {"DBOS_SYSTEM_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=directory,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", blocks_of("python"))
def test_every_python_block_runs_as_a_program(
    code: str, dbos_database_url: str, tmp_path: Path
) -> None:
    output_of(code, dbos_database_url, tmp_path)


def test_the_first_program_prints_what_its_comments_promise(
    dbos_database_url: str, tmp_path: Path
) -> None:
    printed = output_of(blocks_of("python")[0], dbos_database_url, tmp_path)
    assert printed.splitlines() == [
        "payment of 4200 for o-1",
        "payment of 4200 for o-2 payment of 4200 for o-3 payment of 1 for o-4",
    ]


COMMANDS = [line.split("#")[0].strip() for block in blocks_of("sh") for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_make_knows(command: str) -> None:
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
