"""Whatever the value: it comes back the same or is refused, and errors always have a record."""

import dataclasses
import enum
import json
import math
import os
import subprocess
import sys
from collections.abc import Hashable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_async._store import codec
from dbos_async._store.arguments import Arguments, decode_arguments, digest, encode_arguments
from dbos_async._store.portable_errors import decode_error, encode_error
from dbos_async.errors import PortableWorkflowError, SerializationError, StepRetriesExhaustedError

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
SOUND_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
BIG_INTEGERS = st.integers() | st.integers(2**63 - 2, 2**65) | st.integers(-(2**65), -(2**63) + 2)
OFFSETS = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
MOMENTS = st.datetimes(timezones=st.none() | OFFSETS)
PLAIN = st.recursive(
    st.none() | st.booleans() | BIG_INTEGERS | SOUND_FLOATS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Suit(enum.Enum):
    HEARTS = "h"
    SPADES = "s"


@dataclasses.dataclass(frozen=True)
class Leaf:
    number: float
    text: str | None = None
    moment: datetime | None = None


class Node(msgspec.Struct):
    leaves: list[Leaf]
    by_number: dict[int, Decimal] = {}
    suits: frozenset[Suit] = frozenset()
    child: "Node | None" = None


class OddError(Exception):
    """Says whatever it is told, and raises what it is given instead of an attribute."""

    def __init__(self, message: object, attributes: dict[str, object]) -> None:
        self.__dict__.update(attributes)
        super().__init__(message)

    def __str__(self) -> str:
        if isinstance(self.args[0], bytes):
            raise UnicodeError(self.args[0])
        return super().__str__()


ODD_KEYS: st.SearchStrategy[Hashable] = (
    ANY_TEXT | st.integers() | st.floats() | st.none() | st.dates() | st.tuples(st.integers())
)
ODD = st.recursive(
    st.none()
    | ANY_TEXT
    | st.floats()
    | BIG_INTEGERS
    | st.binary()
    | MOMENTS
    | st.uuids()
    | st.decimals()
    | st.sampled_from([object(), print, Leaf, Suit.HEARTS, 1j, range(3), ValueError("x"), ...])
    | st.builds(Leaf, st.floats(), ANY_TEXT, MOMENTS),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(ODD_KEYS, inner)
        | st.sets(ANY_TEXT)
        | st.builds(set, st.lists(st.integers()))
    ),
    max_leaves=10,
)
TYPED: dict[object, st.SearchStrategy[Any]] = {
    datetime: MOMENTS,
    date: st.dates(),
    time: st.times(timezones=st.none() | OFFSETS),
    timedelta: st.timedeltas(),
    UUID: st.uuids(),
    Decimal: st.decimals(allow_nan=False),
    bytes: st.binary(),
    float: st.floats(allow_nan=False),
    str: ANY_TEXT,
    Leaf: st.builds(Leaf, st.floats(allow_nan=False), st.none() | ANY_TEXT, st.none() | MOMENTS),
    dict[int | str, int]: st.dictionaries(
        BIG_INTEGERS | st.sampled_from(["1", "a"]), st.integers()
    ),
    dict[UUID, set[int]]: st.dictionaries(st.uuids(), st.sets(st.integers())),
    dict[float, int]: st.dictionaries(st.floats(allow_nan=False), st.integers()),
    tuple[int, ...]: st.lists(BIG_INTEGERS).map(tuple),
    tuple[str, date | None]: st.tuples(ANY_TEXT, st.none() | st.dates()),
}
NODES = st.deferred(
    lambda: st.builds(
        Node,
        st.lists(st.builds(Leaf, SOUND_FLOATS, st.none() | st.text())),
        st.dictionaries(st.integers(), st.decimals(allow_nan=False)),
        st.frozensets(st.sampled_from(Suit)),
        st.none() | NODES,
    )
)


def exactly(value: object) -> str:
    """A text in which equal values of other types, and -0.0 and 0.0, differ."""
    return repr(value)


@given(PLAIN)
def test_plain_json_comes_back_exactly(value: object) -> None:
    assert exactly(codec.decode(codec.encode(value))) == exactly(value)


@given(NODES)
def test_structs_come_back_equal(value: Node) -> None:
    text = codec.encoder(Node)(value)
    assert codec.decoder(Node)(text) == value
    assert "\x00" not in text


@given(st.sampled_from(list(TYPED)).flatmap(lambda t: st.tuples(st.just(t), TYPED[t])))
def test_a_typed_value_comes_back_equal_or_is_refused(case: tuple[object, object]) -> None:
    annotation, value = case
    try:
        text = codec.encoder(annotation)(value)
    except SerializationError:
        return
    back = codec.decoder(annotation)(text)
    assert back == value
    assert type(back) is type(value)


