"""What cannot work is refused clearly, before it does harm; nothing is changed silently."""

import asyncio
import logging
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DatabaseLostError,
    DBOSError,
    PortableWorkflowError,
    SerializationError,
)
from dbos_async._store import databases
from dbos_async.testing import PostgresServer


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("bad", dbos_database_url)


class Socket:
    """Something that is not data."""


# Values


@pytest.mark.parametrize("start", ["call", "start", "enqueue", "child", "bulk"])
async def test_an_argument_that_cannot_be_stored_names_workflow_parameter_and_type(
    dbos: DBOS, start: str
) -> None:
    ran: list[str] = []
    queue = dbos.queue("queue")

    @dbos.workflow(name="greet")
    async def greet(name: str, extra: Any = None) -> None:
        ran.append(name)

    @dbos.workflow(name="parent")
    async def parent() -> None:
        await greet("ann", extra=Socket())

    async with dbos:
        with pytest.raises(SerializationError) as raised:
            match start:
                case "call":
                    await greet("ann", {"deep": [Socket()]})
                case "start":
                    await dbos.start_workflow(greet, "ann", Socket())
                case "enqueue":
                    await queue.enqueue(greet, "ann", extra=Socket())
                case "bulk":
                    await queue.enqueue_many([greet.bind("ann", Socket())])
                case _:
                    await parent()
        assert not await dbos.list_workflows(name="greet")
    for part in ("'greet'", "extra", "Socket"):
        assert part in str(raised.value)
    assert ran == []


async def test_a_step_result_that_cannot_be_stored_names_step_workflow_and_type(
    dbos: DBOS,
) -> None:
    @dbos.step(name="connect")
    async def connect() -> Any:
        return {"socket": Socket()}

    @dbos.workflow(name="flow")
    async def workflow() -> None:
        await connect()

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        with pytest.raises(SerializationError) as raised:
            await handle.get_result()
        assert (await handle.get_status()).status == "ERROR"
    for part in ("'connect'", "'flow'", "Socket"):
        assert part in str(raised.value)


async def test_a_workflow_result_that_cannot_be_stored_names_workflow_and_type(
    dbos: DBOS,
) -> None:
    @dbos.workflow(name="flow")
    async def workflow() -> Any:
        return [Socket()]

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        with pytest.raises(SerializationError) as raised:
            await handle.get_result()
        status = await handle.get_status()
        assert (status.status, status.output) == ("ERROR", None)
    for part in ("'flow'", "Socket"):
        assert part in str(raised.value)


FAITHFUL = [
    2**64,
    -(2**64),
    2**100,
    "\x00",
    "a\x00b",
    "\u2028 \U0001f600 \x7f \\u0000",
    "",
    0.1,
    -0.0,
    1e308,
    5e-324,
    [],
    {},
    [[[[]]]],
    {"": None},
    {"\x00": "\x00"},
    True,
    None,
]


async def test_odd_values_are_stored_faithfully(dbos: DBOS) -> None:
    seen: list[Any] = []

    @dbos.step
    async def step(given: Any) -> Any:
        return given

    @dbos.workflow()
    async def child(given: Any) -> Any:
        return given

    @dbos.workflow()
    async def workflow(given: Any) -> Any:
        seen.append(given)
        seen.append(await step(given))
        seen.append(await child(given))
        return given

    async with dbos:
        for value in FAITHFUL:
            seen.clear()
            handle = await dbos.start_workflow(workflow, value)
            seen.append(await handle.get_result())
            again: Any = await dbos.retrieve_workflow(handle.workflow_id)
            seen.append(await again.get_result())
            status = await handle.get_status()
            assert status.input is not None
            seen += [status.output, status.input.args[0]]
            seen.append((await dbos.list_steps(handle.workflow_id))[0].output)
            assert [repr(each) for each in seen] == [repr(value)] * 8


REFUSED = [
    float("nan"),
    float("inf"),
    -float("inf"),
    [float("nan")],
    "\ud800",
    "a\udfffb",
    {"\ud800": 1},
    {1: "a"},
    {None: "a"},
    {(1, 2): "a"},
    object(),
    lambda: None,
    1j,
]


async def test_values_that_would_change_are_refused_everywhere(dbos: DBOS) -> None:
    value: Any = None

    @dbos.step(name="step")
    async def step() -> Any:
        return value

    @dbos.workflow(name="flow")
    async def workflow(given: Any) -> Any:
        try:
            await step()
        except SerializationError as exc:
            assert "'step'" in str(exc)
            return value
        return "stored"

    async with dbos:
        for value in REFUSED:
            with pytest.raises(SerializationError, match="'flow'"):
                await workflow(value)
            with pytest.raises(SerializationError, match="'flow'"):
                await workflow(1)


