"""Reading streams, whoever writes them.

    reader ─▶ its place ─▶ one look for all that have reason to look ─▶ the values from there
                  ▲                            none yet: until news, or the recheck
                  └── news of the stream, or of its workflow's end ────┘

A reader asks for more when it has handed out what it had, and not before: one that stops reading
costs its process what one look brought, and the writer nothing. While it waits it holds a future
and no connection.

What a look may miss: a value whose offset is taken, but which has not landed. So a reader gets
values as far as they are dense, and what is behind a gap only once its workflow has ended, when
nothing can fill it any more.

Within a workflow each batch that is handed out is a step, so that a replay reads the same. If the
process dies before it is recorded, the replay reads it, or more, anew.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.execution import Execution, Wait
from dbos_async._engine.steps import StepDefinition
from dbos_async._engine.wakers import Wakers
from dbos_async._store import codec, foreign, streams
from dbos_async._store.clock import Clock
from dbos_async._store.database import Database
from dbos_async._store.records import ENDED, StreamValue
from dbos_async._store.streams import Place

READ: Final = "DBOS.readStream"

REST: Final = 0.005
"""Seconds between two looks for many readers: streams that are written all the time have more for
the next one then, and a look costs by the reader, not by the value."""


class Batch(Struct, frozen=True):
    """Values that are handed out together; what is recorded within a workflow."""

    values: list[str]
    """In portable JSON."""
    next_offset: int
    is_last: bool


class Found(Struct, frozen=True):
    """What a look brought a reader."""

    values: list[StreamValue]
    next_offset: int
    is_last: bool
    is_all: bool
    """Whether there was no more when it was looked for."""
    news: int
    """How much news there had been by then."""


class Ear:
    """What the readers of one workflow's streams hear."""

    __slots__ = ("__weakref__", "news")

    def __init__(self) -> None:
        self.news: dict[str, int] = {}
        """How often there was news of a key."""


