from __future__ import annotations
import asyncio
from datetime import timedelta
from typing import Any, Literal, assert_type
from dbos_async import DBOS, WorkflowHandle

dbos = DBOS("races")

@dbos.step
async def charge(order_id: str) -> int: return 1
@dbos.workflow
async def checkout(order_id: str) -> str: return order_id

@dbos.workflow
async def race() -> int:
    tasks = [asyncio.create_task(charge(word)) for word in "ab"]
    done, pending = await dbos.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=timedelta(hours=1))
    assert_type(done, set[asyncio.Task[int]])
    done, pending = await dbos.wait(pending)
    handle = await dbos.start_workflow(checkout, "o-1")
    ended, _ = await dbos.wait([handle], return_when=asyncio.FIRST_EXCEPTION, timeout=3)
    assert_type(ended, set[WorkflowHandle[str]])
    mixed: list[asyncio.Task[int] | WorkflowHandle[str]] = [*tasks, handle]
    first, _ = await dbos.wait(mixed)
    assert_type(first, set[asyncio.Task[int] | WorkflowHandle[str]])
    await dbos.wait([tasks[0], handle])
    assert_type(await dbos.recv("t", as_=int | str), Any | None)
    assert_type(await dbos.get_event("w", "k", as_=Literal["a", "b"]), Any | None)
    try:
        async with dbos.timeout(5) as limit:
            result = await charge("c")
            assert_type(limit.expired(), bool)
    except TimeoutError:
        return 0
    return result