@given(ODD)
def test_an_odd_value_is_refused_or_stored_as_standard_json(value: object) -> None:
    try:
        text = codec.encode(value)
    except SerializationError:
        return
    text.encode()
    assert "\x00" not in text
    standard = json.loads(text, parse_constant=lambda name: 1 / 0)
    back = codec.decode(text)
    assert exactly(back) == exactly(standard)
    # Once plain, always the same: nothing is lost on the second way.
    assert codec.encode(back) == text
    assert count_numbers(back) == count_numbers(value)


def count_numbers(value: object) -> int:
    """How many floats and integers there are, and so whether one became a null."""
    match value:
        case bool() | None:
            return 0
        case float() | int():
            return 1
        case dict():
            return sum(map(count_numbers, value.values()))
        case list() | tuple() | set():
            return sum(map(count_numbers, value))
        case Leaf():
            return 1
        case _:
            return 0


@given(st.lists(PLAIN), st.dictionaries(st.text(), PLAIN))
def test_arguments_come_back_exactly(args: list[object], kwargs: dict[str, object]) -> None:
    def workflow(a: object, b: "Nowhere", *rest: object, **named: object) -> None: ...  # type: ignore[name-defined] # noqa: F821

    text = encode_arguments(args, kwargs)
    assert Arguments(workflow).encode(args, kwargs) == text
    for back in (decode_arguments(text), Arguments(workflow).decode(text)):
        assert exactly(back) == exactly((tuple(args), kwargs))


@given(st.lists(ODD), st.dictionaries(ANY_TEXT, ODD))
def test_odd_arguments_are_stored_or_refused(args: list[object], kwargs: dict[str, object]) -> None:
    def workflow(*rest: object, **named: object) -> None: ...

    for encode in (Arguments(workflow).encode, encode_arguments):
        try:
            text = encode(args, kwargs)
        except SerializationError:
            continue
        back, named = decode_arguments(text)
        assert encode(back, named) == text
    number = digest(args, kwargs)
    assert number is None or -(2**63) <= number < 2**63


@given(ODD | st.binary(), st.dictionaries(ANY_TEXT, ODD))
def test_every_error_has_a_record_and_comes_back_as_some_error(
    message: object, attributes: dict[str, object]
) -> None:
    for error in (
        OddError(message, attributes),
        ValueError(message),
        OSError(message, attributes),
        KeyError(message),
        PortableWorkflowError(str(message), str(message), data=message),
        StepRetriesExhaustedError(str(message), [OddError(message, attributes)]),
        ExceptionGroup("group", [ValueError(message), OddError(message, attributes)]),
    ):
        text = encode_error(error)
        text.encode()
        assert "\x00" not in text
        back = decode_error(text)
        assert type(back) in (type(error), PortableWorkflowError)
        assert encode_error(decode_error(encode_error(back))) == encode_error(back)


@given(st.text() | PLAIN.map(json.dumps))
def test_any_text_in_the_error_column_is_read(text: str) -> None:
    assert isinstance(decode_error(text), Exception)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": PLAIN,
            "message": PLAIN,
            "code": PLAIN,
            "data": PLAIN,
            "type": st.sampled_from(
                [
                    "builtins:OSError",
                    "builtins:ExceptionGroup",
                    "builtins:UnicodeDecodeError",
                    "builtins:SyntaxError",
                    "builtins:Exception",
                    "dbos_async.errors:StepRetriesExhaustedError",
                    "dbos_async.errors:WorkflowTimeoutError",
                    "json:dumps",
                    "json.decoder:JSONDecodeError",
                    "builtins:BaseException",
                ]
            ),
            "args": PLAIN,
            "attributes": PLAIN,
            "errors": PLAIN,
        },
    )
)
def test_a_made_up_record_is_read_as_an_exception(record: dict[str, object]) -> None:
    error = decode_error(json.dumps(record))
    assert isinstance(error, Exception)
    decode_error(encode_error(error))


DIGESTS = """
import enum
from dbos_async._store.arguments import digest
class E(enum.Enum):
    A = "a"; B = "b"; C = "c"
names = {f"name-{i}" for i in range(100)}
mixed = names | {1, 2.5, None, b"x", (1, "a")}
nested = {frozenset({name, "x"}) for name in names}
args = (names, mixed, nested, frozenset(E), {n: {n} for n in names}, [[names]])
print([digest((arg,), {"named": arg}) for arg in args])
"""


def test_digests_are_the_same_in_processes_that_hash_differently() -> None:
    seen = {
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2", "3")
    }
    assert len(seen) == 1
    assert "None" not in seen.pop()


@given(st.floats(allow_nan=True, allow_infinity=True), PLAIN)
def test_a_number_that_json_does_not_have_is_refused_at_any_depth(
    number: float, other: object
) -> None:
    value = [other, {"a": (other, number)}]
    if math.isfinite(number):
        codec.encode(value)
        return
    with pytest.raises(SerializationError, match=r"value\[1\]\['a'\]\[1\] is"):
        codec.encode(value)
