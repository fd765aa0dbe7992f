"""Forms of networks that certification changes or refuses: outputs, inputs, training mode, outside weights, int8.

The scores of each network are the means of the left and of the right half of an image, as in ``test_foreign``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from evalmode.artifact.tensors import LOGITS, PROBABILITIES
from evalmode.cli.main import cli
from evalmode.errors import TrainMode, UsageError
from evalmode.runtime.loading import load_model
from evalmode.runtime.session import open_cpu_session
from tests.evalmode.certification.test_foreign import SIDE, Form, build, certify, images

__all__ = ["images"]  # a fixture
FOREIGN = Path(__file__).parents[2] / "foreign"
ENDS = 40.0  # the factor of scores before a softmax or a sigmoid


def value(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("N", 2)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(network: onnx.ModelProto, **arrays: object) -> None:
    """Add initializers."""
    for name, array in arrays.items():
        network.graph.initializer.append(numpy_helper.from_array(np.array(array), name))


def end_in(network: onnx.ModelProto, nodes: list[onnx.NodeProto], *outputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Let a network end in other nodes, which read ``raw``, the difference of both halves times ENDS for each label."""
    network.graph.node[-1].output[0] = "means"
    constant(network, factor=np.array([[ENDS, -ENDS], [-ENDS, ENDS]], np.float32))
    network.graph.node.extend([helper.make_node("MatMul", ["means", "factor"], ["raw"]), *nodes])
    del network.graph.output[:]
    network.graph.output.extend(outputs)
    return network


