"""Generates the tables of measured figures, each with a line that names the files that it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean, median
from typing import Any

from benchmarks.quality.photo_standings import estimate_seconds, pool
from docs.results import cite, draw, find_result, read_result, spread

Row = tuple[object, ...]

CONTESTANTS = {
    "native fp32": "`--transport native`, fp32",
    "native int8": "native, int8",
    "native fp32, 2 workers": "native, 2 workers",
    "native JPEG": "native, JPEG",
    "native ModelInfer": "native, ModelInfer",
    "grpcio fp32": "`--transport grpcio`, fp32",
    "grpcio int8": "grpcio, int8",
    "grpcio fp32, 2 workers": "grpcio, 2 workers",
    "grpcio JPEG": "grpcio, JPEG",
    "grpcio ModelInfer": "grpcio, ModelInfer",
    "mlserver": "MLServer {}",
    "kserve": "KServe SDK {}",
    "pytriton": "PyTriton {}",
    "mosec": "mosec {} (HTTP, one process per core)",
}
# Those of results that do not record them.
VERSIONS = {"mlserver": "1.7.1", "kserve": "0.21.0", "pytriton": "0.7.0", "mosec": "0.9.6"}
UNKNOWN_PROCESSES = ("mlserver",)  # a process that outlives the one that was started answers


def show_serving() -> str:
    """Show servers compared with ONNX Runtime alone."""
    result = read_result(find_result("serve"))
    summary, versions = result["summary"], dict(VERSIONS)
    versions |= {name: peer["version"] for name, peer in result.get("peers", {}).items()}
    rows = [
        describe_contestant(label.format(versions.get(name, "")), name, summary[name])
        for name, label in CONTESTANTS.items()
        if name in summary
    ]
    loads = ("1 in flight", "8 in flight", "32 in flight", "32 in flight, 8 connections")
    return draw(("", "start", *loads, "CPU time per request"), rows)


def describe_contestant(label: str, name: str, figures: Mapping[str, Any]) -> Row:
    """Describe a server by its medians."""
    one, eight, many, spread_out = (
        figures[load] for load in ("1 in flight", "8 in flight", "32 in flight", "32 in flight, 8 connections")
    )
    is_known = name not in UNKNOWN_PROCESSES
    return (
        label,
        f"{figures['start_s']['median']:.2f} s" if is_known else "",
        f"{one['p50_ms']['median']:.2f} ms",
        f"{eight['rate']['median']:,.0f}/s",
        *(f"{load['rate']['median']:,.0f}/s, {load['of_raw']['median']:.2f}" for load in (many, spread_out)),
        f"{many['server_cpu_us']['median']:.0f} us" if is_known else "",
    )


def show_scheduler() -> str:
    """Show the cost of a request before and after the scheduler that both transports share."""
    rows = [
        (
            f"{transport}, {kind}",
            *(f"{value:,.0f} us" for value in one["cpu_us"]),
            *(f"{value:,.0f}" for value in one["answers_per_s"]),
            f"{one['answers_per_s_ratio']:.2f} ({' to '.join(f'{b:.2f}' for b in one['answers_per_s_interval'])})",
        )
        for transport, name in (("grpcio", "throughput"), ("native", "throughput-native"))
        for kind, one in read_result(find_result(name))["kinds"].items()
    ]
    return draw(("", "CPU time per request, before", "after", "answers per second, before", "after", "ratio"), rows)


def show_scaled_decoding() -> str:
    """Show what scaled decoding of a JPEG takes."""
    rows = [
        (
            name,
            f"{row['bytes'] / 1024:,.0f} KiB",
            f"{row['plain_cpu_ms']:.1f} ms",
            f"{row['scaled_cpu_ms']:.1f} ms",
            f"{row['ratio']:.2f}",
            f"{row['library_cpu_ms']:.1f} ms",
            f"{row['floor']:.2f}",
        )
        for name, row in read_result(find_result("scaled-decoding"))["rows"].items()
    ]
    return draw(("JPEG", "size", "every pixel", "scaled", "ratio", "of it libjpeg-turbo", "floor"), rows)


def show_semantics() -> str:
    """Show the accuracy of the lecture's CNN with the settings of Keras and of torch."""
    runs = read_result(find_result("semantics"))["trainings"]
    labels = {"keras": "all of Keras' semantics: `reference`", "torch": "all of torch's defaults"}
    names = ("test_accuracy", "val_accuracy", "first_epoch_val_accuracy")
    rows = [
        (
            labels.get(variant, variant),
            *(spread(run[name] for run in runs if run["variant"] == variant) for name in names),
        )
        for variant in dict.fromkeys(run["variant"] for run in runs)
    ]
    return draw(("", "test accuracy", "validation, best epoch", "validation, first epoch"), rows)


