"""Errors cross processes: as their class where it can be had, else as a PortableWorkflowError."""

import asyncio
import json
import subprocess
import sys
import urllib.error
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import dbos_async
from dbos_async import (
    DBOS,
    Client,
    DatabaseLostError,
    DBOSError,
    NotLaunchedError,
    PortableWorkflowError,
    StepRetriesExhaustedError,
    WorkflowCancelledError,
    WorkflowNotFoundError,
    WorkflowTimeoutError,
    errors,
)
from dbos_async._store.database import translated


@pytest.mark.parametrize("kind", [asyncpg.InternalClientError, asyncpg.ProtocolError])
def test_the_insides_of_the_driver_are_told_to_nobody(kind: type[Exception]) -> None:
    inside = kind("cannot switch to state 12; another operation (2) is in progress")
    with pytest.raises(DatabaseLostError) as lost, translated():
        raise inside
    assert str(lost.value) == "the connection to Postgres broke in the middle of an exchange"
    assert lost.value.__cause__ is inside


class PaymentError(Exception):
    """Importable, and built from more than its message."""

    def __init__(self, message: str, *, cents: int) -> None:
        super().__init__(message)
        self.cents = cents


class SecretiveError(Exception):
    """Its text is not its argument."""

    def __init__(self, who: str) -> None:
        super().__init__(who)
        self.who = who

    def __str__(self) -> str:
        return f"{self.who} did it"


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("errors", dbos_database_url)


RAISED: list[Exception] = [
    ValueError("plain"),
    ValueError(),
    ValueError("several", 1, None),
    KeyError("key"),
    FileNotFoundError(2, "No such file", "/tmp/x"),
    ZeroDivisionError("division by zero"),
    TimeoutError("late"),
    InvalidOperation("decimal"),
    json.JSONDecodeError("Expecting value", "{", 1),
    PaymentError("declined", cents=300),
    SecretiveError("ann"),
    WorkflowNotFoundError("w"),
    WorkflowCancelledError("cancelled", workflow_id="w"),
    WorkflowTimeoutError("late", workflow_id="w"),
    StepRetriesExhaustedError("tired", [ValueError("1"), KeyError("2")]),
    PortableWorkflowError("JsError", "of elsewhere", 7, {"a": 1}),
    ExceptionGroup("group", [ValueError("1"), ExceptionGroup("inner", [KeyError("2")])]),
]


async def test_errors_come_back_as_what_they_were(dbos: DBOS) -> None:
    @dbos.step
    async def step(which: int) -> None:
        raise RAISED[which]

    @dbos.workflow(name="flow")
    async def workflow(which: int) -> list[Any]:
        try:
            await step(which)
        except Exception as exc:
            # What the workflow catches is what the step raised, and it goes on to its awaiter.
            assert type(exc) is type(RAISED[which]), repr(exc)
            raise
        return []

    async with dbos:
        for which, error in enumerate(RAISED):
            handle = await dbos.start_workflow(workflow, which)
            with pytest.raises(Exception, match=r".*") as raised:
                await handle.get_result()
            assert type(raised.value) is type(error)
            assert str(raised.value) == str(error)
            assert raised.value.args == error.args or isinstance(error, ExceptionGroup)
            listed = (await handle.get_status()).error
            assert type(listed) is type(error)
            if isinstance(error, PaymentError):
                assert isinstance(raised.value, PaymentError)
                assert raised.value.cents == 300
            if isinstance(error, ExceptionGroup):
                assert isinstance(raised.value, ExceptionGroup)
                assert [str(each) for each in raised.value.exceptions] == [
                    str(each) for each in error.exceptions
                ]


async def test_classes_that_cannot_be_imported_come_back_as_portable_errors(dbos: DBOS) -> None:
    class LocalError(Exception):
        code = 402

    @dbos.workflow(name="flow")
    async def workflow() -> None:
        raise LocalError("local")

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        with pytest.raises(PortableWorkflowError) as raised:
            await handle.get_result()
        assert (raised.value.name, raised.value.message, raised.value.code) == (
            "LocalError",
            "local",
            402,
        )
        assert str(raised.value) == "LocalError: local"


PROCESS = """
import asyncio, sys, urllib.error
from dbos_async import DBOS

class OnlyHere(Exception):
    def __init__(self, message, data):
        super().__init__(message, data)
        self.data = data

dbos = DBOS("errors", sys.argv[1], app_version="1")

@dbos.workflow(name="flow")
async def flow(which):
    if which == "standard":
        raise urllib.error.ContentTooShortError("short", b"")
    if which == "builtin":
        raise PermissionError(13, "no", "/x")
    raise OnlyHere("only here", {"cents": 3})

async def main():
    async with dbos:
        for which in ("standard", "builtin", "own"):
            handle = await dbos.start_workflow(flow.with_options(workflow_id=which), which)
            try:
                await handle.get_result()
            except Exception as exc:
                print(type(exc).__name__)

asyncio.run(main())
"""


async def test_errors_of_another_process_come_back(dbos_database_url: str, tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, script, dbos_database_url],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(dbos_async.__file__).parent.parent)},
        check=False,
    )
    assert ran.stdout.split() == ["ContentTooShortError", "PermissionError", "OnlyHere"], ran.stderr
    async with Client(dbos_database_url) as client:
        with pytest.raises(urllib.error.ContentTooShortError):
            await (await client.retrieve_workflow("standard")).get_result()
        with pytest.raises(PermissionError) as denied:
            await (await client.retrieve_workflow("builtin")).get_result()
        with pytest.raises(PortableWorkflowError) as raised:
            await (await client.retrieve_workflow("own")).get_result()
    assert (denied.value.errno, denied.value.filename) == (13, "/x")
    assert raised.value.name == "OnlyHere"
    assert "only here" in raised.value.message
    assert raised.value.data == {"cents": 3}


def test_every_error_is_public_and_of_one_family() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, DBOSError)
        assert getattr(dbos_async, name) is kind
        assert name in dbos_async.__all__
        assert kind.__doc__
    assert issubclass(NotLaunchedError, errors.ConfigurationError)
    assert issubclass(errors.DatabaseLostError, errors.DatabaseError)
    assert issubclass(errors.DatabaseRefusedError, errors.DatabaseError)
    assert issubclass(WorkflowTimeoutError, TimeoutError)


def test_a_docstring_is_the_default_message() -> None:
    assert str(errors.DivergenceError()) == errors.DivergenceError.__doc__
    assert str(errors.SerializationError("mine")) == "mine"


@pytest.mark.parametrize(
    "odd",
    [
        ValueError("too much", Decimal("1.50")),
        ValueError("at", datetime(2026, 1, 1)),
        RuntimeError(object),
        ValueError(asyncio.Lock),
    ],
)
async def test_errors_keep_their_class_though_their_arguments_are_no_json(
    dbos: DBOS, odd: Exception
) -> None:
    @dbos.workflow(name="flow")
    async def workflow() -> None:
        raise odd

    async with dbos:
        with pytest.raises(type(odd)) as raised:
            await workflow()
    assert str(raised.value) == str(odd)
