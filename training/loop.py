"""Training: from labelled images to the best weights, in a loop that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.augment import augment, choose_mirrored, draw_offsets
from training.checkpoint import Epoch, list_checkpoints, load_checkpoint, save_checkpoint
from training.datasets import Dataset, Split
from training.errors import NetworkError, RunError, TrainingDiverged
from training.evaluation import evaluate, scale_batches
from training.guard import Guard, are_finite, choose_reason
from training.muon import Muon
from training.networks import lay_out, recognise_architecture, scale_pixels
from training.observe import observe_layers, sample_images
from training.ranks import ALONE, Ranks
from training.recipe import Recipe
from training.run import INITIAL, Run
from training.statistics import list_moved, list_norms, sample_statistics
from training.warn import find_warnings

ADAM_EPS = 1e-7  # Keras' default; torch's is 1e-8
SGD_RATE = 4.0  # of SGD's learning rate to Muon's
MOMENTUM, MUON_MOMENTUM = 0.9, 0.8
MOST_BACK_OFFS = 3  # halvings of the learning rate after which it is not the learning rate
WARM_UP = 0.1  # share of the steps until the learning rate peaks


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


def check_ranks(ranks: Ranks, recipe: Recipe, dataset: Dataset) -> None:
    """Every process needs two images of every batch, as one has no variance, and one to validate and to test.

    Raises:
        RunError: there are too many processes.
    """
    batch, val, test = min(recipe.batch_size, len(dataset.train)), len(dataset.val), len(dataset.test)
    most = max(min(batch // 2, val, test), 1)
    if ranks.count > most:
        raise RunError(
            f"{ranks.count} processes are too many for batches of {batch} images, {val} to validate and {test} to "
            f"test: at most {most}"
        )


def prepare_network(network: nn.Module, split: Split) -> nn.Module:
    """Compute the weights that are not learned by gradient descent, such as compact's whitening filters.

    Args:
        network: The network, changed in place.
        split: The training images.

    Returns:
        The network.
    """
    recognise_architecture(network).prepare(network, split.images)
    return network


def train(
    run: Run,
    network: nn.Module,
    train_split: Split,
    val_split: Split,
    on_step: Callable[[int, int, float], None],
    on_epoch: Callable[[Epoch], None],
    on_warning: Callable[[str], None] = lambda warning: None,
    back_off: bool = False,
    ranks: Ranks = ALONE,
) -> Epoch:
    """Train a network and leave the weights that validate best in the run: by accuracy, ties by loss.

    They validate as they will be exported: with batch norm's statistics computed from training images.

    Args:
        run: its recipe says how; its folder keeps initial and best weights and a line an epoch. Where it holds a
            checkpoint, training goes on from there.
        network: on the device to train on.
        train_split: what to learn from.
        val_split: what chooses the best epoch; never the test images.
        on_step: told the step, the steps of an epoch, and the loss.
        on_epoch: told each epoch's figures.
        on_warning: told of a checkpoint that is passed over, and of what was NaN or infinite where training goes on.
        back_off: where values are NaN or infinite, go on from the last good epoch at half the learning rate, at most
            three times.
        ranks: the processes that train together, each called alike. A batch's images are dealt out to them; the first
            writes the run.

    Returns:
        The epoch whose weights the run keeps.

    Raises:
        NetworkError: the run's checkpoints are of another network.
        TrainingDiverged: a loss or a gradient is NaN or infinite; the network is as it was when it was last good, and
            the best weights so far stay in the run.
        KeyboardInterrupt: passed on, after the weights of an unfinished first epoch are kept.
    """
    recipe = run.config.recipe
    lay_out(network)
    optimizers = make_optimizers(network, recipe)
    observed = sample_images(train_split)
    done, best, backed_off = _resume(run, network, optimizers, on_warning, ranks)
    forward = ranks.wrap(network)
    guard = Guard(network, optimizers)
    if ranks.is_first:
        run.keep_metrics(done)
    layers = observe_layers(network, observed)
    if ranks.is_first and not done:
        run.save_weights(network, INITIAL)
        run.append_metrics({"epoch": 0, "layers": [asdict(layer) for layer in layers]})
    initial = ranks.ask_first(run.read_statistics(INITIAL) if ranks.is_first else {})
    try:
        while done < recipe.epochs:
            epoch, started = done + 1, time.perf_counter()
            try:
                loss, train_accuracy = _train_epoch(
                    forward, optimizers, guard, train_split, recipe, epoch, on_step, ranks
                )
                ranks.average_buffers(network)
                moved = list_moved(initial, network.state_dict())
                val_accuracy, val_loss = _validate(
                    network, train_split, val_split, moved, recipe.batch_size, epoch, guard, ranks
                )
            except TrainingDiverged as error:
                if not back_off or backed_off == MOST_BACK_OFFS:
                    guard.restore()
                    kept = f"The run keeps the weights of epoch {best.epoch}" if best else "Nothing was learned yet"
                    raise TrainingDiverged(f"{error}. {kept}") from None
                backed_off += 1
                on_warning(f"{error}. Going on from the last good epoch at learning rate {guard.back_off():g}")
                continue
            guard.mark()
            before, layers = layers if done else [], observe_layers(network, observed)  # the first epoch moves all
            told = [asdict(layer) for layer in layers]
            still = list_norms(network).keys() - set(moved)
            warnings = find_warnings(loss, len(run.config.labels), layers, before, still)
            rate, seconds = optimizers[0].param_groups[0]["lr"], time.perf_counter() - started
            figures = Epoch(epoch, loss, train_accuracy, val_accuracy, val_loss, rate, seconds, warnings, told)
            if best is None or (val_accuracy, -val_loss) > (best.val_accuracy, -best.val_loss):
                best = figures
            if ranks.is_first:
                if best is figures:
                    run.save_weights(network)
                run.append_metrics(asdict(figures))
                save_checkpoint(run.folder, epoch, network, optimizers, best, backed_off)
            on_epoch(figures)
            done = epoch
    except KeyboardInterrupt:
        if ranks.is_first and not run.has_weights():
            if not are_finite(network.state_dict().values()):
                guard.restore()
            run.save_weights(network)
        raise
    assert best is not None  # a recipe has at least one epoch
    return best


def _resume(
    run: Run,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    on_warning: Callable[[str], None],
    ranks: Ranks,
) -> tuple[int, Epoch | None, int]:
    """Go back to the newest checkpoint that is whole: its epoch, the best so far, how often rates were halved.

    The first process reads it and tells the others, but for the weights, which `Ranks.wrap` brings them.
    """
    found = _find_checkpoint(run, network, optimizers, on_warning) if ranks.is_first else (0, None, 0)
    memories = ranks.ask_first([optimizer.state_dict() for optimizer in optimizers])
    if not ranks.is_first:
        for optimizer, memory in zip(optimizers, memories, strict=True):
            optimizer.load_state_dict(memory)
    return ranks.ask_first(found)


def _find_checkpoint(
    run: Run, network: nn.Module, optimizers: list[torch.optim.Optimizer], on_warning: Callable[[str], None]
) -> tuple[int, Epoch | None, int]:
    for epoch in list_checkpoints(run.folder):
        try:
            best, backed_off = load_checkpoint(run.folder, epoch, network, optimizers)
        except RunError as error:
            on_warning(f"{error}; it is passed over")
        else:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["peak_lr"] /= 2**backed_off
            return epoch, best, backed_off
    return 0, None, 0


def _train_epoch(
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    guard: Guard,
    split: Split,
    recipe: Recipe,
    epoch: int,
    on_step: Callable[[int, int, float], None],
    ranks: Ranks,
) -> tuple[float, float]:
    """One pass over the training images in an order of its own; returns mean loss and accuracy.

    Every process draws for all images alike and takes its share; only dropout has draws of its own in each.
    """
    device = next(network.parameters()).device
    network.train()
    rng = np.random.default_rng([recipe.seed, epoch])
    batches = split_batches(rng.permutation(len(split)), recipe.batch_size, 2 * ranks.count)
    mirrored = choose_mirrored(len(split), epoch, recipe.seed) & recipe.mirror
    weights = balance_labels(split).to(device) if recipe.balance else None
    learned = list(network.parameters())
    loss_sum, right = 0.0, 0.0
    for step, batch in enumerate(batches, 1):
        own, offsets = batch[ranks.share], draw_offsets(len(batch), recipe.shift, rng)
        images = augment(split.images[own], mirrored[own], recipe.shift, offsets[:, ranks.share])
        inputs = scale_pixels(torch.from_numpy(images).to(device))
        targets = torch.from_numpy(split.targets[own]).to(device)
        seed = _seed(recipe.seed, epoch, step) + ranks.number  # of dropout
        torch.manual_seed(seed)
        logits = network(inputs)
        judge = partial(
            functional.cross_entropy, target=targets, weight=weights, label_smoothing=recipe.label_smoothing
        )
        # Gradients are averaged over the processes: a share counts as much as the images in it.
        loss = judge(logits) * (ranks.count * _weigh(split, own, weights) / _weigh(split, batch, weights))
        hits = (logits.argmax(1) == targets).sum()
        value, hit = ranks.sum(torch.stack([loss.detach() / ranks.count, hits])).tolist()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if not (math.isfinite(value) and are_finite(one.grad for one in learned)):
            what = f"the loss is {value}" if not math.isfinite(value) else "a gradient is NaN or infinite"
            torch.manual_seed(seed)  # the same batch again
            why = choose_reason(ranks.gather(guard.explain(judge, inputs, own)))
            raise TrainingDiverged(f"{what} at epoch {epoch}, step {step} of {len(batches)}: {why}")
        share = schedule(recipe, (epoch - 1 + (step - 0.5) / len(batches)) / recipe.epochs)
        _take_step(optimizers, share)
        loss_sum += value * len(batch)
        right += hit
        on_step(step, len(batches), value)
    return loss_sum / len(split), right / len(split)


def _validate(
    network: nn.Module,
    train_split: Split,
    val_split: Split,
    moved: Collection[str],
    batch_size: int,
    epoch: int,
    guard: Guard,
    ranks: Ranks,
) -> tuple[float, float]:
    """Accuracy and mean loss of the validation images, with batch norm's statistics about as they will be exported.

    Raises:
        TrainingDiverged: a weight, a statistic or the loss is NaN or infinite.
    """
    bad = "a weight or statistic is NaN or infinite"
    if are_finite(network.state_dict().values()):
        with sample_statistics(network, train_split, moved, batch_size, ranks):
            accuracy, loss = evaluate(network, val_split, ranks)
        if math.isfinite(loss):
            return accuracy, loss
        bad = f"the loss is {loss}"
    why = guard.explain_evaluation(scale_batches(network, ranks.take_share(val_split)))
    raise TrainingDiverged(f"{bad} at epoch {epoch}, in validation: {choose_reason(ranks.gather(why))}")


def _take_step(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Follow the gradients at a share of the peak learning rates."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]
        optimizer.step()


def make_optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimizers for all weights that are learned: Adam; or Muon for convolutions and SGD for the rest."""
    learned = [weights for weights in network.parameters() if weights.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizers: list[torch.optim.Optimizer]
    if recipe.optimizer == "adam":
        optimizers = [torch.optim.AdamW(learned, rate, eps=ADAM_EPS, weight_decay=decay)]
    else:
        convolutions = [weights for weights in learned if weights.ndim == 4]
        others = [weights for weights in learned if weights.ndim != 4]
        sgd = torch.optim.SGD(others, SGD_RATE * rate, MOMENTUM, nesterov=True, weight_decay=decay)
        optimizers = [Muon(convolutions, rate, MUON_MOMENTUM), sgd]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def schedule(recipe: Recipe, progress: float) -> float:
    """The learning rate's share of its peak when a share of all steps is done: Adam's stays, Muon's is a triangle.

    Source: Page, How to Train Your ResNet; why it works: Smith and Topin, Super-Convergence (1708.07120).
    """
    return 1.0 if recipe.optimizer == "adam" else min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def balance_labels(split: Split) -> Tensor:
    """A weight for each label, float32 (K,): labels count the same, and the images' mean weight is 1."""
    counts = np.bincount(split.targets)
    return torch.from_numpy((len(split) / (len(counts) * counts)).astype(np.float32))


def _weigh(split: Split, images: np.ndarray, weights: Tensor | None) -> float:
    """What some images count together."""
    return len(images) if weights is None else weights[split.targets[images]].sum().item()


def split_batches(order: np.ndarray, batch_size: int, least: int = 2) -> list[np.ndarray]:
    """Cut an order into batches; a last one of too few images joins the one before, as one has no variance."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _seed(seed: int, epoch: int, step: int) -> int:
    """A seed of its own for each step, so that its draws depend on nothing that went before."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])
