"""pixels.json: the pixels that other libraries make of images, and how far those of the pixel contract are from them.

In an environment with the libraries, with the repository on the path and 50 photos below a folder:

    pip install torch torchvision timm transformers ultralytics keras simplejpeg
    PYTHONPATH=. python tests/foreign/make_pixels.py PHOTOS
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import cv2
import keras
import numpy as np
import timm.data
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
import transformers
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from transformers import AutoImageProcessor  # noqa: F401 - it loads the lazy modules
from ultralytics.data.augment import LetterBox, classify_transforms

from evalmode.artifact.pixel_facts import write_contract
from evalmode.images.contract import PixelContract, Resize
from evalmode.images.pixels import decode_image
from evalmode.limits import OWN_IMAGES
from tests.foreign.pixel_images import draw_images

HERE = Path(__file__).parent
PHOTOS, PHOTO_SIDE = 50, 224
SIDE = 32  # of the small images
KEPT = ("97x61", "61x97")  # images whose pixels are kept where a library differs
PACKAGES = ("torchvision", "timm", "transformers", "ultralytics", "opencv-python", "keras", "pillow")

Apply = Callable[[Path], np.ndarray]
BRACES = str.maketrans("{}", "()", "'")  # the words are a format
PLAIN = Resize(jpeg_scaling=False, keeps_exact_size=False)


@dataclass(frozen=True)
class Case:
    """A transform of a library, and the contract for it.

    Attributes:
        library: Its name.
        transform: What is called, in words; {side} and {resized} are the cropped and the resized side.
        make: Makes the function from a file to pixels, for a side.
        contract: The contract for a side.
    """

    library: str
    transform: str
    make: Callable[[int], Apply]
    contract: Callable[[int], PixelContract]


def read_rgb(path: Path) -> Image.Image:
    """Read a picture as torchvision's, timm's and Keras' loaders do."""
    return Image.open(path).convert("RGB")


def read_tensor(path: Path) -> torch.Tensor:
    """Read a picture as a tensor, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(read_rgb(path))).permute(2, 0, 1)


def to_rows(tensor: torch.Tensor) -> np.ndarray:
    """uint8 (3, H, W) -> (H, W, 3)."""
    return tensor.permute(1, 2, 0).numpy()


def contract_of(
    resize: Resize, resized: Callable[[int], int] = lambda side: side, **rules: Any
) -> Callable[[int], PixelContract]:
    """Return a contract for any side; without the orientation and the transparency, as Pillow's ``convert`` reads."""
    rules = {"exif_orientation": False, "background": None, **rules}
    return lambda side: PixelContract(side, side, 3, replace(resize, crop_ratio=side / resized(side)), **rules)


def to_256(side: int) -> int:
    """256 for 224."""
    return side * 8 // 7


def list_torchvision() -> list[Case]:
    """Pictures by v1 and v2, and tensors with and without antialiasing."""
    cases = []

    def on_picture(module: Any, side: int, size: Any, mode: InterpolationMode) -> Apply:
        steps = v1.Compose([module.Resize(size(side), mode), module.CenterCrop(side)])
        return lambda path: np.asarray(steps(read_rgb(path)))

    def on_tensor(module: Any, side: int, mode: InterpolationMode, antialias: bool) -> Apply:
        step = module.Resize((side, side), mode, antialias=antialias)
        return lambda path: to_rows(step(read_tensor(path)))

    for name, module in (("torchvision v1", v1), ("torchvision v2", v2)):
        for mode in InterpolationMode:
            if mode == InterpolationMode.NEAREST_EXACT:
                continue
            make = partial(on_picture, module, size=to_256, mode=mode)
            resize = replace(PLAIN, interpolation=mode.value)
            words = f"Resize({{resized}}, {mode.value}), CenterCrop({{side}})"
            cases.append(Case(name, words, make, contract_of(resize, to_256)))
        mode = InterpolationMode.BICUBIC
        resize = replace(PLAIN, interpolation="bicubic")
        make = partial(on_picture, module, size=lambda side: side, mode=mode)
        cases.append(Case(name, "Resize({side}, bicubic), CenterCrop({side})", make, contract_of(resize)))
        make = partial(on_picture, module, size=lambda side: (side, side), mode=mode)
        squash = contract_of(replace(resize, mode="squash"))
        cases.append(Case(name, "Resize(({side}, {side}), bicubic)", make, squash))
        for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
            for antialias in (True, False):
                make = partial(on_tensor, module, mode=mode, antialias=antialias)
                words = f"Resize(({{side}}, {{side}}), {mode.value}, antialias={antialias}) of a tensor"
                resize = replace(PLAIN, mode="squash", interpolation=mode.value, antialias=antialias)
                cases.append(Case(name, words, make, contract_of(resize)))
    return cases


