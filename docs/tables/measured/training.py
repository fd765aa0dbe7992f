"""Tables of measured figures about training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean, median
from typing import Any

from benchmarks.quality.photo_standings import estimate_seconds, pool
from docs.tables.markdown import draw
from docs.tables.measured.results import find_result, read_result


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
    (run,) = read_result(find_result("lecture"))["runs"]
    rows = [
        (
            epoch["epoch"],
            *(f"{epoch[name]:.4f}" for name in ("loss", "train_accuracy", "val_accuracy")),
            f"{epoch['seconds']:.0f}",
        )
        for epoch in run["epochs"]
    ]
    epochs = draw(("epoch", "loss", "train accuracy", "validation accuracy", "seconds"), rows)
    accuracy, seconds = run["test_accuracy"], run["seconds"]
    return f"{epochs}\nThe artifact has a test accuracy of {accuracy:.4f}, after {seconds:,.0f} s in all.\n"


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


def show_choosing() -> str:
    """Show what the statistics of a sample cost, and how close they are to the exact ones."""
    result = read_result(find_result("choosing"))
    epochs, images = result["epochs"], result["images"]["train"]
    sampled, moving = (mean(abs(one[way] - one["exact"]) for one in epochs) for way in ("sampled", "moving"))
    return (
        f"{result['chosen']['share_of_time']:.1%} of the time of a training with {images:,} photos. The validation "
        f"accuracy differs from that of the exact statistics by {100 * sampled:.1f} percentage points, and by "
        f"{100 * moving:.1f} with the moving averages: means over {len(epochs)} epochs.\n"
    )


def show_ranks() -> str:
    """Show trainings in one process and in two."""
    runs = read_result(find_result("ranks"))["trainings"]
    by_count = {
        count: sorted((run for run in runs if run["processes"] == count), key=lambda run: run["seed"])
        for count in (1, 2)
    }
    rows = [
        (
            count,
            ", ".join(f"{run['test_accuracy']:.4f}" for run in found),
            *(f"{median(run[name] for run in found):.1f} s" for name in ("seconds", "epoch_seconds")),
        )
        for count, found in by_count.items()
    ]
    apart = max(run["statistics_differ"] for run in by_count[2])
    head = ("processes", "test accuracy of each seed", "training, median", "an epoch, median")
    return draw(head, rows) + (
        f"\nThe exact statistics of two processes differ by at most {apart:.1e} from those of one process with the "
        "same weights.\n"
    )


def show_many_photos() -> str:
    """Show what loading many photos and training on them needs."""
    one = read_result(find_result("many-photos"))
    trained = one["training"]
    height, width, _ = one["shape"]
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in trained["stages"].items())
    return (
        f"{sum(one['images'].values()):,} photos at {height}x{width} have {one['pixels_bytes'] / 1e9:.1f} GB of "
        f"pixels. Loading them took {one['loading_s']:.0f} s ({one['loading_cpu_s']:.0f} s of CPU time), with at most "
        f"{one['peak_resident_bytes'] / 1e9:.2f} GB resident, then and in a pass in random order. A training with "
        f"`{trained['options']}` had at most {trained['peak_resident_bytes'] / 1e9:.1f} GB resident. It took "
        f"{trained['seconds']:.0f} s: {stages}.\n"
    )


def show_export() -> str:
    """Show what an export takes."""
    one = read_result(find_result("export-time"))
    more = one["bytes_above_weights"]
    return f"{one['wall_s']:.0f} s; the artifact is {more / 1e3:.0f} kB larger than its weights.\n"


def spread(values: Iterable[float], pattern: str = "{:.3f}") -> str:
    """Show the mean of values, and their range in brackets.

    Args:
        values: The values.
        pattern: The format of each number.
    """
    found = list(values)
    middle, least, most = (pattern.format(value) for value in (mean(found), min(found), max(found)))
    return middle if len(found) == 1 else f"{middle} ({least} to {most})"
