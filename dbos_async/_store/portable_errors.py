"""Errors to text and back, as every DBOS library writes them: name, message, code and data.

More keys, of ours, say what it was in Python: `type` (`module:qualname`), `args`, `attributes` and
`errors`, those that it holds. It comes back as its class if that is loaded here and can be built
from this state **without calling its own `__init__` or `__new__`**: a row of the database decides
what is built, so nothing is imported, no constructor of the user's runs, and only Exceptions are
made. Whatever does not come back with the same message becomes a PortableWorkflowError.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from dbos_async._store import codec
from dbos_async.errors import (
    CompensationError,
    PortableWorkflowError,
    SerializationError,
    StepRetriesExhaustedError,
)

__all__ = ["decode_error", "encode_error"]

CODES: Final = ("code", "error_code", "errno", "status", "status_code")
HOLDERS: Final = (StepRetriesExhaustedError, CompensationError)
"""Errors that hold others."""
DETAILS: Final = ("data", "details", "payload", "extra", "meta", "metadata")

MAX_DEPTH: Final = 8
"""How deep errors within errors are kept; an error may contain itself."""

MAX_STATE_CHARACTERS: Final = 100_000
MAX_MESSAGE_CHARACTERS: Final = 1_000_000


def encode_error(error: BaseException) -> str:
    """The text of `error`. It always has one, however odd the error."""
    try:
        return codec.encode(_record_of(error, MAX_DEPTH))
    except Exception:  # noqa: BLE001 - an error in telling an error must not hide it
        return codec.encode({"name": "Error", "message": message_of(error)})


def decode_error(text: str) -> Exception:
    """The error that `text` stands for; it never raises, whatever the text."""
    try:
        record = codec.decode(text)
    except SerializationError:
        record = text
    return _error_of(record)


def message_of(error: object) -> str:
    """What `error` says, though its `__str__` may be broken or its text not fit for a database."""
    try:
        message = str(error)
    except Exception as exc:  # noqa: BLE001 - user code; what it raises is all there is to tell
        message = f"<its __str__ raised {type(exc).__name__}>"
    return _readable(message)


def _record_of(error: BaseException, depth: int) -> dict[str, object]:
    record: dict[str, object] = {
        "name": _readable(type(error).__name__),
        "message": message_of(error),
        "code": _code_of(error),
        "data": _details_of(error),
    }
    if type(error) is PortableWorkflowError:
        return record | {"name": _readable(error.name), "message": _readable(error.message)}
    record["type"] = _readable(f"{type(error).__module__}:{type(error).__qualname__}")
    record["args"] = _stored(_args_of(error))
    record["attributes"] = _attributes_of(error)
    if depth:
        record["errors"] = [_record_of(each, depth - 1) for each in _inner_errors_of(error)]
    return record


def _code_of(error: BaseException) -> object:
    for name in CODES:
        code = _attribute(error, name)
        if isinstance(code, int | str):
            return _stored(code)
    return None


def _details_of(error: BaseException) -> object:
    for name in DETAILS:
        details = _attribute(error, name)
        if details is not None and not callable(details):
            return _stored(details)
    return None


def _args_of(error: BaseException) -> tuple[object, ...]:
    """What the built-in base of this error's class was built from."""
    if isinstance(error, BaseExceptionGroup):
        return (cast(BaseExceptionGroup[BaseException], error).message,)
    if isinstance(error, OSError):
        # An OSError hides its file names from `args`, not from pickle.
        return cast(tuple[str, tuple[object, ...]], OSError.__reduce__(error))[1]
    return cast(tuple[str, tuple[object, ...]], BaseException.__reduce__(error))[1]


