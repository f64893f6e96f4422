"""The version of an app: what changes it, and what does not, on every Python the same."""

import asyncio
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dbos_async import DBOS
from dbos_async._engine import version
from dbos_async._engine.version import shape_of, version_of

HEADER = """
from dbos_async import DBOS

dbos = DBOS("shop")

@dbos.step
async def charge(order, cents=1):
    return cents
"""

PLAIN = """
@dbos.workflow
async def checkout(order: str, cents: int = 100) -> str:
    payment = await charge(order, cents)
    if payment > 3 and order:
        return f"paid {payment:>{cents}} for {order!r}" + 'a' * 1000
    return "no"
"""

FORMATTED = '''
@dbos.workflow()
# a comment
async def checkout(
    order: str,
    cents: int = (100),
) -> str:
    """Check out."""
    payment = await charge(
        order, cents
    )  # another

    if (
        payment > 3
        and order
    ):
        return (
            f'paid {payment:>{cents}} for {order!r}'
            + "a" * 1_000
        )
    """no comment"""
    pass
    return 'n' "o"
'''

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Imports a source as a module of its own."""
    numbers = itertools.count()

    def load(source: str) -> ModuleType:
        path = tmp_path / f"dir{next(numbers)}" / "shop.py"
        path.parent.mkdir()
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("shop_of_a_test", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def version_in(module: ModuleType, name: str = "shop") -> str:
    dbos: DBOS = module.dbos
    return dbos._registry.version(name)


NOTHING = """
@dbos.workflow
async def nothing():
    pass
"""
LITERALS = r"""
@dbos.workflow
async def literals(*a, b=..., **c):
    return [1.5e300, 2j, b"\xff", None, True, "é\U0001fae8\udcff", a[1:2, ...], {**c}]
"""
STRINGS = r"""
@dbos.workflow
async def strings(x, w):
    return f"{{a{x!r:>{w}}}}{x=}{x:%Y-%m}{w:}" f"" "z" f"b"
"""
MATCHING = """
@dbos.workflow
async def matching(x):
    match x:
        case {"a": [1, *_]} | None:
            return lambda y, /, z=1: (yield)
    async with x as y, y: del y
    while (n := await x): x @= n
    else: raise x from n
