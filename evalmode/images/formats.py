"""The supported image formats.

To add a format, add a row to ``FORMATS`` and a module with its codec. Nothing here needs Pillow or numpy, since the
command line of the bare install reads the suffixes, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalmode.images.headers import Codec


@dataclass(frozen=True)
class ImageFormat:
    """An image format.

    Attributes:
        name: Pillow's name of the format.
        suffixes: Suffixes of its files, lower case.
        signature: The bytes that its files start with.
        module: The module whose ``CODEC`` reads and decodes it; imported when it is used.
        served: Whether a server decodes images of this format. All formats are decoded from the user's own files.
    """

    name: str
    suffixes: tuple[str, ...]
    signature: re.Pattern[bytes]
    module: str
    served: bool = False

    @cached_property
    def codec(self) -> Codec:
        """The functions that read and decode images of this format."""
        codec: Codec = import_module(self.module).CODEC
        return codec


# The brands of a file that begins with an ftyp box: its own, or one that it is compatible with. Source: AV1 Image File
# Format; ISO/IEC 23008-12, annex B.
_AVIF = re.compile(rb"(?s).{4}ftyp(?:avi[fs]|.{8}(?:.{4}){0,12}?avi[fs])")
_HEIC = re.compile(rb"(?s).{4}ftyp(?:hei[cxms]|hev[cxms]|m[is]f1|.{8}(?:.{4}){0,12}?(?:hei[cxms]|hev[cxms]|m[is]f1))")

FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), re.compile(rb"\xff\xd8\xff"), "evalmode.images.jpeg", True),
    ImageFormat("PNG", (".png", ".apng"), re.compile(rb"\x89PNG\r\n\x1a\n"), "evalmode.images.png", True),
    ImageFormat("WEBP", (".webp",), re.compile(rb"(?s)RIFF.{4}WEBP"), "evalmode.images.webp", True),
    ImageFormat("BMP", (".bmp",), re.compile(rb"BM"), "evalmode.images.bmp", True),
    ImageFormat("GIF", (".gif",), re.compile(rb"GIF8[79]a"), "evalmode.images.gif"),
    ImageFormat("TIFF", (".tif", ".tiff"), re.compile(rb"II[*+]\0|MM\0[*+]"), "evalmode.images.tiff"),
    ImageFormat("AVIF", (".avif",), _AVIF, "evalmode.images.avif"),
    ImageFormat(
        "HEIC", (".heic", ".heif"), _HEIC, "evalmode.images.heic"
    ),  # after AVIF, whose files may have mif1, too
)
SERVED_FORMATS = tuple(one for one in FORMATS if one.served)


def name_formats(formats: Iterable[ImageFormat]) -> str:
    """Return the names of formats, for a sentence."""
    return ", ".join(one.name for one in formats)


def list_suffixes(formats: Iterable[ImageFormat]) -> tuple[str, ...]:
    """Return the suffixes of the files of formats."""
    return tuple(suffix for one in formats for suffix in one.suffixes)


IMAGE_SUFFIXES = list_suffixes(FORMATS)