class Readers:
    """All readers of one process."""

    def __init__(self, database: Database, clock: Clock, *, allow_pickle: bool) -> None:
        self._database = database
        self._clock = clock
        self._allow_pickle = allow_pickle
        self._ears: WeakValueDictionary[str, Ear] = WeakValueDictionary()
        self._wakers: Wakers[Place, Found] = Wakers(
            database, self._look_up, lambda place: place.word, "streams", rest=REST
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Readers"]:
        """Look for values for the length of the block."""
        async with self._wakers.open():
            yield self

    def drop(self, why: BaseException) -> None:
        """Tell whoever reads that nobody looks any more."""
        self._wakers.drop(why)

    async def read(
        self,
        place: Place,
        timeout: float | None,
        decode: Callable[[str], Any],
    ) -> AsyncGenerator[Any, None]:
        """The values of a stream from a place on, to its end or that of its workflow.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            TimeoutError: the next value did not come within `timeout` seconds.
            SerializationError: a value cannot be read, or does not fit its type.
        """
        reader = Reader(self, place, timeout)
        while True:
            batch = await reader.next_batch()
            for text in batch.values:
                yield decode(text)
            if batch.is_last:
                return

    def news(self, words: Iterable[str]) -> None:
        """Something was written to these streams, it is said."""
        if not self._ears:
            return
        words = list(words)
        for word in words:
            workflow_id, _, key = word.partition("\n")
            ear = self._ears.get(workflow_id)
            if ear is not None and key in ear.news:
                ear.news[key] += 1
        self._wakers.news(words)

    def ended(self, workflow_ids: Iterable[str]) -> None:
        """These workflows have ended, it is said."""
        if not self._ears:
            return
        for workflow_id in workflow_ids:
            ear = self._ears.get(workflow_id)
            if ear is not None:
                self.news([streams.word_of(workflow_id, key) for key in ear.news])

    def recheck(self) -> None:
        """News may have been lost: look for everybody."""
        self._wakers.recheck()

    def ear_of(self, place: Place) -> Ear:
        """What hears of this place's stream as long as somebody holds it."""
        ear = self._ears.get(place.workflow_id)
        if ear is None:
            ear = self._ears[place.workflow_id] = Ear()
        ear.news.setdefault(place.key, 0)
        return ear

    async def find(self, place: Place, timeout: float | None, *, look: bool) -> Found:
        """What there is from a place on, once there is something.

        Args:
            place: where.
            timeout: how many seconds to wait for it.
            look: whether to look now; False if that was done, and no news has come since.

        Raises:
            TimeoutError: there was nothing in time.
        """
        asked = self._wakers.ask(place, look=look)
        try:
            if timeout is None:
                return await asyncio.shield(asked.answer)
            deadline_ms = self._clock.now_ms() + timeout * 1000
            if look:
                await asked.first_look()
            if await self._clock.wait_until(deadline_ms, asked.answer):
                return asked.answer.result()
        finally:
            self._wakers.leave(place, asked)
        raise TimeoutError(
            f"value {place.offset} of the stream {place.key!r} of workflow {place.workflow_id!r} "
            f"did not come within {timeout} s"
        )

    def portable(self, value: StreamValue) -> str:
        """A value of another format than ours in portable JSON.

        Raises:
            SerializationError: it is in a format that is not read here.
        """
        return codec.encode(
            foreign.load(
                value.value or "null", value.serialization, allow_pickle=self._allow_pickle
            )
        )

    async def _look_up(self, places: list[Place]) -> Mapping[Place, Found | Exception]:
        news = [self._news_of(place) for place in places]
        found = await streams.fetch_values(self._database, places)
        answers = {
            place: found_in(place, values, seen)
            for place, values, seen in zip(places, found, news, strict=True)
        }
        return {place: answer for place, answer in answers.items() if answer is not None}

    def _news_of(self, place: Place) -> int:
        ear = self._ears.get(place.workflow_id)
        return 0 if ear is None else ear.news.get(place.key, 0)


class Reader:
    """Where one reader is."""

    def __init__(self, readers: Readers, place: Place, timeout: float | None) -> None:
        self._readers = readers
        self._place = place
        self._timeout = timeout
        self._ear = readers.ear_of(place)
        self._last: Found | None = None

    async def next_batch(self) -> Batch:
        """The values that come next, at least one unless it is the last; in a workflow recorded."""
        branch = calling_branch("read_stream")
        if branch is None or branch.step is not None:
            batch = await self._find()
        else:
            batch = await self._recorded(branch)
        self._place = Place(self._place.workflow_id, self._place.key, batch.next_offset)
        return batch

    async def _recorded(self, branch: Branch) -> Batch:
        execution: Execution = branch.execution
        wait = Wait(key=branch.peek_key())

        async def find() -> Batch:
            async with execution.waiting(wait):
                return await self._find()

        step = StepDefinition(READ, find, encode=ENCODE, decode=DECODE, is_internal=True)
        batch: Batch = await execution.executor.steps.call(branch, step, (), {})
        return batch

    async def _find(self) -> Batch:
        found = await self._readers.find(self._place, self._timeout, look=self._has_reason())
        self._last = found
        texts: list[str] = []
        try:
            for value in found.values:
                if value.serialization == codec.PORTABLE_JSON and value.value is not None:
                    texts.append(value.value)
                else:
                    texts.append(self._readers.portable(value))
        except errors.SerializationError:
            if not texts:
                raise
            self._last = None
            return Batch(texts, self._place.offset + len(texts), is_last=False)
        return Batch(texts, found.next_offset, found.is_last)

    def _has_reason(self) -> bool:
        """Whether there may be more than the last look brought."""
        last = self._last
        return last is None or not last.is_all or self._ear.news[self._place.key] != last.news


ENCODE: Final = codec.encoder(Batch)
DECODE: Final = codec.decoder(Batch)


def found_in(
    place: Place, values: Sequence[StreamValue], news: int
) -> Found | errors.WorkflowNotFoundError | None:
    """What a look brought; None: nothing that could be handed out."""
    status = values[0].status
    if status is None:
        return errors.WorkflowNotFoundError(place.workflow_id)
    has_ended = status in ENDED
    is_all = not streams.may_have_more(values)
    dense: list[StreamValue] = []
    offset = place.offset
    for value in values:
        if value.offset is None or (value.offset != offset and not has_ended):
            break
        if streams.is_end(value):
            return Found(dense, offset, is_last=True, is_all=True, news=news)
        dense.append(value)
        offset = value.offset + 1
    is_last = has_ended and is_all
    if not dense and not is_last:
        return None
    return Found(dense, offset, is_last, is_all, news)