"""
GOLDEN = [
    (PLAIN, "a696df4ba5efb69d39873b87de63f0b6"),
    (NOTHING, "d7a1aad304a71a703614ecc734dfd34b"),
    (LITERALS, "6e6debbbc1fe09245c763b75a7557deb"),
    (STRINGS, "3e6981ec55ff8c102dc971df81180ff1"),
    (MATCHING, "58bcf289cc9fa83288771db06380984d"),
]


@pytest.mark.parametrize(("source", "expected"), GOLDEN)
def test_the_version_of_a_source_is_the_same_on_every_machine_and_python(
    load: Load, source: str, expected: str
) -> None:
    assert version_in(load(HEADER + source)) == expected


def test_formatting_comments_and_docstrings_do_not_change_the_version(load: Load) -> None:
    assert version_in(load(HEADER + FORMATTED)) == version_in(load(HEADER + PLAIN))


def test_nor_do_steps_other_functions_and_the_order_of_definition(load: Load) -> None:
    other = "\n@dbos.workflow\nasync def other():\n    return await charge('o')\n"
    changed = HEADER.replace("return cents", "return cents + 1")
    assert version_in(load(HEADER + PLAIN + other)) == version_in(load(changed + other + PLAIN))


def test_a_method_has_the_version_that_it_has_however_deep_it_is(load: Load) -> None:
    method = (
        "class Shop:\n    @dbos.workflow\n    async def sell(self):\n"
        '        return """\nat the margin"""\n'
    )
    inner = "def make():\n    " + method.replace("\n    ", "\n        ") + "    return Shop\n"
    shallow, deep = load(HEADER + method), load(HEADER + inner)
    name = shallow.Shop.sell.__qualname__
    sell = deep.make().__dict__["sell"]
    assert version_of("shop", [(name, shallow.Shop.sell.__wrapped__)]) == version_of(
        "shop", [(name, sell.__wrapped__)]
    )
    assert "at the margin" in shape_of(sell.__wrapped__)


CHANGES = [
    ("payment > 3", "payment > 4"),
    ("payment > 3", "payment >= 3"),
    ('"no"', '"No"'),
    ('"no"', 'b"no"'),
    ("cents: int = 100", "cents: int = 101"),
    ("cents: int", "cents: float"),
    ("-> str", "-> object"),
    ("await charge(order, cents)", "await charge(order, cents=cents)"),
    ("paid {", "Paid {"),
    ("{order!r}", "{order!s}"),
    ("{cents}}", "{order}}"),
    ("async def checkout", "async def check_out"),
    ("@dbos.workflow", '@dbos.workflow(name="buy")'),
    ("@dbos.workflow", "@dbos.workflow\n@twice"),
    ('return "no"', 'await charge("x")\n    return "no"'),
]


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_every_change_of_a_workflow_changes_the_version(load: Load, old: str, new: str) -> None:
    header = HEADER + "\ndef twice(function):\n    return function\n"
    assert old in PLAIN
    changed = PLAIN.replace(old, new)
    assert version_in(load(header + changed)) != version_in(load(header + PLAIN))


def test_so_does_a_new_workflow_and_another_app(load: Load) -> None:
    other = "\n@dbos.workflow\nasync def other():\n    pass\n"
    module = load(HEADER + PLAIN)
    assert version_in(load(HEADER + PLAIN + other)) != version_in(module)
    assert version_in(module, "shop") != version_in(module, "bar")


def test_how_a_workflow_is_registered_does_not_count(load: Load) -> None:
    """Its name does, which a row has; how often it is recovered, and what is over it, do not."""
    header = HEADER + "\ndef noted(workflow):\n    return workflow\n"
    plain = load(header + PLAIN)
    other = "@noted\n@dbos.workflow(max_recovery_attempts=3)"
    assert version_in(load(header + PLAIN.replace("@dbos.workflow", other))) == version_in(plain)


def test_wait_for_has_the_versions_of_two_pythons(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = PLAIN.replace("await charge(", "await asyncio.wait_for(charge(order), 1")
    waits = waits.replace("1order, cents)", "1)")
    versions: dict[str, set[str]] = {PLAIN: set(), waits: set()}
    for source, found in versions.items():
        for makes_a_task in (True, False):
            monkeypatch.setattr(version, "MAKES_A_TASK", makes_a_task)
            found.add(version_in(load(HEADER + source)))
    assert [len(found) for found in versions.values()] == [1, 2]


def test_a_long_chain_of_conditions_is_no_problem(load: Load) -> None:
    chain = "".join(f"    elif x == {n}:\n        y = {n}\n" for n in range(400))
    source = f"@dbos.workflow\nasync def f(x):\n    if x:\n        y = 1\n{chain}"
    assert version_in(load(HEADER + source)) != version_in(
        load(HEADER + source.replace("399", "9"))
    )


def made(body: str) -> Any:
    """A function whose source nobody has."""
    namespace: dict[str, Any] = {}
    exec(f"async def f(x):\n    return x in {{'a', 'b', 'c'}} and {body}\n", namespace)
    return namespace["f"]


def test_code_without_a_source_has_the_version_of_what_it_compiles_to() -> None:
    one, same, other = made("[1]"), made("(  [1])"), made("[2]")
    assert version_of("a", [("f", one)]) == version_of("a", [("f", same)])
    assert version_of("a", [("f", one)]) != version_of("a", [("f", other)])
    assert version_of("a", [("f", made("max([i for i in x])"))]) != version_of(
        "a", [("f", made("max([i for i in x if i])"))]
    )


def test_code_without_a_source_has_it_in_every_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from dbos_async._engine.version import version_of\n"
        "space = {}\n"
        'exec(\'async def f(x): return x in {"a", "b", "c"}\', space)\n'
        "print(version_of('a', [('f', space['f']), ('stub', None)]))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, str(program)],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_an_app_is_launched_with_the_hash_unless_it_is_told_otherwise() -> None:
    dbos = DBOS("shop", "postgresql://nowhere.invalid/x")
    settings = asyncio.run(dbos._settings_at_launch(dbos._everything()))
    assert settings.app_version == version_of("shop", [])
