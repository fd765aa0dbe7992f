"""Generates the tables of benchmarks/README.md: what each benchmark measures, what it takes, and its newest figures."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

from docs.tables import ROOT
from docs.tables.markdown import draw
from docs.tables.measured import newest
from docs.tables.measured.results import cite_inline, find_result, read_result

NOTHING = "nothing else"
TRASHNET = "photos in folders of labels, such as TrashNet"
ALARMS = "for `--qemu` qemu-user; for `--runs` finished runs"
CIFAR10 = "CIFAR-10 as folders of images"


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark beside its own documentation.

    Attributes:
        takes: About how long it takes with its defaults, on two cores.
        needs: What it needs beside a development environment.
        results: The names of its results, as for ``find_result``; none if no result was published.
        describe: Describes the newest results in a sentence.
    """

    takes: str
    needs: str
    results: tuple[str, ...] = ()
    describe: Callable[[newest.Results], str] = lambda results: ""


def both(name: str) -> tuple[str, str]:
    """List the results of both transports."""
    return f"{name}-grpcio", f"{name}-native"


PHOTOS = f"{TRASHNET}; 3 GB of disk"
SWAPS, RESTARTS = ((*both(name), *both(f"{name}-workers")) for name in ("hot-swap", "restarts"))
BENCHMARKS: dict[str, Benchmark] = {
    "speed.activation_map": Benchmark(
        "seconds", "an artifact with an activation map", ("activation-map",), newest.describe_map_cost
    ),
    "speed.containers": Benchmark("minutes", "the serving image", ("containers",), newest.describe_containers),
    "speed.decode_cost": Benchmark("minutes", NOTHING, ("decode-cost",), newest.describe_decode_memory),
    "speed.decoding": Benchmark("seconds", NOTHING, ("decoding",), newest.describe_decoding),
    "speed.export_time": Benchmark("seconds", "a finished run", ("export-time",), newest.describe_export),
    "speed.hot_path": Benchmark("seconds", NOTHING, ("hot-path",), newest.describe_hot_path),
    "speed.many_photos": Benchmark("minutes", PHOTOS, ("many-photos",), newest.describe_many_photos),
    "speed.photo_serving": Benchmark(
        "minutes", "an artifact for photos, a JPEG", ("photo-serving",), newest.describe_photo_serving
    ),
    "speed.scaled_decoding": Benchmark("minutes", "a photo", ("scaled-decoding",), newest.describe_scaled),
    "speed.scaling": Benchmark("no time", "figures of `evalmode bench --json`"),
    "speed.serve": Benchmark("an hour", "`h2load`; environments of the peers", ("serve",), newest.describe_serve),
    "speed.throughput": Benchmark(
        "minutes", "a checkout to compare with", ("throughput", "throughput-native"), newest.describe_throughput
    ),
    "speed.train_step": Benchmark("minutes", NOTHING, ("train-step",), newest.describe_steps),
    "speed.worker_figures": Benchmark("minutes", NOTHING, ("worker-figures",), newest.describe_worker_figures),
    "quality.choosing": Benchmark("minutes", "any data set", ("choosing",), newest.describe_choosing),
    "quality.doubts": Benchmark("minutes", TRASHNET, ("doubts",), newest.describe_doubts),
    "quality.drift": Benchmark("minutes", CIFAR10, ("drift",), newest.describe_drift),
    "quality.false_alarms": Benchmark(
        "an hour",
        ALARMS,
        ("false-alarms", "false-alarms-photos"),
        newest.describe_alarms,
    ),
    "quality.ladder": Benchmark("hours", CIFAR10, ("ladder",), newest.describe_ladder),
    "quality.photos": Benchmark("hours", TRASHNET, ("photos",), newest.describe_photos),
    "quality.ranks": Benchmark("minutes", CIFAR10, ("ranks",), newest.describe_ranks),
    "quality.resizes": Benchmark("minutes", TRASHNET, ("resizes",), newest.describe_resizes),
    "quality.scaled_accuracy": Benchmark(
        "minutes", "a finished run of photos and its artifact", ("scaled-accuracy",), newest.describe_scaled_accuracy
    ),
    "quality.semantics": Benchmark("an hour", CIFAR10, ("semantics",), newest.describe_semantics),
    "quality.train": Benchmark("hours", f"{CIFAR10}; an environment of Keras", ("train",), newest.describe_train),
    "soak.damage": Benchmark("minutes", NOTHING, ("damage",), newest.describe_damage),
    "soak.drains": Benchmark("minutes", NOTHING, both("drains"), newest.describe_drains),
    "soak.hostile_files": Benchmark("minutes", "`strace`", ("hostile-files",), newest.describe_hostile),
    "soak.hot_swap": Benchmark("minutes", NOTHING, SWAPS, newest.describe_failures),
    "soak.leaks": Benchmark("hours", NOTHING, both("mixed-workers"), newest.describe_leaks),
    "soak.overload": Benchmark("an hour", NOTHING, ("overload",), newest.describe_overload),
    "soak.proxies": Benchmark("minutes", "nginx, HAProxy, Envoy", ("proxies",), newest.describe_proxies),
    "soak.restarts": Benchmark("minutes", NOTHING, RESTARTS, newest.describe_failures),
    "soak.resume": Benchmark("minutes", NOTHING, ("resume-compact", "resume-reference"), newest.describe_resume),
    "soak.strangers": Benchmark(
        "an hour", NOTHING, (*both("strangers"), *both("strangers-workers")), newest.describe_strangers
    ),
    "soak.watches": Benchmark("minutes", NOTHING, both("watches"), newest.describe_watches),
    "soak.workers": Benchmark("minutes", NOTHING, both("workers"), newest.describe_workers),
    "soak.worst_images": Benchmark(
        "minutes", "for `--server` a running server", ("worst-images",), newest.describe_worst_images
    ),
}


def show_benchmarks(folder: str) -> str:
    """Show the benchmarks of a folder.

    Args:
        folder: ``speed``, ``quality`` or ``soak``.
    """
    rows = [
        (f"`{name}`", read_question(name), one.takes, one.needs, *show_newest(one))
        for name, one in BENCHMARKS.items()
        if name.startswith(folder + ".")
    ]
    return draw(("`python -m benchmarks.`", "question", "takes", "needs", "newest figures", "from"), rows)


def read_question(name: str) -> str:
    """Read what a benchmark measures from the first line of its documentation.

    Args:
        name: Its module below ``benchmarks``.
    """
    path = ROOT / "benchmarks" / f"{name.replace('.', '/')}.py"
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return first.rstrip(".").replace("``", "`")


def show_newest(benchmark: Benchmark) -> tuple[str, str]:
    """Describe the newest figures of a benchmark, and the files that they are from.

    Args:
        benchmark: The benchmark.
    """
    if not benchmark.results:
        return "not published", ""
    paths = [find_result(name) for name in benchmark.results]
    return benchmark.describe([read_result(path) for path in paths]), cite_inline("benchmarks/README.md", paths)
