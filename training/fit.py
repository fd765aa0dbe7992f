"""Train a network on a data set: from loading the data to the report."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evalmode.certification.metrics import wilson_interval
from training.callbacks import SILENT, Callbacks, NetworkSummary, Outcome
from training.checkpoint import Epoch
from training.choice import choose_network
from training.datasets import Dataset, ReadOptions, Split, survey_data
from training.errors import NetworkError
from training.evaluation import evaluate
from training.interrupts import TrainingStopped, delay_interrupts
from training.loading import load_data
from training.loop import Execution, check_ranks, choose_device, prepare_network, train
from training.networks import (
    NETWORKS,
    PretrainedNetwork,
    build_network,
    count_multiply_adds,
    explain,
    explain_errors,
    get_architecture,
)
from training.options import AUTO, TrainOptions
from training.plan import Plan, describe_plan, plan_recipe
from training.ranks import Ranks, join_ranks
from training.recipe import Recipe, choose_recipe
from training.run import BEST, EXACT, INITIAL, Result, Run, claim_folder
from training.run_config import RunConfig
from training.stages import NONE, complete_recipe
from training.statistics import list_moved, list_norms, recompute_statistics
from training.torch_runtime import keep_memory
from training.transfer import fit_pretrained

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = ("loss", "train_accuracy", "val_accuracy", "val_loss", "learning_rate")  # for TensorBoard


def fit(data: str, out: Path, options: TrainOptions, callbacks: Callbacks) -> Run:
    """Train a classifier, evaluate it and write the report.

    Args:
        data: Path or name of the data set.
        out: Run folder; new or empty, unless the training is resumed.
        options: How to train.
        callbacks: Functions to call with the progress, in the first of several processes.

    Returns:
        The run.

    Raises:
        EvalmodeError: The data, the network or the folder cannot be used, or the training diverged.
        TrainingStopped: Ctrl-C was pressed.
    """
    started = time.perf_counter()
    device = choose_device(options.device)
    with keep_memory(), join_ranks(device) as ranks:
        if not ranks.is_first:
            callbacks = SILENT
        elif not options.resume:
            claim_folder(out)
        read = ReadOptions(skip_unreadable=options.skip_unreadable, limits=options.limits, labels=options.labels)
        choice = choose_network(options, survey_data(data, read))
        read = replace(read, image_size=choice.image_size, resize=choice.resize)
        dataset = load_data(data, read, options.seed, options.cache, callbacks)
        callbacks.on_data(dataset)
        recipe = choose_recipe(choice.network, dataset, **_list_overrides(options))
        check_ranks(ranks, recipe, dataset)
        network, weights = _build_network(recipe, dataset, options, ranks, callbacks)
        with explain_errors(recipe.network, f"on {device.type}"):
            network = network.to(device)
            summary = _summarise(network, recipe, dataset, ranks, choice.reason)
        callbacks.on_network(summary)
        recipe = _complete_recipe(recipe, network, dataset, options)
        if options.minutes is not None:
            plan = _plan(recipe, network, dataset, 60 * options.minutes - (time.perf_counter() - started), out, ranks)
            callbacks.on_notice(describe_plan(plan, isinstance(network, PretrainedNetwork), options.minutes))
            recipe = plan.recipe
        config = replace(
            RunConfig.of(dataset, read, recipe),
            weights=weights,
            minutes=options.minutes,
            wanted_epochs=options.epochs,
            wanted_stages=options.fine_tune,
        )
        run = _open_run(out, config, options.resume, ranks)
        try:
            with explain_errors(recipe.network, "in training"):
                fit_run(run, network, dataset, Execution(options.on_nonfinite == "backoff", ranks), callbacks)
        except KeyboardInterrupt as error:
            kept = f"the best weights so far are in {out}" if run.has_weights() else "no weights were learned yet"
            raise TrainingStopped(f"stopped; {kept}") from error
        if options.report and ranks.is_first:
            write_run_report(run, dataset, callbacks)
        return run


def _list_overrides(options: TrainOptions) -> dict[str, object]:
    """List the options that replace values of the recipe."""
    names = {one.name for one in fields(Recipe)} & {one.name for one in fields(TrainOptions)}
    return {name: getattr(options, name) for name in names - {"network", "fine_tune"}}


def _build_network(
    recipe: Recipe, dataset: Dataset, options: TrainOptions, ranks: Ranks, callbacks: Callbacks
) -> tuple[nn.Module, str]:
    """Build the network with its initial weights, and try it if it is the user's.

    Returns:
        The network, and the file of pretrained weights with its checksum; "" for none.
    """
    torch.manual_seed(recipe.seed)
    name, shape, labels = recipe.network, dataset.contract.shape, len(dataset.labels)
    network = build_network(name, shape, labels, recipe.width, recipe.dropout)
    weights = get_architecture(name).load_weights(network, name, options.weights)
    network = prepare_network(network, dataset.train)
    if ranks.is_first and name not in NETWORKS:
        from training.trial import try_network  # it imports the exporter, which takes seconds

        try_network(name, network, shape, labels, callbacks.on_warning, ranks.count > 1)
    return network, weights


def _complete_recipe(recipe: Recipe, network: nn.Module, dataset: Dataset, options: TrainOptions) -> Recipe:
    """Complete the recipe of a pretrained network, and check that of another one."""
    if isinstance(network, PretrainedNetwork):
        return complete_recipe(recipe, network, dataset, options)
    if options.fine_tune not in (AUTO, NONE):
        raise NetworkError(
            f"--fine-tune {options.fine_tune}: {recipe.network} has no pretrained stages, all of it is trained"
        )
    return recipe


def _plan(recipe: Recipe, network: nn.Module, dataset: Dataset, left_s: float, out: Path, ranks: Ranks) -> Plan:
    """Plan the training for the time that is left, or as it was planned when the run was started."""
    plan = Plan(recipe, True)
    if ranks.is_first and (out / "run.json").exists():
        before = Run.open(out).config.recipe
        plan = Plan(replace(recipe, views=before.views, epochs=before.epochs, fine_tune=before.fine_tune), True)
    elif ranks.is_first:
        plan = plan_recipe(recipe, network, dataset, left_s)
    return ranks.broadcast(plan)


def _summarise(network: nn.Module, recipe: Recipe, dataset: Dataset, ranks: Ranks, reason: str) -> NetworkSummary:
    weights = sum(tensor.numel() for tensor in network.parameters())
    device = next(network.parameters()).device.type
    multiply_adds = count_multiply_adds(network, dataset.contract.shape)
    return NetworkSummary(recipe.network, weights, multiply_adds, device, ranks.count, reason)


def _open_run(out: Path, config: RunConfig, resume: bool, ranks: Ranks) -> Run:
    """Create or resume the run in the first process, and compare the other processes with it.

    Raises:
        RunError: Another process has other options or other data.
    """
    begin = Run.resume if resume else Run.create
    run = begin(out, config) if ranks.is_first else Run(out, config)
    Run(out, ranks.broadcast(config)).check_same(config, f"process {ranks.number}")
    return run


def fit_run(run: Run, network: nn.Module, dataset: Dataset, execution: Execution, callbacks: Callbacks) -> Outcome:
    """Train the network of a run, compute its exact batch norm statistics, and measure the result.

    Args:
        run: The run, with its folder. It gets the weights, the figures and the result.
        network: The network with its initial weights, on the device to train on. It ends on the CPU with the best
            weights and exact statistics.
        dataset: The data set to train on.
        execution: How to run the training.
        callbacks: Functions to call with the progress.

    Returns:
        The outcome, as passed to ``on_outcome``.

    Raises:
        TrainingDiverged: A loss or a gradient is NaN or infinite.
    """
    if isinstance(network, PretrainedNetwork):

        def train_stages(train_maps: Split, val_maps: Split, head: Epoch) -> Epoch:
            started = replace(execution, initial=head)
            return _train_with_events(run, network, train_maps, val_maps, started, callbacks)

        return fit_pretrained(run, network, dataset, execution, callbacks, train_stages)
    ranks = execution.ranks
    best = _train_with_events(run, network, dataset.train, dataset.val, execution, callbacks)
    network.cpu()  # where float32 is exact; CUDA may round to TF32
    if ranks.is_first:
        run.load_weights(network)
    ranks.copy_first(network)
    moved = ranks.broadcast(
        list_moved(run.read_statistics(INITIAL), run.read_statistics(BEST)) if ranks.is_first else []
    )
    corrections = recompute_statistics(network, dataset.train, ranks, moved)
    val_accuracy, _ = evaluate(network, dataset.val, ranks)
    test_accuracy, _ = evaluate(network, dataset.test, ranks)
    result = Result(best.epoch, val_accuracy, [asdict(one) for one in corrections], test_accuracy)
    if ranks.is_first:
        run.save_weights(network, EXACT)
        run.append_metrics(asdict(result))
    norms = list_norms(network).keys()
    outcome = Outcome(run, best, result, len(norms), len(norms - set(moved)), len(dataset.val), len(dataset.test))
    callbacks.on_outcome(outcome)
    if warning := describe_choice(best.val_accuracy, val_accuracy, len(dataset.val)):
        callbacks.on_warning(warning)
    return outcome


def _train_with_events(
    run: Run,
    network: nn.Module,
    train_split: Split,
    val_split: Split,
    execution: Execution,
    callbacks: Callbacks,
) -> Epoch:
    """Train a network with events for TensorBoard; Ctrl-C takes effect between two steps."""
    events_of = _open_events(run.folder, callbacks) if execution.ranks.is_first else nullcontext()
    with events_of as events, delay_interrupts() as check_interrupt:

        def on_step(step: int, steps: int, loss: float) -> None:
            callbacks.on_step(step, steps, loss)
            check_interrupt()

        def on_epoch(epoch: Epoch) -> None:
            callbacks.on_epoch(epoch)
            for warning in epoch.warnings:
                callbacks.on_warning(warning)
            if events:
                for name in EVENTS:
                    events.add_scalar(name, getattr(epoch, name), epoch.epoch)

        heard = replace(callbacks, on_step=on_step, on_epoch=on_epoch)
        return train(run, network, train_split, val_split, heard, execution)


def _open_events(folder: Path, callbacks: Callbacks) -> AbstractContextManager[SummaryWriter | None]:
    """Open the event file of TensorBoard, if tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return nullcontext()
    except Exception as error:  # tensorboard of an incompatible build, or for another version of protobuf
        callbacks.on_warning(f"no events for TensorBoard, which is installed but cannot be imported: {explain(error)}")
        return nullcontext()
    try:
        return SummaryWriter(folder)
    except UnicodeEncodeError:
        callbacks.on_warning(f"no events for TensorBoard, which cannot use a folder whose name is not UTF-8: {folder}")
        return nullcontext()


