"""What a user may import, and that all of it is explained."""

import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

import dbos_async
from dbos_async import errors

MODULES = [dbos_async, errors]
NEED_ARGUMENTS = {"WorkflowNotFoundError", "PortableWorkflowError"}
CLASSES = [
    value
    for name in dbos_async.__all__
    if inspect.isclass(value := getattr(dbos_async, name, None))
    and value.__module__.startswith("dbos_async")
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_name_in_all_can_be_imported(module: ModuleType) -> None:
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_names_nothing_twice(module: ModuleType) -> None:
    assert len(set(module.__all__)) == len(module.__all__)


def test_the_root_exports_all_that_it_imports() -> None:
    imported = {
        name
        for name, value in vars(dbos_async).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert imported == set(dbos_async.__all__)


def test_every_public_error_is_exported_by_its_module_and_by_the_root() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and value.__module__ == errors.__name__
        and not name.startswith("_")
    }
    assert defined == set(errors.__all__)
    assert defined - set(dbos_async.__all__) == set()


def test_the_errors_are_the_tree_that_their_module_draws() -> None:
    assert list(drawn(errors.__doc__ or "")) == list(defined_below(errors.DBOSError))


def test_a_workflow_that_times_out_raises_a_timeout_error() -> None:
    assert issubclass(errors.WorkflowTimeoutError, TimeoutError)


@pytest.mark.parametrize("name", sorted({*errors.__all__} - NEED_ARGUMENTS))
def test_an_error_without_a_message_says_its_docstring(name: str) -> None:
    kind = getattr(errors, name)
    assert str(kind()) == vars(kind)["__doc__"]


def test_every_public_class_and_its_public_methods_have_docstrings() -> None:
    assert [name for name, documented in explained() if not documented] == []


def drawn(picture: str) -> Iterator[tuple[int, str]]:
    """Depth and name of each error in a tree of box-drawing characters, from the top."""
    for line in picture.splitlines():
        branches, _, name = line.rpartition("── ")
        if name.startswith("DBOSError") or branches.endswith(("├", "└")):
            yield (len(branches) + 3) // 4, name.split()[0]


def defined_below(kind: type[errors.DBOSError], depth: int = 0) -> Iterator[tuple[int, str]]:
    """Depth and name of a class and of all below it that the module defines, in its order."""
    yield depth, kind.__name__
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from defined_below(child, depth + 1)


def explained() -> Iterator[tuple[str, bool]]:
    """Each public class and each public thing on it, and whether it has a docstring of its own."""
    for kind in CLASSES:
        yield kind.__name__, bool(vars(kind).get("__doc__"))
        for name, member in inspect.getmembers_static(kind):
            if not name.startswith("_") and is_ours(member):
                yield f"{kind.__name__}.{name}", bool(member.__doc__)


def is_ours(member: object) -> bool:
    """Whether it is a method or a property that this library wrote."""
    function = member.fget if isinstance(member, property) else member
    function = getattr(function, "__func__", function)
    return inspect.isfunction(function) and function.__module__.startswith("dbos_async")
