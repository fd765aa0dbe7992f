"""The answers of a network's own library are compared with those of the artifact, and recorded in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

import evalmode
from evalmode.artifact.manifest import read_manifest
from evalmode.artifact.tensors import softmax
from evalmode.certification.images import read_labelled
from evalmode.cli.main import cli
from evalmode.errors import GoldenMismatch, ReferenceMismatch, UsageError
from tests.conftest import COLOURS

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "certify.md"
PREPROCESSING = evalmode.Preprocessing((0, 255))


@pytest.fixture
def answers(network: Path, images: Path) -> dict[str, Any]:
    """The arrays of a reference: names and logits as another program computes them."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(images / name), np.float32) for name in names])
    session = onnxruntime.InferenceSession(network.read_bytes(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return {"names": np.array(names), "logits": logits}


def certify(network: Path, images: Path, arrays: dict[str, Any]) -> Any:
    """Certify a network with a reference of these arrays."""
    path = network.parent / "answers.npz"
    np.savez(path, **arrays)
    options = evalmode.ClassifierOptions(reference=path)
    return evalmode.certify(network, images, COLOURS, PREPROCESSING, options)


def test_agreement_is_recorded_in_the_artifact(network: Path, images: Path, answers: dict[str, Any]) -> None:
    certified = certify(network, images, answers)
    (reference,) = certified.references
    assert (reference.source, reference.images, reference.changed) == ("answers.npz", 18, 0)
    assert reference.largest_difference < 1e-6
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(certified.artifact).metadata_props}
    assert read_manifest(metadata).properties["references"] == [vars(reference)]


def test_names_of_images_are_relative_to_their_table(network: Path, images: Path, answers: dict[str, Any]) -> None:
    table = images / "labels.csv"
    table.write_text("\n".join(("file,label", *(f"{name},{name.partition('/')[0]}" for name in answers["names"]))))
    (reference,) = certify(network, table, answers).references
    assert (reference.images, reference.changed) == (18, 0)


def test_probabilities_in_another_order_of_labels_and_of_images_agree(
    network: Path, images: Path, answers: dict[str, Any]
) -> None:
    order = [2, 0, 1]
    arrays = {
        "names": answers["names"][::-2],
        "probabilities": softmax(answers["logits"])[::-2, order],
        "labels": np.array(COLOURS)[order],
    }
    (reference,) = certify(network, images, arrays).references
    assert reference.images == 9
    assert reference.largest_difference < 1e-6


def test_names_and_labels_may_be_bytes_in_any_normal_form(network: Path, images: Path, answers: dict[str, Any]) -> None:
    (images / "red" / "0.png").rename(images / "red" / "cafe\u0301.png")  # as macOS names it
    names = [name.replace("red/0.png", "red/caf\u00e9.png").encode() for name in answers["names"].tolist()]
    arrays = {**answers, "names": np.array(names), "labels": np.array([label.encode() for label in COLOURS])}
    (reference,) = certify(network, images, arrays).references
    assert reference.images == 18


def test_another_answer_of_one_image_is_rejected_with_its_path(
    network: Path, images: Path, answers: dict[str, Any]
) -> None:
    answers["logits"][7] = answers["logits"][0]
    with pytest.raises(ReferenceMismatch, match=r"green/1\.png\), and 1 of 18 predicted labels change"):
        certify(network, images, answers)


def test_a_small_difference_of_many_images_is_rejected(network: Path, images: Path, answers: dict[str, Any]) -> None:
    answers["logits"] = answers["logits"] * np.float32(1.1)
    with pytest.raises(ReferenceMismatch, match=r"\(limit 0\.001; .*\), and 0 of 18 predicted labels change"):
        certify(network, images, answers)


def test_the_message_asks_for_causes_that_fit_the_size_of_the_difference(
    network: Path, images: Path, answers: dict[str, Any]
) -> None:
    slight = {**answers, "logits": answers["logits"] * np.float32(1.1)}
    with pytest.raises(ReferenceMismatch, match=r"change: are resize, interpolation, antialiasing and the JPEG"):
        certify(network, images, slight)
    exchanged = {**answers, "logits": answers["logits"][:, ::-1]}
    with pytest.raises(ReferenceMismatch, match=r"change: are size, .* and the order of the labels right\?$"):
        certify(network, images, exchanged)


def test_a_reference_that_agrees_leaves_the_order_of_labels_and_the_training_as_causes(
    network: Path, images: Path, answers: dict[str, Any]
) -> None:
    """The columns of the file are those of the network, in whatever order --labels names them."""
    half = {name: array[::2] for name, array in answers.items()}
    np.savez(network.parent / "answers.npz", **half)
    options = evalmode.ClassifierOptions(reference=network.parent / "answers.npz")
    message = (
        r"guessing among 3 labels: answers\.npz has the same answers for 9 images, so the pixels and the arithmetic "
        r"are right: is the order of --labels right, and was the network trained long enough\? To publish"
    )
    with pytest.raises(GoldenMismatch, match=message):
        evalmode.certify(network, images, COLOURS[1:] + COLOURS[:1], PREPROCESSING, options)


def test_the_message_names_the_orientation_and_the_transparency_that_images_have(
    network: Path, images: Path, answers: dict[str, Any]
) -> None:
    """Whether training applied them is the question that only such images raise."""
    orientation = Image.Exif()
    orientation[0x0112] = 3
    with Image.open(images / "red" / "0.png") as picture:
        picture.convert("RGBA").save(images / "red" / "0.png", exif=orientation)
    exchanged = {**answers, "logits": answers["logits"][:, ::-1]}
    message = (
        r"right\?; 1 of 18 images have an EXIF orientation: .*--no-exif-orientation; 1 of 18 images may have transp"
    )
    with pytest.raises(ReferenceMismatch, match=message):
        certify(network, images, exchanged)


def test_a_label_that_changes_in_a_near_tie_is_counted(network: Path, images: Path, answers: dict[str, Any]) -> None:
    pixels = np.full((4, 4, 3), (100, 100, 95), np.uint8)
    pixels[0, 0, 0] += 1
    Image.fromarray(pixels).save(images / "red" / "tie.png")
    tied = np.array([[100 + 1 / 16, 100, 95]], np.float32) / 25.5
    answers["names"] = np.array([*answers["names"], "red/tie.png"])
    (reference,) = certify(network, images, {**answers, "logits": np.concatenate([answers["logits"], tied])}).references
    assert (reference.near_ties, reference.changed) == (1, 0)
    other = {**answers, "logits": np.concatenate([answers["logits"], tied[:, [1, 0, 2]]])}
    (reference,) = certify(network, images, other).references
    assert (reference.near_ties, reference.changed) == (1, 1)
    assert 1e-4 < reference.largest_difference < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: {"logits": one["logits"]}, "holds logits: expected names, and probabilities or logits"),
        (lambda one: {"names": one["names"]}, "holds names: expected names, and probabilities or logits"),
        (lambda one: {**one, "probabilities": one["logits"]}, "expected names, and probabilities or logits"),
        (lambda one: {**one, "logits": one["logits"][1:]}, r"shape \(17, 3\) .* of shape \(18, 3\)"),
        (lambda one: {**one, "logits": one["logits"] * np.nan}, "NaN or infinite"),
        (
            lambda one: {"names": one["names"], "probabilities": one["logits"]},
            "expected 0 to 1; logits are named logits",
        ),
        (lambda one: {**one, "names": np.arange(18)}, "names are int64: expected strings"),
        (lambda one: {**one, "logits": one["logits"].astype(str)}, "logits are <U.*: expected numbers"),
        (lambda one: {**one, "labels": np.array(["red", "green", "cyan"])}, "other labels than the network, such as"),
        (lambda one: {**one, "names": np.array(["x.png", *one["names"][1:]])}, r"names x\.png, which is no image in"),
        (lambda one: {**one, "names": one["names"][[0, *range(17)]]}, "names an image twice"),
    ],
)
def test_arrays_that_do_not_fit_are_rejected(
    change: Any, message: str, network: Path, images: Path, answers: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=message):
        certify(network, images, change(answers))


