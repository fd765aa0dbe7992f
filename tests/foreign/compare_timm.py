"""The configurations of timm's pretrained networks, and how far the pixels that certify reads from them are.

In an environment with timm, with the repository on the path:

    pip install timm torch torchvision simplejpeg onnx onnxruntime
    PYTHONPATH=. python tests/foreign/compare_timm.py PHOTOS

A line says which combination of values is refused, or has other pixels than timm's own transform; the last one says how
many have the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from evalmode.certification.found.facts import Fact, choose_facts
from evalmode.certification.found.found import to_resize
from evalmode.certification.found.place import Place
from evalmode.certification.found.timm import read_timm
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract
from evalmode.images.pixels import decode_image
from evalmode.limits import OWN_IMAGES

PHOTOS = 5
KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def list_configurations() -> list[dict[str, Any]]:
    """The distinct values of all pretrained networks."""
    found = {}
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name).to_dict()
        values = {key: config[key] for key in KEYS}
        found[json.dumps(values)] = values
    return list(found.values())


def read_saved(config: Mapping[str, Any]) -> dict[str, Fact]:
    """Save a configuration, and read the facts of its file."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
        return choose_facts(read_timm(Place(path / "model.onnx", path)), {})


def compare(config: dict[str, Any], facts: Mapping[str, Fact], photos: list[Path]) -> float:
    """The largest difference of a pixel, in levels of 0 to 255."""
    contract = PixelContract(*facts["size"].value, 3, to_resize(facts))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config))
    mean, std = (np.array(facts[name].value) for name in ("mean", "std"))
    largest = 0.0
    for photo in photos:
        values = transform(Image.open(photo).convert("RGB")).numpy().transpose(1, 2, 0)
        pixels = decode_image(photo.read_bytes(), contract, OWN_IMAGES)
        largest = max(largest, float(np.abs((values * std + mean) * 255 - pixels).max()))
    return largest


def main() -> None:
    """Print what differs, and how many are the same."""
    torch.set_num_threads(1)
    photos = sorted(path for path in Path(sys.argv[1]).glob("*/*") if path.is_file())
    photos = photos[:: max(1, len(photos) // PHOTOS)]
    configs, same = list_configurations(), 0
    for config in configs:
        try:
            largest = compare(config, read_saved(config), photos)
            same += largest < 0.5
            if largest >= 0.5:
                print(config, f"{largest:.1f} levels", flush=True)
        except UsageError as error:
            print(config, f"refused: {str(error).partition(': ')[2]}", flush=True)
    print(f"timm {timm.__version__}: {same} of {len(configs)} have the same pixels")


if __name__ == "__main__":
    main()
