"""Each layout is read by real parsers, by certify, and by a server, and nothing that is present is overwritten."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from google.protobuf import text_format

import evalmode
import tests.conftest
from evalmode import Client
from evalmode.artifact.manifest import ClassifierManifest, TensorManifest
from evalmode.artifact.sealing import digest_file, open_artifact, seal, state_credits
from evalmode.artifact.tensors import INPUT
from evalmode.certification.certify import certify, draw_golden
from evalmode.certification.found.found import find_network
from evalmode.certification.found.place import find_place
from evalmode.certification.found.triton import read_triton
from evalmode.deployment.layouts import LAYOUTS, publish_everywhere
from evalmode.deployment.release import File, Release
from evalmode.deployment.targets import KINDS, Target
from evalmode.deployment.writing import choose_files
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract
from evalmode.wire import model_config_pb2 as wire
from tests.conftest import COLOURS, colour_artifact, colour_graph, encode, map_artifact, plain

GERMAN = ("rot", "grün", "blau")
ARTIFACT = colour_artifact()
TENSORS = Path(__file__).parents[1] / "artifact" / "fixtures" / "version-4" / "tensors.onnx"
ROOT = Path(__file__).parents[3]
QUALITY = {
    "images": 1200,
    "accuracy": 0.91239,
    "interval": [0.8, 0.95],
    "least_recalls": [0.1, 0.25, 0.875],
    "calibration_error": [0.2, 0.1],
    "temperature": 1.0,
    "cross_validated": {"accuracy": 0.9, "interval": [0.85, 0.93], "images": 300, "folds": 5},
}


def lay_out(kind: str, folder: Path, artifact: bytes = ARTIFACT, name: str = "pets") -> Path:
    """Publish an artifact and lay it out; return the folder of the model in the layout."""
    _, (laid_out,) = publish_everywhere(folder / "models", name, artifact, [Target(kind, folder / kind)])
    return laid_out.path


def list_tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_table_has_every_kind_of_the_option() -> None:
    assert tuple(LAYOUTS) == KINDS


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("triton", {"pets/config.pbtxt", "pets/labels.txt", "pets/1/model.onnx"}),
        ("ovms", {"config.json", "pets/1/model.onnx"}),
        ("kserve", {"pets/serving-runtime.yaml", "pets/inference-service.yaml", "pets/models/1/model.onnx"}),
        ("huggingface", {"pets/1/README.md", "pets/1/config.json", "pets/1/model.onnx"}),
    ],
)
def test_a_layout_has_the_documented_files(kind: str, expected: set[str], tmp_path: Path) -> None:
    model = lay_out(kind, tmp_path)
    assert list_tree(tmp_path / kind) == expected
    (file,) = model.rglob("model.onnx")
    assert file.read_bytes() == ARTIFACT == (tmp_path / "models/pets/1/model.onnx").read_bytes()


# What the files say


def test_triton_reads_inputs_outputs_and_labels(tmp_path: Path) -> None:
    model = lay_out("triton", tmp_path)
    config = text_format.Parse((model / "config.pbtxt").read_text(), wire.ModelConfig())
    image = wire.ModelInput(name="image", data_type="TYPE_UINT8", format="FORMAT_NHWC", dims=[4, 4, 3])
    probabilities = wire.ModelOutput(name="probabilities", data_type="TYPE_FP32", dims=[3], label_filename="labels.txt")
    logits = wire.ModelOutput(name="logits", data_type="TYPE_FP32", dims=[3])
    assert config == wire.ModelConfig(
        name="pets",
        platform="onnxruntime_onnx",
        max_batch_size=64,
        input=[image],
        output=[probabilities, logits],
    )
    assert (model / "labels.txt").read_text().splitlines() == list(COLOURS)


def test_triton_gets_single_inputs_if_batches_give_other_bits(tmp_path: Path) -> None:
    graph, manifest = open_artifact(ARTIFACT)
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.certificate is not None
    varying = replace(manifest, certificate=replace(manifest.certificate, batch_invariant=False))
    model = lay_out("triton", tmp_path, seal(graph, varying))
    assert "max_batch_size: 1\n" in (model / "config.pbtxt").read_text()


def test_triton_computes_no_optional_outputs(tmp_path: Path) -> None:
    model = lay_out("triton", tmp_path, map_artifact())
    config = text_format.Parse((model / "config.pbtxt").read_text(), wire.ModelConfig())
    assert [output.name for output in config.output] == ["probabilities", "logits"]


def test_triton_takes_a_tensor_without_axes_after_the_batch(tmp_path: Path) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(open_artifact(TENSORS.read_bytes())[0])
    for value in (*graph.graph.input, *graph.graph.output):
        del value.type.tensor_type.shape.dim[1:]
    model = lay_out("triton", tmp_path, seal(graph, TensorManifest()))
    config = text_format.Parse((model / "config.pbtxt").read_text(), wire.ModelConfig())
    tensors: list[wire.ModelInput | wire.ModelOutput] = [*config.input, *config.output]
    for one in tensors:
        assert (list(one.dims), one.HasField("reshape"), len(one.reshape.shape)) == ([1], True, 0)


@pytest.mark.parametrize("label", ["a\nb", " a", "a\r", "\ud800"])
def test_labels_that_cannot_be_lines_are_rejected_before_anything_is_published(label: str, tmp_path: Path) -> None:
    artifact = seal(colour_graph(), ClassifierManifest((label, "b", "c"), PixelContract(4, 4, 3)))
    with pytest.raises(UsageError, match="cannot be a line of a label file: rename it"):
        lay_out("triton", tmp_path, artifact)
    assert not list_tree(tmp_path)


def test_openvino_reads_the_place_of_each_model(tmp_path: Path) -> None:
    lay_out("ovms", tmp_path)
    lay_out("ovms", tmp_path, name="dogs")
    models = [("pets", "/models/pets"), ("dogs", "/models/dogs")]
    assert json.loads((tmp_path / "ovms/config.json").read_text()) == {
        "model_config_list": [{"config": {"name": name, "base_path": path}} for name, path in models]
    }


def test_kserve_reads_runtime_and_service(tmp_path: Path) -> None:
    model = lay_out("kserve", tmp_path, name="2_Pets.v1")
    runtime = yaml.safe_load((model / "serving-runtime.yaml").read_text())
    service = yaml.safe_load((model / "inference-service.yaml").read_text())
    assert (runtime["kind"], runtime["spec"]["protocolVersions"]) == ("ServingRuntime", ["grpc-v2"])
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    predictor = service["spec"]["predictor"]["model"]
    assert service["metadata"]["name"] == "model-2-pets-v1"  # Kubernetes allows neither _ nor capitals
    assert predictor["runtime"] == runtime["metadata"]["name"]
    assert predictor["env"] == [{"name": "EVALMODE_SERVE_MODEL_NAME", "value": "2_Pets.v1"}]
    assert predictor["storageUri"].endswith("/2_Pets.v1/models/")
    cluster = yaml.safe_load((ROOT / "deploy/kserve/runtime.yaml").read_text())
    assert runtime["spec"] == cluster["spec"]


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a model card."""
    _, metadata, text = path.read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def describe_classifier(properties: Mapping[str, Any], labels: tuple[str, ...] = COLOURS) -> bytes:
    """An uncertified classifier with properties."""
    return seal(colour_graph(), ClassifierManifest(labels, PixelContract(4, 4, 3), properties))


