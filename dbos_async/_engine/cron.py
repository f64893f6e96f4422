"""When a schedule is due: a cron expression in a time zone, as moments in UTC.

Five fields (minute, hour, day of the month, month, day of the week), or six with seconds first. On
days when the clocks change, it depends on the expression:

- *at set times of the day* (minute and hour do not begin with a star): each time once. One that the
  clocks skip is due the moment they jump; one that comes twice, the first time.
- *at intervals* (one of them begins with a star): by the time that passes, so twice in an hour that
  comes twice, and not in one that is skipped.

A moment that is due is so whatever moment one asks from: two processes never disagree on it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import takewhile
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from dbos_async._limits import checked_word

NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Source: crontab(5)."""
SECOND: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)
SOME_MOMENT: Final = datetime(2000, 1, 1, tzinfo=UTC)


class Cron:
    """A cron expression in a time zone, checked."""

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """Read an expression.

        Raises:
            TypeError: one of the two is no str.
            ValueError: it cannot be read, or is never due, or there is no such time zone.
        """
        self.expression = checked_word(expression, "the cron expression")
        self.timezone = timezone
        self._zone = zone_of(timezone)
        self._fields = NICKNAMES.get(expression.strip().lower(), expression)
        parts = self._fields.split()
        try:
            next(CronSim(self._fields, SOME_MOMENT))
        except (CronSimError, RecursionError) as exc:
            why = str(exc)[:1].lower() + str(exc)[1:]
            raise ValueError(
                f"the cron expression {expression!r} cannot be read: {why}. It has five fields, "
                "minute hour day month weekday, as in '*/5 * * * *', or six with seconds first"
            ) from None
        except StopIteration:
            raise ValueError(f"the cron expression {expression!r} is never due") from None
        self._is_at_set_times = not any(part.startswith("*") for part in parts[-5:-3])

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The moments after this one at which it is due, in order, in UTC."""
        last = moment.astimezone(UTC)
        candidates = self._at_set_times if self._is_at_set_times else self._at_intervals
        try:
            for due in candidates(last):
                if due > last:
                    yield due
                    last = due
        except OverflowError:  # the year 9999 is over
            return

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The moments after the one and up to the other, it included."""
        return takewhile(lambda due: due <= until, self.after(after))

    def next_after(self, moment: datetime) -> datetime | None:
        """The next moment at which it is due; None if that is beyond all calendars."""
        return next(self.after(moment), None)

    def _at_set_times(self, moment: datetime) -> Iterator[datetime]:
        """By what clocks show, each once. Some may not be after the moment."""
        start = moment.astimezone(self._zone).replace(tzinfo=None)
        while True:
            for wall in CronSim(self._fields, start):
                local = wall.replace(tzinfo=self._zone)
                if is_skipped(local):
                    break
                yield local.astimezone(UTC)
            else:
                return
            while is_skipped(local):
                local = local.replace(second=0) + MINUTE
            yield local.astimezone(UTC)
            start = local.replace(tzinfo=None)

    def _at_intervals(self, moment: datetime) -> Iterator[datetime]:
        """By the time that passes: whenever a clock on the wall shows it."""
        since, start = moment, moment
        while True:
            offset = offset_at(since, self._zone)
            change = None
            for wall in CronSim(self._fields, (start + offset).replace(tzinfo=None)):
                due = wall.replace(tzinfo=UTC) - offset
                change = find_change(since, due, self._zone)
                if change is not None:
                    break
                since = due
                yield due
            if change is None:
                return
            since, start = change, change - SECOND


@lru_cache(maxsize=4096)
def cron_of(expression: str, timezone: str) -> Cron:
    """The same as often as it is asked for. Raises as `Cron` does."""
    return Cron(expression, timezone)


def zone_of(timezone: object) -> tzinfo:
    """A time zone by its name.

    Raises:
        TypeError: it is no str.
        ValueError: there is none of this name.
    """
    if not isinstance(timezone, str):
        raise TypeError(f"timezone is a name such as 'Europe/Berlin', not {timezone!r}")
    if timezone == "UTC":
        return UTC
    try:
        return ZoneInfo(timezone)
    except (LookupError, ValueError, OSError):  # also of names that are directories, or no names
        raise ValueError(
            f"there is no time zone {timezone!r}: give a name of the tz database, such as "
            "'Europe/Berlin'"
        ) from None


def is_skipped(local: datetime) -> bool:
    """Whether no clock of the zone ever shows this."""
    return local.astimezone(UTC).astimezone(local.tzinfo) != local


def offset_at(moment: datetime, zone: tzinfo) -> timedelta:
    """How far the zone's clocks are ahead."""
    return moment.astimezone(zone).utcoffset() or timedelta()


def find_change(since: datetime, until: datetime, zone: tzinfo) -> datetime | None:
    """When the zone's clocks are changed first between two moments, to the second."""
    offset = offset_at(since, zone)
    while since < until:
        later = min(since + DAY, until)
        if offset_at(later, zone) != offset:
            while later - since > SECOND:
                middle = since + (later - since) // 2
                if offset_at(middle, zone) == offset:
                    since = middle
                else:
                    later = middle
            return later.replace(microsecond=0)
        since = later
    return None
