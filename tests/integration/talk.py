"""An app whose workflows talk: by messages, by events, or as a test declares them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dbos_async import DBOS, WorkflowHandle

PATIENCE = 30.0
HOUR = 3_600.0
"""Seconds between rechecks: what happens within a test, happened because of news."""


class Talk:
    """One launch of the app."""

    def __init__(self, url: str, *, recheck_interval: float = HOUR, **settings: Any) -> None:
        self.dbos = dbos = DBOS("talk", url, app_version="1", **settings)
        dbos.configure(recheck_interval=recheck_interval)
        dbos.queue("line", concurrency=1)

        @dbos.workflow(name="receive")
        async def receive(count: int, topic: str | None = None, timeout: float = HOUR) -> list[Any]:
            return [await dbos.recv(topic, timeout=timeout) for _ in range(count)]

        @dbos.workflow(name="receive_at_once")
        async def receive_at_once(timeouts: list[float]) -> list[Any]:
            """Several receivers of one topic."""
            return list(await asyncio.gather(*[dbos.recv("t", timeout=t) for t in timeouts]))

        @dbos.workflow(name="send")
        async def send(to: str, words: list[Any], topic: str | None = None) -> None:
            for word in words:
                await dbos.send(to, word, topic)

        @dbos.workflow(name="publish")
        async def publish(values: dict[str, Any]) -> None:
            for key, value in values.items():
                await dbos.set_event(key, value)

        @dbos.workflow(name="watch")
        async def watch(workflow_id: str, key: str, timeout: float = HOUR) -> Any:
            return await dbos.get_event(workflow_id, key, timeout=timeout)

        self.receive, self.receive_at_once, self.send = receive, receive_at_once, send
        self.publish, self.watch = publish, watch

    async def waits(self, workflow_id: str, times: int = 1) -> None:
        """Return once it has begun to wait so often: that is recorded."""
        async with asyncio.timeout(PATIENCE):
            while await self.waited(workflow_id) < times:
                await asyncio.sleep(0.01)

    async def waited(self, workflow_id: str) -> int:
        """How often it has begun to wait."""
        steps = await self.dbos.list_steps(workflow_id)
        return sum(step.name == "DBOS.sleep" for step in steps)

    async def receiver(self, count: int = 1, topic: str | None = None) -> WorkflowHandle[list[Any]]:
        """A workflow that waits for messages."""
        return await self.dbos.start_workflow(
            self.receive.with_options(workflow_id="r"), count, topic
        )


@asynccontextmanager
async def talking(url: str, **settings: Any) -> AsyncIterator[Talk]:
    """The app, launched."""
    talk = Talk(url, **settings)
    async with asyncio.timeout(PATIENCE), talk.dbos:
        yield talk


async def names_of(talk: Talk, workflow_id: str) -> list[str]:
    """What a workflow has recorded."""
    return [step.name for step in await talk.dbos.list_steps(workflow_id)]
