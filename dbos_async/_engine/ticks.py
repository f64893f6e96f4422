"""The ticks of a schedule: which of them fire, beside which runs, and as what. Pure decisions."""

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Final

from dbos_async import errors
from dbos_async._engine.cron import Cron
from dbos_async._engine.registry import WorkflowDefinition
from dbos_async._store import stored
from dbos_async._store.clock import milliseconds_of, moment_of
from dbos_async._store.schedules import Locked, Run

HANDOVER: Final = 15.0
"""Seconds that a change of leaders may take, a lease that runs out and a launch included."""
LATEST: Final = 60.0
"""Seconds after which the last tick that was missed is too old to fire."""
AT_A_TIME: Final = 500
"""Missed ticks of one schedule that fire in one transaction."""
PICKLED_NONE: Final = "gAROLg=="
"""What the official library writes where there is no context: no need to run its code."""


def ticks_of(row: Locked, cron: Cron, now_ms: int, slept_until_ms: int) -> tuple[list[int], int]:
    """The ticks of a schedule that fire by themselves, and until when that says all."""
    after_ms = now_ms if row.decided_until_ms is None else row.decided_until_ms
    if row.decided_until_ms is None and row.backfill and row.last_fired_at is not None:
        after_ms = last_fired_ms_of(row.last_fired_at, now_ms)
    if not row.backfill:
        after_ms = max(after_ms, now_ms - round(LATEST * 1000) - 1)
    missed = cron.between(moment_of(after_ms), moment_of(now_ms))
    ticks = [milliseconds_of(tick) for tick in islice(missed, AT_A_TIME)]
    if len(ticks) == AT_A_TIME:
        return ticks, ticks[-1]
    until_ms = max(after_ms, now_ms)
    if row.backfill:
        return ticks, until_ms
    since_ms = max(now_ms - HANDOVER * 1000, slept_until_ms)
    return [tick for tick in ticks if tick >= since_ms] or ticks[-1:], until_ms


def overlapped(
    row: Locked, ticks: Sequence[int], active: Sequence[str]
) -> tuple[Sequence[int], int | None, Sequence[str]]:
    """Which of these ticks fire now, which one is held back, and which runs are cancelled."""
    match row.overlap:
        case "skip":
            return ([] if active else ticks[:1]), None, ()
        case "buffer_one":
            line = [*([] if row.held_ms is None else [row.held_ms]), *ticks]
            fire, rest = ([], line) if active else (line[:1], line[1:])
            return fire, rest[0] if rest else None, ()
        case "cancel_previous":
            return ticks[-1:], None, active if ticks else ()
        case _:
            return ticks, None, ()


def run_of(
    row: Locked,
    moment: str,
    definition: WorkflowDefinition | None,
    *,
    allow_pickle: bool,
    kind: str = "",
) -> Run:
    """The run of a schedule that is due at a moment.

    It gets the moment and the context. Where it is known here that the workflow takes no context,
    it gets none; elsewhere whoever runs it finds out.
    """
    inputs = None
    arguments = None if definition is None else definition.arguments
    if arguments is not None and not arguments.takes_context:
        inputs = f'{{"positionalArgs":["{moment}"],"namedArgs":{{}}}}'
    elif row.foreign_context is not None:
        inputs = inputs_of(moment, row.foreign_context, allow_pickle=allow_pickle)
    return Run(f"sched-{row.name}-{kind}{moment}", row.name, moment, inputs)


def inputs_of(moment: str, context: str, *, allow_pickle: bool) -> str:
    """Arguments with a context that another library wrote.

    One that is not read here is the run's input as it is: the run fails, and says what to do.
    """
    try:
        text = "null"
        if context != PICKLED_NONE:
            text = stored.as_json(context, None, allow_pickle=allow_pickle)
    except errors.SerializationError:
        return context
    return f'{{"positionalArgs":["{moment}",{text}],"namedArgs":{{}}}}'


def next_of(cron: Cron, after_ms: int) -> float:
    """When it is due next; never is infinite."""
    due = cron.next_after(moment_of(after_ms))
    return math.inf if due is None else milliseconds_of(due)


def last_fired_ms_of(moment: str, now_ms: int) -> int:
    """When another library says that it fired a schedule last; now, if that cannot be read."""
    try:
        return milliseconds_of(datetime.fromisoformat(moment))
    except ValueError:
        return now_ms


def iso_of(milliseconds: int) -> str:
    """A moment as ids have it."""
    return moment_of(milliseconds).isoformat()
