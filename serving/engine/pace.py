"""An estimate of how long a request will take, from the durations of recent requests."""

from __future__ import annotations

WEIGHT = 1 / 16  # of the newest request in the moving average
MARGIN = 1.25  # the average is exceeded by about half of the requests, and most deadlines should be met


class Pace:
    """The moving average of the time per request: its duration divided by the number of requests in flight.

    The duration covers everything between admission and answer: threads, decoding, waiting and the network. The
    estimate therefore holds for fast networks, too. It is read and written without a lock: each is one assignment.
    """

    def __init__(self) -> None:
        self._each_s = 0.0

    def note(self, seconds: float, ahead: int) -> None:
        """Add a request that was answered to the average.

        Args:
            seconds: The time from its admission to its answer.
            ahead: The number of requests in flight when it was admitted.
        """
        each_s = seconds / (ahead + 1)
        self._each_s += (each_s - self._each_s) * (WEIGHT if self._each_s else 1.0)

    def note_unanswered(self, seconds: float, ahead: int) -> None:
        """Add a request that ended without an answer, if it took longer than expected: an answer would have, too.

        Without this, an estimate that is too low would stay too low once all requests are late.

        Args:
            seconds: The time from its admission to its end.
            ahead: The number of requests in flight when it was admitted.
        """
        if seconds > self._each_s * (ahead + 1):
            self.note(seconds, ahead)

    def expect_s(self, ahead: int) -> float:
        """Estimate how long a request will take.

        Args:
            ahead: The number of requests in flight before it.

        Returns:
            Seconds; 0 before the first answer.
        """
        return self._each_s * (ahead + 1) * MARGIN
