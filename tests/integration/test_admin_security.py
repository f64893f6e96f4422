"""Who may ask the admin API, from where, and what it never says."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from managed import Managed

from dbos_async import DBOS
from dbos_async.admin import app_of, application
from dbos_async.admin.guard import GUESSES, MOST_ADDRESSES, WINDOW, Throttle
from dbos_async.admin.routes import OPERATOR, ROUTES
from dbos_async.errors import ConfigurationError
from dbos_async.testing import free_port

TOKEN = "a-token-of-thirty-two-characters"
PLACES = [(route.method, route.path.format(name="x")) for route in ROUTES]
GUARDED = [
    (route.method, route.path.format(name="x")) for route in ROUTES if route.permission is OPERATOR
] + [("GET", "/openapi.json")]
OPEN = [place for place in PLACES if place not in GUARDED]
Api = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def api(dbos_database_url: str) -> Any:
    """Makes clients of the mountable app of a launched app, each from an address of its own."""
    shop = Managed(dbos_database_url)
    app = app_of(shop.dbos, token=TOKEN, allowed_hosts=["Admin.Example.com."])
    addresses = iter(range(1, 250))

    def client(*, host: str = "localhost:3001", address: str = "", **headers: str) -> Any:
        transport = httpx.ASGITransport(
            app, raise_app_exceptions=False, client=(address or f"10.0.0.{next(addresses)}", 1)
        )
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)

    async with shop.dbos:
        yield client


def test_only_health_readiness_and_queue_lengths_are_open() -> None:
    assert OPEN == [("GET", "/dbos-healthz"), ("GET", "/readyz"), ("GET", "/metrics/x")]


@pytest.mark.parametrize(
    "shown",
    [
        None,
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer ",
        "Bearer \xff\xfe",
    ],
)
async def test_no_route_works_without_the_token(api: Api, shown: str | None) -> None:
    headers = [] if shown is None else [(b"authorization", shown.encode("latin-1"))]
    for method, path in GUARDED:
        async with api() as client:
            answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKEN not in answer.text


async def test_every_route_works_with_the_token(api: Api) -> None:
    async with api(authorization=f"bearer {TOKEN}") as client:
        for method, path in GUARDED:
            answer = await client.request(method, path)
            # There is no workflow x, and some have no body that they need.
            assert answer.status_code in {200, 204, 400, 404}, (method, path)


async def test_open_routes_answer_anybody_by_any_name(api: Api) -> None:
    async with api(host="10.1.2.3:3001", origin="https://evil.example") as client:
        for method, path in OPEN:
            assert (await client.request(method, path)).status_code in {200, 500}, path


async def test_a_foreign_host_is_refused_whatever_the_token(api: Api) -> None:
    async with api(host="evil.example", authorization=f"Bearer {TOKEN}") as client:
        for method, path in GUARDED:
            answer = await client.request(method, path)
            assert answer.status_code == 403, (method, path)
            assert "evil.example" in answer.json()["detail"]


async def test_hosts_are_compared_as_names(api: Api) -> None:
    statuses = {
        "localhost": 200,
        "LOCALHOST:80": 200,
        "localhost.": 200,
        "127.0.0.1:3001": 200,
        "[::1]:3001": 200,
        "admin.example.com": 200,
        "admin.example.com:443": 200,
        "": 403,
        "localhost.evil.example": 403,
        "evil.example:127.0.0.1": 403,
        "10.0.0.7": 403,
        "2130706433": 403,
        "admin.example.com@evil.example": 403,
        "localhost:": 200,
        "localhost:80@evil.example": 403,
        "[localhost]evil.example": 403,
        "[::1]evil.example": 403,
        "[::1]:3001:80": 403,
        "[localhost]": 403,
        "::1": 403,
        "localhost:port": 403,
        "local host": 403,
        "user@localhost": 403,
        "localhost/": 403,
        "localhost,evil.example": 403,
    }
    async with api(authorization=f"Bearer {TOKEN}") as client:
        for host, status in statuses.items():
            answer = await client.post("/workflows", headers={"host": host})
            assert answer.status_code == status, host


async def test_a_malformed_host_is_refused_where_any_name_will_do(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url)
    transport = httpx.ASGITransport(app_of(dbos, token=TOKEN, allowed_hosts=["*"]))
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        dbos,
        httpx.AsyncClient(transport=transport, base_url="http://any.example") as client,
    ):
        assert (await client.post("/workflows", headers=headers)).status_code == 200
        odd = headers | {"host": "any.example@evil.example"}
        assert (await client.post("/workflows", headers=odd)).status_code == 403


@pytest.mark.parametrize(
    "twice",
    [
        [("authorization", "Bearer wrong"), ("authorization", f"Bearer {TOKEN}")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
        [("host", "localhost"), ("host", "evil.example"), ("authorization", f"Bearer {TOKEN}")],
    ],
    ids=str,
)
async def test_a_header_that_counts_once_is_not_there_twice(
    api: Api, twice: list[tuple[str, str]]
) -> None:
    async with api() as client:
        for method, path in GUARDED:
            answer = await client.request(method, path, headers=twice)
            assert answer.status_code == 400, (method, path)
            assert "more than one" in answer.json()["detail"]
            assert TOKEN not in answer.text


async def test_no_link_deactivates_without_a_token(dbos_database_url: str) -> None:
    port = free_port()
    async with (
        DBOS("shop", dbos_database_url, admin_port=port) as dbos,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        for headers in (
            {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
            {"sec-fetch-site": "same-origin"},
            {"sec-fetch-dest": "document"},
        ):
            for method in ("GET", "HEAD"):
                answer = await client.request(method, "/deactivate", headers=headers)
                assert answer.status_code == 403
        assert not dbos.launched().is_deactivated
        assert (await client.get("/deactivate")).text == "deactivated"  # as by curl
        assert dbos.launched().is_deactivated


async def test_pages_of_other_sites_are_refused(dbos_database_url: str) -> None:
    """Without a token, which a page cannot know, there is only this between it and the loopback."""
    shop = Managed(dbos_database_url)
    transport = httpx.ASGITransport(app_of(shop.dbos, insecure=True))
    async with (
        shop.dbos,
        httpx.AsyncClient(transport=transport, base_url="http://localhost:3001") as client,
    ):
        for headers, status in [
            ({"sec-fetch-site": "cross-site"}, 403),
            ({"sec-fetch-site": "same-site"}, 403),
            ({"sec-fetch-site": "same-origin", "origin": "http://localhost:3001"}, 200),
            ({"sec-fetch-site": "none"}, 200),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"origin": "http://localhost:3000"}, 403),
            ({"origin": "http://[evil"}, 403),
            ({"origin": "http://localhost:3001"}, 200),
        ]:
            for method, path in (("GET", "/openapi.json"), ("POST", "/workflows")):
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == status, headers
                assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_who_guesses_is_not_heard_for_a_while(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    async with api(address="10.9.9.9") as guesser, api(address="10.9.9.8") as other:
        with caplog.at_level(logging.WARNING):
            for guess in range(GUESSES):
                headers = {"authorization": f"Bearer guess-{guess}"}
                assert (await guesser.post("/workflows", headers=headers)).status_code == 401
            right = {"authorization": f"Bearer {TOKEN}"}
            refused = await guesser.post("/workflows", headers=right)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= WINDOW
        assert (await guesser.get("/readyz")).status_code == 200
        assert (await other.post("/workflows", headers=right)).status_code == 200
        warned = [r.getMessage() for r in caplog.records if "guesses tokens" in r.getMessage()]
        assert len(warned) == 1
        assert "10.9.9.9" in warned[0]
        assert "guess-" not in caplog.text


async def test_a_missing_token_is_no_guess(api: Api) -> None:
    async with api() as client:
        for _ in range(2 * GUESSES):
            assert (await client.post("/workflows")).status_code == 401


def test_guesses_are_forgiven_one_by_one_after_a_minute() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for second in range(GUESSES):
        now[0] = second
        assert throttle.blocked_for("a") == 0
        throttle.failed("a")
    assert throttle.blocked_for("a") == WINDOW - (GUESSES - 1)
    now[0] = WINDOW
    assert throttle.blocked_for("a") == 0
    throttle.failed("a")
    assert throttle.blocked_for("a") == 1


def test_an_ipv6_network_is_one_address() -> None:
    throttle = Throttle(lambda: 0.0)
    for guess in range(GUESSES):
        throttle.failed(f"2001:db8:1:2::{guess:x}")
    assert throttle.blocked_for("2001:db8:1:2:ffff::1") > 0
    assert throttle.blocked_for("2001:db8:1:3::1") == 0
    assert throttle.blocked_for("no address") == 0


def test_many_addresses_do_not_fill_the_memory() -> None:
    throttle = Throttle(lambda: 0.0)
    for _ in range(GUESSES):
        throttle.failed("persistent")
    for number in range(3 * MOST_ADDRESSES):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        if number % 100 == 0:
            throttle.failed("persistent")
    assert len(throttle._failures) == MOST_ADDRESSES
    assert throttle.blocked_for("persistent") > 0


async def test_web_sockets_are_refused(api: Api, dbos_database_url: str) -> None:
    app = app_of(DBOS("shop", dbos_database_url), token=TOKEN)
    for _, path in [*PLACES, ("GET", "/openapi.json"), ("GET", "/")]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message["type"])

        scope: Any = {
            "type": "websocket",
            "path": path,
            "headers": [],
            "query_string": b"",
            "subprotocols": [],
        }
        await app(scope, receive, send)
        assert sent == ["websocket.close"]


async def test_the_token_is_in_no_log_and_no_repr(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with caplog.at_level(logging.DEBUG):
        dbos = DBOS("shop", dbos_database_url, admin_port=port, admin_token=TOKEN)
        async with dbos, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for token in (TOKEN, TOKEN + "x"):
                await client.post("/workflows", headers={"authorization": f"Bearer {token}"})
                await client.post("/workflows", headers={"authorization": token})
            shown = repr(dbos) + repr(dbos._settings) + repr(vars(dbos))
        ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpc", "httpx"))]
    assert ours
    assert TOKEN not in "".join(ours) + shown


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "shop.internal"])
async def test_other_machines_are_let_in_by_token_only(dbos_database_url: str, host: str) -> None:
    dbos = DBOS("shop", dbos_database_url, admin_port=free_port(), admin_host=host)
    with pytest.raises(ConfigurationError, match="within reach of other machines: give it a token"):
        await dbos.launch()


async def test_on_loopback_it_works_without_a_token(dbos_database_url: str) -> None:
    port = free_port()
    async with (
        DBOS("shop", dbos_database_url, admin_port=port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.post("/workflows")).status_code == 200
        assert (await client.post("/workflows", headers={"host": "evil"})).status_code == 403


async def test_on_all_addresses_it_is_called_by_the_one_that_was_reached(
    dbos_database_url: str,
) -> None:
    port = free_port()
    dbos = DBOS("shop", dbos_database_url, admin_port=port, admin_host="0.0.0.0", admin_token=TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with dbos, httpx.AsyncClient(headers=headers) as client:
        url = f"http://127.0.0.2:{port}/workflows"  # another of this machine's addresses
        assert (await client.post(url)).status_code == 200
        foreign = await client.post(url, headers={"host": "127.0.0.3"})
        assert foreign.status_code == 403


def test_a_token_that_can_be_guessed_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    app_of(DBOS("shop"), token=TOKEN[:16])
    assert not caplog.records
    app_of(DBOS("shop"), token="guessable")
    [warning] = caplog.records
    assert "token_urlsafe" in warning.getMessage()
    assert "guessable" not in warning.getMessage()


@pytest.mark.parametrize("token", ["", "two words", "tökén", "a\nb", 17])
def test_a_token_that_no_header_carries_is_refused(token: Any) -> None:
    with pytest.raises(ConfigurationError, match="token") as refused:
        app_of(DBOS("shop"), token=token)
    assert not token or str(token) not in str(refused.value)


def test_a_mounted_api_needs_a_token_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="needs a token"):
        app_of(DBOS("shop"))
    assert app_of(DBOS("shop"), insecure=True)
    assert app_of(DBOS("shop", admin_token=TOKEN))
    monkeypatch.setenv("DBOS_ADMIN_TOKEN", TOKEN)
    assert app_of(DBOS("shop"))
    with pytest.raises(TypeError, match="allowed_hosts is a list"):
        app_of(DBOS("shop"), allowed_hosts="example.com")


async def test_a_body_that_does_not_come_is_not_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    monkeypatch.setattr(application, "BODY_TIMEOUT", 0.01)
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    async with api() as client:
        answer = await client.post("/workflows", content=nothing(), headers=headers)
    assert answer.status_code == 408


@pytest.mark.parametrize(
    ("missing", "asked"),
    [
        ("starlette", "import dbos_async.admin"),
        ("uvicorn", "asyncio.run(DBOS('shop', 'postgresql://h/d', admin_port=3001).launch())"),
    ],
)
def test_what_is_not_installed_is_said_with_the_line_that_installs_it(
    missing: str, asked: str
) -> None:
    code = f"""
import asyncio, sys
sys.modules["{missing}"] = None
from dbos_async import DBOS, ConfigurationError
try:
    {asked}
except ConfigurationError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'dbos-async[admin]'" in done.stdout, done.stderr
