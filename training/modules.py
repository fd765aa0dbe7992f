"""Certify torch modules that evalmode did not train.

Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from evalmode.artifact.tensors import Floats
from evalmode.certification.certified import CertifiedClassifier
from evalmode.certification.foreign import FilePath, certify_found, state_facts
from evalmode.certification.found.facts import choose_facts, list_pixel_facts
from evalmode.certification.found.found import FoundNetwork, Library
from evalmode.certification.preprocessing import ClassifierOptions, Preprocessing
from evalmode.errors import UsageError
from evalmode.images.pixels import PixelContract, Pixels
from training.errors import NetworkError
from training.networks import explain
from training.onnx_export import check_eval_mode, convert, explain_export

BATCH = 32  # images that the module runs at once


class Scored(nn.Module):
    """A module that returns its scores of labels alone, float32.

    Args:
        module: Returns a tensor, or a structure of tensors of which one has a value for each label.
        labels: K.
    """

    def __init__(self, module: nn.Module, labels: int) -> None:
        super().__init__()
        self.module = module
        self.labels = labels

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) of the module's type -> logits or probabilities, float32 (N, K).

        Raises:
            UsageError: No tensor of the module, or several, have a value for each label.
        """
        tensors = [one for one in tree_leaves(self.module(image)) if isinstance(one, Tensor)]
        found = [one for one in tensors if one.ndim > 1 and one[0].numel() == self.labels]
        if len(found) != 1:
            shapes = ", ".join(str(tuple(one.shape)) for one in tensors) or "no tensor"
            raise UsageError(
                f"the module returns {shapes} for {len(image)} images: expected one tensor with a value for each of "
                f"{self.labels} labels; wrap it in a module that returns only its logits"
            )
        return found[0].flatten(1).float()


def certify_module(
    module: nn.Module,
    images: FilePath,
    labels: FilePath | Sequence[str] | None,
    preprocessing: Preprocessing | None,
    contract: PixelContract | None,
    options: ClassifierOptions,
) -> CertifiedClassifier:
    """Export a torch module, certify it, and compare it with the module itself, see ``evalmode.certify``.

    Args:
        module: An image classifier in eval mode, (N, C, H, W) to logits or probabilities; it is not changed.
        images: Labelled images: a folder ``<label>/<image>``, or a table of files and labels.
        labels: K labels in the order of the module's output, or a text file of them, one a line.
        preprocessing: The preprocessing that the module expects.
        contract: The pixels that it takes.
        options: How it is certified.

    Returns:
        The artifact, and how good it is on the images.

    Raises:
        DataError: A table does not fit its images or the labels.
        UsageError: An argument is missing or cannot be used, or the module returns no scores of the labels.
        ModuleInTrainMode: A part of the module is in train mode.
        NetworkError: The module fails, or the exporter cannot export it.
        ProofFailed: The network did not pass a check.
    """
    given = {"labels": labels, "preprocessing": preprocessing, "contract": contract}
    if missing := [name for name, value in given.items() if value is None]:
        raise UsageError(f"a torch module states no {', '.join(missing)}: pass {'it' if len(missing) == 1 else 'them'}")
    assert preprocessing is not None and contract is not None  # noqa: PT018  for mypy
    if options.output:
        raise UsageError(f"output is {options.output!r}: a torch module has no names of outputs, leave it out")
    preprocessing.to_transform(contract, takes_bytes=False)  # raises if they do not fit together
    name = type(module).__name__
    check_eval_mode(module, "Call its eval() first")
    facts = choose_facts((), {**state_facts(labels, preprocessing), **list_pixel_facts(contract)})
    scored = Scored(_copy_to_cpu(module), len(facts["labels"].value)).eval()
    run = partial(_run, scored, name, preprocessing)
    height, width, channels = contract.shape
    run(
        np.zeros((1, height, width, channels), np.uint8)
    )  # an error of the module itself is clearer than the exporter's
    with explain_export(name):
        graph = convert(scored, torch.zeros((2, channels, height, width), dtype=_find_dtype(scored)), ["scores"])
    found = FoundNetwork(name, graph, facts, contract=contract, library=Library(f"torch {torch.__version__}", run))
    return certify_found(found, images, options, warnings.warn)


def _copy_to_cpu(module: nn.Module) -> nn.Module:
    """The module itself if it is on the CPU, otherwise a copy."""
    if all(one.device.type == "cpu" for one in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).cpu()


def _find_dtype(module: nn.Module) -> torch.dtype:
    """The type of the module's weights."""
    return next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)


@torch.no_grad()
def _run(scored: Scored, name: str, preprocessing: Preprocessing, pixels: Pixels) -> Floats:
    """Run a module on pixels, uint8 (N, H, W, C), and return its scores, float32 (N, K)."""
    low, high = preprocessing.scale
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    batches = []
    for start in range(0, len(pixels), BATCH):
        batch = torch.from_numpy(pixels[start : start + BATCH]).permute(0, 3, 1, 2)
        floats = ((batch.flip(1) if preprocessing.bgr else batch) / 255 * (high - low) + low - mean) / std
        try:
            batches.append(scored(floats.to(_find_dtype(scored))))
        except (UsageError, MemoryError):
            raise
        except Exception as error:  # the user's code may raise anything
            raise NetworkError(f"{name} fails on images {tuple(floats.shape)}: {explain(error)}") from error
    return torch.cat(batches).numpy()
