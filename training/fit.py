"""Train a network on a data set: from loading the data to the report."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import nn

from training.callbacks import SILENT, Callbacks, NetworkSummary, Outcome
from training.choice import choose_network
from training.datasets import Dataset, ReadOptions, survey_data
from training.errors import NetworkError
from training.interrupts import TrainingStopped
from training.loading import load_data
from training.loop import Execution, prepare_network
from training.networks import (
    NETWORKS,
    PretrainedNetwork,
    build_network,
    count_multiply_adds,
    explain_errors,
    get_architecture,
)
from training.options import AUTO, TrainOptions
from training.outcome import read_outcome
from training.plan import Plan, describe_plan, plan_recipe
from training.ranks import Ranks, check_ranks, join_ranks
from training.recipe import Recipe, choose_recipe
from training.run import BEST, EXACT, REPORT, Run, prepare_folder
from training.run_config import RunConfig
from training.scratch import fit_from_scratch
from training.stages import NONE, complete_recipe
from training.torch_runtime import choose_device, keep_memory
from training.transfer import fit_pretrained


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
        if ranks.is_first:
            prepare_folder(out, options.resume)
        else:
            callbacks = SILENT
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
        finished = ranks.broadcast(read_outcome(run, network, dataset) if ranks.is_first else None)
        if finished:
            callbacks.on_notice(f"the training of {out} is finished: there is nothing to resume")
            callbacks.on_outcome(finished)
        else:
            _train(run, network, dataset, Execution(options.on_nonfinite == "backoff", ranks), callbacks)
        if options.report and ranks.is_first:
            if finished and (path := run.folder / REPORT).exists():
                callbacks.on_report(path)
            else:
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


def _train(run: Run, network: nn.Module, dataset: Dataset, execution: Execution, callbacks: Callbacks) -> None:
    """Train the network of a run, and describe Ctrl-C and the errors of a user's network."""
    try:
        with explain_errors(run.config.recipe.network, "in training"):
            fit_run(run, network, dataset, execution, callbacks)
    except KeyboardInterrupt as error:
        kept = f"the best weights so far are in {run.folder}" if run.has_weights() else "no weights were learned yet"
        raise TrainingStopped(f"stopped; {kept}") from error


def fit_run(run: Run, network: nn.Module, dataset: Dataset, execution: Execution, callbacks: Callbacks) -> Outcome:
    """Train the network of a run and measure the result: a pretrained network in stages, any other one as a whole.

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
        return fit_pretrained(run, network, dataset, execution, callbacks)
    return fit_from_scratch(run, network, dataset, execution, callbacks)


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
