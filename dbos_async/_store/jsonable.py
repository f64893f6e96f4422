"""What JSON can hold, and where in a value the thing is that it cannot.

msgspec writes NaN as null, drops the seconds of a UTC offset and turns the key 1 into "1"; nobody
is told. So what it wrote is believed only of values that `is_plain` clears at a glance; the others
are walked by `flaw_in`, which also finds the place of an error.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, cast
from uuid import UUID

import msgspec

__all__ = ["ENCODER", "decoded_model", "fields_of", "flaw_in", "is_model", "is_plain", "portable"]

SCALARS: Final[frozenset[type]] = frozenset(
    {str, int, bool, type(None), bytes, UUID, Decimal, date, timedelta}
)
SCALARS_AND_FLOAT: Final = SCALARS | {float}
TEXT_KEYS: Final = frozenset({str})
NUMBER_KEYS: Final = frozenset({int})
SEQUENCES: Final = (list, tuple, set, frozenset)

ADVICE: Final = "pass plain data, a dataclass, a msgspec.Struct or a pydantic model"


def portable(value: object) -> object:
    """The simpler object that stands for one msgspec does not know; its `enc_hook`.

    Raises:
        TypeError: there is none.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if is_model(type(value)):
        # Aliases and round_trip, so that validation takes back what is dumped here.
        return cast(Any, value).model_dump(mode="json", by_alias=True, round_trip=True)
    raise TypeError(f"no JSON form for {type(value).__qualname__}")


def is_model(kind: object) -> bool:
    """Whether `kind` is a pydantic model; never imports pydantic."""
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return model is not None and isinstance(kind, type) and issubclass(kind, model)


def decoded_model(kind: type, value: object) -> object:
    """A pydantic model from its decoded JSON; anything else as it is. msgspec's `dec_hook`."""
    if not is_model(kind):
        return value
    # As JSON and not as Python objects: strict models take a datetime from JSON text only.
    return cast(Any, kind).model_validate_json(ENCODER.encode(value))


ENCODER: Final = msgspec.json.Encoder(enc_hook=portable)


def is_plain(value: object, encoded: bytes) -> bool:
    """Whether `encoded` is certainly faithful: False means "look closer"."""
    # NaN and infinities become null: without a null there is none.
    safe = SCALARS if b"null" in encoded else SCALARS_AND_FLOAT
    return type(value) in safe or _is_plain(value, safe)


def _is_plain(value: object, safe: frozenset[type]) -> bool:
    """As few calls as can be: this runs on every value that is stored."""
    kind = type(value)
    children: Any = value
    if kind is dict:
        if not TEXT_KEYS.issuperset(map(type, children)):
            return False
        children = children.values()
    elif kind not in SEQUENCES:
        names = getattr(kind, "__struct_fields__", None)
        names = names or getattr(kind, "__dataclass_fields__", None)
        if names is None:
            return _is_plain_leaf(value, safe)
        children = [getattr(value, name, None) for name in names]
    for child in children:  # noqa: SIM110 - all() of a generator takes twice as long
        if type(child) not in safe and not _is_plain(child, safe):
            return False
    return True


def _is_plain_leaf(value: object, safe: frozenset[type]) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, datetime | time):
        return _has_whole_offset(value)
    if isinstance(value, Enum):
        return _is_plain(value.value, safe)
    return type(value) in safe


def flaw_in(value: object, at: str, *, restores_keys: bool) -> str | None:
    """The first thing in `value` that JSON cannot hold, as a sentence that names its place.

    Args:
        value: what is to be stored.
        at: what to call it, such as "result".
        restores_keys: keys that are not text are fine, their type brings them back.
    """
    if isinstance(value, Enum):
        value = value.value
    flaw = _flaw_of(value, restores_keys=restores_keys)
    if flaw is not None:
        return f"{at} {flaw}"
    for place, child in _children_of(value):
        found = flaw_in(child, f"{at}{place}", restores_keys=restores_keys)
        if found is not None:
            return found
    return None


def _flaw_of(value: object, *, restores_keys: bool) -> str | None:
    """What is wrong with `value` itself, its children aside."""
    if isinstance(value, dict):
        return _flaw_of_keys(cast(dict[object, object], value), restores_keys=restores_keys)
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value!r}, a number that JSON does not have"
    if isinstance(value, datetime | time) and not _has_whole_offset(value):
        return f"is a {type(value).__name__} whose UTC offset is not a whole number of minutes"
    if _is_container(value):
        return None
    return _refusal_of(value)


def _refusal_of(value: object) -> str | None:
    """Why msgspec, or the model itself, does not write this leaf."""
    try:
        ENCODER.encode(value)
    except UnicodeEncodeError as exc:
        return f"is text with a lone surrogate ({exc.object[exc.start]!r}), which UTF-8 cannot hold"
    except TypeError:
        return f"is of type {type(value).__qualname__}, which JSON cannot hold; {ADVICE}"
    except ValueError as exc:
        return f"is of type {type(value).__qualname__} and cannot be stored: {exc}"
    return None


def _flaw_of_keys(mapping: dict[object, object], *, restores_keys: bool) -> str | None:
    for key in mapping:
        if isinstance(key, str):
            if (flaw := _refusal_of(key)) is not None:
                return f"has a key that {flaw}"
        elif not restores_keys:
            return (
                f"has the key {key!r} of type {type(key).__qualname__}, which would come back as "
                f"text; use text, or annotate it, such as dict[{type(key).__qualname__}, ...]"
            )
        elif isinstance(key, float) and not math.isfinite(key):
            return f"has the key {key!r}, a number that JSON does not have"
    if TEXT_KEYS.issuperset(map(type, mapping)) or NUMBER_KEYS.issuperset(map(type, mapping)):
        return None
    try:
        texts = msgspec.to_builtins(dict.fromkeys(mapping), str_keys=True, enc_hook=portable)
    except TypeError as exc:
        return f"has keys that JSON cannot hold: {exc}"
    return None if len(texts) == len(mapping) else "has two keys that are the same text in JSON"


def _has_whole_offset(moment: datetime | time) -> bool:
    offset = moment.utcoffset()
    return offset is None or not offset % timedelta(minutes=1)


def _is_container(value: object) -> bool:
    return isinstance(value, (*SEQUENCES, msgspec.Struct)) or (
        not isinstance(value, type)
        and (dataclasses.is_dataclass(value) or hasattr(type(value), "__attrs_attrs__"))
    )


def _children_of(value: object) -> Iterator[tuple[str, object]]:
    """What `value` holds, with each one's place in it, in the order in which it is written."""
    if is_model(type(value)):
        value = portable(value)
    if isinstance(value, Mapping):
        for key, child in cast(Mapping[object, object], value).items():
            yield f"[{key!r}]", child
    elif isinstance(value, SEQUENCES):
        for index, child in enumerate(cast(list[object], value)):
            yield f"[{index}]", child
    elif _is_container(value):
        for name, child in fields_of(value):
            yield f".{name}", child


def fields_of(value: object) -> list[tuple[str, object]]:
    """The names and values of a struct's or a dataclass's fields; empty for anything else."""
    kind = type(value)
    names: Iterable[str] = (
        getattr(kind, "__struct_fields__", None)
        or getattr(kind, "__dataclass_fields__", None)
        or [field.name for field in getattr(kind, "__attrs_attrs__", ())]
    )
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
