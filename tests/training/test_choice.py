"""Which network suits a data set, if the user did not choose."""

from __future__ import annotations

import pytest

from training.choice import choose_network
from training.datasets import Survey
from training.errors import NetworkError
from training.options import TrainOptions

PHOTOS = Survey(320)
THUMBNAILS = Survey(95)
LARGE_ARRAYS = Survey(None)


def test_photos_get_a_pretrained_network_at_its_own_size() -> None:
    choice = choose_network(TrainOptions(), PHOTOS)
    assert (choice.network, choice.image_size) == ("efficientnet-lite0", (224, 224))
    assert "the median shorter side is 320 pixels" in choice.reason
    assert "--network compact" in choice.reason


def test_images_are_photos_from_96_pixels_on() -> None:
    smallest = Survey(96)
    assert choose_network(TrainOptions(), smallest).network == "efficientnet-lite0"


@pytest.mark.parametrize(
    ("survey", "reason"),
    [
        (THUMBNAILS, "the median shorter side is 95 pixels; --network efficientnet-lite0 uses a pretrained one"),
        (LARGE_ARRAYS, "for arrays, which are not resized"),
    ],
)
def test_thumbnails_and_arrays_get_a_new_network_at_their_own_size(survey: Survey, reason: str) -> None:
    choice = choose_network(TrainOptions(), survey)
    assert (choice.network, choice.image_size) == ("compact", None)
    assert choice.reason.endswith(reason)


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
