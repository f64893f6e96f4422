"""Values to text and back: `portable_json`, the format that every DBOS library reads.

What the first run sees is what a replay sees: a result reaches the workflow decoded from what was
stored. Types come back by annotation. Without one, or with one that JSON cannot restore (a
Protocol, `datetime | str`), plain JSON comes back: tuples and sets as lists, a datetime as text.

A value is stored faithfully or refused with a SerializationError that says where in it the trouble
is; it is never changed silently.
"""

import json
import sys
import typing
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from dbos_async._store.jsonable import ENCODER, decoded_model, flaw_in, is_model, is_plain
from dbos_async.errors import SerializationError

__all__ = [
    "PORTABLE_JSON",
    "annotation_of",
    "decode",
    "decoder",
    "encode",
    "encoder",
    "hints_of",
    "read_back",
    "result_type",
]

EXACT: Final = frozenset({str, int, bool, type(None)})
"""Types whose equal values are the same."""

PORTABLE_JSON: Final = "portable_json"
"""The name of this format in the columns called `serialization`."""

FAITHFUL: Final = frozenset({str, int, bool, type(None)})

Encode = Callable[[Any], str]
Decode = Callable[[str], Any]
Parse = Callable[[str | msgspec.Raw], Any]
"""A Decode that also takes a part of a larger text."""


def encoder(annotation: object = Any, *, at: str = "value") -> Encode:
    """A function from a value to its text. Build it once, call it often.

    Args:
        annotation: the type that will decode the text; it decides which keys can be restored.
        at: what errors call the value, such as "result".
    """
    restores_keys = any(_has_other_keys(part) for part in _parts_of(annotation))

    def encode(value: Any) -> str:
        """The text of `value`.

        Raises:
            SerializationError: JSON cannot hold it; the message names the place and the type.
        """
        try:
            encoded = ENCODER.encode(value)
            if type(value) in FAITHFUL or is_plain(value, encoded):
                return encoded.decode()
            flaw = flaw_in(value, at, restores_keys=restores_keys)
        except Exception as exc:  # a model's own code may raise anything
            flaw = _why_not(value, at, exc)
            raise SerializationError(flaw) from exc
        if flaw is not None:
            raise SerializationError(flaw)
        return encoded.decode()

    return encode


def decoder(annotation: object = Any, *, at: str = "value") -> Parse:
    """A function from text to a value of this type. Build it once, call it often.

    Args:
        annotation: the type to restore; anything that JSON cannot restore means plain JSON.
        at: what errors call the value, such as "result".
    """
    parse = _parser_of(annotation)

    def decode(text: str | msgspec.Raw) -> Any:
        """The value that `text` stands for.

        Raises:
            SerializationError: it is no JSON, or does not fit the type; the message says why.
        """
        try:
            return parse(text)
        except Exception as exc:  # a type's own validation may raise anything
            flaw = f"{at} does not fit {_name_of(annotation)}: {exc}"
            raise SerializationError(flaw) from exc

    vars(decode)["annotation"] = annotation
    return decode


def annotation_of(decode: Decode) -> Any:
    """The type that a decoder restores; of any other function, Any."""
    return getattr(decode, "annotation", Any)


def read_back(value: object, text: str, encode: Encode, decode: Decode, *, at: str) -> Any:
    """What `text`, which stands for `value`, reads back as; `encode` made it.

    Raises:
        SerializationError: the type that it reads back as keeps only part of it: a subclass where
            the base class is annotated, keys that a TypedDict does not have, digits of a float.
    """
    decoded = decode(text)
    if type(value) in EXACT and type(decoded) is type(value) and decoded == value:
        return decoded
    again = encode(decoded)
    if again == text or decoded == value or json.loads(again) == json.loads(text):
        return decoded
    raise SerializationError(
        f"{at} does not read back as it is stored: a {type(value).__qualname__} of which its "
        "annotation keeps only a part; annotate what is really there"
    )


