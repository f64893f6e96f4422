"""What web frameworks ask of an app and of its workflows, in one process."""

import asyncio
import inspect
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fastapi import FastAPI
from pydantic import BaseModel
from starlette._utils import is_async_callable
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dbos_async import DBOS, NotLaunchedError

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")  # of Starlette's own TestClient


class Basket(BaseModel):
    sku: str
    quantity: int = 1


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("web", dbos_database_url)


@pytest.fixture
def app(dbos: DBOS) -> FastAPI:
    app = FastAPI(lifespan=dbos.lifespan)

    @dbos.step
    def price(basket: Basket) -> int:
        return 100 * basket.quantity

    @app.post("/orders/{order_id}")
    @dbos.workflow()
    async def order(order_id: int, basket: Basket, gift: bool = False) -> dict[str, Any]:
        assert dbos.workflow_id is not None
        return {"order": order_id, "cents": await price(basket), "gift": gift}

    return app


def client_of(app: Any) -> Any:
    from starlette.testclient import TestClient  # it warns when it is imported

    return TestClient(app)


def test_a_route_of_fastapi_can_be_a_workflow(app: FastAPI) -> None:
    with client_of(app) as client:
        answer = client.post("/orders/7?gift=true", json={"sku": "MUG", "quantity": 3})
        assert answer.json() == {"order": 7, "cents": 300, "gift": True}
        assert client.post("/orders/7", json={"sku": "MUG"}).json()["cents"] == 100
        refused = client.post("/orders/seven", json={})
        assert refused.status_code == 422
        assert [e["loc"] for e in refused.json()["detail"]] == [
            ["path", "order_id"],
            ["body", "sku"],
        ]
        operation = client.get("/openapi.json").json()["paths"]["/orders/{order_id}"]["post"]
        assert [p["name"] for p in operation["parameters"]] == ["order_id", "gift"]


def test_without_a_lifespan_the_error_names_the_usual_cause(app: FastAPI) -> None:
    with pytest.raises(NotLaunchedError, match=r"TestClient used without `with`"):
        client_of(app).post("/orders/7", json={"sku": "MUG"})


def test_an_app_serves_again_after_it_was_closed(app: FastAPI) -> None:
    for _ in range(2):
        with client_of(app) as client:  # each on a loop of its own
            assert client.post("/orders/7", json={"sku": "MUG"}).status_code == 200


def test_starlette_runs_the_lifespan(dbos: DBOS) -> None:
    @dbos.workflow
    async def double(n: int) -> int:
        return 2 * n

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse(await double(int(request.query_params["n"])))

    app = Starlette(routes=[Route("/", endpoint)], lifespan=dbos.lifespan)
    with client_of(app) as client:
        assert client.get("/?n=21").json() == 42


async def test_aiohttp_runs_the_lifespan(dbos: DBOS) -> None:
    @dbos.workflow
    async def double(n: int) -> int:
        return 2 * n

    async def endpoint(request: web.Request) -> web.Response:
        return web.json_response(await double(int(request.query["n"])))

    app = web.Application()
    app.router.add_get("/", endpoint)
    app.cleanup_ctx.append(dbos.lifespan)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/?n=21")) as answer,
    ):
        assert await answer.json() == 42
    with pytest.raises(NotLaunchedError):
        await double(21)


async def test_a_handler_that_is_cancelled_leaves_its_workflow_running(dbos: DBOS) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @dbos.workflow
    async def slow() -> str:
        begun.set()
        await go.wait()
        return "done"

    async with dbos:
        handler = asyncio.create_task(slow.with_options(workflow_id="w")())
        await begun.wait()
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler
        go.set()
        handle = await dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=20) == "done"


def test_workflows_and_steps_say_that_they_are_awaited(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow(n: int) -> int:
        return n

    @dbos.step
    def step(n: int) -> int:
        return n

    class Shop:
        @dbos.workflow
        async def method(self, n: int) -> int:
            return n

    for function in (workflow, workflow.with_options(timeout=1), step, Shop().method):
        assert asyncio.iscoroutinefunction(function)
        assert is_async_callable(function)
        assert "n" in inspect.signature(function).parameters
    with pytest.raises(TypeError, match="workflow already"):
        dbos.workflow(workflow)
