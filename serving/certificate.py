"""The certificate: golden images and what the network answered to them, inside the artifact, replayed at every load."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import DecoderMismatch, ImageError, LabelsMismatch, ReplayMismatch
from serving.limits import Limits
from serving.pixels import PixelContract, Pixels, decode_image

Floats = npt.NDArray[np.float32]
Run = Callable[[Pixels], tuple[Floats, ...]]

LARGEST_TOLERANCE = 1e-2  # of logits
PROBABILITY_TOLERANCE = 1e-5  # of float32 softmax, between processors


@dataclass(frozen=True)
class Encoded:
    """An image as a file, and the pixels it became where the certificate was made.

    Attributes:
        image: encoded bytes, JPEG or PNG.
        digest: sha256 of the decoded pixels' bytes, hexadecimal.
    """

    image: bytes
    digest: str

    @classmethod
    def of(cls, image: bytes, contract: PixelContract) -> Encoded:
        """Decode an image and keep the digest of its pixels."""
        return cls(image, hashlib.sha256(decode_image(image, contract, Limits()).tobytes()).hexdigest())


@dataclass(frozen=True)
class Certificate:
    """What the network answers, for whoever loads it to see that it still does.

    Attributes:
        pixels: golden images, uint8 (N, H, W, C).
        targets: their labels' names, N of them; "" where they have none.
        answers: the names of the labels that the network gave them, N of them.
        logits: expected for them, each run alone, float32 (N, K).
        tolerance: the largest difference of a logit that is not a mismatch.
        temperature: probabilities are softmax(logits / temperature).
        batch_invariant: whether an image gets the same bits alone and at any place in any batch, on the CPU.
        encoded: images as files, to prove the decoder.
    """

    pixels: Pixels
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    logits: Floats
    tolerance: float
    temperature: float
    batch_invariant: bool
    encoded: tuple[Encoded, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; arrays as base64 of little-endian bytes, pixels compressed by zlib before."""
        return {
            "pixels": _to_text(zlib.compress(self.pixels.tobytes(), 9)),
            "targets": list(self.targets),
            "answers": list(self.answers),
            "logits": _to_text(self.logits.astype("<f4").tobytes()),
            "tolerance": self.tolerance,
            "temperature": self.temperature,
            "batch_invariant": self.batch_invariant,
            "encoded": [{"image": _to_text(one.image), "digest": one.digest} for one in self.encoded],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], contract: PixelContract, labels: int) -> Certificate:
        """Read what ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError, zlib.error: it is something else, or vouches for nothing.
        """
        count, (height, width, channels) = len(facts["targets"]), contract.shape
        size = count * height * width * channels
        raw = zlib.decompressobj().decompress(_to_bytes(facts["pixels"]), size + 1)  # no more, whatever it claims
        if len(facts["answers"]) != count:
            raise ValueError(f"{len(facts['answers'])} answers for {count} golden images")
        if not (count and 0 < facts["tolerance"] <= LARGEST_TOLERANCE and isinstance(facts["batch_invariant"], bool)):
            raise ValueError(
                f"{count} golden images, tolerance {facts['tolerance']}, batch_invariant {facts['batch_invariant']!r}: "
                f"at least 1, at most {LARGEST_TOLERANCE} and true or false are wanted"
            )
        return cls(
            pixels=np.frombuffer(raw, np.uint8).reshape(count, *contract.shape),
            targets=tuple(map(str, facts["targets"])),
            answers=tuple(map(str, facts["answers"])),
            logits=np.frombuffer(_to_bytes(facts["logits"]), "<f4").reshape(count, labels),
            tolerance=float(facts["tolerance"]),
            temperature=float(facts["temperature"]),
            batch_invariant=facts["batch_invariant"],
            encoded=tuple(Encoded(_to_bytes(one["image"]), str(one["digest"])) for one in facts["encoded"]),
        )

    def told(self, labels: tuple[str, ...]) -> list[str]:
        """The label that the expected logits give each golden image."""
        return [labels[index] for index in self.logits.argmax(axis=1)]

    def check_labels(self, labels: tuple[str, ...]) -> None:
        """Hold the labels of a file against the answers that were given when its certificate was made.

        Raises:
            LabelsMismatch: an answer would have another name now.
        """
        for number, (told, answer) in enumerate(zip(self.told(labels), self.answers, strict=True)):
            if told != answer:
                raise LabelsMismatch(
                    f"golden image {number} was {answer!r} when the certificate was made and would be {told!r} by the "
                    "labels in the file: they were changed or reordered since"
                )

    def replay(self, run: Run, tolerance: float, sizes: Iterable[int]) -> bool:
        """Run the golden images alone and in batches, and hold the answers against the expected ones.

        Args:
            run: turns pixels, uint8 (N, H, W, C), into probabilities and logits, float32 (N, K).
            tolerance: the largest difference of a logit that is not a mismatch.
            sizes: of the batches; golden images are repeated to fill them.

        Returns:
            Whether all gave the same bits.

        Raises:
            ReplayMismatch: an answer differs by more than the tolerance, or probabilities do not follow from logits.
        """
        alone = [np.concatenate(rows) for rows in zip(*(run(image[np.newaxis]) for image in self.pixels), strict=True)]
        self._compare(alone, np.arange(len(self.pixels)), tolerance, "alone")
        same = True
        for size in sizes:
            order = np.arange(size) % len(self.pixels)
            together = run(self.pixels[order])
            self._compare(together, order, tolerance, f"in a batch of {size}")
            same &= all((one[order] == other).all() for one, other in zip(alone, together, strict=True))
        return same

    def check_decoder(self, contract: PixelContract) -> None:
        """Decode the images kept as files.

        Raises:
            DecoderMismatch: one becomes other pixels than where the certificate was made.
        """
        for number, one in enumerate(self.encoded):
            try:
                same = Encoded.of(one.image, contract) == one
            except ImageError as error:
                raise DecoderMismatch(f"image {number} of the certificate is not decoded here: {error}") from error
            if not same:
                raise DecoderMismatch(
                    f"image {number} of the certificate becomes other pixels here than where it was made: the "
                    "image decoder differs; install the Pillow of the artifact's evalmode.versions"
                )

    def _compare(self, answer: Sequence[Floats], order: npt.NDArray[Any], tolerance: float, how: str) -> None:
        probabilities, logits = answer
        expected = self.logits[order]
        if logits.shape != expected.shape or probabilities.shape != expected.shape:
            raise ReplayMismatch(
                f"golden images {how} give outputs of shape {probabilities.shape} and {logits.shape}, "
                f"the certificate expects {expected.shape}"
            )
        differences = np.abs(logits - expected).max(axis=1)
        worst = int(np.argmax(np.where(np.isfinite(differences), differences, np.inf)))
        if not differences[worst] <= tolerance:  # written so that NaN is a mismatch, too
            raise ReplayMismatch(
                f"golden image {order[worst]} {how} gives logits that differ by {differences[worst]:.2e} from the "
                f"certificate's, the tolerance is {tolerance:.0e}: not the network that was certified",
                difference=differences[worst],
                tolerance=tolerance,
            )
        if not np.abs(probabilities - softmax(logits / self.temperature)).max() <= PROBABILITY_TOLERANCE:
            raise ReplayMismatch(
                f"golden images {how} give probabilities that are not softmax(logits / {self.temperature:g})"
            )


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities of logits, float64 (N, K)."""
    powers: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _to_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
