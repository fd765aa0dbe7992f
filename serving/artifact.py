"""What an artifact says about itself: the metadata inside ``model.onnx``, written at export and read at load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.errors import ArtifactInvalid
from serving.pixels import RESIZE, PixelContract

FORMAT_VERSION = 1
PREFIX = "evalmode."
INPUT, PROBABILITIES, LOGITS = "image", "probabilities", "logits"


@dataclass(frozen=True)
class Manifest:
    """The facts that travel in the file.

    Attributes:
        labels: class names, in the order of the network's outputs.
        pixels: the shape of the pixels that the graph takes.
        properties: what else the export recorded, JSON values by name (network, training, agreement).
    """

    labels: tuple[str, ...]
    pixels: PixelContract
    properties: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Write the manifest as ONNX metadata properties: sorted keys, JSON values."""
        pixels = {
            "height": self.pixels.height,
            "width": self.pixels.width,
            "channels": self.pixels.channels,
            "layout": "NHWC",
            "dtype": "uint8",
            "range": [0, 255],
            "resize": RESIZE,
        }
        facts = {"format_version": FORMAT_VERSION, "labels": self.labels, "pixels": pixels, **self.properties}
        return {PREFIX + name: json.dumps(facts[name], sort_keys=True) for name in sorted(facts)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Manifest:
        """Read what ``to_metadata`` wrote.

        Raises:
            ArtifactInvalid: the keys are missing, malformed, or of a format version this code does not know.
        """
        try:
            facts = {key.removeprefix(PREFIX): json.loads(metadata[key]) for key in metadata if key.startswith(PREFIX)}
            version = facts.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ArtifactInvalid(
                    f"evalmode.format_version is {version}, this evalmode reads {FORMAT_VERSION}: "
                    + (
                        "not an evalmode artifact"
                        if version is None
                        else "export it again or change evalmode's version"
                    ),
                    format_version=version,
                )
            labels, pixels = facts.pop("labels"), facts.pop("pixels")
            contract = PixelContract(*(int(pixels[side]) for side in ("height", "width", "channels")))
            return cls(tuple(map(str, labels)), contract, facts)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactInvalid(f"the artifact's metadata is damaged: {error!r}") from error
