"""The door that everything which is asked for goes through."""

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, get_args

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Place

from dbos_async import errors
from dbos_async._app import DBOS
from dbos_async._config import (
    ADMIN_TOKEN_VARIABLE,
    MAKE_A_TOKEN,
    SHORTEST_TOKEN,
    check_token,
)
from dbos_async._log import log
from dbos_async._store.records import Status
from dbos_async.admin import openapi, problems
from dbos_async.admin.call import Call
from dbos_async.admin.guard import Guard
from dbos_async.admin.routes import OPERATOR, ROUTES, Route
from dbos_async.admin.shapes import find_nul

MAX_BODY_BYTES: Final = 1024 * 1024
BODY_TIMEOUT: Final = 10.0
"""Seconds until a body has arrived."""
TIMEOUT: Final = 30.0
"""Seconds that an answer takes at most, but for those that act on any number of workflows."""


def app_of(
    dbos: DBOS,
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    insecure: bool = False,
) -> Starlette:
    """The admin API as an ASGI app, to be mounted in a web app whose lifespan launches `dbos`.

        api = FastAPI(lifespan=dbos.lifespan)
        api.mount("/admin", app_of(dbos, token=token, allowed_hosts=["shop.example.com"]))

    Args:
        dbos: the app that it looks after; it need not be launched yet.
        token: what callers must show, as in `Authorization: Bearer …`; else the app's
            `admin_token`, else $DBOS_ADMIN_TOKEN.
        allowed_hosts: names that it may be called by, beside localhost and the address that the
            server listens on; `*` for any, where the token is protection enough.
        insecure: do without a token: something in front of it decides who may call.

    Raises:
        ConfigurationError: there is no token, or it cannot be one.
    """
    if token is None:
        token = dbos._settings.admin_token
    if token is None:
        token = os.environ.get(ADMIN_TOKEN_VARIABLE)
    if token is None and not insecure:
        raise errors.ConfigurationError(
            f"the admin API needs a token: app_of(…, token=…) or {ADMIN_TOKEN_VARIABLE} "
            f"({MAKE_A_TOKEN}); or say insecure=True where something else decides who may "
            "call it"
        )
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts is a list of names, not {allowed_hosts!r}")
    return application(dbos, None if insecure else token, allowed_hosts)


def application(dbos: DBOS, token: str | None, hosts: Sequence[str]) -> Starlette:
    """The ASGI app; without a token whoever reaches it may call it."""
    if token is not None:
        check_token(token)
        if len(token) < SHORTEST_TOKEN:
            log.warning("the admin token is so short that it can be guessed", better=MAKE_A_TOKEN)
    door = Door(dbos, Guard(token, hosts))
    by_path: dict[str, dict[str, Route[Any]]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    places = [
        Place(
            path.replace("{name}", "{name:path}"), partial(door.answer, routes), methods=[*routes]
        )
        for path, routes in by_path.items()
    ]
    places.append(Place("/openapi.json", door.describe, methods=["GET"]))
    app = Starlette(
        routes=places,
        exception_handlers=dict.fromkeys(
            [HTTPException, errors.DBOSError, ValueError, TypeError, TimeoutError, Exception],
            problems.answer,
        ),
    )
    app.router.redirect_slashes = False
    return app


class Door:
    """Answers requests: who asks, what for, and what came of it."""

    def __init__(self, dbos: DBOS, guard: Guard) -> None:
        self._dbos = dbos
        self._guard = guard

    async def answer(self, routes: Mapping[str, Route[Any]], request: Request) -> Response:
        """The answer to a request for one of the routes of its path."""
        route = routes["GET" if request.method == "HEAD" else request.method]
        request.state.changes = route.changes
        if route.permission is OPERATOR:
            self._guard.check(request, is_link=route.changes and route.method == "GET")
        name = request.path_params.get("name", "")
        if ("{name}" in route.path and not name) or "\0" in name:
            raise HTTPException(404, "there is nothing of this name")
        body = None if route.body is None else await body_of(request, route.body)
        if route.changes:
            address = request.client.host if request.client is not None else None
            log.info("admin API", asked=route.operation, name=name or None, address=address)
        async with asyncio.timeout(None if route.is_long else TIMEOUT):
            answer = await route.endpoint(Call(self._dbos, name, body))
        return response_of(answer)

    async def describe(self, request: Request) -> Response:
        """What there is, for machines."""
        self._guard.check(request)
        return response_of(openapi.description(request.scope.get("root_path", "")))


async def body_of(request: Request, kind: type[Any]) -> object:
    """A request's body as a `kind`.

    Raises:
        HTTPException: 413, it is too large; 415, it is no JSON by its own account; 408, it does
            not come; 400, it is not understood, and the message says which field.
    """
    raw = await raw_body_of(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and media_type != "application/json":
        raise HTTPException(415, "send JSON, and say so: Content-Type: application/json")
    try:
        body = msgspec.json.decode(raw or b"{}", type=kind)
        nul_at = find_nul(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise HTTPException(400, f"the body is not understood: {exc}{hint_for(exc)}") from exc
    except RecursionError as exc:
        raise HTTPException(400, "the body is nested too deeply") from exc
    if nul_at is not None:
        raise HTTPException(400, f"there is a NUL character, which cannot be stored: {nul_at}")
    return body


def hint_for(refused: Exception) -> str:
    """Which statuses there are, for who asked for another."""
    is_status = re.search(r"Invalid enum value .*`\$\.status", str(refused))
    return f"; there are {', '.join(get_args(Status))}" if is_status else ""


async def raw_body_of(request: Request) -> bytes:
    """A request's body. Raises as `body_of` does."""
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    except TimeoutError as exc:
        raise HTTPException(408, "the body did not come in time") from exc
    except ClientDisconnect as exc:
        raise HTTPException(400, "the connection ended before the body did") from exc
    return bytes(raw)


def response_of(answer: object) -> Response:
    """An endpoint's answer on its way."""
    if answer is None:
        return Response(status_code=204)
    if isinstance(answer, str):
        return Response(answer, media_type="text/plain")
    return Response(msgspec.json.encode(answer), media_type="application/json")
