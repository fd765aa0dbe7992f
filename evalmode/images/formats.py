"""The supported image formats.

To add a format, add a row to ``FORMATS`` and a module with its codec. Nothing here needs Pillow or numpy, since the
command line of the bare install reads the suffixes, too.
"""

from __future__ import annotations

import re
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
    """

    name: str
    suffixes: tuple[str, ...]
    signature: re.Pattern[bytes]
    module: str

    @cached_property
    def codec(self) -> Codec:
        """The functions that read and decode images of this format."""
        codec: Codec = import_module(self.module).CODEC
        return codec


FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), re.compile(rb"\xff\xd8\xff"), "evalmode.images.jpeg"),
    ImageFormat("PNG", (".png", ".apng"), re.compile(rb"\x89PNG\r\n\x1a\n"), "evalmode.images.png"),
    ImageFormat("WEBP", (".webp",), re.compile(rb"(?s)RIFF.{4}WEBP"), "evalmode.images.webp"),
    ImageFormat("BMP", (".bmp",), re.compile(rb"BM"), "evalmode.images.bmp"),
)
IMAGE_FORMATS = tuple(one.name for one in FORMATS)
IMAGE_SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)
