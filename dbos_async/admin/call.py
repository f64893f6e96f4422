"""What an endpoint is given."""

from typing import Generic, TypeVar

from msgspec import Struct

from dbos_async._app import DBOS

B = TypeVar("B")


class Call(Struct, Generic[B], frozen=True):
    """A request that was let through, read and checked."""

    dbos: DBOS
    name: str
    """The id or name in the path; empty where there is none."""
    body: B
