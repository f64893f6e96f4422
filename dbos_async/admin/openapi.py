"""The description of the admin API, made of the table of routes. Source: OpenAPI 3.1."""

from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, get_origin

import msgspec

from dbos_async.admin.problems import MEDIA_TYPE, Problem
from dbos_async.admin.routes import OPERATOR, ROUTES, Route

REF_TEMPLATE: Final = "#/components/schemas/{name}"
INSTEAD: Final = {"/metrics/{name}": [500], "/readyz": [503], "/dbos-healthz": []}
"""What may go wrong with a route that anyone may call."""


def description(root: str) -> dict[str, Any]:
    """What there is, at which paths below `root`."""
    kinds = [kind for route in ROUTES for kind in (route.body, route.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        [*kinds, Problem], ref_template=REF_TEMPLATE
    )
    schema_of = dict(zip(map(repr, kinds), schemas[:-1], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = operation_of(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "dbos_async admin API", "version": version("dbos_async")},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def operation_of(route: Route[Any], schema_of: dict[str, Any]) -> dict[str, Any]:
    """One route."""
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": (route.endpoint.__doc__ or "").partition("\n")[0],
        "security": [{"token": []}] if route.permission is OPERATOR else [],
        "responses": {
            **answer_of(route, schema_of),
            **{str(status): problem_of(status) for status in statuses_of(route)},
        },
    }
    if "{name}" in route.path:
        operation["parameters"] = [
            {
                "name": "name",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    if route.body is not None:
        operation["requestBody"] = {
            "required": not is_optional(route.body),
            "content": {"application/json": {"schema": schema_of[repr(route.body)]}},
        }
    return operation


def answer_of(route: Route[Any], schema_of: dict[str, Any]) -> dict[str, Any]:
    """What a route answers when all is well."""
    if route.answer is None:
        return {"204": {"description": "Done."}}
    kind = "text/plain" if route.answer is str else "application/json"
    schema = schema_of[repr(route.answer)]
    return {"200": {"description": "Done.", "content": {kind: {"schema": schema}}}}


def statuses_of(route: Route[Any]) -> list[int]:
    """What may go wrong."""
    if route.permission is not OPERATOR:
        return INSTEAD[route.path]
    statuses = [400, 401, 403, 429, 503]
    if "{name}" in route.path:
        statuses += [404, 409]
    if route.body is not None:
        statuses += [408, 413, 415]
    return sorted(statuses)


def problem_of(status: int) -> dict[str, Any]:
    """A problem document."""
    schema = {"$ref": REF_TEMPLATE.format(name=Problem.__name__)}
    return {
        "description": f"{HTTPStatus(status).phrase}.",
        "content": {MEDIA_TYPE: {"schema": schema}},
    }


def is_optional(kind: Any) -> bool:
    """Whether a body of this kind may be left out."""
    is_struct = get_origin(kind) is None and issubclass(kind, msgspec.Struct)
    return is_struct and not any(field.required for field in msgspec.structs.fields(kind))
