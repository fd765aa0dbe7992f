"""The reference for decoding: Pillow alone, written as torchvision and timm prepare images for evaluation."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from evalmode.images.pixels import PixelContract

RESAMPLING = {one.name.lower(): one for one in Image.Resampling}


def decode_by_pillow(image: bytes, contract: PixelContract) -> np.ndarray:
    """Decode an image without transparency."""
    resize, crop = contract.resize, (contract.width, contract.height)
    wanted = round(crop[0] / resize.crop_ratio), round(crop[1] / resize.crop_ratio)
    with Image.open(io.BytesIO(image)) as opened:
        if opened.format == "JPEG" and resize.jpeg_scaling:
            upright = ImageOps.exif_transpose(opened).size
            scale = next((s for s in (8, 4, 2) if min(upright[0] / wanted[0], upright[1] / wanted[1]) >= 2 * s), 1)
            opened = Image.open(io.BytesIO(image))
            opened.draft(None, (opened.width // scale, opened.height // scale))
        picture = ImageOps.exif_transpose(opened).convert("RGB" if contract.channels == 3 else "L")
    if picture.size != crop and resize.crop_ratio == 1:
        picture = ImageOps.fit(picture, crop, RESAMPLING[resize.interpolation])
    elif picture.size != crop:
        picture = crop_centre(resize_shorter_side(picture, wanted, RESAMPLING[resize.interpolation]), crop)
    return np.asarray(picture).reshape(contract.shape)


def resize_shorter_side(picture: Image.Image, wanted: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Resize as torchvision.transforms.Resize(side); ``wanted`` may have two different sides."""
    width, height = picture.size
    if wanted[0] / width >= wanted[1] / height:
        return picture.resize((wanted[0], max(wanted[1], int(wanted[0] * height / width))), resampling)
    return picture.resize((max(wanted[0], int(wanted[1] * width / height)), wanted[1]), resampling)


def crop_centre(picture: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Crop as torchvision.transforms.CenterCrop does."""
    left, top = round((picture.width - crop[0]) / 2.0), round((picture.height - crop[1]) / 2.0)
    return picture.crop((left, top, left + crop[0], top + crop[1]))
