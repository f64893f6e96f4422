"""What a step leaves behind, or somebody else installs, is not taken for the workflow's."""

import asyncio
import contextlib
import itertools

import pytest

from dbos_async import DBOS, ConfigurationError
from dbos_async._store.notifier import MAX_PAYLOAD_BYTES, payloads_of
from dbos_async.testing import crash_at


@pytest.mark.parametrize("crashes", [False, True])
async def test_a_timer_that_a_step_arms_does_not_shift_the_names_of_branches(
    dbos_database_url: str, crashes: bool
) -> None:
    dbos = DBOS("timer", dbos_database_url, app_version="1")
    charged: list[str] = []
    timers = itertools.count()

    @dbos.step
    async def connect() -> None:
        async def work() -> None:
            next(timers)

        loop = asyncio.get_running_loop()
        loop.call_later(0.01, lambda: loop.create_task(work()))

    @dbos.step
    async def charge() -> None:
        charged.append(dbos.idempotency_key)

    @dbos.workflow
    async def pay() -> None:
        await connect()
        await dbos.sleep(0.1)
        await asyncio.create_task(branch())
        await dbos.sleep(0)

    async def branch() -> None:
        await charge()

    with crash_at(4) if crashes else contextlib.nullcontext():
        async with dbos:
            await pay.with_options(workflow_id="w")()
    async with dbos:
        await (await dbos.retrieve_workflow("w")).get_result(timeout=20)
    assert charged == ["w-2.1.1"]


async def test_a_client_that_a_step_connects_outlives_the_workflow(dbos_database_url: str) -> None:
    dbos = DBOS("lazy", dbos_database_url)
    messages: asyncio.Queue[str] = asyncio.Queue()
    readers: list[asyncio.Task[str]] = []

    @dbos.workflow
    async def handle(message: str) -> str:
        return f"handled {message}"

    async def reader() -> str:
        return await handle(await messages.get())

    @dbos.step
    async def connect() -> None:
        readers.append(asyncio.create_task(reader()))

    @dbos.workflow
    async def first() -> None:
        await connect()

    async with dbos, asyncio.timeout(20):
        await first()
        messages.put_nowait("hours later")
        assert await readers[0] == "handled hours later"


async def test_a_task_factory_that_passes_ours_by_is_an_error_and_not_a_loss(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("factory", dbos_database_url)

    @dbos.step
    async def count() -> int:
        return 1

    async def counted() -> int:
        return await count()

    @dbos.workflow
    async def straight() -> int:
        return await count()

    @dbos.workflow
    async def branched() -> int:
        return await asyncio.create_task(counted())

    async with dbos:
        loop = asyncio.get_running_loop()
        ours = loop.get_task_factory()
        loop.set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )
        try:
            handle = await dbos.start_workflow(straight)
            assert await handle.get_result() == 1
            assert [step.name for step in await dbos.list_steps(handle.workflow_id)] == [
                count._definition.name
            ]
            with pytest.raises(ConfigurationError, match="task factories"):
                await branched()
        finally:
            loop.set_task_factory(ours)


def test_a_notification_is_never_too_long_whatever_is_in_the_ids() -> None:
    words = [character * 250 for character in ('"', "\\", "é", "x")] * 50
    payloads = list(payloads_of(words))
    assert max(len(payload.encode()) for payload in payloads) <= MAX_PAYLOAD_BYTES + 2
