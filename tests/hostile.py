"""Model files that try to block a server, read its files or exhaust its memory, for tests and benchmarks.

Each file is sealed and has a certificate, so that the attack alone can be the reason for its rejection.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from evalmode.artifact.certificate import ClassifierCertificate
from evalmode.artifact.manifest import DIGEST, ClassifierManifest, Manifest
from evalmode.artifact.sealing import BLANK, ENTRY, open_artifact, seal
from tests.conftest import colour_artifact

GB = 10**9
Build = Callable[[], bytes]


def _scalar(name: str, value: object, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def _info(name: str, kind: int, shape: tuple[int, ...] | None = ()) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def add_nodes(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> bytes:
    """Add nodes to the colour network; their output ``extra``, a scalar, is added to its logits."""
    graph, manifest = open_artifact(colour_artifact())
    for node in graph.graph.node:
        node.output[:] = ["plain" if name == "logits" else name for name in node.output]
    last = graph.graph.node.pop()
    graph.graph.node.extend([*nodes, helper.make_node("Add", ["plain", "extra"], ["logits"]), last])
    graph.graph.initializer.extend(constants)
    return seal_unchecked(graph, manifest)


def seal_unchecked(graph: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Seal a graph without onnx's checker, which would reject it or never end."""
    with patch("onnx.checker.check_model"):
        return seal(graph, manifest)


