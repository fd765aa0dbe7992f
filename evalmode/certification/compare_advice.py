"""What a comparison of two models asks for: whether to replace the old one, and which losses to look at."""

from __future__ import annotations

from evalmode.certification.compare import Comparison, LabelChange
from evalmode.certification.design.steps import Advice, count
from evalmode.certification.metrics import mcnemar

SIGNIFICANT = 0.05  # of a p-value: chance alone makes a difference this uneven in one of twenty comparisons
SLOWER = 1.2  # times the latency of the old model; less is within what a busy machine changes


def list_advice(comparison: Comparison) -> list[Advice]:
    """List what a comparison asks for: its verdict first, then labels that lose and a latency that grows.

    Args:
        comparison: What changes if the new model replaces the old one.
    """
    advice = [_judge(comparison), *map(_describe_loss, filter(_loses, comparison.labels))]
    if comparison.latency_ratio > SLOWER:
        advice.append(
            Advice(
                f"A single image takes {comparison.latency_ratio:.2f} times as long.",
                "Measure the server before you replace the old model: evalmode bench ADDRESS.",
                "figures",
            )
        )
    return advice


def _judge(comparison: Comparison) -> Advice:
    gained, lost = comparison.gained, comparison.lost
    figures = f"{count(gained, 'image')} gained, {lost:,} lost"
    if not gained and not lost:
        return Advice("Both models classify the same images correctly.", "Either can be served.", "labels")
    if gained == lost:
        return Advice(
            f"Neither model is better: {figures}.",
            "Decide by the images below: both models make mistakes that the other does not make.",
            "labels",
        )
    if comparison.p >= SIGNIFICANT:
        return Advice(
            f"The difference may be chance: {figures}.",
            f"If both models were equally accurate, a difference this uneven would happen in {comparison.p:.0%} of "
            "comparisons. More images would show which one is better.",
            "labels",
        )
    if gained > lost:
        return Advice(f"The new model is better: {figures}.", "It can replace the old one.", "labels")
    return Advice(
        f"The new model is worse: {figures}.",
        "Keep the old one, and look at the images that are lost.",
        "lost",
        is_serious=True,
    )


def _loses(label: LabelChange) -> bool:
    """Return whether a label loses images beyond chance."""
    return label.lost > label.gained and mcnemar(label.gained, label.lost) < SIGNIFICANT


def _describe_loss(label: LabelChange) -> Advice:
    return Advice(
        f"{label.label} loses {label.lost:,} of {count(label.images, 'image')} and gains {label.gained:,}.",
        "Look at these images before you replace the old model.",
        "lost",
        is_serious=True,
    )
