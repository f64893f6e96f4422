"""Times as people write and read them: `2h` ago, `2026-07-01T10:00`; `3m`, `2d`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

UNITS: Final = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Seconds of each, the largest first."""
PIECE: Final = r"(\d+(?:\.\d+)?)(ms|[wdhms])"
EXAMPLES: Final = "2h, 1d12h or 90s, or a time such as 2026-07-01 or 2026-07-01T10:00:00+02:00"


def seconds_in(text: str) -> float:
    """A duration such as 90, 90s, 1h30m.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    pieces = re.findall(PIECE, text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise ValueError(f"{text!r} is no duration: write 90s, 15m, 2h, 1d12h")
    return sum(float(number) * UNITS[unit] for number, unit in pieces)


def moment_in(text: str, now: datetime) -> datetime:
    """A moment so long ago, or the ISO time itself; one without a zone is UTC.

    Raises:
        ValueError: it is neither.
    """
    try:
        return now - timedelta(seconds=seconds_in(text))
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: write how long ago, as {EXAMPLES} (UTC)") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def shown_seconds(seconds: float) -> str:
    """A duration in its two largest units at most."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    left = round(seconds)
    pieces: list[str] = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, int(UNITS[unit]))
        if count or pieces:
            pieces.append(f"{count}{unit}")
        if len(pieces) == 2:
            break
    return "".join(piece for piece in pieces if not piece.startswith("0"))


def shown_age(moment: datetime, now: datetime) -> str:
    """How long ago, in one unit: `3m`."""
    seconds = max(0.0, (now - moment).total_seconds())
    for unit in ("d", "h", "m"):
        if seconds >= 2 * UNITS[unit]:
            return f"{int(seconds // UNITS[unit])}{unit}"
    return f"{int(seconds)}s"


def shown_moment(moment: datetime, now: datetime) -> str:
    """A moment, and how far it is: `2026-07-01 10:00:00 UTC (3m12s ago)`."""
    seconds = (moment - now).total_seconds()
    far = f"in {shown_seconds(seconds)}" if seconds > 0 else f"{shown_seconds(-seconds)} ago"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({far})"
