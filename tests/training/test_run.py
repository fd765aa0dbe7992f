"""The run folder: created and opened, refused if it is in use or damaged, and written atomically."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.conftest import StartRun
from training.datasets import Dataset, ReadOptions
from training.errors import NetworkError, RunError
from training.recipe import Recipe
from training.run import Run, claim_folder
from training.run_config import RunConfig


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def another_network(run: Run, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return run.config.build_network()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# run.json


@pytest.mark.parametrize("image_size", [None, (8, 8)])
def test_an_opened_run_equals_the_created_one(
    tmp_path: Path, digits: Dataset, image_size: tuple[int, int] | None
) -> None:
    recipe = Recipe("reference", 1.5, 3, 64, "adam", 1e-3, 0.01, 0.1, 0.25, True, 2, True, 7)
    config = RunConfig.of(digits, ReadOptions(image_size), recipe)
    created = Run.create(tmp_path / "run", config)
    opened = Run.open(tmp_path / "run")
    assert opened.config == created.config == config
    assert opened.folder == tmp_path / "run"
    assert repr(opened) == f"Run({str(tmp_path / 'run')!r})"


def test_a_run_records_its_data(tmp_path: Path, digits: Dataset) -> None:
    config = RunConfig.of(digits, ReadOptions(), Recipe())
    assert config.data == "digits"
    assert config.image_size is None
    assert RunConfig.of(digits, ReadOptions((8, 9)), Recipe()).image_size == (8, 9)
    assert config.data_digest == digits.digest()
    assert config.labels == digits.labels
    assert config.shape == (8, 8, 1)


def test_a_run_records_the_absolute_path_of_its_images(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    pets = Dataset("pets", digits.labels, digits.train, digits.val, digits.test)
    assert RunConfig.of(pets, ReadOptions(), Recipe()).data == str((tmp_path / "pets").resolve())


def test_a_run_builds_the_network_of_its_data_and_recipe() -> None:
    config = RunConfig("pets", None, False, "sha256:", ("cat", "dog", "emu"), (6, 9, 3), Recipe(dropout=0.25))
    network = config.build_network()
    assert network(torch.zeros(2, 3, 6, 9)).shape == (2, 3)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.25]


def test_images_too_small_for_the_network_are_refused_with_height_and_width() -> None:
    config = RunConfig("pets", None, False, "sha256:", ("cat", "dog"), (3, 9, 3), Recipe())
    with pytest.raises(NetworkError, match="images of 3x9 are too small"):
        config.build_network()


def test_a_new_run_creates_its_parent_folders(tmp_path: Path, digits: Dataset) -> None:
    Run.create(tmp_path / "a" / "b", RunConfig.of(digits, ReadOptions(), Recipe()))
    assert names_in(tmp_path / "a" / "b") == {"run.json"}


def test_a_folder_that_is_not_empty_is_refused_and_unchanged(tmp_path: Path, digits: Dataset) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=f"{tmp_path} is not empty: choose another --out"):
        Run.create(tmp_path, RunConfig.of(digits, ReadOptions(), Recipe()))
    assert names_in(tmp_path) == {"thesis.txt"}


def test_a_folder_with_a_run_is_refused(start_run: StartRun) -> None:
    run, _ = start_run("run")
    with pytest.raises(RunError, match="is not empty"):
        Run.create(run.folder, run.config)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="run cannot be made"):
        claim_folder(tmp_path / "run")


def test_a_folder_without_a_run_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path} holds no run: .*run.json"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format_version": 3}',
        b'{"format_version": 3, "recipe": {"colour": "red"}}',
        b'{"format_version": 3, "recipe": {}, "labels": 5, "shape": [8, 8, 1], "image_size": null}',
        b'{"format_version": 3, "recipe": {}, "labels": ["a"], "shape": [8, 8, 1], "image_size": null}',
        b'{"format_version": 3, "recipe": {}, "labels": ["a"], "shape": [8, 8], "image_size": null, "data": "", '
        b'"data_digest": ""}',
        b"null",
        b"5",
        b'"run"',
    ],
)
def test_a_damaged_run_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=f"{tmp_path} holds no run"):
        Run.open(tmp_path)


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_a_run_of_another_format_is_refused(start_run: StartRun, version: object) -> None:
    run, _ = start_run()
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps(facts | {"format_version": version}))
    with pytest.raises(RunError, match=f"{run.folder} was written by another version of evalmode: train again"):
        Run.open(run.folder)


def test_a_run_error_has_the_exit_code_of_wrong_usage() -> None:
    assert RunError.exit_code == 2


# Weights


def test_loaded_weights_equal_the_saved_ones(start_run: StartRun) -> None:
    run, network = start_run()
    network(torch.randn(4, 1, 8, 8))  # moves the moving statistics
    run.save_weights(network)
    other = another_network(run)
    assert not equal_weights(other, network)
    run.load_weights(other)
    assert equal_weights(other, network)


def test_weights_of_any_memory_layout_can_be_saved(start_run: StartRun) -> None:
    run, network = start_run()
    run.save_weights(network.to(memory_format=torch.channels_last))
    other = another_network(run)
    run.load_weights(other)
    assert equal_weights(other, network)


def test_a_run_knows_whether_it_has_weights(start_run: StartRun) -> None:
    run, network = start_run()
    assert not run.has_weights()
    run.save_weights(network)
    assert run.has_weights()


def test_missing_weights_are_refused_by_their_path(start_run: StartRun) -> None:
    run, network = start_run()
    with pytest.raises(RunError, match=f"{run.folder}/best.safetensors cannot be loaded"):
        run.load_weights(network)


@pytest.mark.parametrize("kept_bytes", [0, 4, 200, 100_000])
def test_damaged_weights_are_refused_by_their_path(start_run: StartRun, kept_bytes: int) -> None:
    run, network = start_run()
    run.save_weights(network)
    path = run.folder / "best.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(RunError, match=f"{path} cannot be loaded"):
        run.load_weights(network)


def test_weights_of_another_network_are_refused_by_their_path(start_run: StartRun) -> None:
    run, _ = start_run()
    run.save_weights(nn.Linear(2, 2))
    with pytest.raises(RunError, match=f"{run.folder}/best.safetensors cannot be loaded"):
        run.load_weights(run.config.build_network())


def test_saving_leaves_no_partial_file(start_run: StartRun) -> None:
    run, network = start_run()
    run.save_weights(network)
    run.save_weights(network)
    assert names_in(run.folder) == {"run.json", "best.safetensors"}


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """Limit the size of files, to make writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_keeps_the_old_weights(start_run: StartRun) -> None:
    run, network = start_run()
    run.save_weights(network)
    with full_disk(after_bytes=10_000), pytest.raises(OSError, match="File too large"):
        run.save_weights(another_network(run))
    loaded = another_network(run, seed=2)
    run.load_weights(loaded)
    assert equal_weights(loaded, network)


