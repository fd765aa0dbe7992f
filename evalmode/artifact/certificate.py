"""The certificate: golden inputs and the expected outputs, stored inside the artifact and replayed at every load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evalmode.artifact.encoded import ADVICE, Encoded, GoldenImages, count_pixel_bytes
from evalmode.artifact.packing import (
    MAX_UNPACKED_BYTES,
    decode_bytes,
    encode_bytes,
    measure_packed,
    pack_array,
    unpack_array,
)
from evalmode.artifact.tensors import (
    ACTIVATION_MAP,
    FLOAT32_STEP,
    INPUT,
    LOGITS,
    PROBABILITIES,
    Array,
    Run,
    Tensors,
    largest_value,
    scale_tolerance,
    softmax,
)
from evalmode.errors import DecoderMismatch, ImageError, LabelsMismatch, ReplayMismatch
from evalmode.images.pixels import PixelContract

# For logits with a largest value between 1 and 10, see `scale_tolerance`. Outputs of a network of tensors are compared
# relative to their largest value.
LARGEST_TOLERANCE = 1e-2
PROBABILITY_TOLERANCE = 1e-5  # of float32 softmax, between processors


@dataclass(frozen=True, eq=False)
class Certificate(ABC):
    """Golden inputs and expected outputs of a network: an image classifier or a network of tensors.

    Attributes:
        inputs: Golden inputs by name, N along the first axis of each.
        outputs: The expected outputs by name, N along the first axis; each input was run alone.
        tolerance: The largest difference that is not a mismatch.
        batch_invariant: Whether an input gets the same bits alone and at every position of every batch, on the CPU.
    """

    inputs: Tensors
    outputs: Tensors
    tolerance: float
    batch_invariant: bool

    @property
    def golden_count(self) -> int:
        """The number of golden inputs, N."""
        return len(next(iter(self.inputs.values())))

    @property
    @abstractmethod
    def largest_tolerance(self) -> float:
        """The largest tolerance that a certificate may have."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Convert the certificate to JSON values."""

    @abstractmethod
    def _scale(self, golden: Array) -> float:
        """Return what the differences of an output are divided by."""

    @abstractmethod
    def _allow(self, name: str, tolerance: float) -> float:
        """Return the largest difference to allow for an output."""

    def replay(self, run: Run, tolerance: float, sizes: Iterable[int]) -> bool:
        """Run the golden inputs alone and in batches, and compare the outputs with the expected ones.

        Args:
            run: Runs the network on tensors by name, and returns tensors by name.
            tolerance: The largest difference that is not a mismatch, measured as ``self.tolerance`` is.
            sizes: Batch sizes; the golden inputs are repeated to fill each batch.

        Returns:
            Whether each input got the same bits alone and in every batch.

        Raises:
            ReplayMismatch: An output differs by more than the tolerance, is missing, or has another shape.
        """
        answers = [
            run({name: array[row : row + 1] for name, array in self.inputs.items()}) for row in range(self.golden_count)
        ]
        alone = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        self._compare(alone, np.arange(self.golden_count), tolerance, "alone")
        same = True
        for size in sizes:
            order = np.arange(size) % self.golden_count
            together = run({name: array[order] for name, array in self.inputs.items()})
            self._compare(together, order, tolerance, f"in a batch of {size}")
            same &= all(alone[name][order].tobytes() == together[name].tobytes() for name in self.outputs)
        return same

    def _compare(self, actual: Tensors, order: npt.NDArray[Any], tolerance: float, how: str) -> None:
        for name, golden in self.outputs.items():
            expected, answer = golden[order], actual.get(name)
            if answer is None or answer.shape != expected.shape:
                shape = "no output" if answer is None else f"shape {answer.shape}"
                raise ReplayMismatch(f"golden inputs {how} give {shape} for {name}, the certificate {expected.shape}")
            differences = np.abs(answer.astype(np.float64) - expected).reshape(len(order), -1).max(axis=1)
            differences /= self._scale(golden)
            allowed = self._allow(name, tolerance)
            worst = int(np.argmax(np.where(np.isfinite(differences), differences, np.inf)))
            if not differences[worst] <= allowed:  # NaN is a mismatch, too
                raise ReplayMismatch(
                    f"golden input {order[worst]} {how} gives {name} that differ by {differences[worst]:.2e} from the "
                    f"certificate's, the tolerance is {allowed:.0e}: not the network that was certified",
                    difference=differences[worst],
                    tolerance=allowed,
                )

    def _pack(self) -> dict[str, Any]:
        return {
            "inputs": {name: pack_array(array) for name, array in self.inputs.items()},
            "outputs": {name: pack_array(array) for name, array in self.outputs.items()},
            "tolerance": self.tolerance,
            "batch_invariant": self.batch_invariant,
        }

    def _check(self) -> None:
        """Check what was read from a file.

        Raises:
            ValueError: The tolerance is so large that a replay would prove nothing.
        """
        largest = max(LARGEST_TOLERANCE, self.largest_tolerance)  # files of earlier releases were held to the first
        if not 0 < self.tolerance <= largest:
            raise ValueError(f"tolerance {self.tolerance}: expected more than 0 and at most {largest:g}")


