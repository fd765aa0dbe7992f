"""What the report shows of doubtful data: labels that are probably wrong, and near-duplicates across splits."""

from __future__ import annotations

from typing import Any

from training.datasets import Dataset, Split
from training.report import pictures
from training.review import Review

SHOWN_LABELS, SHOWN_PAIRS = 30, 20


def describe_doubts(review: Review | None, dataset: Dataset) -> dict[str, Any]:
    """Collect what the page shows of doubtful data.

    Args:
        review: What the features of a pretrained network reveal; None for other networks.
        dataset: The data set.

    Returns:
        ``review``, ``doubtful_labels`` and ``near_duplicates``; the lists are empty without a review.
    """
    if review is None:
        return {"review": None, "doubtful_labels": [], "near_duplicates": []}
    return {
        "review": review,
        "doubtful_labels": [
            {
                **_show_image(dataset, one.split, one.row),
                "suggested": dataset.labels[one.suggested],
                "probability": one.probability,
                "suggested_probability": one.suggested_probability,
            }
            for one in review.wrong_labels[:SHOWN_LABELS]
        ],
        "near_duplicates": [
            {
                "pair": [
                    _show_image(dataset, pair.split, pair.row),
                    _show_image(dataset, pair.other_split, pair.other_row),
                ],
                "similarity": pair.similarity,
            }
            for pair in review.near_duplicates[:SHOWN_PAIRS]
        ],
    }


def _show_image(dataset: Dataset, name: str, row: int) -> dict[str, Any]:
    split: Split = getattr(dataset, name)
    return {
        "picture": pictures.embed_photo(split.images[row]),
        "label": dataset.labels[split.targets[row]],
        "split": {"train": "training", "val": "validation"}.get(name, name),
        "name": pictures.name_image(split, row, name),
    }
