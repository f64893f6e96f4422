"""`dbos-async prune`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ended import ended, left, many

DAY = 86_400.0

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def prune(dbos_database_url: str, tmp_path: Path) -> Command:
    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        ambient = {key: value for key, value in os.environ.items() if not key.startswith("DBOS_")}
        url = {"DBOS_SYSTEM_DATABASE_URL": dbos_database_url}
        return subprocess.run(
            [sys.executable, "-c", "from dbos_async.cli import main; main()", "prune", *arguments],
            cwd=tmp_path,
            env={**ambient, **url, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


async def test_it_says_how_many_and_deletes_them_if_told_so(database: Any, prune: Command) -> None:
    await many(database, "w-", 20)
    await ended(database, "failed", 100 * DAY, status="ERROR")
    await ended(database, "bank", 100 * DAY, application="bank")
    policy = ("--max-age", "30d", "--keep-failed", "forever", "--app", "shop")
    told = prune(*policy, "--dry-run")
    assert (told.returncode, told.stdout) == (0, "20 workflows would be deleted.\n")
    told = prune(*policy, "--dry-run", "--json")
    assert json.loads(told.stdout) == {"would_be_deleted": 20}
    refused = prune(*policy)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "this would delete 20 workflows: add --yes" in refused.stderr
    assert len(await left(database)) == 22
    done = prune(*policy, "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"deleted": 20})
    assert prune("--max-rows", "1", "--yes").stdout == "1 workflow deleted.\n"


async def test_it_writes_an_archive_or_deletes_nothing(
    database: Any, prune: Command, tmp_path: Path
) -> None:
    await many(database, "w-", 3)
    failed = prune("--max-age", "1d", "--yes", "--archive", "nowhere/archive.jsonl")
    assert failed.returncode == 2
    assert "cannot write the archive" in failed.stderr
    assert len(await left(database)) == 3
    assert prune("--max-age", "1d", "--yes", "--archive", "archive.jsonl").returncode == 0
    lines = (tmp_path / "archive.jsonl").read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 1, 1]
    assert await left(database) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--yes"], "give --max-age or --max-rows"),
        (["--yes", "--max-age", "soon"], "no duration"),
        (["--yes", "--max-age", "-1d"], "no duration"),
        (["--yes", "--max-age", "1d", "--keep-failed", "never"], "no duration"),
        (["--yes", "--max-age", "100000w"], "at most 100 years"),
        (["--yes", "--max-rows", "-1"], "max-rows"),
        (["--yes", "--max-rows", "many"], "max-rows"),
        (["--yes", "--max-rows", "1", "--app", ""], "application_name"),
    ],
)
async def test_what_cannot_be_understood_deletes_nothing(
    database: Any, prune: Command, arguments: list[str], message: str
) -> None:
    await many(database, "w-", 3)
    told = prune(*arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert len(await left(database)) == 3


def test_a_database_that_does_not_answer_exits_with_3(prune: Command) -> None:
    gone = "postgresql://nobody@127.0.0.1:1/nothing"
    told = prune("--max-age", "1d", "--dry-run", DBOS_SYSTEM_DATABASE_URL=gone)
    assert told.returncode == 3
    assert "cannot reach Postgres" in told.stderr
