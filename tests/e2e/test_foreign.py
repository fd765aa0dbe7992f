"""Networks of other tools: certified, checked, compared and served like those of evalmode.

The files come from tests/foreign/make_*.py: Keras through tf2onnx, scikit-learn through skl2onnx, torchvision.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from evalmode.artifact.tensors import INPUT
from evalmode.client import Client
from evalmode.runtime.loading import load_model
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conftest import serving

Evalmode = Callable[..., subprocess.CompletedProcess[str]]
FOREIGN = Path(__file__).parents[1] / "foreign"
ACCURACY = {"keras": 0.9395, "sklearn": 0.8967}  # as Keras and scikit-learn reported it
PROCESSOR = {  # of Hugging Face
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "crop_pct": 0.875,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last 397 digits as PNG files in folders, and labels.txt."""
    root = tmp_path_factory.mktemp("digits")
    pixels, targets = load_digits(return_X_y=True)
    for index in range(1400, len(targets)):
        folder = root / "images" / str(targets[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels[index].reshape(8, 8) / 16 * 255).astype(np.uint8)).save(folder / f"{index}.png")
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in range(10)))
    return root


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of noise in three folders, and labels.txt."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for label in ("red", "green", "blue"):
        (root / "images" / label).mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(
                root / "images" / label / f"{index}.png"
            )
    (root / "labels.txt").write_text("red\ngreen\nblue\n")
    return root


@pytest.fixture(scope="module")
def published(digits: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory, evalmode: Evalmode) -> Path:
    """A model repository with the three certified networks, and the output of each command.

    The labels of scikit-learn are in its network. The network of torchvision is in a folder of Hugging Face.
    """
    root = tmp_path_factory.mktemp("published")
    folder = tmp_path_factory.mktemp("torchvision")
    shutil.copy(FOREIGN / "torchvision.onnx", folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"id2label": {0: "red", 1: "green", 2: "blue"}}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    jobs: dict[str, tuple[Any, ...]] = {
        "keras": (FOREIGN / "keras.onnx", digits, "--scale", "0,1", "--labels", digits / "labels.txt"),
        "sklearn": (FOREIGN / "sklearn.onnx", digits, "--scale", "0,1", "--size", "8x8"),
        "torchvision": (folder, colours, "--allow-guessing"),  # its weights are random
    }
    for name, (what, data, *options) in jobs.items():
        given = ("--images", data / "images", "--repository", root, "--name", name)
        done = evalmode("certify", what, *given, *options)
        assert done.returncode == 0, done.stderr
        (root / f"{name}.txt").write_text(done.stdout)
    return root


@pytest.mark.parametrize("name", ACCURACY)
def test_accuracy_is_that_of_the_other_tool(published: Path, name: str) -> None:
    accuracy = re.search(r"accuracy  ([\d.]+) of 397 images", (published / f"{name}.txt").read_text())
    assert accuracy
    assert float(accuracy[1]) == ACCURACY[name]


def test_the_graph_contains_the_requested_preprocessing(published: Path, colours: Path) -> None:
    """Compared with the preprocessing of ImageNet in numpy, on the original file."""
    model = load_model(published / "torchvision" / "1" / "model.onnx").as_classifier()
    assert model.manifest.certificate is not None
    pixels = model.manifest.certificate.inputs[INPUT]
    normal = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    session = onnxruntime.InferenceSession(FOREIGN / "torchvision.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": normal.transpose(0, 3, 1, 2).astype(np.float32)})
    np.testing.assert_allclose(model.classify(pixels)[1], expected, rtol=0, atol=1e-5)


def test_probabilities_of_another_tool_stay_unchanged(published: Path) -> None:
    model = load_model(published / "keras" / "1" / "model.onnx").as_classifier()
    assert model.manifest.certificate is not None
    pixels = model.manifest.certificate.inputs[INPUT]
    session = onnxruntime.InferenceSession(FOREIGN / "keras.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": (pixels / 255).astype(np.float32)})
    np.testing.assert_allclose(model.classify(pixels)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["keras", "sklearn", "torchvision"])
