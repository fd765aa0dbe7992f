"""Files are loaded in a child process first: a hostile file is rejected with a reason, and its process ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalmode.errors import ArtifactInvalid, EvalmodeError, LoadLimitExceeded, OperatorNotAllowed, TrialUnavailable
from evalmode.limits import MIB, Limits
from serving.trials import Trials
from tests.conftest import colour_artifact
from tests.hostile import FILES, endless_loop
from tests.serving.conftest import WAIT_S, spawn, wait_until

TOO_LONG = (LoadLimitExceeded, "takes more than --load-seconds 5: raise --load-seconds to serve it")
TOO_LARGE = (LoadLimitExceeded, "more memory than --load-bytes")
REASONS = {
    "endless loop": TOO_LONG,
    "loop of 2**62 steps": TOO_LONG,
    "loop that grows": TOO_LARGE,
    "expand to 100 GB": TOO_LARGE,
    "tile to 100 GB": (ArtifactInvalid, "more than 4294967296 bytes|more memory than --load-bytes"),
    "constant of 100 GB": TOO_LARGE,
    "concat that doubles": TOO_LARGE,
    "chain of 400,000 nodes": (LoadLimitExceeded, "--load-seconds 5|--load-bytes"),
    "nested sub-graphs": (ArtifactInvalid, "not the network that was certified"),
    "15 million messages": (ArtifactInvalid, "not an ONNX file|more memory than --load-bytes"),
    "certificate that unpacks to 8 GB": (ArtifactInvalid, "unpacks to 8053066032 bytes, at most 134217728 are allowed"),
    "metadata nested 900,000 times": (ArtifactInvalid, "nested too deeply"),
    "metadata of 10 million values": (ArtifactInvalid, r"200001\d\d values in the metadata, at most 1000000"),
    "weights in another file": (OperatorNotAllowed, "weights in another file are not allowed: outside"),
}


@pytest.fixture
def trials() -> Iterator[Trials]:
    made = Trials(Limits(load_seconds=5, load_bytes=192 * MIB))
    yield made
    made.close()


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_rejected_with_its_reason_and_the_next_file_is_tried(trials: Trials, name: str) -> None:
    error, text = REASONS[name]
    with pytest.raises(error, match=text):
        trials.examine(FILES[name]())
    trials.examine(colour_artifact())


def test_an_exceeded_memory_limit_is_reported_with_its_option() -> None:
    with pytest.raises(LoadLimitExceeded, match=r"--load-bytes 67108864 and 4 times its file: raise --load-bytes"):
        Trials(Limits(load_bytes=64 * MIB)).examine(FILES["concat that doubles"]())


def test_a_child_is_reused_until_it_has_rejected_a_file(trials: Trials) -> None:
    trials.prepare()
    (first,) = trials._idle
    for _ in range(2):
        trials.examine(colour_artifact())
        assert trials._idle == [first]
    with pytest.raises(ArtifactInvalid):
        trials.examine(b"no artifact")
    assert trials._idle == []
    assert first.process.returncode is not None


def test_the_file_is_rejected_if_the_child_dies(trials: Trials) -> None:
    trials.prepare()
    os.kill(trials._idle[0].process.pid, signal.SIGKILL)
    with pytest.raises(LoadLimitExceeded, match="checked and replayed it ended by SIGKILL"):
        trials.examine(colour_artifact())


def test_the_oom_killer_prefers_the_child_to_the_server(trials: Trials) -> None:
    trials.prepare()
    (child,) = trials._idle
    trials.examine(colour_artifact())
    assert Path(f"/proc/{child.process.pid}/oom_score_adj").read_text() == "1000\n"


def test_closing_ends_running_trials(trials: Trials) -> None:
    long_trials = Trials(Limits(load_seconds=3600))
    running = spawn(long_trials.examine, endless_loop())
    wait_until(lambda: long_trials._busy)
    (child,) = long_trials._busy
    long_trials.close()
    assert isinstance(running.exception(WAIT_S), ArtifactInvalid)
    assert "shutting down" in str(running.exception())
    assert child.process.returncode == -signal.SIGKILL
    with pytest.raises(ArtifactInvalid, match="shutting down"):
        long_trials.examine(colour_artifact())


def test_an_unavailable_process_is_an_error_of_the_machine_and_not_of_the_file(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(TrialUnavailable, match="cannot start a process to check it in: too many processes") as caught:
        trials.examine(colour_artifact())
    assert not isinstance(caught.value, ArtifactInvalid)


def test_the_reason_is_one_line_of_bounded_length(trials: Trials) -> None:
    """onnxruntime quotes names from the file: a hostile file must not write lines of its own into the log."""
    import onnx

    from evalmode.artifact.manifest import TensorManifest
    from tests.hostile import seal_unchecked

    node = onnx.helper.make_node("No\nSuch" + "x" * 10_000, ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("batch",)) for name in "xy"]
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    with pytest.raises(EvalmodeError) as caught:
        trials.examine(seal_unchecked(graph, TensorManifest()), allow_uncertified=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 1000


def test_the_child_imports_the_same_evalmode_whatever_the_current_folder_contains(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit")
    (tmp_path / "serving.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    trials.examine(colour_artifact())
