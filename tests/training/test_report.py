"""The report has every section and correct numbers, and is self-contained with any names in the data."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from evalmode.certification.design.rendering import STYLE
from evalmode.certification.metrics import measure_reliability, wilson_interval
from training.datasets import Dataset, ReadOptions, Split
from training.export import export_run
from training.loop import train
from training.networks import build_network, scale_pixels
from training.recipe import Recipe
from training.report.charts import COLOURS, Axes, Line, draw_lines
from training.report.findings import Predictions, find_confusions, score_classes, try_shifts
from training.report.learning import doubt_validation
from training.report.page import write_report
from training.report.pictures import embed_filters, embed_image, embed_maps, watch_convolutions
from training.run import EXACT, Run
from training.run_config import RunConfig
from training.statistics import recompute_statistics
from training.temperature import choose_temperature

SECTIONS = {
    "learning": "Learning curves",
    "confusion": "Confusion matrix",
    "classes": "Precision and recall",
    "calibration": "Calibration",
    "mistakes": "Worst mistakes",
    "shifts": "Shifts",
    "filters": "First filters",
    "maps": "Feature maps",
    "moving": "Batch statistics and moving statistics",
    "drift": "Activation drift",
}
VOID = {"meta", "link", "img", "br", "wbr"}
HOSTILE = ("<script>alert(1)</script>", "long " * 60, '$x^2_$ & "co"', "日本語")


class Page(HTMLParser):
    """A parsed page; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []  # tag and id
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: dict[str, list[str]] = {}  # tags by the section they are in
        self.texts: dict[str, str] = {}  # text by the ids it is in
        self.alts: list[str | None] = []
        self.html = html
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"] or "")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.addresses += re.findall(r"url\((.*?)\)", " ".join(value or "" for value in found.values()))
        if tag == "img":
            self.alts.append(found.get("alt"))
        for one in {one for _, one in self.open}:
            self.tags.setdefault(one, []).append(tag)
        if tag not in VOID:
            self.open.append((tag, found.get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for one in {one for _, one in self.open}:
            self.texts[one] = self.texts.get(one, "") + data

    def words(self, where: str) -> str:
        return " ".join(self.texts[where].split())


@pytest.fixture(scope="module")
def trained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, nn.Module, Path]:
    """Two epochs on the digits and their report."""
    folder = tmp_path_factory.mktemp("report") / "digits & <co>"
    run = Run.create(folder, RunConfig.of(digits, ReadOptions(), Recipe(network="reference", epochs=2)))
    torch.manual_seed(0)
    network = run.config.build_network()
    best = train(run, network, digits.train, digits.val)
    run.metrics.append({"best_epoch": best.epoch, "test_accuracy": 0.0, "finished": "2026-03-05T14:07:59+00:00"})
    run.load_weights(network)
    recompute_statistics(network, digits.train)
    run.save_weights(network, EXACT)
    return run, network, write_report(run, network, digits)


@pytest.fixture(scope="module")
def page(trained: tuple[Run, nn.Module, Path]) -> Page:
    return Page(trained[2].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers(trained: tuple[Run, nn.Module, Path], digits: Dataset) -> Predictions:
    """The predictions of the exported network, computed without the report's code."""
    with torch.no_grad():
        val, test = (trained[1].eval()(scale_pixels(torch.from_numpy(one.images))) for one in (digits.val, digits.test))
    logits = test.double().numpy() / choose_temperature(val, digits.val.targets)[0]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    return Predictions(predicted, probabilities.max(1), predicted == digits.test.targets)


WriteUntrained = Callable[..., Page]


@pytest.fixture
def write_untrained(tmp_path: Path) -> WriteUntrained:
    """Write the report of a user's network that learned nothing in one epoch, with any figures."""

    def write(network: nn.Module, dataset: Dataset, **changed: float) -> Page:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = Run.create(tmp_path / "run", RunConfig.of(dataset, ReadOptions(), Recipe(network="mine:build", epochs=1)))
        run.save_weights(network, "initial")
        figures = {"loss": 1.0, "train_accuracy": 0.5, "val_accuracy": 0.5, "val_loss": 1.0} | changed
        run.metrics.append({"epoch": 1, "learning_rate": 0.1, "seconds": 100.0, "layers": [], **figures})
        run.metrics.append({"best_epoch": 1, "test_accuracy": 0.5})
        path = write_report(run, network, dataset)
        assert path.stat().st_size < 5_000_000
        assert [one.name for one in path.parent.glob("report*")] == ["report.html"]
        return Page(path.read_text(encoding="utf-8"))

    return write


def make_dataset(labels: tuple[str, ...], side: int, channels: int) -> Dataset:
    rng = np.random.default_rng(0)
    targets = np.arange(len(labels))
    split = Split(rng.integers(0, 256, (len(labels), side, side, channels), np.uint8), targets)
    return Dataset("https://example.org/a?<b>", labels, split, split, split)


class TestPage:
    @pytest.mark.parametrize("section", SECTIONS)
    def test_has_every_section_with_a_figure(self, page: Page, section: str) -> None:
        assert page.words(section).startswith(SECTIONS[section])
        assert {"svg", "img", "table"} & set(page.tags[section])
        assert len(page.words(section)) > 100

    def test_draws_every_layer(self, page: Page) -> None:
        assert page.tags["moving"].count("svg") == 2 + 5
        assert page.tags["drift"].count("svg") == 5
        assert page.tags["filters"].count("img") == 2 * 32
        assert page.tags["maps"].count("img") == 1 + 4 * 8

    def test_is_self_contained(self, page: Page, trained: tuple[Run, nn.Module, Path]) -> None:
        assert "://" not in trained[2].read_text(encoding="utf-8")
        assert "script" not in {tag for tags in page.tags.values() for tag in tags}
        for address in page.addresses:
            assert address.startswith("data:") or address.removeprefix("#") in page.ids, address

    def test_has_unique_ids_and_a_text_for_every_picture(self, page: Page) -> None:
        assert len(page.ids) == len(set(page.ids))
        assert None not in page.alts

    def test_has_the_correct_numbers(
        self, page: Page, trained: tuple[Run, nn.Module, Path], answers: Predictions, digits: Dataset
    ) -> None:
        assert page.texts["accuracy"] == f"{100 * answers.correct.mean():.2f}%"
        low, high = wilson_interval(int(answers.correct.sum()), len(answers.correct))
        assert f"{100 * low:.1f}% to {100 * high:.1f}%" in page.words("")
        assert "Training images1,295 143 validation and 359 test images; 8\N{MULTIPLICATION SIGN}8 grey" in page.words(
            ""
        )
        assert "99,818 weights, 10 labels" in page.words("")
        for target, label in enumerate(digits.labels):
            right = answers.correct[digits.test.targets == target]
            assert re.search(rf" {label}{len(right)} \S+ {100 * right.mean():.1f}% ", page.words("classes"))

    def test_shows_the_most_confident_mistakes_first(self, page: Page, answers: Predictions, digits: Dataset) -> None:
        wrong = np.flatnonzero(~answers.correct)
        worst = wrong[answers.confidence[wrong].argmax()]
        true, predicted = digits.labels[digits.test.targets[worst]], digits.labels[answers.predicted[worst]]
        shown = page.words("mistakes").split("in common. ")[1]
        assert shown.startswith(f"{true} predicted {predicted} {100 * answers.confidence[worst]:.1f}%")
        assert page.tags["mistakes"].count("img") == min(12, len(wrong))

    def test_is_written_with_the_same_bytes_again(self, trained: tuple[Run, nn.Module, Path], digits: Dataset) -> None:
        run, network, path = trained
        before = path.read_bytes()
        network.train()
        assert write_report(run, network, digits).read_bytes() == before
        assert not network.training
        assert not any(module._forward_hooks for module in network.modules())

    def test_is_named_by_data_network_date_and_digest(self, page: Page, trained: tuple[Run, nn.Module, Path]) -> None:
        digest = trained[0].config.data_digest
        assert page.words("title") == "digits"
        facts = page.words("facts")
        assert "network reference" in facts
        assert "trained on 5 March 2026, 14:07 UTC" in facts
        assert "run digits & <co>" in facts
        assert f"data {digest[:19]}" in facts
        html = trained[2].read_text("utf-8")
        title = f"<title>digits · reference · 5 March 2026 · {digest[:19]} · evalmode training report</title>"
        assert title in html
        assert digest in page.words("")  # the whole of it, too

    def test_says_what_to_do_next_with_the_path_of_the_run(
        self, page: Page, trained: tuple[Run, nn.Module, Path]
    ) -> None:
        run = shlex.quote(str(trained[0].folder))
        assert f"evalmode export {run} --repository models --name digits" in page.words("next")
        links = [address for address in page.addresses if address.startswith("#") and address[1:] in SECTIONS]
        assert len(links) > len(SECTIONS)  # findings link to sections, in addition to the menu

    def test_shows_calibration_as_the_export_does(
        self, page: Page, trained: tuple[Run, nn.Module, Path], digits: Dataset
    ) -> None:
        quality = export_run(trained[0], digits).quality
        assert quality.temperature != 1
        assert page.texts["ece-before"] == f"{100 * quality.calibration_error[0]:.1f}%"
        assert page.texts["ece"] == f"{100 * quality.calibration_error[1]:.1f}%"
        assert f"temperature of {quality.temperature:.3f}" in page.words("calibration")

    def test_numbers_every_cell_of_the_confusion_matrix(
        self, page: Page, answers: Predictions, digits: Dataset
    ) -> None:
        matrix = confusion_matrix(digits.test.targets, answers.predicted)
        assert page.tags["matrix"].count("td") == 100
        cells = re.findall(r'<td class="(right|wrong)( filled)?" style="--share: ([\d.]+)">(\d*)</td>', page.html)
        assert [int(count or 0) for *_, count in cells] == matrix.ravel().tolist()
        assert [kind == "right" for kind, *_ in cells] == np.eye(10, dtype=bool).ravel().tolist()

    def test_a_bar_has_a_line_of_its_own_below_its_number(self, page: Page) -> None:
        """A block in a grid of one column cannot lie on the number above it."""
        meters = re.findall(r'<span class="meter">[\d.]+%<span class="track"><span style="width: ', page.html)
        assert len(meters) == 3 * 10
        style = STYLE.read_text("utf-8")
        assert re.search(r"\.meter \{ display: grid; gap: 0\.\d+rem;", style)
        assert re.search(r"\.track \{ display: block; height: \dpx;", style)

    def test_has_the_style_of_all_pages_and_no_other(self, page: Page) -> None:
        assert re.findall(r"<style>(.*?)</style>", page.html, re.DOTALL) == [f"\n{STYLE.read_text('utf-8')}"]


class TestGap:
    @pytest.mark.parametrize(
        ("train", "val", "wanted"),
        [
            (0.5, 0.6, "10.0 percentage points above the training accuracy. That does not exclude overfitting"),
            (0.5, 0.5, "training and validation accuracy are equal. That does not exclude overfitting"),
            (0.9, 0.8, "10.0 percentage points above the validation accuracy. That is within the uncertainty of 9"),
            (1.0, 0.2, "80.0 percentage points above the validation accuracy. The network overfits"),
        ],
    )
    def test_is_judged_by_its_sign_and_its_uncertainty(
        self, write_untrained: WriteUntrained, train: float, val: float, wanted: str
    ) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 9))
        page = write_untrained(network, make_dataset(tuple("abcdefghi"), 4, 1), train_accuracy=train, val_accuracy=val)
        assert wanted in page.words("gap")
        assert page.words("gap").count("overfit") == 1
        assert ("The network overfits" in page.words("next")) == ("The network overfits" in wanted)

    def test_few_validation_images_are_said_to_have_chosen_the_epoch(self, write_untrained: WriteUntrained) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 9))
        page = write_untrained(network, make_dataset(tuple("abcdefghi"), 4, 1), train_accuracy=1.0, val_accuracy=1.0)
        chosen = "The epoch was chosen by these 9 validation images, so their accuracy tends to be too high."
        assert page.words("val-doubt").startswith(f"{chosen} Trust the test accuracy, {page.texts['accuracy'][:-2]}")

    def test_no_overfitting_is_visible_if_many_images_agree(self, write_untrained: WriteUntrained) -> None:
        network = nn.Sequential(nn.Flatten(), last := nn.Linear(16, 2))
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([5.0, 0.0])  # everything is predicted as the first label
        split = Split(np.zeros((400, 4, 4, 1), np.uint8), np.arange(400) // 380)
        page = write_untrained(
            network, Dataset("mine", ("a", "b"), split, split, split), train_accuracy=0.9, val_accuracy=0.95
        )
        assert "above the training accuracy: no overfitting is visible." in page.words("gap")
        assert "val-doubt" not in page.ids

    @pytest.mark.parametrize(
        ("val", "images", "test", "wanted"),
        [
            (0.95, 1000, (0.93, 0.96), ""),
            (
                0.97,
                1000,
                (0.93, 0.96),
                "The epoch was chosen by these 1,000 validation images, so their accuracy tends to be",
            ),
            (
                0.95,
                60,
                (0.90, 0.99),
                "The epoch was chosen by these 60 validation images, so their accuracy tends to be",
            ),
        ],
    )
    def test_the_validation_accuracy_is_doubted_if_it_is_uncertain_or_above_the_test_interval(
        self, val: float, images: int, test: tuple[float, float], wanted: str
    ) -> None:
        interval = wilson_interval(round(val * images), images)
        said = doubt_validation({"val_accuracy": val, "val_interval": interval, "best": {"epoch": 3}}, images, test)
        assert said.partition(" too high")[0] == wanted

    def test_the_training_loss_is_drawn_without_label_smoothing(self, write_untrained: WriteUntrained) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        page = write_untrained(network, make_dataset(("a", "b"), 4, 1), loss=1.5, cross_entropy=0.75)
        assert "Loss (cross-entropy) by epoch; last values: training 0.75, validation 1" in page.html
        page = write_untrained(network, make_dataset(("a", "b"), 4, 1), loss=1.5)  # of a run before it was recorded
        assert "Loss (cross-entropy) by epoch; last values: training 1.5, validation 1" in page.html


class TestOtherNetworksAndData:
    def test_a_hundred_labels_of_any_name_are_shown(self, write_untrained: WriteUntrained) -> None:
        labels = (*HOSTILE, *(f"species {index}" for index in range(96)))
        network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        network.append(nn.Linear(8, 100))
        page = write_untrained(network, make_dataset(labels, 128, 3))
        assert "script" not in page.tags[""]
        assert "With 100 labels" in page.words("confusion")
        assert "1 min 40 s" in page.words("")
        assert page.tags["classes"].count("tr") <= 1 + 25

    @pytest.mark.parametrize("label", HOSTILE)
    def test_any_label_is_escaped(self, write_untrained: WriteUntrained, label: str) -> None:
        network = nn.Sequential(nn.Flatten(), last := nn.Linear(16, 2))
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([5.0, 0.0])  # everything is predicted as this label
        page = write_untrained(network, make_dataset((label, "b"), 4, 1))
        assert "script" not in page.tags[""]
        for section in ("confusion", "classes", "mistakes"):
            assert " ".join(label.split()) in page.words(section)

    def test_sections_without_convolution_or_batch_norm_say_so(self, write_untrained: WriteUntrained) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 2))
        page = write_untrained(network, make_dataset(("a", "b"), 4, 3))
        for section in ("filters", "maps", "moving", "drift"):
            assert not {"svg", "img"} & set(page.tags[section])
            assert "no" in page.words(section)

    def test_a_frozen_convolution_is_shown_once(self, write_untrained: WriteUntrained) -> None:
        network = nn.Sequential(nn.Conv2d(1, 5, 2), nn.Flatten(), nn.Linear(45, 2))
        page = write_untrained(network, make_dataset(("a", "b"), 4, 1))
        assert "frozen" in page.words("filters")
        assert page.tags["filters"].count("img") == 5

    def test_the_first_learned_filters_of_compact_are_shown_through_its_whitening(
        self, write_untrained: WriteUntrained
    ) -> None:
        page = write_untrained(build_network("compact", (8, 8, 3), 2, 1.0, 0.0), make_dataset(("a", "b"), 8, 3))
        assert "whitening, 16 filters, frozen" in page.words("filters")
        assert "blocks.0.conv1, seen through whitening" in page.words("filters")
        assert page.tags["filters"].count("img") == 16 + 16  # untrained: equal to the initial filters

    def test_warnings_of_the_data_are_shown(self, write_untrained: WriteUntrained) -> None:
        dataset = make_dataset(("a", "b"), 4, 1)
        object.__setattr__(dataset, "warnings", ("3 images lie in <both>",))
        page = write_untrained(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), dataset)
        assert "3 images lie in <both>" in page.words("")


