import base64
import dataclasses
import enum
import json
import math
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from dbos_async import errors
from dbos_async._store import codec
from dbos_async._store.arguments import Arguments, decode_arguments, digest, encode_arguments
from dbos_async._store.foreign import load, load_arguments, load_error
from dbos_async._store.portable_errors import decode_error, encode_error
from dbos_async.errors import (
    DivergenceError,
    PortableWorkflowError,
    SerializationError,
    StepRetriesExhaustedError,
    WorkflowConflictError,
    WorkflowNotFoundError,
    WorkflowTimeoutError,
)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Odd(enum.Enum):
    NAN = math.nan


class Name(str):
    __slots__ = ()


class Share(float):
    pass


@dataclasses.dataclass
class Order:
    id: UUID
    cents: int
    at: datetime
    tags: list[str] = dataclasses.field(default_factory=list)
    parent: "Order | None" = None


class Point(msgspec.Struct):
    x: int
    y: float | None = None


@dataclasses.dataclass
class Picky:
    x: int

    def __post_init__(self) -> None:
        raise LookupError(f"no {self.x}")


class Pair(NamedTuple):
    left: int
    right: str


class Movie(TypedDict):
    title: str
    released: date


class Speaks(Protocol):
    def speak(self) -> str: ...


class Foo:
    def __repr__(self) -> str:
        raise ValueError("broken")


T = TypeVar("T")
ORDER = Order(UUID(int=7), 4200, datetime(2024, 2, 29, 1, 2, 3, 456789, UTC), ["a"])


def there_and_back(value: object, annotation: object) -> object:
    return codec.decoder(annotation)(codec.encoder(annotation)(value))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (datetime, datetime(2024, 1, 2, 3, 4, 5, 678901)),
        (datetime, datetime(2024, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=-3)))),
        (date, date(1, 1, 1)),
        (time, time(23, 59, 59, 999999)),
        (timedelta, timedelta(days=-3, microseconds=1)),
        (UUID, UUID(int=2**127 + 1)),
        (Decimal, Decimal("-1.2300")),
        (Colour, Colour.RED),
        (Level, Level.LOW),
        (bytes, b"\x00\xff"),
        (Order, ORDER),
        (Order, dataclasses.replace(ORDER, parent=ORDER)),
        (Point, Point(1, None)),
        (Point, Point(1, 2.5)),
        (Pair, Pair(1, "b")),
        (Movie, {"title": "M", "released": date(1931, 5, 11)}),
        (tuple[int, date], (1, date(2024, 1, 1))),
        (tuple[int, ...], (1, 2, 3)),
        (set[UUID], {UUID(int=1), UUID(int=2)}),
        (frozenset[int], frozenset({1, 2})),
        (list[Order] | None, [ORDER]),
        (dict[str, Point], {"a": Point(1)}),
        (dict[int, str], {1: "a", -(2**70): "b"}),
        (dict[UUID, int], {UUID(int=1): 1}),
        (dict[date, dict[int, str]], {date(2024, 1, 1): {1: "x"}}),
        (dict[Colour, int], {Colour.RED: 1}),
        (int, 2**64),
        (int, -(10**4000)),
        (dict[str, object], {"a": [1, {"b": None}]}),
        (typing.NewType("OrderId", str), "o-1"),
        (typing.Literal["a", "b"], "a"),
        (typing.Annotated[int, "cents"], 1),
    ],
)
def test_a_typed_value_comes_back_equal_and_of_its_type(annotation: object, value: object) -> None:
    back = there_and_back(value, annotation)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**63,
        2**64,
        -(2**64),
        1.5,
        -0.0,
        5e-324,
        1.7e308,
        "",
        "\x00",
        "é\U0001f600",
        [
            1,
            [2],
        ],
        {"a": {"": None}},
        [None, 1.0],
        "null",
    ],
)
def test_plain_json_comes_back_the_same(value: object) -> None:
    back = codec.decode(codec.encode(value))
    assert back == value
    assert repr(back) == repr(value)


