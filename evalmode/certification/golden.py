"""Checks of what an artifact states about itself: its golden inputs, its labels, and its image decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalmode.artifact.certificate import LOGITS, Certificate, Run
from evalmode.artifact.manifest import Manifest
from evalmode.certification.metrics import binomial_tail
from evalmode.errors import GoldenMismatch
from evalmode.limits import LARGEST_BATCH

IMPLAUSIBLE = 1e-6  # golden images that are right less often than by this probability contradict the stated recalls


@dataclass(frozen=True, eq=False)
class Claim:
    """What an artifact states about itself, and the network that has to agree.

    Attributes:
        manifest: the manifest of an artifact that has a certificate.
        certificate: its certificate.
        run: the network on one thread.
    """

    manifest: Manifest
    certificate: Certificate
    run: Run


def check_decoder(claim: Claim) -> str:
    """Check that the encoded images of a certificate are decoded to the recorded pixels.

    Args:
        claim: an artifact of an image classifier.

    Returns:
        What was found, in words.

    Raises:
        DecoderMismatch: one is decoded to other pixels.
    """
    claim.certificate.check_decoder(claim.manifest.pixels)
    return f"{len(claim.certificate.encoded)} images are decoded to the recorded pixels"


def check_replay(claim: Claim) -> str:
    """Check that the golden inputs give the recorded outputs.

    Args:
        claim: an artifact.

    Returns:
        What was found, in words.

    Raises:
        ReplayMismatch: an output differs by more than the certificate's tolerance.
    """
    certificate = claim.certificate
    certificate.replay(claim.run, certificate.tolerance, [LARGEST_BATCH])
    return f"{len(certificate.targets)} golden inputs, alone and in a batch, within {certificate.tolerance:.0e}"


def check_labels(claim: Claim) -> str:
    """Check that the labels are those of the certificate, and fit the golden images.

    Args:
        claim: an artifact of an image classifier.

    Returns:
        What was found, in words.

    Raises:
        LabelsMismatch: the labels were changed since the certificate was made.
        GoldenMismatch: see ``check_golden``.
    """
    manifest = claim.manifest
    claim.certificate.check_labels(manifest.labels)
    return check_golden(claim.certificate, manifest.labels, least_recalls(manifest))


def check_golden(certificate: Certificate, labels: tuple[str, ...], least_recalls: Sequence[float]) -> str:
    """Check that about as many golden images are classified correctly as the stated recalls suggest.

    Args:
        certificate: of an image classifier; golden images may have no labels.
        labels: the K labels, in the order of the outputs.
        least_recalls: for each label, the lower bound of its recall, in 0..1.

    Returns:
        What was found, in words.

    Raises:
        GoldenMismatch: far fewer are correct than the recalls suggest.
    """
    predicted = [labels[index] for index in certificate.outputs[LOGITS].argmax(axis=1)]
    named = [pair for pair in zip(predicted, certificate.targets, strict=True) if pair[1]]
    if not named:
        return "synthetic golden images, without labels"
    right = sum(label == target for label, target in named)
    share = sum(least_recalls[labels.index(target)] for _, target in named) / len(named)
    if binomial_tail(right, len(named), share) < IMPLAUSIBLE:
        raise GoldenMismatch(
            f"{right} of {len(named)} golden images get their label, while a share of at least {share:.2f} is "
            "expected: labels, scale or channels are not those of training"
        )
    return f"{right} of {len(named)} golden images get their label"


def least_recalls(manifest: Manifest) -> Sequence[float]:
    """The lower bound of each label's recall as the manifest states it, in 0..1; 0 where it states none."""
    stated: Sequence[float] = manifest.properties.get("quality", {}).get("least_recalls", [0.0] * len(manifest.labels))
    return stated
