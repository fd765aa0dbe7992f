"""Which network suits a data set, and the images it gets, if the user did not choose."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.images.pixels import Resize
from training.datasets import Survey
from training.networks import get_architecture
from training.options import AUTO, TrainOptions

PHOTO_NETWORK, THUMBNAIL_NETWORK = "efficientnet-lite0", "compact"


@dataclass(frozen=True)
class Choice:
    """A network, and how images are read for it.

    Attributes:
        network: The name of the network.
        image_size: (height, width) in pixels to which images are resized; None if the data set decides.
        resize: How images of another size are resized and cropped.
        reason: Why the network was chosen, and how to choose another one, in words; "" if the user chose it.
    """

    network: str
    image_size: tuple[int, int] | None
    resize: Resize
    reason: str


def choose_network(options: TrainOptions, survey: Survey) -> Choice:
    """Choose the network and the size of its images: photos get a pretrained one, thumbnails a small new one.

    Args:
        options: What the user chose.
        survey: What is known about the images.

    Returns:
        The choice.

    Raises:
        NetworkError: There is no network of the name that the user chose.
    """
    network, reason = options.network, ""
    if network == AUTO:
        network = PHOTO_NETWORK if survey.are_photos else THUMBNAIL_NETWORK
        reason = _explain(survey)
    suited = get_architecture(network).describe_input(network)
    size = options.image_size or (suited.size if survey.shorter_side else None)
    return Choice(network, size, suited.resize, reason)


def _explain(survey: Survey) -> str:
    if survey.shorter_side is None:
        return "for arrays, which are not resized"
    side = f"the median shorter side is {survey.shorter_side} pixels"
    if survey.are_photos:
        return (
            f"for photos: {side}, and from 96 on a pretrained network is chosen; --network {THUMBNAIL_NETWORK} trains "
            "one from scratch"
        )
    return f"for small images: {side}; --network {PHOTO_NETWORK} uses a pretrained one"
