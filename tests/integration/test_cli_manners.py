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
from importlib.metadata import version
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any
from uuid import uuid4

import pytest
import typer.main
from commands import Commands
from ended import ended
from poolers import Bouncers, Mode

from dbos_async import DBOS, Client, RateLimit
from dbos_async._store import databases
from dbos_async._store.database import masked
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
        assert f"{masked(empty)}: the schema dbos" in bare


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


async def test_it_says_which_release_it_is(cli: Commands) -> None:
    assert (await cli("--version")).stdout == f"dbos-async {version('dbos_async')}\n"


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_what_a_pooler_slows_down_are_apps_and_not_commands(
    cli: Commands, poolers: Bouncers, mode: Mode
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [PROGRAM, "workflow", "list", "-s", poolers.before(cli.url, mode)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "No workflow fits.\n", "")


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


def seen(url: str, columns: int, *arguments: str, typed: str = "", **environment: str) -> str:
    """What a person sees in a terminal that is so wide, and who types that."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    ambient = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    given = {"TERM": "xterm-256color", "DBOS_SYSTEM_DATABASE_URL": url, **environment}
    with subprocess.Popen(
        [PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=ambient | given
    ):
        os.close(theirs)
        os.write(ours, typed.encode())
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


async def test_what_a_person_copies_is_folded_and_never_cut(cli: Commands) -> None:
    release, name = f"sha-{'v' * 40}", f"a-step-of-a-long-name-{'n' * 30}"
    dbos = DBOS("an-app-with-a-long-name", cli.url, app_version=release, executor_id="e" * 40)
    limits = {"concurrency": 50, "worker_concurrency": 10, "partition_concurrency": 5}
    dbos.queue("a-queue-of-some-name", rate_limit=RateLimit(100, per=60), **limits)

    @dbos.step(name=name)
    async def fail() -> None:
        raise ValueError("first\nlast")

    @dbos.workflow(name="failing")
    async def failing() -> None:
        await fail()

    async with dbos:
        with pytest.raises(ValueError, match="first"):
            await failing.with_options(workflow_id="w")()
        shown = {
            path: await asyncio.to_thread(seen, cli.url, 80, *path.split())
            for path in ("versions", "executors", "queue list", "workflow steps w --full")
        }
    for text in shown.values():
        assert "…" not in text
        assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 80
    assert shown["versions"].count("v") >= 40
    assert shown["executors"].count("v") >= 40
    assert shown["executors"].count("e") >= 40
    for word in ("concurrency 5", "worker concurrency 10", "rate limit 100/1m"):
        assert all(part in shown["queue list"] for part in word.split())
    lines = shown["workflow steps w --full"]
    assert lines.count("n") >= 30
    assert re.search(r"^ *1 ", lines, re.MULTILINE)
    assert "ValueError: first" in lines
    assert re.search(r"^ .* last *$", lines, re.MULTILINE)


async def test_a_person_is_asked_before_many_are_deleted(cli: Commands) -> None:
    async with Client(cli.url) as client:
        await client.enqueue("mail", client.stub("work").with_options(workflow_id="w"))
    commands = [
        ("workflow", "delete", "w"),
        ("workflow", "delete", "--name", "work"),
        ("reset",),
    ]
    for command in commands:
        text = await asyncio.to_thread(seen, cli.url, 160, *command, typed="n\n")
        assert "This would delete " in text
        assert "1 workflow, 1 of them not ended" in text or "--name" in command
        assert "nothing was done" in text
    assert len(await cli.json("workflow", "list")) == 1
    text = await asyncio.to_thread(seen, cli.url, 160, *commands[1], typed="y\n")
    assert "1 workflow deleted." in text
    assert await cli.json("workflow", "list") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
async def test_a_full_disk_is_one_sentence(cli: Commands, database: Any) -> None:
    await ended(database, "w", 10)
    command = f"exec {PROGRAM} workflow list --json -s '{cli.url}' > /dev/full"
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", command], stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "no room" in done.stderr


LOST = "update dbos.workflow_status set inputs = $1"
REFERENCE = 'dbos_async payload {"key":"0/0","bytes":1,"digest":"","store":"s3://gone"}'


async def test_what_the_payload_store_lost_is_one_sentence(
    cli: Commands, database: Any, tmp_path: Path
) -> None:
    await ended(database, "w", 10)
    await database.execute(LOST, REFERENCE)
    said = await cli.refused("workflow", "export", "w")
    assert "a large value of workflow 'w'" in said
    archive = str(tmp_path / "archive.jsonl")
    pruned = await cli("prune", "--max-age", "1", "--archive", archive, "--yes")
    assert pruned.stdout == "0 workflows deleted.\n"
