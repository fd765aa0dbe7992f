"""The plan of a training that has a time limit: a short measurement of the machine decides views and epochs.

The plan is made once, at the start of a run. It is part of the recipe in ``run.json``, and a resumed training follows
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.datasets import Dataset
from training.features import BATCH, open_backbone
from training.networks import PretrainedNetwork, lay_out, make_inputs
from training.recipe import Recipe
from training.untouched import untouched

MEASURED = 3  # runs, of which the fastest counts: the first one allocates memory
RESERVE = 1.3  # factor of the measured times: other processes come and go
REPORT_S = 20.0  # for the evaluation, the report and the files
# Views and epochs of fine-tuning, the best first; the last two train the head alone. A single epoch is not among them:
# its learning rate would fall as soon as it has risen.
PLANS = ((6, 8), (4, 8), (2, 8), (2, 6), (2, 4), (1, 4), (1, 3), (1, 2), (2, 0), (1, 0))


@dataclass(frozen=True)
class Plan:
    """The plan of a training.

    Attributes:
        recipe: The recipe with the planned views and epochs.
        fits: Whether the training is expected to end in time.
    """

    recipe: Recipe
    fits: bool


def plan_recipe(recipe: Recipe, network: nn.Module, dataset: Dataset, seconds: float) -> Plan:
    """Reduce the views and the epochs of a recipe, so that the training ends in time on this machine.

    Args:
        recipe: The recipe without a time limit.
        network: The network, on the device to train on. Its weights stay the same.
        dataset: The data set to train on.
        seconds: The time that is left.

    Returns:
        The recipe with at most its views and epochs; with one epoch, or the head alone, if nothing fits.
    """
    available = (seconds - REPORT_S) / RESERVE
    steps = -(-len(dataset.train) // recipe.batch_size)
    if not isinstance(network, PretrainedNetwork):
        images = torch.from_numpy(dataset.train.images[: recipe.batch_size])
        step_s = _measure_step(network, images)
        evaluation_s = _time(lambda: _evaluate(network, images)) * len(dataset.val) / len(images)
        epochs = int(available / (steps * step_s + evaluation_s))
        return Plan(replace(recipe, epochs=max(1, min(recipe.epochs, epochs))), epochs >= 1)
    image_s, epoch_s = _measure_stages(recipe, network, dataset, steps)
    others = 2 * (len(dataset.val) + len(dataset.test))  # before and after fine-tuning
    for views, epochs in ((recipe.views, recipe.epochs), *PLANS):
        views, epochs = min(views, recipe.views), min(epochs, recipe.epochs)
        fits = (views * len(dataset.train) + others) * image_s + epochs * epoch_s <= available
        if fits:
            break
    planned = replace(recipe, views=views, epochs=epochs or recipe.epochs, fine_tune=recipe.fine_tune if epochs else 0)
    return Plan(planned, fits)


def count_views(views: int) -> str:
    """Say how many views of each training image there are.

    Args:
        views: The number, at least 1.
    """
    return f"{views} view{'s' * (views > 1)} of each training image"


def describe_plan(plan: Plan, pretrained: bool, minutes: float) -> str:
    """Describe the plan of a training, in a sentence.

    Args:
        plan: The plan.
        pretrained: Whether the network is pretrained.
        minutes: The time limit.
    """
    recipe = plan.recipe
    what = epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
    if pretrained:
        stages = f"{epochs} of fine-tuning" if recipe.fine_tune else "the head alone"
        what = f"{count_views(recipe.views)}, {stages}"
    if plan.fits:
        return f"planned for {minutes:g} minutes: {what}"
    return f"{minutes:g} minutes are too short for these images on this machine: the shortest training is {what}"


def _measure_stages(recipe: Recipe, network: PretrainedNetwork, dataset: Dataset, steps: int) -> tuple[float, float]:
    """Measure the seconds for the features of an image, and for an epoch of fine-tuning; 0 without fine-tuning."""
    frozen = len(network.stages) - recipe.fine_tune
    run = open_backbone(network, frozen if recipe.fine_tune else 0, dataset.contract.shape)
    images = dataset.train.images[: max(BATCH, recipe.batch_size)]
    image_s = _time(lambda: run(images[:BATCH])) / len(images[:BATCH])
    if not recipe.fine_tune:
        return image_s, 0.0
    maps = torch.from_numpy(run(images[: recipe.batch_size])[1])
    network.freeze(frozen)
    with network.start_at(frozen):
        step_s = _measure_step(network, maps)
        val_s = _time(lambda: _evaluate(network, maps)) * len(dataset.val) / len(maps)
    return image_s, steps * step_s + val_s


def _measure_step(network: nn.Module, inputs: Tensor) -> float:
    """Measure the seconds of a forward and a backward pass."""
    device = next(network.parameters()).device
    lay_out(network)

    def step() -> None:
        logits = network(make_inputs(inputs.to(device)))
        functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=device)).backward()  # type: ignore[no-untyped-call]
        network.zero_grad()

    with untouched(network):
        network.train()
        return _time(step)


@torch.no_grad()
def _evaluate(network: nn.Module, inputs: Tensor) -> None:
    network.eval()
    network(make_inputs(inputs.to(next(network.parameters()).device)))


def _time(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few runs."""
    found = []
    for _ in range(MEASURED):
        started = time.perf_counter()
        run()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # a call returns before the GPU has done its work
        found.append(time.perf_counter() - started)
    return min(found)