def test_the_model_card_has_metadata_and_figures(tmp_path: Path) -> None:
    properties = {"network": "compact", "quality": QUALITY, "training": {"epochs": 3, "seed": 0, "width": 1.0}}
    artifact = state_credits(describe_classifier(properties), "Ada *Lovelace*", "Apache-2.0")
    metadata, text = read_card(lay_out("huggingface", tmp_path, artifact) / "1" / "README.md")
    assert (metadata["license"], metadata["library_name"]) == ("apache-2.0", "onnx")
    assert (metadata["pipeline_tag"], metadata["metrics"]) == ("image-classification", ["accuracy"])
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9124}]
    for line in (
        "Made by Ada \\*Lovelace\\*.",
        "Labels (3): red, green, blue",
        "Measured on 1,200 labelled test images.",
        "| accuracy | 0.9124 (0.8000 to 0.9500 with 95% confidence) |",
        "| accuracy, cross-validated: 5 folds of 300 images | 0.9000 (0.8500 to 0.9300 with 95% confidence) |",
        "| calibration error | 0.1000 |",
        "| blue | 0.875 |",
        "Network: compact.",
        "Training: epochs 3, seed 0.",
        f"`model.onnx` was published as version 1, `{digest_file(artifact)}`.",
    ):
        assert f"\n{line}\n" in text
    assert "uint8 (N, 4, 4, 3), RGB" in text
    assert "report" not in text


