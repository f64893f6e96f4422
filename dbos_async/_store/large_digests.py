"""The digest of large arguments, in pieces: the same that `arguments.digest` finds at once."""

import binascii
import heapq
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final, cast

from dbos_async._store.arguments import SORTED
from dbos_async._store.pacing import RUN, SMALL, Paces, Whole, runs_of, weight_of_member

SORT: Final = 10_000
"""Keys that are sorted at once."""
TEXT_KEY: Final = frozenset({str})


def digest(value: object) -> Paces[int | None]:
    """The digest of large arguments, the same that `arguments.digest` finds at once.

    Raises:
        Whole: they are not plain JSON, and have to be looked at in one piece.
    """
    found = blake2b(digest_size=8)
    for piece in sorted_pieces(value):
        found.update(piece)
        yield
    return int.from_bytes(found.digest(), "big", signed=True)


def sorted_pieces(value: Any) -> Iterator[bytes]:
    """The JSON of a value with keys in order, in pieces."""
    kind = cast(type[object], type(value))
    if kind is str:
        yield b'"'
        for start in range(0, len(value), RUN):
            yield sorted_text(value[start : start + RUN])[1:-1]
        yield b'"'
    elif kind is bytes:
        size = RUN // 3 * 3
        yield b'"'
        for start in range(0, len(value), size):
            yield binascii.b2a_base64(value[start : start + size], newline=False)
        yield b'"'
    elif kind is list or kind is tuple:
        yield from sorted_run(b"[]", runs_of(value), list)
    elif kind is dict:
        if not TEXT_KEY.issuperset(map(type, value)):
            raise Whole
        keys = list(value)
        parts = [sorted(keys[at : at + SORT]) for at in range(0, len(keys), SORT)]
        items = [(key, value[key]) for key in heapq.merge(*parts)]
        yield from sorted_run(b"{}", runs_of(items, weight_of_member), dict)
    else:
        raise Whole


def sorted_run(
    brackets: bytes, runs: Iterator[tuple[list[Any], bool]], make: Callable[[list[Any]], object]
) -> Iterator[bytes]:
    """What a container holds, between its brackets."""
    yield brackets[:1]
    separator = b""
    for run, is_heavy in runs:
        yield separator
        if is_heavy and make is dict:
            yield sorted_text(run[0][0]) + b":"
            yield from sorted_pieces(run[0][1])
        elif is_heavy:
            yield from sorted_pieces(run[0])
        else:
            yield sorted_text(make(run))[1:-1]
        separator = b","
    yield brackets[1:]


def sorted_text(value: object) -> bytes:
    """The JSON of plain lists, dicts and scalars, with keys in order. Raises Whole of others."""
    if not is_simple(value):
        raise Whole
    try:
        return SORTED(value)
    except Exception as exc:  # it has no digest
        raise Whole from exc


def is_simple(value: Any) -> bool:
    """Whether there is nothing in the value whose place in the text depends on more than itself."""
    kind = cast(type[object], type(value))
    if kind is dict:
        return TEXT_KEY.issuperset(map(type, value)) and all(map(is_simple, value.values()))
    if kind is list or kind is tuple:
        return all(map(is_simple, value))
    return kind is str or kind is bytes or kind in SMALL