def _attributes_of(error: BaseException) -> dict[str, object]:
    """What the error's class set on it; what cannot be stored is left out, with a note."""
    attributes = _attribute(error, "__dict__")
    if not isinstance(attributes, dict):
        return {}
    items = cast(dict[str, object], attributes).items()
    stored: dict[str, object] = {_readable(str(name)): _stored(value) for name, value in items}
    within = {"errors"} if isinstance(error, HOLDERS) else set[str]()
    lost = [name for name, value in stored.items() if value is None and name not in within]
    if not lost:
        return stored
    held = {name: value for name, value in stored.items() if value is not None}
    note = f"stored without its attributes: {', '.join(lost)}"
    return held | {"__notes__": [*map(message_of, getattr(error, "__notes__", ())), note]}


def _inner_errors_of(error: BaseException) -> Sequence[BaseException]:
    if isinstance(error, HOLDERS):
        return error.errors
    if isinstance(error, BaseExceptionGroup):
        return cast(BaseExceptionGroup[BaseException], error).exceptions
    return ()


def _attribute(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a property of the user's, broken
        return None


def _stored(value: object) -> msgspec.Raw | None:
    """The JSON of `value`; None if it has none, or too much."""
    try:
        text = codec.encode(value)
    except SerializationError:
        return None
    return msgspec.Raw(text) if len(text) <= MAX_STATE_CHARACTERS else None


def _readable(text: str) -> str:
    """`text` with lone surrogates spelled out, and not endless."""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    return f"{text[:MAX_MESSAGE_CHARACTERS]}… ({len(text)} characters)"


def _error_of(record: object) -> Exception:
    if not isinstance(record, dict):
        return PortableWorkflowError("Error", str(record))
    record = cast(dict[str, object], record)
    return _rebuilt(record) or _portable(record)


def _portable(record: dict[str, object]) -> PortableWorkflowError:
    code = record.get("code")
    data = record.get("data")
    return PortableWorkflowError(
        str(record.get("name") or "Error"),
        str(record.get("message") or ""),
        code if isinstance(code, int | str) else None,
        (record.get("attributes") or None) if data is None else data,
    )


def _rebuilt(record: dict[str, object]) -> Exception | None:
    """The error as its own class, if it says the same in it."""
    kind = _class_named(record.get("type"))
    if kind is None:
        return None
    for state in (record, record | {"args": None}):  # its arguments may not be what they were
        try:
            error = _built(kind, state)
        except Exception:  # noqa: BLE001, S112 - the class has changed, or the row is made up
            continue
        if message_of(error) == record.get("message"):
            return error
    return None


def _class_named(path: object) -> type[Exception] | None:
    """The exception class at `module:qualname`, if it is loaded and may be built."""
    module, _, qualname = str(path).partition(":")
    found: object = sys.modules.get(module)
    for name in qualname.split("."):
        # Not getattr: a module's or a metaclass's __getattr__ is code.
        found = getattr(found, "__dict__", {}).get(name)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return None
    # Raised in a coroutine, a StopIteration is a RuntimeError; a future refuses it.
    if issubclass(found, StopIteration | StopAsyncIteration) or _has_slots(found):
        return None
    return found


def _has_slots(kind: type) -> bool:
    """Whether instances keep state where `attributes` does not reach."""
    return any(vars(base).get("__slots__") for base in kind.__mro__)


def _built(kind: type[Exception], record: dict[str, object]) -> Exception:
    base = _builtin_base_of(kind)
    args = cast(list[object] | None, record.get("args"))
    if args is None:
        args = [record.get("message")]
    inner = [_error_of(each) for each in cast(list[object], record.get("errors") or [])]
    if hasattr(base, "exceptions"):  # an ExceptionGroup
        args = [*args, inner]
    error: Exception = base.__new__(kind, *args)
    base.__init__(error, *args)
    error.__dict__.update(cast(dict[str, object], record.get("attributes") or {}))
    if isinstance(error, HOLDERS):
        error.errors = inner
    if isinstance(error, StepRetriesExhaustedError):
        error.__cause__ = inner[-1] if inner else None
    return error


def _builtin_base_of(kind: type[Exception]) -> Any:
    """The class that Python itself brings, whose memory layout `kind` has."""
    base: Any = kind
    while base.__module__ != "builtins":
        base = base.__base__
    return base
