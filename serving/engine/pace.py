"""How long a request will take, by how long the last ones took."""

from __future__ import annotations

WEIGHT = 1 / 16  # of the newest request in the average
MARGIN = 1.25  # what is expected is a mean, and a deadline is to be met by more than half


class Pace:
    """The mean time that a request has taken for each request that was there before it, and itself.

    Whatever the time goes into (threads, decoding, waiting, the network) is in it, so that it holds for light networks,
    too. Written and read without a lock: each is one assignment.
    """

    def __init__(self) -> None:
        self._each_s = 0.0

    def note(self, seconds: float, ahead: int) -> None:
        """Note a request that was answered.

        Args:
            seconds: From its admission to its answer.
            ahead: Requests that were admitted before it and not answered yet when it came.
        """
        each_s = seconds / (ahead + 1)
        self._each_s += (each_s - self._each_s) * (WEIGHT if self._each_s else 1.0)

    def expect_s(self, ahead: int) -> float:
        """Seconds in which a request is answered that comes after ``ahead`` others; 0 before the first answer."""
        return self._each_s * (ahead + 1) * MARGIN