def test_a_licence_that_the_hub_does_not_know_is_named(tmp_path: Path) -> None:
    artifact = state_credits(describe_classifier({}), None, "In-house: no copies")
    metadata, text = read_card(lay_out("huggingface", tmp_path, artifact) / "1" / "README.md")
    assert (metadata["license"], metadata["license_name"]) == ("other", "In-house: no copies")
    assert "Licence: In-house: no copies." in text


def test_labels_cannot_add_markup_to_the_model_card(tmp_path: Path) -> None:
    artifact = describe_classifier({"quality": QUALITY}, ("<script>", "a|b\n# c", "[x](y)"))
    model = lay_out("huggingface", tmp_path, artifact)
    _, text = read_card(model / "1" / "README.md")
    assert "| &lt;script&gt; | 0.100 |\n| a\\|b \\# c | 0.250 |\n| \\[x\\](y) | 0.875 |\n" in text
    config = json.loads((model / "1" / "config.json").read_text())
    assert config == {
        "id2label": {"0": "<script>", "1": "a|b\n# c", "2": "[x](y)"},
        "label2id": {"<script>": 0, "a|b\n# c": 1, "[x](y)": 2},
    }


def test_labels_that_utf8_cannot_encode_are_replaced_on_the_model_card(tmp_path: Path) -> None:
    model = lay_out("huggingface", tmp_path, describe_classifier({}, ("\ud800", "b", "c")))
    assert "Labels (3): ?, b, c" in (model / "1" / "README.md").read_text()
    assert json.loads((model / "1" / "config.json").read_text())["id2label"]["0"] == "\ud800"


def test_the_model_card_says_whose_images_are_in_the_file(tmp_path: Path) -> None:
    contract = PixelContract(4, 4, 3)
    golden = draw_golden(contract, 3)
    labelled = certify(colour_graph(), ClassifierManifest(COLOURS, contract), {INPUT: golden}, ("red",) * 16, 0.0)
    for name, artifact, whose in (("a", ARTIFACT, "synthetic"), ("b", labelled, "labelled")):
        _, text = read_card(lay_out("huggingface", tmp_path, artifact, name) / "1" / "README.md")
        assert f"The file contains 16 {whose} images and the answers to them" in text


