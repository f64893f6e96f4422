"""What is known of queues: nothing that is older than a change that was told of."""

import asyncio
from typing import Any

from dbos_async import QueueNotFoundError
from dbos_async._engine import catalog as module
from dbos_async._engine.catalog import Catalog
from dbos_async._limits import Limits


class Table:
    """The queues there are; an answer travels until it is let through."""

    def __init__(self) -> None:
        self.names = ["old"]
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def fetch(self) -> Any:
        names = self.names
        self.asked.set()
        await self.answers.wait()
        return [Row(name) for name in names]


class Row:
    def __init__(self, name: str) -> None:
        self.name = name


async def test_an_answer_that_is_older_than_a_change_is_not_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "limits_of", lambda _: Limits())
    table = Table()
    catalog = Catalog(table.fetch, accepts_any=False)
    early = asyncio.create_task(catalog.flaw_in("old", [{}]))
    await table.asked.wait()
    table.names = ["new"]
    catalog.forget()
    table.answers.set()
    assert await early is None, "it was there when this was asked"
    assert isinstance(await catalog.flaw_in("old", [{}]), QueueNotFoundError)
    assert await catalog.flaw_in("new", [{}]) is None


async def test_an_answer_that_is_newer_than_all_changes_is_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "limits_of", lambda _: Limits())
    table = Table()
    catalog = Catalog(table.fetch, accepts_any=False)
    catalog.forget()
    table.answers.set()
    assert await catalog.flaw_in("old", [{}]) is None
    table.names = []
    assert await catalog.flaw_in("old", [{}]) is None
