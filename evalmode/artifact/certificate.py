"""The certificate: golden inputs and what the network answered to them, inside the artifact, replayed at every load."""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalmode.errors import DecoderMismatch, ImageError, LabelsMismatch, ReplayMismatch
from evalmode.images.pixels import PixelContract, decode_image, probe_image
from evalmode.limits import MIB, Limits

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]  # by the graph's names; the first axis of each is the batch
Run = Callable[[Tensors], Tensors]

INPUT, PROBABILITIES, LOGITS = "image", "probabilities", "logits"  # of a classifier of images
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
MAX_UNPACKED_BYTES = 128 * MIB  # all golden tensors of a certificate and the largest of its images together
MAX_DIMENSIONS = 32
# Of logits of the order of 1 to 10, see `scale_tolerance`; of other outputs as a share of their largest value.
LARGEST_TOLERANCE = 1e-2
PROBABILITY_TOLERANCE = 1e-5  # of float32 softmax, between processors
FLOAT32_STEP = 2.0**-23  # from one float32 to the next, as a share of its size


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


@dataclass(frozen=True, eq=False)
class Certificate:
    """What the network answers, for whoever loads it to see that it still does.

    Attributes:
        inputs: golden inputs, N of them along the first axis; of a classifier of images ``image``, uint8 (N, H, W, C).
        targets: their labels' names, N of them; "" where they have none.
        answers: of a classifier: the names of the labels that it told, N of them; else none.
        outputs: what each was answered, run alone; of a classifier ``probabilities`` and ``logits``, float32 (N, K).
        tolerance: the largest difference of a logit that is not a mismatch; of a network that is no classifier, of an
            output as a share of its largest value.
        temperature: of a classifier: probabilities are softmax(logits / temperature); else None.
        batch_invariant: whether an input gets the same bits alone and at any place in any batch, on the CPU.
        encoded: images as files, to prove the decoder.
    """

    inputs: Tensors
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    outputs: Tensors
    tolerance: float
    temperature: float | None
    batch_invariant: bool
    encoded: tuple[Encoded, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; arrays as base64 of their little-endian bytes, compressed by zlib."""
        return {
            "inputs": {name: _pack(array) for name, array in self.inputs.items()},
            "targets": list(self.targets),
            "answers": list(self.answers),
            "outputs": {name: _pack(array) for name, array in self.outputs.items()},
            "tolerance": self.tolerance,
            "temperature": self.temperature,
            "batch_invariant": self.batch_invariant,
            "encoded": [{"image": _to_text(one.image), "digest": one.digest} for one in self.encoded],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Certificate:
        """Read what ``to_json`` wrote.

        Nothing is unpacked before all of it is known to fit into ``MAX_UNPACKED_BYTES``.

        Raises:
            KeyError, TypeError, ValueError, zlib.error: it is something else, too large, or vouches for nothing.
        """
        count = len(facts["targets"])
        if len(facts["answers"]) not in (0, count):
            raise ValueError(f"{len(facts['answers'])} answers for {count} golden inputs")
        encoded = tuple(Encoded(_to_bytes(one["image"]), str(one["digest"])) for one in facts["encoded"])
        _check_size([*facts["inputs"].values(), *facts["outputs"].values()], encoded, count)
        certificate = cls(
            inputs={str(name): _unpack(packed, count) for name, packed in facts["inputs"].items()},
            targets=tuple(map(str, facts["targets"])),
            answers=tuple(map(str, facts["answers"])),
            outputs={str(name): _unpack(packed, count) for name, packed in facts["outputs"].items()},
            tolerance=float(facts["tolerance"]),
            temperature=None if facts["temperature"] is None else float(facts["temperature"]),
            batch_invariant=facts["batch_invariant"],
            encoded=encoded,
        )
        largest = max(LARGEST_TOLERANCE, certificate.largest_tolerance)  # the first is what older files were held to
        if not (count and 0 < certificate.tolerance <= largest and isinstance(facts["batch_invariant"], bool)):
            raise ValueError(
                f"{count} golden inputs, tolerance {facts['tolerance']}, batch_invariant {facts['batch_invariant']!r}: "
                f"expected at least 1, at most {largest:g}, and true or false"
            )
        return certificate

    @property
    def largest_tolerance(self) -> float:
        """The largest tolerance that still vouches for something."""
        if self.temperature is None:
            return LARGEST_TOLERANCE
        return scale_tolerance(LARGEST_TOLERANCE, self.outputs[LOGITS])

    def told(self, labels: tuple[str, ...]) -> list[str]:
        """The label that the expected logits give each golden image."""
        return [labels[index] for index in self.outputs[LOGITS].argmax(axis=1)]

    def check_labels(self, labels: tuple[str, ...]) -> None:
        """Hold the labels of a classifier's file against the answers given when its certificate was made.

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
        """Run the golden inputs alone and in batches, and hold the answers against the expected ones.

        Args:
            run: the network: tensors by name in, tensors by name out.
            tolerance: the largest difference that is not a mismatch, in the terms of ``self.tolerance``.
            sizes: of the batches; golden inputs are repeated to fill them.

        Returns:
            Whether all gave the same bits.

        Raises:
            ReplayMismatch: an answer differs by more than the tolerance, or probabilities do not follow from logits.
        """
        answers = [
            run({name: array[row : row + 1] for name, array in self.inputs.items()}) for row in range(len(self.targets))
        ]
        alone = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        self._compare(alone, np.arange(len(self.targets)), tolerance, "alone")
        same = True
        for size in sizes:
            order = np.arange(size) % len(self.targets)
            together = run({name: array[order] for name, array in self.inputs.items()})
            self._compare(together, order, tolerance, f"in a batch of {size}")
            same &= all(alone[name][order].tobytes() == together[name].tobytes() for name in self.outputs)
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

    def _compare(self, actual: Tensors, order: npt.NDArray[Any], tolerance: float, how: str) -> None:
        for name, golden in self.outputs.items():
            expected, answer = golden[order], actual.get(name)
            if answer is None or answer.shape != expected.shape:
                shape = "no output" if answer is None else f"shape {answer.shape}"
                raise ReplayMismatch(f"golden inputs {how} give {shape} for {name}, the certificate {expected.shape}")
            differences = np.abs(answer.astype(np.float64) - expected).reshape(len(order), -1).max(axis=1)
            allowed = tolerance
            if self.temperature is None:
                differences /= largest_value(golden)
            elif name == PROBABILITIES:  # a probability moves by less than half of what its logit / temperature does
                allowed = tolerance / min(self.temperature, 1.0)
            worst = int(np.argmax(np.where(np.isfinite(differences), differences, np.inf)))
            if not differences[worst] <= allowed:  # written so that NaN is a mismatch, too
                raise ReplayMismatch(
                    f"golden input {order[worst]} {how} gives {name} that differ by {differences[worst]:.2e} from the "
                    f"certificate's, the tolerance is {allowed:.0e}: not the network that was certified",
                    difference=differences[worst],
                    tolerance=allowed,
                )
        if self.temperature is not None:
            scaled = actual[LOGITS] / self.temperature
            allowed = PROBABILITY_TOLERANCE + FLOAT32_STEP * float(np.abs(scaled).max())  # of the division in float32
            if not np.abs(actual[PROBABILITIES] - softmax(scaled)).max() <= allowed:
                raise ReplayMismatch(
                    f"golden inputs {how} give probabilities that are not softmax(logits / {self.temperature:g})"
                )


def largest_value(output: Array) -> float:
    """What differences of an output that is no classifier's are a share of; 1 where all values are 0."""
    return float(np.abs(output.astype(np.float64)).max()) or 1.0


def scale_tolerance(tolerance: float, logits: Array) -> float:
    """A tolerance for differences of logits, by their size: float32 rounds in proportion to it.

    As it is where the largest logit is between 1 and 10, a tenth of it times the largest above, it times the largest
    below. So 1e-4 is never less than 84 float32 steps of the largest logit, and never more than a ten-thousandth of it.

    Args:
        tolerance: for logits of the order of 1 to 10.
        logits: float (N, K), of all inputs that are compared.
    """
    size = largest_value(logits)
    return tolerance * max(min(size, 1.0), size / 10)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities of logits, float64 (N, K)."""
    powers: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _pack(array: Array) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": _to_text(zlib.compress(little.tobytes(), 9)),
    }


def _unpack(packed: Mapping[str, Any], count: int) -> Array:
    """Read what ``_pack`` wrote of ``count`` inputs or outputs; no more is inflated than its shape says."""
    size, shape, dtype = _measure(packed, count)
    raw = zlib.decompressobj().decompress(_to_bytes(packed["data"]), size + 1)
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def _measure(packed: Mapping[str, Any], count: int) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Bytes, shape and dtype of ``count`` packed inputs or outputs, by what is stated of them.

    Raises:
        ValueError: of another count, empty, or too large by itself.
    """
    dtype, size = np.dtype(DTYPES[DTYPES.index(packed["dtype"])]), 0
    shape = tuple(map(int, packed["shape"][: MAX_DIMENSIONS + 1]))
    if len(shape) <= MAX_DIMENSIONS and shape[:1] == (count,) and all(0 < side <= MAX_UNPACKED_BYTES for side in shape):
        size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= MAX_UNPACKED_BYTES:
        raise ValueError(
            f"an array of shape {str(shape)[:80]} {dtype} in a certificate of {count} inputs: "
            f"that many rows, at most {MAX_DIMENSIONS} dimensions and {MAX_UNPACKED_BYTES} bytes are allowed"
        )
    return size, shape, dtype


def _check_size(packed: Sequence[Mapping[str, Any]], encoded: Sequence[Encoded], count: int) -> None:
    """Refuse a certificate that would take too much memory, by what it states of itself.

    Args:
        packed: its inputs and outputs.
        encoded: its images as files; their headers are read, nothing is decoded.
        count: of its golden inputs.

    Raises:
        ValueError: too large to unpack.
    """
    unpacked = sum(_measure(one, count)[0] for one in packed)
    unpacked += max((_count_pixel_bytes(one.image) for one in encoded), default=0)  # decoded one after the other
    if unpacked > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"the certificate unpacks to {unpacked} bytes, at most {MAX_UNPACKED_BYTES} are allowed: "
            "certify it with fewer or smaller golden inputs"
        )


def _count_pixel_bytes(image: bytes) -> int:
    """Bytes of an image's pixels by its header; 0 where it has none: decoding refuses it later."""
    with suppress(ImageError):
        return math.prod(probe_image(image, Limits()).shape)
    return 0


def _to_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
