"""Large values to text and back, a piece at a time, so that the event loop goes on in between.

Encoding 50 MiB takes one call of 100 ms, reading them back another of 200. So what is large is
written and read by generators, each of whose steps is some 256 KiB of work, and a `Pacer` lets the
loop run between.

What they write is the JSON that the codec would have written, cut into lines. JSON has no newline
within a string, so one always ends a piece:

     1,2,3              a run of elements, or of keys with their values, behind a space
    "key":              the key of what stands on the next lines
    [ or {  …  ] or }   what is large in itself, its content on the lines between
    "long te            a long string, in parts, each of them a string
    +"xt"

A comma before the next element stands at the beginning of its first line. Without newlines, spaces
behind them and `"⏎+"`, a text is what the codec writes; `joined` makes it so.

Only what is plain goes this way: lists, dicts, strings, bytes, and whatever is small within them. A
value that is large in one piece, such as a pydantic model, is one call as before: `Whole` says so.
"""

import binascii
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from dbos_async._store import codec
from dbos_async._store.arguments import Arguments
from dbos_async._store.jsonable import ENCODER, is_plain
from dbos_async._store.pacing import RUN, Paces, Whole, runs_of, weight_of, weight_of_member
from dbos_async.errors import SerializationError

TEXT_KEY: Final = frozenset({str})


class Body(Struct, frozen=True):
    """A large text on its way, in pieces."""

    pieces: list[bytes]
    size: int
    is_cut: bool
    """Whether its lines are pieces; else it is plain text, of whoever wrote it."""

    @classmethod
    def of(cls, text: str) -> "Body":
        """A text that was made in one call."""
        data = text.encode()
        return cls([data], len(data), is_cut=False)


