"""`dbos-async run`: a worker as its users start it, from the launch to its end in good order."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from managed import eventually

from dbos_async import Client

PATIENCE = 60.0
SHOP = """
import asyncio, pathlib, time
from dbos_async import DBOS

dbos = DBOS("shop", app_version="1")
dbos.queue("mail")
dbos.queue("bills")

@dbos.step
async def hold(place):
    pathlib.Path(place, "begun").touch()
    while not pathlib.Path(place, "gate").exists():
        await asyncio.sleep(0.01)
        if pathlib.Path(place, "block").exists():
            pathlib.Path(place, "blocked").touch()
            time.sleep(3600)
    return "held"

@dbos.workflow(name="double")
async def double(number):
    return 2 * number

@dbos.workflow(name="work")
async def work(place):
    return await hold(place)

@dbos.workflow(name="crash")
async def crash():
    dbos._host.drop()

@dbos.workflow(name="loop")
async def loop():
    import uvloop
    return isinstance(asyncio.get_running_loop(), uvloop.Loop)
"""


class Worker:
    """`dbos-async run …` in a directory with an app in it."""

    def __init__(self, directory: Path, *arguments: str, url: str) -> None:
        self._said = directory / "said"
        ambient = {key: value for key, value in os.environ.items() if not key.startswith("DBOS_")}
        command = "from dbos_async.cli import main; main()"
        with self._said.open("w") as said, (directory / "printed").open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, "run", *arguments],
                cwd=directory,
                env={**ambient, "DBOS_SYSTEM_DATABASE_URL": url},
                stdout=printed,
                stderr=said,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code."""
        return await asyncio.to_thread(self.process.wait, PATIENCE)


Run = Callable[..., Worker]


@pytest.fixture
def run(dbos_database_url: str, tmp_path: Path) -> Iterator[Run]:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "far_shop.py").write_text(SHOP.replace('"1")', '"1", admin_host="0.0.0.0")'))
    workers: list[Worker] = []

    def start(*arguments: str, url: str = dbos_database_url) -> Worker:
        workers.append(Worker(tmp_path, *arguments, url=url))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()


@pytest.fixture
async def client(dbos_database_url: str) -> Any:
    async with Client(dbos_database_url) as client:
        yield client


async def launched(client: Client, worker: Worker) -> None:
    async def is_alive() -> bool:
        assert worker.process.poll() is None, worker.said
        return any(each.is_alive for each in await client.list_executors())

    await eventually(is_alive)


async def exists(file: Path) -> None:
    async def look() -> bool:
        return await asyncio.to_thread(file.exists)

    await eventually(look)


async def said(worker: Worker, words: str) -> None:
    async def look() -> bool:
        return words in worker.said

    await eventually(look)


async def enqueue(client: Client, queue: str, name: str, *args: Any) -> Any:
    return await client.enqueue(queue, client.stub(name), *args)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_works_until_it_is_told_to_end(
    run: Run, client: Client, tmp_path: Path, number: int
) -> None:
    worker = run("shop:dbos", "--admin-port", "0")
    await launched(client, worker)
    handle = await enqueue(client, "mail", "double", 2)
    assert await handle.get_result(timeout=PATIENCE) == 4
    assert await (await enqueue(client, "mail", "loop")).get_result(timeout=PATIENCE) is True
    worker.signal(number)
    assert await worker.ended() == 0, worker.said
    assert "Traceback" not in worker.said
    assert (tmp_path / "printed").read_text() == ""
    assert await client.list_executors() == []


async def test_it_works_on_the_queues_that_it_was_given(run: Run, client: Client) -> None:
    worker = run("shop:dbos", "--queues", "mail, nowhere", "--admin-port", "0")
    await launched(client, worker)
    left = await enqueue(client, "bills", "double", 1)
    done = await enqueue(client, "mail", "double", 2)
    assert await done.get_result(timeout=PATIENCE) == 4
    assert (await left.get_status()).status == "ENQUEUED"
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0


