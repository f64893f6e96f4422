"""Ready is who takes work: over a launch, an outage and a shutdown, and mounted in a web app."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from managed import Managed, eventually, result_of

from dbos_async import DBOS
from dbos_async.admin import app_of, connections
from dbos_async.testing import EmbeddedServer, free_port

TOKEN = "a-token-of-thirty-two-characters"
HEADERS = {"authorization": f"Bearer {TOKEN}"}


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=HEADERS)


async def test_it_is_ready_from_the_launch_to_the_shutdown(dbos_database_url: str) -> None:
    shop = Managed(dbos_database_url)
    async with client_of(app_of(shop.dbos, token=TOKEN)) as api:

        async def why_not() -> str:
            answer = await api.get("/readyz")
            return "" if answer.text == "ready" else str(answer.json()["detail"])

        assert await why_not() == "the app is not launched"
        for path in ("/metrics/mail", "/workflows/w", "/deactivate"):
            assert (await api.get(path)).status_code == 503
        async with shop.dbos:
            assert await why_not() == ""
            await shop.hold()
            closing = asyncio.create_task(shop.dbos.shutdown(timeout=20))
            await shop.until(lambda: shop.dbos.launched().is_draining)
            assert await why_not() == "the app is shutting down"
            shop.gate.set()
            await closing
        assert await why_not() == "the app is not launched"
        assert (await api.get("/dbos-healthz")).text == "healthy"


async def test_the_port_answers_while_the_app_winds_down(dbos_database_url: str) -> None:
    port = free_port()
    shop = Managed(dbos_database_url, admin_port=port)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api, shop.dbos:
        handle = await shop.hold()
        closing = asyncio.create_task(shop.dbos.shutdown(timeout=20))
        await shop.until(lambda: shop.dbos.launched().is_draining)
        assert (await api.get("/readyz")).status_code == 503
        assert (await api.get("/dbos-healthz")).status_code == 200
        assert (await api.post("/workflows", json={"status": "PENDING"})).status_code == 200
        shop.gate.set()
        await result_of(handle)
        await closing


async def test_it_is_not_ready_while_postgres_is_away(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedServer.running(tmp_path) as server:
        shop = Managed(server.url, admin_port=port)
        async with shop.dbos, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:

            async def is_ready() -> bool:
                return (await api.get("/readyz")).status_code == 200

            async def is_away() -> bool:
                return not await is_ready()

            assert await is_ready()
            server.stop("immediate")
            await eventually(is_away)
            away = await api.get("/readyz")
            assert away.json()["detail"] == "Postgres does not answer"
            assert (await api.get("/dbos-healthz")).text == "healthy"
            length = await api.get("/metrics/mail")
            assert (length.status_code, bool(length.json()["error"])) == (500, True)
            listing = await api.post("/workflows")
            assert (listing.status_code, listing.headers["retry-after"]) == (503, "1")
            assert listing.json()["detail"].endswith("; ask again")  # it changes nothing
            change = await api.post("/dbos-garbage-collect", json={"rows_threshold": 1})
            assert change.status_code == 503
            assert change.json()["detail"].endswith("is unknown, and it may be asked for again")

            cancel = asyncio.create_task(api.post("/workflows/none/cancel"))  # is patient
            server.start()
            await eventually(is_ready)
            assert (await cancel).status_code == 404
            assert (await api.get("/metrics/mail")).json() == {"queue_length": 0}


async def test_it_is_mounted_in_a_web_app_that_launches_the_app(dbos_database_url: str) -> None:
    dbos = DBOS("web", dbos_database_url)

    @dbos.workflow
    async def double(number: int) -> int:
        return 2 * number

    app = FastAPI(lifespan=dbos.lifespan)
    app.mount("/ops/admin", app_of(dbos, token=TOKEN, allowed_hosts=["shop.example.com"]))

    @app.get("/double")
    async def answer(number: int) -> int:
        return await double.with_options(workflow_id="a/b")(number)

    async with client_of(app) as api:
        assert (await api.get("/ops/admin/readyz")).status_code == 503
        async with app.router.lifespan_context(app):
            assert (await api.get("/double?number=21")).json() == 42
            assert (await api.get("/ops/admin/readyz")).text == "ready"
            row = (await api.get("/ops/admin/workflows/a%2Fb")).json()
            assert (row["WorkflowUUID"], row["Status"]) == ("a/b", "SUCCESS")
            named = {"host": "shop.example.com"}
            assert (await api.post("/ops/admin/workflows", headers=named)).status_code == 200
            wrong = {"authorization": "Bearer wrong"}
            assert (await api.post("/ops/admin/workflows", headers=wrong)).status_code == 401
            missing = await api.get("/ops/admin/nothing")
            assert missing.headers["content-type"] == "application/problem+json"
            description = (await api.get("/ops/admin/openapi.json")).json()
            assert description["servers"] == [{"url": "/ops/admin"}]
            assert (await api.get("/openapi.json")).json()["paths"].keys() == {"/double"}


async def test_a_bug_is_a_problem_that_does_not_tell_its_insides(
    dbos_database_url: str, monkeypatch: Any
) -> None:
    shop = Managed(dbos_database_url)

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret insides")

    monkeypatch.setattr(shop.dbos, "list_workflows", broken)
    async with shop.dbos, client_of(app_of(shop.dbos, token=TOKEN)) as api:
        answer = await api.post("/workflows")
        assert (answer.status_code, "secret" in answer.text) == (500, False)
        assert answer.headers["content-type"] == "application/problem+json"


HEALTH = b"GET /dbos-healthz HTTP/1.1\r\nhost: localhost\r\n"
LISTING = b"POST /workflows HTTP/1.1\r\nhost: localhost\r\n\r\n"


def opened(port: int, sent: bytes = b"") -> socket.socket:
    """A connection whose bytes are there before the server, in this very loop, accepts it."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(sent)
    connection.setblocking(False)
    return connection


