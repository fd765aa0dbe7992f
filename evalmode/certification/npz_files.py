"""Read ``.npz`` files of arrays that users wrote."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalmode.certification.onnx_files import first_line
from evalmode.errors import EvalmodeError, UsageError

MAX_BYTES = 2**31  # of all arrays


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a file. Nothing is unpickled.

    Args:
        path: The file.

    Returns:
        The arrays by name, each with at least one dimension.

    Raises:
        UsageError: The file is something else, damaged, or larger than ``MAX_BYTES`` when it is unpacked.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                size = sum(member.file_size for member in members.infolist())
            if size > MAX_BYTES:
                raise UsageError(f"{path} holds {size:,} bytes of arrays, the limit is {MAX_BYTES:,}: leave some out")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            return {str(name): np.atleast_1d(array) for name, array in archive.items()}
        except (EvalmodeError, OSError):
            raise
        except Exception as error:  # a damaged header may raise a dozen types, also MemoryError
            raise UsageError(f"{path} is not an .npz of arrays, or a damaged one: {first_line(error)}") from error
