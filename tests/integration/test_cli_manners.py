"""What all commands have in common: help, exit codes, one sentence for what is wrong, terminals."""

import asyncio
import os
import pty
import re
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any
from uuid import uuid4

import pytest
import typer.main
from commands import Commands

from dbos_async import Client
from dbos_async._store import databases
from dbos_async.cli.commands import app
from dbos_async.testing import PostgresServer

PROGRAM = Path(sys.executable).with_name("dbos-async")
QUESTIONS = {
    "executors": [],
    "doctor": [],
    "versions": [],
    "versions set-latest": ["1"],
    "versions move": ["1", "2"],
    "workflow list": [],
    "workflow get": ["w"],
    "workflow steps": ["w"],
    "workflow cancel": ["w"],
    "workflow resume": ["w"],
    "workflow fork": ["w"],
    "workflow restart": ["w"],
    "workflow rewind": ["w"],
    "workflow delete": ["--status", "ERROR"],
    "workflow export": ["w"],
    "schedule list": [],
    "schedule pause": ["nightly"],
    "schedule resume": ["nightly"],
    "schedule trigger": ["nightly"],
    "schedule backfill": ["nightly", "--since", "1d"],
    "prune": ["--max-age", "1d"],
    "queue list": [],
    "queue pause": ["mail"],
    "queue resume": ["mail"],
    "queue set": ["mail", "--concurrency", "1"],
}
"""Commands that ask a client, and the least that they take."""
OTHERS = {"run", "check-replay", "migrate", "reset", "workflow import"}


def commands_of(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command, by what is typed."""
    inner = getattr(command, "commands", None)
    if path and (inner is None or command.invoke_without_command):
        yield path, command
    for name, one in (inner or {}).items():
        yield from commands_of(one, f"{path} {name}".strip())


COMMANDS = dict(commands_of(typer.main.get_command(app)))


def test_every_command_that_takes_a_database_is_tested_without_one() -> None:
    taking = {
        path
        for path, command in COMMANDS.items()
        if any("--database-url" in parameter.opts for parameter in command.params)
    }
    assert taking == {*QUESTIONS, *OTHERS}


@pytest.mark.parametrize("path", COMMANDS)
async def test_every_command_says_what_it_does_and_what_its_exit_code_means(
    cli: Commands, path: str
) -> None:
    printed = (await cli(*path.split(), "--help")).stdout
    assert f"Usage: root {path}" in printed
    assert COMMANDS[path].help
    group = path.rpartition(" ")[0]
    codes = (await cli(*group.split(), "--help")).stdout
    for words in ("Exit codes: 0", "1 something needs a person", "3 the database cannot be used"):
        assert words in " ".join(codes.split())


@pytest.fixture
async def empty(dbos_postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database without the schema."""
    name = f"empty_{uuid4().hex}"
    await databases.ensure_database(dbos_postgres.url, name)
    yield dbos_postgres.url_of(name)
    await databases.drop_database(dbos_postgres.url, name)


async def test_a_database_that_is_away_or_empty_is_said_so_in_a_sentence(
    cli: Commands, empty: str
) -> None:
    nowhere = "postgresql://somebody:canary@127.0.0.1:1/nothing"
    for path, arguments in QUESTIONS.items():
        away = await cli.refused(*path.split(), *arguments, "-s", nowhere, code=3)
        assert "cannot reach Postgres at postgresql://somebody@127.0.0.1:1/nothing" in away
        bare = await cli.refused(*path.split(), *arguments, "-s", empty, code=3)
        assert "run `dbos-async migrate`" in bare


async def test_an_unknown_workflow_of_a_check_is_not_there(cli: Commands, tmp_path: Path) -> None:
    app = "from dbos_async import DBOS\ndbos = DBOS('shop', app_version='1')\n"
    await asyncio.to_thread((tmp_path / "checked_shop.py").write_text, app)
    done = await asyncio.to_thread(
        subprocess.run,
        [PROGRAM, "check-replay", "checked_shop:dbos", "-w", "w", "-s", cli.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "dbos-async: there is no workflow with the id 'w'\n"


async def test_an_app_that_names_its_database_is_asked_there(cli: Commands, tmp_path: Path) -> None:
    app = f"from dbos_async import DBOS\ndbos = DBOS('shop', {cli.url!r}, app_version='1')\n"
    await asyncio.to_thread((tmp_path / "named_shop.py").write_text, app)
    nowhere = {"DBOS_SYSTEM_DATABASE_URL": "postgresql://127.0.0.1:1/nothing"}
    done = await asyncio.to_thread(
        subprocess.run,
        [PROGRAM, "check-replay", "named_shop:dbos"],
        cwd=tmp_path,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0 of 0 workflows replay.\n"), done.stderr


def test_the_shell_completes_commands() -> None:
    words = {"_DBOS_ASYNC_COMPLETE": "complete_bash", "COMP_WORDS": "dbos-async workflow re"}
    done = subprocess.run(
        [PROGRAM],
        env={**os.environ, **words, "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["resume", "restart", "rewind"], done.stderr


def seen(url: str, columns: int, *arguments: str, **environment: str) -> str:
    """What a person sees in a terminal that is so wide."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    ambient = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    given = {"TERM": "xterm-256color", "DBOS_SYSTEM_DATABASE_URL": url, **environment}
    with subprocess.Popen(
        [PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=ambient | given
    ):
        os.close(theirs)
        printed = b""
        while True:
            try:
                some = os.read(ours, 65_536)
            except OSError:  # Linux says so that nobody writes any more
                break
            if not some:
                break
            printed += some
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


async def test_a_terminal_gets_colours_and_no_longer_lines(cli: Commands) -> None:
    async with Client(cli.url) as client:
        for number in range(3):
            stub = client.stub("a.module.with_a_long_path.and_a_workflow")
            await client.enqueue("a-queue-of-some-name", stub, number)
        [first, *_] = await client.list_workflows()
        await client.cancel_workflow(first.workflow_id)
    for columns in (80, 160):
        text = await asyncio.to_thread(seen, cli.url, columns, "workflow", "list")
        assert COLOUR.search(text)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
        assert len(lines) == 4
        assert max(map(len, lines)) <= columns
        assert first.workflow_id in lines[1]
        assert ("…" in lines[1]) is (columns == 80)
    plain = await asyncio.to_thread(seen, cli.url, 80, "workflow", "list", NO_COLOR="1")
    assert first.workflow_id in plain
    assert not COLOUR.search(plain)
