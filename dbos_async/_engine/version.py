"""The version of an app's code: a hash of its workflows' syntax trees.

In it, and nothing else:

- the app's name, because a version's name belongs to one app of a database;
- each workflow's registered name and its function: parameters with their defaults and annotations,
  the body, and the decorators between `@dbos.workflow` and the `def`;
- where one of them names `wait_for`, whether asyncio's makes a task, as on Python 3.11 only, since
  that numbers the steps within it differently.

So it is the same on every machine, under every path and on every Python from 3.11 on, and does not
change with what a formatter may change: comments, blank lines, line breaks, quotes, parentheses,
the notation of numbers, docstrings and other expressions that are only a constant, `pass`.

Not in it are steps and whatever else a workflow calls: a step may be mended while workflows are
under way, because what it returned before is recorded. If a helper decides which steps are called,
change the version with it (`app_version=`), or patch it (`dbos.patch`).

Where Python cannot find the source (a frozen program, `exec`, the REPL before 3.13), the compiled
code stands in: the same for the same code on the same minor version of Python, but docstrings
count.
"""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any, Final, cast

IGNORED: Final = frozenset({"ctx", "kind", "type_comment"})
"""Fields of nodes that follow from others, or are notation."""
MAKES_A_TASK: Final = sys.version_info < (3, 12)
"""Whether asyncio.wait_for does."""


def version_of(app_name: str, workflows: Iterable[tuple[str, Callable[..., Any] | None]]) -> str:
    """The version: 32 hexadecimal digits.

    Args:
        app_name: the app's name.
        workflows: registered names and functions, in any order; None for what has no code here.
    """
    shapes = sorted(f"{name!a} {shape_of(function)}" for name, function in workflows)
    parts = [f"app {app_name!a}", *shapes]
    if MAKES_A_TASK and any("'wait_for'" in shape for shape in shapes):
        parts.append("wait_for makes a task")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def shape_of(function: Callable[..., Any] | None) -> str:
    """What is hashed of one function, as text in one line."""
    if function is None:
        return ""
    tree = _tree_of(function)
    if tree is None:
        return _compiled(inspect.unwrap(function))
    tree.decorator_list = _below_workflow(tree.decorator_list)
    return _text_of(tree)


def _tree_of(function: Callable[..., Any]) -> ast.AsyncFunctionDef | ast.FunctionDef | None:
    try:
        source = inspect.getsource(function)
        if source[:1].isspace():  # not dedented: a string may begin at the margin
            source = f"if True:\n{source}"
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if isinstance(tree, ast.If):
        tree = tree.body[0]
    return tree if isinstance(tree, ast.AsyncFunctionDef | ast.FunctionDef) else None


def _below_workflow(decorators: list[ast.expr]) -> list[ast.expr]:
    """The decorators whose work is part of the workflow: those under the last `@….workflow`."""
    names = [_name_of(decorator) for decorator in decorators]
    if "workflow" not in names:
        return decorators
    return decorators[len(names) - names[::-1].index("workflow") :]


def _name_of(decorator: ast.expr) -> str | None:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else None


class Word(str):
    """Text that goes into the hash as it is."""

    __slots__ = ()


def _text_of(tree: ast.AST) -> str:
    """A tree as text that does not depend on the version of Python; it may be deep."""
    words: list[str] = []
    todo: list[object] = [tree]
    while todo:
        part = todo.pop()
        if isinstance(part, Word):
            words.append(part)
        else:
            todo.extend(reversed(_parts_of(part)))
    return "".join(words)


def _parts_of(value: object) -> list[object]:
    if isinstance(value, ast.Constant):
        return [Word(f"{type(value.value).__name__}:{value.value!a}")]
    if isinstance(value, ast.JoinedStr):
        return [Word("JoinedStr"), list(_pieces_of(value))]
    if isinstance(value, ast.AST):
        fields = [(name, getattr(value, name, None)) for name in sorted(value._fields)]
        kept = [field for field in fields if field[0] not in IGNORED and field[1] not in (None, [])]
        within = [part for name, field in kept for part in (Word(f"{name}="), field, Word(","))]
        return [Word(f"{type(value).__name__}("), *within, Word(")")]
    if isinstance(value, list):
        each = [part for part in cast(list[object], value) if not _is_idle(part)]
        return [Word("["), *[part for one in each for part in (one, Word(","))], Word("]")]
    return [Word(ascii(value))]


def _pieces_of(string: ast.JoinedStr) -> Iterator[object]:
    """An f-string's parts; how its plain text is cut up is up to the version of Python."""
    plain = ""
    for part in string.values:
        if isinstance(part, ast.Constant):
            plain += str(part.value)
            continue
        if plain:
            yield Word(ascii(plain))
        plain = ""
        yield part
    if plain:
        yield Word(ascii(plain))


def _is_idle(node: object) -> bool:
    """Whether it is a statement that does nothing, such as a docstring."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass)


def _compiled(function: Callable[..., Any]) -> str:
    """Compiled code as text; lines and paths are not in it."""
    code = getattr(function, "__code__", None)
    return ascii(_code_parts(code)) if isinstance(code, CodeType) else ascii(type(function))


def _code_parts(value: object) -> object:
    if isinstance(value, CodeType):
        constants = [_code_parts(constant) for constant in value.co_consts]
        return value.co_name, value.co_code.hex(), value.co_names, value.co_varnames, constants
    if isinstance(value, frozenset):
        return "frozenset", sorted(map(ascii, cast(frozenset[object], value)))
    return ascii(value)
