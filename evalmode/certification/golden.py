"""Checks of what an artifact states about itself: its golden inputs, its labels, and its image decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalmode.artifact.certificate import Certificate, ClassifierCertificate
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.certification.metrics import binomial_tail
from evalmode.certification.runs import open_runs
from evalmode.errors import GoldenMismatch
from evalmode.limits import LARGEST_BATCH

IMPLAUSIBLE = 1e-6  # golden images that are right less often than by this probability contradict the stated recalls


@dataclass(frozen=True, eq=False)
class Replay:
    """Golden inputs with their expected outputs, and the network to run them on.

    Attributes:
        certificate: The certificate that holds them.
        artifact: The bytes of the ONNX file.
    """

    certificate: Certificate
    artifact: bytes


@dataclass(frozen=True, eq=False)
class Claim:
    """What the artifact of an image classifier states about its images and labels.

    Attributes:
        manifest: Its manifest.
        certificate: Its certificate.
    """

    manifest: ClassifierManifest
    certificate: ClassifierCertificate


def check_replay(replay: Replay) -> str:
    """Check that the golden inputs give the recorded outputs.

    Args:
        replay: The golden inputs and the network.

    Returns:
        What was found, in words.

    Raises:
        ArtifactInvalid: ONNX Runtime cannot load the network.
        ReplayMismatch: An output differs by more than the certificate's tolerance.
    """
    certificate = replay.certificate
    certificate.replay(open_runs(replay.artifact)[0], certificate.tolerance, [LARGEST_BATCH])
    return f"{certificate.golden_count} golden inputs, alone and in a batch, within {certificate.tolerance:.0e}"


def check_decoder(claim: Claim) -> str:
    """Check that the encoded images of a certificate are decoded to the recorded pixels.

    Args:
        claim: What the artifact states.

    Returns:
        What was found, in words.

    Raises:
        DecoderMismatch: One is decoded to other pixels.
    """
    claim.certificate.check_decoder(claim.manifest.pixels)
    return f"{len(claim.certificate.encoded)} images are decoded to the recorded pixels"


def check_labels(claim: Claim) -> str:
    """Check that the labels are those of the certificate, and fit the golden images.

    Args:
        claim: What the artifact states.

    Returns:
        What was found, in words.

    Raises:
        LabelsMismatch: The labels were changed since the certificate was made.
        GoldenMismatch: See ``check_golden``.
    """
    manifest = claim.manifest
    claim.certificate.check_labels(manifest.labels)
    return check_golden(claim.certificate, manifest.labels, least_recalls(manifest))


def check_golden(certificate: ClassifierCertificate, labels: tuple[str, ...], least_recalls: Sequence[float]) -> str:
    """Check that about as many golden images are classified correctly as the stated recalls suggest.

    Args:
        certificate: The certificate; golden images may have no labels.
        labels: The K labels, in the order of the outputs.
        least_recalls: For each label, the lower bound of its recall, in 0..1.

    Returns:
        What was found, in words.

    Raises:
        GoldenMismatch: Far fewer are correct than the recalls suggest.
    """
    named = [pair for pair in zip(certificate.predict_labels(labels), certificate.targets, strict=True) if pair[1]]
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


def least_recalls(manifest: ClassifierManifest) -> Sequence[float]:
    """The lower bound of each label's recall as the manifest states it, in 0..1; 0 where it states none."""
    stated: Sequence[float] = manifest.properties.get("quality", {}).get("least_recalls", [0.0] * len(manifest.labels))
    return stated
