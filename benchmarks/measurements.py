"""What the published results are measured with: the commands of each, what they need, and about how long they take.

In the arguments, a name in braces stands for an input (``benchmarks/inputs.py``), or for ``plot``, the PNG beside the
result. Commands of one result are run in turn and continue the same file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.processes import ROOT

PLOT = "plot"
WORKERS = "--workers 2"


@dataclass(frozen=True)
class Measurement:
    """A result, and how it is made.

    Attributes:
        module: The benchmark, below ``benchmarks``.
        minutes: About how long it takes on two cores.
        arguments: The arguments of each command, without ``--out``.
        programs: Programs that must be installed.
    """

    module: str
    minutes: float
    arguments: tuple[str, ...] = ("",)
    programs: tuple[str, ...] = ()

    def list_inputs(self) -> tuple[str, ...]:
        """List the names of its inputs."""
        return tuple(dict.fromkeys(re.findall(r"{(?!plot)(\w+)}", " ".join(self.arguments))))

    def list_arguments(self, values: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """List the words of each command's arguments.

        Args:
            values: The words that each input stands for, and ``plot``.
        """
        return [
            [part for word in shlex.split(text) for part in (values[word[1:-1]] if word.startswith("{") else [word])]
            for text in self.arguments
        ]

    def judges(self) -> bool:
        """Whether exit code 1 says that a requirement is not met, with a result that is complete."""
        path = ROOT / "benchmarks" / f"{self.module.replace('.', '/')}.py"
        return re.search(r"exit(?: code)? 1 if", path.read_text(), re.IGNORECASE) is not None


def measure_transports(name: str, module: str, minutes: float, options: str = "") -> dict[str, Measurement]:
    """List a result for each transport.

    Args:
        name: What the names of the results begin with.
        module: The benchmark.
        minutes: About how long one of them takes.
        options: Further arguments.
    """
    return {
        f"{name}-{transport}": Measurement(module, minutes, (f"--transport {transport} {options}".strip(),))
        for transport in ("grpcio", "native")
    }


PHOTOS = (
    "{trashnet} --part default --part head --part few",
    "{trashnet} --part plain --seeds 1",
    "{cifar10} --subset 5000 --network efficientnet-lite0 --compact-size 32x32 --part default --part plain"
    " --part compact --seeds 1 --plot {plot}",
)
IDLE = '--rounds 1 --seconds 1 --idle 60 --only "native fp32" "grpcio fp32"'
EMULATOR = "qemu-x86_64 -E OPENBLAS_CORETYPE=Nehalem -cpu Nehalem"  # OpenBLAS takes the processor for a newer one
MEASUREMENTS: dict[str, Measurement] = {
    "activation-map": Measurement("speed.activation_map", 1, ("{artifact}",)),
    "containers": Measurement("speed.containers", 10, ("--image {image}",)),
    "decode-cost": Measurement("speed.decode_cost", 2),
    "decoding": Measurement("speed.decoding", 0.5),
    "export-time": Measurement("speed.export_time", 1, ("{run}",)),
    "hot-path": Measurement("speed.hot_path", 0.5),
    "many-photos": Measurement("speed.many_photos", 12, ("{trashnet} --train '--minutes 8'",)),
    "photo-serving": Measurement("speed.photo_serving", 3, ("{artifact} {photo}",)),
    "scaled-decoding": Measurement("speed.scaled_decoding", 2, ("--photo {photo} --rounds 25",)),
    "serve": Measurement("speed.serve", 25, ("--rounds 3 --seconds 2 --peer {peers}",), ("h2load",)),
    "serve-idle": Measurement("speed.serve", 4, (IDLE,), ("h2load",)),
    "throughput": Measurement("speed.throughput", 5, ("--before {before}",)),
    "throughput-native": Measurement("speed.throughput", 5, ("--before {before} --transport native",)),
    "train-step": Measurement("speed.train_step", 20),
    "worker-figures": Measurement("speed.worker_figures", 2),
    "choosing": Measurement("quality.choosing", 5, ("{trashnet} --image-size 64x64",)),
    "doubts": Measurement("quality.doubts", 15, ("{trashnet}",)),
    "drift": Measurement("quality.drift", 5, ("{cifar10}",)),
    "false-alarms": Measurement("quality.false_alarms", 45, (f'--qemu "{EMULATOR}"',), ("qemu-x86_64",)),
    "false-alarms-photos": Measurement("quality.false_alarms", 45, ("--heads {run} --runs {runs}",)),
    "ladder": Measurement("quality.ladder", 100, ("{cifar10}",)),
    "photos": Measurement("quality.photos", 60, PHOTOS),
    "ranks": Measurement("quality.ranks", 12, ("{cifar10}",)),
    "resizes": Measurement("quality.resizes", 10, ("{trashnet}",)),
    "scaled-accuracy": Measurement("quality.scaled_accuracy", 5, ("{artifact} {run}",)),
    "semantics": Measurement("quality.semantics", 60, ("{cifar10}",)),
    "train": Measurement("quality.train", 100, ("{cifar10} --keras-python {keras}",)),
    "lecture": Measurement("quality.train", 12, ("{cifar10} --contestants reference --seeds 0,",)),
    "damage": Measurement("soak.damage", 3),
    **measure_transports("drains", "soak.drains", 5),
    "hostile-files": Measurement("soak.hostile_files", 10, programs=("strace",)),
    **measure_transports("hot-swap", "soak.hot_swap", 40),
    **measure_transports("hot-swap-workers", "soak.hot_swap", 16, WORKERS),
    **measure_transports("mixed-workers", "soak.leaks", 2, f"{WORKERS} --requests 100000 --kind mixed"),
    "overload": Measurement("soak.overload", 25),
    "proxies": Measurement("soak.proxies", 5, programs=("nginx", "haproxy", "envoy")),
    **measure_transports("restarts", "soak.restarts", 9),
    **measure_transports("restarts-workers", "soak.restarts", 13, WORKERS),
    "resume-compact": Measurement("soak.resume", 10, ("--network compact",)),
    "resume-reference": Measurement("soak.resume", 5, ("--network reference",)),
    **measure_transports("strangers", "soak.strangers", 14, "--seconds 6"),
    **measure_transports("strangers-workers", "soak.strangers", 10, f"{WORKERS} --seconds 2"),
    **measure_transports("watches", "soak.watches", 5),
    **measure_transports("workers", "soak.workers", 4),
    "worst-images": Measurement("soak.worst_images", 3),
}