@dataclass(frozen=True, eq=False)
class ClassifierCertificate(Certificate):
    """The certificate of an image classifier.

    The input is ``image``, uint8 (N, H, W, C); the outputs are ``probabilities`` and ``logits``, float32 (N, K).
    The tolerance is the largest absolute difference of a logit. If the network has the optional output
    ``activation_map``, its mean over the positions must be the logit.

    Attributes:
        targets: The labels of the golden images, N names; "" if unknown.
        answers: The labels that were predicted for them, N names.
        temperature: Probabilities are softmax(logits / temperature).
        encoded: Images as files, to verify the image decoder.
        golden: The golden images as JPEG, if they are stored as such; None if their pixels are stored.
        optional: The expected optional outputs of the first golden images by name, in any number.
    """

    targets: tuple[str, ...]
    answers: tuple[str, ...]
    temperature: float
    encoded: tuple[Encoded, ...]
    golden: GoldenImages | None = None
    optional: Tensors = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert the certificate to JSON values."""
        stored = self._pack()
        if self.golden:
            stored["inputs"], stored["golden"] = {}, self.golden.to_json()
        if self.optional:
            stored["optional"] = {name: pack_array(array) for name, array in self.optional.items()}
        return {
            **stored,
            "targets": list(self.targets),
            "answers": list(self.answers),
            "temperature": self.temperature,
            "encoded": [{"image": encode_bytes(one.image), "digest": one.digest} for one in self.encoded],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ClassifierCertificate:
        """Read what ``to_json`` wrote.

        Nothing is unpacked before all of it is known to fit into ``MAX_UNPACKED_BYTES``.

        Raises:
            KeyError, TypeError, ValueError, zlib.error: The values are damaged or too large.
            DecoderMismatch: The golden images are decoded to other pixels.
        """
        count = len(facts["targets"])
        if len(facts["answers"]) != count:
            raise ValueError(f"{len(facts['answers'])} answers for {count} golden inputs")
        encoded = tuple(Encoded(decode_bytes(one["image"]), str(one["digest"])) for one in facts["encoded"])
        golden = GoldenImages.from_json(facts["golden"]) if "golden" in facts else None
        certificate = cls(
            **_unpack(facts, encoded, golden),
            targets=tuple(map(str, facts["targets"])),
            answers=tuple(map(str, facts["answers"])),
            temperature=float(facts["temperature"]),
            encoded=encoded,
            golden=golden,
            optional={str(name): unpack_array(one, _count(one)) for name, one in facts.get("optional", {}).items()},
        )
        certificate._check()
        return certificate

    @property
    def largest_tolerance(self) -> float:
        """The largest tolerance that a certificate with these logits may have."""
        return scale_tolerance(LARGEST_TOLERANCE, self.outputs[LOGITS])

    def predict_labels(self, labels: tuple[str, ...]) -> list[str]:
        """Return the label with the largest expected logit for each golden image.

        Args:
            labels: Class names, in the order of the network's outputs.
        """
        return [labels[index] for index in self.outputs[LOGITS].argmax(axis=1)]

    def check_labels(self, labels: tuple[str, ...]) -> None:
        """Check that the golden images still get the labels that they got when the certificate was made.

        Args:
            labels: Class names in the file, in the order of the network's outputs.

        Raises:
            LabelsMismatch: A golden image would get another label.
        """
        for number, (label, answer) in enumerate(zip(self.predict_labels(labels), self.answers, strict=True)):
            if label != answer:
                raise LabelsMismatch(
                    f"golden image {number} was {answer!r} when the certificate was made and would be {label!r} by the "
                    "labels in the file: they were changed or reordered since"
                )

    def check_decoder(self, contract: PixelContract) -> None:
        """Decode the encoded images, and compare their pixels with those recorded in the certificate.

        Args:
            contract: The pixels to decode them to.

        Raises:
            DecoderMismatch: An image cannot be decoded, or is decoded to other pixels.
        """
        for number, one in enumerate(self.encoded):
            try:
                same = Encoded.of(one.image, contract) == one
            except ImageError as error:
                raise DecoderMismatch(f"image {number} of the certificate cannot be decoded: {error}") from error
            if not same:
                raise DecoderMismatch(
                    f"image {number} of the certificate is decoded to other pixels than where it was made: {ADVICE}"
                )

    def _scale(self, golden: Array) -> float:
        return 1.0

    def _allow(self, name: str, tolerance: float) -> float:
        # A probability changes by less than half as much as its logit / temperature.
        return tolerance / min(self.temperature, 1.0) if name == PROBABILITIES else tolerance

    def _compare(self, actual: Tensors, order: npt.NDArray[Any], tolerance: float, how: str) -> None:
        super()._compare(actual, order, tolerance, how)
        scaled = actual[LOGITS] / self.temperature
        allowed = PROBABILITY_TOLERANCE + FLOAT32_STEP * float(np.abs(scaled).max())  # of the division in float32
        if not np.abs(actual[PROBABILITIES] - softmax(scaled)).max() <= allowed:
            raise ReplayMismatch(
                f"golden inputs {how} give probabilities that are not softmax(logits / {self.temperature:g})"
            )
        if ACTIVATION_MAP in actual or self.optional:
            self._compare_maps(actual, order, self._allow(ACTIVATION_MAP, tolerance), how)

    def _compare_maps(self, actual: Tensors, order: npt.NDArray[Any], tolerance: float, how: str) -> None:
        """Compare activation maps with the logits, and with the recorded maps of the first golden images."""
        expected = self.optional.get(ACTIVATION_MAP)
        maps, rows = actual.get(ACTIVATION_MAP), np.flatnonzero(order < (0 if expected is None else len(expected)))
        known = None if expected is None else expected[order[rows]]
        fits = maps is not None and maps.ndim == 4 and maps.shape[:2] == actual[LOGITS].shape
        if maps is None or not fits or (known is not None and maps[rows].shape != known.shape):
            raise ReplayMismatch(f"golden inputs {how} give no {ACTIVATION_MAP} of the certificate's shape")
        differences = [np.abs(maps.mean(axis=(2, 3), dtype=np.float64) - actual[LOGITS]).max()]
        if known is not None and len(rows):
            # A value of the map may be many times as large as the logits, and is rounded accordingly.
            larger = largest_value(known) / largest_value(self.outputs[LOGITS])
            differences.append(np.abs(maps[rows] - known).max() / max(1.0, larger))
        difference = float(np.max(differences))
        if not difference <= tolerance:
            raise ReplayMismatch(
                f"golden inputs {how} give another {ACTIVATION_MAP} than the certificate's, or one whose mean is not "
                f"the logit: by {difference:.2e}, the tolerance is {tolerance:.0e}",
                difference=difference,
                tolerance=tolerance,
            )


@dataclass(frozen=True, eq=False)
class TensorCertificate(Certificate):
    """The certificate of a network of tensors.

    The tolerance is the largest difference of an output, relative to the largest value of that output.
    """

    def to_json(self) -> dict[str, Any]:
        """Convert the certificate to JSON values, with the fields of a classifier empty."""
        return {
            **self._pack(),
            "targets": [""] * self.golden_count,
            "answers": [],
            "temperature": None,
            "encoded": [],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> TensorCertificate:
        """Read what ``to_json`` wrote.

        Nothing is unpacked before all of it is known to fit into ``MAX_UNPACKED_BYTES``.

        Raises:
            KeyError, TypeError, ValueError, zlib.error: The values are damaged or too large.
        """
        if facts["answers"] or facts["encoded"] or facts["temperature"] is not None:
            raise ValueError("answers, temperature or images in the certificate of a network of tensors")
        certificate = cls(**_unpack(facts, (), None))
        certificate._check()
        return certificate

    @property
    def largest_tolerance(self) -> float:
        """The largest tolerance that a certificate may have."""
        return LARGEST_TOLERANCE

    def _scale(self, golden: Array) -> float:
        return largest_value(golden)

    def _allow(self, name: str, tolerance: float) -> float:
        return tolerance


def _unpack(facts: Mapping[str, Any], encoded: Sequence[Encoded], golden: GoldenImages | None) -> dict[str, Any]:
    """Read the fields that both certificates have.

    Args:
        facts: JSON values.
        encoded: Encoded images of the certificate.
        golden: The golden images, if they are stored as JPEG.

    Raises:
        KeyError, TypeError, ValueError, zlib.error: The values are damaged or too large.
    """
    count = len(facts["targets"])
    _check_size(facts, encoded, golden)
    if golden and (facts["inputs"] or len(golden.images) != count):
        raise ValueError(f"{len(golden.images)} golden images and inputs {list(facts['inputs'])} for {count} labels")
    if not (count and (facts["inputs"] or golden) and isinstance(facts["batch_invariant"], bool)):
        raise ValueError(
            f"{count} golden inputs, batch_invariant {facts['batch_invariant']!r}: expected at least 1, and true or "
            "false"
        )
    inputs = {str(name): unpack_array(packed, count) for name, packed in facts["inputs"].items()}
    return {
        "inputs": {INPUT: golden.decode()} if golden else inputs,
        "outputs": {str(name): unpack_array(packed, count) for name, packed in facts["outputs"].items()},
        "tolerance": float(facts["tolerance"]),
        "batch_invariant": facts["batch_invariant"],
    }


def _check_size(facts: Mapping[str, Any], encoded: Sequence[Encoded], golden: GoldenImages | None) -> None:
    """Check that a certificate does not take too much memory, before anything of it is unpacked.

    Args:
        facts: JSON values: inputs, outputs and optional outputs.
        encoded: Its encoded images; only their headers are read.
        golden: Its golden images, likewise.

    Raises:
        ValueError: It is too large to unpack.
    """
    count = len(facts["targets"])
    unpacked = sum(measure_packed(one, count)[0] for key in ("inputs", "outputs") for one in facts[key].values())
    unpacked += sum(measure_packed(one, _count(one))[0] for one in facts.get("optional", {}).values())
    unpacked += golden.measure() if golden else 0
    unpacked += max((count_pixel_bytes(one.image) for one in encoded), default=0)  # decoded one after the other
    if unpacked > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"the certificate unpacks to {unpacked} bytes, at most {MAX_UNPACKED_BYTES} are allowed: "
            "certify it with fewer or smaller golden inputs"
        )


def _count(packed: Mapping[str, Any]) -> int:
    """Return the number of rows of a packed array."""
    return int(packed["shape"][0])
