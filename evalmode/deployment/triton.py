"""NVIDIA Triton's model repository: ``NAME/VERSION/model.onnx``, ``NAME/config.pbtxt`` and a label file.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md and
model_configuration.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format

from evalmode.artifact.repository import ARTIFACT_FILE
from evalmode.artifact.signature import TensorType
from evalmode.artifact.standard_keys import UNPRINTABLE
from evalmode.artifact.tensors import INPUT, PROBABILITIES
from evalmode.deployment.release import File, Release
from evalmode.errors import UsageError
from evalmode.wire import model_config_pb2 as wire

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
Value = TypeVar("Value", wire.ModelInput, wire.ModelOutput)
NOTE = "# Written by evalmode for all versions of the model. Settings that are added here are kept.\n"
DATA_TYPES = {"bool": "TYPE_BOOL", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64"}


def list_files(release: Release, folder: Path) -> dict[str, File]:
    """List the files of a version.

    Args:
        release: The version.
        folder: Triton's model repository.

    Returns:
        The files by path in the folder.

    Raises:
        UsageError: A label cannot be in a label file.
        OSError: The present configuration cannot be read.
    """
    config = _build_config(release)
    present = folder / release.name / CONFIG
    text = NOTE + text_format.MessageToString(config, as_utf8=True)
    files = {
        f"{release.name}/{CONFIG}": File(text.encode(), is_editable=_is_same_model(present, config)),
        f"{release.name}/{release.version}/{ARTIFACT_FILE}": File(release.artifact),
    }
    if release.classifier:
        files[f"{release.name}/{LABELS}"] = File(write_labels(release.classifier.labels))
    return files


def write_labels(labels: tuple[str, ...]) -> bytes:
    """Write a label file, one label a line.

    Raises:
        UsageError: A label is not a line.
    """
    for label in labels:
        if label.splitlines() != [label] or label != label.strip() or UNPRINTABLE.search(label):
            raise UsageError(f"--also triton: label {label!r} cannot be a line of a label file: rename it")
    return "".join(f"{label}\n" for label in labels).encode()


def _build_config(release: Release) -> wire.ModelConfig:
    """The configuration, which has no optional outputs: Triton would compute them for each request."""
    optional = release.manifest.optional_outputs
    outputs = (output for output in release.signature.outputs if output.name not in optional)
    return wire.ModelConfig(
        name=release.name,
        platform="onnxruntime_onnx",
        max_batch_size=release.max_batch,
        input=_build_inputs(release.signature.inputs, release.classifier is not None),
        output=_build_outputs(outputs, release.classifier is not None),
    )


def _build_inputs(tensors: Iterable[TensorType], are_images: bool) -> Iterator[wire.ModelInput]:
    for tensor in tensors:
        is_image = are_images and tensor.name == INPUT
        layout = wire.ModelInput.FORMAT_NHWC if is_image else wire.ModelInput.FORMAT_NONE
        yield _set_shape(wire.ModelInput(name=tensor.name, data_type=_name_type(tensor), format=layout), tensor)


def _build_outputs(tensors: Iterable[TensorType], are_labelled: bool) -> Iterator[wire.ModelOutput]:
    for tensor in tensors:
        labels = LABELS if are_labelled and tensor.name == PROBABILITIES else ""
        yield _set_shape(
            wire.ModelOutput(name=tensor.name, data_type=_name_type(tensor), label_filename=labels), tensor
        )


def _set_shape(value: Value, tensor: TensorType) -> Value:
    """State the axes after the batch. Triton requires one, and takes others of the network from ``reshape``."""
    if sides := _list_sides(tensor):
        value.dims.extend(sides)
    else:
        value.dims.append(1)
        value.reshape.SetInParent()
    return value


def _name_type(tensor: TensorType) -> str:
    """Triton's type of a tensor."""
    return DATA_TYPES.get(tensor.dtype, f"TYPE_{tensor.dtype.upper()}")


def _list_sides(tensor: TensorType) -> list[int]:
    """The axes after the batch, -1 for one of any length."""
    return [-1 if side is None else side for side in tensor.shape]


def _is_same_model(present: Path, config: wire.ModelConfig) -> bool:
    """Whether a configuration, as people may have edited it, has the inputs and outputs of another one."""
    found = wire.ModelConfig()
    try:
        text_format.Parse(present.read_text(encoding="utf-8"), found, allow_unknown_field=True)
    except (FileNotFoundError, UnicodeDecodeError, text_format.ParseError, RecursionError):
        return False
    named = found.name in ("", config.name)
    return named and list(found.input) == list(config.input) and list(found.output) == list(config.output)
