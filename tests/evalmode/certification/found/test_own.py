"""An artifact of evalmode is certified again by what its manifest states, with the same answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import evalmode
from evalmode.artifact.manifest import ClassifierManifest, TensorManifest
from evalmode.artifact.tensors import INPUT
from evalmode.certification.certify import certify, draw_golden
from evalmode.certification.found.found import find_network
from evalmode.certification.found.own import read_own
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract, Resize
from evalmode.runtime.loading import load_artifact
from tests.conftest import COLOURS, map_graph

ADOPTED = Resize(0.875, "bicubic", jpeg_scaling=False, mode="squash", keeps_exact_size=False, crop_offset="floored")
TEMPERATURE = 2.0


def warm_artifact(contract: PixelContract) -> bytes:
    """A classifier with the optional output ``activation_map`` and a temperature."""
    graph = map_graph()
    softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
    softmax.input[0] = "cooled"
    division = onnx.helper.make_node("Div", ["logits", "temperature"], ["cooled"])
    graph.graph.node.insert(list(graph.graph.node).index(softmax), division)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(TEMPERATURE, np.float32), "temperature"))
    properties = {"network": "colours", "temperature": TEMPERATURE}
    manifest = ClassifierManifest(COLOURS, contract, properties, None, ("activation_map",))
    golden = draw_golden(contract, len(COLOURS))
    return certify(graph, manifest, {INPUT: golden}, ("",) * len(golden), difference=0.0)


def write_images(folder: Path, channel_order: str) -> list[Path]:
    """Ten images of each label, whose brightest channel is that of the label in pixels of an order."""
    paths = []
    for index, label in enumerate(COLOURS):
        (folder / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 99, (9, 12, 3), np.uint8)
            pixels[..., index if channel_order == "RGB" else 2 - index] += 120
            paths.append(folder / label / f"{number}.png")
            Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    "contract",
    [
        PixelContract(4, 4, 3),
        PixelContract(4, 4, 3, ADOPTED),
        PixelContract(4, 4, 3, channel_order="BGR"),
        PixelContract(4, 4, 3, Resize(0.95, "bicubic"), exif_orientation=False, background=None),
    ],
    ids=["usual", "resize of other libraries", "BGR", "of photos, without EXIF and background"],
)
def test_an_artifact_is_certified_again_without_options_and_answers_the_same(
    contract: PixelContract, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(warm_artifact(contract))
    images = write_images(tmp_path / "images", contract.channel_order)
    again = evalmode.certify(path, tmp_path / "images")
    assert again.labels == COLOURS
    assert again.contract == contract
    old, new = (load_artifact(one).as_classifier() for one in (path.read_bytes(), again.artifact))
    for image in images[::7]:
        before, after = ({one.label: one.probability for one in model.predict(image).scores} for model in (old, new))
        assert after == pytest.approx(before, abs=1e-6)


def test_an_option_changes_one_rule_of_the_contract(tmp_path: Path) -> None:
    contract = PixelContract(4, 4, 3, ADOPTED, exif_orientation=False, background=None)
    (tmp_path / "model.onnx").write_bytes(warm_artifact(contract))
    found = find_network(tmp_path / "model.onnx", {"interpolation": "nearest"})
    taken = PixelContract(4, 4, 3)
    assert found.choose_contract(taken) == replace(contract, resize=replace(ADOPTED, interpolation="nearest"))
    stated = PixelContract(4, 4, 3, Resize(0.5))
    assert find_network(tmp_path / "model.onnx", {}, stated).choose_contract(taken) == stated


def test_an_option_of_the_resize_decodes_large_jpegs_whole(tmp_path: Path) -> None:
    """As for a network of another tool: the decoder of JPEGs scales nothing that an option states."""
    contract, taken = PixelContract(4, 4, 3, Resize(0.95, "bicubic")), PixelContract(4, 4, 3)
    (tmp_path / "model.onnx").write_bytes(warm_artifact(contract))
    for stated in ({"antialias": False}, {"crop_offset": "floored"}, {"interpolation": "bicubic"}):
        resize = find_network(tmp_path / "model.onnx", stated).choose_contract(taken).resize
        assert resize == replace(contract.resize, **stated, jpeg_scaling=False)
    for other in ({}, {"exif_orientation": False}):
        assert find_network(tmp_path / "model.onnx", other).choose_contract(taken).resize.jpeg_scaling
    assert find_network(tmp_path / "model.onnx", {}, contract).choose_contract(taken) == contract


def test_an_assumed_resize_is_not_stated_by_the_artifact(tmp_path: Path) -> None:
    """Images of the exact size need no resize, so those of another size ask for one, also of the artifact."""
    write_images(tmp_path / "images", "RGB")
    for path in tmp_path.glob("images/*/*.png"):
        exact = tmp_path / "exact" / path.parent.name
        exact.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.resize((4, 4)).save(exact / path.name)
    model = map_graph()
    model.graph.node.remove(next(node for node in model.graph.node if node.output[0] == "activation_map"))
    del model.graph.output[2:]
    onnx.save(model, tmp_path / "network.onnx")
    preprocessing = evalmode.Preprocessing((0, 255))
    options = evalmode.ClassifierOptions(output="logits")
    first = evalmode.certify(tmp_path / "network.onnx", tmp_path / "exact", COLOURS, preprocessing, options)
    assumed = "no file states how images are resized: assumed crop and bilinear"
    assert any(note.startswith(assumed) for note in first.notes)
    path = tmp_path / "model.onnx"
    path.write_bytes(first.artifact)
    again = evalmode.certify(path, tmp_path / "exact")
    assert again.contract == first.contract
    assert any(note.startswith(assumed) for note in again.notes)
    with pytest.raises(UsageError, match=r"^30 of 30 images are not 4x4 .* no file states how training resized them"):
        evalmode.certify(path, tmp_path / "images")
    stated = PixelContract(4, 4, 3, Resize(mode="squash", jpeg_scaling=False))
    path.write_bytes(evalmode.certify(path, tmp_path / "images", contract=stated).artifact)
    assert evalmode.certify(path, tmp_path / "images").contract == stated


@pytest.mark.parametrize("metadata", [TensorManifest().to_metadata(), {"names": "{0: 'a'}"}])
def test_other_files_state_nothing(metadata: dict[str, str]) -> None:
    assert list(read_own(metadata)) == []