def test_the_guide_answers_every_image_before_anything_is_published(images: Path) -> None:
    """Its program finds nested folders, PNG, and suffixes in upper case, as the command does."""
    guide = GUIDE.read_text()
    answers = guide[guide.index("answers.py") :].partition("```\n")[0]
    (images / "red" / "nested").mkdir()
    for name, form in (("red/nested/1.PNG", "PNG"), ("blue/2.JPG", "JPEG"), ("green/3.jpeg", "JPEG")):
        Image.new("RGB", (4, 4)).save(images / name, form)
    (images / "red" / "notes.txt").write_text("text")
    (images / "beside.jpg").write_bytes(b"in no folder of a label")
    lines = [line.strip() for line in answers.splitlines()]
    code = [line for line in lines if line.startswith(("from pathlib", "SUFFIXES", "photos =", "paths =", "names ="))]
    found: dict[str, Any] = {}
    exec("\n".join(code).replace('Path("photos")', f"Path({str(images)!r})"), found)
    expected = read_labelled(images, COLOURS, evalmode.PixelContract(4, 4, 3)).paths
    assert sorted(found["names"]) == sorted(path.relative_to(images).as_posix() for path in expected)
    commands = re.findall(r"evalmode certify [^`]*", guide)
    assert [command for command in commands if "--repository" in command and "--reference" not in command] == []
    assert all(
        "import tensorflow as tf" in block for block in re.findall(r"```python.*?```", guide, re.S) if "tf." in block
    )


def test_the_command_prints_the_agreement(network: Path, images: Path, answers: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "answers.npz", **answers)
    (tmp_path / "labels.txt").write_text("\n".join(COLOURS))
    options = ["--images", images, "--labels", tmp_path / "labels.txt", "--scale", "0,255"]
    options += ["--repository", tmp_path / "models", "--name", "colours", "--reference", tmp_path / "answers.npz"]
    result = CliRunner().invoke(cli, ["certify", str(network), *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "reference answers.npz: 18 of 18 images agree, probabilities within" in result.output
    assert "note      answers.npz states no labels: their order was not compared" in result.output
    assert "nothing compared" not in result.output
    np.savez(tmp_path / "answers.npz", **answers, labels=COLOURS)
    result = CliRunner().invoke(cli, ["certify", str(network), *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "states no labels" not in result.output
    result = CliRunner().invoke(cli, ["certify", str(network), *map(str, options), "--json"])
    assert json.loads(result.stdout)["references"][0]["images"] == 18
