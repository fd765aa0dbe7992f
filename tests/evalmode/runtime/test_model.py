"""Loading an artifact, running it, and never on another provider than the one that was asked for."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import evalmode
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.sealing import seal
from evalmode.errors import ArtifactInvalid, ImageEmpty, LoadLimitExceeded, ProviderUnavailable
from evalmode.images.pixels import PixelContract
from evalmode.prediction import Score
from evalmode.runtime import provider as provider_module
from evalmode.runtime.loading import MAX_ARTIFACT_BYTES, LoadOptions, load_artifact, load_model
from evalmode.runtime.model import ImageClassifier, Model
from evalmode.runtime.provider import CPU, find_missing_library
from tests.conftest import COLOURS, colour_artifact, colour_graph, encode, plain
from tests.hostile import endless_loop

MANIFEST = ClassifierManifest(COLOURS, PixelContract(4, 4, 3))

REAL_SESSION = ort.InferenceSession


class TestLoad:
    def test_knows_the_file(self, colour_file: Path) -> None:
        loaded = evalmode.load(str(colour_file))
        digest = hashlib.sha256(colour_file.read_bytes()).hexdigest()
        assert (loaded.name, loaded.version, loaded.digest) == ("colours", "", f"sha256:{digest}")
        assert loaded.provider == CPU
        wanted = ClassifierManifest(COLOURS, PixelContract(4, 4, 3), {"network": "colours"})
        assert vars(replace(loaded.manifest, certificate=None)) == vars(wanted)

    def test_takes_a_name_and_a_version(self, model: Model) -> None:
        assert (model.name, model.version) == ("colours", "1")

    def test_uses_no_more_threads_than_told(self, colour_file: Path) -> None:
        for threads in (1, 2):
            options = load_model(colour_file, options=LoadOptions(threads=threads)).session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"

    @pytest.mark.parametrize(
        ("artifact", "told"),
        [
            (b"", "not an evalmode artifact"),
            (b"no protobuf at all" * 9, "not an ONNX file, or a truncated one"),
            (colour_artifact()[:-40], "not an ONNX file, or a truncated one"),
        ],
    )
    def test_refuses_what_is_not_onnx(self, tmp_path: Path, artifact: bytes, told: str) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(artifact)
        with pytest.raises(ArtifactInvalid, match=rf"broken\.onnx: .*{told}"):
            load_model(path)

    def test_refuses_what_it_cannot_read(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactInvalid, match=r"absent\.onnx: \[Errno 2\] No such file"):
            load_model(tmp_path / "absent.onnx")
        with pytest.raises(ArtifactInvalid, match="Is a directory"):
            load_model(tmp_path)

    def test_refuses_onnx_of_another_tool(self, tmp_path: Path) -> None:
        foreign = onnx.load_from_string(colour_artifact())
        del foreign.metadata_props[:]
        onnx.save(foreign, tmp_path / "foreign.onnx")
        with pytest.raises(ArtifactInvalid, match=r"foreign\.onnx: .*not an evalmode artifact"):
            load_model(tmp_path / "foreign.onnx")

    @pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c", "d")])
    def test_refuses_labels_that_do_not_match_the_outputs(self, tmp_path: Path, labels: tuple[str, ...]) -> None:
        path = tmp_path / "labels.onnx"
        path.write_bytes(seal(colour_graph(), ClassifierManifest(labels, PixelContract(4, 4, 3))))
        with pytest.raises(ArtifactInvalid, match=rf"labels.onnx: {len(labels)} labels but outputs of shape \(1, 3\)"):
            load_model(path, options=LoadOptions(allow_uncertified=True))

    def test_refuses_logits_of_another_shape_than_the_probabilities(self, tmp_path: Path) -> None:
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
    def test_refuses_a_graph_that_does_not_take_what_the_manifest_says(self, tmp_path: Path, wrong: str) -> None:
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

    def test_refuses_a_graph_for_one_image_at_a_time(self, tmp_path: Path) -> None:
        # It would load, answer alone, and fail every request that shares a batch.
        artifact = colour_graph()
        for value in (*artifact.graph.input, *artifact.graph.output):
            batch = value.type.tensor_type.shape.dim[0]
            batch.ClearField("dim_param")
            batch.dim_value = 1
        (tmp_path / "single.onnx").write_bytes(seal(artifact, MANIFEST))
        with pytest.raises(ArtifactInvalid, match=r"single\.onnx: .*a batch of any size along the first axis"):
            load_model(tmp_path / "single.onnx", options=LoadOptions(allow_uncertified=True))


class TestRun:
    def test_answers_every_image_of_a_batch(self, model: Model) -> None:
        batch = np.stack([np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 51, 0), (0, 0, 0))])
        probabilities, logits = model.classify(batch)
        assert np.array_equal(logits, np.array([[10, 0, 0], [0, 2, 0], [0, 0, 0]], np.float32))
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities.sum(1), 1)
        for row in range(3):
            assert np.array_equal(model.classify(batch[row : row + 1])[0][0], probabilities[row])

    def test_scores_the_highest_first_and_ties_by_lowest_index(self, model: Model) -> None:
        scores = model.scores(np.array([0.25, 0.5, 0.25], np.float32), 3)
        assert scores == (Score("green", 0.5, 1), Score("red", 0.25, 0), Score("blue", 0.25, 2))
        even = model.scores(np.full(3, 1 / 3, np.float32), 3)
        assert [score.label for score in even] == list(COLOURS)

    @pytest.mark.parametrize(("top_k", "answered"), [(0, 3), (1, 1), (2, 2), (3, 3), (4, 3), (2**32 - 1, 3)])
    def test_scores_as_many_as_asked(self, model: Model, top_k: int, answered: int) -> None:
        assert len(model.scores(np.array([0.2, 0.3, 0.5], np.float32), top_k)) == answered

    def test_scores_five_where_nothing_is_asked(self) -> None:
        labels = tuple("abcdefgh")
        manifest = ClassifierManifest(labels, PixelContract(4, 4, 3))
        many = ImageClassifier("many", "", "", manifest, CPU, True, 64, session=None)
        scores = many.scores(np.linspace(0, 1, 8, dtype=np.float32), 0)
        assert "".join(score.label for score in scores) == "hgfed"

    def test_expects_of_a_run_what_the_last_ones_took(self, model: Model) -> None:
        assert len(model.row_s) > 1  # of the replay
        model.row_s.clear()
        assert model.expect_s(64) == 0
        for _ in range(2):
            model.run({"image": np.zeros((4, *model.manifest.pixels.shape), np.uint8)})
        assert model.expect_s(4) == pytest.approx(4 * min(model.row_s))
        model.row_s.extend([1.0, 1.0, 1.0, 9.0, 2.0, 1.0])
        assert model.expect_s(3) == 6.0


class TestPredict:
    def test_takes_bytes_and_paths(self, model: Model, tmp_path: Path) -> None:
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

    def test_answers_with_as_many_labels_as_asked(self, model: Model) -> None:
        assert [score.label for score in model.predict(encode(plain("green")), top_k=1).scores] == ["green"]

    def test_refuses_what_cannot_be_decoded(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(ImageEmpty):
            model.predict(b"")
        with pytest.raises(FileNotFoundError):
            model.predict(tmp_path / "absent.png")


class TestProvider:
    """Without a GPU the failures are the real thing; what lies behind them is in test_cuda.py."""

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

    def test_cuda_on_a_cpu_build_says_what_to_install(self, without_cuda_built_in: None, colour_file: Path) -> None:
        with pytest.raises(ProviderUnavailable, match=r"built without CUDA: install 'evalmode\[serve-cuda\]'"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))

    def test_cuda_names_the_library_that_is_missing(self, with_cuda_built_in: None, colour_file: Path) -> None:
        with pytest.raises(ProviderUnavailable, match=r"CUDA provider does not load: .*\.so.*") as caught:
            load_model(colour_file, options=LoadOptions(provider="cuda"))
        assert ".so" in caught.value.facts["missing"]

    def test_preloads_the_libraries_of_the_wheels_first(
        self, with_cuda_built_in: None, colour_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = []
        monkeypatch.setattr(ort, "preload_dlls", lambda: steps.append("preload"))
        monkeypatch.setattr(provider_module, "find_missing_library", lambda path: steps.append(path.name) or "it")
        with pytest.raises(ProviderUnavailable, match="does not load: it"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))
        assert steps == ["preload", "libonnxruntime_providers_cuda.so"]

    def test_a_library_that_is_missing_is_named(self, tmp_path: Path) -> None:
        named = find_missing_library(tmp_path / "libonnxruntime_providers_cuda.so")
        assert named is not None
        assert "libonnxruntime_providers_shared.so" in named
        assert "cannot open shared object file" in named

    def test_cuda_is_refused_where_the_session_came_up_on_the_cpu(
        self, with_cuda_libraries: None, colour_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def on_cpu(artifact: bytes, options: ort.SessionOptions, providers: list) -> ort.InferenceSession:
            asked.append((options.get_session_config_entry("session.disable_cpu_ep_fallback"), providers))
            return REAL_SESSION(artifact, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(ort, "InferenceSession", on_cpu)
        with pytest.raises(ProviderUnavailable, match="chose CPUExecutionProvider instead of CUDAExecutionProvider"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))
        assert asked == [("1", [("CUDAExecutionProvider", {"use_tf32": "0"})])]

    def test_cuda_is_refused_where_no_session_opens(
        self, with_cuda_libraries: None, colour_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: object, **options: object) -> None:
            raise RuntimeError("no CUDA-capable device is detected")

        monkeypatch.setattr(ort, "InferenceSession", fails)
        with pytest.raises(ProviderUnavailable, match=r"cannot open a session on CUDA.*: no CUDA-capable device"):
            load_model(colour_file, options=LoadOptions(provider="cuda"))

    def test_auto_falls_back_and_says_why(
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

    def test_cpu_asks_for_nothing_else(self, colour_file: Path, caplog: pytest.LogCaptureFixture) -> None:
        session = load_model(colour_file, options=LoadOptions(provider="cpu")).session
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert caplog.records == []


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_ARTIFACT_BYTES + 1)  # holes: no disk is used
    with pytest.raises(ArtifactInvalid, match=f"{MAX_ARTIFACT_BYTES + 1} bytes, protobuf reads at most"):
        load_model(path)


def test_a_replay_that_does_not_end_is_ended() -> None:
    """What was tried before may still behave otherwise here: a GPU rounds otherwise, a network may draw at random."""
    with pytest.raises(LoadLimitExceeded, match=r"replaying it takes more than 0\.5 s"):
        load_artifact(endless_loop(), options=LoadOptions(replay_s=0.5))
    assert load_artifact(colour_artifact(), options=LoadOptions(replay_s=3600)).batch_invariant
