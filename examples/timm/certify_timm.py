"""A network of timm, trained by your own loop, becomes a certified artifact: python certify_timm.py PHOTOS MODELS.

PHOTOS holds train/LABEL/PHOTO and test/LABEL/PHOTO. The artifact is published as MODELS/timm. The network has random
weights here, so that nothing is downloaded; pass pretrained=True and another name for a real one.
Needs the extras serve, train and timm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor, nn

import evalmode

SIDE, EPOCHS = 64, 8


def read(folder: Path, labels: list[str], transform: nn.Module) -> tuple[Tensor, Tensor]:
    """The photos of a folder, as timm prepares them, and the index of each label."""
    paths = sorted(folder.glob("*/*"))
    images = [transform(Image.open(path).convert("RGB")) for path in paths]
    return torch.stack(images), torch.tensor([labels.index(path.parent.name) for path in paths])


def train(network: nn.Module, images: Tensor, targets: Tensor) -> None:
    """A plain loop, which ends in eval mode."""
    optimizer = torch.optim.AdamW(network.parameters(), 0.003)
    network.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(16):
            loss = nn.functional.cross_entropy(network(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


def main() -> None:
    """Train, certify with timm's own preprocessing, and publish."""
    photos, models = map(Path, sys.argv[1:])
    labels = sorted(path.name for path in (photos / "train").iterdir())
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=len(labels))
    config = {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "interpolation": "bicubic"}
    config = timm.data.resolve_data_config(config, model=network)
    train(network, *read(photos / "train", labels, timm.data.create_transform(**config)))
    certified = evalmode.certify(
        network,
        photos / "test",
        labels,
        evalmode.Preprocessing((0, 1), mean=config["mean"], std=config["std"]),
        contract=evalmode.PixelContract(  # what timm's transform does
            SIDE, SIDE, 3, evalmode.Resize(1.0, "bicubic", jpeg_scaling=False, keeps_exact_size=False)
        ),
    )
    [agreement] = certified.references
    print(f"accuracy {certified.quality.accuracy:.4f} of {certified.quality.images} photos")
    print(f"timm and ONNX Runtime differ by {agreement.largest_difference:.0e} at most")
    print(certified.publish(models, "timm"))


if __name__ == "__main__":
    main()
