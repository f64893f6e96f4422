"""Large values: in an object store, with a reference in the row where the text would stand.

    a large value ─▶ pieces ─▶ registered ─▶ uploaded ─▶ its reference lands in the row
                                                              │
    the value ◀── pieces ◀── downloaded, digest compared ◀────┘ whoever reads it

**Who owns an object.** The workflows that a row of `dbos_async_payloads` names: the one that it
was made for, and each fork of one that has it. Objects are never changed and no key is used twice,
so an attempt that lost leaves an object that nobody refers to, and spoils none. While one of its
workflows exists, an object is left alone; when none does, it goes.

What may be true at each await, and what if the process dies there:

- *registering*: a row names an object that there is not yet. It stays until its workflow is gone; a
  sweep then deletes nothing, and the row.
- *uploading*: the object is there or not, all of it or nothing. The same sweep deletes it.
- *the reference on its way to its row*: as before, or the row refers to an object that is there,
  for it was uploaded first. The replay of a step that did not land uploads another.
- *landed*: every reader finds it; it goes after the row has.
- *deleting*: the workflow is gone, and committed so. First the row says that the object is doomed,
  under a lock that nobody holds who is about to refer to it, then the object is deleted, then the
  row. Whoever finds it doomed goes on from there.

A workflow that does not exist may still be on its way: its object is registered, its row travels,
or waits for the database to come back. A sweep leaves objects alone for `GRACE_MS`; if that was too
short, the trigger on the row refuses it, rather than let it refer to what is gone. A fork locks its
source against deletion until its own rows have committed.

An unreachable store is a `PayloadStoreError`: who wrote to it decides how long to try. An object
that is not there, or not what was written, is a `PayloadMissingError`: waiting does not bring it
back.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._config import PAYLOAD_STORE_VARIABLE
from dbos_async._log import log
from dbos_async._store import codec, objects, sql
from dbos_async._store.arguments import Arguments, decode_arguments, encode_arguments
from dbos_async._store.codec import PORTABLE_JSON
from dbos_async._store.database import Database
from dbos_async._store.objects import ObjectStore
from dbos_async._store.pacing import Pacer, Paces, Whole, is_large, weight_of
from dbos_async._store.pieces import Body, Parameters, Writer, joined, lines_of, read
from dbos_async._store.records import Recorded, WorkflowRow

T = TypeVar("T")
Row = TypeVar("Row", WorkflowRow, Recorded)

PREFIX: Final = "dbos_async payload "
"""What a reference begins with; no JSON does. schema.sql knows it, too."""
GRACE_MS: Final = 3_600_000
"""How old an object is at least that a sweep deletes, unless it knows that the workflow was."""
PAGE: Final = 500
"""Objects that are looked at in one statement."""
PATIENCE: Final = 60.0
"""Seconds that an upload is tried for where no policy of the user's says so."""
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts on a store that does not answer."""

Decoded = tuple[tuple[Any, ...], dict[str, Any]]


class Reference(Struct, frozen=True):
    """What stands in the row."""

    key: str
    bytes: int
    digest: str
    store: str
    is_cut: bool = True


class Registered(Struct, frozen=True):
    """An object and a workflow that has it, or had it."""

    key: str
    workflow_id: str
    is_over: bool
    """Whether nobody will miss it."""


class Packed(Struct, frozen=True):
    """A value as text: of a large one its pieces."""

    text: str | Body
    value: Any
    """What it reads back as."""


def is_reference(text: str | None, serialization: str | None = PORTABLE_JSON) -> bool:
    """Whether a column holds a reference, and not the value."""
    return text is not None and text.startswith(PREFIX) and serialization in (PORTABLE_JSON, None)


def reference_in(text: str, workflow_id: str) -> Reference:
    """The reference that a column holds.

    Raises:
        PayloadMissingError: it names no object that there could be.
    """
    try:
        reference = msgspec.json.decode(text.removeprefix(PREFIX), type=Reference)
    except msgspec.DecodeError as exc:
        raise missing(workflow_id, text, "", f"the reference to it is damaged: {exc}") from exc
    if not objects.is_key(reference.key):
        raise missing(workflow_id, reference.key, reference.store, "no object has such a key")
    return reference


class Payloads:
    """The large values of one app or client."""

    def __init__(self, database: Database, given: object, threshold: int) -> None:
        self._database = database
        self._given = given
        self._store: ObjectStore | None = None
        self._pacer = Pacer()
        self.threshold = threshold
        self.patience = PATIENCE
        self.is_on = False
        """Whether large values are written to a store."""

    def open(self) -> None:
        """Make the store ready; no request is sent.

        Raises:
            ConfigurationError: it cannot be one; the message says what to do.
        """
        self._store = objects.opened(self._given)
        self.is_on = self._store is not None

    def open_to_read(self, other: "Payloads") -> None:
        """Read what another one can, and write nothing."""
        self._store = other._store  # noqa: SLF001  # of its own kind

    @property
    def store_name(self) -> str:
        """Where the objects are."""
        return "" if self._store is None else self._store.name

    # Values and their text

    def is_long(self, text: str) -> bool:
        """Whether a text belongs into the store."""
        if len(text) * 4 <= self.threshold:
            return False
        return len(text) > self.threshold or len(text.encode()) > self.threshold

    def may_be_long(self, value: object) -> bool:
        """The same, by a guess at its text."""
        return weight_of(value, self.threshold) >= self.threshold

    def is_large(self, value: object) -> bool:
        """Whether a value is to be done in pieces."""
        return self.is_on and is_large(value)

    async def paced(self, work: Paces[T]) -> T:
        """Do work of many pieces; its result."""
        return await self._pacer.pace(work)

    async def pack(
        self, value: object, encode: codec.Encode, decode: codec.Decode, *, keeps: bool = True
    ) -> Packed:
        """A large value as text, and what it reads back as if anybody wants that (`keeps`).

        Raises:
            SerializationError: it cannot be stored; the message says where the trouble is.
        """
        if isinstance(value, Body):
            back = await self._decoded(value, decode) if keeps else None
            return Packed(self._sorted_out(value), back)
        writer = Writer(keeps=keeps)
        try:
            back = await self.paced(writer.value(value, codec.annotation_of(decode)))
        except Whole:
            text = encode(value)
            back = codec.read_back(value, text, encode, decode, at="the result")
            return Packed(self._sorted_out(Body.of(text)), back)
        return Packed(self._sorted_out(writer.body), back)

    async def pack_arguments(
        self, arguments: Arguments | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Packed:
        """Large arguments as text, and as they read back. Raises as `pack` does."""
        writer = Writer()
        try:
            back = await self.paced(writer.arguments(Parameters(arguments), args, kwargs))
        except Whole:
            if arguments is None:
                text, back = encode_arguments(args, kwargs), (args, dict(kwargs))
            else:
                text = arguments.encode(args, kwargs)
                back = arguments.read_back(args, kwargs, text)
            return Packed(self._sorted_out(Body.of(text)), back)
        return Packed(self._sorted_out(writer.body), back)

    def _sorted_out(self, body: Body) -> str | Body:
        """A text that is not so long after all, as such."""
        return body if body.size > self.threshold else joined(body)

    async def value(self, text: str, workflow_id: str, decode: codec.Decode) -> Any:
        """The value that a reference stands for.

        Raises:
            PayloadStoreError: the store did not answer.
            PayloadMissingError: it does not have it.
            SerializationError: the value does not fit its type.
        """
        return await self._decoded(await self.body(text, workflow_id), decode)

    async def arguments(
        self, text: str, workflow_id: str, arguments: Arguments | None = None
    ) -> Decoded:
        """The arguments that a reference stands for. Raises as `value` does."""
        body = await self.body(text, workflow_id)
        if body.is_cut:
            try:
                found: Decoded = await self.paced(
                    read(lines_of(body.pieces), Parameters(arguments))
                )
            except Whole:
                pass
            else:
                return found
        whole = joined(body)
        return decode_arguments(whole) if arguments is None else arguments.decode(whole)

    async def text(self, text: str, workflow_id: str) -> str:
        """The text that a reference stands for. Raises as `value` does."""
        return joined(await self.body(text, workflow_id))

    async def inlined(self, row: Row) -> Row:
        """A row of the database, with the texts of what is in the store; those of it that are."""
        texts: dict[str, str] = {}
        for name in ("inputs", "output"):
            text = getattr(row, name, None)
            if is_reference(text, row.serialization):
                with suppress(errors.PayloadStoreError):
                    texts[name] = await self.text(text or "", row.workflow_id)
        return structs.replace(row, **texts) if texts else row

    async def _decoded(self, body: Body, decode: codec.Decode) -> Any:
        if body.is_cut:
            try:
                return await self.paced(read(lines_of(body.pieces), codec.annotation_of(decode)))
            except Whole:
                pass
        return decode(joined(body))

    # Objects

    async def kept(self, workflow_id: str, what: str, text: str | Body) -> str:
        """What stands in the row for a text: itself, or the reference to its new object.

        Args:
            workflow_id: whose it is.
            what: what it is of that workflow.
            text: what is to be kept.

        Raises:
            PayloadStoreError: the store did not take it. Nothing refers to it.
        """
        if isinstance(text, str):
            if not self.is_on or not self.is_long(text):
                return text
            text = Body.of(text)
        assert self._store is not None
        key = objects.key_of(workflow_id, what, secrets.token_hex(8))
        digest = await self.paced(digest_of(text.pieces))
        await self._database.patiently(
            lambda: self._database.execute(sql.REGISTER_PAYLOAD, self.store_name, key, workflow_id)
        )
        try:
            await self._store.put(key, text.pieces, text.size)
        except errors.PayloadStoreError as exc:
            raise errors.PayloadStoreError(
                f"{exc}; it is {described(what)} of workflow {workflow_id!r}",
                workflow_id=workflow_id,
                key=key,
                store=self.store_name,
            ) from exc.__cause__
        reference = Reference(key, text.size, digest, self.store_name, text.is_cut)
        return PREFIX + msgspec.json.encode(reference).decode()

    async def body(self, text: str, workflow_id: str) -> Body:
        """What a reference stands for, in pieces. Raises as `value` does."""
        reference = reference_in(text, workflow_id)
        if self._store is None:
            raise missing(
                workflow_id,
                reference.key,
                reference.store,
                "this process has no payload store: give it the payload_store of the one that "
                f"wrote it, or set {PAYLOAD_STORE_VARIABLE}",
            )
        pieces: list[bytes] = []
        digest = blake2b(digest_size=16)
        try:
            async for piece in self._store.get(reference.key):
                pieces.append(piece)
                digest.update(piece)
        except FileNotFoundError as exc:
            raise missing(
                workflow_id,
                reference.key,
                reference.store,
                f"the store {self.store_name} does not have it: restore it there, or give this "
                "process the payload_store of the one that wrote it",
            ) from exc
        size = sum(map(len, pieces))
        if size != reference.bytes or digest.hexdigest() != reference.digest:
            raise missing(
                workflow_id,
                reference.key,
                reference.store,
                f"what is there now was not written as this object ({size:,} bytes instead of "
                f"{reference.bytes:,}, or others): restore it",
            )
        return Body(pieces, size, is_cut=reference.is_cut)

    async def patiently(
        self, operation: Callable[[], Awaitable[T]], patience: float | None = None
    ) -> T:
        """The result of `operation`, tried again while the store does not answer.

        Args:
            operation: what may be repeated.
            patience: seconds after which its error is raised; None: it waits until there is one.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        pause = 0.1
        while True:
            try:
                return await operation()
            except errors.PayloadMissingError:
                raise
            except errors.PayloadStoreError as exc:
                if patience is not None and loop.time() + pause > began + patience:
                    raise
                if pause == LONGEST_PAUSE:
                    log.warning("payload store unavailable, waiting", now=str(exc))
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    # Deleting

    async def discard(self, text: str | None, workflow_id: str) -> None:
        """Let go of an object that no row has come to refer to; it is no matter if that fails."""
        if text is None or not is_reference(text) or self._store is None:
            return
        try:
            await self._store.delete([reference_in(text, workflow_id).key])
        except errors.PayloadStoreError as exc:
            log.info("an object is left for later", error=str(exc))

    async def forget(self, workflow_ids: Sequence[str]) -> None:
        """Delete the objects of workflows that were deleted; what fails is left to a sweep."""
        if self._store is None or not workflow_ids:
            return
        try:
            found = await self._database.fetch(
                sql.FIND_PAYLOADS, self.store_name, list(workflow_ids), into=Registered
            )
            for first in range(0, len(found), PAGE):
                await self._delete(found[first : first + PAGE])
        except (errors.PayloadStoreError, errors.DatabaseError) as exc:
            log.warning("objects of deleted workflows are left for later", error=str(exc))

    async def claim_sweep(self, interval_ms: int) -> bool:
        """Whether this process is to sweep: no other one has within this time."""
        return bool(await self._database.execute(sql.CLAIM_SWEEP, self.store_name, interval_ms))

    async def sweep(self) -> int:
        """Delete all objects whose workflows are gone; how many there were.

        Raises:
            PayloadStoreError: the store did not answer; the rest is for the next sweep.
        """
        count = 0
        last = Registered("", "", is_over=False)
        while True:
            page = await self._database.fetch(
                sql.PAGE_PAYLOADS,
                self.store_name,
                last.key,
                last.workflow_id,
                PAGE,
                GRACE_MS,
                into=Registered,
            )
            count += await self._delete([each for each in page if each.is_over])
            if len(page) < PAGE:
                return count
            last = page[-1]

    async def _delete(self, over: Sequence[Registered]) -> int:
        """Doom these, delete their objects, forget them."""
        assert self._store is not None
        if not over:
            return 0
        keys, ids = [each.key for each in over], [each.workflow_id for each in over]
        async with self._database.lease() as connection, connection.transaction():
            locked = await connection.fetch(sql.LOCK_PAYLOADS, self.store_name, keys, ids)
            keys, ids = [row[0] for row in locked], [row[1] for row in locked]
            doomed = await connection.fetch(sql.DOOM_PAYLOADS, self.store_name, keys, ids)
        keys, ids = [row[0] for row in doomed], [row[1] for row in doomed]
        if not keys:
            return 0
        async with self._database.lease() as connection:
            rows = await connection.fetch(sql.FIND_SHARED, self.store_name, keys)
        shared = {row[0] for row in rows}
        await self._store.delete([key for key in dict.fromkeys(keys) if key not in shared])
        await self._database.execute(sql.FORGET_PAYLOADS, self.store_name, keys, ids)
        return len(keys)


def digest_of(pieces: Sequence[bytes]) -> Paces[str]:
    """What tells this object from any other."""
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
        yield
    return digest.hexdigest()


def missing(workflow_id: str, key: str, store: str, why: str) -> errors.PayloadMissingError:
    """What is raised where a value is not to be had."""
    return errors.PayloadMissingError(
        f"a large value of workflow {workflow_id!r}, the object {key!r} of {store or 'its store'}, "
        f"cannot be read: {why}",
        workflow_id=workflow_id,
        key=key,
        store=store or None,
    )


def described(what: str) -> str:
    """What an object is of its workflow, for people."""
    kind, _, key = what.partition("-")
    return f"the result of step {key}" if kind == "step" else f"the {kind}"
