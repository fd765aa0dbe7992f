"""The image processors of transformers for classifiers, and how far the pixels that certify reads from their files are.

In an environment with transformers, with the repository on the path:

    pip install transformers torch torchvision simplejpeg onnx onnxruntime
    PYTHONPATH=. python tests/foreign/compare_processors.py PHOTOS

Each processor is saved with its own defaults, and with other values, read from the file, and compared on some photos. A
line says by how many levels of 0 to 255 a value differs at most, and how many do; or why the file is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from transformers.image_utils import load_image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from evalmode.certification.found.facts import Fact, choose_facts
from evalmode.certification.found.found import to_resize
from evalmode.certification.found.hugging_face import read_hugging_face
from evalmode.certification.found.place import Place
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract
from evalmode.images.pixels import decode_image
from evalmode.limits import OWN_IMAGES

PHOTOS = 15
CHANGED = {  # values of published networks that are not the defaults, by the start of the name
    "ConvNextImageProcessor": {"size": {"shortest_edge": 224}, "crop_pct": 0.95},
    "MobileViTImageProcessor": {"size": {"shortest_edge": 288}},
    "BitImageProcessor": {"size": {"shortest_edge": 256}},
    "CLIPImageProcessor": {"size": {"shortest_edge": 225}, "crop_size": {"height": 224, "width": 224}},
    "EfficientNetImageProcessor": {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_center_crop": True},
    "ViTImageProcessor": {"size": {"height": 240, "width": 160}, "resample": 1},
}


def list_processors() -> list[str]:
    """The names of the processors of all networks that classify images."""
    names = set()
    for network in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        found = IMAGE_PROCESSOR_MAPPING_NAMES.get(network) or ()
        names |= set(found.values() if isinstance(found, dict) else found) - {None}
    return sorted(names - {"TimmWrapperImageProcessor"})  # it has no file of its own


def read_saved(processor: Any) -> dict[str, Fact]:
    """Save a processor, and read the facts of its file."""
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return choose_facts(read_hugging_face(Place(Path(folder) / "model.onnx", Path(folder))), {})


def compare(processor: Any, facts: dict[str, Fact], photos: list[Path]) -> str:
    """Compare pixels in levels of 0 to 255."""
    contract = PixelContract(*facts["size"].value, 3, to_resize(facts))
    low, high = facts["scale"].value
    mean, std = (np.array(facts[name].value) for name in ("mean", "std"))
    largest, shares = 0.0, []
    for photo in photos:
        values = np.asarray(processor(images=load_image(str(photo)), return_tensors="pt")["pixel_values"][0])
        levels = (values.transpose(1, 2, 0) * std + mean - low) * 255 / (high - low)
        levels = levels[:, :, ::-1] if "bgr" in facts else levels
        differences = np.abs(levels - decode_image(photo.read_bytes(), contract, OWN_IMAGES))
        largest = max(largest, float(differences.max()))
        shares.append((differences > 0.5).mean())
    return f"{largest:.1f} levels at most, {100 * np.mean(shares):.2f}% of the values"


def main() -> None:
    """Print a line for each processor."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    photos = sorted(path for path in Path(sys.argv[1]).glob("*/*") if path.is_file())
    print(f"transformers {transformers.__version__}")
    for name in list_processors():
        changed = [values for start, values in CHANGED.items() if name.startswith(start)]
        for values in ({}, *changed):
            processor = getattr(transformers, name)(**values)
            try:
                found = compare(processor, read_saved(processor), photos[:: max(1, len(photos) // PHOTOS)])
            except UsageError as error:
                found = f"refused: {str(error).partition(': ')[2]}"
            print(name, values or "", found, flush=True)


if __name__ == "__main__":
    main()
