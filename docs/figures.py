"""The tables of measured figures in the documents, each with a line that names the files that it is made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from docs import operating_figures as operating
from docs import serving_figures as serving
from docs import step_figures as steps
from docs import training_figures as training
from docs.results import cite

PERFORMANCE, ACCURACY = "docs/performance.md", "docs/accuracy.md"
REPORT = "docs/decisions/0027-report-of-photos.md"
# Document and name of a table: its function, and the results that it is made from.
MEASURED: dict[tuple[str, str], tuple[Callable[[], str], tuple[str, ...]]] = {
    (PERFORMANCE, "steps"): (steps.show_steps, ("train-step",)),
    (PERFORMANCE, "spins"): (steps.show_spins, ("train-step",)),
    (PERFORMANCE, "memory of steps"): (steps.show_memory, ("train-step",)),
    (PERFORMANCE, "export"): (training.show_export, ("export-time",)),
    (PERFORMANCE, "serving"): (serving.show_serving, ("serve",)),
    (PERFORMANCE, "scheduler"): (serving.show_scheduler, ("throughput", "throughput-native")),
    (PERFORMANCE, "photo serving"): (serving.show_photo_serving, ("photo-serving",)),
    (PERFORMANCE, "idle"): (serving.show_idle, ("serve-idle",)),
    (PERFORMANCE, "decoding"): (serving.show_decoding, ("decoding",)),
    ("docs/reference/images.md", "scaled accuracy"): (serving.show_scaled_accuracy, ("scaled-accuracy",)),
    ("docs/reference/images.md", "scaled decoding"): (serving.show_scaled_decoding, ("scaled-decoding",)),
    ("docs/how-to/containers.md", "containers"): (operating.show_containers, ("containers",)),
    ("docs/how-to/proxies.md", "proxies"): (operating.show_proxies, ("proxies",)),
    ("docs/scaling.md", "measured"): (operating.show_measured, ("containers",)),
    ("docs/scaling.md", "plans"): (operating.show_plans, ("containers",)),
    ("docs/reference/networks.md", "semantics"): (training.show_semantics, ("semantics",)),
    ("docs/training.md", "choosing"): (training.show_choosing, ("choosing",)),
    (ACCURACY, "ladder"): (training.show_ladder, ("ladder",)),
    (ACCURACY, "photos"): (partial(training.show_photos, "trashnet", training.TRASHNET), ("photos",)),
    (ACCURACY, "thumbnails"): (partial(training.show_photos, "cifar10-5000", training.CIFAR10), ("photos",)),
    (ACCURACY, "contestants"): (training.show_training, ("train",)),
    (ACCURACY, "lecture"): (training.show_lecture, ("lecture",)),
    (REPORT, "wrong labels"): (training.show_wrong_labels, ("doubts",)),
    (REPORT, "few images"): (training.show_few_images, ("doubts",)),
}


def make_table(document: str, name: str) -> str:
    """Make a table of figures, with the files behind it.

    Args:
        document: The document that it stands in.
        name: Its name there.
    """
    show, results = MEASURED[document, name]
    return show() + cite(document, *results)
