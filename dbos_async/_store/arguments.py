"""A workflow's arguments: do they fit, how are they stored, and are they the same as before?

Stored as every DBOS library does: `{"positionalArgs": [...], "namedArgs": {...}}`. Each argument
gets its type back from its parameter's annotation.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, cast

import msgspec

from dbos_async._store import codec
from dbos_async._store.jsonable import ENCODER, fields_of, is_plain, portable
from dbos_async.errors import SerializationError

__all__ = ["SORTED", "Arguments", "decode_arguments", "digest", "encode_arguments"]

MAX_SHAPES: Final = 64
"""How many ways of calling a function are remembered as fitting; variadic ones have no end."""

Decoded = tuple[tuple[Any, ...], dict[str, Any]]


class Envelope(msgspec.Struct):
    """The arguments of one call, each still text; other writers leave out what is empty."""

    positional: list[msgspec.Raw] | None = msgspec.field(default=None, name="positionalArgs")
    named: dict[str, msgspec.Raw] | None = msgspec.field(default=None, name="namedArgs")


class Plain(msgspec.Struct):
    """The same, each argument parsed."""

    positional: list[Any] | None = msgspec.field(default=None, name="positionalArgs")
    named: dict[str, Any] | None = msgspec.field(default=None, name="namedArgs")


class Slot(NamedTuple):
    """One parameter's way to text and back."""

    encode: codec.Encode
    decode: codec.Parse
    annotation: Any


CONTEXT: Final = "context"
OPEN: Final = msgspec.json.Decoder(Envelope).decode
SORTED: Final = msgspec.json.Encoder(enc_hook=portable, order="sorted").encode


