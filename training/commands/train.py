"""``evalmode train`` and ``evalmode report``: from labelled images to a run, and what it looks like."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.image_limits import image_limit_options
from serving.commands.output import Output, output_options
from serving.commands.paths import ExistingPath
from serving.limits import OWN_IMAGES, Limits
from training.commands.console import (
    cache_option,
    console,
    find_own_networks,
    import_torch,
    keep_memory,
    load_data,
    parse_size,
    progress,
    reload_data,
    set_up_consoles,
    warn,
)

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from training.checkpoint import Epoch
    from training.datasets import Dataset
    from training.ranks import Ranks
    from training.run import Run, RunConfig

EVENTS = ("loss", "train_accuracy", "val_accuracy", "val_loss", "learning_rate")  # for TensorBoard
BY_NETWORK = "the network's own"  # shown as the default of what each recipe decides


@click.command()
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="run folder to write, new or empty")
@click.option("--network", default="compact", help="compact, reference, or your own as package.module:function")
@click.option("--width", type=click.FloatRange(0.125, 16), default=1.0, help="factor of the number of filters")
@click.option(
    "--image-size",
    metavar="HxW",
    callback=parse_size,
    help="bring every image to this size; else all must have one size",
)
@click.option("--epochs", type=click.IntRange(1), show_default=BY_NETWORK, help="passes over the training images")
@click.option("--batch-size", type=click.IntRange(2), show_default=BY_NETWORK, help="images a step")
@click.option(
    "--learning-rate", type=click.FloatRange(0, 1e30, min_open=True), show_default=BY_NETWORK, help="at its peak"
)
@click.option("--weight-decay", type=click.FloatRange(0), show_default=BY_NETWORK, help="decoupled")
@click.option(
    "--dropout", type=click.FloatRange(0, 1, max_open=True), show_default=BY_NETWORK, help="share of units dropped"
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1, max_open=True),
    show_default=BY_NETWORK,
    help="share of the target spread over all labels",
)
@click.option(
    "--mirror/--no-mirror",
    default=None,
    show_default=BY_NETWORK + ", never for characters",
    help="train on mirror images, too: not where left and right make another label",
)
@click.option("--shift", type=click.IntRange(0), show_default=BY_NETWORK, help="move images by up to so many pixels")
@click.option("--balance", is_flag=True, help="weight the loss so that rare labels count as much as frequent ones")
@click.option("--skip-unreadable", is_flag=True, help="leave out the files that cannot be read, else they are an error")
@click.option(
    "--on-nonfinite",
    type=click.Choice(["stop", "backoff"]),
    default="stop",
    help="where a loss or gradient is NaN or infinite: stop, or halve the learning rate, at most three times",
)
@click.option("--resume", is_flag=True, help="go on with the run in --out after its last whole epoch")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="decides every random draw")
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]), default="auto", help="where to train")
@click.option("--report/--no-report", default=True, help="write report.html at the end")
@image_limit_options(OWN_IMAGES)
@cache_option
@output_options
def train(
    data: str,
    out: Path,
    network: str,
    image_size: tuple[int, int] | None,
    skip_unreadable: bool,
    on_nonfinite: str,
    resume: bool,
    seed: int,
    device: str,
    report: bool,
    max_image_bytes: int,
    max_image_pixels: int,
    cache: Path,
    output: Output,
    **overrides: float | bool | None,
) -> None:
    """Train a classifier on DATA.

    DATA is a folder of <class>/<image> files, an .npz, a CIFAR-10 archive or a folder of IDX files as published, or a
    name: digits, mnist, fashion-mnist, cifar10.

    In several processes: torchrun --nproc-per-node N -m training DATA ..., with the same options.
    """
    torch = import_torch()

    from training.networks import NETWORKS, count_multiply_adds, explain_errors
    from training.ranks import join_ranks
    from training.recipe import choose_recipe
    from training.run import RunConfig, claim_folder
    from training.train import check_ranks, choose_device, prepare_network

    place = choose_device(device)
    keep_memory()
    with join_ranks(place) as ranks:
        set_up_consoles(output, speaks=ranks.is_first)
        if ranks.is_first and not resume:
            claim_folder(out)
        find_own_networks()
        limits = Limits(max_image_bytes, max_image_pixels)
        dataset = load_data(data, image_size, seed, skip_unreadable, cache, limits)
        _print_dataset(dataset)
        recipe = choose_recipe(network, dataset, seed=seed, **overrides)
        check_ranks(ranks, recipe, dataset)
        config = RunConfig.of(dataset, image_size, skip_unreadable, recipe, limits)
        torch.manual_seed(seed)  # initial weights
        built = prepare_network(config.build_network(), dataset.train)
        if ranks.is_first and network not in NETWORKS:
            from training.trial import try_network  # what it imports for the export takes seconds

            try_network(network, built, config.shape, len(config.labels), warn, ranks.count > 1)
        with explain_errors(network, f"on {place.type}"):
            built = built.to(place)
            weights, cost = (
                sum(tensor.numel() for tensor in built.parameters()),
                count_multiply_adds(built, config.shape),
            )
        where = place.type if ranks.count == 1 else f"{place.type} in {ranks.count} processes"
        console.print(f"network   {network}, {weights:,} weights, {cost:,} multiply-adds an image, on {where}")
        run = _open_run(out, config, resume, ranks)
        try:
            with explain_errors(network, "in training"):
                result = _train(run, built, dataset, on_nonfinite == "backoff", ranks)
        except KeyboardInterrupt:
            console.print(
                f"\nstopped; the best weights so far are in {out}: evalmode export {out} ...; --resume goes on"
            )
            sys.exit(130)
        page = _write_report(run, dataset) if report and ranks.is_first else None
        if ranks.is_first:
            output.finish(_describe(run, dataset, result, page))


@click.command()
@click.argument("run", type=ExistingPath(file_okay=False, path_type=Path))
@click.option("--data", help="where the run's data lies now, if it moved")
@cache_option
@output_options
def report(run: Path, data: str | None, cache: Path, output: Output) -> None:
    """Write RUN/report.html: what the network learned, where it errs, and what its layers see."""
    import_torch()
    from training.run import Run

    set_up_consoles(output)
    find_own_networks()
    opened = Run.open(run)
    output.finish({"report": str(_write_report(opened, reload_data(opened, data, cache)))})


def _open_run(out: Path, config: RunConfig, resume: bool, ranks: Ranks) -> Run:
    """The run to train, which the first process makes or finds and all others are to agree with.

    Raises:
        RunError: another process was given other options or other data.
    """
    from training.run import Run

    begin = Run.resume if resume else Run.create
    run = begin(out, config) if ranks.is_first else Run(out, config)
    Run(out, ranks.ask_first(config)).check_same(config, f"process {ranks.number}")
    return run


def _train(run: Run, network: torch.nn.Module, dataset: Dataset, back_off: bool, ranks: Ranks) -> dict[str, Any]:
    """Train, and give the network its exact statistics.

    Returns:
        What came of it, as the last line of ``metrics.jsonl`` has it.
    """
    from training.evaluation import evaluate
    from training.run import BEST, EXACT, INITIAL
    from training.statistics import list_moved, list_norms, recompute_statistics
    from training.train import train as train_network

    console.print("epoch      loss  train acc  val acc  seconds", style="bold")
    events_of = _open_events(run.folder) if ranks.is_first else nullcontext()
    with progress() as bar, events_of as events, _interrupt_between_steps() as check_interrupt:
        task = bar.add_task("", total=None)

        def show_epoch(epoch: Epoch) -> None:
            figures = f"{epoch.loss:9.4f}  {epoch.train_accuracy:9.4f}  {epoch.val_accuracy:7.4f}  {epoch.seconds:7.1f}"
            bar.console.print(f"{epoch.epoch:5d} {figures}")
            for warning in epoch.warnings:
                warn(warning)
            if events:
                for name in EVENTS:
                    events.add_scalar(name, getattr(epoch, name), epoch.epoch)

        def show_step(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, description=f"loss {loss:.4f}")
            check_interrupt()

        best = train_network(run, network, dataset.train, dataset.val, show_step, show_epoch, warn, back_off, ranks)
    network.cpu()  # where float32 is float32: CUDA may round to TF32
    if ranks.is_first:
        run.load_weights(network)
    ranks.copy_first(network)
    moved = ranks.ask_first(
        list_moved(run.read_statistics(INITIAL), run.read_statistics(BEST)) if ranks.is_first else []
    )
    corrections = recompute_statistics(network, dataset.train, ranks, moved)
    val_accuracy, _ = evaluate(network, dataset.val, ranks)
    test_accuracy, _ = evaluate(network, dataset.test, ranks)
    exact = {"exact_val_accuracy": val_accuracy, "corrections": [asdict(one) for one in corrections]}
    result = {"best_epoch": best.epoch, **exact, "test_accuracy": test_accuracy}
    if ranks.is_first:
        run.save_weights(network, EXACT)
        run.append_metrics(result)
    _show_kept(list_norms(network).keys(), set(moved), len(corrections))
    exactly = f", with exact statistics {val_accuracy:.4f}" if corrections else ""
    console.print(f"best      epoch {best.epoch}, val {best.val_accuracy:.4f}{exactly}")
    _warn_of_choice(best.val_accuracy, val_accuracy, len(dataset.val))
    console.print(f"test      {test_accuracy:.4f} ({len(dataset.test)} images, read once)")
    console.print(f"run       {run.folder}: evalmode export {run.folder} --repository models --name NAME")
    return result


def _show_kept(norms: Collection[str], moved: set[str], recomputed: int) -> None:
    """Say how many batch norm layers keep their moving statistics, and why.

    Args:
        norms: The names of all batch norm layers.
        moved: Those whose statistics changed in training.
        recomputed: How many have exact statistics now.
    """
    still = sum(name not in moved for name in norms)
    for count, why in (
        (still, "training did not move them"),
        (len(norms) - still - recomputed, "the network runs them more than once, or they share them"),
    ):
        if count:
            console.print(f"kept      the moving statistics of {count} of {len(norms)} batch norm layers: {why}")


def _warn_of_choice(chosen_by: float, exact: float, images: int) -> None:
    """Warn where the weights that are exported validate otherwise than those that the epoch was chosen by.

    Args:
        chosen_by: Accuracy on validation images, by sampled statistics.
        exact: The same, by exact statistics.
        images: How many there are.
    """
    from serving.proof.figures import wilson_interval

    least, greatest = wilson_interval(round(chosen_by * images), images)
    if not least <= exact <= greatest:
        warn(
            f"the epoch was chosen by {chosen_by:.4f} on validation images, which is {least:.4f} to {greatest:.4f} "
            f"with 95% confidence; the weights that are exported reach {exact:.4f}"
        )


def _describe(run: Run, dataset: Dataset, result: dict[str, Any], page: Path | None) -> dict[str, Any]:
    """A training as JSON values."""
    config = run.config
    return {
        "run": str(run.folder),
        "data": {
            "source": dataset.source,
            "digest": config.data_digest,
            "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
            "labels": list(config.labels),
            "pixels": list(config.shape),
            "warnings": list(dataset.warnings),
        },
        "recipe": asdict(config.recipe),
        **result,
        "report": str(page) if page else None,
    }


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], None]]:
    """Ctrl-C stops where the function given is called next; a second one at once.

    Raised in the middle of an event that is written, KeyboardInterrupt can leave a lock held that closing waits for.
    """
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _open_events(folder: Path) -> AbstractContextManager[SummaryWriter | None]:
    """TensorBoard's event file, where tensorboard is installed."""
    from training.networks import explain

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return nullcontext()
    except Exception as error:  # of another build, say, or for another protobuf
        warn(f"no events for TensorBoard, which is installed and cannot be imported: {explain(error)}")
        return nullcontext()
    try:
        return SummaryWriter(folder)
    except UnicodeEncodeError:
        warn(f"no events for TensorBoard, which takes no folder whose name is not UTF-8: {folder}")
        return nullcontext()


def _write_report(run: Run, dataset: Dataset) -> Path:
    from training.networks import explain_errors
    from training.report.page import write_report
    from training.run import BEST, EXACT

    # Built anew: how the trained one lies in memory would show in the last digits.
    network = run.load_network(EXACT if run.has_weights(EXACT) else BEST)
    with explain_errors(run.config.recipe.network, "while the report is written"):
        path = write_report(run, network, dataset)
    console.print(f"report    {path}")
    return path


def _print_dataset(dataset: Dataset) -> None:
    shape = dataset.contract
    counts = ", ".join(f"{len(getattr(dataset, name)):,} {name}" for name in ("train", "val", "test"))
    console.print(f"data      {dataset.source}: {counts}; {len(dataset.labels)} labels")
    console.print(
        f"pixels    {shape.height}x{shape.width}, {'RGB' if shape.channels == 3 else 'grey'}, scaled to [-1, 1]"
    )
