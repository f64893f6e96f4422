"""Long work in short steps, and what is long: the loop must not wait for one large value.

Work is a generator that rests where it may be interrupted. A thread would not help: encoding and
decoding hold the interpreter's lock for their whole call.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar, cast

from dbos_async._store.jsonable import fields_of

T = TypeVar("T")

LARGE: Final = 1024 * 1024
"""What is larger than this, by a guess at its text, is done in pieces."""
RUN: Final = 256 * 1024
"""About how large a piece is: two milliseconds of decoding."""
NODE: Final = 16
"""What a number, a key or a container counts for, beside the texts in it."""
TURN: Final = 0.004
"""Seconds of work after which the loop has its turn."""

SMALL: Final = frozenset({int, float, bool, type(None)})

Paces = Generator[None, None, T]
"""Work that may rest at each step; its result is what it returns."""


class Whole(Exception):  # noqa: N818  # a way out, not an error
    """This value is not one to be done in pieces."""


class Pacer:
    """Does such work, and lets the loop run now and then.

    Python's collector of cycles is off meanwhile: it would look at everything that there is, again
    and again while a large value grows. (Measured: 750 ms at once, with a million containers.)
    """

    def __init__(self) -> None:
        self._working = 0
        self._has_stopped_collector = False

    async def pace(self, work: Paces[T]) -> T:
        """Do all of the work; its result."""
        with self._no_collections():
            began = time.perf_counter()
            while True:
                try:
                    next(work)
                except StopIteration as done:
                    result: T = done.value
                    return result
                if time.perf_counter() - began > TURN:
                    await asyncio.sleep(0)
                    began = time.perf_counter()

    @contextmanager
    def _no_collections(self) -> Iterator[None]:
        self._working += 1
        if gc.isenabled():
            self._has_stopped_collector = True
            gc.disable()
        try:
            yield
        finally:
            self._working -= 1
            if self._has_stopped_collector and not self._working:
                self._has_stopped_collector = False
                settle_young_objects()
                gc.enable()


def settle_young_objects() -> None:
    """Let what was made while the collector was off count as old, or it would be looked at next."""
    if not gc.get_freeze_count():  # what the user has frozen stays frozen
        gc.freeze()
        gc.unfreeze()


def is_large(value: object) -> bool:
    """Whether encoding the value may take long; a guess that looks at little of it."""
    kind = type(value)
    if kind in SMALL:
        return False
    return weight_of(value, LARGE) >= LARGE


def weight_of(value: object, limit: int) -> int:
    """About how many bytes of text the value has; at least the limit, if it looks no further."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(cast(str | bytes, value)) + NODE
    children: Iterable[object]
    if kind is dict:
        children = cast(dict[object, object], value).values()
    elif kind is list or kind is tuple or kind is set or kind is frozenset:
        children = cast(list[object], value)
    elif kind in SMALL:
        return NODE
    else:
        children = (child for _, child in fields_of(value) or vars_of(value))
    weight = NODE
    for child in children:
        kind = type(child)
        if kind is str:
            weight += len(cast(str, child)) + NODE
        elif kind in SMALL:
            weight += NODE
        else:
            weight += NODE + weight_of(child, limit - weight)
        if weight >= limit:
            return weight
    return weight


def vars_of(value: object) -> list[tuple[str, object]]:
    """The attributes of an object that is no struct."""
    return list(getattr(value, "__dict__", {}).items())


def weight_of_member(item: tuple[object, object]) -> int:
    """About how large a value is that has a key."""
    return NODE + len(str(item[0])) + weight_of(item[1], RUN)


def weight_of_element(element: object) -> int:
    """About how large an element is."""
    return weight_of(element, RUN)


def runs_of(
    elements: Sequence[T], weigh: Callable[[T], int] = weight_of_element
) -> Iterator[tuple[list[T], bool]]:
    """The elements in runs of about the same size; one that is large alone, and marked."""
    run: list[T] = []
    weight = 0
    for element in elements:
        own = weigh(element)
        if own >= RUN:
            if run:
                yield run, False
            yield [element], True
            run, weight = [], 0
            continue
        run.append(element)
        weight += own
        if weight >= RUN:
            yield run, False
            run, weight = [], 0
    if run:
        yield run, False