def test_a_nul_character_is_stored_as_an_escape() -> None:
    text = codec.encode({"a\x00": "\x00"})
    assert "\x00" not in text
    assert codec.decode(text) == {"a\x00": "\x00"}


@pytest.mark.parametrize(
    ("annotation", "value", "plain"),
    [
        (Any, (1, 2), [1, 2]),
        (Any, {"a": date(2024, 1, 1)}, {"a": "2024-01-01"}),
        (Any, Name("n"), "n"),
        (Any, Share(0.5), 0.5),
        (Any, Level.LOW, 1),
        (Any, {Name("n"): 1}, {"n": 1}),
        (None, 5, 5),
        (object, [1], [1]),
        (T, {"a": 1}, {"a": 1}),
        (Speaks, {"a": 1}, {"a": 1}),
        (Foo, {"a": 1}, {"a": 1}),
        (list[Foo], [1], [1]),
        (Callable[[], int], 1, 1),
        ("Nowhere", 1, 1),
        (list["Nowhere"], [1], [1]),  # type: ignore[name-defined] # noqa: F821
        (datetime | str, "x", "x"),
        (set[int] | list[int], [1], [1]),
        (typing.NoReturn, 1, 1),
        (5, 1, 1),
    ],
)
def test_what_an_annotation_cannot_restore_comes_back_as_plain_json(
    annotation: object, value: object, plain: object
) -> None:
    assert there_and_back(value, annotation) == plain


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"items": [1, 2, 3, Foo()]}, r"result\['items'\]\[3\] is of type Foo, which JSON"),
        (Foo(), r"result is of type Foo"),
        ([Order], r"result\[0\] is of type type"),
        ({"a": (1, {"b": math.nan})}, r"result\['a'\]\[1\]\['b'\] is nan"),
        (math.inf, r"result is inf"),
        ([None, -math.inf], r"result\[1\] is -inf"),
        (Share("nan"), r"result is nan"),
        (Odd.NAN, r"result is nan"),
        ([Odd.NAN], r"result\[0\] is nan"),
        (Point(1, math.nan), r"result\.y is nan"),
        (dataclasses.replace(ORDER, tags=[math.nan]), r"result\.tags\[0\] is nan"),
        ("a\ud800", r"result is text with a lone surrogate \('\\ud800'\)"),
        ({"a": ["\udfff"]}, r"result\['a'\]\[0\] is text with a lone surrogate"),
        ({"\ud800": 1}, r"result has a key that is text with a lone surrogate"),
        ({1: 2}, r"result has the key 1 of type int, .* dict\[int, \.\.\.\]"),
        ([{UUID(int=1): 2}], r"result\[0\] has the key UUID"),
        ({(1, 2): 3}, r"result has keys that JSON cannot hold"),
        ([10**4300], r"result\[0\] is of type int and cannot be stored"),
        (
            datetime(1890, 1, 1, tzinfo=timezone(timedelta(seconds=3208))),
            r"result is a datetime whose UTC offset",
        ),
        ([time(1, tzinfo=timezone(timedelta(seconds=1)))], r"result\[0\] is a time whose UTC"),
    ],
)
def test_a_value_that_json_cannot_hold_is_refused_with_its_place(
    value: object, message: str
) -> None:
    with pytest.raises(SerializationError, match=message):
        codec.encoder(at="result")(value)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (dict[int | str, int], {1: 1}, "has the key 1 of type int"),
        (dict[int, Any], {1: {2: 1, "2": 2}}, "two keys that are the same text"),
        (dict[float, int], {math.nan: 1}, "has the key nan"),
        (dict[int, Any], {(1, 2): 1}, "has keys that JSON cannot hold"),
    ],
)
def test_keys_that_no_type_can_restore_are_refused(
    annotation: object, value: object, message: str
) -> None:
    with pytest.raises(SerializationError, match=message):
        codec.encoder(annotation)(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    with pytest.raises(SerializationError, match="nested too deeply, or contains itself"):
        codec.encode(loop)


def test_a_stored_value_that_does_not_fit_says_which_type_and_why() -> None:
    with pytest.raises(SerializationError, match=r"result does not fit Point: .*`int`.*`\$\.x`"):
        codec.decoder(Point, at="result")('{"x":"1"}')
    with pytest.raises(SerializationError, match="value does not fit Picky: no 1"):
        codec.decoder(Picky)('{"x":1}')


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(SerializationError, match="value does not fit"):
        codec.decode("gASV")


def test_json_of_other_writers_is_read() -> None:
    assert codec.decode(r'"\ud800"') == "\ud800"
    assert math.isnan(typing.cast(list[float], codec.decode("[NaN]"))[0])
    assert codec.decoder(list[str])(r'["\ud800"]') == ["\ud800"]


def test_annotations_that_do_not_resolve_leave_the_others_alone() -> None:
    def function(a: "Nowhere", b: "int") -> "UUID": ...  # type: ignore[name-defined] # noqa: F821

    assert codec.hints_of(function) == {"b": int, "return": UUID}
    assert codec.result_type(function) is UUID
    assert codec.result_type(lambda: None) is Any


# Pydantic


def test_pydantic_models_come_back_wherever_they_are() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Line(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        model_config = pydantic.ConfigDict(strict=True)
        sku: str = pydantic.Field(alias="SKU")
        at: datetime
        by_id: dict[int, Decimal]

    class Note(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        text: str

    line = Line(SKU="a", at=datetime(2024, 1, 1, tzinfo=UTC), by_id={1: Decimal("1.10")})
    for annotation, value in (
        (Line, line),
        (list[Line], [line]),
        (dict[str, Line | None], {"a": line, "b": None}),
        (Line | Note, Note(text="x")),
        (tuple[Line, int], (line, 1)),
    ):
        assert there_and_back(value, annotation) == value
    assert codec.decode(codec.encode(Note(text="x"))) == {"text": "x"}
    with pytest.raises(SerializationError, match=r"value does not fit.*Note.*\ntext"):
        codec.decoder(Note)("{}")


def test_a_pydantic_model_with_nan_is_refused_with_its_place() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Rate(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        value: float

    with pytest.raises(SerializationError, match=r"value\[0\]\['value'\] is nan"):
        codec.encode([Rate(value=math.nan)])


def test_pydantic_is_not_imported() -> None:
    code = (
        "import sys; from dbos_async._store import codec, arguments, portable_errors, foreign;"
        "codec.encode([1]); codec.decoder(list[int]); assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Arguments


async def checkout(
    order: Order, cents: int = 0, *extra: date, note: str = "", **more: UUID
) -> None:
    """A workflow of every kind of parameter."""


def test_arguments_come_back_in_their_parameters_types() -> None:
    arguments = Arguments(checkout)
    args = (ORDER, 5, date(2024, 1, 1), date(2024, 1, 2))
    kwargs = {"note": "x", "a": UUID(int=1)}
    text = arguments.encode(args, kwargs)
    assert set(json.loads(text)) == {"positionalArgs", "namedArgs"}
    assert arguments.decode(text) == (args, kwargs)
    assert arguments.decode(arguments.encode((), {"order": ORDER})) == ((), {"order": ORDER})


def test_methods_arguments_leave_out_self() -> None:
    class Shop:
        def buy(self, at: date) -> None: ...

    arguments = Arguments(Shop.buy, skip_first=True)
    arguments.bind((date(2024, 1, 1),), {})
    text = arguments.encode((date(2024, 1, 1),), {})
    assert arguments.decode(text) == ((date(2024, 1, 1),), {})


@pytest.mark.parametrize(
    "text",
    ["{}", '{"positionalArgs":null,"namedArgs":null}', '{"namedArgs":{}}', '{"positionalArgs":[]}'],
)
def test_missing_arguments_are_none(text: str) -> None:
    assert Arguments(checkout).decode(text) == ((), {})
    assert decode_arguments(text) == ((), {})


def test_arguments_that_do_not_fit_the_signature_are_a_type_error_with_the_functions_name() -> None:
    arguments = Arguments(checkout)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"^checkout\(\) missing a required argument: 'order'"):
            arguments.bind((), {})
        arguments.bind((1,), {})


def test_unserializable_arguments_name_the_function_the_parameter_and_the_type() -> None:
    arguments = Arguments(checkout)
    with pytest.raises(SerializationError, match=r"^checkout: argument order is of type Foo"):
        arguments.encode((Foo(),), {})
    with pytest.raises(SerializationError, match=r"^checkout: argument extra\[0\] is nan"):
        arguments.encode((ORDER, 1, [math.nan]), {})
    with pytest.raises(SerializationError, match=r"^checkout: argument note is of type Foo"):
        arguments.encode((ORDER,), {"note": Foo()})
    with pytest.raises(SerializationError, match=r"^arguments\['positionalArgs'\]\[0\] is of"):
        encode_arguments((Foo(),), {})


def test_stored_arguments_that_do_not_fit_name_the_function_and_the_parameter() -> None:
    with pytest.raises(SerializationError, match=r"^checkout: argument cents does not fit int"):
        Arguments(checkout).decode(
            '{"positionalArgs":[null,"5"],"namedArgs":{}}'.replace("null", codec.encode(ORDER))
        )
    for text in ("[]", "1", "gASV", '{"positionalArgs":{}}'):
        with pytest.raises(SerializationError):
            Arguments(checkout).decode(text)


def test_keys_that_a_parameters_type_restores_are_stored() -> None:
    def count(by_id: dict[int, str], loose: object = None) -> None: ...

    arguments = Arguments(count)
    assert arguments.decode(arguments.encode(({1: "a"},), {})) == (({1: "a"},), {})
    with pytest.raises(SerializationError, match="argument loose has the key 1"):
        arguments.encode(({}, {1: "a"}), {})


def test_other_writers_arguments_with_lone_surrogates_are_read() -> None:
    text = r'{"positionalArgs":["\ud800", NaN],"namedArgs":{"a":"\ud800"}}'
    (surrogate, nan), kwargs = decode_arguments(text)
    assert surrogate == "\ud800"
    assert math.isnan(nan)
    assert kwargs == {"a": "\ud800"}


# Digests


def test_a_digest_fits_a_bigint_and_tells_arguments_apart() -> None:
    digests = [digest((i, "x"), {"a": [i]}) for i in range(1000)]
    assert len(set(digests)) == 1000
    assert all(d is not None and -(2**63) <= d < 2**63 for d in digests)
    assert min(typing.cast(list[int], digests)) < 0


def test_a_digest_does_not_depend_on_the_order_of_sets_and_keys() -> None:
    one = digest(({"b", "a", 1, None}, {2: 1, 1: 2}), {"a": 1, "b": 2})
    two = digest(({None, 1, "a", "b"}, {1: 2, 2: 1}), {"b": 2, "a": 1})
    assert one == two is not None
    subsets = [frozenset({i}) for i in range(20)]
    backwards = list(reversed(subsets))
    assert digest((set(subsets),), {}) == digest((set(backwards),), {})


def test_arguments_that_do_not_encode_have_no_digest() -> None:
    assert digest((Foo(),), {}) is None
    assert digest(("\ud800",), {}) is None
    assert digest(({Foo(): 3},), {}) is None


def test_a_value_and_what_it_is_decoded_to_have_one_digest() -> None:
    assert digest((ORDER,), {}) == digest((codec.decode(codec.encode(ORDER)),), {})


# Errors


class PaymentError(Exception):
    def __init__(self, order_id: str, *, cents: int) -> None:
        super().__init__(f"order {order_id} costs {cents}")
        self.order_id = order_id
        self.cents = cents


class LauncherError(Exception):
    built = 0

    def __init__(self, message: str) -> None:
        super().__init__(message)
        type(self).built += 1


class HoldsObjectError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.response = Foo()
        self.status = 404


class NeedsObjectError(Exception):
    def __init__(self) -> None:
        self.foo = Foo()

    def __str__(self) -> str:
        return f"needs {type(self.foo).__name__}"


class SlottedError(Exception):
    __slots__ = ("a",)


class BrokenStrError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class BrokenEverythingError(Exception):
    @property
    def code(self) -> int:
        raise RuntimeError("no")

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


@dataclasses.dataclass
class DataError(Exception):
    a: int
    b: str = "b"


def again(error: BaseException) -> Exception:
    return decode_error(encode_error(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        ValueError(),
        KeyError("x"),
        KeyError(1),
        TimeoutError(),
        OSError(2, "No such file"),
        FileNotFoundError(2, "No such file", "/etc/x"),
        OSError(18, "Cross-device", "a", None, "b"),
        RuntimeError("a", 2, [3]),
        ZeroDivisionError("division by zero"),
        PaymentError("o-1", cents=5),
        DataError(1),
        json.JSONDecodeError("bad", "doc", 1),
        DivergenceError("it went elsewhere"),
        WorkflowNotFoundError("w-1"),
        WorkflowConflictError("m", workflow_id="w-2"),
        WorkflowTimeoutError(workflow_id="w-3"),
        ValueError("\x00 and \U0001f600"),
    ],
    ids=repr,
)
def test_an_error_comes_back_as_its_class_with_its_state(error: Exception) -> None:
    back = again(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)
    assert again(back).args == error.args


def test_os_errors_keep_their_number_and_file() -> None:
    back = again(FileNotFoundError(2, "No such file", "/etc/x"))
    assert isinstance(back, FileNotFoundError)
    assert (back.errno, back.strerror, back.filename) == (2, "No such file", "/etc/x")


def test_an_errors_own_constructor_is_not_run() -> None:
    error = LauncherError("x")
    built = LauncherError.built
    assert type(again(error)) is LauncherError
    assert LauncherError.built == built


def test_notes_are_kept() -> None:
    error = ValueError("x")
    error.add_note("while testing")
    assert again(error).__notes__ == ["while testing"]


def test_attributes_that_cannot_be_stored_are_left_out_and_noted() -> None:
    back = again(HoldsObjectError("gone"))
    assert isinstance(back, HoldsObjectError)
    assert back.status == 404
    assert not hasattr(back, "response")
    assert back.__notes__ == ["stored without its attributes: response"]


@pytest.mark.parametrize(
    "error",
    [
        NeedsObjectError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        StopIteration("x"),
        StopAsyncIteration("x"),
        KeyboardInterrupt("x"),
        GeneratorExit(),
        SlottedError("x"),
        BrokenEverythingError("x"),
        type("Local", (Exception,), {})("x"),
    ],
    ids=lambda error: ascii(type(error).__name__),
)
def test_an_error_that_cannot_be_rebuilt_is_portable(error: BaseException) -> None:
    back = again(error)
    assert type(back) is PortableWorkflowError
    assert back.name == type(error).__name__.encode(errors="backslashreplace").decode()


def test_a_message_with_a_lone_surrogate_is_spelled_out() -> None:
    assert repr(again(ValueError("a\ud800"))) == repr(ValueError("a\\ud800"))


def test_an_error_with_a_broken_str_says_so() -> None:
    assert (
        "its __str__ raised RuntimeError" in json.loads(encode_error(BrokenStrError()))["message"]
    )


def test_an_error_whose_class_is_broken_is_stored() -> None:
    class Unnamed(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("no")

    class UnnamedError(Exception, metaclass=Unnamed):
        pass

    assert str(again(UnnamedError("x"))) == "Error: x"


def test_an_endless_message_is_cut_visibly() -> None:
    message = json.loads(encode_error(ValueError("x" * 3_000_000)))["message"]
    assert len(message) < 1_000_100
    assert message.endswith("… (3000000 characters)")


def test_retries_and_groups_keep_the_errors_within() -> None:
    exhausted = again(
        StepRetriesExhaustedError("gave up", [KeyError("a"), PaymentError("o", cents=1)])
    )
    assert isinstance(exhausted, StepRetriesExhaustedError)
    assert [type(each) for each in exhausted.errors] == [KeyError, PaymentError]
    assert not hasattr(exhausted, "__notes__")

    group = again(ExceptionGroup("two", [ValueError("a"), ExceptionGroup("in", [KeyError("b")])]))
    assert isinstance(group, ExceptionGroup)
    assert group.message == "two"
    assert [type(each) for each in group.exceptions] == [ValueError, ExceptionGroup]


def test_an_error_that_holds_itself_is_stored() -> None:
    error = StepRetriesExhaustedError("loop")
    error.errors.append(error)
    assert isinstance(again(error), StepRetriesExhaustedError)


def test_the_portable_keys_are_those_of_other_writers() -> None:
    class HttpError(Exception):
        status_code = 503
        details: typing.ClassVar = {"retry": True}

    record = json.loads(encode_error(HttpError("busy")))
    assert record["name"] == "HttpError"
    assert record["message"] == "busy"
    assert record["code"] == 503
    assert record["data"] == {"retry": True}


def test_a_portable_error_passes_unchanged() -> None:
    back = again(again(PortableWorkflowError("TypeError", "bad", "E1", {"a": [1]})))
    assert isinstance(back, PortableWorkflowError)
    assert (back.name, back.message, back.code, back.data) == ("TypeError", "bad", "E1", {"a": [1]})


@pytest.mark.parametrize("args", ["5", '["n"]', '["m", 1]', "null"])
def test_an_error_whose_arguments_do_not_fit_is_built_from_its_message(args: str) -> None:
    record = f'{{"name":"X","message":"m","type":"builtins:ValueError","args":{args}}}'
    back = decode_error(record)
    assert type(back) is ValueError
    assert back.args == ("m",)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ('{"name":"TypeError","message":"x"}', "TypeError", "x"),
        ('{"message":"x","code":{},"data":null}', "Error", "x"),
        ("{}", "Error", ""),
        ('"went wrong"', "Error", "went wrong"),
        ("went wrong", "Error", "went wrong"),
        ("null", "Error", "None"),
        ('{"name":"X","message":"m","type":"os:system"}', "X", "m"),
        ('{"name":"X","message":"m","type":"builtins:SystemExit"}', "X", "m"),
        ('{"name":"X","message":"m","type":["a"],"errors":5,"attributes":5}', "X", "m"),
        ('{"name":"X","message":"m","type":"no.such.module:X"}', "X", "m"),
        ('{"name":"X","message":"m","type":"antigravity:X"}', "X", "m"),
    ],
)
def test_errors_of_any_writer_are_read(text: str, name: str, message: str) -> None:
    back = decode_error(text)
    assert isinstance(back, PortableWorkflowError)
    assert (back.name, back.message) == (name, message)
    assert "antigravity" not in sys.modules


def test_every_error_of_this_library_comes_back() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert type(again(kind("text"))) is kind


# Other writers' formats


def pickled(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def test_pickle_is_read_only_by_those_who_opted_in() -> None:
    arguments = pickled({"args": (1, {2}), "kwargs": {"a": b"x"}})
    for serialization in ("py_pickle", None):
        with pytest.raises(SerializationError, match="allow_pickle=True"):
            load_arguments(arguments, serialization)
        assert load_arguments(arguments, serialization, allow_pickle=True) == (
            (1, {2}),
            {"a": b"x"},
        )
        assert load(pickled((1, 2)), serialization, allow_pickle=True) == (1, 2)
        error = load_error(pickled(KeyError("x")), serialization, allow_pickle=True)
        assert isinstance(error, KeyError)


def test_portable_rows_are_read_without_pickle() -> None:
    for serialization in ("portable_json", None):
        assert load("[1]", serialization) == [1]
        assert load_arguments("{}", serialization) == ((), {})
        assert isinstance(load_error('{"name":"X"}', serialization), PortableWorkflowError)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(SerializationError, match="'js_superjson'"):
        load("{}", "js_superjson", allow_pickle=True)


def test_a_broken_pickle_is_a_serialization_error() -> None:
    for text in ("gA", "!", pickled([1])):
        with pytest.raises(SerializationError):
            load_arguments(text, "py_pickle", allow_pickle=True)
    broken = load_error(pickled("text"), "py_pickle", allow_pickle=True)
    assert str(broken) == "str: text"