class Writer:
    """Writes one value, and reads it back while it is at it."""

    def __init__(self, *, keeps: bool = True) -> None:
        """`keeps`: whether anybody wants what it reads back as, and not only that it does."""
        self._keeps = keeps
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def body(self) -> Body:
        """What was written."""
        return Body(self._pieces, self._size, is_cut=True)

    def value(self, value: object, kind: Any) -> Paces[Any]:
        """Write the value; what it reads back as, as a `kind`.

        Raises:
            Whole: it cannot be cut, or not for sure be read back like this.
        """
        kind = stripped(kind)
        if type(value) is str and kind in (Any, str):
            return (yield from self._text(value))
        if type(value) is bytes and kind in (Any, bytes):
            return (yield from self._bytes(value, kind))
        if type(value) in (list, tuple) and (inner := element_of(kind)) is not None:
            return (yield from self._list(cast(list[Any], value), inner[0]))
        if type(value) is dict and (inner := member_of(kind)) is not None:
            return (yield from self._dict(cast(dict[str, Any], value), inner[0]))
        raise Whole

    def arguments(
        self, parameters: "Parameters", args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Paces[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Write a workflow's arguments; what they read back as. Raises as `value` does."""
        self._put(b'{\n"positionalArgs":\n[')
        decoded: list[Any] = []
        for place, value in enumerate(args):
            self._put(b"\n," if place else b"\n")
            decoded.append((yield from self._argument(value, parameters.kind_at(place))))
        self._put(b'\n]\n,"namedArgs":\n{')
        named: dict[str, Any] = {}
        for place, (name, value) in enumerate(kwargs.items()):
            self._put(b"\n," if place else b"\n", ENCODER.encode(name), b":\n")
            named[name] = yield from self._argument(value, parameters.kind_of(name))
        self._put(b"\n}\n}")
        return tuple(decoded), named

    def _argument(self, value: object, kind: Any) -> Paces[Any]:
        yield
        if weight_of(value, RUN) >= RUN:
            return (yield from self._heavy(value, kind))
        [decoded] = self._run([value], kind)
        return decoded

    def _put(self, *pieces: bytes) -> None:
        self._pieces += pieces
        self._size += sum(map(len, pieces))

    def _text(self, text: str) -> Paces[str]:
        for start in range(0, len(text) or 1, RUN):
            part = encoded(text[start : start + RUN])
            self._put(b"\n+" if start else b"", part)
            yield
        return text

    def _bytes(self, data: bytes, kind: Any) -> Paces[bytes | str]:
        size = RUN // 3 * 3
        first = len(self._pieces)
        for start in range(0, len(data) or 1, size):
            part = binascii.b2a_base64(data[start : start + size], newline=False)
            self._put(b"\n+" if start else b"", b'"%b"' % part)
            yield
        if kind is bytes:
            return data
        return "".join(piece.decode()[1:-1] for piece in self._pieces[first + 1 :: 2])

    def _list(self, elements: list[Any], kind: Any) -> Paces[list[Any]]:
        decoded: list[Any] = []
        self._put(b"[")
        separator = b"\n"
        for run, is_heavy in runs_of(elements):
            self._put(separator)
            part = [(yield from self._heavy(run[0], kind))] if is_heavy else self._run(run, kind)
            if self._keeps:
                decoded += part
            separator = b"\n,"
            yield
        self._put(b"\n]")
        return decoded

    def _dict(self, members: dict[str, Any], kind: Any) -> Paces[dict[str, Any]]:
        decoded: dict[str, Any] = {}
        self._put(b"{")
        separator = b"\n"
        items = list(members.items())
        for run, is_heavy in runs_of(items, weight_of_member):
            self._put(separator)
            if not TEXT_KEY.issuperset(type(name) for name, _ in run):
                raise Whole
            if is_heavy:
                [(name, value)] = run
                self._put(encoded(name), b":\n")
                part = {name: (yield from self._heavy(value, kind))}
            else:
                part = self._members(dict(run), kind)
            if self._keeps:
                decoded |= part
            separator = b"\n,"
            yield
        self._put(b"\n}")
        return decoded

    def _heavy(self, value: object, kind: Any) -> Paces[Any]:
        """What is large in itself; one call, if it is of a kind that is not cut."""
        kept = len(self._pieces), self._size
        try:
            return (yield from self.value(value, kind))
        except Whole:
            del self._pieces[kept[0] :]
            self._size = kept[1]
            [decoded] = self._run([value], kind)
            return decoded

    def _run(self, run: list[Any], kind: Any) -> list[Any]:
        text = encoded(run)
        decoded: list[Any] = read_back(run, text, list_of(kind))
        self._put(b" ", text[1:-1])
        return decoded

    def _members(self, run: dict[str, Any], kind: Any) -> dict[str, Any]:
        text = encoded(run)
        decoded: dict[str, Any] = read_back(run, text, dict_of(kind))
        self._put(b" ", text[1:-1])
        return decoded


def encoded(value: object) -> bytes:
    """The JSON of a value that is certainly faithful in it. Raises Whole if it may not be."""
    try:
        text = ENCODER.encode(value)
        if is_plain(value, text):
            return text
    except Exception as exc:  # looking closer tells what it is, and where
        raise Whole from exc
    raise Whole


def read_back(value: object, text: bytes, kind: Any) -> Any:
    """What a piece reads back as. Raises Whole if that is not what was written."""
    try:
        decoded = decoder_of(kind)(msgspec.Raw(text))
        if ENCODER.encode(decoded) == text or decoded == value:
            return decoded
    except Exception as exc:  # as above
        raise Whole from exc
    raise Whole


class Parameters:
    """The types of a workflow's arguments; of one that this process does not define, any."""

    def __init__(self, arguments: Arguments | None = None) -> None:
        self._arguments = arguments

    def kind_at(self, place: int) -> Any:
        """The type of the argument at a position."""
        return Any if self._arguments is None else self._arguments.slot_at(place).annotation

    def kind_of(self, name: str) -> Any:
        """The type of the argument of a name."""
        return Any if self._arguments is None else self._arguments.slot_of(name).annotation


class Frame:
    """A list or dict that is being read."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self.value: Any = None

    @property
    def inner(self) -> Any:
        """The type of the next value."""
        return self._kind

    def run(self, line: bytes) -> None:
        """Take a run of what it holds."""
        raise NotImplementedError

    def add(self, value: Any) -> None:
        """Take one value."""
        raise NotImplementedError

    def name(self, name: str) -> None:
        """The next value's key."""
        raise Whole


class ListFrame(Frame):
    """A list."""

    def __init__(self, kind: Any) -> None:
        super().__init__(kind)
        self.value = []
        self._decode = decoder_of(list_of(kind))

    def run(self, line: bytes) -> None:
        self.value += self._decode(msgspec.Raw(b"[%b]" % line))

    def add(self, value: Any) -> None:
        self.value.append(value)


class DictFrame(Frame):
    """A dict."""

    def __init__(self, kind: Any) -> None:
        super().__init__(kind)
        self.value = {}
        self._name = ""
        self._decode = decoder_of(dict_of(kind))

    def run(self, line: bytes) -> None:
        self.value |= self._decode(msgspec.Raw(b"{%b}" % line))

    def add(self, value: Any) -> None:
        self.value[self._name] = value

    def name(self, name: str) -> None:
        self._name = name


class ArgumentFrame(Frame):
    """The arguments of a workflow, each on lines of its own."""

    def __init__(self, parameters: Parameters, *, is_outer: bool = True) -> None:
        super().__init__(None)
        self._parameters = parameters
        self._is_outer = is_outer
        self._names: list[str] = []
        self._values: list[Any] = []
        self.value = self._values, self._names

    @property
    def inner(self) -> Any:
        if self._is_outer:
            return self._parameters
        if len(self._names) > len(self._values):
            return self._parameters.kind_of(self._names[-1])
        return self._parameters.kind_at(len(self._values))

    def run(self, line: bytes) -> None:
        self.add(decoder_of(self.inner)(msgspec.Raw(line)))

    def add(self, value: Any) -> None:
        self._values.append(value)

    def name(self, name: str) -> None:
        self._names.append(name)


class Reader:
    """Reads one value, given line by line, as soon as each is there."""

    def __init__(self, kind: Any) -> None:
        """`kind`: the type of the value; of a workflow's arguments its parameters."""
        self._kind = kind
        self._frames: list[Frame] = []
        self._parts: list[Any] = []
        self._part_of: Callable[[bytes], Any] = text_in
        self._value: Any = None

    @property
    def value(self) -> Any:
        """What was read."""
        self._end_of_text()
        return self._value

    def line(self, line: bytes) -> None:
        """Take the next line. Raises Whole if it is none of ours."""
        if self._parts and line[:1] != b"+":
            self._end_of_text()
        line = line.removeprefix(b",")
        match line[:1]:
            case b" ":
                self._frames[-1].run(line[1:])
            case b"[" | b"{" if len(line) == 1:
                self._open(line)
            case b"]" | b"}":
                self._place(self._frames.pop().value)
            case b'"' if line[-1:] == b":":
                self._frames[-1].name(codec.decode(line[:-1].decode()))
            case b'"':
                self._part_of = self._text_reader()
                self._parts = [self._part_of(line)]
            case b"+" if self._parts:
                self._parts.append(self._part_of(line[1:]))
            case _:
                raise Whole

    def _open(self, bracket: bytes) -> None:
        kind = self._frames[-1].inner if self._frames else self._kind
        if isinstance(kind, Parameters):
            self._frames.append(ArgumentFrame(kind, is_outer=not self._frames))
            return
        inner = element_of(stripped(kind)) if bracket == b"[" else member_of(stripped(kind))
        if inner is None:
            raise Whole
        frame = ListFrame(inner[0]) if bracket == b"[" else DictFrame(inner[0])
        self._frames.append(frame)

    def _place(self, value: Any) -> None:
        if self._frames:
            self._frames[-1].add(value)
        else:
            self._value = value

    def _text_reader(self) -> Callable[[bytes], Any]:
        kind = stripped(self._frames[-1].inner if self._frames else self._kind)
        if kind is bytes:
            return bytes_in
        if kind in (Any, str):
            return text_in
        raise Whole

    def _end_of_text(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._place(b"".join(parts) if self._part_of is bytes_in else "".join(parts))


def text_in(part: bytes) -> str:
    """A part of a long string."""
    return msgspec.json.decode(part, type=str)


def bytes_in(part: bytes) -> bytes:
    """A part of long bytes."""
    return binascii.a2b_base64(part[1:-1], strict_mode=True)


def read(lines: Iterable[bytes], kind: Any) -> Paces[Any]:
    """The value that stands on these lines.

    Raises:
        Whole: they are not as this kind is written; join them, and decode the text.
    """
    reader = Reader(kind)
    try:
        for line in lines:
            reader.line(line)
            yield
        value = reader.value
    except (SerializationError, IndexError, ValueError) as exc:  # of another version of the code
        raise Whole from exc
    return arguments_in(value) if isinstance(kind, Parameters) else value


def arguments_in(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an ArgumentFrame has read."""
    [(args, _), (kwargs, names)] = value[0]
    return tuple(args), dict(zip(names, kwargs, strict=True))


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces as they came over the wire, cut anew where lines end."""
    rest: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield b"".join(rest)


def joined(body: Body) -> str:
    """The text as the codec writes it."""
    data = b"".join(body.pieces)
    if body.is_cut:
        data = data.replace(b'"\n+"', b"").replace(b"\n ", b"").replace(b"\n, ", b",")
        data = data.replace(b"\n", b"")
    return data.decode()


def stripped(kind: Any) -> Any:
    """The type of a value that is there."""
    if kind is None or kind is object:
        return Any
    args = typing.get_args(kind)
    if type(None) in args and len(args) == 2:
        return args[0] if args[1] is type(None) else args[1]
    return kind


def element_of(kind: Any) -> tuple[Any] | None:
    """The type of a list's elements; None if this is no list to be cut."""
    if kind is Any or kind is list:
        return (Any,)
    return (typing.get_args(kind)[0],) if typing.get_origin(kind) is list else None


def member_of(kind: Any) -> tuple[Any] | None:
    """The type of a dict's values; None if this is no dict to be cut."""
    if kind is Any or kind is dict:
        return (Any,)
    if typing.get_origin(kind) is not dict or typing.get_args(kind)[0] is not str:
        return None
    return (typing.get_args(kind)[1],)


def decoder_of(kind: Any) -> codec.Parse:
    """What reads a `kind`."""
    return codec.decode if kind in (Any, list, dict) else codec.decoder(kind)


def list_of(kind: Any) -> Any:
    """The type of a run of elements."""
    return list if kind is Any else list[kind]


def dict_of(kind: Any) -> Any:
    """The type of a run of members."""
    return dict if kind is Any else dict[str, kind]
