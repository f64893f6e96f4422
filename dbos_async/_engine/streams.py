"""Streams as their workflow writes them.

    write_stream ─▶ the next offset, in this process ─▶ checkpointer ─▶ durable ─▶ readers are told

The offsets of a stream are dense, and decided here: only the process that owns a workflow writes,
fenced like any step, so that a batch that is sent again finds its own rows and writes nothing
twice. A fresh workflow's streams begin at 0; of one that was adopted, the end of a stream is read
once, before its first new value.

In a workflow a write is a step of its own, and the value lands with it: exactly once. Within a step
of the user's the value lands by itself, and if that step runs again, it writes again. If the
process dies before a batch landed, the workflow's replay repeats it; after, it is in the history,
or at the end that is read.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from dbos_async import errors
from dbos_async._engine.context import Branch, current_branch
from dbos_async._engine.execution import Execution
from dbos_async._engine.inner import recorded_of
from dbos_async._engine.steps import check_same, check_size, lost
from dbos_async._limits import checked_id
from dbos_async._store import codec, notifier, stored, streams
from dbos_async._store.arguments import digest as digest_of
from dbos_async._store.landings import Landing
from dbos_async._store.portable_errors import encode_error
from dbos_async._store.records import EffectWrite, Recorded, StepWrite, StreamRow
from dbos_async._store.streams import CLOSED

WRITE: Final = "DBOS.writeStream"
CLOSE: Final = "DBOS.closeStream"


class Stream:
    """How far one stream is written."""

    __slots__ = ("is_closed", "next_offset")

    def __init__(self, next_offset: int = 0, *, is_closed: bool = False) -> None:
        self.next_offset = next_offset
        self.is_closed = is_closed

    def put(self, key: str, text: str) -> StreamRow | None:
        """The row of the next value; None if the stream is closed."""
        if self.is_closed:
            return None
        row = StreamRow(key, text, self.next_offset)
        self.next_offset += 1
        self.is_closed = text == CLOSED
        return row


class Streams:
    """The streams that one run of a workflow writes."""

    __slots__ = ("_execution", "_learning", "_streams")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._streams: dict[str, Stream] = {}
        # Who writes while an end is read waits, in the order of the calls.
        self._learning = None if execution.is_fresh else asyncio.Lock()

    def knows(self, key: str) -> bool:
        """Whether something was written there by this run."""
        return key in self._streams

    async def commit(self, key: str, text: str, position: int, step: StepWrite | None) -> Landing:
        """Write a value at the end of a stream; `step` is recorded with it.

        A stream that is closed is left as it is: `step` is recorded alone, with that as its error
        unless all that it wants is to close it.

        Raises:
            StreamClosedError: there is no step, and the stream is closed.
        """
        if self._learning is None:
            durable = self._add(key, text, position, step)
        else:
            async with self._learning:
                if key not in self._streams:
                    self._streams[key] = await self._learned(key)
                durable = self._add(key, text, position, step)
        if durable is None or step is None:
            return None if durable is None else await durable
        return await self._execution.landed(step.key, step, durable)

    def _add(
        self, key: str, text: str, position: int, step: StepWrite | None
    ) -> "asyncio.Future[Landing] | None":
        """Decide the offset, and let the value travel."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = Stream()
        execution = self._execution
        commit = execution.executor.session.checkpointer.commit
        row = stream.put(key, text)
        if row is not None:
            write = EffectWrite(execution.workflow_id, execution.owner, position, step, [row])
            durable: asyncio.Future[Landing] = commit(write)
            return durable
        why = None if text == CLOSED else closed(execution.workflow_id, key)
        if step is not None:
            step.error = None if why is None else encode_error(why)
            refused: asyncio.Future[Landing] = commit(step)
            return refused
        if why is not None:
            raise why
        return None

    async def _learned(self, key: str) -> Stream:
        """How far those wrote a stream who had the workflow before."""
        execution = self._execution
        database = execution.executor.session.database
        end = await execution.executor.apart(
            database.patiently(lambda: streams.find_end(database, execution.workflow_id, key))
        )
        return Stream() if end is None else Stream(end.offset + 1, is_closed=end.is_closed)