def show_ladder() -> str:
    """Show what each part of the compact network and its recipe contributes, the least useful one last."""
    runs = read_result(find_result("ladder"))["runs"]
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], []).append(run)
    base = {run["seed"]: run["val_accuracy"] for run in by_variant["compact"]}
    rows = []
    for variant, found in sorted(by_variant.items(), key=lambda item: mean(run["val_accuracy"] for run in item[1])):
        values = [100 * run["val_accuracy"] for run in found]
        gains = [100 * (run["val_accuracy"] - base[run["seed"]]) for run in found]
        compared = (f"{mean(gains):+.2f}", ", ".join(f"{gain:+.2f}" for gain in gains))
        rows.append(
            (
                "**`compact`**" if variant == "compact" else variant,
                f"{mean(values):.2f}",
                f"{min(values):.2f} to {max(values):.2f}",
                *(("", "") if variant == "compact" else compared),
                f"{100 * mean(run['val_accuracy_mirrored'] for run in found):.2f}",
            )
        )
    return draw(("", "validation", "minimum to maximum", "relative to `compact`, mean", "by seed", "both views"), rows)


TRASHNET = {
    "default": "no option, {} seeds",
    "head": "`--fine-tune none`, {} outer folds",
    "few": "20 photos of each label, `--fine-tune none`, {} draws",
    "plain": "a plain loop that fine-tunes the whole network for two epochs, one seed",
}
CIFAR10 = {
    "default": "`--network efficientnet-lite0`, at 224x224",
    "compact": "`compact`, from scratch, at 32x32",
    "plain": "the plain loop, two epochs at 224x224",
}


def show_photos(data: str, labels: Mapping[str, str]) -> str:
    """Show the accuracy of classifiers of photos, and the time from start to report.

    Args:
        data: The data set.
        labels: The first cell of each part; {} stands for its number of runs.
    """
    runs = [run for run in read_result(find_result("photos"))["runs"] if run["data"] == data]
    rows = []
    for part, label in labels.items():
        found = [run for run in runs if run["part"] == part]
        images, _, (low, high) = pool(found)
        seconds = list(map(estimate_seconds, found))
        slowest = f" (at most {max(seconds):.0f} s)" if len(found) > 1 else ""
        accuracy = spread(run["accuracy"] for run in found)
        took = f"{median(seconds):.0f} s{slowest}"
        rows.append((label.format(len(found)), accuracy, f"{low:.3f} to {high:.3f}", f"{images:,}", took))
    return draw(("", "test accuracy", "95% interval", "test images", "from start to report"), rows)


LEARNERS = {
    "compact": "`compact`",
    "reference": "`reference`, the lecture's CNN",
    "keras": "the same in Keras 3 on TensorFlow",
    "dense": "the lecture's dense network",
}


