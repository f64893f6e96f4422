"""What goes wrong, as a problem document: one handler for every error of every route.

Source: RFC 9457. `error` beside it is the member that DBOS Transact's documentation names.
"""

from http import HTTPStatus

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dbos_async import errors
from dbos_async._log import log

MEDIA_TYPE = "application/problem+json"
UNKNOWN_FATE = "whether it was done is unknown, and it may be asked for again"
AGAIN = "ask again"
"""Of what changes nothing."""


class Problem(Struct, frozen=True, kw_only=True):
    """Why a request was not done."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    error: str


async def answer(request: Request, exc: Exception) -> Response:
    """The answer to a request that failed."""
    changes = getattr(request.state, "changes", False)
    refusal = refusal_of(exc, UNKNOWN_FATE if changes else AGAIN)
    if refusal.status_code == HTTPStatus.INTERNAL_SERVER_ERROR and refusal is not exc:
        log.error("the admin API failed", method=request.method, path=request.url.path, error=exc)
    problem = Problem(
        title=HTTPStatus(refusal.status_code).phrase,
        status=refusal.status_code,
        detail=refusal.detail,
        error=refusal.detail,
    )
    return Response(
        msgspec.json.encode(problem), refusal.status_code, refusal.headers, media_type=MEDIA_TYPE
    )


def refusal_of(exc: Exception, fate: str) -> HTTPException:
    """The status and the words for what was raised; `fate` of what got no answer."""
    match exc:
        case HTTPException():
            return exc
        case errors.NotLaunchedError():
            return HTTPException(503, str(exc), {"retry-after": "1"})
        case errors.DatabaseLostError():
            return HTTPException(503, f"{exc}; {fate}", {"retry-after": "1"})
        case TimeoutError():
            return HTTPException(503, f"no answer in time; {fate}", {"retry-after": "1"})
        case errors.WorkflowNotFoundError():
            return HTTPException(404, str(exc))
        case errors.WorkflowConflictError():
            return HTTPException(409, str(exc))
        case ValueError() | TypeError() | errors.SerializationError():
            return HTTPException(400, str(exc))
        case errors.DBOSError():
            return HTTPException(500, str(exc))
        case _:
            return HTTPException(
                500, "this is a bug in the admin API; the log of the app says more"
            )
