"""The report of a pretrained network: stages, where it looked, doubtful data."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evalmode.certification.metrics import CrossValidated, wilson_interval
from training.datasets import Dataset, ReadOptions, Split
from training.networks import PretrainedNetwork, scale_pixels
from training.recipe import Recipe
from training.report.activation import compare_labels, compute_activation_maps, overlay_map
from training.report.charts import COLOURS
from training.report.findings import LARGE_SHIFTS, examine
from training.report.page import write_report
from training.report.pictures import embed_photo, place_image
from training.review import DoubtfulLabel, NearDuplicate, Review
from training.run import BEST, INITIAL, Run
from training.run_config import RunConfig
from training.run_metrics import Result
from training.statistics import list_norms

from .test_report import Page

SIDE = 160
STAGES: list[dict[str, Any]] = [
    {"stage": "features", "seconds": 20.0, "text": "6 of each image", "val_accuracy": None},
    {"stage": "head", "seconds": 2.5, "text": "penalty 0.1", "val_accuracy": 0.75},
]
REVIEW = Review(
    CrossValidated(0.75, wilson_interval(27, 36), 36, 5),
    (DoubtfulLabel("train", 3, 1, 0.01, 0.97), DoubtfulLabel("val", 2, 0, 0.05, 0.9)),
    (NearDuplicate("train", 4, "test", 5, 0.987),),
    7,
)


def build() -> PretrainedNetwork:
    """A network with two stages; its batch norms have statistics and weights other than 0 and 1."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=16), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
    ]
    network = PretrainedNetwork(
        nn.Identity(), stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6, 3, dropout=0.5
    )
    for norm in list_norms(network).values():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def photos() -> Dataset:
    rng = np.random.default_rng(0)

    def draw(name: str) -> Split:
        paths = tuple(Path(f"photos/{name}/{row}.jpg") for row in range(12))
        return Split(rng.integers(0, 256, (12, SIDE, SIDE, 3), np.uint8), np.arange(12) % 3, paths)

    return Dataset("photos", ("apple", "pear", "<plum>"), draw("train"), draw("val"), draw("test"))


