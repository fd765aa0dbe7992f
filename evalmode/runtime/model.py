"""An artifact loaded into an ONNX Runtime session: how a model is loaded and run."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

# onnxruntime's builds report to their vendor, from their first moment on, unless told otherwise before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from evalmode.artifact.certificate import DTYPES, INPUT, LOGITS, PROBABILITIES, Floats, Run, Tensors
from evalmode.artifact.manifest import Manifest, digest_file, open_artifact
from evalmode.errors import ArtifactInvalid, LoadLimitExceeded, ProviderUnavailable, Uncertified
from evalmode.images.pixels import PixelContract, Pixels, decode_image
from evalmode.limits import LARGEST_BATCH, Limits
from evalmode.prediction import DEFAULT_TOP_K, Prediction, Score

log = logging.getLogger(__name__)

ORT_VERSION: str = ort.__version__  # of either distribution, onnxruntime or onnxruntime-gpu
LARGEST_ARTIFACT = 2**31 - 1  # bytes: protobuf's own limit, known before any is read
TYPE_NAMES = {"float32": "float", "float64": "double"}  # where onnxruntime's names are not numpy's
SIZES = {  # of the batches replayed at load
    "CPU": (LARGEST_BATCH,),
    "CUDA": tuple(range(1, LARGEST_BATCH + 1)),  # each has kernels of its own
}


TYPES = {f"tensor({TYPE_NAMES.get(name, name)})": np.dtype(name) for name in DTYPES}  # by onnxruntime's names


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a network.

    Attributes:
        name: the graph's.
        dtype: of its elements.
        shape: without the batch, which is the first axis; -1 where any size will do.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded artifact.

    Attributes:
        name: its name in the model repository, or the file's stem.
        version: its version there, or "".
        digest: ``sha256:`` and the hex digest of the file.
        manifest: what the file says about itself.
        provider: "CPU" or "CUDA", where the session really runs.
        batch_invariant: whether an image gets the same bits in any batch; measured at export and here.
        max_batch: the largest batch it may run in; 1 on the CPU where batches give other bits.
        session: the ONNX Runtime session; safe to call from several threads.
        row_s: seconds for each input that the last runs took.
    """

    name: str
    version: str
    digest: str
    manifest: Manifest
    provider: str
    batch_invariant: bool
    max_batch: int
    session: ort.InferenceSession
    row_s: deque[float] = field(default_factory=lambda: deque(maxlen=8), repr=False)

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network takes."""
        return tuple(map(_read_tensor, self.session.get_inputs()))

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """What the network answers with."""
        return tuple(map(_read_tensor, self.session.get_outputs()))

    def run(self, inputs: Tensors, options: ort.RunOptions | None = None) -> Tensors:
        """Run the network on a batch.

        Args:
            inputs: tensors by name, the batch along the first axis of each.
            options: by which another thread may end the run.
        """
        started = time.perf_counter()
        answer = self.session.run(None, dict(inputs), options)
        self.row_s.append((time.perf_counter() - started) / max(1, len(next(iter(inputs.values())))))
        return dict(zip((output.name for output in self.outputs), answer, strict=True))

    def expect_s(self, rows: int) -> float:
        """Seconds that a batch will hardly exceed: by the slowest but one of the last runs; at first, the replay's."""
        lately = sorted(self.row_s.copy())  # a copy: other threads add to it
        return rows * lately[-2] if len(lately) > 1 else 0.0

    def classify(self, batch_nhwc: Pixels) -> tuple[Floats, Floats]:
        """Run a classifier of images: uint8 (N, H, W, C) -> probabilities and logits, float32 (N, labels)."""
        answer = self.run({INPUT: batch_nhwc})
        return answer[PROBABILITIES], answer[LOGITS]

    def rank(self, probabilities: Floats, top_k: int) -> Iterator[tuple[str, float, int]]:
        """Label, probability and index of the ``top_k`` best of one row, highest first, ties by lowest index."""
        best = (-probabilities).argsort(kind="stable")[: top_k or DEFAULT_TOP_K]
        indices = best.tolist()
        return zip(map(self.manifest.labels.__getitem__, indices), probabilities[best].tolist(), indices, strict=True)

    def scores(self, probabilities: Floats, top_k: int) -> tuple[Score, ...]:
        """What ``rank`` finds."""
        return tuple(Score(*ranked) for ranked in self.rank(probabilities, top_k))

    def predict(
        self, image: bytes | str | PathLike[str], top_k: int = DEFAULT_TOP_K, limits: Limits | None = None
    ) -> Prediction:
        """Classify one image.

        Args:
            image: encoded bytes, or a path.
            top_k: labels, the likeliest first.
            limits: how large it may be; by default what a server takes.

        Raises:
            ImageError: the image cannot be decoded.
            OSError: the path cannot be read.
        """
        encoded = image if isinstance(image, bytes) else Path(image).read_bytes()
        started = time.perf_counter()
        pixels = decode_image(encoded, self.manifest.pixels, limits or Limits())
        decoded = time.perf_counter()
        probabilities, _ = self.classify(pixels[np.newaxis])
        inferred = time.perf_counter()
        return Prediction(
            scores=self.scores(probabilities[0], top_k),
            model=self.name,
            version=self.version,
            digest=self.digest,
            decode_us=round((decoded - started) * 1e6),
            wait_us=0,
            inference_us=round((inferred - decoded) * 1e6),
        )


