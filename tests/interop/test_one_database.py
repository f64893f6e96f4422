"""Official apps and ours on one database: adopted from one another, or side by side."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from dbos_async import errors
from dbos_async._store import databases
from dbos_async.testing import PostgresServer

WORKER = """
import json, os, sys
from dbos import DBOS, SetWorkflowID, WorkflowSerializationFormat

url, app, version, executor = sys.argv[1:]
ran = []

@DBOS.step()
def double(number):
    ran.append(f"double {number}")
    return 2 * number

@DBOS.step()
def gate():
    print(json.dumps("waits"), flush=True)
    if sys.stdin.readline() == "die\\n":
        os._exit(1)

@DBOS.workflow(name="simple")
def simple(number, *, note=""):
    return {"doubled": double(number), "note": note}

@DBOS.workflow(name="portable", serialization_type=WorkflowSerializationFormat.PORTABLE)
def portable(number, *, note=""):
    return {"doubled": double(number), "note": note}

@DBOS.workflow(name="waiting")
def waiting(number):
    doubled = double(number)
    gate()
    return double(doubled)

@DBOS.workflow(name="failing")
def failing(reason):
    raise ValueError(reason)

DBOS(config={"name": app, "system_database_url": url, "executor_id": executor,
             "application_version": version, "run_admin_server": False})
DBOS.launch()
DBOS.register_queue(f"{app}-mail")
print(json.dumps("launched"), flush=True)
for line in sys.stdin:
    command, *arguments = json.loads(line)
    if command == "run":
        id, name, number = arguments
        with SetWorkflowID(id):
            try:
                answer = globals()[name](number)
            except ValueError as exc:
                answer = str(exc)
    elif command == "enqueue":
        id, number = arguments
        with SetWorkflowID(id):
            answer = DBOS.enqueue_workflow(f"{app}-mail", simple, number).get_result()
    elif command == "result":
        answer = DBOS.retrieve_workflow(arguments[0]).get_result()
    elif command == "ran":
        answer = ran
    print(json.dumps(answer), flush=True)
DBOS.destroy()
"""

Until = Callable[[Callable[[], object]], Awaitable[None]]


class Worker:
    """A process that runs an official app and does what it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def answer(self) -> Any:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line = await self.process.stdout.readline()
        return json.loads(line)

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def tell(self, *command: object) -> Any:
        self.write(json.dumps(command))
        return await self.answer()


@asynccontextmanager
async def worker(url: str, app: str, executor: str = "local") -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, url, app, version_of(app), executor),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        worker = Worker(process)
        assert await worker.answer() == "launched"
        yield worker
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(60):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def version_of(app: str) -> str:
    """Official apps that share a database cannot have a version's name in common."""
    return "1" if app == "shop" else f"{app} 1"


@pytest.fixture(scope="module")
def left_by_them(dbos_postgres: PostgresServer) -> Iterator[str]:
    """The name of a database in which an official app has worked, and died at work."""
    name = f"theirs_{uuid4().hex}"

    async def work() -> None:
        await databases.ensure_database(dbos_postgres.url, name)
        async with worker(dbos_postgres.url_of(name), "shop", "dead") as app:
            assert await app.tell("run", "native", "simple", 1) == {"doubled": 2, "note": ""}
            assert await app.tell("run", "portable", "portable", 2) == {"doubled": 4, "note": ""}
            assert await app.tell("run", "failed", "failing", "no stock") == "no stock"
            assert await app.tell("run", "cut", "waiting", 10) == "waits"
            app.write("die")
            await app.process.wait()

    with ThreadPoolExecutor(1) as thread:  # beside whatever loop the tests have
        thread.submit(asyncio.run, work()).result()
        yield name
        thread.submit(asyncio.run, databases.drop_database(dbos_postgres.url, name)).result()


@pytest.fixture
async def theirs(dbos_postgres: PostgresServer, left_by_them: str) -> AsyncIterator[str]:
    """The URL of a copy of it."""
    name = f"{left_by_them}_copy"
    await databases.clone_database(dbos_postgres.url, name, left_by_them)
    yield dbos_postgres.url_of(name)
    await databases.drop_database(dbos_postgres.url, name)


