"""The example services, over HTTP, through kill -9, reloads and several workers."""

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from programs import ROOT, Program, Start, eventually

from dbos_async._store.embedded import server_in
from dbos_async.testing import free_port

Serve = Callable[..., tuple[Program, httpx.Client]]
COMMANDS = {
    "fastapi": lambda port: ("uvicorn", "examples.fastapi_service:app", "--port", port),
    "aiohttp": lambda port: ("examples.aiohttp_service", port),
    "edited": lambda port: ("uvicorn", "edited:app", "--reload", "--port", port),
}
EXECUTORS = """
select count(*) from pg_stat_activity
 where datname = current_database() and application_name like '%executor lock'
"""


@pytest.fixture
def serve(start: Start) -> Iterator[Serve]:
    """Start a service; it and a client, once it answers."""
    clients: list[httpx.Client] = []

    def serve(kind: str, *options: str, **environment: str) -> tuple[Program, httpx.Client]:
        port = str(free_port())
        program = start(*COMMANDS[kind](port), *options, **environment)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        clients.append(client)
        eventually(lambda: answers(client), what=f"an answer of {kind}")
        return program, client

    yield serve
    for client in clients:
        client.close()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 404
    except httpx.TransportError:
        return False


def receipt_of(client: httpx.Client, order: str) -> str:
    """The receipt of an order that was started, once there is one."""

    def look() -> str | None:
        try:
            found: dict[str, Any] = client.get(f"/orders/{order}").json()
        except httpx.TransportError:
            return None
        assert found["status"] in ("PENDING", "SUCCESS"), found
        return found["receipt"]

    return eventually(look, what=f"the receipt of {order}")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[str]:
    """The database that a program in this test's directory makes for itself; gone at the end."""
    server = server_in(tmp_path / ".dbos")
    yield server.url("dbos")
    server.stop("immediate")


@pytest.mark.parametrize("kind", ["fastapi", "aiohttp"])
def test_a_service_that_is_killed_between_start_and_result_gives_it_after_a_restart(
    kind: str, serve: Serve, dbos_database_url: str
) -> None:
    environment = {"DBOS_SYSTEM_DATABASE_URL": dbos_database_url}
    program, client = serve(kind, **environment)
    started = client.post("/orders/o-1/start", params={"cents": 4200})
    program.kill()
    assert (started.status_code, started.json()) == (202, {"workflow_id": "o-1"})
    _, client = serve(kind, **environment)
    receipt = receipt_of(client, "o-1")
    assert receipt.startswith("receipt for payment of 4200 for o-1")
    again = client.post("/orders/o-1", params={"cents": 4200})
    assert again.json() == {"receipt": receipt}


@pytest.mark.parametrize("kind", ["fastapi", "aiohttp"])
def test_a_client_that_hangs_up_leaves_its_workflow_running(
    kind: str, serve: Serve, dbos_database_url: str
) -> None:
    program, client = serve(kind, DBOS_SYSTEM_DATABASE_URL=dbos_database_url)
    caller = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
    caller.request("POST", "/orders/o-2?cents=1")
    eventually(lambda: client.get("/orders/o-2").status_code == 200, what="the order")
    caller.close()
    assert receipt_of(client, "o-2").startswith("receipt for payment of 1")
    assert client.get("/orders/nobody").status_code == 404
    assert program.end() == {"fastapi": -15, "aiohttp": 0}[kind]  # uvicorn repeats the signal
    assert "Traceback" not in program.said


def test_two_workers_of_uvicorn_share_one_embedded_server(serve: Serve, embedded: str) -> None:
    program, client = serve("fastapi", "--workers", "2")

    def both() -> bool:
        with psycopg.connect(embedded) as connection:
            return connection.execute(EXECUTORS).fetchone() == (2,)

    eventually(both, what="the second worker")
    orders = [f"o-{number}" for number in range(8)]
    for order in orders:
        httpx.post(f"{client.base_url}/orders/{order}/start", params={"cents": 1})
    for order in orders:
        assert f"for {order}," in receipt_of(client, order)
    assert program.end() == 0
    assert "Traceback" not in program.said


def test_an_edit_under_reload_strands_nothing(serve: Serve, embedded: str, tmp_path: Path) -> None:
    source = (ROOT / "examples" / "fastapi_service.py").read_text()
    code = tmp_path / "code"
    code.mkdir()
    module = code / "edited.py"
    module.write_text(source.replace("dbos.sleep(1)", "dbos.sleep(3)"))
    # What uvicorn watches must stay still while it looks, and a database's directory does not.
    _, client = serve("edited", "--reload-dir", str(code), PYTHONPATH=f"{ROOT}:{code}")
    client.post("/orders/o-1/start", params={"cents": 1})
    charge_again = "@dbos.step\nasync def refund(order_id: str) -> None: ...\n\n\n@dbos.workflow()"
    route = "\n\n@app.get('/version')\nasync def version() -> int: return 2\n"
    module.write_text(module.read_text().replace("@dbos.workflow()", charge_again) + route)

    def reloaded() -> bool:
        try:
            return client.get("/version").status_code == 200
        except httpx.TransportError:
            return False

    eventually(reloaded, what="the reload")
    assert receipt_of(client, "o-1").startswith("receipt for payment of 1 for o-1")