class TestFindings:
    @pytest.mark.parametrize(
        ("right", "count", "expected"), [(8, 10, (0.4902, 0.9433)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))]
    )
    def test_wilson_interval_equals_that_of_r(self, right: int, count: int, expected: tuple[float, float]) -> None:
        assert wilson_interval(right, count) == pytest.approx(expected, abs=5e-5)  # the results of R's binom.confint

    def test_calibration_is_binned_by_confidence(self) -> None:
        confidence = np.array([0.95, 0.92, 0.91, 0.55, 0.52])
        right = np.array([True, True, False, True, False])
        reliability = measure_reliability(confidence, right)
        assert reliability.confidence.tolist() == pytest.approx([0.535, 0.9266667])
        assert reliability.accuracy.tolist() == pytest.approx([0.5, 2 / 3])
        assert reliability.images.tolist() == [2, 3]
        assert reliability.error == pytest.approx(0.4 * 0.035 + 0.6 * 0.26)

    def test_calibration_of_a_network_that_is_always_right(self) -> None:
        reliability = measure_reliability(np.full(4, 0.75), np.full(4, True))
        assert reliability.error == pytest.approx(0.25)

    def test_confusions_are_sorted_by_count(self) -> None:
        matrix = np.array([[5, 1, 0], [3, 5, 2], [0, 0, 9]])
        found = find_confusions(matrix, ("a", "b", "c"), 2)
        assert found == [("b", "a", 3, 0.3), ("b", "c", 2, 0.2)]
        assert len(find_confusions(matrix, ("a", "b", "c"), 9)) == 3

    def test_precision_recall_and_f1_are_those_of_each_class(self) -> None:
        rows = score_classes(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ("a", "b", "absent"))
        assert rows == [("a", 2, 1.0, 0.5, pytest.approx(2 / 3)), ("b", 2, pytest.approx(2 / 3), 1.0, 0.8)]
        (row,) = (one for one in score_classes(np.array([0, 1]), np.array([0, 0]), ("a", "b")) if one[0] == "b")
        assert math.isnan(row[2])
        assert row[3] == 0

    def test_shifts_repeat_the_edge(self, trained: tuple[Run, nn.Module, Path], digits: Dataset) -> None:
        network, split = trained[1], digits.test
        rows = np.arange(8)
        with torch.no_grad():
            for pixels, accuracy, unchanged in try_shifts(network, split):
                right, same = [], []
                still = network.eval()(scale_pixels(torch.from_numpy(split.images))).argmax(1).numpy()
                for down, aside in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)):
                    moved = split.images[:, np.clip(rows - down, 0, 7)][:, :, np.clip(rows - aside, 0, 7)]
                    predicted = network(scale_pixels(torch.from_numpy(moved))).argmax(1).numpy()
                    right.append(predicted == split.targets)
                    same.append(predicted == still)
                assert (accuracy, unchanged) == pytest.approx((np.mean(right), np.mean(same)))
        assert pixels == 4


