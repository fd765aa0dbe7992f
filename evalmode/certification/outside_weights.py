"""Read weights that a network keeps in files beside its own."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from evalmode.artifact.sealing import walk
from evalmode.errors import UsageError

MAX_BYTES = 2**31 - 1  # of one protobuf message


def read_outside_weights(network: onnx.ModelProto, path: Path) -> None:
    """Move weights from files beside a network into it.

    A file may be a link, as in Kubernetes' volumes and in the cache of Hugging Face, if what it leads to lies in the
    folder of the network, or in that of the file which the network's own link leads to.

    Args:
        network: The network, which is changed.
        path: Its file.

    Raises:
        UsageError: A file is missing, lies in another folder, or is too short, or the weights are too large for one
            ONNX file.
        OSError: A file cannot be read.
    """
    outside = [tensor for tensor in walk(network, TensorProto) if tensor.data_location == TensorProto.EXTERNAL]
    facts = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    places = sorted({one.get("location", "") for one in facts})
    files = {place: _find_file(place, path) for place in places}
    spans = [_read_span(one, files[one.get("location", "")], path) for one in facts]
    size = sum(length for _, length in spans)
    if size > MAX_BYTES:
        raise UsageError(f"{path}: {size:,} bytes of weights, one ONNX file can hold at most {MAX_BYTES:,}")
    for tensor, one, (offset, length) in zip(outside, facts, spans, strict=True):
        with files[one["location"]].open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def _find_file(place: str, path: Path) -> Path:
    """The file of weights, with no link left in its path."""
    named = path.parent / place
    if not place or Path(place).is_absolute() or ".." in Path(place).parts:
        raise UsageError(f"{path}: its weights are in {place!r}: expected a file in {path.parent}; export it again")
    if not named.is_file():
        raise UsageError(f"{path}: its weights are in {place}, missing from {path.parent}: copy it there")
    found = named.resolve()
    if not any(found.is_relative_to(folder) for folder in (path.parent.resolve(), path.resolve().parent)):
        raise UsageError(f"{path}: its weights are in {place}, a link to {found}: copy that file to {path.parent}")
    return found


def _read_span(facts: dict[str, str], file: Path, path: Path) -> tuple[int, int]:
    """The offset and the length of a tensor in its file."""
    size = file.stat().st_size
    try:
        offset = int(facts.get("offset", 0))
        length = int(facts.get("length", size - offset))
    except ValueError as error:
        raise UsageError(f"{path}: its weights in {file.name} cannot be read: {error}") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise UsageError(
            f"{path}: its weights in {file.name} cannot be read: bytes {offset:,} to {offset + length:,} of "
            f"{size:,}: copy the whole file"
        )
    return offset, length
