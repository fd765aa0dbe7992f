"""Read ``.npz`` files of arrays that users wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalmode.certification.onnx_files import first_line
from evalmode.errors import UsageError


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a file. Nothing is unpickled.

    Args:
        path: The file.

    Returns:
        The arrays by name, each with at least one dimension.

    Raises:
        UsageError: The file is something else, or damaged.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            return {str(name): np.atleast_1d(array) for name, array in archive.items()}
        except Exception as error:  # numpy, zipfile, zlib and tokenize raise a dozen types for damaged headers
            raise UsageError(f"{path} is not an .npz of arrays, or a damaged one: {first_line(error)}") from error