def read_answers(artifact: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits and probabilities of the golden images, and the expected logits."""
    model = load_model(artifact)
    assert model.manifest.certificate is not None
    pixels = model.manifest.certificate.inputs["image"]
    means = pixels.reshape(len(pixels), SIDE, 2, SIDE // 2, 3).mean(axis=(1, 3, 4)) / 255
    found = model.run({"image": pixels})
    return found[LOGITS], found[PROBABILITIES], ENDS * (means - means[:, ::-1])


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


# Outputs

SOFTMAX = [
    helper.make_node("Identity", ["raw"], ["logits"]),
    helper.make_node("Softmax", ["raw"], ["shares"], axis=1),
]


@pytest.mark.parametrize("order", [("logits", "shares"), ("shares", "logits")])
def test_of_logits_and_their_probabilities_the_logits_are_chosen_by_measurement(
    order: tuple[str, str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(end_in(build(), SOFTMAX, *map(value, order)), tmp_path / "network.onnx")
    logits, _, expected = read_answers(certify(images, tmp_path / "network.onnx"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    note = "note      output logits is used; shares gives the same probabilities, measured on 72 images"
    assert note in capsys.readouterr().out


def test_of_two_outputs_that_differ_on_images_none_is_chosen(images: Path, tmp_path: Path) -> None:
    halved = helper.make_node("Mul", ["shares", "half"], ["halved"])
    network = end_in(build(), [*SOFTMAX, halved], value("logits"), value("halved"))
    constant(network, half=np.float32(0.5))
    onnx.save(network, tmp_path / "network.onnx")
    with pytest.raises(UsageError, match="logits, halved have a value for each of 2 labels, and say different things"):
        certify(images, tmp_path / "network.onnx")


SECOND = helper.make_node("Gather", ["raw", "one"], ["second"], axis=1)
SINGLE: dict[str, tuple[list[onnx.NodeProto], tuple[int | str, ...], str]] = {
    "logits (N, 1)": ([SECOND], ("N", 1), "second is the logit of the second label against the first"),
    "probabilities (N, 1)": (
        [SECOND, helper.make_node("Sigmoid", ["second"], ["p"])],
        ("N", 1),
        "p is the probability of the second label",
    ),
    "probabilities (N,)": (
        [
            SECOND,
            helper.make_node("Sigmoid", ["second"], ["wide"]),
            helper.make_node("Squeeze", ["wide", "one"], ["p"]),
        ],
        ("N",),
        "p is the probability of the second label",
    ),
}


@pytest.mark.parametrize("form", SINGLE)
def test_one_value_of_two_labels_becomes_the_probabilities_of_both(
    form: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, shape, words = SINGLE[form]
    network = end_in(build(), nodes, value(nodes[-1].output[0], shape=shape))
    constant(network, one=np.array([1], np.int64))
    onnx.save(network, tmp_path / "network.onnx")
    _, probabilities, expected = read_answers(certify(images, tmp_path / "network.onnx"))
    np.testing.assert_allclose(probabilities[:, 1], sigmoid(expected[:, 1]), atol=1e-5)
    np.testing.assert_allclose(probabilities[:, 0], sigmoid(-expected[:, 1]), atol=1e-5)
    assert f"note      output {words}" in capsys.readouterr().out


def test_sigmoids_of_all_labels_become_shares_of_their_sum_and_the_command_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Mul", ["raw", "some"], ["less"]), helper.make_node("Sigmoid", ["less"], ["each"])]
    network = end_in(build(), nodes, value("each"))
    constant(network, some=np.array([[0.1, 0.3]], np.float32))
    onnx.save(network, tmp_path / "network.onnx")
    _, probabilities, expected = read_answers(certify(images, tmp_path / "network.onnx"))
    each = sigmoid(expected * [[0.1, 0.3]])
    np.testing.assert_allclose(probabilities, each / each.sum(axis=1, keepdims=True), atol=1e-5)
    assert "output each judges each label by itself (sigmoid): probabilities are shares" in capsys.readouterr().out


def test_of_zipmap_and_names_the_scores_and_the_labels_are_taken(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As skl2onnx exports classifiers with names as labels; tests/foreign/networks has a file of its own."""
    labels = ["left", "right"]
    nodes = [
        helper.make_node("ArgMax", ["raw"], ["best"], axis=1, keepdims=0),
        helper.make_node("ArrayFeatureExtractor", ["classes", "best"], ["label"], domain="ai.onnx.ml"),
        helper.make_node("ZipMap", ["raw"], ["maps"], name="Zip", domain="ai.onnx.ml", classlabels_strings=labels),
    ]
    of_floats = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    maps = helper.make_value_info("maps", helper.make_sequence_type_proto(of_floats))
    network = end_in(build(), nodes, value("label", TensorProto.STRING, ("N",)), maps)
    network.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    network.graph.initializer.append(numpy_helper.from_array(np.array(labels, object), "classes"))
    onnx.save(network, tmp_path / "network.onnx")
    given = ("--images", images, "--repository", tmp_path / "models", "--name", "x", "--scale", "0,1")
    cli.main(["certify", str(tmp_path / "network.onnx"), *map(str, given)], "evalmode", standalone_mode=False)
    shown = capsys.readouterr().out
    assert "found     labels 2 (left, right), in the network's node " in shown
    assert "output raw, in the network's node Zip, which is left out: maps are maps of it" in shown
    artifact = tmp_path / "models" / "x" / "1" / "model.onnx"
    logits, _, expected = read_answers(artifact)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert not {node.op_type for node in onnx.load(artifact).graph.node} & {"ZipMap", "ArrayFeatureExtractor"}


# Inputs


def test_inputs_that_are_not_images_are_left_out_turned_off_or_constant_and_the_command_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shape that no node reads, a switch of Keras that would drop all scores, and a factor with a default value."""
    nodes = [
        helper.make_node("Cast", ["keras_learning_phase"], ["phase"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["factor_of_all", "phase"], ["kept"]),
        helper.make_node("Mul", ["raw", "kept"], ["answers"]),
    ]
    network = end_in(build(), nodes, value("answers"))
    constant(network, factor_of_all=np.float32(1))
    others = [value("keras_learning_phase", TensorProto.BOOL, ()), value("factor_of_all", shape=()), value("im_shape")]
    image = network.graph.input.pop()
    network.graph.input.extend([*others, image])
    onnx.save(network, tmp_path / "network.onnx")
    logits, _, expected = read_answers(certify(images, tmp_path / "network.onnx"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    shown = capsys.readouterr().out
    assert "note      input keras_learning_phase is false: it switches between training and evaluation" in shown
    assert "note      input im_shape is left out: no node reads it" in shown


def test_a_fixed_batch_of_1_of_a_network_of_tensors_is_run_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Add", ["x", "table"], ["sums"])]
    table = np.arange(3, dtype=np.float32)[None]
    nodes.append(helper.make_node("Reshape", ["sums", "row"], ["flat"]))
    nodes.append(helper.make_node("Unsqueeze", ["flat", "row_axis"], ["y"]))
    fixed = [value("x", shape=(1, 3))], [value("y", shape=(1, 3))]
    network = helper.make_model(
        helper.make_graph(nodes, "rows", *fixed), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    constant(network, table=table, row=np.array([3], np.int64), row_axis=np.array([0], np.int64))
    onnx.save(network, tmp_path / "network.onnx")
    samples = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    given = ("--samples", tmp_path / "samples.npz", "--repository", tmp_path / "models", "--name", "x")
    cli.main(["certify", str(tmp_path / "network.onnx"), *map(str, given)], "evalmode", standalone_mode=False)
    assert "note      the network takes one input at a time: a batch is run one by one" in capsys.readouterr().out
    model = load_model(tmp_path / "models" / "x" / "1" / "model.onnx")
    np.testing.assert_array_equal(model.run({"x": samples})["y"], samples + table)


def test_of_scikit_learns_outputs_those_of_numbers_are_certified_as_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of skl2onnx, which returns names and maps; the reference is ONNX Runtime on the file as it is."""
    file = FOREIGN / "networks" / "sklearn" / "network" / "model.onnx"
    rows = np.random.default_rng(0).random((20, 768)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", X=rows)
    given = ("--samples", tmp_path / "samples.npz", "--repository", tmp_path / "models", "--name", "x")
    cli.main(["certify", str(file), *map(str, given)], "evalmode", standalone_mode=False)
    shown = capsys.readouterr().out
    assert "is the tensor that output_probability are maps of, a column each for cardboard, glass, metal, " in shown
    assert "note      output output_label is left out: it is text" in shown
    (found,) = load_model(tmp_path / "models" / "x" / "1" / "model.onnx").run({"X": rows}).values()
    _, maps = open_cpu_session(file.read_bytes()).run(None, {"X": rows})
    np.testing.assert_allclose(found, [list(one.values()) for one in maps], atol=1e-6)


# Training mode


def train(kind: str) -> onnx.ModelProto:
    """A network in training mode, with named nodes, as exporters of several times wrote it."""
    inputs = ["raw", "one", "zero", "zero", "one"]
    norm = partial(helper.make_node, "BatchNormalization", inputs, name="head/norm")
    outputs = ["scores", "mean", "variance", "saved_mean", "saved_variance"]
    drop = partial(helper.make_node, "Dropout", outputs=outputs[:1], name="head/drop")
    opset, nodes = {
        "dropout": (17, [drop(["raw", "ratio", "on"])]),
        "batch norm": (17, [norm(outputs[:3], training_mode=1)]),
        "batch norm of 5 outputs": (9, [norm(outputs)]),
        "dropout of opset 6": (6, [drop(["raw"])]),
        "batch norm of opset 6": (6, [norm(outputs[:1])]),
    }[kind]
    network = end_in(build(Form(opset=opset)), nodes, value("scores"))
    constant(network, one=np.ones(2, np.float32), zero=np.zeros(2, np.float32), ratio=np.float32(0.5), on=True)
    return network


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dropout", r"dropout drops \(head/drop\)"),
        ("batch norm", r"batch norm uses the statistics of its batch \(head/norm\)"),
        ("batch norm of 5 outputs", r"batch norm uses the statistics of its batch \(head/norm\)"),
        ("dropout of opset 6", r"Dropout without is_test \(head/drop\)"),
        ("batch norm of opset 6", r"BatchNormalization without is_test \(head/norm\)"),
    ],
)
def test_training_mode_is_refused_with_the_nodes_and_how_to_export(
    kind: str, words: str, images: Path, tmp_path: Path
) -> None:
    onnx.save(train(kind), tmp_path / "network.onnx")
    remedy = r"torch: network\.eval\(\) before torch\.onnx\.export, .*; Keras: .*training=False"
    with pytest.raises(TrainMode, match=rf"^not in eval mode: {words}\. .*{remedy}") as caught:
        certify(images, tmp_path / "network.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_a_network_of_opset_6_that_states_is_test_is_certified(images: Path, tmp_path: Path) -> None:
    network = train("batch norm of opset 6")
    network.graph.node[-1].attribute.append(helper.make_attribute("is_test", 1))
    onnx.save(network, tmp_path / "network.onnx")
    logits, _, expected = read_answers(certify(images, tmp_path / "network.onnx"))
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


# Weights in other files


def save_outside(path: Path) -> Path:
    """Save a network with its weights in ``network.data`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(build(), path, save_as_external_data=True, location="network.data", size_threshold=0)
    return path


def relocate(path: Path, **facts: object) -> None:
    """Change where a network says that its weights are."""
    network = onnx.load(path, load_external_data=False)
    for entry in (entry for tensor in network.graph.initializer for entry in tensor.external_data):
        if entry.key in facts:
            entry.value = str(facts[entry.key])
    path.write_bytes(network.SerializeToString())


@pytest.mark.parametrize("place", ["../secret.data", "inner/../../secret.data", "ABSOLUTE", "LINK", "FOLDER LINK"])
def test_weights_outside_of_the_folder_are_refused(place: str, images: Path, tmp_path: Path) -> None:
    network = save_outside(tmp_path / "folder" / "network.onnx")
    (tmp_path / "folder" / "network.data").rename(tmp_path / "secret.data")
    match place:
        case "ABSOLUTE":
            relocate(network, location=tmp_path / "secret.data")
        case "LINK":
            (tmp_path / "folder" / "network.data").symlink_to(tmp_path / "secret.data")
        case "FOLDER LINK":
            (tmp_path / "folder" / "up").symlink_to(tmp_path)
            relocate(network, location="up/secret.data")
        case _:
            (tmp_path / "folder" / "inner").mkdir()
            relocate(network, location=place)
    reason = rf"a link to {tmp_path}/secret\.data: copy that file to" if "LINK" in place else "expected a file in"
    with pytest.raises(UsageError, match=f"its weights are in .*{reason}"):
        certify(images, network)


def test_weights_behind_links_of_kubernetes_and_of_hugging_face_are_read(images: Path, tmp_path: Path) -> None:
    save_outside(tmp_path / "volume" / "..2026" / "network.onnx")
    (tmp_path / "volume" / "..data").symlink_to("..2026")
    cache = tmp_path / "cache" / "snapshots" / "main" / "onnx"
    cache.mkdir(parents=True)
    save_outside(tmp_path / "cache" / "blobs" / "network.onnx")
    for name in ("network.onnx", "network.data"):
        (tmp_path / "volume" / name).symlink_to(Path("..data") / name)
        blob = tmp_path / "cache" / "blobs" / f"blob-{name[-4:]}"
        (tmp_path / "cache" / "blobs" / name).rename(blob)
        (cache / name).symlink_to(os.path.relpath(blob, cache))
    for folder in (tmp_path / "volume", cache):
        load_model(certify(images, folder / "network.onnx"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"length": 10**9}, r"cannot be read: bytes .* to .* of .*: copy the whole file"),
        ({"offset": -8}, r"cannot be read: bytes -8 to .*: copy the whole file"),
        ({"offset": "x"}, r"cannot be read: invalid literal"),
    ],
)
def test_weights_that_are_not_whole_are_refused(facts: dict, message: str, images: Path, tmp_path: Path) -> None:
    network = save_outside(tmp_path / "network.onnx")
    relocate(network, **facts)
    with pytest.raises(UsageError, match=message):
        certify(images, network)


def test_weights_of_more_than_2_gib_are_refused_before_they_are_read(images: Path, tmp_path: Path) -> None:
    network = save_outside(tmp_path / "network.onnx")
    with (tmp_path / "network.data").open("r+b") as data:
        data.truncate(2**31)  # a file with a hole: it takes no space
    relocate(network, length=2**31, offset=0)
    with pytest.raises(UsageError, match=r"of weights, one ONNX file can hold at most 2,147,483,647$"):
        certify(images, network)


# int8


class Images(CalibrationDataReader):
    """Images of noise to calibrate with."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches = iter([{"data": rng.random((1, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantized_network_is_certified_and_keeps_its_int8_weights(
    per_channel: bool, images: Path, tmp_path: Path
) -> None:
    onnx.save(build(replace(Form(), opset=17)), tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Images(), QuantFormat.QDQ, per_channel=per_channel)
    artifact = certify(images, tmp_path / "int8.onnx")
    network = onnx.load(artifact)
    assert "DequantizeLinear" in {node.op_type for node in network.graph.node}
    largest = max(network.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    assert (largest.data_type, list(largest.dims)) == (TensorProto.INT8, [3 * SIDE * SIDE, 2])
    model = load_model(artifact)
    assert {model.predict(path).label == path.parent.name for path in images.glob("*/*.png")} == {True}
