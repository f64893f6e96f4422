"""The library's voice: the stdlib logger `dbos_async`, wrapped by structlog; nothing is set up."""

import logging
from typing import Any

import structlog

NAME = "dbos_async"


def sentence(_: Any, __: str, event: structlog.typing.EventDict) -> str:
    """The event first, then its facts: `workflow recovered workflow_id='o-1' attempt=2`."""
    message = str(event.pop("event"))
    return " ".join([message, *(f"{key}={value!r}" for key, value in event.items())])


log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger(NAME),
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
        sentence,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
)
