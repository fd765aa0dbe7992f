"""Which table stands in which document, and the drawings."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from docs.tables.architecture import draw_tree, find_arrows, show_decisions
from docs.tables.commands import show_commands
from docs.tables.conformance import show_conformance
from docs.tables.drawing import draw_packages
from docs.tables.errors import show_errors
from docs.tables.foreign import show_libraries, show_makers
from docs.tables.measured import operating, refusals, serving, steps, training
from docs.tables.measured.benchmarks import show_benchmarks
from docs.tables.measured.results import cite
from docs.tables.server import show_alerts, show_limits, show_memory, show_metrics, show_options, show_threads

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
    ("docs/training.md", "many photos"): (training.show_many_photos, ("many-photos",)),
    ("docs/training.md", "ranks"): (training.show_ranks, ("ranks",)),
    ("docs/security.md", "hostile files"): (refusals.show_hostile_files, ("hostile-files",)),
    ("docs/reference/artifact.md", "false alarms"): (refusals.show_false_alarms, ("false-alarms",)),
    ("docs/reference/artifact.md", "photos"): (refusals.show_false_alarms_of_photos, ("false-alarms-photos",)),
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


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/decisions/index.md", "decisions"): show_decisions,
    ("docs/explanation/architecture.md", "tree"): draw_tree,
    ("docs/how-to/sizing.md", "memory"): show_memory,
    ("docs/how-to/sizing.md", "threads"): show_threads,
    ("docs/how-to/monitoring.md", "alerts"): show_alerts,
    ("docs/reference/artifact.md", "libraries"): show_libraries,
    ("docs/reference/artifact.md", "makers"): show_makers,
    ("docs/reference/configuration.md", "options"): show_options,
    ("docs/reference/configuration.md", "limits"): show_limits,
    ("docs/reference/conformance.md", "conformance"): show_conformance,
    ("docs/reference/errors.md", "errors"): show_errors,
    ("docs/reference/metrics.md", "metrics"): show_metrics,
    ("docs/reference/options.md", "commands"): show_commands,
    **{("benchmarks/README.md", folder): partial(show_benchmarks, folder) for folder in ("speed", "quality", "soak")},
    **{place: partial(make_table, *place) for place in MEASURED},
}
DRAWINGS: dict[str, Callable[[], str]] = {"docs/images/packages.svg": lambda: draw_packages(find_arrows())}


def renew(document: str, text: str) -> str:
    """Replace the tables of a document.

    Args:
        document: Path of the document, relative to the repository.
        text: Its content.

    Returns:
        The content with every table as the code has it now.

    Raises:
        ValueError: The document does not have exactly one place for a table.
    """
    for name in (name for owner, name in TABLES if owner == document):
        places = re.findall(rf"<!-- table: {name} -->\n.*?<!-- end of table -->", text, re.DOTALL)
        if len(places) != 1:
            raise ValueError(f"{document} has {len(places)} places for the table {name!r}, expected 1")
        table = f"<!-- table: {name} -->\n{TABLES[document, name]()}<!-- end of table -->"
        text = text.replace(places[0], table)
    return text
