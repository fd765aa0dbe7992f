"""Networks as other tools export them are certified, or rejected with the defect and a remedy in one line.

The scores of each network are the means of the left and of the right half of an image.
"""

from __future__ import annotations

import io
import re
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from evalmode.artifact.tensors import LOGITS
from evalmode.certification.images import read_labelled
from evalmode.certification.samples import read_samples
from evalmode.cli.main import cli
from evalmode.errors import EvalmodeError, ProofFailed, UsageError
from evalmode.images.label_files import read_labels
from evalmode.images.pixels import PixelContract
from evalmode.runtime.loading import load_model

SIDE = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images of noise with one brighter half, in folders named after the half."""
    root = tmp_path_factory.mktemp("halves") / "images"
    rng = np.random.default_rng(0)
    for index in range(72):
        pixels = rng.integers(0, 128, (SIDE, SIDE, 3))
        side = ("left", "right")[index % 2]
        pixels[:, (slice(0, SIDE // 2), slice(SIDE // 2, SIDE))[index % 2]] += 100
        (root / side).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / side / f"{index}.png")
    (root.parent / "labels.txt").write_text("left\nright\n")
    return root


@dataclass(frozen=True)
class Form:
    """A form of the network: pixels (N, 3, H, W) -> Reshape -> dense layer -> scores.

    Its fields are the input's shape and type, the versions, whether the weights are inputs, too, the target shape of
    the Reshape, the shape of the scores, and additions to the graph.
    """

    shape: tuple[int | str, ...] = ("N", 3, SIDE, SIDE)
    kind: int = TensorProto.FLOAT
    opset: int = 13
    ir_version: int = 8
    weights_are_inputs: bool = False
    rows: tuple[int, ...] = (-1, 3 * SIDE * SIDE)
    scores_shape: tuple[int | str, ...] = ("N", 2)
    more_nodes: tuple[onnx.NodeProto, ...] = ()
    more_inputs: tuple[onnx.ValueInfoProto, ...] = ()
    more_outputs: tuple[onnx.ValueInfoProto, ...] = ()


def build(form: Form = Form()) -> onnx.ModelProto:
    halves = np.zeros((3, SIDE, SIDE, 2), np.float32)
    halves[:, :, : SIDE // 2, 0] = halves[:, :, SIDE // 2 :, 1] = 1 / (3 * SIDE * SIDE / 2)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    inner = form.kind if form.kind in floats else TensorProto.FLOAT
    weights = [
        numpy_helper.from_array(halves.reshape(-1, 2).astype(helper.tensor_dtype_to_np_dtype(inner)), "weights"),
        numpy_helper.from_array(np.array(form.rows, np.int64), "rows"),
    ]
    nodes = [
        helper.make_node("Cast", ["data"], ["numbers"], to=inner),
        helper.make_node("Reshape", ["numbers", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        *form.more_nodes,
    ]
    inputs = [helper.make_tensor_value_info("data", form.kind, form.shape), *form.more_inputs]
    if form.weights_are_inputs:
        inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in weights]
    outputs = [helper.make_tensor_value_info("scores", inner, form.scores_shape), *form.more_outputs]
    graph = helper.make_graph(nodes, "halves", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", form.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=form.ir_version)


def certify(images: Path, file: Path, *options: object) -> Path:
    """Run the command in this process, and return the path of the published artifact."""
    repository = file.parent / "models"
    arguments = (
        "--images",
        images,
        "--labels",
        images.parent / "labels.txt",
        "--repository",
        repository,
        "--name",
        "x",
    )
    scale = () if "--scale" in options else ("--scale", "0,1")
    cli.main([str(one) for one in ("certify", file, *arguments, *scale, *options)], "evalmode", standalone_mode=False)
    return repository / "x" / "1" / "model.onnx"


SIZE = ("--size", f"{SIDE}x{SIDE}")
FIXED = Form((1, 3, SIDE, SIDE), rows=(1, -1), scores_shape=(1, 2))
WIDE = Form(
    more_nodes=(helper.make_node("Unsqueeze", ["scores", "axes"], ["wide"]),),
    more_outputs=(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ("N", 2, 1, 1)),),
)
CERTIFIED: dict[str, tuple[Form, tuple[str, ...]]] = {
    "the default": (Form(), ()),
    "IR 3, opset 7, weights among the inputs": (Form(ir_version=3, opset=7, weights_are_inputs=True), ()),
    "opset 9": (Form(opset=9, ir_version=4), ()),
    "a batch of 1, reshaped to (1, -1)": (FIXED, ()),
    "a batch of 1, reshaped to (1, 192)": (replace(FIXED, rows=(1, 3 * SIDE * SIDE)), ()),
    "a batch of 4": (Form((4, 3, SIDE, SIDE), rows=(4, -1), scores_shape=(4, 2)), ()),
    "a batch of 10": (Form((10, 3, SIDE, SIDE), rows=(10, -1), scores_shape=(10, 2)), ()),
    "dynamic channels": (Form(("N", "channels", SIDE, SIDE)), ()),
    "every dimension dynamic": (Form(("N", "C", "H", "W")), (*SIZE[:1], f"{SIDE}x{SIDE}x3")),
    "float16": (Form(kind=TensorProto.FLOAT16), ()),
    "float64": (Form(kind=TensorProto.DOUBLE), ()),
    "uint8": (Form(kind=TensorProto.UINT8), ("--scale", "0,255")),
    "scores (N, 2, 1, 1)": (WIDE, ("--output", "wide")),
}


@pytest.mark.parametrize("form", CERTIFIED)
def test_supported_networks_are_certified_and_keep_their_outputs(form: str, images: Path, tmp_path: Path) -> None:
    network_form, arguments = CERTIFIED[form]
    network = build(network_form)
    if "--output" in arguments:
        network.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    onnx.save(network, tmp_path / "network.onnx")
    model = load_model(certify(images, tmp_path / "network.onnx", *arguments))
    assert model.manifest.certificate is not None
    pixels = model.manifest.certificate.inputs["image"]
    values = pixels.astype(np.float64) / (1 if "uint8" in form else 255)
    means = values.reshape(len(pixels), SIDE, 2, SIDE // 2, 3).mean(axis=(1, 3, 4))
    found = model.run({"image": pixels})[LOGITS]
    np.testing.assert_allclose(found, means, rtol=2e-3 if "float16" in form else 1e-5)
    assert {model.predict(path).label == path.parent.name for path in images.glob("*/*.png")} == {True}


def value(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("N", 2)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


TWICE = Form(more_nodes=(helper.make_node("Neg", ["scores"], ["again"]),), more_outputs=(value("again"),))
MASKED = Form(more_nodes=(helper.make_node("Neg", ["mask"], ["other"]),), more_inputs=(value("mask"),))
IDS = helper.make_node("Cast", ["scores"], ["names"], to=TensorProto.STRING)
UNKNOWN = helper.make_node("NoSuchOperator", ["scores"], ["other"])
CONCATENATED = helper.make_node("Concat", ["scores", "scores"], ["both"], axis=0)
REJECTED: dict[str, tuple[Form, tuple[str, ...], str]] = {
    "int32": (Form(kind=TensorProto.INT32), (), "takes data int32 (N, 3, 8, 8): expected images of float32, float16"),
    "uint8 scaled": (Form(kind=TensorProto.UINT8), (), "--scale 0,255 without --mean and --std"),
    "five channels": (
        Form(("N", 5, 8, 8)),
        (),
        "data float32 (N, 5, 8, 8), 5 channels: expected 1 (grey) or 3 (colour)",
    ),
    "three axes": (Form(("N", 8, 24)), (), "data float32 (N, 8, 24): expected 4 dimensions (a batch of images) or 2"),
    "dynamic size": (Form(("N", 3, "H", "W")), (), "data float32 (N, 3, H, W), images of any size: choose one"),
    "every dimension dynamic, a wrong size": (
        Form(("N", "C", "H", "W")),
        ("--size", "9x9"),
        "not run on images of 9x9 with 1",
    ),
    "two inputs": (
        MASKED,
        (),
        "takes data float32 (N, 3, 8, 8); mask float32 (N, 2): expected one",
    ),
    "two outputs": (TWICE, (), "a value for each of 2 labels, and say different things of the images: choose one"),
    "unknown output": (TWICE, ("--output", "logits"), "no output logits, it returns scores float32 (N, 2); again"),
    "other labels": (Form(scores_shape=("N", 5)), (), "scores float32 (N, 5); none has a float value for each of 2"),
    "strings": (Form(more_nodes=(IDS,)), ("--output", "names"), "has no output names"),
    "opset too new": (Form(opset=99), (), "needs opset 99, onnx "),
    "opset too new for onnxruntime": (Form(opset=onnx.defs.onnx_opset_version()), (), "needs a later opset than the "),
    "unknown operator": (Form(more_nodes=(UNKNOWN,)), (), "cannot be loaded by onnxruntime: "),
    "IR too new": (Form(ir_version=99), (), "has IR version 99, onnx "),
    "a fixed batch, concatenated": (
        replace(FIXED, more_nodes=(CONCATENATED,)),
        ("--output", "both"),
        "has no output both",
    ),
}


@pytest.mark.parametrize("form", REJECTED)
def test_unsupported_networks_are_rejected_with_the_cause_in_one_line(form: str, images: Path, tmp_path: Path) -> None:
    network_form, arguments, message = REJECTED[form]
    onnx.save(build(network_form), tmp_path / "network.onnx")
    with pytest.raises(UsageError) as caught:
        certify(images, tmp_path / "network.onnx", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_a_network_whose_outputs_depend_on_the_batch_size_is_rejected(images: Path, tmp_path: Path) -> None:
    """The scores are centred over the batch, so that a batch of 4 gives other scores than one of 64."""
    network = build(Form((4, 3, SIDE, SIDE), rows=(4, -1), scores_shape=(4, 2)))
    network.graph.node[-1].output[0] = "raw"
    network.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["raw", "mean"], ["scores"]),
        ]
    )
    onnx.save(network, tmp_path / "network.onnx")
    with pytest.raises(UsageError, match="fixed to batches of 4, and gives other answers in others: export it with"):
        certify(images, tmp_path / "network.onnx")


@pytest.mark.parametrize(
    ("factors", "step", "same"),
    [
        ((1e-4, 1e-4), 1e-6, False),  # scores up to 5e-5
        ((600.0, 1e-4), 5e-5, True),  # the rounding of float32 for scores of hundreds
        ((600.0, 1e-4), 5e-3, False),
    ],
)
def test_the_tolerance_of_a_network_with_a_freed_batch_is_relative_to_its_scores(
    factors: tuple[float, float], step: float, same: bool, images: Path, tmp_path: Path
) -> None:
    """The network adds the batch size times ``step`` to all scores."""
    network = build(Form((4, 3, SIDE, SIDE), rows=(4, -1), scores_shape=(4, 2)))
    network.graph.node[-1].output[0] = "raw"
    for name, value in {"factors": factors, "step": step, "first": [0]}.items():
        dtype = np.int64 if name == "first" else np.float32
        network.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    network.graph.node.extend(
        [
            helper.make_node("Shape", ["raw"], ["sides"]),
            helper.make_node("Gather", ["sides", "first"], ["size"]),
            helper.make_node("Cast", ["size"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["number", "step"], ["offset"]),
            helper.make_node("Mul", ["raw", "factors"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["scores"]),
        ]
    )
    onnx.save(network, tmp_path / "network.onnx")
    with nullcontext() if same else pytest.raises(UsageError, match="gives other answers in others"):
        certify(images, tmp_path / "network.onnx", "--allow-guessing")


def fix_batch(network: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Let the graph end in a Concat and a Reshape that fail in any other batch size."""
    network.graph.node[-1].output[0] = "raw"
    network.graph.initializer.append(numpy_helper.from_array(np.zeros((2 * batch, 2), np.float32), "nothing"))
    network.graph.initializer.append(numpy_helper.from_array(np.array([2, batch, 2], np.int64), "twice"))
    network.graph.node.extend(
        [
            helper.make_node("Concat", ["raw", "raw"], ["pair"], axis=0),
            helper.make_node("Add", ["pair", "nothing"], ["pairs"]),
            helper.make_node("Reshape", ["pairs", "twice"], ["apart"]),
            helper.make_node("ReduceMean", ["apart"], ["scores"], axes=[0], keepdims=0),
        ]
    )
    return network


