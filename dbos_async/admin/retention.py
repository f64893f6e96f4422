"""What is too old: deleted once it has ended, or cancelled because it has not.

The two endpoints that act on any number of workflows, a little at a time. What goes is pruned, so
that nobody loses whom he needs.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from dbos_async._app import DBOS
from dbos_async._engine import pruning
from dbos_async._store.clock import milliseconds_of, moment_of
from dbos_async._store.pruning import Walk, created_before
from dbos_async._store.records import ALIVE
from dbos_async.admin.shapes import just_after

PAGE: Final = 1_000
"""Workflows that are looked at, and cancelled, at a time."""


async def collect(dbos: DBOS, *, cutoff_ms: int | None, rows: int | None) -> None:
    """Delete what ended, was created before a moment, or before the newest so many, and may go.

    Raises:
        ValueError: neither is given.
    """
    cutoffs = [] if cutoff_ms is None else [cutoff_ms]
    if rows is not None:
        cutoffs += await find_nth_newest(dbos, rows)
    elif cutoff_ms is None:
        raise ValueError("give cutoff_epoch_timestamp_ms or rows_threshold, or both")
    if cutoffs:  # else there are fewer workflows than may stay
        session = dbos._own_session()
        walk = Walk(created_before(max(cutoffs)), session.application)
        await pruning.prune(session, walk, None)


async def time_out(dbos: DBOS, *, cutoff_ms: int) -> None:
    """Cancel what has not ended and was created at a moment or before it."""

    async def cancel(ids: list[str]) -> object:
        return await dbos.cancel_workflows(workflow_ids=ids)

    before = just_after(moment_of(cutoff_ms))
    await page_by_page(dbos, cancel, created_before=before, status=ALIVE)


async def find_nth_newest(dbos: DBOS, rows: int) -> list[int]:
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
    return [milliseconds_of(status.created_at) for status in found]


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
