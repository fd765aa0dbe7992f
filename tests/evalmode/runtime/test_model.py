"""Loading an artifact and running it, on the requested provider alone."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import evalmode
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import INPUT, Tensors
from evalmode.errors import ArtifactInvalid, ImageEmpty, LoadLimitExceeded, ProviderUnavailable, UsageError
from evalmode.images.pixels import PixelContract
from evalmode.prediction import Score
from evalmode.runtime import provider as provider_module
from evalmode.runtime.loading import MAX_ARTIFACT_BYTES, LoadOptions, load_artifact, load_model
from evalmode.runtime.model import ImageClassifier, Model
from evalmode.runtime.provider import CPU, CUDA, find_missing_library
from tests.conftest import COLOURS, colour_artifact, colour_graph, encode, plain
from tests.hostile import endless_loop

MANIFEST = ClassifierManifest(COLOURS, PixelContract(4, 4, 3))

REAL_SESSION = ort.InferenceSession


class TestLoad:
    def test_returns_name_digest_and_manifest_of_the_file(self, colour_file: Path) -> None:
        loaded = evalmode.load(str(colour_file))
        digest = hashlib.sha256(colour_file.read_bytes()).hexdigest()
        assert (loaded.name, loaded.version, loaded.digest) == ("colours", "", f"sha256:{digest}")
        assert loaded.provider == CPU
        expected = ClassifierManifest(COLOURS, PixelContract(4, 4, 3), {"network": "colours"})
        assert vars(replace(loaded.manifest, certificate=None)) == vars(expected)

    def test_accepts_a_name_and_a_version(self, model: ImageClassifier) -> None:
        assert (model.name, model.version) == ("colours", "1")

    def test_uses_the_configured_number_of_threads(self, colour_file: Path) -> None:
        for threads in (1, 2):
            options = load_model(colour_file, options=LoadOptions(threads=threads)).session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"

    @pytest.mark.parametrize(
        ("artifact", "message"),
        [
            (b"", "not an evalmode artifact"),
            (b"a line of plain text" * 9, "not an ONNX file, or a truncated one"),
            (colour_artifact()[:-40], "not an ONNX file, or a truncated one"),
        ],
    )
    def test_rejects_a_file_that_is_not_onnx(self, tmp_path: Path, artifact: bytes, message: str) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(artifact)
        with pytest.raises(ArtifactInvalid, match=rf"broken\.onnx: .*{message}"):
            load_model(path)

    def test_returns_the_memory_of_the_largest_batch_of_the_replay(self) -> None:
        runs: list[tuple[int, bool]] = []
        run = Model.run

        def watch(self: Model, inputs: Tensors, *, options: ort.RunOptions, **how: Any) -> Tensors:
            returns = False
            with suppress(RuntimeError):  # the entry is missing
                returns = options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
            runs.append((len(inputs[INPUT]), returns))
            return run(self, inputs, options=options, **how)

        artifact = colour_artifact()
        with patch.object(Model, "run", watch):
            load_artifact(artifact)
        assert runs[-1] == (1, True)
        assert not any(returns for _, returns in runs[:-1])

    def test_rejects_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactInvalid, match=r"absent\.onnx: \[Errno 2\] No such file"):
            load_model(tmp_path / "absent.onnx")
        with pytest.raises(ArtifactInvalid, match="Is a directory"):
            load_model(tmp_path)

    def test_rejects_onnx_of_another_tool(self, tmp_path: Path) -> None:
        foreign = onnx.load_from_string(colour_artifact())
        del foreign.metadata_props[:]
        onnx.save(foreign, tmp_path / "foreign.onnx")
        with pytest.raises(ArtifactInvalid, match=r"foreign\.onnx: .*not an evalmode artifact"):
            load_model(tmp_path / "foreign.onnx")

    @pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c", "d")])
    def test_rejects_labels_that_do_not_match_the_outputs(self, tmp_path: Path, labels: tuple[str, ...]) -> None:
        path = tmp_path / "labels.onnx"
        path.write_bytes(seal(colour_graph(), ClassifierManifest(labels, PixelContract(4, 4, 3))))
        with pytest.raises(ArtifactInvalid, match=rf"labels.onnx: {len(labels)} labels but outputs of shape \(1, 3\)"):
            load_model(path, options=LoadOptions(allow_uncertified=True))

    def test_rejects_logits_of_another_shape_than_the_probabilities(self, tmp_path: Path) -> None:
        artifact = colour_graph()
        artifact.graph.node.append(helper.make_node("Concat", ["means", "means"], ["twice"], axis=1))
        for node in artifact.graph.node:
            if node.op_type == "Softmax":
                node.input[0] = "raw"
            node.output[:] = ["raw" if name == "logits" else name for name in node.output]
        artifact.graph.node.append(helper.make_node("Identity", ["twice"], ["logits"]))
        artifact.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 6
        (tmp_path / "logits.onnx").write_bytes(seal(artifact, MANIFEST))
        with pytest.raises(ArtifactInvalid, match=r"3 labels but outputs of shape \(1, 3\) and \(1, 6\)"):
            load_model(tmp_path / "logits.onnx", options=LoadOptions(allow_uncertified=True))

    @pytest.mark.parametrize("wrong", ["input name", "input type", "input size", "no logits"])
    def test_rejects_a_graph_that_does_not_match_the_manifest(self, tmp_path: Path, wrong: str) -> None:
        artifact = colour_graph()
        graph = artifact.graph
        if wrong == "input name":
            graph.input[0].name = graph.node[0].input[0] = "picture"
        elif wrong == "input type":
            graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
        elif wrong == "input size":
            graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
        else:
            del graph.output[1]
        (tmp_path / "graph.onnx").write_bytes(seal(artifact, MANIFEST))
        with pytest.raises(ArtifactInvalid, match=r"graph\.onnx: (not a model|.* outputs of shape)"):
            load_model(tmp_path / "graph.onnx", options=LoadOptions(allow_uncertified=True))

    def test_rejects_a_graph_with_a_fixed_batch_of_1(self, tmp_path: Path) -> None:
        # It would answer single requests, and fail every request in a larger batch.
        artifact = colour_graph()
        for value in (*artifact.graph.input, *artifact.graph.output):
            batch = value.type.tensor_type.shape.dim[0]
            batch.ClearField("dim_param")
            batch.dim_value = 1
        (tmp_path / "single.onnx").write_bytes(seal(artifact, MANIFEST))
        with pytest.raises(ArtifactInvalid, match=r"single\.onnx: .*a batch of any size along the first axis"):
            load_model(tmp_path / "single.onnx", options=LoadOptions(allow_uncertified=True))


class TestRun:
    def test_returns_the_outputs_of_every_image_of_a_batch(self, model: ImageClassifier) -> None:
        batch = np.stack([np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 51, 0), (0, 0, 0))])
        probabilities, logits = model.classify(batch)
        assert np.array_equal(logits, np.array([[10, 0, 0], [0, 2, 0], [0, 0, 0]], np.float32))
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities.sum(1), 1)
        for row in range(3):
            assert np.array_equal(model.classify(batch[row : row + 1])[0][0], probabilities[row])

    def test_orders_scores_by_probability_and_then_by_index(self, model: ImageClassifier) -> None:
        scores = model.scores(np.array([0.25, 0.5, 0.25], np.float32), 3)
        assert scores == (Score("green", 0.5, 1), Score("red", 0.25, 0), Score("blue", 0.25, 2))
        even = model.scores(np.full(3, 1 / 3, np.float32), 3)
        assert [score.label for score in even] == list(COLOURS)

    @pytest.mark.parametrize(("top_k", "count"), [(0, 3), (1, 1), (2, 2), (3, 3), (4, 3), (2**32 - 1, 3)])
    def test_returns_the_requested_number_of_scores(self, model: ImageClassifier, top_k: int, count: int) -> None:
        assert len(model.scores(np.array([0.2, 0.3, 0.5], np.float32), top_k)) == count

    def test_returns_five_scores_by_default(self) -> None:
        labels = tuple("abcdefgh")
        manifest = ClassifierManifest(labels, PixelContract(4, 4, 3))
        many = ImageClassifier("many", "", "", manifest, CPU, True, 64, session=None)
        scores = many.scores(np.linspace(0, 1, 8, dtype=np.float32), 0)
        assert "".join(score.label for score in scores) == "hgfed"

    def test_expects_the_duration_of_the_last_runs(self, model: ImageClassifier) -> None:
        assert len(model.row_s) > 1  # durations of the replay
        model.row_s.clear()
        assert model.expect_s(64) == 0
        for _ in range(2):
            model.run({"image": np.zeros((4, *model.manifest.pixels.shape), np.uint8)})
        assert model.expect_s(4) == pytest.approx(4 * min(model.row_s))
        model.row_s.extend([1.0, 1.0, 1.0, 9.0, 2.0, 1.0])
        assert model.expect_s(3) == 6.0


class TestPredict:
    def test_accepts_bytes_and_paths(self, model: ImageClassifier, tmp_path: Path) -> None:
        image = encode(plain((0, 0, 255), (9, 7)))
        path = tmp_path / "blue.png"
        path.write_bytes(image)
        answers = [model.predict(source) for source in (image, path, str(path))]
        assert {answer.scores for answer in answers} == {answers[0].scores}
        answer = answers[0]
        assert (answer.label, answer.probability) == ("blue", answer.scores[0].probability)
        assert (answer.model, answer.version, answer.digest) == ("colours", "1", model.digest)
        assert answer.wait_us == 0
        assert answer.decode_us > 0
        assert answer.inference_us > 0
        expected = np.exp(10) / (np.exp(10) + 2)
        assert answer.probability == pytest.approx(expected, rel=1e-6)

    def test_returns_the_requested_number_of_labels(self, model: ImageClassifier) -> None:
        assert [score.label for score in model.predict(encode(plain("green")), top_k=1).scores] == ["green"]

    @pytest.mark.parametrize("top_k", [-1, 2**32])
    def test_rejects_a_number_of_labels_outside_its_range(self, model: ImageClassifier, top_k: int) -> None:
        with pytest.raises(UsageError, match=rf"top_k {top_k} is outside 0\.\.4294967295"):
            model.predict(encode(plain("green")), top_k=top_k)

    def test_a_model_is_shown_in_one_short_line(self, model: ImageClassifier) -> None:
        assert repr(model) == "ImageClassifier(colours/1, 3 labels, 4x4x3)"

    def test_rejects_images_that_cannot_be_decoded(self, model: ImageClassifier, tmp_path: Path) -> None:
        with pytest.raises(ImageEmpty):
            model.predict(b"")
        with pytest.raises(FileNotFoundError):
            model.predict(tmp_path / "absent.png")


class TestProvider:
    """Failures without a GPU; test_cuda.py tests CUDA itself."""

    def test_of_a_gpu_runs_one_batch_at_a_time(self, model: ImageClassifier) -> None:
        assert (model.max_slots, replace(model, provider=CUDA).max_slots) == (0, 1)

    @pytest.fixture
    def with_cuda_built_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)

    @pytest.fixture
    def with_cuda_libraries(self, with_cuda_built_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(provider_module, "find_missing_library", lambda path: None)

    @pytest.fixture
    def without_cuda_built_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])

    def test_cuda_on_a_cpu_build_fails_with_the_package_to_install(
        self, without_cuda_built_in: None, colour_file: Path
    ) -> None:
        with pytest.raises(ProviderUnavailable, match=r"built without CUDA: install 'evalmode\[serve-cuda\]'"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))

    def test_cuda_fails_with_the_name_of_the_missing_library(self, with_cuda_built_in: None, colour_file: Path) -> None:
        with pytest.raises(ProviderUnavailable, match=r"CUDA provider does not load: .*\.so.*") as caught:
            load_model(colour_file, options=LoadOptions(provider="cuda"))
        assert ".so" in caught.value.facts["missing"]

    def test_libraries_of_wheels_are_preloaded_first(
        self, with_cuda_built_in: None, colour_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = []
        monkeypatch.setattr(ort, "preload_dlls", lambda: steps.append("preload"))

        def find(path: Path) -> str:
            steps.append(path.name)
            return "library"

        monkeypatch.setattr(provider_module, "find_missing_library", find)
        with pytest.raises(ProviderUnavailable, match="does not load: library"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))
        assert steps == ["preload", "libonnxruntime_providers_cuda.so"]

    def test_a_missing_library_is_found_by_name(self, tmp_path: Path) -> None:
        missing = find_missing_library(tmp_path / "libonnxruntime_providers_cuda.so")
        assert missing is not None
        assert "libonnxruntime_providers_shared.so" in missing
        assert "cannot open shared object file" in missing

    def test_cuda_fails_if_the_session_opens_on_the_cpu(
        self, with_cuda_libraries: None, colour_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []

        def on_cpu(artifact: bytes, options: ort.SessionOptions, providers: list) -> ort.InferenceSession:
            opened.append((options.get_session_config_entry("session.disable_cpu_ep_fallback"), providers))
            return REAL_SESSION(artifact, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(ort, "InferenceSession", on_cpu)
        with pytest.raises(ProviderUnavailable, match="chose CPUExecutionProvider instead of CUDAExecutionProvider"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))
        assert opened == [("1", [("CUDAExecutionProvider", {"use_tf32": "0"})])]

    def test_cuda_fails_if_no_session_opens(
        self, with_cuda_libraries: None, colour_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: object, **options: object) -> None:
            raise RuntimeError("no CUDA-capable device is detected")

        monkeypatch.setattr(ort, "InferenceSession", fails)
        with pytest.raises(ProviderUnavailable, match=r"cannot open a session on CUDA.*: no CUDA-capable device"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))

    def test_auto_falls_back_to_the_cpu_and_logs_the_reason(
        self, without_cuda_built_in: None, colour_file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        loaded = load_model(colour_file, options=LoadOptions(provider="auto"))
        assert loaded.provider == CPU
        assert loaded.session.get_providers() == ["CPUExecutionProvider"]
        [record] = [record for record in caplog.records if record.name == "evalmode.runtime.provider"]
        assert record.levelno == logging.WARNING
        assert "CUDA is not used, because this onnxruntime is built without CUDA" in record.getMessage()

    def test_auto_does_not_hide_a_broken_artifact(
        self, with_cuda_libraries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(b"broken")
        with pytest.raises(ArtifactInvalid):
            load_model(path, options=LoadOptions(provider="auto"))

    def test_cpu_uses_no_other_provider(self, colour_file: Path, caplog: pytest.LogCaptureFixture) -> None:
        session = load_model(colour_file, options=LoadOptions(provider="cpu")).session
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert caplog.records == []


def test_a_file_over_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_ARTIFACT_BYTES + 1)  # a sparse file, which needs no disk space
    with pytest.raises(ArtifactInvalid, match=f"{MAX_ARTIFACT_BYTES + 1} bytes, protobuf reads at most"):
        load_model(path)


def test_an_endless_replay_is_ended_after_its_time_limit() -> None:
    """A replay that ended when it was certified may run longer here: GPUs round differently, networks may be random."""
    with pytest.raises(LoadLimitExceeded, match=r"replaying it takes more than 0\.5 s"):
        load_artifact(endless_loop(), options=LoadOptions(replay_s=0.5))
    assert load_artifact(colour_artifact(), options=LoadOptions(replay_s=3600)).batch_invariant
