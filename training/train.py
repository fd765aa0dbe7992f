"""Training: from labelled images to the best weights, in a loop that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.datasets import Split
from training.errors import NetworkError, TrainingDiverged
from training.network import scale_pixels
from training.run import Recipe, Run

ADAM_EPS = 1e-7  # Keras' default; torch's is 1e-8
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        loss: mean cross-entropy over the pass, in train mode.
        train_accuracy: share right over the pass, in train mode.
        val_accuracy: share right of the validation images, in eval mode.
        val_loss: mean cross-entropy of the validation images, in eval mode.
        seconds: wall clock, validation included.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float
    val_loss: float
    seconds: float


def choose_device(device: str) -> torch.device:
    """cpu, cuda, or auto: CUDA where torch can use it.

    Raises:
        NetworkError: cuda was asked for and torch cannot use it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise NetworkError(f"--device cuda: torch {torch.__version__} finds no usable GPU; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def train(
    run: Run,
    network: nn.Module,
    train_split: Split,
    val_split: Split,
    on_step: Callable[[int, int, float], None],
    on_epoch: Callable[[Epoch], None],
) -> Epoch:
    """Train a network and leave the weights that validate best in the run: by accuracy, ties by loss.

    Args:
        run: its recipe says how; its folder keeps the best weights and a line an epoch.
        network: on the device to train on.
        train_split: what to learn from.
        val_split: what chooses the best epoch; never the test images.
        on_step: told the step, the steps of an epoch, and the loss.
        on_epoch: told each epoch's figures.

    Returns:
        The epoch whose weights the run keeps.

    Raises:
        TrainingDiverged: the loss is NaN or infinite; the best weights so far stay in the run.
        KeyboardInterrupt: passed on, after the weights of an unfinished first epoch are kept.
    """
    recipe = run.config.recipe
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, eps=ADAM_EPS, weight_decay=recipe.weight_decay
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth of the time saved: docs/performance.md
    best: Epoch | None = None
    try:
        for epoch in range(1, recipe.epochs + 1):
            started = time.perf_counter()
            loss, train_accuracy = _train_epoch(network, optimizer, train_split, recipe, epoch, on_step)
            val_accuracy, val_loss = evaluate(network, val_split)
            _check_finite(val_loss, f"epoch {epoch}, in validation", recipe)
            figures = Epoch(epoch, loss, train_accuracy, val_accuracy, val_loss, time.perf_counter() - started)
            if best is None or (val_accuracy, -val_loss) > (best.val_accuracy, -best.val_loss):
                best = figures
                run.save_weights(network)
            run.append_metrics(asdict(figures))
            on_epoch(figures)
    except KeyboardInterrupt:
        if not run.has_weights():
            run.save_weights(network)
        raise
    assert best is not None  # a recipe has at least one epoch
    return best


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    recipe: Recipe,
    epoch: int,
    on_step: Callable[[int, int, float], None],
) -> tuple[float, float]:
    """One pass over the training images in an order of its own; returns mean loss and accuracy."""
    device = next(network.parameters()).device
    network.train()
    torch.manual_seed(_seed(recipe.seed, epoch))  # dropout
    order = np.random.default_rng(_seed(recipe.seed, epoch)).permutation(len(split))
    batches = split_batches(order, recipe.batch_size)
    loss_sum, right = 0.0, 0
    for step, batch in enumerate(batches, 1):
        images = torch.from_numpy(split.images[batch]).to(device)
        targets = torch.from_numpy(split.targets[batch]).to(device)
        logits = network(scale_pixels(images))
        loss = functional.cross_entropy(logits, targets)
        value = loss.item()
        _check_finite(value, f"epoch {epoch}, step {step} of {len(batches)}", recipe)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += value * len(batch)
        right += int((logits.argmax(1) == targets).sum())
        on_step(step, len(batches), value)
    return loss_sum / len(split), right / len(split)


def _check_finite(loss: float, where: str, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at {where}: weights have probably exploded; try a --learning-rate below "
            f"{recipe.learning_rate:g}. The run keeps the best weights of the epochs before, if there were any"
        )


def split_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an order into batches; a last one of a single image joins the one before, as one has no variance."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def predict_logits(network: nn.Module, split: Split) -> Tensor:
    """Logits of every image in eval mode, float32 (N, K) on the CPU."""
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(split.images), EVALUATION_BATCH)
        return torch.cat([network(scale_pixels(images.to(device))).cpu() for images in batches])


def evaluate(network: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a split in eval mode."""
    logits, targets = predict_logits(network, split), torch.from_numpy(split.targets)
    right = (logits.argmax(1) == targets).sum()
    return int(right) / len(split), functional.cross_entropy(logits, targets).item()


def _seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that an epoch's draws depend on nothing that went before."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
