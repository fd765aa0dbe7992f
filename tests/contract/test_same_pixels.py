"""Training and serving: the same pixels and the same answers, independent of the other images in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evalmode.artifact.publishing import publish
from evalmode.client import Client
from evalmode.images.headers import read_header
from evalmode.images.pixels import decode_image, scale_header
from evalmode.limits import Limits
from evalmode.runtime.loading import load_model
from tests.conftest import Server, serving
from training.datasets import Dataset, ReadOptions, Split, load_dataset
from training.evaluation import predict_logits
from training.export import export_run
from training.loop import train
from training.recipe import Recipe
from training.run import Run
from training.run_config import RunConfig
from training.statistics import recompute_statistics
from training.temperature import choose_temperature


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG and PNG files of several sizes and modes in three classes, with EXIF orientations, alpha and palettes.

    Every other JPEG is so large that it is decoded at a fraction of its size.
    """
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in range(3):
        (root / f"class{label}").mkdir()
        for index in range(20):
            height, width = rng.integers(16, 40, 2) * (4 if index % 4 == 1 else 1)
            noise = rng.integers(0, 256, (height, width, 3)) // 2 + np.eye(3, dtype=int)[label] * 120
            picture = Image.fromarray(noise.astype(np.uint8))
            exif = Image.Exif()
            exif[0x0112] = int(rng.integers(1, 9))
            if index % 2:
                picture.save(root / f"class{label}" / f"{index}.jpg", exif=exif)
            else:
                picture.convert("RGBA" if index % 4 else "P").save(root / f"class{label}" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def dataset(pictures: Path) -> Dataset:
    return load_dataset(str(pictures), ReadOptions((16, 16)))


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = RunConfig.of(dataset, ReadOptions((16, 16)), Recipe(epochs=2, batch_size=8))
    run = Run.create(tmp_path_factory.mktemp("run") / "run", config)
    torch.manual_seed(0)
    train(run, config.build_network(), dataset.train, dataset.val)
    return run


@pytest.fixture(scope="module")
def models(run: Run, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    publish(repository, "pictures", export_run(run, dataset).artifact)
    return repository


@pytest.fixture(scope="module")
def picture_server(models: Path) -> Iterator[Server]:
    with serving(models) as server:
        yield server


def test_the_server_answers_like_torch_on_the_pixels_of_training(
    run: Run, dataset: Dataset, pictures: Path, picture_server: Server
) -> None:
    network = run.config.build_network()
    run.load_weights(network)
    recompute_statistics(network, dataset.train)
    temperature, _ = choose_temperature(predict_logits(network, dataset.val), dataset.val.targets)
    paths = sorted(pictures.rglob("*.*g"))
    contract = dataset.contract
    pixels = np.stack([decode_image(path.read_bytes(), contract, Limits()) for path in paths])
    everything = np.concatenate([dataset.train.images, dataset.val.images, dataset.test.images])
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, everything))
    logits = predict_logits(network, Split(pixels, np.zeros(len(paths), np.int64)))
    expected = torch.softmax(logits / temperature, 1).numpy()
    with Client(picture_server.address) as client:
        for path, row in zip(paths, expected, strict=True):
            scores = sorted(client.predict(path).scores, key=lambda score: score.index)
            np.testing.assert_allclose([score.probability for score in scores], row, atol=1e-5)


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(dataset: Dataset, pictures: Path) -> None:
    headers = [read_header(path.read_bytes(), Limits()) for path in pictures.rglob("*.jpg")]
    scales = [scale_header(header, dataset.contract).scale for header in headers]
    assert sum(scale > 1 for scale in scales) == len(scales) // 2


def test_an_image_and_its_pixels_get_the_same_answer(dataset: Dataset, pictures: Path, picture_server: Server) -> None:
    path = pictures / "class1" / "3.jpg"
    pixels = decode_image(path.read_bytes(), dataset.contract, Limits())
    with Client(picture_server.address) as client:
        assert client.predict(path).scores == client.predict_pixels(pixels).scores


def test_answers_are_independent_of_the_other_images_in_a_batch(
    models: Path, dataset: Dataset, picture_server: Server
) -> None:
    """Many concurrent callers, so that requests are batched; each answer has the bits of a single run."""
    model = load_model(models / "pictures/1/model.onnx").as_classifier()
    images = dataset.train.images
    alone = [model.scores(model.classify(image[np.newaxis])[0][0], 3) for image in images]
    order = np.random.default_rng(0).integers(0, len(images), 600)
    with Client(picture_server.address) as client, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda index: client.predict_pixels(images[index]), order))
    assert [answer.scores for answer in answers] == [alone[index] for index in order]
    assert any(answer.wait_us > 0 for answer in answers)


def test_the_artifact_records_its_labels_and_its_data(models: Path, dataset: Dataset, run: Run) -> None:
    manifest = load_model(models / "pictures/1/model.onnx").as_classifier().manifest
    assert manifest.labels == ("class0", "class1", "class2")
    assert manifest.pixels == dataset.contract
    assert manifest.properties["training"]["data_digest"] == dataset.digest()
    assert manifest.properties["network"] == "reference"
    assert manifest.properties["agreement"]["images"] == len(dataset.test)


def test_a_data_set_with_permuted_labels_has_another_digest(dataset: Dataset) -> None:
    assert replace(dataset, labels=dataset.labels[::-1]).digest() != dataset.digest()
