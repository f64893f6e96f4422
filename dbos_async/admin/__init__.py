"""The admin API: what a person on call, a console, Kubernetes and KEDA ask over HTTP.

    request ─▶ application ─▶ guard: host, origin, token ─▶ body, checked ─▶ endpoint
                   ▲                                                             │
                routes: the one table of what there is                   verbs, as in code
                   │                                                             ▼
                openapi: its description               shapes: the documented names ─▶ JSON

`DBOS(…, admin_port=3001)` serves it on a port of its own (`server`); `app_of(dbos)` is the same as
an ASGI app, to be mounted in a web app whose lifespan launches `dbos`. Every answer that is no
success is a problem document (`problems`), and everything that is asked goes through one door
(`application`), so a route cannot forget its permission, its limits or its errors.

What is asked for while Postgres is away is refused with 503 after a while at most; what was already
asked of it may or may not be done then, and can be asked for again: all of it is idempotent but the
fork without a `new_workflow_id`.

Source: the paths, bodies and names of fields are those of DBOS Transact's admin server.
"""

from dbos_async.errors import ConfigurationError

try:
    import starlette as _starlette
except ModuleNotFoundError:
    raise ConfigurationError(
        "the admin API needs Starlette, which is not installed: `pip install 'dbos-async[admin]'` "
        "(in a source tree: `pip install '.[admin]'`)"
    ) from None

from dbos_async.admin.application import app_of

__all__ = ["app_of"]

del _starlette