async def read(connection: socket.socket, ending: bytes = b"healthy") -> bytes:
    """What comes until then; nothing if the end comes first."""
    read = b""
    async with asyncio.timeout(20):
        while not read.endswith(ending):
            try:
                more = await asyncio.get_running_loop().sock_recv(connection, 65_536)
            except ConnectionResetError:
                return b""
            if not more:
                return b""
            read += more
    return read


async def is_cut(connection: socket.socket) -> bool:
    """Whether the server let go of it, seen by sending one more byte."""
    try:
        connection.send(b"x")
    except ConnectionError:
        return True
    except BlockingIOError:
        pass
    return False


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        HEALTH + b"x: ",
        HEALTH + b"content-length: 1000000\r\n\r\n" + b"x" * 10,
        HEALTH + b"\r\n" + HEALTH + b"x: ",
    ],
)
async def test_who_sends_no_whole_request_is_not_waited_for(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Not even while it sends a byte now and then."""
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.05)
    port = free_port()
    async with DBOS("shop", dbos_database_url, admin_port=port):
        with opened(port, sent) as connection:
            if b"\r\n\r\n" in sent:
                assert await read(connection)
            await eventually(lambda: is_cut(connection))


async def test_who_does_not_read_is_not_waited_for(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.05)
    port = free_port()
    request = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with DBOS("shop", dbos_database_url, admin_port=port):
        with opened(port, 1_000 * request) as connection:
            await eventually(lambda: is_cut(connection))


async def test_an_answer_may_take_its_time(
    dbos_database_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a request may; meanwhile its place is not given to others."""
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.05)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    port = free_port()
    async with DBOS("shop", dbos_database_url, admin_port=port) as dbos:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(**_: object) -> list[Any]:
            asked.set()
            await answer.wait()
            return []

        monkeypatch.setattr(dbos, "list_workflows", slow)
        with opened(port, LISTING) as connection:
            await asked.wait()
            with opened(port, HEALTH + b"\r\n") as another:
                assert not await read(another)
            monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
            with opened(port) as silent:
                assert not await read(silent)  # more than a deadline later
            answer.set()
            assert await read(connection, b"[]")


async def test_the_one_that_waits_longest_makes_room_for_another(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 3_600)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    port = free_port()
    async with DBOS("shop", dbos_database_url, admin_port=port):
        with (
            opened(port, HEALTH) as first,
            opened(port, HEALTH) as second,
            opened(port, HEALTH + b"\r\n") as third,
        ):
            assert await read(third)
            with opened(port, HEALTH + b"\r\n") as fourth:
                assert await read(fourth)
                assert not await read(first)
                second.send(b"\r\n")
                assert await read(second)