def write(folder: Path, dataset: Dataset, rows: list[dict[str, Any]], review: Review | None) -> Page:
    recipe = Recipe(network="efficientnet-lite0", epochs=2)
    run, network = Run.create(folder / "run", RunConfig.of(dataset, ReadOptions(), recipe)), build()
    run.save_weights(network, INITIAL)
    run.save_weights(network, BEST)
    for row in rows:
        run.metrics.append(row)
    if review:
        review.save(run.folder)
    path = write_report(run, network, dataset)
    assert path.stat().st_size < 1_000_000
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def page(photos: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Page:
    result = Result(0, 0.75, [], 1 / 3, STAGES)
    return write(tmp_path_factory.mktemp("pretrained"), photos, [asdict(result)], REVIEW)


class TestPage:
    def test_shows_the_stages_in_place_of_epochs(self, page: Page) -> None:
        assert re.search(r"features ?6 of each image ?20.0 ?\S head", page.words("stages"))
        assert re.search(r"head ?penalty 0.1 ?2.5 75.0% \(46.8% to 91.1%\)", page.words("stages"))
        assert "svg" not in page.tags["learning"]
        assert "22.5 s in 2 stages" in page.words("")

    def test_shows_cross_validated_accuracy_beside_that_of_the_test_images(self, page: Page) -> None:
        assert page.texts["cross-validated"] == "75.00%"
        assert "95% confidence interval: 58.9% to 86.2%; 5 folds of all 36 images" in page.words("")

    def test_shows_where_it_looked_in_mistakes_and_in_an_image_of_each_label(self, page: Page) -> None:
        mistakes = page.tags["mistakes"].count("img")
        assert 0 < mistakes < 12
        assert page.tags["looked"].count("img") == 3 * min(mistakes, 8) + 2 * 3

    def test_lists_doubtful_labels_with_pictures_and_files(self, page: Page) -> None:
        assert page.tags["labels"].count("img") == 2
        words = page.words("labels")
        assert "apple 1.0% predicted pear 97.0% training: train/3.jpg" in words
        assert "<plum> 5.0% predicted apple 90.0% validation: val/2.jpg" in words

    def test_lists_near_duplicates_side_by_side(self, page: Page) -> None:
        assert page.tags["duplicates"].count("img") == 2
        words = page.words("duplicates")
        assert "1 of 7 pairs are shown" in words
        assert re.search(r"pear ?training: train/4.jpg <plum> ?test: test/5.jpg", words)
        assert "similarity 0.987; the labels differ" in words

    def test_says_that_training_changed_no_batch_norm(self, page: Page) -> None:
        assert "Training changed no moving average" in page.words("moving")
        assert not {"svg", "img"} & set(page.tags["moving"])

    def test_has_a_link_for_every_section(self, page: Page) -> None:
        for section in ("looked", "labels", "duplicates"):
            assert f"#{section}" in page.addresses


def test_a_run_without_a_review_has_no_sections_about_it(photos: Dataset, tmp_path: Path) -> None:
    figures = {"loss": 1.0, "train_accuracy": 0.5, "val_accuracy": 0.5, "val_loss": 1.0, "seconds": 1.0}
    layer = {"layer": "stages.0.1", "batch_std": 1.0, "moving_std": 1.0, "median": 0.0, "low": -1.0, "high": 1.0}
    epoch = {"epoch": 1, "learning_rate": 0.1, "layers": [layer], **figures}
    tuned = {"stage": "fine-tuning", "seconds": 9.0, "text": "not kept", "val_accuracy": 0.5}
    page = write(tmp_path, photos, [epoch, asdict(Result(0, 0.75, [], 0.5, [*STAGES, tuned]))], None)
    assert not {"labels", "duplicates", "cross-validated"} & set(page.ids)
    assert "Validation accuracy75.0%" in page.words("")  # that of the head
    assert page.tags["learning"].count("svg") == 2
    assert "gap" not in page.ids  # no epoch was kept
    assert page.words("not-kept").startswith(
        "The curves are those of the fine-tuning, which was not kept: no epoch was"
    )
    assert page.words("val-doubt").startswith(
        "These weights were chosen by these 12 validation images, so their accuracy"
    )
    assert not {"svg", "img"} & set(page.tags["moving"])  # no statistic of the layer has changed


def test_the_logits_of_the_run_are_used(photos: Dataset) -> None:
    network = build()
    found = examine(network, photos.test, photos.labels, 9 * torch.eye(3)[torch.from_numpy(photos.test.targets)])
    assert found.accuracy == 1.0
    assert [shift.pixels for shift in found.shifts] == [0, *LARGE_SHIFTS]
    assert examine(network, photos.test, photos.labels).accuracy < 1.0


class TestActivationMaps:
    @torch.no_grad()
    def test_have_the_logits_as_their_means_but_for_a_constant_of_each_label(self, photos: Dataset) -> None:
        network = build()
        images = photos.test.images[:5]
        maps = compute_activation_maps(network, images)
        assert maps is not None
        assert maps.shape == (5, 3, 8, 8)
        constants = network(scale_pixels(torch.from_numpy(images))) - maps.mean((2, 3))
        assert constants.std() > 0.01
        torch.testing.assert_close(constants, constants[:1].expand(5, -1))
        features = network.run_stages(scale_pixels(torch.from_numpy(images)), 0, 2)
        features[:, :, 1:] = 0  # only the first row contributes
        kept = network.head(features.mean((2, 3))) - constants
        torch.testing.assert_close(kept, maps[:, :, :1].sum((2, 3)) / 64)

    def test_exist_only_where_features_are_means(self, photos: Dataset) -> None:
        network = build()
        network.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        assert compute_activation_maps(network, photos.test.images[:2]) is None
        network.stages.append(network.pool)
        network.pool = nn.Identity()  # the backbone pools by itself
        assert compute_activation_maps(network, photos.test.images[:2]) is None
        assert compute_activation_maps(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), photos.test.images) is None

    def test_are_compared_with_the_mean_of_all_labels(self) -> None:
        maps = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]], [[2.0, -4.0]]])
        assert compare_labels(maps).tolist() == [[[1.0, 1.0]], [[-1.0, 2.0]], [[0.0, -3.0]]]

    def test_colour_a_grey_image(self) -> None:
        image = np.full((1, 30, 3), (30, 60, 90), np.uint8)
        picture = overlay_map(image, np.array([[1.0, 0.0, -1.0]], np.float32), 0.5)
        orange, blue = (np.array(list(bytes.fromhex(COLOURS[name][1:]))) for name in ("orange", "blue"))
        assert picture[0, 2] == pytest.approx(0.75 * orange + 0.25 * 60, abs=1)
        assert picture[0, 27] == pytest.approx(0.75 * blue + 0.25 * 60, abs=1)
        assert np.ptp(picture[0, 14].astype(int)) < 60


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("data/photos/cat/1.jpg", "cat/1.jpg"),
        ("data/photos/train/cat/old/1.jpg", "train/cat/old/1.jpg"),
        ("elsewhere/cat/1.jpg", "cat/1.jpg"),
        ("val image 3", "val image 3"),
    ],
)
def test_an_image_is_named_by_its_place_in_the_data(path: str, wanted: str) -> None:
    assert place_image(Path(path), "data/photos") == wanted


@pytest.mark.parametrize(
    ("shape", "kind", "size"), [((300, 150, 3), "JPEG", (80, 160)), ((96, 64, 1), "PNG", (64, 96))]
)
def test_photos_are_small_jpegs_and_thumbnails_keep_every_pixel(
    shape: tuple[int, int, int], kind: str, size: tuple[int, int]
) -> None:
    address = embed_photo(np.zeros(shape, np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert (image.format, image.size) == (kind, size)
    assert address.startswith(f"data:image/{kind.lower()};base64,")
