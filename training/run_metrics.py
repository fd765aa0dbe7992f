"""The figures of a run: ``metrics.jsonl`` holds a line for each epoch, and at the end one for the result."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalmode.files import naming, write_atomically
from training.errors import RunError


@dataclass(frozen=True)
class Result:
    """The result of a training, measured with exact batch norm statistics.

    Attributes:
        best_epoch: Number of the epoch whose weights the run keeps, from 1; 0 if only the head was trained.
        exact_val_accuracy: Accuracy on the validation images.
        corrections: A ``Correction`` for each recomputed batch norm layer, as JSON values.
        test_accuracy: Accuracy on the test images.
        stages: The ``StageFigures`` of a pretrained network, as JSON values.
        cross_validated: Cross-validated accuracy of heads on the features of all images, as JSON values; None if it was
            not measured.
        finished: When the training ended, in UTC, as ISO 8601; None if the run was recorded without it. Results are
            compared without it.
    """

    best_epoch: int
    exact_val_accuracy: float
    corrections: list[dict[str, Any]]
    test_accuracy: float
    stages: list[dict[str, Any]] = field(default_factory=list)
    cross_validated: dict[str, Any] | None = None
    finished: str | None = field(default=None, compare=False)


def state_time() -> str:
    """Return the current time in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunMetrics:
    """The file ``metrics.jsonl`` of a run folder.

    Args:
        path: Path of the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, epoch: int) -> None:
        """Delete the lines after an epoch, and an incomplete last line.

        Args:
            epoch: The last epoch to keep; 0 deletes all lines.

        Raises:
            OSError: The file cannot be read or written.
        """
        path = self._path
        lines = path.read_text("utf-8").splitlines(keepends=True) if epoch and path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line).get("epoch", epoch + 1) <= epoch]
        write_atomically(path, "".join(kept))

    def append(self, figures: dict[str, Any]) -> None:
        """Append a JSON object and flush it to the disk."""
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Read all lines.

        Raises:
            RunError: The file is missing or damaged.
        """
        try:
            lines = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise RunError(f"{self._path} cannot be read: {error}") from error
        if not all(isinstance(line, dict) for line in lines):
            raise RunError(f"{self._path} cannot be read: a line is not a JSON object")
        return lines

    def read_result(self) -> Result:
        """Read the result of the training from the last line.

        Raises:
            RunError: The training is not finished, or the file is damaged.
        """
        try:
            return Result(**json.loads(self._path.read_text("utf-8").splitlines()[-1]))
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise RunError(
                f"{self._path} holds no result: the training is not finished, --resume continues it"
            ) from error