async def test_an_app_of_ours_works_at_once_in_a_database_of_theirs(
    theirs: str, shop_on: Any, official_on: Any
) -> None:
    async with shop_on(theirs) as shop, official_on(theirs) as official:
        assert (await shop.simple.with_options(workflow_id="ours")(5))["doubled"] == 10
        await (await shop.mail.enqueue(shop.child, 6)).get_result()
        read = {w.workflow_id: w.output for w in await official.list_workflows_async(name="simple")}
        assert read == {
            "native": {"doubled": 2, "note": ""},
            "ours": {"doubled": 10, "note": ""},
        }


async def test_their_portable_rows_are_read(theirs: str, shop_on: Any) -> None:
    async with shop_on(theirs) as shop:
        handle = await shop.dbos.retrieve_workflow("portable")
        assert await handle.get_result() == {"doubled": 4, "note": ""}
        status = await handle.get_status()
        assert (status.status, status.name) == ("SUCCESS", "portable")
        assert (status.input.args, status.output) == ((2,), {"doubled": 4, "note": ""})
        [step] = await shop.dbos.list_steps("portable")
        assert (step.step_id, step.name) == ("1", "double")


async def test_their_pickled_rows_are_listed_but_not_unpickled(theirs: str, shop_on: Any) -> None:
    async with shop_on(theirs) as shop:
        handle = await shop.dbos.retrieve_workflow("native")
        with pytest.raises(errors.SerializationError, match="allow_pickle=True"):
            await handle.get_result()
        status = await handle.get_status()
        assert (status.status, status.input) == ("SUCCESS", None)
        failed = await (await shop.dbos.retrieve_workflow("failed")).get_status()
        assert isinstance(failed.error, errors.SerializationError)


async def test_their_pickled_rows_are_read_by_an_app_that_opts_in(
    theirs: str, shop_on: Any
) -> None:
    async with shop_on(theirs, allow_pickle=True) as shop:
        handle = await shop.dbos.retrieve_workflow("native")
        assert await handle.get_result() == {"doubled": 2, "note": ""}
        status = await handle.get_status()
        assert (status.input.args, status.output) == ((1,), {"doubled": 2, "note": ""})
        [step] = await shop.dbos.list_steps("native")
        assert step.output == 2
        with pytest.raises(ValueError, match="no stock"):
            await (await shop.dbos.retrieve_workflow("failed")).get_result()
        failed = await (await shop.dbos.retrieve_workflow("failed")).get_status()
        assert isinstance(failed.error, ValueError)


async def test_what_they_left_at_work_is_finished_by_an_app_that_opts_in(
    theirs: str, shop_on: Any, official_on: Any
) -> None:
    async with shop_on(theirs, allow_pickle=True, step_names=("double", "gate")) as shop:
        shop.gate.set()
        handle = await shop.dbos.retrieve_workflow("cut")
        assert await handle.get_result(timeout=20) == 40
        assert shop.calls == ["waits", "double 20"]
        status = await handle.get_status()
        assert status.input.args == (10,)
        async with official_on(theirs) as official:
            read = await official.retrieve_workflow_async("cut")
            assert await read.get_result() == 40
            assert (await read.get_status()).input == {"args": (10,), "kwargs": {}}
            steps = await official.list_workflow_steps_async("cut")
            assert [step["output"] for step in steps] == [20, None, 40]


async def test_what_they_left_at_work_is_refused_by_an_app_that_does_not(
    theirs: str, shop_on: Any
) -> None:
    async with shop_on(theirs) as shop:
        handle = await shop.dbos.retrieve_workflow("cut")
        with pytest.raises(errors.SerializationError, match="allow_pickle=True"):
            await handle.get_result(timeout=20)
        assert shop.calls == []