def hints_of(function: Callable[..., object]) -> dict[str, Any]:
    """The annotations of `function`, without those that do not resolve."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001 - annotations run as code
        return _resolvable_hints_of(function)


def result_type(function: Callable[..., object]) -> object:
    """What `function` is annotated to return; Any where it does not say."""
    return hints_of(function).get("return", Any)


def _resolvable_hints_of(function: Callable[..., object]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        alone = SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(
                alone, getattr(function, "__globals__", {}), include_extras=True
            )
        except Exception:  # noqa: BLE001, S112 - as above: this one decodes to plain JSON
            continue
    return hints


def _why_not(value: object, at: str, error: Exception) -> str:
    """Why `value` did not encode, and where in it."""
    if isinstance(error, RecursionError):
        return f"{at} is nested too deeply, or contains itself"
    try:
        return flaw_in(value, at, restores_keys=True) or f"{at} cannot be stored: {error}"
    except Exception as exc:  # noqa: BLE001 - a value with broken methods
        return f"{at} cannot be stored: {type(error).__name__}, then {type(exc).__name__}"


def _parser_of(annotation: object) -> Parse:
    if annotation is None or annotation is object:
        annotation = Any
    if _info_of(annotation) is None:
        return _models_parser_of(annotation) or _parser_of(Any)
    parse = msgspec.json.Decoder(cast(Any, annotation), dec_hook=decoded_model).decode

    def parse_leniently(text: str | msgspec.Raw) -> Any:
        try:
            return parse(text)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Other writers' lone surrogates and NaN: Python's parser knows them.
            value = json.loads(_plain_text(text))
            return msgspec.convert(value, cast(Any, annotation), dec_hook=decoded_model)

    return parse_leniently


def _models_parser_of(annotation: object) -> Parse | None:
    """What pydantic makes of an annotation that msgspec refuses, such as a union of models."""
    if not any(is_model(member) for member in typing.get_args(annotation)):
        return None
    try:
        adapter = sys.modules["pydantic"].TypeAdapter(annotation)
    except Exception:  # noqa: BLE001 - building a schema runs the models' code
        return None
    return lambda text: adapter.validate_json(_plain_text(text))


def _plain_text(text: str | msgspec.Raw) -> str | bytes:
    return text if isinstance(text, str) else bytes(text)


def _info_of(annotation: object) -> inspect.Type | None:
    """The type as msgspec sees it; None if it cannot be restored from JSON."""
    try:
        msgspec.json.Decoder(cast(Any, annotation))
        info = inspect.type_info(annotation)
    except Exception:  # noqa: BLE001 - annotations are anything, and are resolved by running them
        return None
    return info if all(_is_restorable(part) for part in _walk(info, set())) else None


def _parts_of(annotation: object) -> Iterator[object]:
    info = _info_of(annotation)
    return iter(()) if info is None else _walk(info, set())


def _walk(part: object, seen: set[int]) -> Iterator[object]:
    """`part` and all types within; a recursive type comes by once."""
    if isinstance(part, tuple):
        for item in cast(tuple[object, ...], part):
            yield from _walk(item, seen)
    elif isinstance(part, inspect.Type | inspect.Field) and id(part) not in seen:
        seen.add(id(part))
        yield part
        for name in part.__struct_fields__:
            yield from _walk(getattr(part, name), seen)


def _is_restorable(part: object) -> bool:
    if not isinstance(part, inspect.CustomType):
        return True
    return part.cls is object or is_model(part.cls)


def _has_other_keys(part: object) -> bool:
    """Whether this is a mapping whose keys cannot be text, so that JSON's keys are converted."""
    if not isinstance(part, inspect.DictType):
        return False
    kind = part.key_type
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return not any(isinstance(each, inspect.StrType | inspect.AnyType) for each in kinds)


def _name_of(annotation: object) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


encode: Final = encoder()
"""Any value to text, plain JSON when it comes back."""

decode: Final = decoder()
"""Text to plain JSON."""