class Arguments:
    """How one function's arguments are checked, stored and restored."""

    def __init__(self, function: Callable[..., object], *, skip_first: bool = False) -> None:
        """Read the function's signature.

        Args:
            function: the workflow.
            skip_first: its first parameter is `self` or `cls`, which is not stored.
        """
        self._name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self._signature = _signature_of(function, skip_first=skip_first)
        self._fitting: set[tuple[int, tuple[str, ...]]] = set()
        self._by_position: list[Slot] = []
        self._by_name: dict[str, Slot] = {}
        self._rest = self._slot("args", Any)
        self._others = self._slot("kwargs", Any)
        for parameter in self._signature.parameters.values():
            self._add(parameter)

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Check that the function can be called like this.

        Raises:
            TypeError: it cannot; the message names the function.
        """
        shape = (len(args), tuple(kwargs))
        if shape in self._fitting:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self._name}() {exc}") from None
        if len(self._fitting) < MAX_SHAPES:
            self._fitting.add(shape)

    @property
    def takes_tick(self) -> bool:
        """Whether a schedule can call the function: with a moment, or with a context, too."""
        return self.takes_context or self._fits(1)

    @property
    def takes_context(self) -> bool:
        """Whether a schedule's context is for the function."""
        return self._fits(2) or self._fits(1, CONTEXT)

    def as_tick(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Decoded:
        """What a schedule gave as the function takes it: a moment, and perhaps a context."""
        if len(args) != 2 or kwargs or self._fits(2):
            return args, kwargs
        named = {CONTEXT: args[1]} if self._fits(1, CONTEXT) else {}
        return self.decode(self.encode(args[:1], named))

    def _fits(self, positional: int, *named: str) -> bool:
        try:
            self._signature.bind(*[None] * positional, **dict.fromkeys(named))
        except TypeError:
            return False
        return True

    def encode(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
        """The text of these arguments.

        Raises:
            SerializationError: JSON cannot hold one; the message names the parameter and the type.
        """
        text = _encoded(args, kwargs)
        if text is not None:
            return text
        positional = ",".join(
            slot.encode(value) for slot, value in zip(self._positions(), args, strict=False)
        )
        named = ",".join(
            f"{codec.encode(name)}:{self._by_name.get(name, self._others).encode(value)}"
            for name, value in kwargs.items()
        )
        return f'{{"positionalArgs":[{positional}],"namedArgs":{{{named}}}}}'

    def decode(self, text: str) -> Decoded:
        """The positional and the named arguments, in their parameters' types.

        Raises:
            SerializationError: one does not fit its type; the message names the parameter.
        """
        envelope = _opened(text)
        if not envelope.positional and not envelope.named:
            return (), {}
        args = tuple(
            slot.decode(raw)
            for slot, raw in zip(self._positions(), envelope.positional or (), strict=False)
        )
        kwargs = {
            name: self._by_name.get(name, self._others).decode(raw)
            for name, raw in (envelope.named or {}).items()
        }
        return args, kwargs

    def read_back(self, args: Sequence[object], kwargs: Mapping[str, object], text: str) -> Decoded:
        """The arguments as they are decoded from `text`, which they were encoded to.

        Raises:
            SerializationError: an annotation keeps only part of an argument.
        """
        decoded = self.decode(text)
        if decoded == (tuple(args), dict(kwargs)):
            return decoded
        again = self.encode(*decoded)
        if again == text:
            return decoded
        if json.loads(again) != json.loads(text):
            raise SerializationError(
                f"{self._name}: an argument does not read back as it is stored, because its "
                f"annotation keeps only a part of it; annotate what is really there: {text[:200]}"
            )
        return decoded

    def slot_at(self, place: int) -> Slot:
        """How the argument at a position is stored."""
        return self._by_position[place] if place < len(self._by_position) else self._rest

    def slot_of(self, name: str) -> Slot:
        """How the argument of a name is stored."""
        return self._by_name.get(name, self._others)

    def _positions(self) -> Iterator[Slot]:
        yield from self._by_position
        while True:
            yield self._rest

    def _add(self, parameter: inspect.Parameter) -> None:
        slot = self._slot(parameter.name, parameter.annotation)
        match parameter.kind:
            case parameter.VAR_POSITIONAL:
                self._rest = slot
            case parameter.VAR_KEYWORD:
                self._others = slot
            case parameter.KEYWORD_ONLY:
                self._by_name[parameter.name] = slot
            case parameter.POSITIONAL_ONLY:
                self._by_position.append(slot)
            case _:
                self._by_position.append(slot)
                self._by_name[parameter.name] = slot

    def _slot(self, name: str, annotation: object) -> Slot:
        at = f"{self._name}: argument {name}"
        return Slot(codec.encoder(annotation, at=at), codec.decoder(annotation, at=at), annotation)


def encode_arguments(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """The text of arguments for a workflow that this process does not define.

    Raises:
        SerializationError: JSON cannot hold one; the message names its place and the type.
    """
    text = _encoded(args, kwargs)
    if text is not None:
        return text
    return codec.encoder(at="arguments")({"positionalArgs": args, "namedArgs": kwargs})


def decode_arguments(text: str) -> Decoded:
    """The positional and the named arguments as plain JSON.

    Raises:
        SerializationError: the text is no JSON object of arguments.
    """
    envelope = _opened(text)
    args = tuple(codec.decode(raw) for raw in envelope.positional or ())
    kwargs = {name: codec.decode(raw) for name, raw in (envelope.named or {}).items()}
    return args, kwargs


def digest(args: Sequence[object], kwargs: Mapping[str, object]) -> int | None:
    """A number that tells these arguments from others, the same in every process.

    It fits a bigint. The order of keys and of sets does not matter. None: they do not encode.
    """
    try:
        encoded = _sorted((args, kwargs))
    except Exception:  # noqa: BLE001 - whatever a model's own code raises, it has no digest
        return None
    return int.from_bytes(blake2b(encoded, digest_size=8).digest(), "big", signed=True)


def _sorted(value: object) -> bytes:
    """JSON with keys and sets in order."""
    try:
        encoded = SORTED(value)
    except TypeError:  # elements or keys that cannot be compared
        return SORTED(_canonical(value))
    # Sets of sets compare without an order among them; they look like nested lists.
    return encoded if encoded.find(b"[[", 1) < 0 else SORTED(_canonical(value))


def _canonical(value: object) -> object:
    """Plain JSON values, with sets as lists in the order of their elements' texts."""
    if isinstance(value, set | frozenset):
        elements = cast(frozenset[object], value)
        return [msgspec.Raw(text) for text in sorted(map(_sorted_text, elements))]
    if isinstance(value, list | tuple):
        return [_canonical(element) for element in cast(list[object], value)]
    if isinstance(value, dict):
        items = cast(dict[object, object], value).items()
        return {_key_text(key): _canonical(child) for key, child in items}
    if fields := fields_of(value):
        return {name: _canonical(child) for name, child in fields}
    return value


def _sorted_text(value: object) -> bytes:
    return SORTED(_canonical(value))


def _key_text(key: object) -> str:
    return key if isinstance(key, str) else ENCODER.encode(key).decode().strip('"')


def _encoded(args: Sequence[object], kwargs: Mapping[str, object]) -> str | None:
    """The text of arguments that are certainly faithful in it; None means "look closer"."""
    try:
        encoded = ENCODER.encode({"positionalArgs": args, "namedArgs": kwargs})
        faithful = is_plain(args, encoded) and (not kwargs or is_plain(kwargs, encoded))
        return encoded.decode() if faithful else None
    except Exception:  # noqa: BLE001 - looking closer tells which argument it is, and why
        return None


def _opened(text: str) -> Envelope:
    try:
        return OPEN(text)
    except msgspec.DecodeError:
        return _opened_leniently(text)


def _opened_leniently(text: str) -> Envelope:
    """As other writers' JSON, with lone surrogates and NaN; each argument as Python writes it."""
    try:
        plain = msgspec.convert(json.loads(text), Plain)
    except ValueError as exc:
        raise SerializationError(f"stored arguments are not JSON of arguments: {exc}") from exc
    return Envelope(
        [msgspec.Raw(json.dumps(value)) for value in plain.positional or ()],
        {name: msgspec.Raw(json.dumps(value)) for name, value in (plain.named or {}).items()},
    )


def _signature_of(function: Callable[..., object], *, skip_first: bool) -> inspect.Signature:
    """The signature, with annotations resolved where they can be."""
    hints = codec.hints_of(function)
    signature = inspect.signature(function)
    parameters = [
        each.replace(annotation=hints.get(each.name, Any)) for each in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters[1:] if skip_first else parameters)
