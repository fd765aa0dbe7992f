"""Torch modules of the user become certified artifacts that answer as the modules do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import evalmode
from evalmode.errors import GoldenMismatch, ReferenceMismatch, UsageError
from training.errors import ModuleInTrainMode, NetworkError

LABELS = ("blue", "green", "red")
CONTRACT = evalmode.PixelContract(24, 32, 3, evalmode.Resize(0.875, "bicubic", jpeg_scaling=False))
PREPROCESSING = evalmode.Preprocessing((0, 1), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), bgr=True)


class Colours(nn.Module):
    """Convolution, batch norm with statistics of its own, dropout; the mean of each channel decides."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            self.convolution.weight.mul_(0.1).add_(torch.eye(3).reshape(3, 3, 1, 1))
            self.norm.weight.copy_(torch.tensor([2.0, 3.0, 4.0]))
        self.norm.running_mean = torch.tensor([0.1, -0.2, 0.3])
        self.norm.running_var = torch.tensor([2.0, 3.0, 4.0])

    def forward(self, image: Tensor) -> Tensor:
        return self.dropout(self.norm(self.convolution(image))).mean((2, 3))


class InAStructure(Colours):
    """Returns several tensors in a dictionary."""

    def forward(self, image: Tensor) -> Any:
        return {"logits": super().forward(image), "features": image.mean((2, 3), keepdim=True)[:, :2]}


class Separate(Colours):
    """Judges each label by itself."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image).sigmoid()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images of odd sizes in each of three colours, in a folder per label."""
    rng = np.random.default_rng(0)
    for channel, label in ((2, "blue"), (1, "green"), (0, "red")):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 100, (40 + 7 * index, 61, 3))
            pixels[..., channel] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / label / f"{index}.jpg")
    return tmp_path / "images"


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    """A module in eval mode, its weights drawn with a seed."""
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", [Colours, InAStructure, Separate])
def test_a_module_is_exported_certified_and_compared_with_itself(
    kind: Callable[[], nn.Module], images: Path, tmp_path: Path
) -> None:
    module = make(kind)
    certified = evalmode.certify(module, images, LABELS, PREPROCESSING, contract=CONTRACT)
    assert certified.quality.accuracy == 1
    assert (certified.contract, certified.layout) == (CONTRACT, "NCHW")
    (reference,) = certified.references
    assert (reference.source, reference.images) == (f"torch {torch.__version__}", 18)
    assert reference.largest_difference < 1e-5
    model = evalmode.load(certified.publish(tmp_path / "models", "colours"))
    assert model.predict(images / "red" / "0.jpg").label == "red"
    assert not any(one.requires_grad and one.grad is not None for one in module.parameters())


def test_a_module_in_half_precision_keeps_its_answers(images: Path) -> None:
    certified = evalmode.certify(make(Colours).half(), images, LABELS, PREPROCESSING, contract=CONTRACT)
    assert certified.quality.accuracy == 1


def test_a_part_in_train_mode_is_rejected_by_name(images: Path) -> None:
    module = make(Colours)
    module.get_submodule("norm").train()
    with pytest.raises(ModuleInTrainMode, match=r"^not in eval mode: norm; .* Call its eval\(\) first$"):
        evalmode.certify(module, images, LABELS, PREPROCESSING, contract=CONTRACT)


def test_all_that_a_module_does_not_state_is_requested_at_once(images: Path) -> None:
    with pytest.raises(UsageError, match=r"^a torch module states no labels, preprocessing, contract: pass them$"):
        evalmode.certify(make(Colours), images)


def test_a_module_that_returns_no_scores_of_the_labels_is_rejected(images: Path) -> None:
    with pytest.raises(UsageError, match=r"returns \(1, 3\) for 1 images: .* each of 2 labels"):
        evalmode.certify(make(Colours), images, LABELS[:2], PREPROCESSING, contract=CONTRACT)


def test_an_error_of_the_module_is_one_line(images: Path) -> None:
    grey = evalmode.PixelContract(24, 32, 1)
    with pytest.raises(NetworkError, match=r"Colours fails on images \(1, 1, 24, 32\): "):
        evalmode.certify(make(Colours), images, LABELS, evalmode.Preprocessing((0, 1)), contract=grey)


def test_a_mean_for_each_of_other_channels_is_an_error_of_the_mean(images: Path) -> None:
    grey, preprocessing = evalmode.PixelContract(24, 32, 1), evalmode.Preprocessing((0, 1), mean=(0.1, 0.2, 0.3))
    with pytest.raises(UsageError, match="--mean has 3 numbers: expected 1"):
        evalmode.certify(make(Colours), images, LABELS, preprocessing, contract=grey)


@pytest.mark.parametrize("network", [{}, nn.Module])
def test_another_object_is_named_by_its_type(network: object, images: Path) -> None:
    with pytest.raises(UsageError, match=r"^network is a builtins\.(dict|type): expected an ONNX file, a folder"):
        evalmode.certify(network, images)


def test_a_branch_on_values_is_explained(images: Path) -> None:
    class Branch(Colours):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) if image.mean() > 0 else super().forward(-image)

    with pytest.raises(NetworkError, match="Branch cannot be exported to ONNX: its code branches on the values"):
        evalmode.certify(make(Branch), images, LABELS, PREPROCESSING, contract=CONTRACT)


def test_a_module_that_is_no_better_than_guessing_does_not_prove_its_own_preprocessing(images: Path) -> None:
    """The module is run with the preprocessing that was stated, so a wrong one agrees with itself."""
    wrong = LABELS[1:] + LABELS[:1]
    with pytest.raises(GoldenMismatch, match=r"3 labels: are --labels, --scale, --mean, --std and --bgr right\? To"):
        evalmode.certify(make(Colours), images, wrong, PREPROCESSING, contract=CONTRACT)


def test_a_module_that_is_exported_as_something_else_is_rejected_by_that_name(images: Path) -> None:
    """Both are given the same pixels: neither the resize nor the decoder can be the cause."""

    class Other(Colours):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * (-1 if torch.compiler.is_exporting() else 1)

    with pytest.raises(ReferenceMismatch, match=r"change: both have the same pixels, so the export to ONNX computes"):
        evalmode.certify(make(Other), images, LABELS, PREPROCESSING, contract=CONTRACT)


def test_bgr_is_stated_once(images: Path) -> None:
    contract = evalmode.PixelContract(24, 32, 3, channel_order="BGR")
    with pytest.raises(UsageError, match="the pixel contract states BGR already"):
        evalmode.certify(make(Colours), images, LABELS, PREPROCESSING, contract=contract)
