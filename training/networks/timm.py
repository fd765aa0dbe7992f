"""Networks of timm, the library of pretrained image networks: ``timm:NAME``.

Shapes: N images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import hashlib
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalmode.images.pixels import Resize
from evalmode.images.resizing import INTERPOLATIONS
from training.errors import NetworkError
from training.networks.architecture import Architecture, NetworkInput
from training.networks.backbone import Backbone, check_backbone, fit_transfer_recipe
from training.networks.failures import explain
from training.networks.pretrained import PretrainedNetwork
from training.networks.timm_stages import Whole, find_cut, make_images, split
from training.networks.weights import fill, read_weights

PREFIX = "timm:"
OPERATORS = ("nms", "qnms")  # of torchvision's library, for object detection; it cannot be imported without them


def _build(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> PretrainedNetwork:
    return _attach_head(name, _create(name, pretrained=False), shape, classes, dropout)


def _describe_input(name: str) -> NetworkInput:
    """Read the images of the pretraining from timm's table; they are always centre-cropped.

    Raises:
        NetworkError: timm resizes them by a method that evalmode does not have.
    """
    config = _read_config(name)
    if config["interpolation"] not in INTERPOLATIONS:
        raise NetworkError(
            f"--network {name} resizes images by {config['interpolation']!r}, which is not supported: "
            f"{', '.join(INTERPOLATIONS)} are"
        )
    _, height, width = config["input_size"]
    crop_ratio = height / math.floor(height / config["crop_pct"])  # timm rounds the resized side down
    return NetworkInput((height, width), Resize(crop_ratio, config["interpolation"]))


def _load_weights(network: PretrainedNetwork, name: str, weights: Path | None) -> str:
    """Load the weights of timm's hub, or a file with timm's names.

    Raises:
        NetworkError: They cannot be downloaded or read, or they are of another network.
    """
    cut = find_cut(_create(name, pretrained=False), _read_config(name)["input_size"][1:])
    model = _create(name, pretrained=weights is None)
    if weights is None:
        digest = hashlib.sha256()
        for tensor in model.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        description = f"{name} of timm {_import_timm(name).__version__} sha256:{digest.hexdigest()}"
    else:
        tensors, description = read_weights(weights)
        fill(model, tensors, f"{weights} does not hold the weights of {name}")
    stages, pool = split(model, cut)
    network.stages.load_state_dict(nn.ModuleList(stages).state_dict())
    network.pool.load_state_dict(pool.state_dict())
    return description


TIMM = Architecture(
    PretrainedNetwork,
    _build,
    fit_transfer_recipe,
    options=frozenset({"dropout"}),
    describe_input=_describe_input,
    load_weights=_load_weights,
)


def _import_timm(name: str) -> Any:
    """Import timm, also beside a torchvision whose library is built for another torch: timm does not use it.

    PyPI has torchvision for CUDA alone, and its library cannot be loaded by torch for the CPU.

    Raises:
        NetworkError: timm or a package that it needs is not installed, or cannot be imported.
    """
    try:
        try:
            import timm
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for operator in OPERATORS:
                torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float limit) -> Tensor")
            import timm
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"--network {name} needs the Python package {error.name!r}: pip install 'evalmode[serve,train,timm]'"
        ) from error
    except Exception as error:  # an incompatible torchvision raises a dozen types
        raise NetworkError(f"--network {name}: timm cannot be imported: {explain(error)}") from error
    return timm


def _read_config(name: str) -> dict[str, Any]:
    """Read from timm's table how the images of the pretraining were made.

    Raises:
        NetworkError: timm has no network of this name.
    """
    timm, model = _import_timm(name), name.removeprefix(PREFIX)
    known = [*timm.list_models(), *timm.list_pretrained()]
    if model not in known:
        similar = ", ".join(PREFIX + one for one in get_close_matches(model, known)) or "timm.list_models() lists them"
        raise NetworkError(f"timm {timm.__version__} has no network {model!r}: {similar}")
    config: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    return config


def _create(name: str, pretrained: bool) -> nn.Module:
    """Create a model without its classifier.

    Raises:
        NetworkError: There is no such model, or its weights cannot be downloaded.
    """
    _read_config(name)
    try:
        model: nn.Module = _import_timm(name).create_model(name.removeprefix(PREFIX), pretrained, num_classes=0)
    except Exception as error:  # the hub's client raises a dozen types
        if not pretrained:
            raise NetworkError(f"--network {name} cannot be built: {explain(error)}") from error
        raise NetworkError(
            f"the weights of {name} cannot be downloaded: {explain(error)}. Give --weights FILE, its model.safetensors "
            "from Hugging Face"
        ) from error
    return model.eval()


def _attach_head(
    name: str, model: nn.Module, shape: tuple[int, int, int], classes: int, dropout: float
) -> PretrainedNetwork:
    """Build the network of a model with a new head.

    Raises:
        NetworkError: The model does not take images of this shape, or has no features of the form (N, D).
    """
    config = _read_config(name)
    _, height, width = config["input_size"]
    try:
        with torch.no_grad():
            features = Whole(model)(make_images(shape[:2]))
    except Exception as error:  # models raise a dozen types for sizes that they do not support
        raise NetworkError(
            f"--network {name} does not take images of {shape[0]}x{shape[1]}, it is made for {height}x{width}: "
            f"{explain(error)}"
        ) from error
    stages, pool = split(model, find_cut(model, (height, width)))
    backbone = Backbone(stages, features.shape[-1], config["mean"], config["std"], pool)
    network = backbone.attach_head(classes, dropout).eval()
    check_backbone(name, network, shape)
    return network.train()
