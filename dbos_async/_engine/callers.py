"""On whose behalf a workflow runs: who was authenticated, with which roles, and whether they do.

Whoever starts or enqueues a workflow says so in its options; a child has its parent's caller unless
it is given one. It is stored on the row, so a recovery, a fork and another process run on behalf of
the same caller. The roles are asked for twice: where the workflow is started, before anything is
written, and where it is taken up, because who enqueued it need not know what it requires.
"""

from typing import Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.options import WorkflowOptions
from dbos_async._engine.registry import WorkflowDefinition
from dbos_async._store import codec


class Caller(Struct, frozen=True, omit_defaults=True, gc=False):
    """Who is served."""

    user: str | None = None
    roles: tuple[str, ...] = ()
    role: str | None = None
    """The role that the workflow requires and the caller has."""


NOBODY: Final = Caller()
READ: Final = codec.decoder(Caller)
READ_ROLES: Final = codec.decoder(tuple[str, ...], at="authenticated_roles")


def caller_of(options: WorkflowOptions, parent: Caller) -> Caller:
    """Whom a call serves: whom it names, else whom its parent serves; never a bit of both."""
    if "authenticated_user" not in options and "authenticated_roles" not in options:
        return parent
    return Caller(options.get("authenticated_user"), tuple(options.get("authenticated_roles", ())))


def admitted(definition: WorkflowDefinition, caller: Caller) -> Caller:
    """The caller in the first of the roles that the workflow requires and the caller has.

    Raises:
        NotAuthorizedError: none is.
    """
    required = definition.required_roles
    if not required:
        return caller if caller.role is None else Caller(caller.user, caller.roles)
    for role in required:
        if role in caller.roles:
            return Caller(caller.user, caller.roles, role)
    who = "nobody who was authenticated" if caller.user is None else repr(caller.user)
    has = ", ".join(map(repr, caller.roles)) or "no role"
    raise errors.NotAuthorizedError(
        f"workflow {definition.name!r} requires one of the roles "
        f"{', '.join(map(repr, required))}; it is asked for by {who} with {has}: "
        "name its caller by with_options(authenticated_user=…, authenticated_roles=[…])"
    )


def written(caller: Caller) -> str | None:
    """A caller on the way to its row; None: nobody."""
    return None if caller == NOBODY else codec.encode(caller)


def read(text: str | None) -> Caller:
    """The caller that was written so."""
    caller: Caller = NOBODY if text is None else READ(text)
    return caller


def stored_caller(user: str | None, roles: str | None, role: str | None) -> Caller:
    """The caller that a row names.

    Raises:
        SerializationError: its roles are no list of texts.
    """
    if user is None and roles is None and role is None:
        return NOBODY
    return Caller(user, () if roles is None else READ_ROLES(roles), role)


def shown_roles(roles: str | None) -> list[str]:
    """The roles that a row names, for people; none where they cannot be read."""
    try:
        return [] if roles is None else list(READ_ROLES(roles))
    except errors.SerializationError:
        return []