def test_the_report_is_beside_the_model_card(tmp_path: Path) -> None:
    report = tmp_path / "page.html"
    report.write_text("<p>mistakes")
    target = Target("huggingface", tmp_path / "hub")
    artifact = describe_classifier({"quality": QUALITY})
    _, (laid_out,) = publish_everywhere(tmp_path / "models", "pets", artifact, [target], report)
    assert (laid_out.path / "1" / "report.html").read_text() == "<p>mistakes"
    assert "[report](report.html)" in (laid_out.path / "1" / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_tensors_is_laid_out(kind: str, tmp_path: Path) -> None:
    model = lay_out(kind, tmp_path, TENSORS.read_bytes())
    (file,) = model.rglob("model.onnx")
    assert file.read_bytes() == TENSORS.read_bytes()
    if kind == "triton":
        config = text_format.Parse((model / "config.pbtxt").read_text(), wire.ModelConfig())
        assert {one.name for one in config.input} == {"left", "right"}
        assert not any(one.label_filename for one in config.output)
    if kind == "huggingface":
        metadata, text = read_card(model / "1" / "README.md")
        assert metadata == {"library_name": "onnx", "tags": ["onnx", "evalmode"]}
        assert "- `left`: float32 (N" in text


# Who reads them


@pytest.mark.parametrize("kind", ["triton", "ovms", "huggingface"])
def test_certify_finds_the_network_and_all_facts_in_a_layout(kind: str, tmp_path: Path) -> None:
    model = lay_out(kind, tmp_path)
    found = find_network(model / "1" if kind == "huggingface" else model, {})
    assert found.list_missing() == []
    assert found.labels == COLOURS
    assert found.size == (4, 4, 3)


def test_certify_reads_the_configuration_of_triton(tmp_path: Path) -> None:
    facts = {fact.name: fact.value for fact in read_triton(find_place(lay_out("triton", tmp_path)))}
    assert facts == {"labels": COLOURS, "output": "probabilities", "size": (4, 4), "channels": 3}


def list_options(kind: str, model: Path) -> dict[str, str]:
    """The options of the server; for KServe the environment of the container, with a folder in place of its mount."""
    if kind != "kserve":
        return {"repository": str(model.parent)}
    (container,) = yaml.safe_load((model / "serving-runtime.yaml").read_text())["spec"]["containers"]
    predictor = yaml.safe_load((model / "inference-service.yaml").read_text())["spec"]["predictor"]
    variables = {one["name"]: one["value"] for one in container["env"] + predictor["model"]["env"]}
    options = {name.removeprefix("EVALMODE_SERVE_").lower(): value for name, value in variables.items()}
    assert options.pop("repository") == "/mnt/models"
    assert (options.pop("port"), options.pop("metrics_port")) == ("8001", "8002")
    return {**options, "repository": str(model / "models")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_is_served_without_a_warning(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = list_options(kind, lay_out(kind, tmp_path))
    options |= {"no_metrics": True, "transport": tests.conftest.transport}
    with evalmode.start_server(options.pop("repository"), **options) as server, Client(server.address) as client:
        found = client.predict(encode(plain("green")))
        assert (found.label, found.model, found.version) == ("green", "pets", "1")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


# What is present


@pytest.fixture
def edited(tmp_path: Path) -> dict[str, Path]:
    """Files of the first version that people have edited, by layout."""
    lay_out("triton", tmp_path)
    lay_out("ovms", tmp_path)
    lay_out("kserve", tmp_path)
    files = {
        "triton": tmp_path / "triton/pets/config.pbtxt",
        "ovms": tmp_path / "ovms/config.json",
        "kserve": tmp_path / "kserve/pets/inference-service.yaml",
    }
    files["triton"].write_text(files["triton"].read_text() + "dynamic_batching { }\n")
    files["ovms"].write_text(files["ovms"].read_text().replace('"/models/pets"', '"/srv/pets", "nireq": 4'))
    files["kserve"].write_text(files["kserve"].read_text().replace("s3://BUCKET", "s3://zoo"))
    return files


@pytest.mark.parametrize("kind", ["triton", "ovms", "kserve"])
def test_settings_that_people_edited_are_kept(kind: str, edited: dict[str, Path], tmp_path: Path) -> None:
    before = edited[kind].read_text()
    number = len(list((tmp_path / "models/pets").iterdir())) + 1
    _, (laid_out,) = publish_everywhere(tmp_path / "models", "pets", ARTIFACT, [Target(kind, tmp_path / kind)])
    assert edited[kind].read_text() == before
    assert list(laid_out.path.rglob(f"{number}/model.onnx"))
    if kind != "ovms":  # which is read, and only extended
        assert laid_out.kept == (edited[kind],)
        assert f"kept      {edited[kind]}, which was edited" in laid_out.describe()


def test_a_second_model_keeps_the_settings_of_the_first(edited: dict[str, Path], tmp_path: Path) -> None:
    lay_out("ovms", tmp_path, name="dogs")
    first, second = json.loads(edited["ovms"].read_text())["model_config_list"]
    assert first["config"] == {"name": "pets", "base_path": "/srv/pets", "nireq": 4}
    assert second["config"]["name"] == "dogs"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model_config_list": {}}', "null"])
def test_another_file_named_like_a_configuration_is_not_overwritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "ovms").mkdir()
    (tmp_path / "ovms/config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config.json has no list model_config_list: .*--also ovms=DIR"):
        lay_out("ovms", tmp_path)
    assert list_tree(tmp_path) == {"ovms/config.json"}


@pytest.mark.parametrize(
    ("kind", "name"), [("triton", "labels.txt"), ("triton", "config.pbtxt"), ("huggingface", "2/README.md")]
)
def test_files_with_another_content_are_not_overwritten_and_nothing_is_published(
    kind: str, name: str, tmp_path: Path
) -> None:
    path = lay_out(kind, tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("cat\ndog\n")
    before = list_tree(tmp_path)
    with pytest.raises(UsageError, match=f"{name} is present with another content.*: --also {kind}=DIR"):
        lay_out(kind, tmp_path)
    assert list_tree(tmp_path) == before
    assert path.read_text() == "cat\ndog\n"


def test_versions_with_other_labels_cannot_share_a_model_of_triton(tmp_path: Path) -> None:
    lay_out("triton", tmp_path)
    with pytest.raises(UsageError, match=r"labels.txt is present with another content"):
        lay_out("triton", tmp_path, colour_artifact(GERMAN))
    assert (tmp_path / "triton/pets/labels.txt").read_text().splitlines() == list(COLOURS)


def test_versions_of_another_size_cannot_share_a_model_of_triton(tmp_path: Path) -> None:
    config = lay_out("triton", tmp_path) / "config.pbtxt"
    before = config.read_text()
    graph = colour_graph()
    for axis in graph.graph.input[0].type.tensor_type.shape.dim[1:3]:
        axis.dim_value = 8
    with pytest.raises(UsageError, match=r"config.pbtxt is present with another content"):
        lay_out("triton", tmp_path, seal(graph, ClassifierManifest(COLOURS, PixelContract(8, 8, 3))))
    assert config.read_text() == before


def test_a_file_that_changed_since_it_was_read_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("new")
    with pytest.raises(UsageError, match=r"config.json is present with another content"):
        choose_files(tmp_path, {"config.json": File(b"old and more", extends=b"old")}, "--also ovms=DIR")
    contents, _ = choose_files(tmp_path, {"config.json": File(b"new and more", extends=b"new")}, "--also ovms=DIR")
    assert contents == {"config.json": b"new and more"}


def test_a_version_that_is_present_is_not_overwritten(tmp_path: Path) -> None:
    """As after the model repository was deleted, but not the layout."""
    lay_out("ovms", tmp_path)
    (tmp_path / "models").rename(tmp_path / "old")
    with pytest.raises(UsageError, match=r"pets/1/model.onnx is present with another content"):
        lay_out("ovms", tmp_path, colour_artifact(GERMAN))
    assert not (tmp_path / "models").exists()
    lay_out("ovms", tmp_path)  # the same file is the same version


def test_a_layout_in_the_repository_itself_shares_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = tmp_path / "models"
    for number in (1, 2):
        targets = [Target("triton", repository), Target("ovms", repository)]
        path, _ = publish_everywhere(repository, "pets", ARTIFACT, targets)
        assert path == repository / "pets" / str(number) / "model.onnx"
    assert list_tree(repository) == {
        *("config.json", "pets/config.pbtxt", "pets/labels.txt", "pets/1/model.onnx", "pets/2/model.onnx")
    }
    options = {"no_metrics": True, "transport": tests.conftest.transport}
    with evalmode.start_server(repository, **options) as server, Client(server.address) as client:
        assert client.predict(encode(plain("red"))).version == "2"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_every_user_may_read_the_files_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        lay_out("ovms", tmp_path)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ovms").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kserve").mkdir()
    (tmp_path / "kserve" / "pets").write_text("a file")
    with pytest.raises(NotADirectoryError):
        lay_out("kserve", tmp_path)
    assert list_tree(tmp_path) == {"kserve/pets"}


def test_the_largest_batch_is_one_without_a_certificate() -> None:
    assert Release("pets", 1, ARTIFACT).max_batch == 64
    assert Release("pets", 1, describe_classifier({})).max_batch == 1
