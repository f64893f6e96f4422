"""Where large values lie: a bucket or a directory, spoken to by obstore.

obstore stops here. Its errors become ours: what may pass is a `PayloadStoreError`, and an object
that is not there a FileNotFoundError, which whoever knows the workflow explains.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dbos_async import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import ObjectStore as Store

T = TypeVar("T")

INSTALL: Final = "pip install 'dbos_async[payloads]'"
CLIENT: Final[Any] = {"connect_timeout": "5s", "timeout": "60s", "allow_http": True}
"""Of a store that is named by a URL. HTTP is what somebody's own endpoint is at, or none."""
RETRIES: Final[Any] = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
"""What a store that is named by a URL tries by itself: obstore's own settings are minutes."""

ONE_REQUEST: Final = 128 * 1024 * 1024
"""Bytes up to which an object is one request: parts of an upload whose process was killed are no
object, and nobody but the bucket's own rules would find them."""
CHUNK: Final = 1024 * 1024
"""About how many bytes arrive at once."""

MAX_NAME: Final = 80
"""Characters of a part of a key, with which it fits into the name of a file."""
PART: Final = r"[A-Za-z0-9_=-]{1,200}"
KEY: Final = re.compile(rf"{PART}/{PART}\Z")
STAGED: Final = "#"
"""What follows the name of a file that a LocalStore had not written to its end."""


class ObjectStore:
    """One store of objects."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self.name = name_of(store)

    async def put(self, key: str, pieces: Sequence[bytes], size: int) -> None:
        """Store an object: all of it, or nothing.

        Raises:
            PayloadStoreError: whether it is there now is unknown.
        """
        import obstore  # noqa: PLC0415

        with self._translated(f"took no object {key!r}"):
            await obstore.put_async(
                self._store, key, list(pieces), use_multipart=size > ONE_REQUEST
            )

    async def get(self, key: str) -> AsyncIterator[bytes]:
        """An object, in chunks.

        Raises:
            FileNotFoundError: there is none.
            PayloadStoreError: the store did not answer.
        """
        import obstore  # noqa: PLC0415

        with self._translated(f"gave no object {key!r}"):
            found = await obstore.get_async(self._store, key)
            async for chunk in found.stream(min_chunk_size=CHUNK):
                yield bytes(chunk)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there have been.

        Raises:
            PayloadStoreError: some of them may be there still.
        """
        import obstore  # noqa: PLC0415

        with self._translated("did not delete"):
            for key in keys:
                await found_or_not(obstore.delete_async(self._store, key))
                self._delete_staged(key)

    def _delete_staged(self, key: str) -> None:
        """What a killed process had written of a file, which is no object yet."""
        prefix = getattr(self._store, "prefix", None)
        if not isinstance(prefix, Path):
            return
        path = prefix / key
        for staged in path.parent.glob(f"{path.name}{STAGED}*"):
            staged.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    @contextmanager
    def _translated(self, what: str) -> "Iterator[None]":
        from obstore.exceptions import BaseError  # noqa: PLC0415

        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError, ValueError) as exc:
            reason = str(exc).partition("\n")[0]
            raise errors.PayloadStoreError(
                f"the payload store {self.name} {what}: {reason}", store=self.name
            ) from exc


async def found_or_not(work: Awaitable[T]) -> T | None:
    """The result, or None if the object is not there."""
    try:
        return await work
    except FileNotFoundError:
        return None


def opened(given: object) -> ObjectStore | None:
    """The store that the settings name, by a URL or as one of obstore's; no request is sent.

    Raises:
        ConfigurationError: it cannot be one; the message says what to do.
    """
    if given is None:
        return None
    try:
        from obstore import store as stores  # noqa: PLC0415
    except ImportError:
        raise errors.ConfigurationError(
            f"payload_store needs obstore, which is not installed: {INSTALL}"
        ) from None
    kinds = (
        stores.S3Store,
        stores.GCSStore,
        stores.AzureStore,
        stores.HTTPStore,
        stores.LocalStore,
        stores.MemoryStore,
    )
    if isinstance(given, kinds):
        return ObjectStore(given)
    if not isinstance(given, str):
        raise errors.ConfigurationError(
            "payload_store is a URL such as s3://bucket/prefix or file:///var/payloads, or a store "
            f"of obstore's such as S3Store(…), not {given!r}"
        )
    try:
        if given.startswith("file:"):
            return ObjectStore(
                stores.LocalStore.from_url(given, automatic_cleanup=True, mkdir=True)
            )
        if given.startswith("memory:"):
            return ObjectStore(stores.MemoryStore())
        return ObjectStore(stores.from_url(given, client_options=CLIENT, retry_config=RETRIES))
    except Exception as exc:  # obstore's, ValueError, OSError …
        why = str(exc).partition("\n")[0]
        raise errors.ConfigurationError(
            f"payload_store={masked(given)!r} cannot be opened: {why}"
        ) from exc


def masked(url: str) -> str:
    """A URL without what may be secret in it."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    return f"{scheme}://{place.rpartition('@')[2]}" if rest else url


def name_of(store: Any) -> str:
    """What a store is called in references and errors: the same in every process."""
    kind = type(store).__name__
    prefix = getattr(store, "prefix", None)
    config: dict[str, Any] = getattr(store, "config", None) or {}
    match kind:
        case "LocalStore":
            return f"file://{prefix or ''}"
        case "MemoryStore":
            return "memory://"
        case "HTTPStore":
            return masked(str(store.url))
        case "AzureStore":
            root = f"az://{config.get('account_name', '')}/{config.get('container_name', '')}"
        case _:
            root = f"{'s3' if kind == 'S3Store' else 'gs'}://{config.get('bucket', '')}"
    return f"{root}/{prefix}" if prefix else root


def key_of(workflow_id: str, what: str, token: str) -> str:
    """Where an object lies: below its workflow, and never where another one lay.

    Args:
        workflow_id: whose it is; any text.
        what: what it is of the workflow.
        token: what no other attempt has.
    """
    return f"{escaped(workflow_id)}/{escaped(what)}-{token}"


def escaped(name: str) -> str:
    """A name as one part of a key, whatever is in it; two names are never the same part.

    What is no letter, digit, `_` or `-` is written as `=` and two hexadecimal digits a byte, also
    the dots of `..`; of a long name the rest is a digest, behind the `=h` that no byte has.
    """
    safe = "".join(
        character
        if character.isascii() and (character.isalnum() or character in "_-")
        else "".join(f"={byte:02X}" for byte in character.encode(errors="surrogatepass"))
        for character in name
    )
    if len(safe) <= MAX_NAME and safe:
        return safe
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=20).hexdigest()
    return f"{safe[: MAX_NAME - 42]}=h{digest}"


def is_key(key: object) -> bool:
    """Whether `key_of` may have made this."""
    return isinstance(key, str) and KEY.match(key) is not None
