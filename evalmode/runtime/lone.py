"""A session with several threads for requests that are alone, and when it is used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from evalmode.artifact.tensors import Tensors

FIRST_PAUSE, LONGEST_PAUSE = 8, 64  # requests
MAX_SAVED = 4.0  # runs on one thread: how much time that fast runs have saved slow runs may lose


class Lone:
    """A session with several threads for requests that are alone.

    Its threads wait for each other. While other processes use the cores, a run may take longer than on one thread.
    Once such runs have lost more time than the runs before them have saved, the next requests run on one thread: 8, and
    up to 64 as long as the run after them is slow again.

    Args:
        session: The session.
        one_s: Seconds of a run on one thread.

    Attributes:
        session: The session.
    """

    def __init__(self, session: Any, one_s: float) -> None:
        self.session = session
        self._one_s = one_s
        self._saved_s = 0.0  # by recent runs, compared with one thread
        self._left = 0  # requests that run on one thread before the next one that does not
        self._pause = FIRST_PAUSE

    def is_due(self) -> bool:
        """Whether a request that is alone should run in this session. Call it once for each such request."""
        if self._left:
            self._left -= 1
            return False
        return True

    def run(self, names: Sequence[str], inputs: Tensors, options: Any) -> Any:
        """Run the session.

        Args:
            names: The outputs to return.
            inputs: Tensors by name.
            options: onnxruntime's ``RunOptions``, or None.

        Returns:
            The outputs, in the order of ``names``.
        """
        started = time.perf_counter()
        answer = self.session.run(names, dict(inputs), options)
        self.note(time.perf_counter() - started)
        return answer

    def note(self, seconds: float) -> None:
        """Pause if recent runs took longer than on one thread.

        Args:
            seconds: The duration of a run.
        """
        self._saved_s = min(self._saved_s + self._one_s - seconds, MAX_SAVED * self._one_s)
        if self._saved_s < 0:
            self._left, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            self._saved_s = 0.0
        elif seconds <= self._one_s:
            self._pause = FIRST_PAUSE
