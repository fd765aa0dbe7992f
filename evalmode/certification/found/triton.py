"""Triton's ``config.pbtxt`` and its label file.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from google.protobuf import text_format

from evalmode.certification.found.facts import Fact
from evalmode.certification.found.place import Place
from evalmode.certification.found.values import read_text
from evalmode.errors import UsageError
from evalmode.images.label_files import parse_labels
from evalmode.wire import model_config_pb2 as wire

CONFIG = "config.pbtxt"


def read_triton(place: Place) -> Iterator[Fact]:
    """Read the ``config.pbtxt`` of a folder.

    Raises:
        UsageError: The file is damaged.
    """
    path = place.folder / CONFIG
    text = read_text(path)
    if text is None:
        return
    config = wire.ModelConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=True)
    except (text_format.ParseError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"{path} is not a model configuration: {reason}: correct it, or remove it") from error
    labelled = [output for output in config.output if output.label_filename]
    for output in labelled:
        yield _read_label_file(path, output.label_filename)
    if len(labelled) == 1 and len(config.output) > 1:
        yield Fact("output", labelled[0].name, f"{path}: label_filename")
    if len(config.input) == 1:
        yield from _read_shape(path, config.input[0])


def _read_label_file(path: Path, name: str) -> Fact:
    """The labels of one output; the file is in the folder of the configuration."""
    source = f"{path}: label_filename"
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts:
        return Fact("labels", None, source, f"{source} is {name[:80]!r}: expected a file in {path.parent}")
    file = path.parent / inner
    text = read_text(file)
    if text is None:
        return Fact("labels", None, source, f"{source} is {name[:80]!r}: {file} is missing")
    try:
        return Fact("labels", parse_labels(text.encode(), str(file)), f"{file}, named in {path}")
    except UsageError as error:
        return Fact("labels", None, source, str(error))


def _read_shape(path: Path, value: wire.ModelInput) -> Iterator[Fact]:
    """Size and channels, where the format of the input says which axis is which."""
    sides = list(value.dims)
    if len(sides) != 3 or value.format == wire.ModelInput.FORMAT_NONE:
        return
    channels, *size = sides if value.format == wire.ModelInput.FORMAT_NCHW else (sides[2], *sides[:2])
    if channels in (1, 3):
        yield Fact("channels", int(channels), f"{path}: dims")
    if min(size) > 0:
        yield Fact("size", (int(size[0]), int(size[1])), f"{path}: dims")
