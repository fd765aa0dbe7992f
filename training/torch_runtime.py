"""Import torch, choose its device, and set up its process for training."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from training.errors import NetworkError, TorchUnusable

if TYPE_CHECKING:
    import torch

# OpenMP reads these variables when torch is imported. SPIN_COUNT is the number of iterations for which a waiting
# thread spins before it sleeps; the default of 300,000 is many times slower on cores that other processes use, too:
# docs/performance.md.
SPIN_COUNT_VARIABLE, WAIT_POLICY_VARIABLE = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
SPIN_COUNT = "10000"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65_536


def import_torch() -> None:
    """Import torch with threads that spin only briefly while they wait for each other.

    The environment is the same afterwards. Nothing is changed if torch was imported before, or if the user has set
    ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``.

    Raises:
        TorchUnusable: Torch is installed and cannot be imported.
        ModuleNotFoundError: Torch, or a package that it needs, is not installed.
    """
    decided = {SPIN_COUNT_VARIABLE, WAIT_POLICY_VARIABLE} & os.environ.keys()
    if not decided:
        os.environ[SPIN_COUNT_VARIABLE] = SPIN_COUNT
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a missing library, another build, another Python: each raises another type
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TorchUnusable(
            f"torch is installed and cannot be imported: {reason}. Install it again: pip install --force-reinstall "
            "torch"
        ) from error
    finally:
        if not decided:
            del os.environ[SPIN_COUNT_VARIABLE]


def choose_device(device: str) -> torch.device:
    """Choose the device to train on.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA if torch can use it.

    Returns:
        The device.

    Raises:
        NetworkError: ``cuda`` was requested and torch cannot use it.
    """
    import torch  # after `import_torch`

    if device == "cuda" and not torch.cuda.is_available():
        raise NetworkError(f"--device cuda: torch {torch.__version__} finds no usable GPU; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@contextmanager
def keep_memory() -> Iterator[None]:
    """Let glibc keep freed memory for the next training step inside the block: docs/performance.md.

    By default large arrays are returned to the system, and every page of the next one costs a page fault. Other C
    libraries are left as they are.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.malloc_trim(0)
