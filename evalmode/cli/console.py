"""What training's commands show alike: lines, progress bars, the data set."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from evalmode.cli.output import Output

if TYPE_CHECKING:
    from evalmode.limits import Limits
    from training.datasets import Dataset
    from training.run import Run

# Read when torch is imported, on Linux: how long its threads spin while they wait for each other. The default is thirty
# times longer; where cores have other work to do, that costs many times the training itself: docs/performance.md.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)

PLAIN = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}  # paths and labels as they are
console = Console(**PLAIN)  # type: ignore[arg-type]
alerts = Console(**PLAIN)  # type: ignore[arg-type]  # for warnings, which --quiet does not keep back


def _find_cache() -> Path:
    import platformdirs  # the bare install has none

    return platformdirs.user_cache_path("evalmode")


cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=_find_cache,
    show_default="the user's cache folder for evalmode",
    help="where published data sets are kept, as CACHE/NAME/<files>; what is missing is downloaded there",
)


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """HxW as (height, width).

    Raises:
        click.BadParameter: it is something else.
    """
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HxW, such as 32x32")
    return int(match[1]), int(match[2])


def set_up_consoles(output: Output, speaks: bool = True) -> None:
    """Lines go to standard output, or to standard error beside ``--json``; ``--quiet`` leaves the warnings.

    Args:
        output: what the user asked for.
        speaks: False in all processes of a training but the first.
    """
    console.stderr = output.as_json
    console.quiet = output.quiet or not speaks
    alerts.stderr = output.as_json or output.quiet
    alerts.quiet = not speaks


def warn(warning: str) -> None:
    """Say what a user should know of."""
    alerts.print(f"warning   {warning}", style="yellow")


def keep_memory() -> None:
    """Have glibc keep what is freed for the next step, which takes as much again: docs/performance.md.

    By default large arrays go back to the system, and every page of the next ones costs a fault.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_MAX, 0)


def import_torch() -> ModuleType:
    """Import torch, which may be there and not work.

    Raises:
        TorchUnusable: importing it fails.
        ModuleNotFoundError: it, or what it needs, is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a missing library, another build, another Python: each raises something else
        from training.errors import TorchUnusable

        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TorchUnusable(
            f"torch is installed and cannot be imported: {said}. Install it again: pip install --force-reinstall torch"
        ) from error
    return torch


def find_own_networks() -> None:
    """Let ``--network package.module:function`` name a module in the working directory, as ``python -m`` would."""
    sys.path.insert(0, str(Path.cwd()))


def load_data(
    source: str,
    image_size: tuple[int, int] | None,
    seed: int,
    skip_unreadable: bool,
    cache: Path,
    limits: Limits,
) -> Dataset:
    """Load a data set behind a progress bar, and say what it warns of.

    Args:
        source: a path or a name.
        image_size: (height, width) to bring images to.
        seed: decides which images are carved.
        skip_unreadable: leave out files that cannot be read.
        cache: where a name's files lie.
        limits: how large an image may be.

    Raises:
        DataError: it cannot be used as it is.
    """
    from training.datasets import ReadOptions, load_dataset

    with progress() as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        options = ReadOptions(image_size, skip_unreadable, limits)
        dataset = load_dataset(source, options, seed, cache=cache, progress=show)
    for warning in dataset.warnings:
        warn(warning)
    return dataset


def reload_data(run: Run, data: str | None, cache: Path) -> Dataset:
    """Load what a run was trained on again, from where it lies now.

    Raises:
        DataError: it cannot be loaded.
        RunError: it is something else by now.
    """
    from training.errors import RunError

    config = run.config
    dataset = load_data(
        data or config.data, config.image_size, config.recipe.seed, config.skip_unreadable, cache, config.limits
    )
    if dataset.digest() != config.data_digest:
        raise RunError(
            f"{dataset.source} is not what {run.folder} was trained on: its digest differs; give --data or train again"
        )
    return dataset


def progress() -> Progress:
    """A progress bar that is shown on a terminal and nowhere else."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal or console.quiet)
