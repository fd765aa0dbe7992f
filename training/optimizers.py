"""The optimizers of a recipe, and the schedule of their learning rates."""

from __future__ import annotations

import torch
from torch import nn

from training.muon import Muon
from training.recipe import Recipe

ADAM_EPS = 1e-7  # the default of Keras; the default of torch is 1e-8
SGD_RATE = 4.0  # learning rate of SGD relative to that of Muon
MOMENTUM, MUON_MOMENTUM = 0.9, 0.8
WARM_UP = 0.1  # share of the steps until the learning rate peaks


def make_optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Make the optimizers of all weights that require gradients.

    Args:
        network: The network to train.
        recipe: Decides the optimizer, its learning rate and weight decay.

    Returns:
        AdamW; or Muon for the weights of 2D convolutions and SGD for all others. Each parameter group holds its peak
        learning rate as ``peak_lr``. With "adamw", biases and the weights of batch norm do not decay.
    """
    learned = [weights for weights in network.parameters() if weights.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizers: list[torch.optim.Optimizer]
    if recipe.optimizer == "adam":
        optimizers = [torch.optim.AdamW(learned, rate, eps=ADAM_EPS, weight_decay=decay)]
    elif recipe.optimizer == "adamw":
        filters = [weights for weights in learned if weights.ndim > 1]
        others = [weights for weights in learned if weights.ndim <= 1]  # biases and batch norm: decay would move means
        groups = [{"params": filters, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        optimizers = [torch.optim.AdamW([group for group in groups if group["params"]], rate)]
    else:
        convolutions = [weights for weights in learned if weights.ndim == 4]
        others = [weights for weights in learned if weights.ndim != 4]
        optimizers = []
        if convolutions:
            optimizers.append(Muon(convolutions, rate, MUON_MOMENTUM))
        if others:
            optimizers.append(torch.optim.SGD(others, SGD_RATE * rate, MOMENTUM, nesterov=True, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def schedule(recipe: Recipe, progress: float) -> float:
    """Compute the learning rate relative to its peak: constant with Adam, a triangle with AdamW and Muon.

    Source: Page, How to Train Your ResNet; why it works: Smith and Topin, Super-Convergence (1708.07120).

    Args:
        recipe: Decides the optimizer.
        progress: Share of all steps that is done, from 0 to 1.

    Returns:
        A factor from 0 to 1.
    """
    return 1.0 if recipe.optimizer == "adam" else min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def take_step(optimizers: list[torch.optim.Optimizer], rate_factor: float) -> None:
    """Update the weights by their gradients.

    Args:
        optimizers: The optimizers of a network.
        rate_factor: Learning rate relative to its peak, from 0 to 1.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate_factor * group["peak_lr"]
        optimizer.step()