class TestPictures:
    def test_feature_maps_are_the_convolutions(self, trained: tuple[Run, nn.Module, Path], digits: Dataset) -> None:
        network: Any = trained[1]
        pixels = digits.test.images[0]
        maps = watch_convolutions(network, pixels)
        assert list(maps) == ["features.0", "features.3", "features.6", "features.9"]
        with torch.no_grad():
            wanted = network.features[:4].eval()(scale_pixels(torch.from_numpy(pixels[None])))[0]
        torch.testing.assert_close(maps["features.3"], wanted)

    def test_signs_are_colours_and_zero_is_transparent(self) -> None:
        picture = decode(embed_maps(torch.tensor([[[1.0, 0.0, -0.5]]]))[0])
        orange, blue = (tuple(bytes.fromhex(COLOURS[name][1:])) for name in ("orange", "blue"))
        assert picture[0, 0].tolist() == [*orange, 255]
        assert picture[0, 1, 3] == 0
        assert picture[0, 2].tolist() == [*blue, 128]

    def test_a_weight_of_zero_is_mid_grey(self) -> None:
        weight = torch.tensor([[[[0.5, 0.0, -0.25]]], [[[0.0, 0.0, 0.0]]]])
        assert decode(embed_filters(weight)[0]).ravel().tolist() == [255, 128, 64]
        assert decode(embed_filters(weight)[1]).ravel().tolist() == [128, 128, 128]

    def test_large_images_are_scaled_down(self) -> None:
        assert decode(embed_image(np.zeros((300, 150, 3), np.uint8))).shape == (96, 48, 3)


