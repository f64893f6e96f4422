"""Starts within the last period, counted in this process."""

from collections import deque

from dbos_async._limits import RateLimit


class Window:
    """The moments of the latest starts, in seconds of the loop's clock."""

    def __init__(self) -> None:
        self._starts: deque[tuple[float, int]] = deque()

    def room(self, limit: RateLimit, now: float) -> tuple[int, int | None]:
        """How many may start now, and after how many milliseconds more may."""
        period = limit.period_ms / 1000
        while self._starts and self._starts[0][0] <= now - period:
            self._starts.popleft()
        room = limit.limit - sum(count for _, count in self._starts)
        if not self._starts:
            return room, None
        return max(0, room), int((self._starts[0][0] + period - now) * 1000) + 1

    def took(self, count: int, now: float) -> None:
        """So many have started."""
        if count:
            self._starts.append((now, count))
