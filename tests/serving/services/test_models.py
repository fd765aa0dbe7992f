"""A server follows its repository: it serves published versions, rejects invalid ones, and can be rolled back."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import psutil
import pytest

from evalmode.artifact.publishing import publish, withdraw
from evalmode.artifact.repository import list_versions
from evalmode.artifact.tensors import INPUT
from evalmode.errors import (
    ArtifactInvalid,
    DeadlineExpired,
    ModelInvalid,
    ModelNotFound,
    NameInvalid,
    TrialUnavailable,
)
from evalmode.limits import Limits
from evalmode.runtime.loading import load_model
from serving.services.loaded import Entry
from serving.services.models import ALL, Models
from serving.trials import Trials
from tests.conftest import COLOURS, colour_artifact, serving
from tests.hostile import endless_loop
from tests.serving.conftest import WAIT_S, refresh, spawn, wait_until

GERMAN = ("rot", "grün", "blau")
MAY_MOUNT = (
    bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "colours", colour_artifact())
    return tmp_path / "models"


def list_states(models: Models) -> list[tuple[str, str, str]]:
    return [(f"{one.name}/{one.version}", one.state, one.reason) for one in models.list_entries()]


def put(folder: Path) -> None:
    """Create a folder and put an artifact into it."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(colour_artifact())


def list_loaded(models: Models) -> list[str]:
    return [f"{one.name}/{one.version}" for one in models.loaded]


class TestOpen:
    def test_serves_the_newest_version(self, repository: Path) -> None:
        publish(repository, "colours", colour_artifact(GERMAN))
        assert Models.open(repository).find("", "").manifest.labels == GERMAN

    def test_serves_the_previous_version_if_the_newest_is_invalid_and_reports_why(self, repository: Path) -> None:
        publish(repository, "colours", b"no artifact")
        models = Models.open(repository)
        assert models.find("colours", "").version == "1"
        (good, bad) = list_states(models)
        assert good == ("colours/1", "READY", "")
        assert bad[:2] == ("colours/2", "UNAVAILABLE")
        assert "not an ONNX file" in bad[2]

    def test_fails_if_no_version_can_be_loaded(self, tmp_path: Path) -> None:
        publish(tmp_path, "colours", b"no artifact")
        with pytest.raises(ArtifactInvalid, match="not an ONNX file"):
            Models.open(tmp_path)

    @pytest.mark.parametrize(
        ("prepare", "expected"),
        [
            (lambda path: None, "models does not exist"),
            (lambda path: path.write_text(""), "models is a file, not a folder or *.onnx file"),
            (lambda path: path.symlink_to("gone"), "models is a link to gone, which does not exist"),
            (Path.mkdir, "models holds no <name>/<version>/model.onnx"),
            (lambda path: put(path / "cats" / "v1"), "models/cats/v1 is not a version: a version is a whole number"),
        ],
    )
    def test_of_a_repository_without_models_reports_why_and_what_to_do(
        self, tmp_path: Path, prepare: Callable[[Path], object], expected: str
    ) -> None:
        prepare(tmp_path / "models")
        with pytest.raises(ArtifactInvalid) as caught:
            Models.open(tmp_path / "models")
        assert expected in str(caught.value)
        assert str(caught.value).endswith(": publish a model with 'evalmode export', or correct --repository")

    def test_serves_only_the_pinned_version(self, repository: Path) -> None:
        publish(repository, "colours", colour_artifact(GERMAN))
        publish(repository, "other", colour_artifact())
        models = Models.open(repository, {"colours": 1})
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        assert list_loaded(models) == ["colours/1", "other/1"]
        assert ("colours/3", "UNAVAILABLE", "version 1 is pinned") in list_states(models)

    @pytest.mark.parametrize(
        ("pin", "error", "text"),
        [
            ({"colours": 7}, ArtifactInvalid, "7/model.onnx does not exist; versions of colours: 1, 2"),
            ({"nobody": 1}, ArtifactInvalid, "versions of nobody: none"),
            ({"../colours": 1}, NameInvalid, "is not allowed"),
            ({"colours": 2}, ArtifactInvalid, "not an ONNX file"),
        ],
    )
    def test_fails_if_the_pinned_version_cannot_be_loaded(self, repository: Path, pin, error, text) -> None:
        publish(repository, "colours", b"no artifact")
        with pytest.raises(error, match=text):
            Models.open(repository, pin)


