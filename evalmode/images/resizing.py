"""Resizing: how far a JPEG is scaled while it is decoded, and the resize and placement of a picture.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from evalmode.images.sampling import sample

if TYPE_CHECKING:
    from evalmode.images.contract import Resize

Size = tuple[int, int]
Colour = tuple[int, int, int]  # red, green, blue, each 0 to 255

INTERPOLATIONS = {  # Pillow's, by the name in the artifact; all but nearest are antialiased
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MIN_CROP_RATIO = 0.25  # so that a picture is resized to at most MAX_ASPECT x 16 times the pixels of the crop
JPEG_SCALES = (8, 4, 2)  # 1/8, 1/4 and 1/2 of the size: those that Pillow offers of libjpeg-turbo's sixteen
MIN_SCALED = 2  # sides of a scaled JPEG, divided by those that the picture is resized to
MAX_ASPECT = 8  # the longer side of a picture, relative to the wanted one, that is resized before the crop


def choose_jpeg_scale(size: Size, wanted: Size) -> int:
    """Choose how far a JPEG is scaled while it is decoded.

    Args:
        size: The size of the JPEG.
        wanted: The smallest size that it may be resized to, before a crop.

    Returns:
        8, 4 or 2 for 1/8, 1/4 or 1/2: the largest that leaves at least twice the wanted size on both sides. 1 if none
        does.
    """
    for scale in JPEG_SCALES:
        if all(side >= MIN_SCALED * scale * target for side, target in zip(size, wanted, strict=True)):
            return scale
    return 1


def find_resized_size(crop: Size, crop_ratio: float) -> Size:
    """Return the size that a picture of the crop's proportions is resized to before the crop.

    Args:
        crop: The size after the crop.
        crop_ratio: The cropped side divided by the resized one.
    """
    return round(crop[0] / crop_ratio), round(crop[1] / crop_ratio)


def plan_resize(size: Size, crop: Size, crop_ratio: float) -> tuple[Size, Size]:
    """Compute the sizes of a picture on the way to its crop, for a crop ratio below 1.

    The picture is resized so that it just covers ``find_resized_size``: one side has that length, the other is longer
    in proportion, rounded down. It is centre-cropped before if it would be more than ``MAX_ASPECT`` times as long.

    Args:
        size: The size of the picture.
        crop: The size after the crop.
        crop_ratio: The cropped side divided by the resized one.

    Returns:
        The size of the part that is resized, and the size that it is resized to.

    Source: https://github.com/pytorch/vision, transforms.Resize of one integer: the same sizes, where crops are square.
    """
    (width, height), (least_width, least_height) = size, find_resized_size(crop, crop_ratio)
    if width * least_height >= height * least_width:  # the height is the side that is resized to the wanted length
        width = min(width, max(1, MAX_ASPECT * least_width * height // least_height))
        return (width, height), (max(least_width, least_height * width // height), least_height)
    height = min(height, max(1, MAX_ASPECT * least_height * width // least_width))
    return (width, height), (least_width, max(least_height, least_width * height // width))


def plan_letterbox(size: Size, box: Size) -> Size:
    """Return the largest size with the proportions of a picture that fits into a box, each side at least 1.

    Args:
        size: The size of the picture.
        box: The size of the box.

    Source: https://github.com/ultralytics/ultralytics, LetterBox: the same sizes.
    """
    ratio = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def fit_picture(picture: Image.Image, wanted: Size, resize: Resize, whole: Size) -> Image.Image:
    """Bring a picture to a size by the rules of a resize.

    Args:
        picture: Of mode RGB, RGBX or L.
        wanted: The size of the result.
        resize: Of any mode but none.
        whole: The size that the picture has if it is not scaled while it is decoded: a letterbox has its proportions.
    """
    if resize.mode == "letterbox":
        return _letterbox(_resize(picture, plan_letterbox(whole, wanted), resize), wanted, resize.padding)
    if resize.mode == "squash":
        return _crop_centre(_resize(picture, find_resized_size(wanted, resize.crop_ratio), resize), wanted, resize)
    if resize.crop_ratio == 1 and resize.keeps_exact_size and resize.antialias:
        return ImageOps.fit(picture, wanted, INTERPOLATIONS[resize.interpolation])  # may begin within a pixel
    part, resized = plan_resize(picture.size, wanted, resize.crop_ratio)
    return _crop_centre(_resize(_crop_centre(picture, part, resize), resized, resize), wanted, resize)


def _resize(picture: Image.Image, size: Size, resize: Resize) -> Image.Image:
    """Resize a picture, unless it has the size."""
    if picture.size == size:
        return picture
    if resize.antialias:
        return picture.resize(size, INTERPOLATIONS[resize.interpolation])
    return sample(picture, size, resize.interpolation)


def _letterbox(picture: Image.Image, box: Size, padding: Colour) -> Image.Image:
    """Place a picture at the centre of a box of one colour; where the rest is odd, less of it is above and left."""
    if picture.size == box:
        return picture
    boxed = Image.new("RGB", box, padding)
    boxed = boxed.convert("L") if picture.mode == "L" else boxed
    left, top = ((side - placed) // 2 for side, placed in zip(box, picture.size, strict=True))
    boxed.paste(picture.convert(boxed.mode), (left, top))
    return boxed


def _crop_centre(picture: Image.Image, size: Size, resize: Resize) -> Image.Image:
    """Crop the centre of a picture, as torchvision's ``CenterCrop`` places it, or with its offset rounded down."""
    if picture.size == size:
        return picture
    rounded = resize.crop_offset == "rounded"
    margins = ((side - cropped) / 2 for side, cropped in zip(picture.size, size, strict=True))
    left, top = (round(margin) if rounded else int(margin) for margin in margins)
    return picture.crop((left, top, left + size[0], top + size[1]))
