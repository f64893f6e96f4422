"""Waiting for news, of whatever kind.

    asking ─▶ asked[key] ─▶ one look-up for all that have reason to look ─▶ found: the answer is set
                  ▲                                              not yet: until news, or the recheck
                  └── news(words), recheck() ────────────────────────────┘

One task looks, an array statement at a time; who asks holds a future and no connection. News says
words, and concerns everybody who asks under one of them. Askers under one key share its future; one
who goes away leaves it to the others, and the last one removes it.

News is a hint: with all of it lost, the recheck still finds everything. If the process dies,
nothing was written here but what a look-up itself records; that is its own business.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Generic, TypeVar

from dbos_async import errors
from dbos_async._service import running
from dbos_async._store.database import Database

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_KEYS: Final = 5_000
"""Keys that one statement looks up."""
MANY: Final = 16
"""A look for more than this many is followed by a rest, if there is one."""


class Asked(Generic[V]):
    """What somebody asks for."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self.is_looked_up = asyncio.Event()
        """Set after the first look, whatever it found."""
        self.askers = 0

    async def first_look(self) -> bool:
        """Return after the first look; whether it brought the answer."""
        await self.is_looked_up.wait()
        return self.answer.done()


class Wakers(Generic[K, V]):
    """Answers one kind of question as soon as there is an answer."""

    def __init__(
        self,
        database: Database,
        look_up: Callable[[list[K]], Awaitable[Mapping[K, V | Exception]]],
        word_of: Callable[[K], str],
        name: str,
        *,
        rest: float = 0.0,
    ) -> None:
        """Args:
        look_up: the answers that there are to these keys, in the order in which they were
            asked; an exception is raised where it is awaited. It is repeated after an outage.
        word_of: what news calls a key.
        name: what the task that looks is called.
        rest: seconds between a look for many and the next, in which reasons gather.
        """
        self._database = database
        self._look_up = look_up
        self._word_of = word_of
        self._name = name
        self._rest = rest
        self._asked: dict[K, Asked[V]] = {}
        self._by_word: dict[str, dict[K, None]] = {}
        self._reasons: dict[K, None] = {}  # keys that are to be looked up
        self._something = asyncio.Event()
        self._obituary: BaseException | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Wakers[K, V]"]:
        """Look things up for the length of the block; who still asks then is told so."""
        try:
            async with running(**{self._name: self._run()}):
                yield self
        finally:
            self.drop(errors.NotLaunchedError("the app was shut down while this was awaited"))

    def drop(self, why: BaseException) -> None:
        """Tell whoever asks, now or later, that nobody looks any more."""
        self._obituary = why
        for asked in self._asked.values():
            refuse(asked, why)

    @asynccontextmanager
    async def asking(self, key: K, *, look: bool = True) -> AsyncIterator[Asked[V]]:
        """Ask for the length of the block. Args and errors as of `ask`."""
        asked = self.ask(key, look=look)
        try:
            yield asked
        finally:
            self.leave(key, asked)

    def ask(self, key: K, *, look: bool = True) -> Asked[V]:
        """Begin to ask; whoever does must `leave`.

        Args:
            key: what for.
            look: whether to look at once; False if the last look is younger than all news.

        Raises:
            NotLaunchedError: nobody looks any more.
        """
        if self._obituary is not None:
            raise self._obituary
        asked = self._asked.get(key)
        if asked is None or asked.answer.done():
            asked = self._asked[key] = Asked()
            self._by_word.setdefault(self._word_of(key), {})[key] = None
        asked.askers += 1
        if look:
            self._look_at([key])
        return asked

    def leave(self, key: K, asked: Asked[V]) -> None:
        """Ask no more."""
        asked.askers -= 1
        if asked.askers == 0:
            asked.answer.cancel()
            if self._asked.get(key) is asked:
                self._forget(key)

    async def wait(self, key: K) -> V:
        """The answer, once there is one."""
        async with self.asking(key) as asked:
            return await asyncio.shield(asked.answer)

    def news(self, words: Iterable[str]) -> None:
        """Something has happened, it is said."""
        if self._asked:
            self._look_at(key for word in words for key in self._by_word.get(word, ()))

    def recheck(self) -> None:
        """News may have been lost: look at everything."""
        self._look_at(self._asked)

    def again(self, key: K) -> None:
        """A look at this one came too early: look once more."""
        if key in self._asked:
            self._look_at([key])

    def _forget(self, key: K) -> None:
        del self._asked[key]
        word = self._word_of(key)
        self._by_word[word].pop(key, None)
        if not self._by_word[word]:
            del self._by_word[word]

    def _look_at(self, keys: Iterable[K]) -> None:
        self._reasons.update(dict.fromkeys(keys))
        if self._reasons:
            self._something.set()

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            keys = [key for key in self._reasons if self._is_open(key)]
            self._reasons = {}
            for first in range(0, len(keys), MAX_KEYS):
                some = keys[first : first + MAX_KEYS]
                self._settle(some, await self._database.persistently(partial(self._look_up, some)))
            if self._rest and len(keys) > MANY:
                await asyncio.sleep(self._rest)

    def _is_open(self, key: K) -> bool:
        """Whether somebody asks who has no answer; one who has may not have left yet."""
        asked = self._asked.get(key)
        return asked is not None and not asked.answer.done()

    def _settle(self, keys: list[K], found: Mapping[K, V | Exception]) -> None:
        for key in keys:
            asked = self._asked.get(key)
            if asked is None:
                continue
            if key in found and not asked.answer.done():
                answer = found[key]
                if isinstance(answer, Exception):
                    refuse(asked, answer)
                else:
                    asked.answer.set_result(answer)
            asked.is_looked_up.set()


def refuse(asked: Asked[V], why: BaseException) -> None:
    """Let this be the answer."""
    if not asked.answer.done():
        asked.answer.set_exception(why)
        asked.answer.exception()  # nobody need be awaiting it
    asked.is_looked_up.set()