def write(branch: Branch, key: str, value: object) -> Coroutine[Any, Any, None]:
    """Write a value to a stream of the workflow that asks; in the workflow itself, numbered now.

    Raises:
        TypeError: the key is no str.
        SerializationError: the value cannot be stored.
        ValueError: the key cannot be stored, or the value is the one that closes streams.
    """
    if not streams_of(branch.execution).knows(key):
        checked_id(key, "the stream's key")
    try:
        text = codec.encode(value)
    except errors.SerializationError as exc:
        raise errors.SerializationError(
            f"a value for the stream {key!r} cannot be stored: {exc}"
        ) from exc
    limit = branch.execution.executor.session.settings.max_payload_bytes
    check_size(text, limit, f"a value for the stream {key!r}")
    if text == CLOSED:
        raise ValueError(f"{value!r} ends a stream: write something else, or call close_stream")
    if branch.step is not None:
        return write_in_step(branch, key, text)
    return step_of(branch, WRITE, key, text, digest_of((key, value), {}))


def close(branch: Branch, key: str) -> Coroutine[Any, Any, None]:
    """Close a stream of the workflow that asks; in the workflow itself, numbered now."""
    checked_id(key, "the stream's key")
    if branch.step is not None:
        return write_in_step(branch, key, CLOSED)
    return step_of(branch, CLOSE, key, CLOSED, digest_of((key,), {}))


async def write_in_step(branch: Branch, key: str, text: str) -> None:
    """Write within a step of the user's, which is recorded by itself."""
    execution: Execution = branch.execution
    step = branch.step
    assert step is not None
    execution.executor.session.check_loop()
    execution.begin(step.key)
    if await streams_of(execution).commit(key, text, step.position, None) is not None:
        lost(execution)
    tell(execution, key)


def step_of(
    branch: Branch, name: str, key: str, text: str, digest: int | None
) -> Coroutine[Any, Any, None]:
    """A write as a step of the workflow itself, numbered now."""
    execution: Execution = branch.execution
    step_key = branch.next_key()
    position = execution.position_of(step_key)
    run = write_as_step(execution, step_key, position, name, key, text, digest)
    execution.called(step_key, name, run)
    return run


async def write_as_step(
    execution: Execution,
    step_key: str,
    position: int,
    name: str,
    key: str,
    text: str,
    digest: int | None,
) -> None:
    """Write, unless it is recorded that this was done."""
    execution.begin(step_key)
    branch = current_branch() or Branch(execution)
    recorded = execution.history.get(step_key)
    if recorded is None:
        await execution.live(step_key)
        now_ms = execution.executor.clock.now_ms()
        step = StepWrite(
            execution.workflow_id,
            position,
            name,
            None,
            None,
            None,
            now_ms,
            now_ms,
            execution.written_key(step_key, position),
            digest,
            execution.owner,
        )
        landing = await streams_of(execution).commit(key, text, position, step)
        tell(execution, key)
        if landing is None and step.error is None:
            branch.recorded(step_key, now_ms)
            return
        recorded = landed(execution, step, landing)
    check_same(execution, recorded, name, digest)
    branch.recorded(step_key, recorded.completed_at_ms or 0)
    if recorded.error is not None:
        raise stored.read_error(recorded.error, recorded.serialization)


def landed(execution: Execution, step: StepWrite, landing: Landing) -> Recorded:
    """What a replay will find of a step.

    Raises:
        CancelledError: nothing, another owner has the workflow.
    """
    if isinstance(landing, Recorded):
        return landing
    if landing is not None:
        lost(execution)
    return recorded_of(step)


def streams_of(execution: Execution) -> Streams:
    """The streams that a run writes."""
    if execution.streams is None:
        execution.streams = Streams(execution)
    return execution.streams


def tell(execution: Execution, key: str) -> None:
    """There is more to read, readers are told: here, and in other processes."""
    word = streams.word_of(execution.workflow_id, key)
    execution.executor.session.tell(notifier.STREAMED, word)


def closed(workflow_id: str, key: str) -> errors.StreamClosedError:
    """What is raised for a value that comes after the end."""
    return errors.StreamClosedError(
        f"the stream {key!r} of workflow {workflow_id!r} was closed: write before close_stream, or "
        "to another key"
    )
