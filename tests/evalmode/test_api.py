"""The public API of ``import evalmode``: every name is imported on first use and works."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest

import evalmode
from evalmode.artifact.publishing import publish
from evalmode.certification.preprocessing import ClassifierOptions, Preprocessing
from evalmode.errors import ArtifactInvalid, GoldenMismatch, UsageError
from evalmode.own_packages import ROOT
from tests.conftest import COLOURS, colour_artifact, encode, plain

BARE = {  # need no extra
    *("AsyncClient", "CallFailed", "Client", "DataError", "EvalmodeError", "ExportRefused", "Limits", "Prediction"),
    *("ProofFailed", "TrainingDiverged", "TrainingStopped", "UsageError"),
}


@pytest.mark.parametrize("name", evalmode.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert name in dir(evalmode)
    assert getattr(evalmode, name).__doc__


def test_only_public_names_are_listed() -> None:
    assert dir(evalmode) == sorted([*evalmode.__all__, "__version__"])


@pytest.mark.parametrize("name", [name for name in evalmode.__all__ if name[0].islower()])
def test_type_hints_of_functions_can_be_resolved(name: str) -> None:
    assert "return" in get_type_hints(getattr(evalmode, name))


@pytest.mark.parametrize("package", ["evalmode", "serving", "training"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_help_of_callbacks_shows_no_addresses() -> None:
    assert " at 0x" not in pydoc.plain(pydoc.render_doc(evalmode.Callbacks))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'evalmode' has no attribute 'tarin'"):
        _ = evalmode.tarin


def test_importing_evalmode_imports_no_submodule() -> None:
    code = "import sys, evalmode; print([name for name in sys.modules if name.startswith('evalmode.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_bare_install_has_the_client_and_names_the_extra_of_other_functions() -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'onnx', 'onnxruntime', 'PIL', 'torch'): sys.modules[name] = None\n"
        f"from evalmode import {', '.join(sorted(BARE))}\n"
        "try:\n    from evalmode import check\n"
        "except ModuleNotFoundError as error: print(error)\n"
        "import evalmode, rlcompleter\n"
        "found = rlcompleter.Completer(vars()).attr_matches('evalmode.C')\n"
        "print(hasattr(evalmode, 'check'), 'evalmode.Client(' in found)\n"
        "try: evalmode.check\n"
        "except evalmode.EvalmodeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    missing = "evalmode.check needs the Python package 'numpy': pip install 'evalmode[serve]'\n"
    assert done.stdout == f"{missing}False True\n{missing}", done.stderr


@pytest.mark.parametrize("name", ["Artifact", "Run"])
def test_names_that_import_torch_set_it_up_for_training(name: str) -> None:
    code = (
        "import os, sys, evalmode\n"
        "from training import torch_runtime\n"
        "seen = []\n"
        "torch_runtime.import_torch = lambda: seen.append('torch' in sys.modules)\n"
        f"evalmode.{name}\n"
        "print(seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[False]\n", done.stderr


def test_training_and_export_do_not_import_the_command_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['click'] = None\n"
        "import evalmode\n"
        "for call in (evalmode.train, evalmode.export):\n"
        "    try: call('nowhere', 'run', *['name'] * (call is evalmode.export))\n"
        "    except evalmode.EvalmodeError as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["DataError", "RunError"], done.stderr


class TestLoad:
    def test_accepts_an_artifact_or_a_folder_of_the_repository(self, tmp_path: Path) -> None:
        repository = tmp_path / "models"
        for _ in range(2):
            path = publish(repository, "colours", colour_artifact())
        loaded = {place: evalmode.load(place) for place in (path, repository / "colours", repository / "colours/1")}
        assert [(model.name, model.version) for model in loaded.values()] == [
            ("model", ""),
            ("colours", "2"),
            ("colours", "1"),
        ]
        assert {model.predict(encode(plain("blue"))).label for model in loaded.values()} == {"blue"}

    def test_accepts_a_relative_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = publish(tmp_path, "colours", colour_artifact()).parents[1]
        monkeypatch.chdir(folder)
        assert (evalmode.load(".").name, evalmode.load("1").version) == ("colours", "1")

    def test_rejects_a_folder_without_an_artifact_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=f"{tmp_path} holds no model.onnx and no version of a model"):
            evalmode.load(tmp_path)
        with pytest.raises(ArtifactInvalid, match=r"nowhere\.onnx"):
            evalmode.load(tmp_path / "nowhere.onnx")


class TestCheck:
    def test_takes_a_folder_of_the_repository(self, tmp_path: Path) -> None:
        path = publish(tmp_path, "colours", colour_artifact())
        verdicts = evalmode.check(path)
        assert evalmode.check(tmp_path / "colours") == evalmode.check(path.parent) == verdicts
        with pytest.raises(UsageError, match=r"holds no model\.onnx and no version"):
            evalmode.check(tmp_path)


class TestCertify:
    def test_makes_an_artifact_that_is_published(self, network: Path, images: Path, tmp_path: Path) -> None:
        certified = evalmode.certify(network, images, COLOURS, Preprocessing((0, 1)))
        assert repr(certified) == "CertifiedClassifier(3 labels, 4x4x3, accuracy 1.0000)"
        assert (certified.labels, certified.layout, certified.quality.accuracy) == (COLOURS, "NHWC", 1.0)
        path = certified.publish(tmp_path / "models", "colours")
        assert path == tmp_path / "models/colours/1/model.onnx"
        model = evalmode.load(path)
        assert model.digest == certified.digest
        assert model.predict(encode(plain("red"))).label == "red"
        assert {verdict.passed for verdict in evalmode.check(path)} == {True}

    def test_warns_of_files_that_are_not_images(self, network: Path, images: Path) -> None:
        (images / "red" / "notes.txt").write_text("text")
        with pytest.warns(UserWarning, match=r"left out 1 file that is not an image .*notes\.txt"):
            evalmode.certify(network, images, COLOURS, Preprocessing((0, 1)))

    def test_rejects_a_network_that_is_no_better_than_guessing(self, network: Path, images: Path) -> None:
        labels = COLOURS[1:] + COLOURS[:1]
        with pytest.raises(GoldenMismatch, match="no better than guessing among 3 labels"):
            evalmode.certify(network, images, labels, Preprocessing((0, 1)))
        options = ClassifierOptions(allow_guessing=True, synthetic_golden=True)
        certified = evalmode.certify(network, images, labels, Preprocessing((0, 1)), options)
        assert certified.quality.accuracy == 0

    def test_says_when_all_images_get_the_same_answer(self, network: Path, images: Path) -> None:
        labels = COLOURS[1:] + COLOURS[:1]
        with pytest.raises(GoldenMismatch, match=r"among 3 labels, and all of them get the same answer \(.* 0\.33\): "):
            evalmode.certify(network, images, labels, Preprocessing((0, 1e-6), mean=(-0.1, 0.0, 0.0)))

    def test_small_differences_that_change_the_label_are_not_the_same_answer(self, network: Path, images: Path) -> None:
        """As with many labels, whose probabilities are all small."""
        labels = COLOURS[1:] + COLOURS[:1]
        with pytest.raises(GoldenMismatch) as caught:
            evalmode.certify(network, images, labels, Preprocessing((0, 1e-6)))
        assert "among 3 labels: are --labels" in str(caught.value)

    @pytest.mark.parametrize("labels", [["red"], ["red", "green", "red"]])
    def test_rejects_labels_that_are_too_few_or_repeated(self, labels: list[str], network: Path, images: Path) -> None:
        with pytest.raises(UsageError, match="expected at least 2, each once"):
            evalmode.certify(network, images, labels, Preprocessing((0, 1)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scale": (0, 1, 2)}, "--scale 0,1,2 is not LOW,HIGH"),
            ({"scale": (1, 0)}, "--scale 1,0 is not LOW,HIGH"),
            ({"scale": (0, 1), "std": (0.0,)}, "--std 0: expected numbers above 0"),
            ({"scale": "0,1"}, r"scale is '0,1': expected a tuple: \(low, high\)"),
            ({"scale": 1}, "scale is 1: expected a tuple"),
            ({"scale": ("0", "1")}, "scale is .*: expected finite numbers"),
            ({"scale": (0, float("inf"))}, "scale is .*: expected finite numbers"),
            ({"scale": (0, 1), "mean": 0.5}, r"mean is 0.5: expected a tuple: one number .* \(0\.5,\)"),
            ({"scale": (0, 1), "std": ()}, r"std is \(\): expected finite numbers"),
        ],
    )
    def test_rejects_invalid_preprocessing(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Preprocessing(**options)

    def test_accepts_lists_and_arrays_as_preprocessing(self) -> None:
        expected = Preprocessing((0.0, 255.0), mean=(0.5,))
        assert Preprocessing(np.array([0, 255]), [np.float32(0.5)]) == expected  # type: ignore[arg-type]

    def test_rejects_arguments_of_another_type(self, network: Path, images: Path) -> None:
        with pytest.raises(UsageError, match=r"preprocessing is \(0, 1\): expected a Preprocessing"):
            evalmode.certify(network, images, COLOURS, (0, 1))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="labels contain 0: expected strings"):
            evalmode.certify(network, images, [0, 1, 2], Preprocessing((0, 1)))  # type: ignore[list-item]

    def test_names_the_python_option_for_a_missing_size(self, network: Path, images: Path) -> None:
        graph = onnx.load(network)
        for axis in (1, 2):
            graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
        onnx.save(graph, network)
        with pytest.raises(UsageError, match=r"--size HxW \(in Python: contract=PixelContract\(\.\.\.\)\)"):
            evalmode.certify(network, images, COLOURS, Preprocessing((0, 1)))

    def test_accepts_tensors_as_arrays_or_as_a_file(self, network: Path, tmp_path: Path) -> None:
        samples = {"image": np.random.default_rng(0).random((100, 4, 4, 3), np.float32)}
        np.savez(tmp_path / "samples.npz", image=samples["image"])
        by_arrays = evalmode.certify_tensors(network, samples)
        by_file = evalmode.certify_tensors(network, tmp_path / "samples.npz")
        assert by_arrays.artifact == by_file.artifact
        assert len(by_arrays.inputs["image"]) == 64
        assert repr(by_arrays) == "CertifiedNetwork(image)"
        with pytest.raises(UsageError, match=r"samples holds image float64; the network takes image float32"):
            evalmode.certify_tensors(network, {"image": samples["image"].astype(np.float64)})


class TestCompare:
    def test_accepts_artifacts_or_models(self, images: Path, tmp_path: Path) -> None:
        old, new = (tmp_path / f"{name}.onnx" for name in ("old", "new"))
        old.write_bytes(colour_artifact(("green", "red", "blue")))
        new.write_bytes(colour_artifact())
        by_paths = evalmode.compare(old, str(new), images)
        by_models = evalmode.compare(evalmode.load(old), evalmode.load(new), images)
        assert by_paths.accuracies == by_models.accuracies
        assert list(by_paths.accuracies) == pytest.approx([1 / 3, 1.0])
        assert by_paths.changed == by_models.changed
        assert by_paths.share_changed == pytest.approx(2 / 3)

    def test_accepts_folders_of_the_repository(self, images: Path, tmp_path: Path) -> None:
        for labels in (("green", "red", "blue"), COLOURS):
            path = publish(tmp_path / "models", "colours", colour_artifact(labels))
        by_folders = evalmode.compare(tmp_path / "models/colours/1", tmp_path / "models/colours", images)
        assert list(by_folders.accuracies) == pytest.approx([1 / 3, 1])
        assert path.parent.name == "2"

    def test_rejects_models_with_different_labels(self, images: Path, tmp_path: Path) -> None:
        old, new = (tmp_path / f"{name}.onnx" for name in ("old", "new"))
        old.write_bytes(colour_artifact(("red", "green", "violet")))
        new.write_bytes(colour_artifact())
        with pytest.raises(UsageError, match="have different labels and cannot be compared: blue, violet"):
            evalmode.compare(old, new, images)