def list_timm() -> list[Case]:
    """The transform for evaluation, by crop mode."""

    def make(ratio: float, mode: str, interpolation: str, side: int) -> Apply:
        step = timm.data.create_transform(
            (3, side, side), interpolation=interpolation, crop_pct=ratio, crop_mode=mode, normalize=False
        )
        return lambda path: to_rows(step(read_rgb(path)))

    mean = tuple(round(255 * one) for one in timm.data.IMAGENET_DEFAULT_MEAN)  # the colour of its border
    cases = []
    for ratio, mode, interpolation, resize in (
        (0.875, "center", "bicubic", PLAIN),
        (0.95, "center", "bicubic", PLAIN),
        (1.0, "center", "bilinear", PLAIN),
        (0.9, "squash", "bicubic", replace(PLAIN, mode="squash")),
        (1.0, "squash", "bicubic", replace(PLAIN, mode="squash")),
        (1.0, "border", "bicubic", replace(PLAIN, mode="letterbox", padding=mean)),
    ):
        words = f"create_transform(crop_pct={ratio}, crop_mode={mode!r}, {interpolation})"
        resize = replace(resize, interpolation=interpolation)
        contract = contract_of(resize, lambda side, ratio=ratio: int(side / ratio))
        cases.append(Case("timm", words, partial(make, ratio, mode, interpolation), contract))
    return cases


def list_transformers() -> list[Case]:
    """Image processors, with Pillow and with torchvision."""

    def make(name: str, options: Callable[[int], dict[str, Any]], side: int) -> Apply:
        processor = getattr(transformers, name)(**options(side), do_rescale=False, do_normalize=False)

        def apply(path: Path) -> np.ndarray:
            picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")  # load_image of transformers
            values = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
            return np.rint(values.transpose(1, 2, 0)).astype(np.uint8)

        return apply

    def crop(side: int) -> dict[str, Any]:
        return {
            "size": {"shortest_edge": to_256(side)},
            "crop_size": {"height": side, "width": side},
            "do_center_crop": True,
        }

    def squash(side: int) -> dict[str, Any]:
        return {"size": {"height": side, "width": side}}

    def convnext(side: int) -> dict[str, Any]:
        return {"size": {"shortest_edge": side}, "crop_pct": 0.875}

    cropped = replace(PLAIN, crop_offset="floored")
    cases = []
    for suffix, backend in (("Pil", "Pillow"), ("", "torchvision")):
        for name, options, resize, resized in (
            ("ViTImageProcessor", squash, replace(PLAIN, mode="squash"), lambda side: side),
            ("MobileNetV2ImageProcessor", crop, cropped, to_256),
            ("ConvNextImageProcessor", convnext, replace(cropped, interpolation="bicubic"), to_256),
        ):
            shown = ", ".join(f"{key}={value}" for key, value in options(PHOTO_SIDE).items()).translate(BRACES)
            filtered = {**options(SIDE), "resample": Image.Resampling[resize.interpolation.upper()]}
            with_filter = lambda side, options=options, one=filtered: {**options(side), "resample": one["resample"]}  # noqa: E731
            words = f"{name}({shown}) with {backend}, {resize.interpolation}"
            contract = contract_of(resize, resized, exif_orientation=True)
            cases.append(Case("transformers", words, partial(make, name + suffix, with_filter), contract))
    return cases


def list_ultralytics() -> list[Case]:
    """The transform of classifiers, and the letterbox of detectors."""

    def classify(side: int) -> Apply:
        steps = classify_transforms(side)
        return lambda path: np.rint(to_rows(steps(read_rgb(path))) * 255).astype(np.uint8)

    def letterbox(side: int) -> Apply:
        step = LetterBox((side, side), auto=False)
        return lambda path: step(image=np.ascontiguousarray(np.asarray(read_rgb(path))[:, :, ::-1]))

    boxed = replace(PLAIN, mode="letterbox", antialias=False)
    return [
        Case("ultralytics", "classify_transforms({side})", classify, contract_of(PLAIN)),
        Case("ultralytics", "LetterBox({side}), BGR", letterbox, contract_of(boxed, channel_order="BGR")),
    ]


