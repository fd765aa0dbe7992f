"""Each reader, on files as the tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from evalmode.certification.found.facts import Fact
from evalmode.certification.found.graph import read_classes, read_rescaling, read_shape
from evalmode.certification.found.hugging_face import read_hugging_face
from evalmode.certification.found.image_keys import read_image_keys
from evalmode.certification.found.label_files import read_label_files
from evalmode.certification.found.place import Place, find_place
from evalmode.certification.found.timm import read_timm
from evalmode.certification.found.triton import read_triton
from evalmode.certification.found.ultralytics import read_ultralytics
from evalmode.certification.found.values import MAX_METADATA_BYTES, read_json
from evalmode.certification.images import read_labelled
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
ARITHMETIC = {"do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, **IMAGENET}
EFFICIENTNET = {"do_center_crop": False, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": True}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "model.onnx", tmp_path)


def values(facts: Any) -> dict[str, Any]:
    """The values by name; the problem in place of a value that cannot be used."""
    return {fact.name: fact.problem or fact.value for fact in facts}


def write(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# Hugging Face


RESIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT": (
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 192}, "resample": 2},
        {"size": (224, 192), "resize": "squash", "crop_ratio": 1.0, "interpolation": "bilinear"},
    ),
    "ViT of 2021": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2},
        {"size": (224, 224), "resize": "squash", "crop_ratio": 1.0, "interpolation": "bilinear"},
    ),
    "CLIP": (
        {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 256}, "crop_size": 224}
        | {"resample": 3},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 0.875, "interpolation": "bicubic"},
    ),
    "MobileNet of 2022": (
        {"feature_extractor_type": "MobileNetV2FeatureExtractor", "size": 256, "do_center_crop": True}
        | {"crop_size": {"height": 224, "width": 224}, "resample": 2},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 0.875, "interpolation": "bilinear"},
    ),
    "ConvNext": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.9}
        | {"resample": 3},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 224 / 248, "interpolation": "bicubic"},
    ),
    "ConvNext of transformers 4 by torchvision": (
        {"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 224}, "crop_pct": 0.9}
        | {"resample": 3},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 224 / 248, "interpolation": "bicubic"}
        | {"crop_offset": "rounded"},
    ),
    "ConvNext of 384": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.9}
        | {"resample": 1},
        {"size": (384, 384), "resize": "squash", "crop_ratio": 1.0, "interpolation": "lanczos"},
    ),
    "CLIP as it is": (
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "resample": 3}
        | {"crop_size": {"height": 224, "width": 224}},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 1.0, "interpolation": "bicubic"},
    ),
    "Levit": (
        {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}, "resample": 3}
        | {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 0.875, "interpolation": "bicubic"},
    ),
    "PoolFormer": (
        {"image_processor_type": "PoolFormerImageProcessorFast", "size": {"shortest_edge": 224}, "resample": 3}
        | {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_pad": None},
        {"size": (224, 224), "resize": "crop", "crop_ratio": 224 / 248, "interpolation": "bicubic"},
    ),
    "EfficientFormer": (
        {"image_processor_type": "EfficientFormerImageProcessor", "size": {"height": 224, "width": 224}, "resample": 3}
        | {"crop_size": {"height": 224, "width": 224}},
        {"size": (224, 224), "resize": "squash", "crop_ratio": 1.0, "interpolation": "bicubic"},
    ),
    "Segformer": (
        {"image_processor_type": "SegformerImageProcessor", "size": {"height": 512, "width": 512}, "resample": 2}
        | {"do_reduce_labels": True},
        {"size": (512, 512), "resize": "squash", "crop_ratio": 1.0, "interpolation": "bilinear"},
    ),
    "DeiT": (
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 256, "width": 256}, "resample": 3}
        | {"crop_size": {"height": 224, "width": 224}},
        {"size": (224, 224), "resize": "squash", "crop_ratio": 0.875, "interpolation": "bicubic"},
    ),
}


@pytest.mark.parametrize("kind", RESIZES)
def test_hugging_face_states_how_images_are_resized(kind: str, place: Place) -> None:
    config, expected = RESIZES[kind]
    write(place.folder / "preprocessor_config.json", {**config, **ARITHMETIC})
    facts = values(read_hugging_face(place))
    crops = expected["resize"] == "crop" or expected["crop_ratio"] < 1
    assert facts == {
        **({"crop_offset": "floored"} if crops else {}),
        **expected,
        "scale": (0.0, 1.0),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


@pytest.mark.parametrize(
    ("config", "scale", "mean", "std"),
    [
        ({}, (0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"do_rescale": False}, (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"do_normalize": False}, (0.0, 1.0), (0.0,), (1.0,)),
        ({"image_mean": 0.5, "image_std": 0.5}, (0.0, 1.0), (0.5,), (0.5,)),
        (
            {"image_processor_type": "EfficientNetImageProcessor", **EFFICIENTNET, "image_mean": 0.0, "image_std": 0.5},
            (-1.0, 1.0),
            (0.0,),
            (0.25,),  # include_top divides twice
        ),
    ],
)
def test_hugging_face_states_the_arithmetic(
    config: dict[str, Any], scale: tuple, mean: tuple, std: tuple, place: Place
) -> None:
    rest = {"size": {"height": 8, "width": 8}, "resample": 2}
    write(place.folder / "preprocessor_config.json", {**rest, **ARITHMETIC, **config})
    facts = values(read_hugging_face(place))
    assert (facts["scale"], facts["mean"], facts["std"]) == (scale, mean, std)


def test_hugging_face_states_blue_green_red(place: Place) -> None:
    config = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 288}, "resample": 2}
    write(place.folder / "preprocessor_config.json", {**config, "crop_size": {"height": 256, "width": 256}})
    facts = values(read_hugging_face(place))
    assert (facts["bgr"], facts["mean"], facts["crop_ratio"]) == (True, (0.0,), 256 / 288)


@pytest.mark.parametrize(
    ("config", "name", "problem"),
    [
        (
            {"image_processor_type": "PerceiverImageProcessor"},
            "resize",
            "how image processor 'PerceiverImageProcessor' resizes",
        ),
        ({"do_pad": True}, "resize", "do_pad is not supported"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 4}}, "crop_ratio", "a crop of 8x4 of 8x8"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 8}, "crop_pct": 0},
            "size",
            "crop_pct is 0: expected a number above 0 and at most 1",
        ),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 9}}, "size", "{'longest_edge': 9}"),
        ({"size": 224}, "size", "size is 224: without image_processor_type, expected height and width"),
        ({"size": {"height": -1, "width": 8}}, "size", "expected a side of 1 to 65535 pixels"),
        ({"size": {"height": 10**400, "width": 8}}, "size", "expected a side of 1 to 65535 pixels"),
        ({"size": {"shortest_edge": 8}}, "resize", "size 8 without a crop"),
        ({"resample": 9}, "interpolation", "resample is 9: expected a number of Pillow's resampling filters, 0 to 5"),
        ({"image_mean": "x"}, "mean", "image_mean is 'x': expected one finite number, or one for each of 3 channels"),
        ({"image_std": [0.5, 0.5, 0]}, "std", "image_std is [0.5, 0.5, 0]: expected numbers above 0"),
        ({"image_std": 10**400}, "std", "expected one finite number"),
        ({"rescale_factor": float("nan")}, "scale", "rescale_factor is nan: expected one finite number"),
    ],
)
def test_values_of_hugging_face_that_cannot_be_used_are_problems(
    config: dict[str, Any], name: str, problem: str, place: Place
) -> None:
    rest = {"size": {"height": 8, "width": 8}, "resample": 2}
    write(place.folder / "preprocessor_config.json", {**rest, **ARITHMETIC, **config})
    found = [fact for fact in read_hugging_face(place) if fact.name == name and fact.problem]
    assert problem in found[0].problem
    assert "preprocessor_config.json" in found[0].problem


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"0": "cat", "1": "dog"}, ("cat", "dog")),
        ({"1": "dog", "0": "cafe\u0301"}, ("café", "dog")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),  # written where there are no names
        ({"0": "crane", "1": "cat", "2": "crane"}, ("crane (0)", "cat", "crane (2)")),
        ({"0": "crane", "1": "crane (0)", "2": "crane"}, "'crane (0)' is the name of 0 and of 1: each label once"),
        ({"0": "cat", "2": "dog"}, "1 is missing"),
        ({"0": "cat"}, "it names 1 labels: at least 2"),
        ({"cat": "0"}, "expected names by index from 0"),
        ([1, 2], "expected names of labels"),
    ],
)
def test_hugging_face_states_labels(names: object, expected: object, place: Place) -> None:
    write(place.folder / "config.json", {"model_type": "vit", "id2label": names})
    found = values(read_hugging_face(place)).get("labels")
    assert found == expected if not isinstance(expected, str) else expected in str(found)


def test_labels_with_the_same_name_are_said(place: Place) -> None:
    write(place.folder / "config.json", {"id2label": {"0": "crane", "1": "cat", "2": "crane"}})
    (fact,) = read_hugging_face(place)
    assert fact.source.endswith("config.json: id2label; 'crane' with their index, as the name of several labels")


def test_the_error_of_a_folder_named_like_several_labels_lists_them(tmp_path: Path) -> None:
    (tmp_path / "crane").mkdir()
    labels = (*(str(number) for number in range(9)), "crane (9)", "crane (10)")
    with pytest.raises(UsageError, match=r"like a label: crane; labels: crane \(9\), crane \(10\), 0, 1, 2, ..."):
        read_labelled(tmp_path, labels, PixelContract(8, 8, 3))


def test_a_processor_of_images_and_texts_states_that_of_images(place: Place) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "size": {"height": 9, "width": 9}, "resample": 2}
    write(place.folder / "preprocessor_config.json", {**config, **ARITHMETIC, "size": {"height": 8, "width": 8}})
    write(place.folder / "processor_config.json", {"tokenizer": {}})
    assert values(read_hugging_face(place))["size"] == (8, 8)
    write(place.folder / "processor_config.json", {"image_processor": {**config, **ARITHMETIC}, "tokenizer": {}})
    assert values(read_hugging_face(place))["size"] == (9, 9)


def test_a_network_of_several_labels_an_image_is_rejected(place: Place) -> None:
    write(place.folder / "config.json", {"problem_type": "multi_label_classification"})
    with pytest.raises(UsageError, match="multi_label_classification: evalmode serves one label an image"):
        list(read_hugging_face(place))


# timm


PRETRAINED = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
PRETRAINED |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "num_classes": 2, "pool_size": None}


def test_timm_states_the_evaluation_transform(place: Place) -> None:
    config = {
        "architecture": "resnet10t",
        "num_classes": 2,
        "label_names": ["cat", "dog"],
        "pretrained_cfg": PRETRAINED,
    }
    write(place.folder / "config.json", config)
    assert values(read_timm(place)) == {
        "labels": ("cat", "dog"),
        "size": (224, 224),
        "channels": 3,
        "scale": (0.0, 1.0),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "resize": "crop",
        "crop_ratio": 224 / 248,  # 248.9 rounded down
        "interpolation": "bicubic",
        "crop_offset": "rounded",
    }
    assert list(read_hugging_face(place)) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"crop_mode": "squash"}, {"resize": "squash"}),
        ({"crop_pct": None, "mean": None}, {"crop_ratio": 0.875, "mean": (0.485, 0.456, 0.406)}),
        ({"input_size": [3, 224, 192], "interpolation": "bilinear"}, {"size": (224, 192), "interpolation": "bilinear"}),
        ({"input_size": [3, 224, 192], "crop_mode": "squash"}, {"resize": "squash", "interpolation": "bicubic"}),
        ({"crop_mode": "border", "crop_pct": 1.0}, {"resize": "letterbox", "padding": (128, 128, 128)}),
        (
            {"crop_mode": "border", "crop_pct": 1.0, "mean": [0.485, 0.456, 0.406]},
            {"crop_ratio": 1.0, "padding": (124, 116, 104)},
        ),
    ],
)
def test_timm_states_modes_and_has_defaults(changed: dict, expected: dict, place: Place) -> None:
    write(place.folder / "config.json", {"pretrained_cfg": {**PRETRAINED, **changed}})
    assert expected.items() <= values(read_timm(place)).items()


@pytest.mark.parametrize(
    ("changed", "name", "problem"),
    [
        ({"interpolation": "random"}, "interpolation", "interpolation is 'random': expected one of nearest, box"),
        ({"crop_pct": 1.2}, "crop_ratio", "crop_pct is 1.2: expected a number above 0 and at most 1"),
        ({"crop_mode": ["x"]}, "resize", "crop_mode is ['x']: expected one of center, squash"),
        ({"crop_mode": "border"}, "resize", "crop_mode is 'border' with crop_pct 0.9: expected 1"),
        ({"input_size": [3, 224, 192]}, "interpolation", "timm before 1.0.31 is bilinear for 224x192"),
        ({"input_size": 224}, "size", "input_size is 224: expected channels, height and width"),
        ({"input_size": [4, 8, 8]}, "channels", "expected 1 (grey) or 3 (colour) channels"),
    ],
)
def test_values_of_timm_that_cannot_be_used_are_problems(changed: dict, name: str, problem: str, place: Place) -> None:
    write(place.folder / "config.json", {"pretrained_cfg": {**PRETRAINED, **changed}})
    assert problem in values(read_timm(place))[name]


# Metadata of ONNX files


ULTRALYTICS = {"description": "Ultralytics YOLO11n-cls model trained on /data", "author": "Ultralytics", "stride": "1"}
ULTRALYTICS |= {"task": "classify", "batch": "1", "imgsz": "[224, 192]", "names": "{0: 'cat', 1: \"dog's\"}"}
ULTRALYTICS |= {"args": "{'batch': 1, 'half': False}", "channels": "3", "version": "8.3.200", "end2end": "False"}


def test_ultralytics_states_names_and_size() -> None:
    facts = values(read_ultralytics(ULTRALYTICS))
    assert (facts["labels"], facts["size"], facts["channels"]) == (("cat", "dog's"), (224, 192), 3)
    assert (facts["scale"], facts["mean"], facts["std"]) == ((0.0, 1.0), (0.0,), (1.0,))
    assert (facts["resize"], facts["crop_ratio"], facts["interpolation"]) == ("squash", 1.0, "bilinear")
    assert values(read_ultralytics({**ULTRALYTICS, "imgsz": "[224, 224]"}))["resize"] == "crop"
    assert list(read_ultralytics({"names": "x"})) == []


def test_the_resize_of_early_ultralytics_is_a_problem() -> None:
    found = values(read_ultralytics({**ULTRALYTICS, "version": "8.0.200"}))
    assert found["resize"] == "version 8.0.200 of Ultralytics resizes in a way that is not supported"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("{0: open('/etc/passwd')}", "expected a Python literal"),  # nothing is executed
        ("[" * 10_000, "expected a Python literal"),
        ("'" + "x" * 2**20 + "'", "expected at most 1,048,576 characters"),
        ("{0: 'cat', 1: 2}", "expected names of labels"),
    ],
)
def test_damaged_names_of_ultralytics_are_problems(names: str, problem: str) -> None:
    found = values(read_ultralytics({**ULTRALYTICS, "names": names}))["labels"]
    assert problem in found
    assert len(found) < 200


def test_a_detector_of_ultralytics_is_rejected() -> None:
    with pytest.raises(UsageError, match="'task' of the file is 'detect': expected classify"):
        list(read_ultralytics({**ULTRALYTICS, "task": "detect"}))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"Image.BitmapPixelFormat": "Bgr8"}, {"channels": 3, "bgr": True}),
        ({"image.bitmappixelformat": "RGB8"}, {"channels": 3, "bgr": False}),
        ({"Image.BitmapPixelFormat": "Gray8"}, {"channels": 1}),
        ({"Image.NominalPixelRange": "NominalRange_0_255"}, {"scale": (0.0, 255.0)}),
        ({"Image.NominalPixelRange": "Normalized_1_1"}, {"scale": (-1.0, 1.0)}),
        ({"Image.NominalPixelRange": "NominalRange_16_235"}, {"scale": (16.0, 235.0)}),
        ({"Image.ColorSpaceGamma": "SRGB"}, {}),
    ],
)
def test_image_keys_state_channels_order_and_scale(keys: dict[str, str], expected: dict[str, Any]) -> None:
    assert values(read_image_keys(keys)) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [("BitmapPixelFormat", "Rgba8"), ("NominalPixelRange", "Half"), ("ColorSpaceGamma", "Linear")],
)
def test_image_keys_that_are_not_supported_are_problems(key: str, value: str) -> None:
    (problem,) = values(read_image_keys({f"Image.{key}": value})).values()
    assert f"metadata 'Image.{key}' of the file is '{value}'" in problem


# Graphs


def make_graph(shape: tuple[int | str, ...], *nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [image], [], tensors))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("N", 3, 8, 6), {"channels": 3, "size": (8, 6)}),
        (("N", 8, 6, 1), {"channels": 1, "size": (8, 6)}),
        (("N", 3, "H", "W"), {"channels": 3}),
        (("N", 3, 8, 3), {}),  # either layout
        (("N", "C", 8, 8), {}),
        (("N", 64), {}),
    ],
)
def test_the_input_states_size_and_channels(shape: tuple[int | str, ...], expected: dict[str, Any]) -> None:
    assert values(read_shape(make_graph(shape))) == expected


def test_a_denotation_states_which_axis_is_the_channels() -> None:
    graph = make_graph(("N", 3, 8, 3))
    graph.graph.input[0].type.tensor_type.shape.dim[3].denotation = "DATA_CHANNEL"
    assert values(read_shape(graph)) == {"channels": 3, "size": (3, 8)}


def test_scikit_learn_states_classes() -> None:
    node = helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"])
    (fact,) = read_classes(make_graph((1, 4), node))
    assert (fact.value, fact.fallback) == (("cat", "dog"), False)
    linear = helper.make_node("LinearClassifier", ["x"], ["l", "s"], domain="ai.onnx.ml", classlabels_ints=[3, 7])
    (fact,) = read_classes(make_graph((1, 4), linear))
    assert (fact.value, fact.fallback) == (("3", "7"), True)
    network = onnx.load(Path(__file__).parents[3] / "foreign" / "sklearn.onnx")
    assert values(read_classes(network)) == {"labels": tuple(map(str, range(10)))}


@pytest.mark.parametrize(
    ("operator", "constant", "found"),
    [("Mul", 1 / 255, True), ("Mul", 1 / 127.5, True), ("Div", 255, True), ("Mul", 0.5, False), ("Div", 0, False)],
)
def test_a_rescaling_layer_of_keras_states_the_scale(operator: str, constant: float, found: bool) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node(operator, ["f", "c"], ["y"])]
    graph = make_graph(("N", 8, 8, 3), *nodes, c=np.array(constant, np.float32))
    assert values(read_rescaling(graph)) == ({"scale": (0.0, 255.0)} if found else {})


# Label files and Triton


def test_the_image_processor_of_a_network_of_timm_states_nothing(place: Place) -> None:
    config = {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": PRETRAINED}
    write(place.folder / "preprocessor_config.json", config)
    assert list(read_hugging_face(place)) == []


def test_label_files_state_labels(place: Place) -> None:
    write(place.folder / "labels.txt", "cat\ndog\n")
    write(place.folder / "class_indices.json", {"dog": 1, "cat": 0})
    facts = list(read_label_files(place))
    assert [fact.value for fact in facts] == [("cat", "dog")] * 2
    (place.folder / "labels.txt").write_bytes("cat\ndog\n".encode("utf-16"))
    assert next(read_label_files(place)).value == ("cat", "dog")
    (place.folder / "labels.txt").write_bytes(b"\xff")
    assert next(read_label_files(place)).problem
    write(place.folder / "class_indices.json", {"dog": 1, "cat": 1})
    assert "expected an index for each name, each once" in list(read_label_files(place))[1].problem
    write(place.folder / "labels.txt", "cat\ncat\n")
    assert "names 'cat' on lines 1 and 2" in next(read_label_files(place)).problem


PBTXT = """
name: "pets"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 192 ] } ]
output [
  { name: "features" data_type: TYPE_FP32 dims: [ 512 ] },
  { name: "scores" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "LABELS" }
]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""