class TestRefresh:
    def test_serves_a_published_version_and_keeps_the_previous_one(self, repository: Path) -> None:
        models = Models.open(repository)
        for newest in (2, 3):
            publish(repository, "colours", colour_artifact(GERMAN if newest % 2 == 0 else COLOURS))
            refresh(models)
            assert list_loaded(models) == [f"colours/{newest}", f"colours/{newest - 1}"]
            assert models.find("", "").version == str(newest)
            assert models.find("colours", str(newest - 1)).version == str(newest - 1)
        with pytest.raises(ModelNotFound, match="served: colours/3, colours/2"):
            models.find("colours", "1")

    def test_loads_the_previous_version_after_the_start(self, repository: Path) -> None:
        publish(repository, "colours", colour_artifact())
        models = Models.open(repository)
        assert list_loaded(models) == ["colours/2"]
        refresh(models)
        assert list_loaded(models) == ["colours/2", "colours/1"]

    def test_reads_no_file_twice(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(repository, "colours", b"no artifact")
        publish(repository, "colours", colour_artifact())
        models = Models.open(repository)
        refresh(models)
        before = list_states(models)
        monkeypatch.setattr("evalmode.runtime.loading.load_model", load := Mock())
        refresh(models)
        load.assert_not_called()
        assert list_states(models) == before

    def test_keeps_the_configured_number_of_versions(self, repository: Path) -> None:
        models = Models.open(repository, keep=1)
        publish(repository, "colours", colour_artifact())
        refresh(models)
        assert list_loaded(models) == ["colours/2"]

    def test_serves_published_models(self, repository: Path) -> None:
        models = Models.open(repository)
        publish(repository, "other", colour_artifact())
        refresh(models)
        assert list_loaded(models) == ["colours/1", "other/1"]

    def test_serves_the_kept_version_after_a_withdrawal_and_the_newer_one_after_its_return(
        self, repository: Path
    ) -> None:
        models = Models.open(repository)
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        before = models.loaded
        assert withdraw(repository, "colours") == (2, 1, repository / "colours/.withdrawn-2")
        refresh(models)
        assert models.loaded == before[1:]  # the kept object itself
        (repository / "colours" / ".withdrawn-2").rename(repository / "colours" / "2")
        refresh(models)
        assert list_loaded(models) == ["colours/2", "colours/1"]

    def test_an_invalid_version_is_loaded_again_when_it_changes(self, repository: Path) -> None:
        models = Models.open(repository)
        path = publish(repository, "colours", colour_artifact()[:500])  # an incomplete copy
        refresh(models)
        assert list_loaded(models) == ["colours/1"]
        path.write_bytes(colour_artifact())
        refresh(models)
        assert list_loaded(models) == ["colours/2", "colours/1"]
        assert list_states(models)[1] == ("colours/2", "READY", "")

    @pytest.mark.parametrize("change", ["touched", "replaced by its equal", "replaced by another"])
    def test_a_served_file_that_changes_is_loaded_again(
        self, repository: Path, change: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        models = Models.open(repository)
        before, path = models.find("", ""), repository / "colours" / "1" / "model.onnx"
        if change == "touched":
            os.utime(path, ns=(0, 0))
        else:
            fresh = path.with_name("incoming")
            fresh.write_bytes(colour_artifact(COLOURS if "equal" in change else GERMAN))
            fresh.rename(path)
        refresh(models)
        assert list_states(models) == [("colours/1", "READY", "")]
        assert models.find("", "") is not before
        assert models.find("", "").manifest.labels == (GERMAN if "another" in change else COLOURS)
        assert "cannot be followed" not in caplog.text

    def test_a_served_file_that_becomes_invalid_stays_loaded_and_is_reported(self, repository: Path) -> None:
        models = Models.open(repository)
        (repository / "colours" / "1" / "model.onnx").write_bytes(b"corrupted")
        refresh(models)
        ((entry, state, reason),) = list_states(models)
        assert (entry, state) == ("colours/1", "READY")
        assert "not an ONNX file" in reason

    def test_a_model_whose_versions_disappear_stays_loaded(self, repository: Path, caplog) -> None:
        models = Models.open(repository)
        shutil.rmtree(repository)  # such as a volume that was unmounted
        refresh(models)
        refresh(models)
        assert list_states(models) == [("colours/1", "READY", "no longer in the repository")]
        assert caplog.text.count("but stays loaded") == 1
        assert f"colours is no longer in the repository, but stays loaded: {repository} does not" in caplog.text
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        assert models.find("", "").manifest.labels == GERMAN

    def test_forgets_removed_versions(self, repository: Path) -> None:
        models = Models.open(repository)
        for _ in range(3):
            publish(repository, "colours", b"no artifact")
        refresh(models)
        for version in (2, 3, 4):
            shutil.rmtree(repository / "colours" / str(version))
        refresh(models)
        assert list_states(models) == [("colours/1", "READY", "")]
        assert (list(models._tried), models._refused) == ([("colours", 1)], {})

    def test_a_link_out_of_the_repository_is_not_followed(self, repository: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside.onnx"
        outside.write_bytes(colour_artifact(GERMAN))
        (repository / "colours" / "2").mkdir()
        (repository / "colours" / "2" / "model.onnx").symlink_to(outside)
        (repository / "elsewhere").symlink_to(publish(tmp_path / "others", "colours", colour_artifact()).parent.parent)
        models = Models.open(repository)
        refresh(models)
        assert list_loaded(models) == ["colours/1"]
        reasons = {entry: reason for entry, _, reason in list_states(models)}
        for entry in ("colours/2", "elsewhere/1"):
            assert "outside the repository" in reasons[entry]

    def test_a_link_out_of_the_repository_is_followed_with_follow_links(self, repository: Path, tmp_path: Path) -> None:
        (repository / "elsewhere").symlink_to(publish(tmp_path / "others", "colours", colour_artifact()).parent.parent)
        assert list_loaded(Models.open(repository, follow_links=[str(tmp_path / "others")])) == [
            "colours/1",
            "elsewhere/1",
        ]

    @pytest.mark.parametrize("target", ["colours", "../models/colours", "{repository}/colours", "here/here/colours"])
    def test_a_link_inside_the_repository_is_followed(self, repository: Path, target: str) -> None:
        (repository / "here").symlink_to(".")
        (repository / "stable").symlink_to(target.format(repository=repository))
        assert list_loaded(Models.open(repository)) == ["colours/1", "stable/1"]

    def test_a_repository_that_kubernetes_mounts_is_followed_through_its_links(self, tmp_path: Path) -> None:
        mount = tmp_path / "models"
        for number, labels in enumerate((COLOURS, GERMAN)):
            publish(mount / f"..2026_{number}", "colours", colour_artifact(labels))
        (mount / "..data").symlink_to("..2026_0")
        (mount / "colours").symlink_to("..data/colours")
        models = Models.open(mount)
        assert models.find("", "").manifest.labels == COLOURS
        (mount / "..new").symlink_to("..2026_1")
        (mount / "..new").rename(mount / "..data")
        refresh(models)
        assert models.find("", "").manifest.labels == GERMAN

    @pytest.mark.skipif(not MAY_MOUNT, reason="a file system of another mount namespace needs the right to mount")
    def test_a_repository_is_opened_through_the_root_of_another_process(self, tmp_path: Path) -> None:
        """As KServe mounts a container with models: a link to /proc/PID/root/models, which resolves to /models."""
        publish(tmp_path / "made" / "models", "colours", colour_artifact())
        (tmp_path / "made" / "models" / "stable").symlink_to("colours")
        (tmp_path / "made" / "models" / "outside").symlink_to("../../made/models/../colours")
        shutil.copytree(tmp_path / "made" / "models" / "colours", tmp_path / "made" / "colours")
        (tmp_path / "seen").mkdir()
        script = "mount -t tmpfs none seen && cp -a made/. seen && echo ready && exec sleep 600"
        other = subprocess.Popen(["unshare", "-m", "sh", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE)
        with other:
            try:
                assert other.stdout is not None
                assert other.stdout.readline() == b"ready\n"
                (tmp_path / "mounted").symlink_to(f"/proc/{other.pid}/root{tmp_path}/seen/models")
                models = Models.open(tmp_path / "mounted")
                assert list_loaded(models) == ["colours/1", "stable/1"]
                assert "outside the repository" in list_states(models)[1][2]
            finally:
                other.kill()

    def test_logs_once_why_an_entry_is_not_a_version(self, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
        for folder in ("colours/v1", "colours/0001", "colours/latest", "two words/1"):
            put(repository / folder)
        (repository / "colours" / "7").mkdir()
        (repository / "colours" / "7" / "Model.onnx").write_bytes(b"")
        (repository / "colours" / "8").mkdir()
        (repository / "colours" / "8" / "model.onnx").symlink_to("gone")
        (repository / "flat.onnx").write_bytes(b"")
        (repository / "colours" / "model.onnx").write_bytes(b"")
        for ordinary in ("README.md", "colours/config.pbtxt", "colours/.withdrawn-3"):
            (repository / ordinary).write_text("")
        (repository / "colours" / "notes").mkdir()
        models = Models.open(repository)
        refresh(models)
        logged = [record.getMessage().removeprefix(f"{repository}/") for record in caplog.records]
        number = "is not a version: a version is a whole number from 1 on, up to nine digits, without leading zeros"
        assert [text for text in logged if not text.startswith(("loaded", "colours is served"))] == [
            f"colours/0001 {number}",
            "colours/7 holds no model.onnx, but Model.onnx",
            "colours/8 holds model.onnx as a link to gone, which does not exist",
            f"colours/latest {number}",
            "colours/model.onnx is not a version: a version is a folder with model.onnx, such as 1",
            f"colours/v1 {number}",
            "flat.onnx is not a model: a model is <name>/<version>/model.onnx",
            "two words is not the name of a model: use up to 128 letters, digits, '.', '_' and '-', "
            "the first a letter or digit",
        ]
        assert list_loaded(models) == ["colours/1"]

    @pytest.mark.parametrize("folder", ["", "colours", "colours/1"])
    def test_a_folder_without_permission_is_reported(
        self, repository: Path, folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        models, closed, list_folder, stat = Models.open(repository), repository / folder, Path.iterdir, Path.stat

        def forbidden(path: Path) -> Iterator[Path]:
            if path.is_relative_to(closed):
                raise PermissionError(13, "Permission denied")
            return list_folder(path)

        def hidden(path: Path, **options: bool) -> os.stat_result:
            if closed in path.parents:
                raise PermissionError(13, "Permission denied")
            return stat(path, **options)

        monkeypatch.setattr(Path, "iterdir", forbidden)
        monkeypatch.setattr(Path, "stat", hidden)
        refresh(models)
        assert f"{closed} cannot be read: Permission denied" in caplog.text
        assert list_states(models) == [("colours/1", "READY", "no longer in the repository")]
        with pytest.raises(ArtifactInvalid, match=f"{closed} cannot be read: Permission denied"):
            Models.open(repository)

    def test_a_request_that_found_a_model_is_answered_by_it_after_a_swap(self, repository: Path) -> None:
        models = Models.open(repository, keep=1)
        found = models.find("", "")
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        assert found.manifest.labels == COLOURS
        assert found.run({INPUT: np.zeros((1, 4, 4, 3), np.uint8)})["probabilities"].shape == (1, 3)


def test_entries_can_be_listed_while_a_version_is_loading(repository: Path, monkeypatch) -> None:
    models, entered, go = Models.open(repository), threading.Event(), threading.Event()

    def load_slowly(path: Path, **options: Any) -> object:
        entered.set()
        assert go.wait(WAIT_S)
        return load_model(path, **options)

    monkeypatch.setattr("evalmode.runtime.loading.load_model", load_slowly)
    publish(repository, "colours", colour_artifact(GERMAN))
    refreshing = spawn(refresh, models)
    assert entered.wait(WAIT_S)
    assert spawn(list_states, models).result(WAIT_S) == [
        ("colours/1", "READY", ""),
        ("colours/2", "UNAVAILABLE", "being checked and replayed"),
    ]
    assert models.find("", "").version == "1"
    go.set()
    refreshing.result(WAIT_S)
    assert models.find("", "").version == "2"


@pytest.fixture
def on_trial(repository: Path) -> Iterator[Models]:
    """Models that follow a repository whose colours/2 never ends its trial."""
    models, stop = Models.open(repository, trials=Trials(Limits(load_seconds=3600))), threading.Event()
    publish(repository, "colours", endless_loop())
    watching = spawn(models.watch, 0.05, stop)
    wait_until(lambda: ("colours/2", "UNAVAILABLE", "being checked and replayed") in list_states(models))
    yield models
    stop.set()
    watching.result(WAIT_S)


class TestDuringATrial:
    def test_other_models_and_versions_load(self, on_trial: Models, repository: Path) -> None:
        publish(repository, "other", colour_artifact())
        wait_until(lambda: "other/1" in list_loaded(on_trial))
        publish(repository, "colours", colour_artifact(GERMAN))
        wait_until(lambda: on_trial.find("colours", "").version == "3")
        assert list_loaded(on_trial) == ["colours/3", "colours/1", "other/1"]
        assert ("colours/2", "UNAVAILABLE", "being checked and replayed") in list_states(on_trial)

    def test_load_and_unload_work(self, on_trial: Models, repository: Path) -> None:
        publish(repository, "other", colour_artifact())
        spawn(on_trial.load, "other").result(WAIT_S)
        spawn(on_trial.unload, "other").result(WAIT_S)
        assert ("other/1", "UNAVAILABLE", "unloaded by a call") in list_states(on_trial)
        spawn(refresh, on_trial)  # waits for all trials, and blocks no other call
        spawn(on_trial.load, "other").result(WAIT_S)
        assert "other/1" in list_loaded(on_trial)

    def test_load_waits_for_the_trial_until_its_deadline(self, on_trial: Models) -> None:
        with pytest.raises(DeadlineExpired, match="colours/2 is still being checked and replayed"):
            on_trial.load("colours", timeout_s=0.1)

    def test_closing_refuses_waiting_calls(self, on_trial: Models) -> None:
        waiting = spawn(on_trial.load, "colours")
        on_trial.close()
        with pytest.raises(ModelInvalid, match="shutting down"):
            waiting.result(WAIT_S)
        assert list_loaded(on_trial) == ["colours/1"]

    def test_an_unloaded_model_is_not_served_after_its_trial(self, repository: Path, monkeypatch) -> None:
        models, entered, go = Models.open(repository), threading.Event(), threading.Event()

        def load_slowly(path: Path, **options: Any) -> object:
            entered.set()
            assert go.wait(WAIT_S)
            return load_model(path, **options)

        monkeypatch.setattr("evalmode.runtime.loading.load_model", load_slowly)
        publish(repository, "colours", colour_artifact(GERMAN))
        refreshing = spawn(refresh, models)
        assert entered.wait(WAIT_S)
        models.unload("colours")
        go.set()
        refreshing.result(WAIT_S)
        assert list_loaded(models) == []

    def test_a_version_that_arrives_after_newer_ones_is_not_kept(self, repository: Path, monkeypatch) -> None:
        models, entered, go = Models.open(repository), threading.Event(), threading.Event()

        def load_slowly(path: Path, version: str, **options: Any) -> object:
            if version == "2":
                entered.set()
                assert go.wait(WAIT_S)
            return load_model(path, version=version, **options)

        monkeypatch.setattr("evalmode.runtime.loading.load_model", load_slowly)
        publish(repository, "colours", colour_artifact(GERMAN))
        refreshing = spawn(refresh, models)
        assert entered.wait(WAIT_S)
        for version in ("3", "4"):
            publish(repository, "colours", colour_artifact())
            models._look()
            wait_until(lambda version=version: models.find("", "").version == version)  # type: ignore[misc]
        assert models.on_trial == {("colours", 2)}
        go.set()
        refreshing.result(WAIT_S)
        assert list_loaded(models) == ["colours/4", "colours/3"]
        assert models.arrived == ()

    def test_the_start_ends_when_stop_is_set(self, tmp_path: Path) -> None:
        publish(tmp_path, "colours", endless_loop())
        stop = threading.Event()
        opening = spawn(partial(Models.open, tmp_path, stop=stop, trials=Trials(Limits(load_seconds=3600))))
        stop.set()
        models = opening.result(WAIT_S)
        assert list_loaded(models) == []
        models.close()

    def test_a_fault_of_the_server_affects_only_its_version(self, repository: Path, monkeypatch) -> None:
        models = Models.open(repository)
        with monkeypatch.context() as patched:
            patched.setattr("evalmode.runtime.loading.load_model", None)
            for name in ("colours", "other", "third"):  # more than there are threads
                publish(repository, name, colour_artifact(GERMAN))
            refresh(models)
        assert [reason for _, _, reason in list_states(models)] == ["", *["'NoneType' object is not callable"] * 3]
        publish(repository, "fourth", colour_artifact())
        refresh(models)
        assert "fourth/1" in list_loaded(models)

    def test_a_trial_without_a_process_is_repeated_at_the_next_refresh(self, repository: Path, monkeypatch) -> None:
        models = Models.open(repository)
        publish(repository, "colours", colour_artifact(GERMAN))
        with monkeypatch.context() as patched:
            patched.setattr(Trials, "examine", Mock(side_effect=TrialUnavailable("too many processes")))
            refresh(models)
        assert list_states(models)[1] == ("colours/2", "UNAVAILABLE", "too many processes")
        refresh(models)
        assert models.find("", "").version == "2"


def test_a_server_with_an_endless_trial_ends_on_sigterm(repository: Path) -> None:
    with serving(repository, "--load-seconds", 3600, "--poll", 0.05, "--log-level", "warning") as server:
        publish(repository, "colours", endless_loop())
        process = psutil.Process(server.process.pid)
        wait_until(process.children)
        (child,) = process.children()
        assert server.stop(timeout_s=WAIT_S) == (0, "")
        wait_until(lambda: not child.is_running())


class TestQuarantine:
    def test_the_version_before_answers_until_the_file_changes(self, repository: Path) -> None:
        models = Models.open(repository)
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        for _ in range(2):  # two workers may find out at the same time
            models.quarantine(("colours", 2), ArtifactInvalid("workers ended twice"))
        refresh(models)
        assert list_loaded(models) == ["colours/1"]
        assert list_states(models)[1] == ("colours/2", "UNAVAILABLE", "workers ended twice")
        (repository / "colours" / "2" / "model.onnx").write_bytes(colour_artifact(GERMAN))
        refresh(models)
        assert list_loaded(models) == ["colours/2", "colours/1"]

    def test_an_only_version_stays_loaded_until_another_one_is(self, repository: Path) -> None:
        models = Models.open(repository)
        models.quarantine(("colours", 1), ArtifactInvalid("workers ended twice"))
        refresh(models)
        assert list_states(models) == [("colours/1", "READY", "workers ended twice")]
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        assert list_loaded(models) == ["colours/2"]

    def test_an_only_version_that_is_loaded_by_a_call_is_valid_again(self, repository: Path) -> None:
        models = Models.open(repository)
        models.quarantine(("colours", 1), ArtifactInvalid("workers ended twice"))
        models.load("colours")
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        assert list_loaded(models) == ["colours/2", "colours/1"]


class TestControl:
    def test_unloading_a_version_serves_the_previous_one_at_once(self, repository: Path) -> None:
        publish(repository, "colours", colour_artifact(GERMAN))
        models = Models.open(repository)
        refresh(models)
        models.unload("colours", "2")
        assert models.find("", "").version == "1"
        refresh(models)
        assert list_states(models)[1] == ("colours/2", "UNAVAILABLE", "unloaded by a call")
        publish(repository, "colours", colour_artifact())
        refresh(models)
        assert list_loaded(models) == ["colours/3", "colours/1"]

    def test_an_unloaded_model_stays_unloaded_until_it_is_loaded(self, repository: Path) -> None:
        models = Models.open(repository)
        models.unload("colours")
        publish(repository, "colours", colour_artifact(GERMAN))
        refresh(models)
        assert list_loaded(models) == []
        models.load("colours")
        assert models.find("", "").version == "2"
        wait_until(lambda: list_loaded(models) == ["colours/2", "colours/1"])  # the previous version follows
        assert (("colours", ALL)) not in models._unloaded

    @pytest.mark.parametrize(("name", "version"), [("nobody", ""), ("colours", "2"), ("colours", "x")])
    def test_unloading_a_version_that_is_not_loaded_fails(self, repository: Path, name: str, version: str) -> None:
        with pytest.raises(ModelNotFound, match="cannot be unloaded"):
            Models.open(repository).unload(name, version)

    def test_loading_a_loaded_version_reads_it_again(self, repository: Path) -> None:
        models = Models.open(repository)
        before = models.find("", "")
        for _ in range(2):
            models.load("colours")
            assert list_states(models) == [("colours/1", "READY", "")]
        assert models.find("", "") is not before

    def test_loading_reads_an_invalid_version_again(self, repository: Path) -> None:
        models = Models.open(repository)
        publish(repository, "colours", b"no artifact")
        for _ in range(2):
            with pytest.raises(ModelInvalid, match="colours/2 cannot be loaded"):
                models.load("colours")
        assert list_loaded(models) == ["colours/1"]


class TestFollow:
    def test_reports_the_entries_and_their_changes(self, repository: Path) -> None:
        models = Models.open(repository)
        shown: list[list[Entry]] = []
        models.follow(shown.append)
        assert shown == [[Entry("colours", "1", "READY", "")]]
        refresh(models)
        assert len(shown) == 1
        publish(repository, "colours", b"no artifact")
        refresh(models)
        assert [entry.ready for entry in shown[-1]] == [True, False]
        models.unload("colours")
        assert [entry.ready for entry in shown[-1]] == [False, False]

    def test_watching_continues_after_an_error_until_stop_is_set(self, repository: Path, monkeypatch, caplog) -> None:
        models, stop = Models.open(repository), threading.Event()
        monkeypatch.setattr(models, "list_entries", lambda: list(Path("/nowhere").iterdir()))  # as with a missing disk
        watching = spawn(models.watch, 0.01, stop)
        wait_until(lambda: "cannot be followed" in caplog.text)
        monkeypatch.undo()
        publish(repository, "colours", colour_artifact(GERMAN))
        wait_until(lambda: models.find("", "").manifest.labels == GERMAN)
        stop.set()
        watching.result(timeout=30)


class TestWithdraw:
    def test_version_numbers_are_never_reused(self, repository: Path) -> None:
        publish(repository, "colours", b"two")
        assert withdraw(repository, "colours") == (2, 1, repository / "colours/.withdrawn-2")
        assert list_versions(repository, "colours") == [1]
        assert publish(repository, "colours", b"three").parent.name == "3"
        assert (repository / "colours" / ".withdrawn-2" / "model.onnx").read_bytes() == b"two"

    @pytest.mark.parametrize(
        ("name", "text"),
        [("colours", "has only version 1: there is no version to roll back to"), ("nobody", "nobody does not exist")],
    )
    def test_needs_a_previous_version(self, repository: Path, name: str, text: str) -> None:
        with pytest.raises(ArtifactInvalid, match=text):
            withdraw(repository, name)

    def test_names_are_checked(self, repository: Path) -> None:
        with pytest.raises(NameInvalid):
            withdraw(repository, "../models/colours")
