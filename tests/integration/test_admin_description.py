"""What the admin API says of itself holds: schemathesis asks whatever the description allows."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from managed import Managed
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from dbos_async.admin.routes import OPERATOR, ROUTES
from dbos_async.testing import free_port

TOKEN = "a-token-of-thirty-two-characters"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
EXAMPLES = 25
"""Requests for each route and way of making them up."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
HARMLESS = [route for route in ROUTES if route.path != "/deactivate"]
READING = [route for route in HARMLESS if route.body is not None]


@pytest.fixture
async def url(dbos_database_url: str) -> AsyncIterator[str]:
    """Where an app with some workflows is served."""
    port = free_port()
    shop = Managed(dbos_database_url, admin_port=port, admin_token=TOKEN)
    async with shop.dbos:
        await shop.simple.with_options(workflow_id="0")(1)
        with pytest.raises(ValueError, match="risky"):
            await shop.family.with_options(workflow_id="00")()
        yield f"http://127.0.0.1:{port}"


def ask(url: str, route: Any, mode: GenerationMode) -> list[int]:
    """Ask for one route in many ways; the statuses of the answers."""
    description = httpx.get(f"{url}/openapi.json", headers=HEADERS).json()
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=url)
    checks = [*CHECKS, negative_data_rejection] if mode is GenerationMode.NEGATIVE else CHECKS
    if route.path.startswith("/metrics"):  # whose 500 is what scalers are promised
        checks = [check for check in checks if check is not not_a_server_error]
    statuses: list[int] = []

    @seed(7)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    @given(case=schema[route.path][route.method].as_strategy(mode))
    def answers_as_described(case: Any) -> None:
        answer = case.call(headers=HEADERS)
        statuses.append(answer.status_code)
        case.validate_response(answer, checks=checks, headers=HEADERS)

    answers_as_described()
    return statuses


@pytest.mark.parametrize(
    "route", HARMLESS, ids=[f"{route.method} {route.path}" for route in HARMLESS]
)
async def test_every_answer_is_as_described(url: str, route: Any) -> None:
    statuses = await asyncio.to_thread(ask, url, route, GenerationMode.POSITIVE)
    assert statuses
    assert not {401, 403, 429} & set(statuses)


@pytest.mark.parametrize(
    "route", READING, ids=[f"{route.method} {route.path}" for route in READING]
)
async def test_every_body_that_is_not_as_described_is_refused(url: str, route: Any) -> None:
    statuses = await asyncio.to_thread(ask, url, route, GenerationMode.NEGATIVE)
    assert 400 in statuses


async def test_the_description_has_every_route_and_no_other(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, headers=HEADERS) as client:
        description = (await client.get("/openapi.json")).json()
    assert description["openapi"].startswith("3.1")
    described = {
        (method.upper(), path, bool(operation["security"]))
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    }
    assert described == {
        (route.method, route.path, route.permission is OPERATOR) for route in ROUTES
    }
    names = [
        operation["operationId"]
        for operations in description["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(names)) == len(names)
    assert all(
        operation["summary"]
        for operations in description["paths"].values()
        for operation in operations.values()
    )
