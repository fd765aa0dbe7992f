"""Read ONNX files that other tools wrote, and bring them into one form without changing their answers.

Old files list their weights among the inputs, and many accept only the batch size that they were exported with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from evalmode.certification.graph import check_eval_mode, read_opset
from evalmode.certification.outside_weights import read_outside_weights
from evalmode.errors import EvalmodeError, UsageError

BATCH = "batch"
IR_VERSION = 8  # since 4, weights need not be inputs; later versions only add types
MIN_OPSET = 7  # the oldest that ONNX Runtime runs correctly
OTHER_FORMATS = {  # by the first bytes of a file
    b"PK": "a zip archive, such as torch.save writes: export the network to ONNX",
    b"\x80": "a Python pickle, such as torch.save writes: export the network to ONNX",
    b"\x89HDF": "an HDF5 file, such as Keras writes: convert it with tf2onnx",
    b"version https://git-lfs": "a Git LFS pointer: bring the file itself with git lfs pull",
    b"<": "a web page or XML: was the download refused?",
}
TYPES = {value: name.lower() for name, value in TensorProto.DataType.items()}


def read_network(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, together with weights in files beside it.

    Args:
        path: The file.

    Returns:
        The network, converted to IR version 8 and opset 7 if it is older, with no weights among its inputs.

    Raises:
        UsageError: The file is not an ONNX file, weights are missing, or its version is too new.
        TrainMode: It is older, and behaves as in training.
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    if not content:
        raise UsageError(f"{path} is empty")
    known = next((what for start, what in OTHER_FORMATS.items() if content.startswith(start)), "")
    if known:
        raise UsageError(f"{path} is {known}")
    try:
        network = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's decoder raises types of its own
        raise UsageError(f"{path} is not a complete ONNX file: {error}") from error
    if not network.ir_version or not network.graph.node:
        raise UsageError(f"{path} is not an ONNX file, or one without a network in it")
    read_outside_weights(network, path)
    _check_versions(network, path)
    network = _raise_opset(network, path)
    network.ir_version = max(network.ir_version, IR_VERSION)
    weights = {tensor.name for tensor in network.graph.initializer}
    for value in [value for value in network.graph.input if value.name in weights]:
        network.graph.input.remove(value)
    return network


def _check_versions(network: onnx.ModelProto, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    opset = read_opset(network)
    if opset > newest:
        raise UsageError(
            f"{path} needs opset {opset}, onnx {onnx.__version__} knows up to {newest}: export it with opset 20, or "
            "install a newer onnx and onnxruntime"
        )
    if network.ir_version > onnx.IR_VERSION:
        raise UsageError(
            f"{path} has IR version {network.ir_version}, onnx {onnx.__version__} knows up to {onnx.IR_VERSION}: "
            "export it with an older onnx, or install a newer onnx and onnxruntime"
        )


def _raise_opset(network: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = read_opset(network)
    if opset >= MIN_OPSET:
        return network
    check_eval_mode(network)  # the conversion loses the attribute is_test
    try:
        return onnx.version_converter.convert_version(network, MIN_OPSET)
    except Exception as error:  # onnx raises types of its own
        raise UsageError(
            f"{path} has opset {opset}, which onnx cannot convert to the required {MIN_OPSET}: {first_line(error)}"
        ) from error


def describe(value: onnx.ValueInfoProto) -> str:
    """Describe an input or output: ``data float32 (N, 3, 32, 32)``."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"{value.name}, a {(kind or 'value without a type').removesuffix('_type')}"
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return f"{value.name} {name_type(tensor.elem_type)} of any shape"
    sides = ", ".join(str(dim.dim_value) if dim.dim_value else dim.dim_param or "?" for dim in tensor.shape.dim)
    return f"{value.name} {name_type(tensor.elem_type)} ({sides})"


def name_type(elem_type: int) -> str:
    """The numpy name of an ONNX element type: ``float32`` for FLOAT."""
    return {"float": "float32", "double": "float64"}.get(name := TYPES.get(elem_type, "?"), name)


def find_batch(network: onnx.ModelProto) -> int | None:
    """The only batch size that a network accepts; None if it accepts any, or its inputs differ."""
    shapes = [value.type.tensor_type.shape for value in network.graph.input]
    sizes = {shape.dim[0].dim_value for shape in shapes if shape.dim}
    return (min(sizes) or None) if len(sizes) == 1 else None


def free_batch(network: onnx.ModelProto) -> onnx.ModelProto:
    """Let a network that was exported for one batch size accept any.

    The first axis of its inputs and outputs becomes free, and so do the shapes that it reshapes tensors to. The caller
    has to check that the answers stay the same.

    Args:
        network: The network, which is not changed.

    Returns:
        A copy, or the network itself if it accepts any batch size already.
    """
    batch = find_batch(network)
    if batch is None:
        return network
    freed = onnx.ModelProto()
    freed.CopyFrom(network)
    del freed.graph.value_info[:]
    for value in (*freed.graph.input, *freed.graph.output):
        if (dims := value.type.tensor_type.shape.dim) and dims[0].dim_value == batch:
            dims[0].dim_param = BATCH
    constants = {tensor.name: tensor for tensor in freed.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in freed.graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"
    }
    for number, node in enumerate(freed.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if not len(shape) or shape[0] != batch:
            continue
        shape[0] = 0 if -1 in shape else -1  # 0 keeps the size of the axis
        name = f"evalmode_shape_{number}"  # a new name: another node may share the old shape
        freed.graph.initializer.append(numpy_helper.from_array(shape.astype(np.int64), name))
        node.input[1] = name
    return freed


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn errors of onnx, ONNX Runtime and protobuf, which share no base class, into one line.

    Args:
        name: What the message calls the network.

    Raises:
        UsageError: One of these libraries raised an error.
    """
    try:
        yield
    except EvalmodeError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("onnx", "google.protobuf")):
            raise
        raise UsageError(f"{name}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 400 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:400]