def show_training() -> str:
    """Show accuracy and cost of the contestants of benchmarks/quality/train.py."""
    summary = read_result(find_result("train"))["summary"]

    def show(figures: Mapping[str, float] | None, pattern: str) -> str:
        if figures is None:
            return ""
        middle, least, most = (pattern.format(figures[name]) for name in ("mean", "min", "max"))
        return middle if least == most else f"{middle} ({least} to {most})"

    rows = [
        (
            label,
            show(summary[name]["test_accuracy"], "{:.3f}"),
            show(summary[name].get("mirrored_accuracy"), "{:.3f}"),
            show(summary[name]["seconds"], "{:.0f}"),
            "1" if name == "keras" else show(summary[name].get("seconds_of_keras"), "{:.2f}"),
            f"{summary[name]['peak_bytes']['mean'] / 1e9:.2f} GB",
            f"{summary[name]['multiply_adds']:,}",
        )
        for name, label in LEARNERS.items()
        if name in summary
    ]
    head = ("test accuracy", "both views", "seconds", "relative to Keras", "peak memory", "multiply-adds")
    return draw(("", *head), rows)


def show_lecture() -> str:
    """Show the epochs of the lecture's recipe."""
    rows = [
        (
            epoch["epoch"],
            *(f"{epoch[name]:.4f}" for name in ("loss", "train_accuracy", "val_accuracy")),
            f"{epoch['seconds']:.0f}",
        )
        for epoch in read_result(find_result("lecture"))["epochs"]
    ]
    return draw(("epoch", "loss", "train accuracy", "validation accuracy", "seconds"), rows)


def show_wrong_labels() -> str:
    """Show how well wrong labels are found."""
    shares = ("precision_20", "precision_50", "precision_100", "recall", "recall_100")
    rows = [
        (
            f"{row['flipped']:.0f} ({row['share']:.0%})",
            f"{row['listed']:.0f}",
            *(f"{row[name]:.0%}" if name in row else "" for name in shares),
            f"{row['false_alarms']:.1%}",
            f"{row['suggestion_right']:.0%}" if "suggestion_right" in row else "",
        )
        for row in read_result(find_result("doubts"))["wrong_labels"]
    ]
    head = ("replaced", "listed", "precision at 20", "at 50", "at 100", "recall", "recall of the first 100")
    return draw((*head, "false alarms", "suggestion"), rows)


def show_few_images() -> str:
    """Show the accuracy that is cross-validated on few images."""
    rows = [
        (
            row["images"],
            *(f"{row[name]:.3f}" for name in ("accuracy", "cross_validated")),
            f"{100 * row['width']:.0f} points",
            f"{20 * row['covered']:.0f} of 20",
            f"{100 * row['width_of_tenth']:.0f} points",
            f"{20 * row['covered_by_tenth']:.0f} of 20",
        )
        for row in read_result(find_result("doubts"))["accuracy"]
    ]
    head = ("images", "accuracy", "cross-validated", "its interval: width", "holds")
    return draw((*head, "interval of a tenth as test images: width", "holds"), rows)


PERFORMANCE, TRAINING = "docs/performance.md", "docs/training.md"
REPORT = "docs/decisions/0027-report-of-photos.md"
# Document and name of a table: its function, and the results that it is made from.
MEASURED: dict[tuple[str, str], tuple[Callable[[], str], tuple[str, ...]]] = {
    (PERFORMANCE, "serving"): (show_serving, ("serve",)),
    (PERFORMANCE, "scheduler"): (show_scheduler, ("throughput", "throughput-native")),
    ("docs/architecture.md", "scaled decoding"): (show_scaled_decoding, ("scaled-decoding",)),
    (TRAINING, "semantics"): (show_semantics, ("semantics",)),
    (TRAINING, "ladder"): (show_ladder, ("ladder",)),
    (TRAINING, "photos"): (partial(show_photos, "trashnet", TRASHNET), ("photos",)),
    (TRAINING, "thumbnails"): (partial(show_photos, "cifar10-5000", CIFAR10), ("photos",)),
    (TRAINING, "contestants"): (show_training, ("train",)),
    (TRAINING, "lecture"): (show_lecture, ("lecture",)),
    (REPORT, "wrong labels"): (show_wrong_labels, ("doubts",)),
    (REPORT, "few images"): (show_few_images, ("doubts",)),
}


def make_table(document: str, name: str) -> str:
    """Make a table of figures, with the files behind it.

    Args:
        document: The document that it stands in.
        name: Its name there.
    """
    show, results = MEASURED[document, name]
    return show() + cite(document, *results)