@pytest.mark.parametrize("declared", [1, "N"])
@pytest.mark.parametrize("opset", [7, 11, 13, 17])
def test_a_batch_of_1_that_the_graph_fixes_is_run_one_by_one_and_the_command_says_so(
    declared: int | str, opset: int, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    form = Form((declared, 3, SIDE, SIDE), rows=(1, -1), scores_shape=(declared, 2), opset=opset)
    onnx.save(fix_batch(build(form), 1), tmp_path / "network.onnx")
    model = load_model(certify(images, tmp_path / "network.onnx"))
    shown = capfd.readouterr()
    assert "note      the network takes one input at a time: a batch is run one by one" in shown.out
    assert shown.err == ""
    assert (model.batch_invariant, model.max_batch) == (True, 64)
    assert model.manifest.certificate is not None
    pixels = model.manifest.certificate.inputs["image"]
    means = pixels.reshape(len(pixels), SIDE, 2, SIDE // 2, 3).mean(axis=(1, 3, 4)) / 255
    np.testing.assert_allclose(model.run({"image": pixels})[LOGITS], means, rtol=1e-5)


def test_a_batch_of_4_that_the_graph_fixes_is_rejected(images: Path, tmp_path: Path) -> None:
    form = Form((4, 3, SIDE, SIDE), rows=(4, -1), scores_shape=(4, 2))
    onnx.save(fix_batch(build(form), 4), tmp_path / "network.onnx")
    with pytest.raises(UsageError, match="fixed to batches of 4, and does not run in others: export it with a batch"):
        certify(images, tmp_path / "network.onnx")


FILES = {
    "empty": (b"", "is empty"),
    "text": (b"a line of text\n", "is not a complete ONNX file"),
    "torch": (b"PK\x03\x04...", "a zip archive, such as torch.save writes: export the network to ONNX"),
    "pickle": (b"\x80\x02}q\x00.", "a Python pickle"),
    "keras": (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes: convert it with tf2onnx"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "page": (b"<!doctype html>", "was the download refused?"),
    "truncated": (build().SerializeToString()[:-20], "is not a complete ONNX file"),
    "without a graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "without a network in it"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_rejected_with_their_format(name: str, images: Path, tmp_path: Path) -> None:
    content, message = FILES[name]
    (tmp_path / "network.onnx").write_bytes(content)
    with pytest.raises(EvalmodeError) as caught:
        certify(images, tmp_path / "network.onnx")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_external_weights_are_stored_in_the_artifact(images: Path, tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "network.onnx", save_as_external_data=True, location="network.data", size_threshold=0)
    artifact = certify(images, tmp_path / "network.onnx")
    (tmp_path / "network.data").unlink()
    load_model(artifact)
    with pytest.raises(UsageError, match=r"its weights are in network\.data, missing from .*: copy it there"):
        certify(images, tmp_path / "network.onnx")


def test_a_network_without_outputs_is_rejected(images: Path, tmp_path: Path) -> None:
    network = build()
    del network.graph.output[:]
    onnx.save(network, tmp_path / "network.onnx")
    with pytest.raises(UsageError, match="the network returns nothing; none has a float value"):
        certify(images, tmp_path / "network.onnx")


# Label files and .npz files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_labels_are_read_in_every_encoding_and_with_every_line_ending(
    encoding: str, newline: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_bytes(newline.join(["cafe\u0301", " tea ", "", "水"]).encode(encoding))
    assert read_labels(tmp_path / "labels.txt") == ("café", "tea", "水")  # é as one character


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tea\ncafé\n".encode("latin-1"), r"line 2: b'caf\\xe9' is not utf-8: save the file as UTF-8"),
        (b"cat\ndog\n\ncat\n", r"names 'cat' on lines 1 and 4: each label once"),
        ("café\ncafe\u0301\n".encode(), r"names 'café' on lines 1 and 2"),
        (b"", r"names 0 labels, one a line: at least 2"),
        (b"cat,dog", r"names 1 labels, one a line: at least 2"),
    ],
)
def test_invalid_labels_are_rejected_with_the_cause(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_folders_with_decomposed_names_match_their_labels(tmp_path: Path) -> None:
    for folder in ("cafe\u0301", "tea"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / folder / "1.png")
    found = read_labelled(tmp_path, ("tea", "caf\u00e9"), PixelContract(SIDE, SIDE, 3))
    assert found.targets.tolist() == [0, 1]


def damage(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + b"\xff" * 40 + content[middle + 40 :]


def npz(shape: str, data: bytes = b"", cut: int = 0) -> bytes:
    """An .npz whose array has a header with the given shape, truncated by ``cut`` bytes."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = header[: len(header) - cut] + "\n"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        npy = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + data
        zipped.writestr("data.npy", npy)
    return archive.getvalue()


HEADERS = {
    "a truncated header": npz("(8, 3)", cut=9),
    "a header with a syntax error": npz("(8, 3)", cut=20),
    "a shape of 2**70": npz(f"({2**70},)"),
    "a shape of 2**45": npz(f"({2**45},)"),
    "a negative shape": npz("(-1, 3)"),
    "a shape of text": npz("'8'"),
    "fewer bytes than the shape": npz("(8, 3)", bytes(5)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_samples_with_a_damaged_header_are_rejected_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(HEADERS[name])
    with pytest.raises(UsageError, match=f"{path} is not an .npz of arrays, or a damaged one: ") as caught:
        read_samples(path, build())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["empty", "text", "truncated", "damaged", "an .npy", "pickled", "wrong width", "NaN"])
def test_unreadable_samples_are_rejected_in_one_line(name: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "samples.npz", np.random.default_rng(0)
    whole = rng.normal(size=(8, 3, SIDE, SIDE)).astype(np.float32)
    np.savez_compressed(path, data=whole)
    content = path.read_bytes()
    match name:
        case "empty" | "text" | "truncated" | "damaged":
            path.write_bytes(
                {"empty": b"", "text": b"no", "truncated": content[:-99], "damaged": damage(content)}[name]
            )
        case "an .npy":
            with path.open("wb") as file:
                np.save(file, whole)
        case "pickled":
            np.savez(path, data=np.array([{}, {}]))
        case "wrong width":
            np.savez(path, data=whole[..., 1:])
        case "NaN":
            whole[3] = np.nan
            np.savez(path, data=whole)
    with pytest.raises(UsageError, match=str(path)) as caught:
        read_samples(path, build())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "rows", "expected"),
    [
        (np.nan, 1, "weights: 1 of 384 values are NaN or infinite"),
        (3e38, 384, "72 of 72 images get values that are NaN or infinite: are --scale, --mean and --std right?"),
    ],
)
def test_a_network_that_answers_nan_is_rejected(
    images: Path, tmp_path: Path, value: float, rows: int, expected: str
) -> None:
    network = build()
    [weights] = [one for one in network.graph.initializer if one.name == "weights"]
    values = numpy_helper.to_array(weights).copy()
    values.reshape(-1)[:rows] = value
    weights.CopyFrom(numpy_helper.from_array(values, "weights"))
    onnx.save(network, tmp_path / "network.onnx")
    with pytest.raises(ProofFailed, match=re.escape(expected)):
        certify(images, tmp_path / "network.onnx")
    assert not (tmp_path / "models").exists()


def test_a_split_is_suggested_only_if_no_folder_is_named_like_a_label(images: Path, tmp_path: Path) -> None:
    """A label beside another folder is a dataset with one folder too many."""
    for split in ("train", "val"):
        for label in ("left", "right"):
            (tmp_path / "splits" / split / label).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"train, val; labels: left, right; give one split, such as .*/splits/val$"):
        read_labelled(tmp_path / "splits", ("left", "right"), PixelContract(SIDE, SIDE, 3))
    (tmp_path / "splits" / "left" / "right").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"named like a label: train, val; labels: left, right$"):
        read_labelled(tmp_path / "splits", ("left", "right"), PixelContract(SIDE, SIDE, 3))
