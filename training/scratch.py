"""Train a new network: all of its weights, its exact batch norm statistics, and the result."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from evalmode.certification.metrics import wilson_interval
from training.callbacks import Callbacks, Outcome
from training.datasets import Dataset
from training.evaluation import evaluate
from training.events import train_with_events
from training.loop import Execution
from training.outcome import describe_outcome
from training.run import BEST, EXACT, INITIAL, Run
from training.run_metrics import Result, state_time
from training.statistics import list_moved, recompute_statistics


def fit_from_scratch(
    run: Run, network: nn.Module, dataset: Dataset, execution: Execution, callbacks: Callbacks
) -> Outcome:
    """Train a new network, compute its exact batch norm statistics, and measure the result.

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
    ranks = execution.ranks
    best = train_with_events(run, network, dataset.train, dataset.val, callbacks, execution)
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
    fixed = [asdict(one) for one in corrections]
    result = Result(best.epoch, val_accuracy, fixed, test_accuracy, finished=state_time())
    if ranks.is_first:
        run.save_weights(network, EXACT)
        run.metrics.append(asdict(result))
    outcome = describe_outcome(run, best, result, network, moved, dataset)
    callbacks.on_outcome(outcome)
    if warning := describe_choice(best.val_accuracy, val_accuracy, len(dataset.val)):
        callbacks.on_warning(warning)
    return outcome


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
