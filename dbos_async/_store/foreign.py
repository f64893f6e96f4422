"""Rows that other writers wrote: their formats, and what is refused of them.

`portable_json` is every DBOS library's common format. The official Python library writes pickle by
default. Reading pickle runs code that the row chooses, so it takes the app's word for it.
"""

import base64
import pickle
from typing import Any, Final

from dbos_async._store import codec
from dbos_async._store.arguments import Decoded, decode_arguments
from dbos_async._store.portable_errors import decode_error, message_of
from dbos_async.errors import PortableWorkflowError, SerializationError

__all__ = ["PICKLE", "load", "load_arguments", "load_error"]

PICKLE: Final = "py_pickle"

PICKLE_START: Final = "gA"
"""How every pickle since protocol 2 starts in base64; no JSON does."""


def load(text: str, serialization: str | None, *, allow_pickle: bool = False) -> Any:
    """The value in a column, by the format that its row names.

    Raises:
        SerializationError: not a format that is read here; the message says what to do.
    """
    if is_json(text, serialization):
        return codec.decode(text)
    return _unpickled(text, serialization, allow_pickle=allow_pickle)


def load_arguments(text: str, serialization: str | None, *, allow_pickle: bool = False) -> Decoded:
    """A workflow's arguments, positional and named, by the format that their row names.

    Raises:
        SerializationError: not a format that is read here; the message says what to do.
    """
    if is_json(text, serialization):
        return decode_arguments(text)
    stored = _unpickled(text, serialization, allow_pickle=allow_pickle)
    try:
        return tuple(stored["args"]), dict(stored["kwargs"])
    except (TypeError, KeyError, ValueError) as exc:
        raise SerializationError("pickled arguments without args and kwargs") from exc


def load_error(text: str, serialization: str | None, *, allow_pickle: bool = False) -> Exception:
    """A workflow's or a step's error, by the format that its row names.

    Raises:
        SerializationError: not a format that is read here; the message says what to do.
    """
    if is_json(text, serialization):
        return decode_error(text)
    stored = _unpickled(text, serialization, allow_pickle=allow_pickle)
    if isinstance(stored, Exception):
        return stored
    return PortableWorkflowError(type(stored).__name__, message_of(stored))


def is_json(text: str, serialization: str | None) -> bool:
    """Whether it is portable JSON: what a row says of its result need not fit its inputs."""
    return serialization in (codec.PORTABLE_JSON, None) and not text.startswith(PICKLE_START)


def _unpickled(text: str, serialization: str | None, *, allow_pickle: bool) -> Any:
    if serialization not in (PICKLE, codec.PORTABLE_JSON, None):
        raise SerializationError(
            f"the row was written as {serialization!r}, which only its writer reads; "
            f"have it write {codec.PORTABLE_JSON!r}"
        )
    if not allow_pickle:
        raise SerializationError(
            "the row holds a Python pickle, and reading pickle runs code of the row's choice; "
            "pass allow_pickle=True if everybody who can write to this database may do that"
        )
    try:
        return pickle.loads(base64.b64decode(text))  # noqa: S301 - opted in
    except Exception as exc:  # unpickling runs any code
        raise SerializationError(f"the row's pickle cannot be read: {message_of(exc)}") from exc