def describe_choice(chosen_by: float, exact: float, images: int) -> str:
    """Describe a significant difference between the accuracy that chose the epoch and that of the exported weights.

    Args:
        chosen_by: Accuracy on the validation images with sampled statistics, which chose the epoch.
        exact: The same with exact statistics.
        images: Number of validation images.

    Returns:
        A warning; "" if the difference is not significant.
    """
    low, high = wilson_interval(round(chosen_by * images), images)
    if low <= exact <= high:
        return ""
    return (
        f"the epoch was chosen by {chosen_by:.4f} on validation images, which is {low:.4f} to {high:.4f} "
        f"with 95% confidence; the weights that are exported reach {exact:.4f}"
    )


def write_run_report(run: Run, dataset: Dataset, callbacks: Callbacks) -> Path:
    """Write ``report.html`` of a run.

    Args:
        run: A run with its best weights.
        dataset: The data set that it was trained on.
        callbacks: ``on_report`` is called.

    Returns:
        Path of the report.

    Raises:
        RunError: The run has no usable weights, or no epoch is complete.
        NetworkError: The code of the network fails, or has changed since the training.
    """
    from training.report.page import write_report  # it imports matplotlib, which takes seconds

    # A new network: the memory layout of the trained one would change the last digits.
    network = run.load_network(EXACT if run.has_weights(EXACT) else BEST)
    with explain_errors(run.config.recipe.network, "in the report"):
        path = write_report(run, network, dataset)
    callbacks.on_report(path)
    return path
