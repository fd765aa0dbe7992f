"""Facts of several sources and of the user, and networks that are certified by what their files state."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import evalmode
from evalmode.certification.assumed import survey_images
from evalmode.certification.found.facts import OPTIONS, STATED, Fact, choose_facts, list_replaced
from evalmode.certification.found.found import find_network, to_resize
from evalmode.cli import certify as command
from evalmode.cli.main import cli
from evalmode.errors import UsageError
from evalmode.images.contract import CROP_OFFSETS, MODES, Resize
from evalmode.images.resizing import INTERPOLATIONS, MIN_CROP_RATIO
from evalmode.limits import Limits
from evalmode.runtime.loading import load_model
from evalmode.runtime.model import ImageClassifier

SIDE = 8
FOREIGN = Path(__file__).parents[3] / "foreign"
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 3}
PROCESSOR |= {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


# The choice of facts


def test_sources_that_agree_are_no_contradiction() -> None:
    facts = [
        Fact("scale", (0.0, 1.0), "a"),
        Fact("scale", (0.0, 0.9999999), "b"),
        Fact("mean", (0.5,), "a"),
        Fact("mean", (0.5, 0.5, 0.5), "b"),
        Fact("labels", ("cat", "dog"), "a"),
        Fact("labels", ("cat", "dog"), "b"),
    ]
    assert {name: fact.source for name, fact in choose_facts(facts, {}).items()} == dict.fromkeys(
        ("scale", "mean", "labels"), "a"
    )


@pytest.mark.parametrize(
    ("name", "one", "other", "message"),
    [
        ("scale", (0.0, 1.0), (0.0, 255.0), "scale 0,1 in a and 0,255 in b; state --scale"),
        ("mean", (0.5,), (0.5, 0.5, 0.4), "mean 0.5 in a and 0.5,0.5,0.4 in b; state --mean"),
        ("size", (8, 8), (8, 9), "size 8x8 in a and 8x9 in b; state --size"),
        ("labels", ("x", "y"), ("x", "y", "z", "w"), "labels 2 (x, y) in a and 4 (x, y, z, ...) in b; state --labels"),
        ("bgr", True, False, "bgr yes in a and no in b; state --bgr or --rgb"),
        ("crop_ratio", 0.875, 1.0, "crop ratio 0.875 in a and 1 in b; state --crop-ratio"),
        ("resize", "crop", "squash", "resize crop in a and squash in b; state --resize"),
        ("antialias", True, False, "antialias yes in a and no in b; state --antialias or --no-antialias"),
    ],
)
def test_contradictions_are_rejected_unless_the_user_decides(
    name: str, one: object, other: object, message: str
) -> None:
    facts = [Fact(name, one, "a"), Fact(name, other, "b")]
    with pytest.raises(UsageError) as caught:
        choose_facts(facts, {})
    assert str(caught.value) == f"sources contradict each other: {message}"
    assert choose_facts(facts, {name: other}) == {name: Fact(name, other, STATED)}


def test_all_faults_are_reported_together_unless_the_user_decides() -> None:
    facts = [Fact("mean", None, "a", "a: mean is 'x'"), Fact("std", None, "a", "a: std is 'y'")]
    with pytest.raises(UsageError, match=r"^a: mean is 'x'; state --mean\. a: std is 'y'; state --std$"):
        choose_facts(facts, {})
    assert choose_facts(facts, {"mean": (0.0,), "std": (1.0,)}).keys() == {"mean", "std"}


def test_facts_that_the_user_replaces_are_listed() -> None:
    facts = [
        Fact("scale", (0.0, 255.0), "the network"),
        Fact("mean", (0.5,), "a"),
        Fact("labels", ("0", "1"), "b", fallback=True),
        Fact("interpolation", None, "c", "c is 7"),
        Fact("size", (8, 8), "d"),
    ]
    stated = {"scale": (0.0, 1.0), "mean": (0.5, 0.5, 0.5), "labels": ("x", "y"), "interpolation": "bicubic"}
    assert list_replaced(facts, stated) == ("the stated scale 0,1 replaces 0,255 in the network",)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (("a", "b", "c", "e", "d"), "label 3 is e instead of d"),
        (("a", "b", "c", "d"), "4 instead of 5"),
        (("a", "b", "c", "d", "e", "f"), "6 instead of 5"),
    ],
)
def test_labels_that_the_user_replaces_are_named_by_the_first_difference(
    stated: tuple[str, ...], expected: str
) -> None:
    facts = [Fact("labels", ("a", "b", "c", "d", "e"), "names.txt")]
    assert list_replaced(facts, {"labels": stated}) == (f"the stated labels replace those in names.txt: {expected}",)


def test_class_numbers_give_way_to_names() -> None:
    numbers = Fact("labels", ("0", "1"), "graph", fallback=True)
    names = Fact("labels", ("cat", "dog"), "labels.txt")
    assert choose_facts([numbers, names], {})["labels"] is names
    assert choose_facts([numbers], {})["labels"] is numbers


def test_a_resize_of_another_library_decodes_and_resizes_whole_images() -> None:
    assert to_resize({}) == Resize()
    facts = {"resize": Fact("resize", "squash", "a"), "interpolation": Fact("interpolation", "bicubic", "a")}
    assert to_resize(facts) == Resize(1.0, "bicubic", jpeg_scaling=False, mode="squash", keeps_exact_size=False)


def test_every_fact_has_an_option_of_the_command_with_its_values() -> None:
    options = {name: one for one in command.certify.params for name in (*one.opts, *one.secondary_opts)}
    assert {word for text in OPTIONS.values() for word in text.split() if word.startswith("--")} <= options.keys()
    names = ("--resize", "--crop-offset", "--interpolation")
    kinds = [options[name].type for name in names]
    choices = [tuple(kind.choices) for kind in kinds if isinstance(kind, click.Choice)]
    assert choices == [MODES, CROP_OFFSETS, tuple(INTERPOLATIONS)]
    assert command.MIN_CROP_RATIO == MIN_CROP_RATIO


# Networks that are certified by what their files state


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of noise, 8x8 or wider, one half brighter, in folders named after the half."""
    root = tmp_path_factory.mktemp("halves") / "images"
    rng = np.random.default_rng(0)
    for index in range(40):
        pixels = rng.integers(0, 128, (SIDE, SIDE + index % 3, 3))
        pixels[:, (slice(0, SIDE // 2), slice(SIDE // 2, None))[index % 2]] += 100
        (root / ("left", "right")[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / ("left", "right")[index % 2] / f"{index}.png")
    return root


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network of images of any size whose scores are the means of the left and of the right half of the image."""
    halves = np.zeros((3, SIDE, SIDE, 2), np.float32)
    halves[:, :, : SIDE // 2, 0] = halves[:, :, SIDE // 2 :, 1] = 1 / (3 * SIDE * SIDE / 2)
    weights: dict[str, np.ndarray] = {
        "weights": halves.reshape(-1, 2),
        "rows": np.array([-1, 3 * SIDE * SIDE], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, "H", "W"))]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("N", 2))]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "halves", inputs, outputs, tensors)
    folder = tmp_path / "halves"
    (folder / "onnx").mkdir(parents=True)
    path = folder / "onnx" / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def certify(what: Path, images: Path, *options: str) -> ImageClassifier:
    """Run the command in this process, and load the published artifact."""
    repository = images.parent / f"models-{what.parent.name}-{len(options)}"
    shutil.rmtree(repository, ignore_errors=True)
    arguments = ("certify", what, "--images", images, "--repository", repository, "--name", "x", *options)
    cli.main([str(one) for one in arguments], "evalmode", standalone_mode=False)
    return load_model(repository / "x" / "1" / "model.onnx").as_classifier()


def describe(folder: Path, processor: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "left", "1": "right"}}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def test_a_folder_of_hugging_face_is_certified_without_an_option(
    network: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = network.parents[1]
    describe(folder, PROCESSOR)
    model = certify(folder, images)
    assert model.manifest.labels == ("left", "right")
    assert model.manifest.pixels.shape == (SIDE, SIDE, 3)
    assert model.manifest.pixels.resize == Resize(1.0, "bicubic", False, "squash", keeps_exact_size=False)
    pixels = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    np.testing.assert_allclose(model.classify(pixels)[1], (1 - 0.5) / 0.25, rtol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert f"found     labels 2 (left, right), in {folder}/config.json: id2label" in lines
    assert f"found     mean 0.5,0.5,0.5, in {folder}/preprocessor_config.json: image_mean" in lines
    assert "found     channels 3, in the network's input x float32 (N, 3, H, W)" in lines


def test_options_take_precedence_over_files(network: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(network.parents[1], {**PROCESSOR, "image_mean": "damaged", "size": {"longest_edge": 9}})
    options = ("--mean", "0", "--size", "8x8", "--resize", "crop", "--interpolation", "box", "--crop-ratio", "0.5")
    model = certify(network, images, *options)
    assert model.manifest.pixels.resize == Resize(0.5, "box", jpeg_scaling=False, keeps_exact_size=False)
    pixels = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    np.testing.assert_allclose(model.classify(pixels)[1], 1 / 0.25, rtol=1e-5)
    shown = capsys.readouterr().out
    assert "found     mean" not in shown
    source = network.parents[1] / "preprocessor_config.json"
    assert f"note      the stated interpolation box replaces bicubic in {source}: resample" in shown


def test_everything_that_is_missing_is_asked_for_at_once(network: Path, images: Path) -> None:
    rest = "or --samples for a network of other tensors"
    resize = "; --resize, too, unless all images have the network's size"
    with pytest.raises(UsageError) as caught:
        certify(network, images)
    assert str(caught.value) == f"--labels, --scale, --size missing, {rest}{resize}"
    (network.parents[1] / "labels.txt").write_text("left\nright\n")
    with pytest.raises(UsageError) as caught:
        certify(network, images)
    assert str(caught.value) == f"--scale, --size missing, {rest}{resize}"
    with pytest.raises(UsageError) as caught:
        certify(network, images, "--resize", "squash")
    assert str(caught.value) == f"--scale, --size missing, {rest}"


def state(network: Path, *options: str) -> tuple[str, ...]:
    """Labels in a file, and the options that the network needs, with others."""
    (network.parents[1] / "labels.txt").write_text("left\nright\n")
    return ("--scale", "0,1", "--size", f"{SIDE}x{SIDE}", *options)


def test_options_state_antialiasing_orientation_and_background(network: Path, images: Path) -> None:
    """Each reaches the pixel contract of the artifact."""
    options = ("--no-antialias", "--no-exif-orientation", "--background", "none", "--resize", "squash")
    pixels = certify(network, images, *state(network, *options)).manifest.pixels
    assert not pixels.resize.antialias
    assert not pixels.exif_orientation
    assert pixels.background is None
    options = ("--antialias", "--exif-orientation", "--background", "1,2,3", "--resize", "squash")
    pixels = certify(network, images, *state(network, *options)).manifest.pixels
    assert pixels.resize.antialias
    assert pixels.exif_orientation
    assert pixels.background == (1, 2, 3)


@pytest.mark.parametrize("colour", ["white", "1,2", "0,0,256", "-1,0,0", ""])
def test_a_background_that_is_no_colour_is_rejected(colour: str, network: Path, images: Path) -> None:
    with pytest.raises(click.BadParameter, match=r"is not none, or red, green and blue of 0 to 255"):
        certify(network, images, *state(network, "--background", colour))


def test_images_of_another_size_need_a_resize_that_is_stated(network: Path, images: Path) -> None:
    """The command and Python treat them alike: no resize is right for most networks."""
    message = r"^26 of 40 images are not 8x8 \(width x height\), such as .*\.png \(\d+x8\), .*: state --resize and"
    with pytest.raises(UsageError, match=message):
        certify(network, images, *state(network))
    fixed = onnx.load(network)
    for axis, side in ((2, SIDE), (3, SIDE)):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = side
    onnx.save(fixed, network)
    with pytest.raises(UsageError, match=message):
        evalmode.certify(network, images, ["left", "right"], evalmode.Preprocessing((0, 1)))


def test_notes_name_what_is_assumed_and_only_what_matters(
    network: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    orientation = Image.Exif()
    orientation[0x0112] = 3
    turned = Image.open(root / "left" / "0.png")
    turned.save(root / "left" / "turned.jpg", quality=95, exif=orientation)
    turned.convert("RGBA").save(root / "left" / "clear.png", exif=orientation)
    with Image.open(root / "left" / "0.png") as plain:
        plain.save(root / "left" / "plain.jpg", quality=95)

    def read_notes(folder: Path, *options: str) -> list[str]:
        certify(network, folder, *state(network, *options))
        *notes, _output, unproven = [
            line[10:] for line in capsys.readouterr().out.splitlines() if line.startswith("note")
        ]
        assert unproven.startswith("nothing compared these answers with those of the library that made the network")
        return notes

    fitting = tmp_path / "fitting"
    for path in images.rglob("*.png"):
        (fitting / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.crop((0, 0, SIDE, SIDE)).save(fitting / path.parent.name / path.name)
    resize = "no file states how images are resized: assumed crop and bilinear; --resize and --interpolation state "
    assert read_notes(fitting) == [resize + "another way"]
    antialiased = (
        "no file states antialiasing: assumed antialiased; --no-antialias for tf.image, OpenCV and tensors of "
    )
    assert read_notes(images, "--resize", "squash") == [
        "no file states the interpolation: assumed bilinear; --interpolation states another one",
        antialiased + "torchvision",
    ]
    assert read_notes(images, "--resize", "squash", "--interpolation", "bicubic") == [antialiased + "torchvision"]
    assert read_notes(images, "--resize", "squash", "--interpolation", "bicubic", "--antialias") == []
    assert read_notes(images, "--resize", "crop", "--interpolation", "bilinear") == []  # wider, and as high
    assert read_notes(fitting, "--resize", "squash", "--interpolation", "bilinear") == []
    stated = ("--resize", "squash", "--interpolation", "nearest")
    assert read_notes(images, *stated) == []
    assert read_notes(root, *stated) == [
        "2 of 43 images have an EXIF orientation: assumed that training applied it; if not, --no-exif-orientation",
        "1 of 43 images may have transparent pixels: assumed white under them; another colour by --background, none if "
        "training ignored it",
    ]
    assert read_notes(root, *stated, "--no-exif-orientation", "--background", "255,255,255") == []


def test_the_size_of_a_photo_that_is_not_turned_is_that_of_its_pixels(network: Path, images: Path) -> None:
    """A photo on its side fits the network only if its orientation is applied."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    root = network.parents[1] / "photos"
    for path in images.rglob("*.png"):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            upright = picture.crop((0, 0, SIDE, SIDE)).resize((SIDE, SIDE + 4))
            upright.rotate(90, expand=True).save(root / path.parent.name / path.name, exif=orientation)
    survey = survey_images(sorted(root.rglob("*.png")), Limits(), exif_orientation=True)
    assert set(survey.sizes) == {(SIDE, SIDE + 4)}
    assert survey.turned == 40
    survey = survey_images(sorted(root.rglob("*.png")), Limits(), exif_orientation=False)
    assert set(survey.sizes) == {(SIDE + 4, SIDE)}
    with pytest.raises(UsageError, match=r"^40 of 40 images are not 8x8 .* \(12x8\)"):
        certify(network, root, *state(network, "--no-exif-orientation"))
    with pytest.raises(UsageError, match=r"^40 of 40 images are not 8x8 .* \(8x12\)"):
        certify(network, root, *state(network))


def test_the_interpolation_nearest_drops_only_an_antialiasing_that_a_file_states(
    network: Path, images: Path, tmp_path: Path
) -> None:
    options = state(network, "--resize", "squash", "--no-antialias")
    with pytest.raises(UsageError) as caught:
        certify(network, images, *options, "--interpolation", "nearest")
    remedy = "state --antialias, or --interpolation bilinear or bicubic"
    assert str(caught.value) == f"--interpolation nearest does not fit --no-antialias: {remedy}"
    pixels = certify(network, images, *options).manifest.pixels
    assert not pixels.resize.antialias
    artifact = next(images.parent.glob(f"models-{network.parent.name}-{len(options)}/x/1/model.onnx"))
    kept = tmp_path / "kept" / "model.onnx"
    kept.parent.mkdir()
    shutil.copy(artifact, kept)
    nearest = certify(kept, images, "--interpolation", "nearest").manifest.pixels
    assert nearest == replace(pixels, resize=replace(pixels.resize, interpolation="nearest", antialias=True))
    with pytest.raises(
        UsageError, match=r"^--interpolation lanczos does not fit no antialiasing in the manifest of .*"
    ):
        certify(kept, images, "--interpolation", "lanczos")
    assert certify(kept, images, "--interpolation", "lanczos", "--antialias").manifest.pixels.resize.antialias


def test_the_option_that_samples_exclude_is_named_as_it_was_given(network: Path, images: Path) -> None:
    (network.parent / "samples.npz").touch()
    samples = ("--samples", str(network.parent / "samples.npz"))
    with pytest.raises(UsageError, match=r"^--samples excludes --images, --rgb, --no-antialias: choose$"):
        certify(network, images, "--no-antialias", "--rgb", *samples)
    with pytest.raises(UsageError, match=r"^--samples excludes --images, --antialias: choose$"):
        certify(network, images, "--antialias", *samples)


def test_the_help_shows_what_a_switch_is_by_default() -> None:
    context = click.Context(command.certify, show_default=True)
    options = {one.name: one for one in command.certify.params if isinstance(one, click.Option)}
    shown = {name: options[name].get_help_extra(context)["default"] for name in ("bgr", "antialias")}
    assert shown == {"bgr": "(as the files state, else RGB)", "antialias": "(as the files state, else on)"}
    assert options["exif_orientation"].get_help_extra(context)["default"] == "(as the files state, else on)"


def test_in_python_files_state_what_no_argument_states(network: Path, images: Path) -> None:
    folder = network.parents[1]
    with pytest.raises(UsageError, match=r"model\.onnx: no file states labels and preprocessing: state them"):
        evalmode.certify(folder, images)
    describe(folder, PROCESSOR)
    certified = evalmode.certify(folder, images)
    assert certified.contract.resize.mode == "squash"
    contract = replace(certified.contract, resize=Resize(0.875, "lanczos", antialias=True), background=(0, 0, 0))
    preprocessing = evalmode.Preprocessing((0, 1))
    certified = evalmode.certify(folder, images, ["left", "right"], preprocessing, contract=contract)
    assert certified.contract == contract


def test_metadata_of_the_file_and_of_the_folder_that_contradict_are_rejected(network: Path, images: Path) -> None:
    describe(network.parents[1], PROCESSOR)
    graph = onnx.load(network)
    helper.set_model_props(graph, {"Image.NominalPixelRange": "NominalRange_0_255"})
    onnx.save(graph, network)
    with pytest.raises(UsageError, match=r"^sources contradict each other: scale 0,255 in metadata '.* state --scale$"):
        certify(network.parents[1], images)


def test_an_author_and_a_licence_of_the_file_are_named(network: Path) -> None:
    graph = onnx.load(network)
    helper.set_model_props(graph, {"license": "AGPL-3.0", "model_author": "Ada"})
    onnx.save(graph, network)
    notes = find_network(network, {}).notes
    assert "the file states license 'AGPL-3.0', which is left out: state it with --license" in notes
    assert "the file states model_author 'Ada', which is left out: state it with --author" in notes
