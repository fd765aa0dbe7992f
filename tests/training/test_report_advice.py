"""What the report says to do next follows from the figures of the run, and its commands can be typed as they are."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalmode.artifact.repository import check_name
from evalmode.certification.design.steps import quote_path
from evalmode.certification.metrics import CrossValidated, wilson_interval
from training.datasets import Dataset, ReadOptions, Split
from training.recipe import Recipe
from training.report.advice import Evidence, list_advice
from training.report.commands import list_commands
from training.report.findings import Findings, Shift, find_confusions, predict
from training.report.learning import explain_loss
from training.review import DoubtfulLabel, Review
from training.run import Run
from training.run_config import RunConfig

LABELS = ("apple", "pear", "plum")
PLAIN_RECIPE = Recipe()
PLAIN: dict[str, Any] = {"cross_entropy": 0.5, "loss": 0.7}


def draw(count: int, paths: tuple[Path, ...] = ()) -> Split:
    return Split(np.zeros((count, 8, 8, 3), np.uint8), np.arange(count) % 3, paths)


def judge(matrix: list[list[int]], shifts: tuple[float, ...] = (0.9, 0.9)) -> Findings:
    """Findings about test images with a confusion matrix."""
    counts = np.array(matrix)
    right, total = int(counts.trace()), int(counts.sum())
    return Findings(
        predictions=predict(draw(3), torch.eye(3)),
        accuracy=right / total,
        interval=wilson_interval(right, total),
        matrix=counts,
        confusions=find_confusions(counts, LABELS, 3),
        classes=[],
        reliability=None,  # type: ignore[arg-type]  # no advice depends on it
        uncalibrated=None,
        shifts=[Shift(pixels, accuracy, 1.0) for pixels, accuracy in enumerate(shifts)],
    )


GOOD = [[400, 0, 0], [0, 400, 0], [0, 0, 400]]


def gather(test: Findings, review: Review | None = None, recipe: Recipe = PLAIN_RECIPE, **training: Any) -> Evidence:
    """Evidence of a run that asks for nothing, but for what is given."""
    dataset = Dataset("fruit", LABELS, draw(300), draw(60), draw(int(test.matrix.sum())))
    facts: dict[str, Any] = {"best": None, "epochs": [], "stages": [], "overfits": False}
    return Evidence(RunConfig.of(dataset, ReadOptions(), recipe), dataset, test, facts | training, review)


def advise(evidence: Evidence) -> str:
    return "\n".join(f"{one.finding} {one.action} #{one.section}" for one in list_advice(evidence))


def epoch(number: int, train: float, val: float) -> dict[str, Any]:
    return {"epoch": number, "train_accuracy": train, "val_accuracy": val, "seconds": 2.0, **PLAIN}


def test_a_run_without_a_finding_gets_no_advice() -> None:
    assert advise(gather(judge(GOOD))) == ""
    kept = epoch(7, 0.97, 0.99)
    assert advise(gather(judge(GOOD), best=kept, epochs=[kept])) == ""


def test_near_duplicates_are_serious_and_come_first() -> None:
    review = Review(None, (DoubtfulLabel("train", 0, 1, 0.1, 0.9),), (), 3)
    first, second = list_advice(gather(judge(GOOD), review))
    assert first.finding == "3 pairs of nearly equal images in different splits: the accuracy is too high."
    assert (first.is_serious, first.section) == (True, "duplicates")
    assert second.finding == "1 label to check."
    assert (second.is_serious, second.section) == (False, "labels")


def test_few_test_images_are_counted_and_the_cross_validated_accuracy_is_named() -> None:
    few = judge([[7, 1, 0], [0, 7, 1], [1, 0, 7]])
    assert "24 test images leave the accuracy between 69.0% and 95.7%. About 170 test images" in advise(gather(few))
    assert "trust" not in advise(gather(few))
    review = Review(CrossValidated(0.8333, (0.7, 0.9), 240, 5), (), (), 0)
    assert "trust the cross-validated accuracy, 83.3%" in advise(gather(few, review))
    # That many images leave the promised interval.
    low, high = wilson_interval(round(170 * few.accuracy), 170)
    assert (high - low) / 2 == pytest.approx(0.05, abs=0.007)


@pytest.mark.parametrize(
    ("recipe", "stages", "wanted"),
    [
        (Recipe(), [], "with --mirror, if a mirrored image has the same label or --shift 1."),
        (Recipe(mirror=True, shift=2), [], "More images help most. #learning"),
        (Recipe(fine_tune=5), ["features"], "with --fine-tune 2."),
        (Recipe(fine_tune=1), ["features"], "with --fine-tune none."),
    ],
)
def test_overfitting_names_only_options_that_change_the_recipe(recipe: Recipe, stages: list[str], wanted: str) -> None:
    best = epoch(5, 0.99, 0.8)
    text = advise(gather(judge(GOOD), None, recipe, best=best, epochs=[best], stages=stages, overfits=True))
    assert text.startswith("The network overfits: 99.0% in training, 80.0% in validation.")
    assert wanted in text


def test_more_epochs_are_advised_only_if_the_last_one_was_best_and_training_images_are_left_to_learn() -> None:
    best = epoch(10, 0.9, 0.92)
    assert "Train again with --epochs 20. #learning" in advise(gather(judge(GOOD), best=best, epochs=[best]))
    learned = epoch(10, 0.99, 0.92)
    assert advise(gather(judge(GOOD), best=learned, epochs=[learned])) == ""
    planned = gather(judge(GOOD), best=best, epochs=[best])
    planned = replace(planned, config=replace(planned.config, minutes=1.5))
    assert "Train again with --epochs 20 --minutes 3." in advise(planned)


def test_fine_tuning_that_was_not_kept_is_named_with_its_time() -> None:
    epochs = [epoch(1, 0.9, 0.7), epoch(2, 0.9, 0.7)]
    text = advise(gather(judge(GOOD), None, Recipe(fine_tune=5), epochs=epochs, stages=["features"]))
    assert "--fine-tune none gives the same network 4 s faster" in text


def test_the_weakest_label_is_named_with_the_label_that_is_predicted_instead() -> None:
    weak = judge([[400, 0, 0], [10, 250, 140], [0, 0, 400]])
    text = advise(gather(weak))
    assert "250 of 400 images of pear are classified correctly; most of the others become plum." in text
    assert "pear has 100 training images. Collect more of it and of these. #classes" in text
    train = Split(np.zeros((300, 8, 8, 3), np.uint8), np.repeat([0, 1, 2], [200, 50, 50]))
    rare = gather(weak)
    rare = replace(rare, dataset=replace(rare.dataset, train=train))
    assert "Collect more of it, or train again with --balance." in advise(rare)
    balanced = replace(rare, config=replace(rare.config, recipe=Recipe(balance=True)))
    assert "--balance" not in advise(balanced)


@pytest.mark.parametrize("matrix", [[[400, 0, 0], [0, 18, 2], [0, 0, 400]], [[360, 40, 0], [0, 355, 45], [0, 40, 360]]])
def test_a_label_with_few_mistakes_or_one_that_may_be_weak_by_chance_is_not_named(matrix: list[list[int]]) -> None:
    assert "pear" not in advise(gather(judge(matrix)))


def test_shifts_are_advised_if_the_smallest_one_costs_accuracy_and_training_had_none() -> None:
    fragile = judge(GOOD, shifts=(0.97, 0.77))
    assert "A shift by 1 pixel lowers the accuracy from 97.0% to 77.0%." in advise(gather(fragile))
    assert advise(gather(fragile, None, Recipe(shift=1))) == ""
    assert advise(gather(fragile, stages=["features"])) == ""  # pretrained networks are trained on crops


class TestCommands:
    def list(self, folder: Path, data: str, paths: tuple[Path, ...] = ()) -> list[str]:
        test = draw(3, paths)
        dataset = Dataset(data, LABELS, draw(3), draw(3), test)
        run = Run.create(folder, replace(RunConfig.of(dataset, ReadOptions(), Recipe()), data=data))
        wrong_first = predict(test, torch.roll(torch.eye(3), 1, 0) + torch.diag(torch.tensor([0.0, 0.0, 9.0])))
        return [one.command for one in list_commands(run, dataset, wrong_first)]

    def test_name_the_run_the_model_and_a_test_image_that_is_right(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        paths = tuple(tmp_path / f"my photos/{name}.jpg" for name in "abc")
        assert self.list(tmp_path / "my run", str(tmp_path / "my photos"), paths) == [
            "evalmode export 'my run' --repository models --name my-photos",
            "evalmode check models/my-photos/1/model.onnx",
            "evalmode predict 'my photos/c.jpg' --file models/my-photos/1/model.onnx",
            "evalmode serve --repository models",
            "evalmode predict 'my photos/c.jpg'",
        ]

    @pytest.mark.parametrize("data", ["/", "...", "日本語", "a b.tar.gz", "-x", "x" * 200, "$(rm -r x);'"])
    def test_name_the_model_as_a_repository_allows_whatever_the_data_are_called(
        self, data: str, tmp_path: Path
    ) -> None:
        export = shlex.split(self.list(tmp_path / "run", data)[0])
        assert len(export) == 7
        check_name(export[-1])

    def test_data_without_files_have_a_placeholder(self, tmp_path: Path) -> None:
        assert self.list(tmp_path / "run", "digits")[-1] == "evalmode predict IMAGE.png"

    def test_a_path_is_no_option(self) -> None:
        assert quote_path(Path("-run")) == "./-run"


class TestLossNote:
    def test_names_everything_that_makes_training_harder(self) -> None:
        note = explain_loss(Recipe(dropout=0.5, mirror=True, label_smoothing=0.1), [PLAIN])
        assert note == (
            "The training loss can be above the validation loss, because it is measured while the weights still "
            "change, with dropout and on augmented images. It is drawn without label smoothing of 0.1, which only "
            "training uses."
        )

    def test_names_nothing_that_the_recipe_does_not_have(self) -> None:
        note = explain_loss(Recipe(dropout=0.0), [PLAIN])
        assert note.endswith("because it is measured while the weights still change.")

    def test_says_that_an_older_run_includes_label_smoothing(self) -> None:
        note = explain_loss(Recipe(dropout=0.0, label_smoothing=0.2, balance=True), [{"loss": 1.0}])
        assert note.endswith("includes label smoothing of 0.2 and label weights, which the validation loss does not.")