def loop(steps: int | None, node: onnx.NodeProto, start: onnx.TensorProto, depends_on_input: bool = False) -> bytes:
    """A Loop that applies ``node`` to a state, from ``start`` on; without ``steps`` it never ends.

    A Loop that does not depend on the input runs while a session is opened, in onnxruntime's constant folding.
    """
    body = helper.make_graph(
        [node, helper.make_node("Identity", ["go_in"], ["go_out"])],
        "body",
        [_info("step", TensorProto.INT64), _info("go_in", TensorProto.BOOL), _info("state", TensorProto.FLOAT, None)],
        [_info("go_out", TensorProto.BOOL), _info("next", TensorProto.FLOAT, None)],
    )
    count = "" if steps is None else "steps"
    nodes = [
        helper.make_node("ReduceMax", ["means"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["start", "brightest"], ["begin"]),
        helper.make_node("Loop", [count, "go", "begin" if depends_on_input else "start"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["extra"], keepdims=0),
    ]
    constants = [_scalar("go", True, bool), start]
    return add_nodes(nodes, constants + ([] if steps is None else [_scalar("steps", steps, np.int64)]))


def _square() -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros((64, 64), np.float32), "start")


def endless_loop() -> bytes:
    """An infinite Loop that depends on the input, so that it does not run while a session is opened."""
    return loop(None, helper.make_node("MatMul", ["state", "state"], ["next"]), _square(), depends_on_input=True)


def long_loop() -> bytes:
    """A Loop of 2**62 steps."""
    return loop(2**62, helper.make_node("MatMul", ["state", "state"], ["next"]), _square())


def growing_loop() -> bytes:
    """A Loop whose state doubles at each step."""
    start = numpy_helper.from_array(np.zeros(1024, np.float32), "start")
    return loop(40, helper.make_node("Concat", ["state", "state"], ["next"], axis=0), start)


def expand() -> bytes:
    """A scalar that is expanded to 100 GB, by a shape that is only known at run time."""
    nodes = [
        helper.make_node("ReduceMax", ["means"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["brightest", "zero"], ["nothing"]),
        helper.make_node("Expand", ["nothing", "shape"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["extra"], keepdims=0),
    ]
    return add_nodes(nodes, [_scalar("shape", [25, GB], np.int64), _scalar("zero", 0, np.float32)])


def tile() -> bytes:
    """A kilobyte tiled to 100 GB."""
    nodes = [
        helper.make_node("Tile", ["small", "repeats"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["extra"], keepdims=0),
    ]
    small = numpy_helper.from_array(np.zeros(250, np.float32), "small")
    return add_nodes(nodes, [small, _scalar("repeats", [GB // 10], np.int64)])


def constant_of_shape() -> bytes:
    """100 GB of zeros, which the graph optimizer computes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["extra"], keepdims=0),
    ]
    return add_nodes(nodes, [_scalar("shape", [25, GB], np.int64)])


def doubling() -> bytes:
    """40 nodes, each of which concatenates its input with itself."""
    nodes = [helper.make_node("Concat", [f"x{n}", f"x{n}"], [f"x{n + 1}"], axis=0) for n in range(40)]
    nodes.append(helper.make_node("ReduceMax", ["x40"], ["extra"], keepdims=0))
    return add_nodes(nodes, [numpy_helper.from_array(np.zeros(1024, np.float32), "x0")])


def long_chain(count: int = 400_000) -> bytes:
    """A chain of nodes that is too long for any algorithm of quadratic complexity."""
    nodes = [helper.make_node("Add", [f"x{n}", "x0"], [f"x{n + 1}"]) for n in range(count)]
    nodes.append(helper.make_node("ReduceMax", [f"x{count}"], ["extra"], keepdims=0))
    return add_nodes(nodes, [_scalar("x0", 0, np.float32)])


def nested_ifs(depth: int = 25) -> bytes:
    """Sub-graphs in sub-graphs, as deep as protobuf reads them."""
    value = _info("inner0", TensorProto.FLOAT)
    graph = helper.make_graph([helper.make_node("Identity", ["zero"], ["inner0"])], "g0", [], [value])
    for level in range(1, depth):
        name = f"inner{level}"
        small = helper.make_graph([helper.make_node("Identity", ["zero"], [name + "e"])], name, [], [])
        small.output.append(_info(name + "e", TensorProto.FLOAT))
        choice = helper.make_node("If", ["go"], [name], then_branch=graph, else_branch=small)
        graph = helper.make_graph([choice], f"g{level}", [], [_info(name, TensorProto.FLOAT)])
    nodes = [*graph.node, helper.make_node("Identity", [f"inner{depth - 1}"], ["extra"])]
    return add_nodes(nodes, [_scalar("go", True, bool), _scalar("zero", 1, np.float32)])


def many_messages(count: int = 15_000_000) -> bytes:
    """Empty nodes, two bytes each in the file and a hundred in memory."""
    graph, manifest = open_artifact(colour_artifact())
    nodes = b"\x0a\x00" * count  # field 1 of a graph
    extra = b"\x3a" + _varint(len(nodes)) + nodes  # field 7 of a model; protobuf merges repeated sub-messages
    return _seal_bytes(extra, graph, manifest)


def bombing_certificate(outputs: int = 60) -> bytes:
    """A certificate of some kilobytes that unpacks to 128 MB of zeros for each of many outputs."""
    graph, manifest = open_artifact(colour_artifact())
    assert manifest.certificate is not None
    facts = manifest.certificate.to_json()
    count = len(facts["targets"])
    zeros = zlib.compressobj(9)
    packed = b"".join([*(zeros.compress(bytes(2**23)) for _ in range(16)), zeros.flush()])
    for number in range(outputs):
        facts["outputs"][f"more{number}"] = {
            "dtype": "uint8",
            "shape": [count, 2**27 // count],
            "data": base64.b64encode(packed).decode(),
        }
    with patch.object(ClassifierCertificate, "to_json", lambda _: facts):
        return seal_unchecked(graph, manifest)


def nested_metadata() -> bytes:
    """JSON that is nested 900,000 times."""
    return _with_property("[" * 900_000)


def many_values() -> bytes:
    """JSON of ten million empty lists: 30 MB that become 600."""
    return _with_property("[" + "[]," * 10**7 + "[]]")


def _with_property(text: str) -> bytes:
    graph, manifest = open_artifact(colour_artifact())
    facts = {**manifest.to_metadata(), "evalmode.more": text}
    with patch.object(ClassifierManifest, "to_metadata", lambda _: facts):
        return seal_unchecked(graph, manifest)


def external_data(location: str) -> bytes:
    """Weights in another file, referenced by a sparse tensor in an attribute, which onnxruntime reads, too."""
    values = TensorProto(name="outside", data_type=TensorProto.UINT8, dims=[4])
    set_external(values, location)
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(values)
    sparse.indices.CopyFrom(_scalar("", [0, 1, 2, 3], np.int64))
    nodes = [
        helper.make_node("Constant", [], ["secret"], sparse_value=sparse),
        helper.make_node("Cast", ["secret"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["numbers"], ["extra"], keepdims=0),
    ]
    return add_nodes(nodes, [])


def set_external(tensor: onnx.TensorProto, location: str) -> None:
    """Move the values of a tensor to another file."""
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def two_networks(other: onnx.ModelProto) -> bytes:
    """A file that is the colour artifact as ONNX, and another network in ONNX Runtime's own format.

    In ONNX Runtime's format the first eight bytes are an offset and ``ORTM``; in ONNX they are ``ir_version`` and
    ``producer_name``. ONNX defines all fields of the file: the other network is the data of an unused initializer.
    """
    ort = _save_as_ort(other)
    graph, manifest = open_artifact(colour_artifact())
    header = b"\x08\x08\x12\x04ORTM"  # ir_version: 8, producer_name: "ORTM"
    place = int.from_bytes(header[:4], "little") - int.from_bytes(ort[:4], "little")  # of the other network
    for padding in range(place - 100, place):
        raw = padding + len(ort)
        tensor = b"\x42\x06unused\x10\x03\x08" + _varint(raw) + b"\x4a" + _varint(raw)  # INT8, and then its raw_data
        initializer = b"\x2a" + _varint(len(tensor) + raw) + tensor
        start = header + b"\x3a" + _varint(len(initializer) + raw) + initializer
        if len(start) + padding == place:
            return _seal_bytes(start + bytes(padding) + ort, graph, manifest)
    raise AssertionError("no padding fits")


def _save_as_ort(network: onnx.ModelProto) -> bytes:
    """A network in ONNX Runtime's own format."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    network.doc_string = "moves the root to a multiple of 8, as two_networks needs it"
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "other.ort")
        onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return (Path(folder) / "other.ort").read_bytes()


def _seal_bytes(before: bytes, graph: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Seal a file that begins with other fields and continues with the graph's, as ``seal`` does."""
    sealed = onnx.ModelProto()
    sealed.CopyFrom(graph)
    helper.set_model_props(sealed, {**manifest.to_metadata(), DIGEST: BLANK.decode()})
    blank = before + sealed.SerializeToString(deterministic=True)
    return blank.replace(ENTRY + BLANK, ENTRY + hashlib.sha256(blank).hexdigest().encode())


def _varint(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value % 128 | 128)
        value //= 128
    return bytes([*parts, value])


FILES: dict[str, Build] = {
    "endless loop": endless_loop,
    "loop of 2**62 steps": long_loop,
    "loop that grows": growing_loop,
    "expand to 100 GB": expand,
    "tile to 100 GB": tile,
    "constant of 100 GB": constant_of_shape,
    "concat that doubles": doubling,
    "chain of 400,000 nodes": long_chain,
    "nested sub-graphs": nested_ifs,
    "15 million messages": many_messages,
    "certificate that unpacks to 8 GB": bombing_certificate,
    "metadata nested 900,000 times": nested_metadata,
    "metadata of 10 million values": many_values,
    "weights in another file": lambda: external_data("secret"),
}


def mutate(rng: np.random.Generator, location: str) -> tuple[tuple[str, ...], bytes]:
    """The colour artifact with a tensor in another file, at a random place among those that the format allows.

    Args:
        rng: Draws the place, and the form of the reference to the other file.
        location: Path of the other file.

    Returns:
        The names of the fields that lead to the tensor, and the artifact.
    """
    graph, manifest = open_artifact(colour_artifact())
    message: Any = graph
    path: list[str] = []
    while not isinstance(message, onnx.TensorProto):
        steps = _STEPS[message.DESCRIPTOR.full_name]
        if len(path) > 8:  # the shortest way from here
            steps = [min(steps, key=lambda field: _DISTANCES[field.message_type.full_name])]
        field = steps[rng.integers(len(steps))]
        path.append(field.name)
        if not field.is_repeated:
            message = getattr(message, field.name)
            message.SetInParent()
        else:
            known = getattr(message, field.name)
            message = known[rng.integers(len(known))] if len(known) and rng.random() < 0.5 else known.add()
    message.Clear()
    message.name, message.data_type = "outside", TensorProto.FLOAT
    message.dims.append(4)
    set_external(
        message, (location, f"./{location}", f"../{location}", str(Path(location).absolute()))[rng.integers(4)]
    )
    match rng.integers(4):
        case 0:
            message.data_location = TensorProto.DEFAULT
        case 1:
            del message.external_data[:]
        case 2:
            message.external_data.add(key="length", value="16")
    return tuple(path), seal_unchecked(graph, manifest)


def _measure_distances() -> tuple[dict[str, list[Any]], dict[str, int]]:
    """For each message of ONNX: its fields that lead to a tensor, and the number of fields to the nearest tensor."""
    fields: dict[str, list[Any]] = {
        kind.full_name: [field for field in kind.fields if field.message_type is not None]
        for kind in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()
    }
    distances = {onnx.TensorProto.DESCRIPTOR.full_name: 0}
    while True:
        found = {
            name: 1 + min(distances[one.message_type.full_name] for one in leading)
            for name, inner in fields.items()
            if name not in distances and (leading := [one for one in inner if one.message_type.full_name in distances])
        }
        if not found:
            break
        distances |= found
    leading_of = {name: [f for f in inner if f.message_type.full_name in distances] for name, inner in fields.items()}
    return leading_of, distances


_STEPS, _DISTANCES = _measure_distances()
PLACES = {  # places of tensors: the message and its field
    (name, field.name)
    for name, inner in _STEPS.items()
    for field in inner
    if field.message_type.full_name == onnx.TensorProto.DESCRIPTOR.full_name
}
