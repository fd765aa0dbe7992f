"""Further options of training as a user types them: user networks, export options, the report, unreadable images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evalmode.artifact.certificate import ClassifierCertificate
from evalmode.artifact.manifest import DIGEST
from evalmode.runtime.loading import load_model
from tests.conftest import encode, plain
from training.run import Run

ROOT = Path(__file__).parents[2]
Evalmode = Callable[..., subprocess.CompletedProcess[str]]

USER_NETWORK = """
from torch import nn

def build(channels, height, width, classes):
    values = channels * height * width
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(values), nn.Linear(values, classes))
"""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 12x12 images in three colours; blue is rare."""
    rng = np.random.default_rng(0)

    def split(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(3), counts)
        images = rng.integers(0, 60, (len(labels), 12, 12, 3))
        images[np.arange(len(labels)), :, :, labels] += 120
        return images.astype(np.uint8), labels

    path = tmp_path_factory.mktemp("arrays") / "colours.npz"
    (x_train, y_train), (x_test, y_test) = split((120, 120, 30)), split((10, 10, 10))
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, labels=["red", "green", "blue"])
    return path


def load_metadata(path: Path) -> dict[str, object]:
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    own = {name: value for name, value in metadata.items() if name.startswith("evalmode.") and name != DIGEST}
    return {name.removeprefix("evalmode."): json.loads(value) for name, value in own.items()}


@pytest.fixture(scope="module")
def run(arrays: Path, tmp_path_factory: pytest.TempPathFactory, evalmode: Evalmode) -> Path:
    """A run of the default network over two epochs."""
    folder = tmp_path_factory.mktemp("story")
    done = evalmode("train", arrays, "--out", "run", "--epochs", 2, "--balance", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder / "run"


def test_training_prints_the_network_its_cost_and_warnings_about_the_data(run: Path) -> None:
    output = (run.parent / "output.txt").read_text()
    assert "network   compact, " in output
    assert "multiply-adds an image, on cpu" in output
    assert "warning   " in output
    assert "blue" in output
    assert "--balance" in output


def test_training_leaves_a_report(run: Path) -> None:
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "report    run/report.html" in (run.parent / "output.txt").read_text()


def test_a_report_can_be_written_again(run: Path, evalmode: Evalmode) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert evalmode("report", "run", cwd=run.parent).returncode == 0
    assert (run / "report.html").read_bytes() == before


def test_tensorboard_events_equal_metrics_jsonl(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run)).Reload()
    for name in ("loss", "train_accuracy", "val_accuracy", "val_loss", "learning_rate"):
        assert [event.step for event in events.Scalars(name)] == [1, 2]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in lines[1:3]])


@pytest.mark.slow
def test_an_export_can_average_over_mirrored_images(run: Path, evalmode: Evalmode, tmp_path: Path) -> None:
    for options in ((), ("--mirrored",)):
        done = evalmode("export", run, "--repository", tmp_path, "--name", "colours", *options)
        assert done.returncode == 0, done.stderr
        why = "no temperature is fitted, since every validation image is classified right"
        assert f" on test images; {why}. The probabilities are not calibrated: " in done.stdout
    versions = [load_metadata(tmp_path / "colours" / version / "model.onnx") for version in ("1", "2")]
    assert [metadata["mirrored"] for metadata in versions] == [False, True]


@pytest.mark.slow
def test_golden_images_are_validation_images_or_synthetic(
    run: Path, arrays: Path, evalmode: Evalmode, tmp_path: Path
) -> None:
    candidates = {image.tobytes() for image in np.load(arrays)["x_train"]}  # validation images are taken from them
    found = {}
    for golden in ("validation", "synthetic"):
        done = evalmode("export", run, "--repository", tmp_path, "--name", golden, "--golden", golden)
        assert done.returncode == 0, done.stderr
        certificate = load_model(tmp_path / golden / "1" / "model.onnx").manifest.certificate
        assert isinstance(certificate, ClassifierCertificate)
        found[golden] = {image.tobytes() for image in certificate.inputs["image"]}
        assert set(certificate.targets) == ({"red", "green", "blue"} if golden == "validation" else {""})
    assert found["validation"] <= candidates
    assert not found["synthetic"] & candidates


def test_an_int8_variant_is_published_only_if_it_is_fast_and_accurate(
    run: Path, evalmode: Evalmode, tmp_path: Path
) -> None:
    done = evalmode("export", run, "--repository", tmp_path, "--name", "colours", "--quantize", "int8")
    figures = re.search(r"([\d.]+) times as fast, (-?[\d.]+) points of accuracy lost", done.stdout + done.stderr)
    assert figures, done.stderr
    is_good_enough = "not published" not in done.stderr
    assert done.returncode == (0 if is_good_enough else 1)
    assert (
        is_good_enough == (float(figures[1]) >= 1.3 and float(figures[2]) <= 0.3)
        or figures[1] == "1.30"
        or figures[2] == "0.30"
    )
    published = sorted(path.name for path in tmp_path.iterdir())
    assert published == (["colours", "colours-int8"] if is_good_enough else ["colours"])
    if is_good_enough:
        assert load_model(tmp_path / "colours-int8/1/model.onnx").batch_invariant