async def test_what_contains_itself_is_refused(dbos: DBOS) -> None:
    @dbos.workflow(name="flow")
    async def workflow(given: Any) -> None: ...

    endless: list[Any] = []
    endless.append(endless)
    async with dbos:
        with pytest.raises(SerializationError, match="'flow'"):
            await workflow(endless)


async def test_errors_with_odd_texts_are_recorded(dbos: DBOS) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @dbos.workflow()
    async def workflow(which: int) -> None:
        raise [ValueError("a\x00b"), ValueError("\ud800"), Odd(), ValueError(Socket())][which]

    async with dbos:
        for which in range(4):
            handle = await dbos.start_workflow(workflow, which)
            with pytest.raises(Exception, match=r".*"):
                await handle.get_result()
            assert (await handle.get_status()).status == "ERROR"


async def test_what_is_over_the_limit_is_refused_with_its_size(dbos_database_url: str) -> None:
    dbos = DBOS("bad", dbos_database_url, max_payload_bytes=1000)

    @dbos.step(name="step")
    async def step(size: int) -> str:
        return "x" * size

    @dbos.workflow(name="flow")
    async def workflow(inputs: str, step_size: int = 0, size: int = 0) -> str:
        await step(step_size)
        return "é" * size

    async with dbos:
        assert await workflow("x" * 900, 998, 499) == "é" * 499
        with pytest.raises(SerializationError, match=r"input of workflow 'flow'.*1,0\d\d bytes"):
            await workflow("x" * 1000)
        with pytest.raises(SerializationError, match=r"step 'step'.*1,001 bytes.*1,000"):
            await workflow("", 999)
        with pytest.raises(SerializationError, match=r"workflow 'flow'.*1,002 bytes.*1,000"):
            await workflow("", 0, 500)
        statuses = [row.status for row in await dbos.list_workflows(newest_first=False)]
    assert statuses == ["SUCCESS", "ERROR", "ERROR"]


async def test_large_values_travel_beside_small_ones(dbos: DBOS) -> None:
    @dbos.step
    async def step(size: int) -> str:
        return "x" * size

    @dbos.workflow()
    async def workflow(size: int) -> int:
        return len(await step(size))

    sizes = [20_000_000, *range(50)]
    async with dbos:
        assert await asyncio.gather(*[workflow(size) for size in sizes]) == sizes


# Databases


def other(url: str, **parts: Any) -> str:
    """The URL with another user, password, port or database."""
    split = urlsplit(url)
    host = split.hostname or ""
    port = parts.get("port", split.port)
    user = parts.get("user", split.username or "")
    password = f":{parts['password']}" if "password" in parts else ""
    place = f"{host}:{port}" if port else host
    netloc = f"{user}{password}@{place}" if user else place
    return urlunsplit(split._replace(netloc=netloc, path=parts.get("path", split.path)))


async def refusal_of(url: str) -> str:
    """Why an app and a client do not open, in the same one sentence."""
    messages = []
    for opened in (DBOS("bad", url), Client(url)):
        with pytest.raises(ConfigurationError) as raised:
            async with opened:
                pass
        messages.append(str(raised.value))
        assert raised.value.__cause__ is None or raised.value.__suppress_context__
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert "secret" not in messages[0]
    return messages[0]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:secret@host/db",
        "not a url",
        "localhost",
        "postgresql://user:secret@host:port/db",
        "postgresql://user:secret@127.0.0.1:99999/db",
        "postgresql+asyncpg://user:secret@host/db",
        "postgresql://user:secret@host/db?sslmode=maybe",
    ],
)
async def test_a_wrong_url_is_one_sentence(url: str) -> None:
    assert re.search("URL|port|sslmode", await refusal_of(url))


async def test_a_database_that_does_not_exist_is_one_sentence(dbos_database_url: str) -> None:
    message = await refusal_of(other(dbos_database_url, path="/no_such_database"))
    assert '"no_such_database" does not exist' in message


async def test_a_role_that_does_not_exist_is_one_sentence(dbos_database_url: str) -> None:
    message = await refusal_of(other(dbos_database_url, user="nobody_here", password="secret"))
    assert "nobody_here" in message


