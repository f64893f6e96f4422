"""Streams: what a workflow says while it runs, value by value, for others to read as it comes.

A workflow has any number of streams, each under a key of its own. Values are numbered from 0, and
stay as long as the workflow's row does, so a reader may come late, and go on where it stopped.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar, overload

from dbos_async import errors
from dbos_async._config import Seconds, seconds_of
from dbos_async._engine import streams
from dbos_async._engine.context import Branch, calling_branch
from dbos_async._engine.session import Session
from dbos_async._limits import checked_kind
from dbos_async._store import codec
from dbos_async._store.streams import Place

A = TypeVar("A")

MAX_OFFSET = 2**31 - 1


class StreamReading:
    """Reading streams, from anywhere."""

    _acting: Callable[[], Session]

    @overload
    def read_stream(
        self,
        workflow_id: str,
        key: str,
        *,
        offset: int = 0,
        timeout: Seconds | None = None,
        as_: type[A],
    ) -> AsyncGenerator[A, None]: ...
    @overload
    def read_stream(
        self,
        workflow_id: str,
        key: str,
        *,
        offset: int = 0,
        timeout: Seconds | None = None,
        as_: Any = ...,
    ) -> AsyncGenerator[Any, None]: ...
    def read_stream(
        self,
        workflow_id: str,
        key: str,
        *,
        offset: int = 0,
        timeout: Seconds | None = None,
        as_: Any = Any,
    ) -> AsyncGenerator[Any, None]:
        """The values of a workflow's stream as they come, in order and without gaps.

            async for token in dbos.read_stream(workflow_id, "tokens"):
                print(token, end="")

        It ends when the stream was closed, or when the workflow has ended, however that was, and
        everything is read. Any number may read, now or later; none of them holds up the writer, or
        a connection. Within a workflow what is read is recorded, in steps of up to 100 values.

        Args:
            workflow_id: whose stream.
            key: which one; one that nothing was written to, yet or ever, is empty.
            offset: how many values to skip.
            timeout: seconds to wait for the next value; for ever unless given.
            as_: the type of the values; plain JSON unless given.

        Raises:
            ValueError: the offset or the timeout is negative, or an id that cannot be stored.
            TypeError: an argument is of the wrong type.
            WorkflowNotFoundError: there is no such workflow.
            TimeoutError: the next value did not come in time; read on from its offset.
            SerializationError: a value does not fit `as_`, or is in a format that is not read here.
        """
        place = Place(storable(workflow_id, "workflow_id"), storable(key, "key"), offset)
        if isinstance(offset, bool) or not isinstance(offset, int):
            raise TypeError(f"offset is an int, not {type(offset).__name__}")
        if not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"offset must be at least 0 and at most {MAX_OFFSET}, not {offset}")
        seconds = None if timeout is None else seconds_of(timeout)
        return self._acting().readers.read(
            place, seconds, codec.decoder(checked_kind(as_), at="a value")
        )


class StreamWriting:
    """Writing streams, within workflows and steps."""

    def write_stream(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Write a value to a stream of this workflow; return when it is durable.

        In a workflow it is a step, written exactly once. Within a step, as for the tokens of a
        model, it is no step: a step that runs again, as another attempt or because its process
        died, writes its values again, behind those that are there.

        Args:
            key: which stream.
            value: anything that can be stored; what it is now counts, not what becomes of it.

        Raises:
            ConfigurationError: this is no workflow and no step.
            SerializationError: the value cannot be stored; nothing was written, as with all errors.
            StreamClosedError: the stream was closed before.
            ValueError: the key cannot be stored, or the value is the one that closes streams.
        """
        return streams.write(within("write_stream"), key, value)

    def close_stream(self, key: str) -> Coroutine[Any, Any, None]:
        """End a stream of this workflow; its readers stop there. One that is closed stays so.

        Streams end with their workflow by themselves. Close one earlier in the workflow, not in the
        step that writes it: if that step runs again, it finds the stream closed.

        Raises:
            ConfigurationError: this is no workflow and no step.
            ValueError: the key cannot be stored.
        """
        return streams.close(within("close_stream"), key)


def within(verb: str) -> Branch:
    """The branch of the workflow or the step that calls this.

    Raises:
        ConfigurationError: none does.
    """
    branch = calling_branch(verb)
    if branch is None:
        raise errors.ConfigurationError(
            f"{verb} writes to a stream of the workflow that calls it: call it in a workflow or in "
            "a step of one"
        )
    return branch


def storable(value: object, what: str) -> str:
    """Text that can be looked for, whoever wrote it.

    Raises:
        TypeError: it is no str.
        ValueError: Postgres could not hold it.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")
    if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError(f"{what} has a character that cannot be stored: {value!r}")
    return value