def decode(address: str) -> np.ndarray:
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))))


class TestCharts:
    def test_use_the_colour_variables_of_the_page(self) -> None:
        chart = draw_lines(
            "Gap", Axes(range(3)), [Line(name, name, [0, 1, 2]) for name in COLOURS], band=([0, 0, 0], [1, 1, 1])
        )
        assert not re.search(r": #", chart.svg)
        for name in COLOURS:
            assert f"var(--{name})" in chart.svg

    def test_colours_have_a_dark_version(self) -> None:
        _, _, dark = STYLE.read_text().partition("prefers-color-scheme: dark")
        for name, colour in COLOURS.items():
            assert re.search(rf"--{name}: #\w{{6}};", dark)
            assert f"--{name}: {colour}" not in dark

    def test_have_a_label_for_screen_readers(self) -> None:
        chart = draw_lines("A & <b>", Axes([1, 2]), [Line("train", "blue", [0.5, 0.25])])
        assert 'aria-label="A &amp; &lt;b&gt; by epoch; last values: train 0.25"' in chart.svg


def test_mistakes_have_the_names_of_their_files(
    trained: tuple[Run, nn.Module, Path], digits: Dataset, answers: Predictions, page: Page
) -> None:
    """Names may hold any bytes; images without files are numbered."""
    run, network, path = trained
    before = path.read_bytes()
    test = digits.test
    names = tuple(Path("images") / f"photo-{index}\udce9.png" for index in range(len(test)))
    write_report(run, network, replace(digits, test=Split(test.images, test.targets, names)))
    named = set(map(int, re.findall(r"photo-(\d+)", Page(path.read_text("utf-8")).words("mistakes"))))
    path.write_bytes(before)
    wrong = set(np.flatnonzero(~answers.correct).tolist())
    assert len(named) == min(12, len(wrong)) > 0
    assert named <= wrong
    assert set(map(int, re.findall(r"test image (\d+)", page.words("mistakes")))) == named


def test_a_network_whose_train_returns_nothing_is_pictured() -> None:
    class NoReturn(nn.Sequential):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    maps = watch_convolutions(NoReturn(nn.Conv2d(1, 2, 3)), np.zeros((8, 8, 1), np.uint8))
    assert [tuple(map_.shape) for map_ in maps.values()] == [(2, 6, 6)]