async def test_a_database_that_is_not_utf8_is_one_sentence(
    dbos_postgres: PostgresServer,
) -> None:
    connection = await asyncpg.connect(dbos_postgres.url)
    await connection.execute(
        "create database latin encoding 'latin1' template template0 locale 'C'"
    )
    try:
        message = await refusal_of(dbos_postgres.url_of("latin"))
    finally:
        await databases.drop_database(dbos_postgres.url, "latin")
        await connection.close()
    assert "LATIN1" in message
    assert "UTF" in message


async def test_nobody_listening_is_said_at_once() -> None:
    with socket.socket() as mute:  # it has the port, so that nobody else comes to listen there
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        for opened in (
            DBOS("bad", f"postgresql://u:secret@127.0.0.1:{port}/db"),
            Client(f"postgresql://u:secret@127.0.0.1:{port}/db"),
        ):
            with pytest.raises(DatabaseLostError) as raised:
                async with opened:
                    pass
            assert "\n" not in str(raised.value)
            assert "secret" not in str(raised.value)
            assert str(port) in str(raised.value)


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port where somebody accepts and never answers."""
    ended = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    ended.set()
    server.close()


async def test_a_server_that_never_answers_is_given_up(silent_port: int) -> None:
    url = f"postgresql://user@127.0.0.1:{silent_port}/db"
    dbos = DBOS("bad", url)
    dbos.configure(connect_timeout=0.3)
    async with asyncio.timeout(20):
        with pytest.raises(DatabaseLostError) as raised:
            await dbos.launch()
    assert "\n" not in str(raised.value)
    assert str(silent_port) in str(raised.value)


# Misuse


def test_a_sync_function_is_no_workflow() -> None:
    dbos = DBOS("bad")
    with pytest.raises(TypeError, match=r"sync_flow must be `async def`"):

        @dbos.workflow()  # type: ignore[arg-type]  # that is the point
        def sync_flow() -> int:
            return 1


def test_a_function_is_a_workflow_or_a_step_but_not_both() -> None:
    dbos = DBOS("bad")

    @dbos.workflow()
    async def flow() -> None: ...

    @dbos.step
    async def step() -> None: ...

    with pytest.raises(TypeError, match="workflow"):
        dbos.step(flow)
    with pytest.raises(TypeError, match="step"):
        dbos.workflow(step)


async def test_a_workflow_called_from_inside_a_step_is_refused(dbos: DBOS) -> None:
    @dbos.workflow(name="inner")
    async def inner() -> None: ...

    @dbos.step(name="calling")
    async def calling(how: str) -> None:
        await (inner() if how == "call" else dbos.start_workflow(inner))

    @dbos.workflow(name="outer")
    async def outer(how: str) -> None:
        await calling(how)

    async with dbos:
        for how in ("call", "start"):
            with pytest.raises(DBOSError, match=r"inner is a workflow, and step 1 of workflow"):
                await outer(how)
        assert await dbos.list_workflows(name="inner") == []


async def test_a_step_that_nobody_awaits_is_an_error(dbos: DBOS) -> None:
    ran: list[str] = []

    @dbos.step(name="charge")
    async def charge() -> None:
        ran.append("charge")

    @dbos.workflow(name="flow")
    async def workflow() -> str:
        charge()  # type: ignore[unused-coroutine]  # that is the point
        return "done"

    async with dbos:
        with pytest.raises(DBOSError, match=r"'flow'.*'charge' without awaiting.*await charge"):
            await workflow()
    assert ran == []


async def test_a_child_that_nobody_awaits_is_an_error(dbos: DBOS) -> None:
    @dbos.workflow(name="child")
    async def child() -> None: ...

    @dbos.workflow(name="flow")
    async def workflow() -> None:
        child()  # type: ignore[unused-coroutine]  # that is the point

    async with dbos:
        with pytest.raises(DBOSError, match=r"'child' without awaiting"):
            await workflow()
        assert await dbos.list_workflows(name="child") == []


async def test_start_workflow_takes_a_workflow_and_nothing_else(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    async def plain() -> None: ...

    @dbos.step
    async def step() -> None: ...

    @dbos.workflow(name="flow")
    async def flow() -> None: ...

    async with dbos:
        wrong: Any
        for wrong in (plain, step, "flow", None, flow.bind()):
            with pytest.raises(TypeError, match="start_workflow"):
                await dbos.start_workflow(wrong)
            with pytest.raises(TypeError, match="enqueue"):
                await queue.enqueue(wrong)
            with pytest.raises(TypeError, match="enqueue"):
                await dbos.enqueue("queue", wrong)
        for wrong in (flow, plain, "flow"):
            with pytest.raises(TypeError, match="bind"):
                await queue.enqueue_many([wrong])
        coroutine: Any = flow()
        with pytest.raises(TypeError, match=r"start_workflow\("):
            await dbos.start_workflow(coroutine)
        other_coroutine: Any = flow()
        with pytest.raises(TypeError, match="enqueue"):
            await queue.enqueue(other_coroutine)


async def test_arguments_that_do_not_fit_are_a_type_error_and_start_nothing(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow(name="flow")
    async def flow(number: int, *, note: str = "") -> None: ...

    wrong: Any = flow
    async with dbos:
        for start in (
            wrong,
            lambda: wrong(1, 2),
            lambda: wrong(1, notes="n"),
            lambda: dbos.start_workflow(wrong),
            lambda: queue.enqueue(wrong, 1, 2),
            lambda: queue.enqueue_many([wrong.bind()]),
        ):
            with pytest.raises(TypeError, match="flow"):
                await start()
        assert await dbos.list_workflows() == []


async def test_a_step_that_blocks_the_loop_is_named_in_a_warning(
    dbos: DBOS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dbos_async")

    @dbos.step(name="greedy")
    async def greedy() -> None:
        time.sleep(1.6)  # noqa: ASYNC251  # that is the point

    @dbos.workflow(name="flow")
    async def workflow() -> None:
        await greedy()

    async with dbos:
        await workflow.with_options(workflow_id="w")()
    warnings = [each.getMessage() for each in caplog.records if "blocks" in each.getMessage()]
    assert len(warnings) == 1
    assert re.search(r"step 'greedy' blocks the event loop", warnings[0])
    assert "workflow_id='w'" in warnings[0]
    assert "time.sleep(1.6)" in warnings[0]


async def test_a_negative_or_endless_sleep_is_refused(dbos: DBOS) -> None:
    @dbos.workflow()
    async def workflow(seconds: str) -> None:
        await dbos.sleep(float(seconds))

    async with dbos:
        for seconds in ("-1", "nan", "inf"):
            with pytest.raises(ValueError, match="duration"):
                await workflow(seconds)
            with pytest.raises(ValueError, match="duration"):
                await dbos.sleep(float(seconds))


async def test_a_client_of_a_database_without_our_tables_is_told_so(
    dbos_database_url: str, database: Any
) -> None:
    await database.execute("drop schema dbos cascade")
    with pytest.raises(ConfigurationError, match=r"is missing.*Launch the app once"):
        async with Client(dbos_database_url):
            pass


async def test_a_workflow_that_calls_sys_exit_fails_and_its_process_lives(dbos: DBOS) -> None:
    @dbos.step
    async def step() -> None:
        sys.exit(3)

    @dbos.workflow
    async def body() -> None:
        raise SystemExit(3)

    @dbos.workflow
    async def in_a_step() -> None:
        await step()

    async with dbos:
        for workflow in (body, in_a_step):
            handle = await dbos.start_workflow(workflow)
            with pytest.raises(PortableWorkflowError, match="3"):
                await handle.get_result()
            assert (await handle.get_status()).status == "ERROR"


async def test_an_app_is_not_for_another_loop(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow
    async def flow() -> int:
        return 1

    async def from_elsewhere() -> None:
        for call in (
            flow,
            lambda: dbos.start_workflow(flow),
            lambda: queue.enqueue(flow),
            queue.depth,
            dbos.list_workflows,
        ):
            with pytest.raises(ConfigurationError, match="another event loop"):
                await call()

    async with dbos:
        await asyncio.to_thread(asyncio.run, from_elsewhere())
        assert await flow() == 1


@pytest.mark.parametrize(
    ("limit", "error"), [("3", TypeError), (True, TypeError), (-1, ValueError)]
)
def test_a_limit_of_recoveries_is_a_number(dbos: DBOS, limit: Any, error: Any) -> None:
    with pytest.raises(error, match="max_recovery_attempts"):

        @dbos.workflow(max_recovery_attempts=limit)
        async def workflow() -> None: ...


@pytest.mark.parametrize("queues", ["bills", [3]])
def test_the_queues_to_listen_to_are_a_list(dbos: DBOS, queues: Any) -> None:
    with pytest.raises(TypeError, match=r"listen_queues\(\['bills'\]\)|a queue is"):
        dbos.listen_queues(queues)


async def test_settings_are_of_their_types(dbos_database_url: str) -> None:
    for name in ("max_connections", "max_threads"):
        with pytest.raises(ConfigurationError, match=name):
            await DBOS("bad", dbos_database_url, **{name: "3"}).launch()  # type: ignore[arg-type]