def list_others() -> list[Case]:
    """Keras' ``load_img``, and OpenCV."""

    def load(interpolation: str, keep: bool, side: int) -> Apply:
        return lambda path: np.asarray(
            keras.utils.load_img(path, target_size=(side, side), interpolation=interpolation, keep_aspect_ratio=keep)
        )

    def by_opencv(interpolation: int, side: int) -> Apply:
        return lambda path: cv2.resize(cv2.imread(str(path)), (side, side), interpolation=interpolation)

    cases = []
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
        resize = replace(PLAIN, mode="squash", interpolation=interpolation)
        words = f"load_img(target_size=({{side}}, {{side}}), {interpolation})"
        cases.append(Case("keras", words, partial(load, interpolation, False), contract_of(resize)))
    kept = contract_of(replace(PLAIN, keeps_exact_size=True))
    words = "load_img(target_size=({side}, {side}), bilinear, keep_aspect_ratio=True)"
    cases.append(Case("keras", words, partial(load, "bilinear", True), kept))
    for name, flag in (("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)):
        resize = replace(PLAIN, mode="squash", interpolation=name, antialias=False)
        contract = contract_of(resize, channel_order="BGR", exif_orientation=True)
        words = f"imread, resize(({{side}}, {{side}}), {flag_name(name)})"
        cases.append(Case("opencv-python", words, partial(by_opencv, flag), contract))
    return cases


def flag_name(interpolation: str) -> str:
    """OpenCV's name of an interpolation."""
    return {"bilinear": "INTER_LINEAR", "bicubic": "INTER_CUBIC"}[interpolation]


def measure(case: Case, photos: list[Path]) -> dict[str, Any]:
    """Compare the pixels of photos.

    Returns:
        The largest difference, the mean difference, and the share of the values that differ.
    """
    apply, contract = case.make(PHOTO_SIDE), case.contract(PHOTO_SIDE)
    differences = np.stack(
        [
            np.abs(apply(path).astype(np.int16) - decode_image(path.read_bytes(), contract, OWN_IMAGES))
            for path in photos
        ]
    )
    return {
        "largest": int(differences.max()),
        "mean": round(float(differences.mean()), 4),
        "share": round(float((differences > 0).mean()), 6),
    }


def keep_pixels(case: Case, folder: Path, images: dict[str, bytes]) -> dict[str, Any]:
    """Return the digests of a library's pixels, and some pixels if they differ from those of the contract."""
    apply, contract = case.make(SIDE), case.contract(SIDE)
    digests, kept = {}, {}
    for name, image in images.items():
        pixels, expected = decode_image(image, contract, OWN_IMAGES), apply(folder / f"{name}.png")
        if np.array_equal(pixels, expected):
            digests[name] = hashlib.sha256(expected.tobytes()).hexdigest()
        elif name in KEPT:
            buffer = io.BytesIO()
            Image.fromarray(expected).save(buffer, "PNG", optimize=True)
            largest = int(np.abs(pixels.astype(np.int16) - expected).max())
            kept[name] = {"png": base64.b64encode(buffer.getvalue()).decode(), "largest": largest}
    left_out = sorted(images.keys() - digests.keys())
    return {"contract": write_contract(contract), "digests": digests, "kept": kept, "differ": left_out}


def main() -> None:
    """Write the fixture."""
    torch.set_num_threads(1)
    photos = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    photos = photos[:: max(1, len(photos) // PHOTOS)][:PHOTOS]
    images, rows = draw_images(), []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for image, encoded in images.items():
            (folder / f"{image}.png").write_bytes(encoded)
        cases = [*list_torchvision(), *list_timm(), *list_transformers(), *list_ultralytics(), *list_others()]
        for case in cases:
            words = case.transform.format(side=PHOTO_SIDE, resized=to_256(PHOTO_SIDE))
            row = {"library": case.library, "transform": words, **keep_pixels(case, folder, images)}
            row["photos"] = {"contract": write_contract(case.contract(PHOTO_SIDE)), **measure(case, photos)}
            rows.append(row)
            print(case.library, words, row["photos"], row["differ"], flush=True)
    facts = {"versions": {one: version(one) for one in PACKAGES}, "photos": len(photos), "cases": rows}
    (HERE / "pixels.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
