"""What is too old: deleted once it has ended, or cancelled because it has not.

The two endpoints that act on any number of workflows. Each page is a transaction of its own.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from dbos_async._app import DBOS
from dbos_async._store.clock import moment_of
from dbos_async._store.records import ALIVE, STATUSES, Status
from dbos_async.admin.shapes import just_after

PAGE: Final = 1_000
"""Workflows that are looked at, and changed, at a time."""

OVER: Final[tuple[Status, ...]] = tuple(status for status in STATUSES if status not in ALIVE)


async def collect(dbos: DBOS, *, cutoff_ms: int | None, rows: int | None) -> None:
    """Delete what ended and was created before a moment, or before the newest so many.

    Raises:
        ValueError: neither is given.
    """
    moments = [] if cutoff_ms is None else [moment_of(cutoff_ms)]
    if rows is not None:
        moments += await find_nth_newest(dbos, rows)
    elif cutoff_ms is None:
        raise ValueError("give cutoff_epoch_timestamp_ms or rows_threshold, or both")
    if not moments:
        return  # there are fewer workflows than may stay

    async def delete(ids: list[str]) -> object:
        return await dbos.delete_workflows(workflow_ids=ids, status=OVER)

    await page_by_page(dbos, delete, created_before=max(moments), status=OVER)


async def time_out(dbos: DBOS, *, cutoff_ms: int) -> None:
    """Cancel what has not ended and was created at a moment or before it."""

    async def cancel(ids: list[str]) -> object:
        return await dbos.cancel_workflows(workflow_ids=ids)

    before = just_after(moment_of(cutoff_ms))
    await page_by_page(dbos, cancel, created_before=before, status=ALIVE)


async def find_nth_newest(dbos: DBOS, rows: int) -> list[datetime]:
    """When the newest `rows`-th workflow of this app was created, if there are so many.

    What names no app is not counted, so that rather more stay than less.
    """
    found = await dbos.list_workflows(
        limit=1,
        offset=rows - 1,
        load_input=False,
        load_output=False,
        application_name=dbos.name,
    )
    return [status.created_at for status in found]


async def page_by_page(
    dbos: DBOS, act: Callable[[list[str]], Awaitable[object]], **filter: Any
) -> None:
    """Do something with all that fit and are this app's, or no app's, the oldest first."""
    last = None
    while True:
        page = await dbos.list_workflows(
            limit=PAGE,
            newest_first=False,
            after=last,
            load_input=False,
            load_output=False,
            **filter,
        )
        ids = [status.workflow_id for status in page if status.app_name in (None, dbos.name)]
        if ids:
            await act(ids)
        if len(page) < PAGE:
            return
        last = page[-1]
