"""Networks that the user provides: imported, called, and checked; errors in their code become one line."""

from __future__ import annotations

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from socket import gaierror
from types import FrameType
from typing import TYPE_CHECKING
from urllib.error import URLError

import torch
from torch import Tensor, nn

from evalmode.errors import EvalmodeError
from training.errors import NetworkError
from training.networks.architecture import Architecture

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.recipe import Recipe


def _fit_recipe(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Use the defaults, which are the lecture's, without dropout: the network has its own dropout or none."""
    return replace(recipe, dropout=0.0)


_TRAINING = Path(__file__).parents[1]
_PACKAGES = tuple(f"{_TRAINING.with_name(name)}/" for name in ("evalmode", "serving", "training"))


def _build(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> nn.Module:
    """Build a network by calling the user's function, which chooses its own number of filters and dropout.

    Raises:
        NetworkError: The function cannot be imported or called, it raises an error, or it returns something other than
            a module with parameters.
    """
    height, width, channels = shape
    network = _call_function(name, _import_function(name), (channels, height, width, classes))
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    if not list(network.parameters()):
        raise NetworkError(f"{name} returned a network without parameters: there is nothing to learn")
    return network


OWN = Architecture(nn.Module, _build, _fit_recipe, options=frozenset())


def _import_function(name: str) -> Callable[..., object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
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
                f"--network {name} takes {signature}, but it is called as function(channels, height, width, classes), "
                f"here with {arguments}"
            ) from error
    try:
        return function(*arguments)
    except NetworkError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise NetworkError(f"--network {name} fails when it builds the network: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """Describe an error that the user's code raised, in one line.

    Args:
        error: The error.

    Returns:
        Its message and place; for frequent causes also what to do.
    """
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"No module named {error.name!r}: install it, or check the spelling; your own modules are also searched in "
            "the working directory"
        )
    if any(isinstance(cause, URLError | ConnectionError | TimeoutError | gaierror) for cause in list_causes(error)):
        return (
            f"a download failed ({message or type(error).__name__}): without a network connection, put the weights "
            f"into {torch.hub.get_dir()}/checkpoints first"
        )
    where = _find_line(error)
    described = f"{type(error).__name__}{f': {message}' if message else ''}{f' ({where})' if where else ''}"
    if package := _find_broken_package(error):
        described = f"the Python package {package!r} cannot be imported: {described}"
        if package.startswith("torch"):
            described += f"; was it built for another torch than {torch.__version__}? Install the release that fits"
    return described


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the error that caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


@contextmanager
def explain_errors(name: str, where: str) -> Iterator[None]:
    """Turn every exception of a user's network into a `NetworkError` of one line; other exceptions pass.

    Args:
        name: The name of the network.
        where: Where it fails, in words to put after "fails".

    Raises:
        NetworkError: The code of the network, or a package that it calls, raised an exception.
    """
    try:
        yield
    except (EvalmodeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if ":" not in name or not _is_of_network(error):
            raise
        raise NetworkError(f"--network {name} fails {where}: {explain(error)}") from error


def _is_of_network(error: BaseException) -> bool:
    """Whether the user's code raised an error, or a package such as torch that runs the network."""
    if _find_line(error):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]  # a network may consist of torch's own modules
    return isinstance(error, Exception) and not isinstance(error, OSError) and not last.filename.startswith(_PACKAGES)


def _find_broken_package(error: BaseException) -> str:
    """Return the package whose import by the user's code failed, such as torchvision; "" for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    imported = [_name_package(frame) for frame in frames if frame.f_code.co_name == "<module>"]
    own = [_name_package(frame) for frame in frames if _is_own(frame.f_code.co_filename)]
    return imported[-1] if imported and imported[-1] not in own[:1] else ""


def _name_package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _find_line(error: BaseException) -> str:
    """Return the file and line of the user's code that raised an error; "" if another package raised it."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def _is_own(path: str) -> bool:
    """Whether a file is the user's: not evalmode's, not Python's, and not installed."""
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    return not path.startswith((*installed, *_PACKAGES, "<"))


def check_network(name: str, network: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Run a network in eval mode, and check that it returns logits: its code may have changed since it was trained.

    Args:
        name: The name of the network, for messages.
        network: The network, on the CPU; it is left in eval mode.
        shape: Height, width and channels of the images.
        classes: The number of labels.

    Raises:
        NetworkError: It fails, or it does not return a float32 tensor (N, classes).
    """
    height, width, channels = shape
    images = torch.zeros((2, channels, height, width))
    with explain_errors(name, f"in eval mode on images of shape {tuple(images.shape)}"), torch.no_grad():
        network.eval()  # not chained to the call: train() of a user's network may return None
        logits = network(images)
    check_logits(name, logits, tuple(images.shape), classes, "")


def check_logits(name: str, logits: object, shape: tuple[int, ...], classes: int, mode: str) -> None:
    """Check that a network returns logits that can be trained on.

    Args:
        name: The name of the network, for messages.
        logits: What it returned.
        shape: The shape of the images that were passed to it, (N, C, H, W).
        classes: The number of labels.
        mode: The mode of the network, as words to put before "returns"; "" for eval mode.

    Raises:
        NetworkError: It did not return a float32 tensor (N, classes).
    """
    wanted = f"for images of shape {shape}, not float32 {(shape[0], classes)}"
    if not isinstance(logits, Tensor):
        hint = "; auxiliary outputs are not trained: return the logits alone" if mode else ""
        raise NetworkError(f"{name} {mode}returns {type(logits).__name__} {wanted}{hint}")
    if logits.shape != (shape[0], classes) or logits.dtype != torch.float32:
        raise NetworkError(f"{name} {mode}returns {logits.dtype} {tuple(logits.shape)} {wanted}")
