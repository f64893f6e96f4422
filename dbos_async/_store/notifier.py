"""LISTEN and NOTIFY on one connection, beside the write path.

    post ─▶ posted ─▶ one pg_notify statement ─▶ Postgres ─▶ the other processes' on_news

A notification is a hint. A notifying commit takes a cluster-wide lock, so none is sent inside a
transaction that writes; it goes out here, after the commit, as many as wait in one statement. It is
lost when the process dies in between or the connection breaks, so everything that waits for news
also looks for itself: at every `recheck`, which comes every few seconds and after each re-LISTEN. A
process that ends in order tells what it has posted.

The connection has no state worth keeping: a lost one is replaced, its posts go out again, and the
recheck that follows makes up for what was missed.

Behind a pooler that gives every transaction another session there is nothing to listen on: news is
told as ever, to those who can hear it, and this process looks for it every `DEAF_RECHECK`.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec

from dbos_async import errors
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store import sql
from dbos_async._store.clock import Clock
from dbos_async._store.database import Connection, Database, translated

ENDED: Final = "dbos_async_ended"
"""Channel: these workflows have ended or were cancelled."""
QUEUED: Final = "dbos_async_queued"
"""Channel: these queues have something to claim."""
CONFIGURED: Final = "dbos_async_configured"
"""Channel: these queues have other limits, or are paused or gone."""
DELAYED: Final = "dbos_async_delayed"
"""Channel: these queues have a workflow that comes due before the next look for such."""
PERMITS: Final = "dbos_async_permits"
"""Channel: permits of these limiters were given back, or somebody waits for some."""
SCHEDULES: Final = "dbos_async_schedules"
"""Channel: these schedules were made, changed or deleted."""
DEAD: Final = "dbos_async_dead"
"""Channel: these executors have left work, because they died or were shut down."""
STREAMED: Final = "dbos_async_streams"
"""Channel: these streams have more to read: workflow ids and keys, a newline between them."""
MESSAGES: Final = "dbos_async_messages"
"""Channel: these workflows have messages of these topics, `workflow::topic`."""
EVENTS: Final = "dbos_async_events"
"""Channel: these workflows have published under these keys, `workflow::key`."""

CHANNELS: Final = (
    ENDED,
    QUEUED,
    CONFIGURED,
    DELAYED,
    PERMITS,
    SCHEDULES,
    DEAD,
    STREAMED,
    MESSAGES,
    EVENTS,
)

NOT_DURABLE: Final = "set synchronous_commit = off;"
"""A commit that notifies waits for the disk like any other, with a lock that all who notify share;
but a server that crashes has lost its listeners, too."""
MAX_PAYLOAD_BYTES: Final = 7_900
"""Below the 8,000 bytes that NOTIFY allows. Source: Postgres manual, NOTIFY."""
DEAF_RECHECK: Final = 1.0
"""Seconds between rechecks, at most, where news is not heard."""
STATEMENT_DEADLINE: Final = 10.0
FAREWELL: Final = 1.0
"""Seconds that the last news has to leave."""
REFUSAL_SILENCE: Final = 60.0
"""Seconds between two warnings of refused notifications."""


class Notifier:
    """Tells other processes what happened, and is told."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        recheck_interval: float,
        on_news: Callable[[str, list[str]], None],
        on_recheck: Callable[[], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._recheck_interval = recheck_interval
        self._on_news = on_news
        self._on_recheck = on_recheck
        self._backend: int | None = None
        self._posted: defaultdict[str, set[str]] = defaultdict(set)
        self._arrived = asyncio.Event()
        self._silent_until = 0.0
        self._closing = False
        self._runner: asyncio.Task[object] | None = None
        self._farewell: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Notifier"]:
        """Listen for the length of the block; the clock is set when it begins.

        What was posted by its end is told, if that takes no longer than `FAREWELL`.
        """
        connection = await self._connect()
        try:
            async with running(self._close, notifier=self._run(connection)):
                yield self
        finally:
            if self._farewell is not None:
                self._farewell.cancel()

    def post(self, channel: str, word: str) -> None:
        """Tell the other processes, soon; this process is not told."""
        self._posted[channel].add(word)
        self._arrived.set()

    def _close(self) -> None:
        self._closing = True
        self._arrived.set()
        if self._runner is not None:
            loop = asyncio.get_running_loop()
            self._farewell = loop.call_later(FAREWELL, self._runner.cancel)

    async def _run(self, connection: Connection) -> None:
        self._runner = asyncio.current_task()
        while not self._closing:
            try:
                with translated():
                    await self._serve(connection)
            except errors.DatabaseLostError as exc:
                connection.terminate()
                if not self._closing:
                    connection = await self._reconnect(exc)
                    self._on_recheck()
            except BaseException:
                connection.terminate()
                raise
        connection.terminate()

    async def _reconnect(self, lost: errors.DatabaseLostError) -> Connection:
        while True:
            await self._database.back(lost)
            try:
                return await self._connect()
            except errors.DatabaseLostError as exc:
                lost = exc

    async def _connect(self) -> Connection:
        connection = await self._database.dial("notifier", NOT_DURABLE, direct=True)
        with translated():
            async with asyncio.timeout(STATEMENT_DEADLINE):
                connection.add_termination_listener(lambda _: self._arrived.set())
                if not self._database.is_deaf:
                    self._backend = await connection.fetchval(sql.FETCH_BACKEND)
                    for channel in CHANNELS:
                        await connection.add_listener(channel, self._heard)
                await self._look_at_clock(connection)
        return connection

    async def _serve(self, connection: Connection) -> None:
        recheck_at = time.monotonic() + self._jittered()
        while self._posted or not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, recheck_at - time.monotonic())):
                    await self._arrived.wait()
            if time.monotonic() >= recheck_at:  # though there may always be something to send
                async with asyncio.timeout(STATEMENT_DEADLINE):
                    await self._look_at_clock(connection)
                self._on_recheck()
                recheck_at = time.monotonic() + self._jittered()
            if self._arrived.is_set():
                await self._send(connection)

    async def _send(self, connection: Connection) -> None:
        self._arrived.clear()
        if connection.is_closed():
            raise errors.DatabaseLostError("the listening connection was closed")
        posted, self._posted = self._posted, defaultdict(set)
        try:
            with translated():
                async with asyncio.timeout(STATEMENT_DEADLINE):
                    for channel, words in posted.items():
                        await connection.execute(sql.NOTIFY, channel, list(payloads_of(words)))
        except errors.DatabaseRefusedError as exc:  # such as a full queue of notifications
            if time.monotonic() > self._silent_until:
                self._silent_until = time.monotonic() + REFUSAL_SILENCE
                log.warning(
                    "notifications are refused; rechecks make up for them, more slowly",
                    error=str(exc),
                )
        except BaseException:
            for channel, words in posted.items():
                self._posted[channel] |= words
            self._arrived.set()
            raise

    async def _look_at_clock(self, connection: Connection) -> None:
        asked_at = time.monotonic()
        database_ms = await connection.fetchval(sql.CLOCK)
        self._clock.set(database_ms, asked_at=asked_at, answered_at=time.monotonic())

    def _heard(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        if connection.is_closed():  # the last words of a connection that is gone; a recheck follows
            return
        if pid != self._backend and isinstance(payload, str):
            self._on_news(channel, words_of(payload))

    def _jittered(self) -> float:
        interval = self._recheck_interval
        if self._database.is_deaf:
            interval = min(interval, DEAF_RECHECK)
        return interval * random.uniform(0.8, 1.2)  # noqa: S311  # spreads processes


def payloads_of(words: Iterable[str]) -> Iterator[str]:
    """The words as JSON lists, each short enough for one notification."""
    part: list[str] = []
    size = 0
    for word in words:
        cost = len(msgspec.json.encode(word)) + 1
        if part and size + cost > MAX_PAYLOAD_BYTES:
            yield msgspec.json.encode(part).decode()
            part, size = [], 0
        if cost <= MAX_PAYLOAD_BYTES:  # a longer one is found by the recheck
            part.append(word)
            size += cost
    if part:
        yield msgspec.json.encode(part).decode()


def words_of(payload: str) -> list[str]:
    """The words in a notification; none in one that somebody else wrote."""
    try:
        return msgspec.json.decode(payload, type=list[str])
    except msgspec.DecodeError:
        return []
