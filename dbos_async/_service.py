"""Background work with a beginning and an end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def running(
    stop: Callable[[], None] | None = None, /, **services: Coroutine[None, None, None]
) -> AsyncIterator[None]:
    """Run the named `services` for the length of the block; a crash in one cancels the block.

    Leaving the block cancels them, or calls `stop` and waits for them to finish. The
    block's own error passes through bare: a TaskGroup alone would wrap it in a group.

    Raises:
        ExceptionGroup: a service crashed.
    """
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(service, name=name) for name, service in services.items()]
        try:
            yield
        except (Exception, asyncio.CancelledError) as exc:
            failure = exc
        if stop is None:
            for task in tasks:
                task.cancel()
        else:
            stop()
    if failure is not None:
        raise failure


class Host(Generic[T]):
    """Keeps a context open in a task of its own, so that one task may open it and another close it.

    Cancel scopes belong to the task that entered them; a launch and a shutdown, or a fixture's two
    halves, need not be the same task.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self.is_dropped = False
        self._on_crash = on_crash
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter `context`; what it yields. Its errors on entering are raised here."""
        opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(context, opened), name="dbos host")
        either: list[asyncio.Future[None] | asyncio.Future[T]] = [self._task, opened]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if not opened.done():
            opened.cancel()
            await self._task
        return opened.result()

    async def close(self) -> None:
        """Leave the context; its errors on leaving, and a crash before, are raised here."""
        self._stop.set()
        if self._task is not None and self.is_dropped:
            await asyncio.wait([self._task])
        elif self._task is not None:
            await asyncio.shield(self._task)

    async def ended(self) -> None:
        """Return when the context is left, for whatever reason."""
        if self._task is not None:
            await asyncio.wait([self._task])

    @property
    def is_over(self) -> bool:
        """Whether the context is left; `asyncio.run` cancels what nobody has closed."""
        return self._task is not None and self._task.done()

    def drop(self) -> None:
        """Cancel the context where it is; `close` then only waits for its end."""
        self.is_dropped = True
        if self._task is not None:
            loop = self._task.get_loop()
            loop.call_soon_threadsafe(self._task.cancel)

    async def _keep(
        self, context: AbstractAsyncContextManager[T], opened: "asyncio.Future[T]"
    ) -> None:
        try:
            async with context as value:
                opened.set_result(value)
                await self._stop.wait()
        except Exception as exc:
            if opened.done():
                self._on_crash(exc)
            raise