def test_triton_states_labels_output_and_size(place: Place) -> None:
    write(place.folder / "config.pbtxt", PBTXT.replace("LABELS", "pets.txt"))
    write(place.folder / "pets.txt", "cat\ndog\n")
    assert values(read_triton(place)) == {
        "labels": ("cat", "dog"),
        "output": "scores",
        "channels": 3,
        "size": (224, 192),
    }


@pytest.mark.parametrize(
    ("name", "problem"),
    [("../labels.txt", "expected a file in"), ("/etc/passwd", "expected a file in"), ("missing.txt", "is missing")],
)
def test_label_files_of_triton_outside_the_folder_or_missing_are_problems(
    name: str, problem: str, place: Place
) -> None:
    write(place.folder / "config.pbtxt", PBTXT.replace("LABELS", name))
    assert problem in values(read_triton(place))["labels"]


def test_a_damaged_configuration_of_triton_is_rejected(place: Place) -> None:
    write(place.folder / "config.pbtxt", "input [ {")
    with pytest.raises(UsageError, match=r"config\.pbtxt is not a model configuration: .*: correct it, or remove it"):
        list(read_triton(place))


# Files and places


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", r"holds \[\]: expected a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (" " * (MAX_METADATA_BYTES + 1), "is larger than 8,388,608 bytes"),
    ],
    ids=["cut", "list", "deep", "large"],
)
def test_damaged_files_are_rejected_in_one_line(content: str, problem: str, tmp_path: Path) -> None:
    write(tmp_path / "config.json", content)
    with pytest.raises(UsageError, match=problem) as caught:
        read_json(tmp_path / "config.json")
    assert "remove it" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("model.onnx", "model_quantized.onnx"), "model.onnx"),
        (("resnet.onnx",), "resnet.onnx"),
        (("onnx/model.onnx", "onnx/model_fp16.onnx"), "onnx/model.onnx"),
        (("1/model.onnx", "9/model.onnx", "10/net.onnx", "x/model.onnx"), "10/net.onnx"),
    ],
)
def test_the_network_of_a_folder_is_found(files: tuple[str, ...], found: str, tmp_path: Path) -> None:
    make_files(tmp_path, files)
    assert find_place(tmp_path) == Place(tmp_path / found, tmp_path)
    assert find_place(tmp_path / found) == Place(tmp_path / found, tmp_path)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ((), r"holds no model\.onnx, onnx/model\.onnx or VERSION/model\.onnx"),
        (("a.onnx", "b.onnx"), r"holds a\.onnx, b\.onnx: name the file"),
        (("model.onnx", "onnx/model.onnx"), "name the file"),
        (("model.onnx", "1/model.onnx"), "name the file"),
    ],
)
def test_a_folder_with_no_network_or_several_is_rejected(files: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    make_files(tmp_path, files)
    with pytest.raises(UsageError, match=problem):
        find_place(tmp_path)


def make_files(root: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()


def test_facts_of_readers_name_their_source(place: Place) -> None:
    write(place.folder / "config.json", {"id2label": {"0": "cat", "1": "dog"}})
    assert list(read_hugging_face(place)) == [Fact("labels", ("cat", "dog"), f"{place.folder}/config.json: id2label")]
