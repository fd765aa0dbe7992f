"""Accuracy on photos of 12 megapixels, decoded at every pixel and at 1/4 of their size as the contract allows.

    python -m benchmarks.quality.scaled_accuracy ARTIFACT RUN [--grain 0] [--quality 90] [--out FILE]

The test photos of the run, which the network was not trained on, are enlarged to 4000x3000, and are saved as JPEG. The
artifact of the run classifies each of them by both decodes. Exit 1 if the accuracies differ significantly, by McNemar's
test at 5%: over the photos that only one of the decodes leads to the right label for.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import evalmode
from benchmarks.record import add_out, write_result
from benchmarks.speed.scaled_decoding import SIZE, enlarge, save
from evalmode.certification.metrics import wilson_interval
from evalmode.images.headers import read_header
from evalmode.images.pixels import decode_image, scale_header
from evalmode.limits import OWN_IMAGES
from evalmode.runtime.model import ImageClassifier
from training.callbacks import Callbacks
from training.loading import reload_data
from training.run import Run

Rows = npt.NDArray[Any]


def main() -> None:
    """Classify every test photo twice, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("run", type=Path, help="the run that it was exported from, with its data in place")
    parser.add_argument("--grain", type=float, default=0, help="standard deviation of the grain")
    parser.add_argument("--quality", type=int, default=90)
    add_out(parser, required=False)
    options = parser.parse_args()
    model = evalmode.load(options.artifact).as_classifier()
    test = reload_data(Run.open(options.run), None, None, Callbacks()).test
    found = [classify(model, path, options.grain, options.quality) for path in test.paths]
    probabilities = np.array([both for both, _ in found])
    results = {
        "photos": len(test),
        "size": SIZE,
        "scales": sorted({scale for _, scale in found}),
        **compare(probabilities, test.targets),
    }
    print(json.dumps(results, indent=1))
    write_result(options, results)
    wins, losses = results["right_only_scaled"], results["right_only_plain"]
    sys.exit(abs(wins - losses) > 1.96 * math.sqrt(wins + losses))


def classify(model: ImageClassifier, photo: Path, grain: float, quality: int) -> tuple[Rows, int]:
    """Classify an enlarged photo by both decodes.

    Returns:
        The probabilities of the labels by the plain and by the scaled decode, float32 (2, K), and the scale.
    """
    image, scaled = save(enlarge(photo), grain, quality=quality), model.manifest.pixels
    plain = replace(scaled, resize=replace(scaled.resize, jpeg_scaling=False))
    pixels = [decode_image(image, contract, OWN_IMAGES) for contract in (plain, scaled)]
    probabilities = np.concatenate([model.classify(one[np.newaxis])[0] for one in pixels])
    return probabilities, scale_header(read_header(image, OWN_IMAGES), scaled).scale


def compare(probabilities: Rows, targets: Rows) -> dict[str, Any]:
    """Compare the answers by the plain and by the scaled decode.

    Args:
        probabilities: float32 (N, 2, K).
        targets: The index of each photo's label, int64 (N,).
    """
    labels = probabilities.argmax(2)
    plain, scaled = (labels == targets[:, np.newaxis]).T
    difference = np.abs(probabilities[:, 0] - probabilities[:, 1]).max(1)
    return {
        "plain_accuracy": round(float(plain.mean()), 4),
        "scaled_accuracy": round(float(scaled.mean()), 4),
        "plain_interval": [round(bound, 4) for bound in wilson_interval(int(plain.sum()), len(plain))],
        "labels_changed": int((labels[:, 0] != labels[:, 1]).sum()),
        "right_only_plain": int((plain & ~scaled).sum()),
        "right_only_scaled": int((scaled & ~plain).sum()),
        "largest_difference_of_probabilities": round(float(difference.max()), 4),
        "median_difference_of_probabilities": round(float(np.median(difference)), 5),
    }


if __name__ == "__main__":
    main()
