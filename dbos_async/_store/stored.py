"""Stored values as results, typed; and for listings, where one odd row must not hide the others."""

from collections.abc import Callable
from typing import Any

from dbos_async import errors
from dbos_async._store import codec, foreign
from dbos_async._store.arguments import Arguments, Decoded
from dbos_async._store.codec import PORTABLE_JSON


def read(
    text: str | None,
    serialization: str | None,
    decode: Callable[[str], Any],
    *,
    allow_pickle: bool = False,
) -> Any:
    """A stored result, typed by `decode` if it is ours.

    Raises:
        SerializationError: it is in a format that is not read here, or does not fit its type.
    """
    if text is None:
        return decode("null")
    if serialization == PORTABLE_JSON:
        return decode(text)
    return foreign.load(text, serialization, allow_pickle=allow_pickle)


def read_as(
    text: str | None,
    serialization: str | None,
    kind: Any,
    *,
    at: str,
    allow_pickle: bool = False,
) -> Any:
    """A message or an event as a `kind`, or None; whoever wrote it. Raises as `read` does."""
    if kind is Any or kind is None:
        return read(text, serialization, codec.decode, allow_pickle=allow_pickle)
    decode = codec.decoder(kind | None, at=at)
    return decode(as_json(text, serialization, allow_pickle=allow_pickle))


def as_json(text: str | None, serialization: str | None, *, allow_pickle: bool = False) -> str:
    """A stored value in our format, whoever wrote it.

    Raises:
        SerializationError: it is in a format that is not read here, or JSON cannot hold it.
    """
    if text is None or foreign.is_json(text, serialization):
        return text or "null"
    return codec.encode(foreign.load(text, serialization, allow_pickle=allow_pickle))


def read_arguments(
    text: str | None, serialization: str | None, signature: Arguments, *, allow_pickle: bool
) -> Decoded:
    """A workflow's stored arguments, typed as its function is.

    Raises:
        SerializationError: they cannot be read, or do not fit their types.
    """
    if text is None or foreign.is_json(text, serialization):
        return signature.decode(text or "{}")
    return foreign.load_arguments(text, serialization, allow_pickle=allow_pickle)


def read_error(
    text: str | None, serialization: str | None, *, allow_pickle: bool = False
) -> Exception:
    """A stored error; if it cannot be read, the error that says so."""
    try:
        return foreign.load_error(text or "", serialization, allow_pickle=allow_pickle)
    except errors.SerializationError as exc:
        return exc


def shown(text: str | None, serialization: str | None, *, allow_pickle: bool) -> Any:
    """A stored value for people; the text itself where it cannot be read."""
    if text is None:
        return None
    try:
        return foreign.load(text, serialization, allow_pickle=allow_pickle)
    except errors.SerializationError:
        return text


def shown_arguments(
    text: str | None, serialization: str | None, *, allow_pickle: bool
) -> Decoded | None:
    """Stored arguments for people; None where they cannot be read."""
    if text is None:
        return None
    try:
        return foreign.load_arguments(text, serialization, allow_pickle=allow_pickle)
    except errors.SerializationError:
        return None
