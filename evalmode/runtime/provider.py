"""Execution providers: where a network runs, and what follows from that.

To add a provider, add a row to ``PROVIDERS``. Nothing at the top of this module needs onnxruntime, since the command
line of the bare install reads the names, too.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalmode.errors import ProviderUnavailable
from evalmode.limits import LARGEST_BATCH

log = logging.getLogger(__name__)

AUTO = "auto"  # the first other provider that is available, else the CPU


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: Its name in logs, metrics and replies.
        open_session: Opens a session on this provider alone: (artifact, threads, arena) -> session. Raises
            ``ProviderUnavailable`` if the provider is not available.
        replay_sizes: The batch sizes in which golden inputs are replayed when an artifact is loaded.
        is_reference: Whether artifacts are certified on this provider. On others sums are ordered differently, so the
            largest tolerance applies, and batches are allowed although they give other bits.
        max_slots: The number of inferences that may run at the same time; 0 for one per CPU.
        is_gpu: Whether the network runs on a GPU.
    """

    name: str
    open_session: Callable[[bytes, int, bool], Any]
    replay_sizes: tuple[int, ...]
    is_reference: bool = False
    max_slots: int = 0
    is_gpu: bool = False


def _open_cpu(artifact: bytes, threads: int, arena: bool) -> Any:
    from evalmode.runtime.session import open_cpu_session

    return open_cpu_session(artifact, threads, arena=arena)


def _open_cuda(artifact: bytes, threads: int, arena: bool) -> Any:
    """Open a session on CUDA alone; onnxruntime would silently fall back to the CPU."""
    from evalmode.runtime.session import make_session_options, ort

    cuda = "CUDAExecutionProvider"
    if cuda not in ort.get_available_providers():
        raise ProviderUnavailable(
            "this onnxruntime is built without CUDA: install 'evalmode[serve-cuda]' in place of 'evalmode[serve]'"
        )
    ort.preload_dlls()
    missing = find_missing_library(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
    if missing:
        raise ProviderUnavailable(f"onnxruntime's CUDA provider does not load: {missing}", missing=missing)
    options = make_session_options(threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(artifact, options, providers=[(cuda, {"use_tf32": "0"})])
    except Exception as error:  # onnxruntime's own exceptions have no common base class
        raise ProviderUnavailable(f"onnxruntime cannot open a session on {cuda}: {error}") from error
    if session.get_providers()[0] != cuda:
        raise ProviderUnavailable(f"onnxruntime chose {session.get_providers()[0]} instead of {cuda}: no usable GPU?")
    return session


def find_missing_library(provider_library: Path) -> str | None:
    """Load the libraries of the CUDA provider, and its driver.

    Args:
        provider_library: The path of ``libonnxruntime_providers_cuda.so``.

    Returns:
        The dynamic loader's message about the first library that is missing; None if none is.
    """
    for library in (provider_library.with_name("libonnxruntime_providers_shared.so"), provider_library, "libcuda.so.1"):
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return str(error)
    return None


CUDA = Provider(
    "CUDA",
    _open_cuda,
    replay_sizes=tuple(range(1, LARGEST_BATCH + 1)),  # each size has kernels of its own
    max_slots=1,  # larger batches fill a GPU better than several at the same time
    is_gpu=True,
)
CPU = Provider("CPU", _open_cpu, replay_sizes=(LARGEST_BATCH,), is_reference=True)
PROVIDERS = {"cpu": CPU, "cuda": CUDA}  # by the names that users choose
CHOICES = (*PROVIDERS, AUTO)


def open_session(artifact: bytes, choice: str, threads: int, arena: bool) -> tuple[Any, Provider]:
    """Open a session on the chosen provider, never silently on another.

    Args:
        artifact: The bytes of an ONNX file.
        choice: One of ``CHOICES``.
        threads: Threads that one inference may use.
        arena: Whether memory is kept between runs.

    Returns:
        The session, and the provider that it runs on.

    Raises:
        ProviderUnavailable: The chosen provider is not available.
    """
    if choice != AUTO:
        return PROVIDERS[choice].open_session(artifact, threads, arena), PROVIDERS[choice]
    for provider in (one for one in PROVIDERS.values() if one is not CPU):
        try:
            return provider.open_session(artifact, threads, arena), provider
        except ProviderUnavailable as error:
            log.warning("provider auto: %s is not used, because %s", provider.name, error)
    return CPU.open_session(artifact, threads, arena), CPU
