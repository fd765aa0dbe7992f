"""Which network suits a data set, if the user did not choose."""

from __future__ import annotations

import pytest

from training.choice import choose_network
from training.datasets import Survey
from training.errors import NetworkError
from training.options import TrainOptions

PHOTOS = Survey(200, None, 320, are_files=True)
THUMBNAILS = Survey(200, (95, 120), 95, are_files=True)
LARGE_ARRAYS = Survey(200, (224, 224), 224, are_files=False)


def test_photos_get_a_pretrained_network_at_its_own_size() -> None:
    choice = choose_network(TrainOptions(), PHOTOS)
    assert (choice.network, choice.image_size) == ("efficientnet-lite0", (224, 224))
    assert "the median shorter side is 320 pixels" in choice.reason
    assert "--network compact" in choice.reason


def test_images_are_photos_from_96_pixels_on() -> None:
    smallest = Survey(200, None, 96, are_files=True)
    assert choose_network(TrainOptions(), smallest).network == "efficientnet-lite0"


@pytest.mark.parametrize("survey", [THUMBNAILS, LARGE_ARRAYS])
def test_thumbnails_and_arrays_get_a_new_network_at_their_own_size(survey: Survey) -> None:
    choice = choose_network(TrainOptions(), survey)
    assert (choice.network, choice.image_size) == ("compact", None)
    assert f"the median shorter side is {survey.shorter_side} pixels" in choice.reason
    assert ("--network efficientnet-lite0" in choice.reason) == survey.are_files  # arrays cannot be resized to its size


@pytest.mark.parametrize("network", ["compact", "reference", "efficientnet-lite1"])
def test_the_choice_of_the_user_is_kept_without_a_reason(network: str) -> None:
    choice = choose_network(TrainOptions(network=network), PHOTOS)
    assert (choice.network, choice.reason) == (network, "")


@pytest.mark.parametrize("network", ["auto", "compact", "efficientnet-lite0"])
def test_the_image_size_of_the_user_is_kept(network: str) -> None:
    options = TrainOptions(network=network, image_size=(64, 48))
    assert choose_network(options, PHOTOS).image_size == (64, 48)


def test_an_unknown_network_is_an_error() -> None:
    with pytest.raises(NetworkError, match="no network 'resnet'"):
        choose_network(TrainOptions(network="resnet"), PHOTOS)