async def test_a_step_that_runs_is_let_to_its_end(run: Run, client: Client, tmp_path: Path) -> None:
    worker = run("shop:dbos", "--admin-port", "0", "--drain", "5m")
    handle = await enqueue(client, "mail", "work", str(tmp_path))
    await exists(tmp_path / "begun")
    waiting = await enqueue(client, "bills", "work", str(tmp_path))
    await eventually_pending(client, waiting.workflow_id)
    worker.signal(signal.SIGTERM)
    late = await enqueue(client, "mail", "double", 1)
    (tmp_path / "gate").touch()
    assert await worker.ended() == 0, worker.said
    assert (await handle.get_status()).status == "SUCCESS"
    assert (await late.get_status()).status in ("ENQUEUED", "SUCCESS")


async def eventually_pending(client: Client, workflow_id: str) -> None:
    async def look() -> bool:
        return bool(await client.list_workflows(workflow_ids=[workflow_id], status="PENDING"))

    await eventually(look)


async def test_what_takes_too_long_is_left_to_others(
    run: Run, client: Client, tmp_path: Path
) -> None:
    worker = run("shop:dbos", "--admin-port", "0", "--drain", "50ms")
    handle = await enqueue(client, "mail", "work", str(tmp_path))
    await exists(tmp_path / "begun")
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0, worker.said
    assert (await handle.get_status()).status in ("PENDING", "ENQUEUED")
    (tmp_path / "gate").touch()
    second = run("shop:dbos", "--admin-port", "0")
    assert await handle.get_result(timeout=PATIENCE) == "held"
    second.signal(signal.SIGTERM)
    assert await second.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_it_at_once(
    run: Run, client: Client, tmp_path: Path, number: int
) -> None:
    worker = run("shop:dbos", "--admin-port", "0", "--drain", "1h")
    handle = await enqueue(client, "mail", "work", str(tmp_path))
    await exists(tmp_path / "begun")
    worker.signal(number)

    await said(worker, "asked to end")
    worker.signal(number)
    assert await worker.ended() == -number
    assert (await handle.get_status()).status == "PENDING"


async def test_an_app_that_stops_by_itself_is_no_success(run: Run, client: Client) -> None:
    worker = run("shop:dbos", "--admin-port", "0")
    await enqueue(client, "mail", "crash")
    assert await worker.ended() == 1
    assert worker.said.endswith("dbos-async: the app stopped working; the log says why\n")


async def test_one_whose_loop_is_blocked_ends_by_the_second_signal_too(
    run: Run, client: Client, tmp_path: Path
) -> None:
    worker = run("shop:dbos", "--admin-port", "0", "--drain", "1h")
    held = await enqueue(client, "mail", "work", str(tmp_path))
    await exists(tmp_path / "begun")
    worker.signal(signal.SIGTERM)
    await said(worker, "asked to end")
    (tmp_path / "block").touch()
    await exists(tmp_path / "blocked")
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == -signal.SIGTERM
    assert (await held.get_status()).status == "PENDING"


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["shop"], 2, "MODULE:APP"),
        (["nowhere:dbos"], 2, "No module named 'nowhere'"),
        (["shop:double"], 2, "no DBOS app"),
        (["shop:dbos", "--queues", " ,"], 2, "which queues?"),
        (["shop:dbos", "--drain", "soon"], 2, "no duration"),
        (["shop:dbos", "--drain", "999999d"], 2, "at most 100 years"),
        (["shop:dbos", "--log-level", "loud"], 2, "no log level"),
        (["shop:dbos", "-s", "mysql://x"], 2, "postgresql://"),
        (["far_shop:dbos"], 2, "give it a token"),
        (["shop:dbos", "-s", "postgresql://u:canary@127.0.0.1:1/x"], 3, "cannot reach Postgres"),
    ],
    ids=str,
)
async def test_what_cannot_run_says_why(
    run: Run, arguments: list[str], code: int, why: str
) -> None:
    worker = run(*arguments)
    assert await worker.ended() == code
    assert why in worker.said
    assert "Traceback" not in worker.said
    assert "canary" not in worker.said


async def test_without_the_extra_of_the_admin_api_it_says_so_before_it_runs(
    run: Run, tmp_path: Path
) -> None:
    missing = tmp_path / "starlette.py"
    await asyncio.to_thread(missing.write_text, "raise ModuleNotFoundError('starlette')")
    worker = run("shop:dbos", url="postgresql://127.0.0.1:1/nothing")
    assert await worker.ended() == 2
    assert "pip install 'dbos-async[admin]'" in worker.said
    assert "or --admin-port 0" in worker.said
