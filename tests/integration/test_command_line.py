"""What `dbos-async` prints, and with which code it exits."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dbos_async import DBOS, Client, Workflow
from dbos_async._store import databases
from dbos_async.testing import PostgresServer

SHOP = """
from dbos_async import DBOS

dbos = DBOS("shop", app_version="1")

@dbos.step
async def charge(cents):
    return cents

@dbos.workflow(name="buy")
async def buy(cents):
    return await charge(cents)

class nested:
    app = dbos
"""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(dbos_database_url: str, tmp_path: Path) -> Command:
    """Runs the command line in a directory with an app in it."""
    (tmp_path / "shop.py").write_text(SHOP)

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        ambient = {key: value for key, value in os.environ.items() if not key.startswith("DBOS_")}
        url = {"DBOS_SYSTEM_DATABASE_URL": dbos_database_url}
        return subprocess.run(
            [sys.executable, "-c", "from dbos_async.cli import main; main()", *arguments],
            cwd=tmp_path,
            env={**ambient, **url, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def app_of(url: str, version: str) -> tuple[DBOS, Workflow[[int], int]]:
    dbos = DBOS("shop", url, app_version=version)
    dbos.queue("jobs")

    @dbos.step(name="charge")
    async def charge(cents: int) -> int:
        return cents

    @dbos.workflow(name="buy")
    async def buy(cents: int) -> int:
        return await charge(cents)

    return dbos, buy


def run_once(url: str, *ids: str, version: str = "1") -> None:
    async def work() -> None:
        dbos, buy = app_of(url, version)
        async with dbos:
            for workflow_id in ids:
                await buy.with_options(workflow_id=workflow_id)(3)

    asyncio.run(work())


def strand(url: str) -> None:
    """Leave two workflows for version 1."""

    async def work() -> None:
        dbos, buy = app_of(url, "1")
        async with dbos:
            for _ in range(2):
                await dbos.enqueue("jobs", buy.with_options(delay=3600), 3)

    asyncio.run(work())


def test_versions_are_listed_for_people_and_for_scripts(
    command: Command, dbos_database_url: str
) -> None:
    strand(dbos_database_url)
    run_once(dbos_database_url, version="2")
    table = command("versions")
    assert table.returncode == 0
    header, newest, oldest = table.stdout.splitlines()
    columns = "app version is_latest processes enqueued delayed pending is_stranded"
    assert header.replace("is ", "is_").split() == columns.split()
    assert newest.split() == ["shop", "2", "yes", "0", "0", "0", "0"]
    assert oldest.split() == ["shop", "1", "0", "0", "2", "0", "yes"]
    assert "\x1b" not in table.stdout
    listed = json.loads(command("versions", "--json").stdout)
    assert listed[1] == {
        "app": "shop",
        "version": "1",
        "is_latest": False,
        "processes": 0,
        "enqueued": 0,
        "delayed": 2,
        "pending": 0,
        "is_stranded": True,
    }


def test_a_new_database_has_no_versions_and_needs_nobody(command: Command) -> None:
    assert command("versions").stdout == "No app was launched yet.\n"
    assert json.loads(command("versions", "--json").stdout) == []
    done = command("doctor")
    assert (done.returncode, done.stdout) == (0, "Nothing needs you.\n"), done.stderr


def test_work_is_moved_to_another_version_by_the_command_that_doctor_names(
    command: Command, dbos_database_url: str
) -> None:
    strand(dbos_database_url)
    run_once(dbos_database_url, version="2")
    sick = command("doctor", "--json")
    assert sick.returncode == 1
    [finding] = [check for check in json.loads(sick.stdout) if check["state"] == "act"]
    assert finding["check"] == "stranded work"
    assert finding["found"] == "2 workflows of shop, version 1: no process runs that"
    assert "`dbos-async versions move 1 NEW`" in finding["what_to_do"]
    moved = command("versions", "move", "1", "2")
    assert (moved.returncode, moved.stdout) == (0, "2 workflows moved from 1 to 2.\n")
    moved = command("versions", "-s", dbos_database_url, "move", "2", "1", "--json")
    assert json.loads(moved.stdout) == [{"moved": 2}]


def test_the_version_for_unversioned_work_is_set(command: Command, dbos_database_url: str) -> None:
    run_once(dbos_database_url, version="1")
    run_once(dbos_database_url, version="2")
    assert command("versions", "set-latest", "1").returncode == 0
    assert [row["is_latest"] for row in json.loads(command("versions", "--json").stdout)] == [
        True,
        False,
    ]
    unknown = command("versions", "set-latest", "3")
    assert unknown.returncode == 2
    assert unknown.stderr == (
        "dbos-async: no process has ever run version '3'; there are: '1', '2'\n"
    )


def test_doctor_counts_dead_letters(command: Command, dbos_database_url: str) -> None:
    run_once(dbos_database_url, "w")

    async def bury() -> None:
        async with Client(dbos_database_url) as client:
            await client._own_session().database.execute(
                "update dbos.workflow_status set status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'"
            )

    asyncio.run(bury())
    done = command("doctor")
    assert done.returncode == 1
    assert "dead letters" in done.stdout
    assert "resume" in done.stdout


def test_check_replay_passes_what_fits(command: Command, dbos_database_url: str) -> None:
    run_once(dbos_database_url, "a", "b")
    done = command("check-replay", "shop:dbos")
    assert (done.returncode, done.stdout) == (0, "2 of 2 workflows replay.\n"), done.stderr
    done = command("check-replay", "shop:nested.app", "--sample", "1", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {"workflow_id": "b", "name": "buy", "status": "SUCCESS", "verdict": "ok", "detail": ""}
    ]


def test_check_replay_exits_with_1_where_something_diverges(
    command: Command, dbos_database_url: str, tmp_path: Path
) -> None:
    run_once(dbos_database_url, "a", "b")
    (tmp_path / "shop.py").write_text(SHOP.replace("charge(cents)\n\n", "charge(cents + 1)\n\n"))
    done = command("check-replay", "shop:dbos", "--workflow-id", "a", "-w", "b")
    assert done.returncode == 1
    assert done.stdout.count("diverged at step 1: 'charge'") == 2
    assert done.stdout.endswith("0 of 2 workflows replay.\n")
    assert command("check-replay", "shop:dbos", "--name", "other").returncode == 0
    assert command("check-replay", "shop:dbos", "--status", "PENDING").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check-replay", "shop"], "MODULE:APP"),
        (["check-replay", "nowhere:dbos"], "No module named 'nowhere'"),
        (["check-replay", "shop:nothing"], "no attribute 'nothing'"),
        (["check-replay", "shop:DBOS"], "no DBOS app but type"),
        (["check-replay", "shop:dbos", "--sample", "0"], "sample"),
        (["check-replay", "shop:dbos", "--sample", "1", "-w", "w"], "not both"),
        (["check-replay", "shop:dbos", "--status", "DONE"], "'DONE' is no status"),
        (["versions", "-s", "mysql://x"], "must look like postgresql://"),
        (["doctor", "--databse-url", "x"], "No such option"),
        (["versions", "move", "1"], "NEW"),
    ],
)
def test_what_cannot_be_understood_exits_with_2(
    command: Command, arguments: list[str], complaint: str
) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_database_url_it_says_how_to_give_one(command: Command) -> None:
    done = command("versions", DBOS_SYSTEM_DATABASE_URL="")
    assert done.returncode == 2
    assert "DBOS_SYSTEM_DATABASE_URL" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["versions"], ["doctor"], ["check-replay", "shop:dbos"]], ids=str
)
def test_a_database_that_does_not_answer_or_is_none_of_ours_exits_with_3(
    command: Command, arguments: list[str], dbos_postgres: PostgresServer
) -> None:
    done = command(*arguments, "-s", "postgresql://somebody:secret@127.0.0.1:1/nothing")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("dbos-async: cannot reach Postgres")
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1
    name = f"empty_{uuid4().hex}"
    asyncio.run(databases.ensure_database(dbos_postgres.url, name))
    try:
        done = command(*arguments, "-s", dbos_postgres.url_of(name))
        assert (done.returncode, done.stdout) == (3, "")
        assert "run `dbos-async migrate`" in done.stderr
    finally:
        asyncio.run(databases.drop_database(dbos_postgres.url, name))


@pytest.mark.parametrize(
    ("name", "printed"), [("[red]1[/]", "[red]1[/]"), ("\x1b[2J\n1", r"\x1b[2J\n1")]
)
def test_a_name_is_printed_as_it_is_and_does_nothing_to_the_terminal(
    command: Command, dbos_database_url: str, name: str, printed: str
) -> None:
    run_once(dbos_database_url, version=name)
    assert printed in command("versions").stdout


def test_help_names_the_commands(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    for name in ("versions", "check-replay", "doctor"):
        assert name in done.stdout
        assert command(name, "--help").returncode == 0


def test_the_library_does_not_import_the_command_line() -> None:
    code = "import sys, dbos_async; print({'typer', 'click'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_command_is_installed() -> None:
    from importlib.metadata import entry_points

    [entry] = entry_points(group="console_scripts", name="dbos-async")
    loaded: Any = entry.load()
    assert callable(loaded)
