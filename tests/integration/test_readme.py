"""What the README and the guides show works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(language: str, page: Path) -> list[str]:
    """The code blocks of one language."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return found


def links_of(page: Path) -> list[str]:
    """Where a page leads to in this project."""
    return re.findall(r"\]\(([^)#:]+)\)", page.read_text())


def output_of(code: str, database_url: str, directory: Path, **others: str) -> str:
    """What a program prints that uses this database, and others by these variables."""
    program = directory / "program.py"
    program.write_text(code)
    environment = {"DBOS_SYSTEM_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=directory,
        env=os.environ | environment | others,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, code in enumerate(blocks_of("python", page), 1)
    ],
)
def test_every_python_block_runs_as_a_program(
    code: str, dbos_database_url: str, dbos_other_database_url: str, tmp_path: Path
) -> None:
    output_of(code, dbos_database_url, tmp_path, SECOND_DATABASE_URL=dbos_other_database_url)


def test_the_first_program_prints_what_its_comments_promise(
    dbos_database_url: str, tmp_path: Path
) -> None:
    printed = output_of(blocks_of("python", README)[0], dbos_database_url, tmp_path)
    assert printed.splitlines() == [
        "payment of 4200 for o-1",
        "payment of 4200 for o-2 payment of 4200 for o-3 payment of 1 for o-4",
    ]


COMMANDS = [
    line.split("#")[0].strip() for block in blocks_of("sh", README) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_make_knows(command: str) -> None:
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "link"), [(page, link) for page in PAGES for link in links_of(page)]
)
def test_every_link_leads_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def test_every_guide_is_named_in_the_readme() -> None:
    assert {link for link in links_of(README) if link.startswith("docs/")} == {
        f"docs/{page.name}" for page in PAGES if page != README
    }