async def test_what_their_client_pickles_runs_where_pickle_is_allowed(
    dbos_database_url: str, shop_on: Any, official_on: Any
) -> None:
    async with (
        shop_on(dbos_database_url, allow_pickle=True) as shop,
        official_on(dbos_database_url) as official,
    ):
        handle = await official.enqueue_async({"workflow_name": "child", "queue_name": "mail"}, 8)
        assert await handle.get_result(polling_interval_sec=0.05) == 16
        status = await handle.get_status()
        assert status.input == {"args": (8,), "kwargs": {}}
        fork = await official.fork_workflow_async(handle.workflow_id, 1)
        assert await fork.get_result(polling_interval_sec=0.05) == 16
        ours = await (await shop.dbos.retrieve_workflow(handle.workflow_id)).get_status()
        assert ours.input is not None
        assert ours.input.args == (8,)


# Both sides have the same workflow names and executor id.


async def test_our_recovery_leaves_alone_what_an_official_app_has_at_work(
    dbos_database_url: str, shop_on: Any
) -> None:
    async with worker(dbos_database_url, "theirs") as app:
        app.write(json.dumps(["run", "their-cut", "waiting", 1]))
        assert await app.answer() == "waits"
        await leave_pending(dbos_database_url, "decoy", "zzz", "shop")  # looked at after theirs
        async with shop_on(dbos_database_url, executor_id="local") as shop:
            decoy = await shop.dbos.retrieve_workflow("decoy")
            assert await decoy.get_result(timeout=20) == 2
            assert shop.calls == ["double 1"]
            app.write("")
            assert await app.answer() == 4


async def test_the_recovery_of_an_official_app_leaves_alone_what_ours_has_at_work(
    dbos_database_url: str, shop_on: Any, until: Until
) -> None:
    async with shop_on(dbos_database_url, executor_id="local") as shop:
        await shop.dbos.start_workflow(shop.waiting.with_options(workflow_id="our-cut"), 100)
        await until(lambda: "waits" in shop.calls)
        await leave_pending(dbos_database_url, "decoy", "local", "theirs")
        async with worker(dbos_database_url, "theirs") as app:
            assert await app.tell("result", "decoy") == {"doubled": 2, "note": ""}
            assert await app.tell("ran") == ["double 1"]
        shop.gate.set()
        ours = await shop.dbos.retrieve_workflow("our-cut")
        assert await ours.get_result(timeout=20) == 400
        assert shop.calls == ["double 100", "waits", "double 200"]


async def test_each_app_serves_its_own_queues(dbos_database_url: str, shop_on: Any) -> None:
    async with shop_on(dbos_database_url) as shop, worker(dbos_database_url, "theirs") as app:
        handles = [await shop.mail.enqueue(shop.simple, number) for number in range(5)]
        assert (await app.tell("enqueue", "their-1", 1000))["doubled"] == 2000
        assert [(await handle.get_result())["doubled"] for handle in handles] == [0, 2, 4, 6, 8]
        assert await app.tell("ran") == ["double 1000"]
        assert "double 1000" not in shop.calls


async def test_a_queue_of_another_app_is_not_taken_over(
    dbos_database_url: str, shop_on: Any
) -> None:
    async with connected(dbos_database_url) as connection:
        await connection.execute("""
            insert into dbos.queues (name, concurrency, application_name)
            values ('mail', 3, 'theirs')
        """)
        with pytest.raises(errors.ConfigurationError, match=r"mail.*theirs"):
            async with shop_on(dbos_database_url):
                pass
        assert await connection.fetchval("select concurrency from dbos.queues") == 3
        await connection.execute("update dbos.queues set application_name = null")
        async with shop_on(dbos_database_url):
            owner = await connection.fetchval("select application_name from dbos.queues")
            assert owner == "shop"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def leave_pending(url: str, workflow_id: str, executor_id: str, application: str) -> None:
    """A workflow that a dead executor left."""
    name = "child" if application == "shop" else "simple"
    inputs = '{"positionalArgs":[1]}'
    insert = """
        insert into dbos.workflow_status
               (workflow_uuid, status, name, inputs, executor_id, application_version, owner_xid,
                application_name, serialization)
        values ($1, 'PENDING', $2, $3, $4, $6, 'gone', $5, 'portable_json')
    """
    async with connected(url) as connection:
        version = version_of(application)
        await connection.execute(
            insert, workflow_id, name, inputs, executor_id, application, version
        )