def test_new_weights_are_on_disk_before_they_replace_the_old_ones(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network = start_run()
    run.save_weights(network)

    def lose_power(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", lose_power)
    with pytest.raises(KeyboardInterrupt):
        run.save_weights(another_network(run))
    loaded = another_network(run, seed=2)
    run.load_weights(loaded)
    assert equal_weights(loaded, network)


def test_a_small_file_is_complete_when_it_is_synced_to_disk(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced_bytes: list[int] = []
    monkeypatch.setattr("os.fsync", lambda file: synced_bytes.append(os.fstat(file).st_size))
    Run.create(tmp_path / "run", RunConfig.of(digits, ReadOptions(), Recipe()))
    assert synced_bytes == [(tmp_path / "run" / "run.json").stat().st_size]  # no bytes remain in a buffer


def test_a_save_succeeds_after_an_interrupted_one(start_run: StartRun) -> None:
    run, network = start_run()
    (run.folder / "best.safetensors.partial").write_bytes(b"half" * 1_000_000)
    run.save_weights(network)
    loaded = another_network(run)
    run.load_weights(loaded)
    assert equal_weights(loaded, network)
    assert names_in(run.folder) == {"run.json", "best.safetensors"}


# Metrics


def test_metrics_are_one_json_object_per_line(start_run: StartRun) -> None:
    run, _ = start_run()
    run.metrics.append({"epoch": 1, "loss": 0.5})
    run.metrics.append({"epoch": 2, "loss": 0.25})
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]


def test_the_table_of_labels_is_found_again(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = dataclasses.replace(digits, source=str(tmp_path / "pets"))
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    inside = RunConfig.of(pets, ReadOptions(labels=Path("pets/a/labels.csv")), Recipe())
    outside = RunConfig.of(pets, ReadOptions(labels=Path("labels.csv")), Recipe())
    assert inside.find_labels(None) == tmp_path.resolve() / "pets/a/labels.csv"
    assert inside.find_labels("moved/pets") == Path("moved/pets/a/labels.csv")
    assert outside.find_labels("moved/pets") == tmp_path.resolve() / "labels.csv"
    assert RunConfig.of(pets, ReadOptions(), Recipe()).find_labels("moved/pets") is None
