"""The networks that can be trained, by name: ours, and any that the user brings.

Shapes: N images, C channels, H height, W width, K classes. Pixels are (N, H, W, C), networks take (N, C, H, W).
"""

from __future__ import annotations

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gaierror
from types import FrameType
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from serving.errors import EvalmodeError
from training.errors import NetworkError
from training.networks.compact import Compact
from training.networks.reference import Reference

NETWORKS = {"compact": Compact, "reference": Reference}
_TRAINING = Path(__file__).parents[1]
_PACKAGES = tuple(f"{_TRAINING.with_name(name)}/" for name in ("training", "serving"))  # where evalmode's code lies


def scale_pixels(pixels_nhwc: Tensor) -> Tensor:
    """Pixels as the networks want them: uint8 (N, H, W, C) in 0..255 -> float32 (N, C, H, W) in [-1, 1]."""
    return pixels_nhwc.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def lay_out(network: nn.Module) -> None:
    """Give images' weights the layout in memory in which they train fastest: docs/performance.md."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:  # no other has such a layout
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def build_network(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> nn.Module:
    """Build a network, freshly initialised.

    Args:
        name: one of ``NETWORKS``, or ``package.module:function`` for the user's own. The function is called as
            ``function(channels, height, width, classes)`` and returns a module that turns float32 (N, C, H, W) in
            [-1, 1] into logits (N, K).
        shape: height, width and channels of the images.
        classes: labels.
        factor: of the number of filters; 1 for the user's own.
        dropout: share of units set to 0 in training; 0 for the user's own.

    Raises:
        NetworkError: no such network, images too small for it, or none that can be built.
    """
    height, width, channels = shape
    if name in NETWORKS:
        return NETWORKS[name](channels, height, width, classes, factor, dropout)
    if ":" not in name:
        raise NetworkError(f"no network {name!r}: choose {', '.join(NETWORKS)} or your own as package.module:function")
    network = _call_function(name, _import_function(name), (channels, height, width, classes))
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    if not list(network.parameters()):
        raise NetworkError(f"{name} returned a network without parameters: there is nothing to learn")
    return network


def _import_function(name: str) -> Callable[..., object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise NetworkError(f"--network {name} cannot be imported: {explain(error)}") from error
    if not callable(found):
        raise NetworkError(f"--network {name} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _call_function(name: str, function: Callable[..., object], arguments: tuple[int, int, int, int]) -> object:
    with suppress(ValueError, TypeError):  # builtins have no signature
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise NetworkError(
                f"--network {name} takes {signature}: it is called as function(channels, height, width, classes), "
                f"here with {arguments}"
            ) from error
    try:
        return function(*arguments)
    except NetworkError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise NetworkError(f"--network {name} fails when it builds the network: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """What went wrong in code that is not ours, in one line, with what to do where that is known."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"No module named {error.name!r}: install it, or check the spelling; modules of your own are looked for in "
            "the working directory, too"
        )
    if any(isinstance(cause, URLError | ConnectionError | TimeoutError | gaierror) for cause in list_causes(error)):
        return (
            f"a download failed ({said or type(error).__name__}): where there is no network, put the "
            f"weights into {torch.hub.get_dir()}/checkpoints first"
        )
    where = _find_line(error)
    told = f"{type(error).__name__}{f': {said}' if said else ''}{f' ({where})' if where else ''}"
    if package := _find_broken(error):
        told = f"the Python package {package!r} cannot be imported: {told}"
        if package.startswith("torch"):
            told += f"; was it built for another torch than {torch.__version__}? Install the release that fits"
    return told


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


@contextmanager
def explain_errors(name: str, where: str) -> Iterator[None]:
    """Turn whatever the code of a user's network raises into one line; other errors pass.

    Args:
        name: of the network.
        where: it fails, in words to put after the name.

    Raises:
        NetworkError: it raises.
    """
    try:
        yield
    except (EvalmodeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if name in NETWORKS or not _is_of_network(error):
            raise
        raise NetworkError(f"--network {name} fails {where}: {explain(error)}") from error


def _is_of_network(error: BaseException) -> bool:
    """Whether an error comes from a network's own code, or from what that calls, such as torch."""
    if _find_line(error):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]  # of a network that has no code of its own
    return isinstance(error, Exception) and not isinstance(error, OSError) and not last.filename.startswith(_PACKAGES)


def _find_broken(error: BaseException) -> str:
    """The package that fails when a network's code imports it, such as torchvision; "" if it is another failure."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    imported = [_name_package(frame) for frame in frames if frame.f_code.co_name == "<module>"]
    own = [_name_package(frame) for frame in frames if _is_own(frame.f_code.co_filename)]
    return imported[-1] if imported and imported[-1] not in own[:1] else ""


def _name_package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _find_line(error: BaseException) -> str:
    """The file and line of the user's code in which an error was raised; "" if none was."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def _is_own(path: str) -> bool:
    """Whether code is the user's own: neither evalmode's nor Python's nor installed."""
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    return not path.startswith((*installed, *_PACKAGES, "<"))


def check_network(name: str, network: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Run a network in eval mode, and refuse one whose code has changed since it was trained.

    Args:
        name: of the network.
        network: on the CPU.
        shape: height, width and channels of the images.
        classes: labels.

    Raises:
        NetworkError: it fails, or returns something else than logits.
    """
    height, width, channels = shape
    images = torch.zeros((2, channels, height, width))
    with explain_errors(name, f"in eval mode on images of shape {tuple(images.shape)}"), torch.no_grad():
        network.eval()  # apart from the call: a train() of the user's may return nothing
        logits = network(images)
    check_logits(name, logits, tuple(images.shape), classes, "")


def check_logits(name: str, logits: object, shape: tuple[int, ...], classes: int, mode: str) -> None:
    """Refuse what cannot be trained on.

    Args:
        name: of the network.
        logits: what it returned.
        shape: of the images that it was given, (N, C, H, W).
        classes: labels.
        mode: in which it is, in words to put before "returns"; "" for eval mode.

    Raises:
        NetworkError: it is no float32 tensor (N, classes).
    """
    wanted = f"for images of shape {shape}, not float32 {(shape[0], classes)}"
    if not isinstance(logits, Tensor):
        hint = "; auxiliary outputs are not trained on: return the logits alone" if mode else ""
        raise NetworkError(f"{name} {mode}returns {type(logits).__name__} {wanted}{hint}")
    if logits.shape != (shape[0], classes) or logits.dtype != torch.float32:
        raise NetworkError(f"{name} {mode}returns {logits.dtype} {tuple(logits.shape)} {wanted}")


def count_multiply_adds(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiplications with an addition that one image of a shape (height, width, channels) costs."""
    height, width, channels = shape
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()
        network(torch.zeros((1, channels, height, width), device=next(network.parameters()).device))
    return int(counter.get_total_flops()) // 2
