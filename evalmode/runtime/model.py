"""Loaded artifacts: an image classifier or a network of tensors, with one interface."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np

from evalmode.artifact.manifest import ClassifierManifest, Manifest, TensorManifest
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS, PROBABILITIES, Floats, Tensors
from evalmode.errors import ImagesNotTaken, UsageError
from evalmode.images.formats import FORMATS, SERVED_FORMATS, ImageFormat
from evalmode.images.pixels import Pixels, decode_image, order_channels
from evalmode.limits import Limits
from evalmode.prediction import DEFAULT_TOP_K, Prediction, Score, check_top_k
from evalmode.runtime.explanation import Explanation
from evalmode.runtime.lone import Lone
from evalmode.runtime.optional_outputs import NO_OUTPUTS, OptionalOutputs
from evalmode.runtime.provider import Provider
from evalmode.runtime.session import ort
from evalmode.runtime.tensor import Tensor, read_tensor

_MAX_RUNS = 8  # recent runs that the expected time is computed from


@dataclass(frozen=True, eq=False, repr=False)
class Model(ABC):
    """A loaded artifact: an ``ImageClassifier`` or a ``TensorNetwork``.

    Attributes:
        name: Its name in the model repository, or the stem of the file.
        version: Its version in the model repository, or "".
        digest: ``sha256:`` and the hexadecimal digest of the file.
        manifest: The manifest of the artifact.
        provider: The execution provider that the session runs on.
        batch_invariant: Whether an input gets the same bits in every batch; measured at export and when loaded.
        max_batch: The largest batch that may be run; 1 on the CPU if batches give other bits.
        session: The ONNX Runtime session of all other outputs; it may be called from several threads.
        optional: The optional outputs, which are computed only where they are requested.
        lone: A session with more threads, for requests that are alone; None if there is none.
        row_s: Seconds per input of the most recent runs in ``session``.
    """

    name: str
    version: str
    digest: str
    manifest: Manifest
    provider: Provider
    batch_invariant: bool
    max_batch: int
    session: ort.InferenceSession
    optional: OptionalOutputs = NO_OUTPUTS
    lone: Lone | None = None
    row_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_RUNS))

    def __repr__(self) -> str:
        name = f"{self.name}/{self.version}" if self.version else self.name
        return f"{type(self).__name__}({name}, {self._describe()})"

    @abstractmethod
    def _describe(self) -> str:
        """Describe what the model takes, and what it returns."""

    @abstractmethod
    def as_classifier(self) -> ImageClassifier:
        """Return this model if it is an image classifier.

        Raises:
            ImagesNotTaken: It is a network of tensors.
        """

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of the network."""
        return tuple(map(read_tensor, self.session.get_inputs()))

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs of the network that are not optional."""
        described = (one for one in self.session.get_outputs() if one.name not in self.optional.shared)
        return tuple(map(read_tensor, described))

    @cached_property
    def _names(self) -> list[str]:
        return [output.name for output in self.outputs]

    @property
    def max_slots(self) -> int:
        """The number of batches that may run at the same time; 0 for one per CPU."""
        return self.provider.max_slots

    def run(
        self,
        inputs: Tensors,
        optional: Collection[str] = (),
        alone: bool = False,
        options: ort.RunOptions | None = None,
    ) -> Tensors:
        """Run the network on a batch.

        Args:
            inputs: Tensors by name, the batch along the first axis of each.
            optional: Names of optional outputs to compute, too.
            alone: Whether no other request is in flight. One input may run on more threads then.
            options: onnxruntime's ``RunOptions``, through which another thread can terminate the run.

        Returns:
            Outputs by name, the batch along the first axis of each.

        Raises:
            Exception: onnxruntime cannot run the network; its exceptions have no common base class.
        """
        started = time.perf_counter()
        rows = len(next(iter(inputs.values())))
        lone = self.lone if self.lone and alone and rows == 1 and self.lone.is_due() else None
        names = [*self._names, *self.optional.shared] if optional else self._names
        computed = (lone or self.session).run(names, dict(inputs), options)
        answer = dict(zip(names, computed, strict=True))
        if optional:
            answer |= self.optional.compute(inputs, answer, options)
            answer = {name: answer[name] for name in (*self._names, *optional)}
        if lone is None:
            self.row_s.append((time.perf_counter() - started) / max(1, rows))
        return answer

    def expect_s(self, rows: int) -> float:
        """Return a time that a batch will hardly exceed, from the second slowest of the most recent runs.

        Args:
            rows: The number of inputs in the batch.

        Returns:
            Seconds; 0.0 if there were fewer than two runs. The replay of the certificate counts.
        """
        recent = sorted(self.row_s.copy())  # a copy: other threads append to it
        return rows * recent[-2] if len(recent) > 1 else 0.0

    def predict(
        self,
        image: bytes | str | PathLike[str],
        top_k: int = DEFAULT_TOP_K,
        limits: Limits | None = None,
        formats: Sequence[ImageFormat] | None = None,
    ) -> Prediction:
        """Classify one image.

        Args:
            image: Encoded bytes, or a path.
            top_k: The number of labels to return, the most probable first; 0 for the default, 5.
            limits: How large the image may be; by default the limits of a server.
            formats: The formats that are allowed; by default all for a path, and those that a server decodes for bytes,
                which may come from strangers.

        Raises:
            ImageError: The image cannot be decoded.
            ImagesNotTaken: The model is a network of tensors.
            OSError: The path cannot be read.
            UsageError: ``top_k`` is outside its range.
        """
        return self._infer(image, top_k, limits, formats)[0]

    def explain(
        self,
        image: bytes | str | PathLike[str],
        top_k: int = DEFAULT_TOP_K,
        limits: Limits | None = None,
        formats: Sequence[ImageFormat] | None = None,
    ) -> Explanation:
        """Classify one image, and find the parts of the image that speak for each label.

        This needs the output ``activation_map``, which ``export`` adds to networks that end in global average pooling
        and one dense layer.

        Args:
            image: Encoded bytes, or a path.
            top_k: The number of labels in the prediction, the most probable first; 0 for the default, 5.
            limits: How large the image may be; by default the limits of a server.
            formats: The formats that are allowed, as for ``predict``.

        Raises:
            ImageError: The image cannot be decoded.
            ImagesNotTaken: The model is a network of tensors.
            OSError: The path cannot be read.
            UsageError: The model has no activation map, or ``top_k`` is outside its range.
        """
        labels = self.as_classifier().manifest.labels
        if ACTIVATION_MAP not in self.optional.names:
            raise UsageError(
                f"{self!r} has no {ACTIVATION_MAP}: networks that end in global average pooling and one dense layer "
                "have one, if this version of evalmode trained and exported them"
            )
        prediction, pixels, outputs = self._infer(image, top_k, limits, formats, (ACTIVATION_MAP,))
        pixels = order_channels(pixels, self.as_classifier().manifest.pixels)  # to RGB
        return Explanation(prediction, pixels, dict(zip(labels, outputs[ACTIVATION_MAP][0], strict=True)))

    def _infer(
        self,
        image: bytes | str | PathLike[str],
        top_k: int,
        limits: Limits | None,
        formats: Sequence[ImageFormat] | None,
        optional: tuple[str, ...] = (),
    ) -> tuple[Prediction, Pixels, Tensors]:
        """Classify one image; return its pixels and the outputs of the network, too."""
        check_top_k(top_k)
        classifier = self.as_classifier()
        encoded = image if isinstance(image, bytes) else Path(image).read_bytes()
        formats = formats or (SERVED_FORMATS if isinstance(image, bytes) else FORMATS)
        started = time.perf_counter()
        pixels = decode_image(encoded, classifier.manifest.pixels, limits or Limits(), formats)
        decoded = time.perf_counter()
        outputs = self.run({INPUT: pixels[np.newaxis]}, optional)
        inferred = time.perf_counter()
        prediction = Prediction(
            scores=classifier.scores(outputs[PROBABILITIES][0], top_k),
            model=self.name,
            version=self.version,
            digest=self.digest,
            decode_us=round((decoded - started) * 1e6),
            wait_us=0,
            inference_us=round((inferred - decoded) * 1e6),
        )
        return prediction, pixels, outputs


@dataclass(frozen=True, eq=False, repr=False)
class ImageClassifier(Model):
    """A loaded image classifier."""

    manifest: ClassifierManifest

    def _describe(self) -> str:
        return f"{len(self.manifest.labels)} labels, {'x'.join(map(str, self.manifest.pixels.shape))}"

    def as_classifier(self) -> ImageClassifier:
        """Return this model."""
        return self

    def classify(self, batch_nhwc: Pixels) -> tuple[Floats, Floats]:
        """Classify a batch of images.

        Args:
            batch_nhwc: uint8 (N, H, W, C).

        Returns:
            Probabilities and logits, float32 (N, K) each.
        """
        answer = self.run({INPUT: batch_nhwc})
        return answer[PROBABILITIES], answer[LOGITS]

    def rank(self, probabilities: Floats, top_k: int) -> list[tuple[str, float, int]]:
        """List the most probable labels of one image; equal probabilities by lowest index.

        Args:
            probabilities: float32 (K,).
            top_k: The number of labels; 0 for the default, 5.

        Returns:
            Label, probability and index of each.
        """
        best = (-probabilities).argsort(kind="stable")[: top_k or DEFAULT_TOP_K].tolist()
        labels = self.manifest.labels
        return [(labels[index], probabilities.item(index), index) for index in best]

    def scores(self, probabilities: Floats, top_k: int) -> tuple[Score, ...]:
        """Return the labels that ``rank`` lists, as scores.

        Args:
            probabilities: float32 (K,).
            top_k: The number of labels; 0 for the default, 5.
        """
        return tuple(Score(*ranked) for ranked in self.rank(probabilities, top_k))


@dataclass(frozen=True, eq=False, repr=False)
class TensorNetwork(Model):
    """A loaded network of tensors: any network that is not an image classifier."""

    manifest: TensorManifest

    def _describe(self) -> str:
        inputs, outputs = (", ".join(one.name for one in tensors) for tensors in (self.inputs, self.outputs))
        return f"{inputs} -> {outputs}"

    def as_classifier(self) -> ImageClassifier:
        """Refuse, since the model takes tensors.

        Raises:
            ImagesNotTaken: Always.
        """
        raise ImagesNotTaken("the model takes tensors, not images: call ModelInfer")
