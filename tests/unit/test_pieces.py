"""Large values in pieces: the same text, the same value and the same digest as in one call."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from dbos_async._store import codec, pacing, pieces
from dbos_async._store.arguments import Arguments, decode_arguments, encode_arguments
from dbos_async._store.arguments import digest as digest_at_once
from dbos_async._store.large_digests import digest
from dbos_async._store.pacing import Pacer, Paces, Whole, is_large
from dbos_async._store.pieces import Parameters, Writer, joined, lines_of, read

T = TypeVar("T")


@dataclass
class Order:
    number: int
    note: str | None = None


ORDERS = [Order(number, "n" * (number % 70)) for number in range(50)]
TEXT = 'é"\\\n\t\u2028😀 plain '
CASES: list[tuple[Any, Any]] = [
    ("", str),
    (TEXT * 50, str),
    (TEXT * 50, Any),
    (TEXT * 50, str | None),
    (b"", bytes),
    (bytes(range(256)) * 5, bytes),
    (bytes(range(256)) * 5, Any),
    ([], list[int]),
    (list(range(500)), list[int]),
    ([TEXT, TEXT * 20, "", TEXT * 9], list[str]),
    ([b"ab", b"x" * 400, b""], list[bytes]),
    (ORDERS, list[Order]),
    ({}, Any),
    ({f"key {n} {TEXT}": n * 1.5 for n in range(200)}, dict[str, float]),
    ({"a": {"b": [{"c": [None, True, TEXT * 20, {"d": {}}]}] * 40}, "": []}, Any),
    ({"orders": ORDERS, "none": []}, dict[str, list[Order]]),
    ([[1] * 300, (2,) * 300, []], Any),
    ({"text": TEXT * 30, "after": 1}, dict),
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pacing, pieces):
        monkeypatch.setattr(module, "RUN", 120)


def done(work: Paces[T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def cut_anew(body: pieces.Body, size: int) -> Iterator[bytes]:
    """The same bytes as they may arrive."""
    data = b"".join(body.pieces)
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize(("value", "kind"), CASES)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_what_is_written_reads_back_however_it_arrives(value: Any, kind: Any, size: int) -> None:
    writer = Writer()
    back = done(writer.value(value, kind))
    text = codec.encoder(kind)(value)
    assert joined(writer.body) == text
    assert writer.body.size == sum(map(len, writer.body.pieces))
    expected = codec.decoder(kind)(text)
    assert back == expected
    assert done(read(lines_of(cut_anew(writer.body, size)), kind)) == expected


@pytest.mark.parametrize(("value", "kind"), CASES)
def test_whoever_wants_no_value_back_writes_the_same(value: Any, kind: Any) -> None:
    writer, other = Writer(), Writer(keeps=False)
    done(writer.value(value, kind))
    done(other.value(value, kind))
    assert other.body == writer.body


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("nan"), Any),
        ([float("nan")], Any),
        (["\ud800" * 500], Any),
        ({1: "a" * 500}, Any),
        ([object()], Any),
        ("text" * 100, bytes),
        (b"bytes" * 100, str),
        ({"a"}, set[str]),
        ([{"number": "no"}] * 50, list[Order]),
    ],
)
def test_what_is_not_certain_to_read_back_is_left_to_the_codec(value: Any, kind: Any) -> None:
    with pytest.raises(Whole):
        done(Writer().value(value, kind))


def test_lines_of_another_kind_are_left_to_the_codec() -> None:
    writer = Writer()
    done(writer.value({"orders": ORDERS}, Any))
    with pytest.raises(Whole):
        done(read(lines_of(writer.body.pieces), list[int]))
    with pytest.raises(Whole):
        done(read([b"{", b"nonsense", b"}"], Any))
    with pytest.raises(Whole):
        done(read([b" 1,2"], Any))


def flow(text: str, orders: list[Order], /, *rest: bytes, note: str = "", **others: Any) -> None:
    """A workflow's parameters."""


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((TEXT * 20, ORDERS), {}),
        (("short", [], b"x" * 300, b"y"), {"note": TEXT * 30, "other": {"a": [1] * 400}}),
    ],
)
def test_arguments_read_back_in_their_types(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    arguments = Arguments(flow)
    writer = Writer()
    assert done(writer.arguments(Parameters(arguments), args, kwargs)) == (args, kwargs)
    text = joined(writer.body)
    assert text == arguments.encode(args, kwargs)
    found = done(read(lines_of(writer.body.pieces), Parameters(arguments)))
    assert found == (args, kwargs)
    untyped = done(read(lines_of(writer.body.pieces), Parameters()))
    assert untyped == decode_arguments(text)


def test_arguments_of_an_unknown_workflow_are_written_as_ever() -> None:
    args, kwargs = ([1] * 300, "x" * 300), {"a": b"y" * 300}
    writer = Writer()
    done(writer.arguments(Parameters(), args, kwargs))
    assert joined(writer.body) == encode_arguments(args, kwargs)


@pytest.mark.parametrize("value", [value for value, _ in CASES if value != ORDERS])
def test_a_digest_in_pieces_is_the_digest(value: Any) -> None:
    arguments = ((value, 1), {"z": value, "a": None})
    try:
        found = done(digest(arguments))
    except Whole:
        assert "Order" in repr(value)
    else:
        assert found == digest_at_once(*arguments)


def test_a_digest_sorts_many_keys_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [chr(random.randrange(0x20, 0xD800)) * (n % 3 + 1) + str(n) for n in range(300)]
    value = {**dict.fromkeys(keys, 1), "😀": 2, "\uffff": 3}
    monkeypatch.setattr("dbos_async._store.large_digests.SORT", 16)
    assert done(digest(((value,), {}))) == digest_at_once((value,), {})


@pytest.mark.parametrize("value", [{1, 2}, {"a": {1}}, [ORDERS], {1: 2}])
def test_a_digest_of_what_is_not_plain_is_found_at_once(value: Any) -> None:
    with pytest.raises(Whole):
        done(digest(((value,), {})))


def test_a_guess_looks_into_containers_and_objects() -> None:
    large = "x" * (pacing.LARGE + 1)
    for value in (large, large.encode(), [large], {"a": (1, {"b": large})}, Order(1, large)):
        assert is_large(value)
    assert is_large([{}] * pacing.LARGE)
    for value in (1, None, "x", [1, 2], {"a": "b"}, Order(1, "x"), object()):
        assert not is_large(value)


async def test_a_pacer_stops_the_collector_and_starts_it_again() -> None:
    import gc

    seen: list[bool] = []

    def work() -> Paces[str]:
        seen.append(gc.isenabled())
        yield
        return "done"

    assert gc.isenabled()
    assert await Pacer().pace(work()) == "done"
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        await Pacer().pace(work())
        assert not gc.isenabled()  # whoever stopped it starts it
    finally:
        gc.enable()
