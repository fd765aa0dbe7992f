"""The explanation of a prediction: which parts of the image speak for a label."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from PIL import Image

from evalmode.artifact.tensors import Floats
from evalmode.errors import UsageError
from evalmode.files import write_atomically
from evalmode.images.heatmap import draw_heatmap, resize_map
from evalmode.images.pixels import Pixels
from evalmode.prediction import Prediction


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The explanation of the prediction for one image.

    Attributes:
        prediction: The predicted labels with their probabilities.
        pixels: The image as the network sees it, resized and cropped, uint8 (H, W, C), RGB or grey.
        activations: The activation map of each label, float32 (h, w), by label. Its mean is the logit of the label.
    """

    prediction: Prediction
    pixels: Pixels
    activations: Mapping[str, Floats]

    def __repr__(self) -> str:
        return f"Explanation({self.prediction.label!r}, {self.prediction.probability:.3f})"

    def resize(self, label: str | None = None) -> Floats:
        """Resize the activation map of a label to the size of the pixels.

        Args:
            label: The label; by default the predicted one.

        Returns:
            float32 (H, W).

        Raises:
            UsageError: The model has no such label.
        """
        height, width = self.pixels.shape[:2]
        return resize_map(self._find(label), height, width)

    def heatmap(self, label: str | None = None) -> Image.Image:
        """Draw the activation map of a label over the pixels.

        The colours range from the lowest value of this map, dark, to its highest, bright. So they show where the
        evidence is, not how much there is of it.

        Args:
            label: The label; by default the predicted one.

        Returns:
            A picture, RGB, H high and W wide. A notebook shows it.

        Raises:
            UsageError: The model has no such label.
        """
        return draw_heatmap(self.pixels, self._find(label))

    def save(self, path: str | PathLike[str], label: str | None = None) -> None:
        """Write the heatmap of a label to a PNG file.

        Args:
            path: The file, which is replaced.
            label: The label; by default the predicted one.

        Raises:
            OSError: The file cannot be written.
            UsageError: The model has no such label.
        """
        buffer = io.BytesIO()
        self.heatmap(label).save(buffer, "PNG")
        write_atomically(Path(path), buffer.getvalue())

    def _find(self, label: str | None) -> Floats:
        wanted = self.prediction.label if label is None else label
        if wanted not in self.activations:
            raise UsageError(f"label {wanted!r} is unknown; the model has {', '.join(self.activations)}")
        return self.activations[wanted]