@pytest.mark.slow  # tests/training/test_candidates.py tests the choice itself
def test_of_two_compared_networks_the_chosen_one_is_the_run(arrays: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    out = tmp_path / "run"
    options = ("--compare", "--fine-tune", 1, "--epochs", 1, "--learning-rate", 1e-9)  # only heads learn at this rate
    done = evalmode("train", arrays, "--out", out, *options, "--no-report", "--json")
    assert done.returncode == 0, done.stderr
    accuracies = json.loads((out / "chosen.json").read_text())["val_accuracy"]
    best = "efficientnet-lite0"  # which is not the one that is trained last
    assert accuracies[best] > accuracies["compact"]
    found = json.loads(done.stdout)
    assert found["run"] == str(out / best)
    assert found["recipe"]["network"] == best
    assert found["exact_val_accuracy"] == accuracies[best]
    assert Run.open(out).config.recipe.network == best


def test_a_network_in_the_working_directory_is_trained_exported_and_used(
    arrays: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    (tmp_path / "own.py").write_text(USER_NETWORK)
    (tmp_path / "red.png").write_bytes(encode(plain("red")))
    trained = ("train", arrays, "--out", "run", "--network", "own:build", "--epochs", 3, "--batch-size", 16)
    assert evalmode(*trained, cwd=tmp_path).returncode == 0
    assert evalmode("export", "run", "--repository", "models", "--name", "own", cwd=tmp_path).returncode == 0
    assert load_metadata(tmp_path / "models/own/1/model.onnx")["network"] == "own:build"
    done = evalmode("predict", "red.png", "--file", "models/own/1/model.onnx", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["scores"][0]["label"] == "red"


@pytest.mark.slow
def test_packages_that_are_not_needed_may_be_broken(arrays: Path, evalmode: Evalmode, tmp_path: Path) -> None:
    """A torchvision of another build, and a tensorboard for another protobuf."""
    for name, code in (
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("tensorboard", "raise TypeError('Descriptors cannot be created directly')"),
    ):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'broken'}:{ROOT}"}
    done = evalmode("train", arrays, "--out", "run", "--epochs", 1, "--no-report", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "no events for TensorBoard, which is installed but cannot be imported" in done.stdout
    assert "TypeError: Descriptors cannot be created directly" in done.stdout
    done = evalmode("export", "run", "--repository", "models", "--name", "x", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_users_network_that_changed_is_one_line_at_export_and_report(
    arrays: Path, evalmode: Evalmode, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(USER_NETWORK)
    done = evalmode("train", arrays, "--out", "run", "--epochs", 1, "--network", "mine:build", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    changes = {
        USER_NETWORK.replace(
            "return", "raise KeyError('x')\n    return"
        ): "fails when it builds the network: KeyError: 'x'",
        USER_NETWORK.replace(
            "channels * height", "2 * channels * height"
        ): "best.safetensors cannot be loaded: it is of another",
        "": "No module named 'mine'",
    }
    for code, message in changes.items():
        (tmp_path / "mine.py").unlink()
        if code:
            (tmp_path / "mine.py").write_text(code)
        else:
            (tmp_path / "mine.py").symlink_to("nowhere")
        for command in (("export", "run", "--repository", "models", "--name", "x"), ("report", "run")):
            done = evalmode(*command, cwd=tmp_path)
            assert done.returncode == 2
            assert message.replace("best", "exact") in done.stderr
            assert done.stderr.startswith("evalmode: ")
            assert done.stderr.count("\n") == 1
        assert not list((tmp_path / "models").rglob("*.onnx"))
        assert list((tmp_path / "models").rglob("*")) == []


@pytest.mark.slow
def test_files_in_the_working_directory_hide_no_library_from_the_console_script(arrays: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(USER_NETWORK)
    for library in ("onnx", "onnxscript", "matplotlib"):
        (tmp_path / f"{library}.py").write_text("raise SystemExit('the file of the user was imported')\n")
    script = Path(sys.executable).with_name("evalmode")
    for arguments in (
        ("train", arrays, "--out", "run", "--network", "own:build", "--epochs", "1"),  # makes a report, too
        ("export", "run", "--repository", "models", "--name", "own"),
    ):
        done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


def test_unreadable_images_are_listed_and_skipped_only_with_the_option(tmp_path: Path, evalmode: Evalmode) -> None:
    for label in ("red", "green"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(12):
            colour = (255 - index, index, 0) if label == "red" else (0, 255 - index, index)
            (tmp_path / "photos" / label / f"{index}.png").write_bytes(encode(plain(colour)))
    for name in ("a", "b"):
        (tmp_path / "photos" / "red" / f"{name}.jpg").write_bytes(b"not an image")
    command = ("train", "photos", "--out", "run", "--epochs", 1, "--image-size", "8x8")
    refused = evalmode(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert all(expected in refused.stderr for expected in ("photos/red/a.jpg", "photos/red/b.jpg", "--skip-unreadable"))
    trained = evalmode(*command, "--skip-unreadable", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "warning   " in trained.stdout
    exported = evalmode("export", "run", "--repository", "models", "--name", "photos", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr  # the same files are skipped again


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses another OpenMP library")
@pytest.mark.parametrize(
    ("set_by_user", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_waiting_threads_spin_briefly_unless_the_user_decides(set_by_user: dict[str, str], spins: str) -> None:
    """As OpenMP reports; the environment stays unchanged."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **set_by_user}
    code = "import os; before = dict(os.environ); import training.torch_runtime as runtime\n"
    code += "runtime.import_torch(); assert dict(os.environ) == before"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}


def test_training_keeps_the_memory_that_it_frees() -> None:
    """Two allocations of 64 MiB: the second reuses the pages of the first, and causes no page faults of 4 KiB each."""
    code = """
import ctypes, resource
from training.torch_runtime import keep_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = ctypes.c_void_p(libc.malloc(2**26))
    ctypes.memset(array, 1, 2**26)
    libc.free(array)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keep_memory():
    count_faults()
    print(count_faults())
count_faults()
print(count_faults())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept < 1_000
    assert returned > 10_000  # outside the block, memory goes back to the system