def test_a_certified_file_passes_every_check(published: Path, name: str, evalmode: Evalmode) -> None:
    done = evalmode("check", published / name / "1" / "model.onnx", "--json")
    assert done.returncode == 0, done.stdout
    verdicts = json.loads(done.stdout)["verdicts"]
    assert [verdict["check"] for verdict in verdicts if not verdict["passed"]] == []
    assert {"replay", "decoder", "batches", "digest"} <= {verdict["check"] for verdict in verdicts}


def test_an_artifact_is_certified_again_and_laid_out_for_other_tools(
    published: Path, digits: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    given = ("--images", digits / "images", "--repository", tmp_path / "models", "--name", "digits")
    stated = ("--author", "Ada Lovelace", "--license", "MIT", "--also", "triton", "--also", "huggingface")
    done = evalmode("certify", published / "keras" / "1" / "model.onnx", *given, *stated, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert round(answer["quality"]["accuracy"], 4) == ACCURACY["keras"]
    assert [(one["layout"], one["path"], one["kept"]) for one in answer["also"]] == [
        (kind, f"{tmp_path}/models-{kind}/digits", []) for kind in ("triton", "huggingface")
    ]
    assert f"also      {tmp_path}/models-triton/digits, for triton\n" in done.stderr
    card = (tmp_path / "models-huggingface/digits/1/README.md").read_text()
    assert "\nMade by Ada Lovelace.\nLicence: MIT.\n" in card
    assert "Measured on 397 labelled images." in card
    (tmp_path / "models-triton/digits/labels.txt").write_text("0\n1\n")
    again = evalmode("certify", tmp_path / "models-huggingface/digits/1", *given, "--also", "triton")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "models-triton/digits/labels.txt is present with another content, and is not overwritten" in again.stderr
    assert [path.name for path in (tmp_path / "models/digits").iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["keras", "sklearn", "torchvision"])
def test_an_uncertified_file_passes_the_checks_that_apply(name: str, evalmode: Evalmode) -> None:
    done = evalmode("check", FOREIGN / f"{name}.onnx")
    assert done.returncode == 0, done.stdout
    assert "none: evalmode certify adds one" in done.stdout


def test_all_certified_networks_are_served(published: Path, digits: Path, colours: Path) -> None:
    pictures = {"keras": digits, "sklearn": digits, "torchvision": colours}
    with serving(published) as server, Client(server.address) as client:
        for name, data in pictures.items():
            picture = sorted((data / "images").glob("*/*.png"))[5]
            answer = client.predict(picture, model=name, top_k=3)
            local = load_model(published / name / "1" / "model.onnx")
            assert answer.scores == local.predict(picture, top_k=3).scores
            facts = client.get_model(name)
            assert (facts.certified, facts.batch_invariant) == (True, local.batch_invariant)


def test_compare_reports_all_changes(published: Path, digits: Path, evalmode: Evalmode, tmp_path: Path) -> None:
    old, new = (published / name / "1" / "model.onnx" for name in ("sklearn", "keras"))
    page = tmp_path / "page.html"
    done = evalmode("compare", old, new, "--images", digits / "images", "--page", page, "--max-changed", "2%")
    assert done.returncode == 1
    models = [load_model(path) for path in (old, new)]
    right, labels, changed = [], [], 0
    for path in sorted((digits / "images").glob("*/*.png")):
        answers = [model.predict(path).label for model in models]
        right.append([answer == path.parent.name for answer in answers])
        labels.append(path.parent.name)
        changed += answers[0] != answers[1]
    gained = sum(new_right and not old_right for old_right, new_right in right)
    lost = sum(old_right and not new_right for old_right, new_right in right)
    fewer = sum(comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    assert f"labels    {changed} of 397 change ({changed / 397:.2%})" in done.stdout
    assert f"accuracy  0.8967 -> 0.9395: {gained} images gained, {lost} lost, " in done.stdout
    p = re.search(r"McNemar's p ([\d.e-]+)", done.stdout)
    assert p
    assert float(p[1]) == pytest.approx(2 * fewer / 2 ** (gained + lost), rel=0.01)
    by_label = {}
    for label in sorted(set(labels)):
        pairs = [pair for pair, truth in zip(right, labels, strict=True) if truth == label]
        by_label[label] = [
            str(figure) for figure in (len(pairs), pairs.count([False, True]), pairs.count([True, False]))
        ]
    rows = [line.split() for line in done.stdout.splitlines() if re.fullmatch(r"\d( +\d+){3} *", line)]
    assert {row[0]: row[1:] for row in rows} == {
        label: figures for label, figures in by_label.items() if figures[1:] != ["0", "0"]
    }
    assert f"{changed / 397:.2%} of the labels change, --max-changed 2%" in done.stderr
    html = page.read_text()
    groups = re.findall(r"<h2>[^<]*: (\d+)</h2>", html)
    assert [int(count) for count in groups] == [lost, gained, changed - lost - gained]
    assert "http" not in html  # the page loads no external resource
    assert evalmode("compare", old, old, "--images", digits / "images", "--max-changed", "0%").returncode == 0


# Errors of certify


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--scale", "1,0"), "--scale 1,0 is not LOW,HIGH such as -1,1"),
        (("--scale", "0,1", "--mean", "1,2"), "--mean has 2 numbers: expected 1"),
        (("--scale", "0,1", "--std", "0"), "--std 0: expected numbers above 0"),
        (("--scale", "0,1", "--bgr"), "--bgr: the network takes grey images, which have only one channel"),
        (("--scale", "0,1", "--size", "9x9"), "the network takes images of 8x8, --size says 9x9"),
        (("--scale", "0,1", "--name", "../up"), "model name '../up' is not allowed"),
    ],
)
def test_invalid_options_are_rejected(
    digits: Path, tmp_path: Path, evalmode: Evalmode, options: tuple, expected: str
) -> None:
    given = ("--images", digits / "images", "--labels", digits / "labels.txt", "--repository", tmp_path, "--name", "x")
    done = evalmode("certify", FOREIGN / "keras.onnx", *given, *options)
    assert done.returncode == 2
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_network_is_rejected(digits: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    given = ("--images", digits / "images", "--repository", tmp_path / "m", "--name", "x", "--scale", "0,1")
    done = evalmode("certify", digits / "labels.txt", "--labels", digits / "labels.txt", *given)
    assert done.returncode == 2
    assert "labels.txt is not a complete ONNX file" in done.stderr


def test_labels_in_the_wrong_order_are_rejected(digits: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{(label + 1) % 10}\n" for label in range(10)))
    given = ("--images", digits / "images", "--labels", labels, "--repository", tmp_path / "m", "--scale", "0,1")
    done = evalmode("certify", FOREIGN / "keras.onnx", *given, "--name", "x")
    assert done.returncode == 1
    assert (
        "no better than guessing among 10 labels: are --labels, --scale, --mean, --std and --bgr right?" in done.stderr
    )
    assert not (tmp_path / "m").exists()


def test_labels_that_do_not_match_the_network_are_rejected(digits: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{label}\n" for label in range(1, 11)))
    given = ("--images", digits / "images", "--repository", tmp_path / "m", "--name", "x", "--scale", "0,1")
    done = evalmode("certify", FOREIGN / "keras.onnx", "--labels", labels, *given)
    assert done.returncode == 2
    assert "holds folders that are not named like a label: 0" in done.stderr
    labels.write_text("".join(f"{label}\n" for label in range(11)))
    done = evalmode("certify", FOREIGN / "keras.onnx", "--labels", labels, *given)
    assert (
        "the network returns Identity:0 float32 (unk__59, 10); none has a float value for each of 11 labels: do the "
        "labels fit the network?" in done.stderr
    )


def test_active_dropout_is_rejected(digits: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    network = onnx.load(FOREIGN / "sklearn.onnx")
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "ratio"))
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "mode"))
    first = next(node for node in network.graph.node if network.graph.input[0].name in node.input)
    first.input[0] = "dropped"
    network.graph.node.insert(
        0, onnx.helper.make_node("Dropout", [network.graph.input[0].name, "ratio", "mode"], ["dropped"])
    )
    onnx.save(network, tmp_path / "dropout.onnx")
    given = ("--images", digits / "images", "--labels", digits / "labels.txt", "--repository", tmp_path / "m")
    done = evalmode("certify", tmp_path / "dropout.onnx", *given, "--name", "x", "--scale", "0,1", "--size", "8x8")
    assert done.returncode == 1
    assert "not in eval mode: dropout drops" in done.stderr
    done = evalmode("check", tmp_path / "dropout.onnx")
    assert done.returncode == 1
    assert "TrainMode" in done.stdout


@pytest.fixture
def regression(tmp_path: Path) -> Path:
    """A network of tensors: x, float32 (N, 4) -> y = 2x, (N, 4)."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("batch", 4)) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "double", values[:1], values[1:])
    path = tmp_path / "double.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_network_of_tensors_is_certified_by_samples_and_served(
    regression: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    samples = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    repository = tmp_path / "models"
    done = evalmode(
        "certify", regression, "--samples", tmp_path / "samples.npz", "--repository", repository, "--name", "double"
    )
    assert done.returncode == 0, done.stderr
    assert "input     x, float32 (64, 4)" in done.stdout  # the maximum in one file
    checked = evalmode("check", repository / "double/1/model.onnx")
    assert checked.returncode == 0, checked.stdout
    with serving(repository) as running, grpc.insecure_channel(running.address) as channel:
        request = wire.ModelInferRequest(
            model_name="double",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [2, 4]}],
            raw_input_contents=[samples[:2].tobytes()],
        )
        reply = wire_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == (2 * samples[:2]).ravel().tolist()


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": np.zeros((3, 4))}, "holds x float64; the network takes x float32"),
        ({"z": np.zeros((3, 4), np.float32)}, "holds z float32; the network takes x float32"),
        ({}, "holds nothing; the network takes x float32"),
        ({"x": np.zeros((0, 4), np.float32)}, "holds 0 rows"),
    ],
)
def test_samples_that_do_not_match_the_network_are_rejected(
    regression: Path, tmp_path: Path, evalmode: Evalmode, arrays: dict, expected: str
) -> None:
    np.savez(tmp_path / "samples.npz", **arrays)
    done = evalmode(
        "certify", regression, "--samples", tmp_path / "samples.npz", "--repository", tmp_path / "m", "--name", "double"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_certify_needs_either_images_or_samples(regression: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    np.savez(tmp_path / "samples.npz", x=np.zeros((3, 4), np.float32))
    publish = ("certify", regression, "--repository", tmp_path / "models", "--name", "double")
    neither = evalmode(*publish)
    assert neither.returncode == 2
    assert neither.stderr.startswith(
        "evalmode: --images, --labels, --scale, --size missing, or --samples for a network"
    )
    assert len(neither.stderr.splitlines()) == 1
    both = evalmode(*publish, "--samples", tmp_path / "samples.npz", "--scale", "0,1", "--bgr", "--golden", "images")
    assert both.returncode == 2
    assert both.stderr == "evalmode: --samples excludes --scale, --bgr, --golden: choose\n"
    (tmp_path / "text.npz").write_text("not an archive")
    unreadable = evalmode(*publish, "--samples", tmp_path / "text.npz")
    assert unreadable.returncode == 2
    assert "is not an .npz of arrays" in unreadable.stderr
    assert not (tmp_path / "models").exists()