def load_model(
    path: str | PathLike[str], *, name: str = "", examine: Callable[[bytes], object] | None = None, **options: Any
) -> Model:
    """Load an artifact from a file: see ``load_artifact``.

    Args:
        path: of the file.
        name: the model's name; the file's stem if none is given.
        examine: called with the file's bytes before they are loaded; what it raises refuses them.
        options: of ``load_artifact``.

    Raises:
        ArtifactInvalid, ProviderUnavailable: see ``load_artifact``.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > LARGEST_ARTIFACT:
            raise ArtifactInvalid(f"{size} bytes, protobuf reads at most {LARGEST_ARTIFACT}", size_bytes=size)
        artifact = path.read_bytes()
        if examine:
            examine(artifact)
        return load_artifact(artifact, name=name or path.stem, **options)
    except ProviderUnavailable:
        raise
    except (ArtifactInvalid, OSError) as error:
        kind, facts = (type(error), error.facts) if isinstance(error, ArtifactInvalid) else (ArtifactInvalid, {})
        raise kind(f"{path}: {error}", **facts) from error


def load_artifact(
    artifact: bytes,
    *,
    name: str = "",
    version: str = "",
    provider: str = "cpu",
    threads: int = 1,
    allow_uncertified: bool = False,
    arena: bool = True,
    replay_s: float | None = None,
) -> Model:
    """Load an artifact and prove that it is whole and answers as it did where it was certified.

    Args:
        artifact: the bytes of a ``model.onnx``.
        name: the model's name.
        version: its version in the model repository.
        provider: "cpu", "cuda" or "auto" (CUDA where it works, else the CPU).
        threads: threads that one inference may use.
        allow_uncertified: take a file that nobody vouches for; it is served one image at a time.
        arena: keep memory between two runs on the CPU: faster, and up to twice as much address space.
        replay_s: seconds that the replay may take.

    Raises:
        ArtifactInvalid: unreadable, not an artifact, changed, uncertified, or its answers are not the certificate's.
        ProviderUnavailable: CUDA was asked for and does not work here.
    """
    _, manifest = open_artifact(artifact)
    if manifest.certificate is None and not allow_uncertified:
        raise Uncertified("it has no certificate: certify it with 'evalmode certify', or use --allow-uncertified")
    try:
        session, chosen = _open_session(artifact, provider, threads, arena)
        model = Model(name, version, digest_file(artifact), manifest, chosen, False, 1, session)
        if not (model.inputs and model.outputs):  # their types and shapes are looked at here, not at the first request
            raise ArtifactInvalid("it has no inputs or no outputs")
        return replace(model, **_replay(model, replay_s))
    except (ProviderUnavailable, ArtifactInvalid):
        raise
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ArtifactInvalid(f"not a model that onnxruntime can load: {error}") from error


def _read_tensor(told: Any) -> Tensor:
    """What onnxruntime tells of an input or output.

    Raises:
        ArtifactInvalid: it is not numeric, or has no batch along its first axis.
    """
    batch, *shape = told.shape or [1]
    if told.type not in TYPES or isinstance(batch, int):
        raise ArtifactInvalid(
            f"{told.name} is {told.type} {told.shape}: numbers are served, with any number of them along the first axis"
        )
    return Tensor(told.name, TYPES[told.type], tuple(side if isinstance(side, int) else -1 for side in shape))


def _replay(model: Model, replay_s: float | None) -> dict[str, Any]:
    """Replay the certificate, which also warms the session; without one, hold outputs against labels.

    Returns:
        What was learned of ``batch_invariant`` and ``max_batch``.

    Raises:
        LoadLimitExceeded: that takes more than ``replay_s`` seconds.
    """
    certificate, image = model.manifest.certificate, model.manifest.image
    if certificate and image:
        certificate.check_decoder(image)
        certificate.check_labels(model.manifest.labels)
    options = ort.RunOptions()
    timer = threading.Timer(replay_s or 0, setattr, (options, "terminate", True))
    timer.daemon = True
    if replay_s:
        timer.start()
    run = partial(model.run, options=options)
    try:
        if certificate is None:
            if image:
                _check_outputs(run, len(model.manifest.labels), image)
            return {}
        tolerance = certificate.tolerance
        if model.provider != "CPU":  # another order of summation
            tolerance = max(tolerance, certificate.largest_tolerance)
        same = certificate.replay(run, tolerance, SIZES[model.provider])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        if options.terminate:
            raise LoadLimitExceeded(f"replaying it takes more than {replay_s:g} s") from error
        raise
    finally:
        timer.cancel()
    invariant = certificate.batch_invariant and same
    return {"batch_invariant": invariant, "max_batch": LARGEST_BATCH if invariant or model.provider == "CUDA" else 1}


def _check_outputs(run: Run, labels: int, image: PixelContract) -> None:
    """Run blank images, alone and as a batch; hold the outputs against the labels."""
    for images in (1, 2):
        answer = run({INPUT: np.zeros((images, *image.shape), np.uint8)})
        probabilities, logits = answer[PROBABILITIES], answer[LOGITS]
        if not probabilities.shape == logits.shape == (images, labels):
            raise ArtifactInvalid(f"{labels} labels but outputs of shape {probabilities.shape} and {logits.shape}")


def _open_session(artifact: bytes, provider: str, threads: int, arena: bool) -> tuple[ort.InferenceSession, str]:
    """Open a session on the provider that was asked for, never silently on another."""
    if provider != "cpu":
        try:
            return _open_cuda_session(artifact, threads), "CUDA"
        except ProviderUnavailable as error:
            if provider == "cuda":
                raise
            log.warning("provider auto: the CPU, because %s", error)
    return open_cpu_session(artifact, threads, arena=arena), "CPU"


def open_cpu_session(graph: bytes, threads: int = 1, optimise: bool = True, arena: bool = True) -> ort.InferenceSession:
    """Open a session on the CPU.

    Args:
        graph: the bytes of an ONNX file.
        threads: threads that one inference may use.
        optimise: False runs the graph node by node as it stands.
        arena: keep memory between two runs.
    """
    options = _session_options(threads)
    options.enable_cpu_mem_arena = arena
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _open_cuda_session(artifact: bytes, threads: int) -> ort.InferenceSession:
    """Open a session on CUDA alone; onnxruntime would fall back to the CPU without a word."""
    cuda = "CUDAExecutionProvider"
    if cuda not in ort.get_available_providers():
        raise ProviderUnavailable(
            "this onnxruntime is built without CUDA: install 'evalmode[serve-cuda]' in place of 'evalmode[serve]'"
        )
    ort.preload_dlls()
    missing = missing_cuda_library(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
    if missing:
        raise ProviderUnavailable(f"onnxruntime's CUDA provider does not load: {missing}", missing=missing)
    options = _session_options(threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(artifact, options, providers=[(cuda, {"use_tf32": "0"})])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ProviderUnavailable(f"onnxruntime opens no session on {cuda}: {error}") from error
    if session.get_providers()[0] != cuda:
        raise ProviderUnavailable(f"onnxruntime chose {session.get_providers()[0]} instead of {cuda}: no usable GPU?")
    return session


def missing_cuda_library(provider_library: Path) -> str | None:
    """What the dynamic loader says is missing for the CUDA provider or its driver; None if nothing is."""
    for library in (provider_library.with_name("libonnxruntime_providers_shared.so"), provider_library, "libcuda.so.1"):
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return str(error)
    return None


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle server uses no CPU
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked; else the bytes decide
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )  # holds no file
    return options
