"""The training loop: it trains for some epochs, validates after each, and keeps the weights that validate best."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from training.batches import Batches, TrainingBatch
from training.callbacks import SILENT, Callbacks
from training.checkpoint import Epoch, TrainingState, resume_checkpoint, save_checkpoint
from training.datasets import Split
from training.errors import TrainingDiverged
from training.evaluation import evaluate, scale_batches
from training.guard import Guard, choose_reason
from training.networks import lay_out, recognise_architecture
from training.nonfinite import are_finite
from training.observe import observe_layers, sample_images
from training.optimizers import make_optimizers, schedule, take_step
from training.ranks import ALONE, Ranks
from training.run import INITIAL, Run
from training.statistics import list_moved, list_norms, sample_statistics
from training.warn import find_warnings

MAX_BACK_OFFS = 3  # halvings of the learning rate, after which something else must be the cause


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


@dataclass(frozen=True)
class Execution:
    """How a training is run; not part of its recipe.

    Attributes:
        back_off: At non-finite values, continue from the last good epoch at half the learning rate, at most three
            times, instead of raising an error.
        ranks: The processes that train together. Each calls ``train`` in the same way; the first one writes the run.
        initial: Figures of the network before the first epoch, as those of epoch 0, if it is a classifier already: then
            its weights are the best ones until an epoch validates better.
    """

    back_off: bool = False
    ranks: Ranks = ALONE
    initial: Epoch | None = None


def train(
    run: Run,
    network: nn.Module,
    train_split: Split,
    val_split: Split,
    callbacks: Callbacks = SILENT,
    execution: Execution = Execution(),
) -> Epoch:
    """Train a network, and save the weights that validate best in the run: by accuracy, equal ones by loss.

    Validation uses batch norm statistics that are computed from training images, as the export does. A run with
    checkpoints is continued after the newest one.

    Args:
        run: Holds the recipe. Its folder gets the initial and the best weights, and a line for each epoch.
        network: The network, on the device to train on.
        train_split: The training images.
        val_split: The validation images, which choose the best epoch.
        callbacks: ``on_step``, ``on_epoch`` and ``on_warning`` are called.
        execution: How to run the training.

    Returns:
        The figures of the epoch whose weights the run keeps.

    Raises:
        NetworkError: The checkpoints of the run belong to another network.
        TrainingDiverged: A loss or a gradient is NaN or infinite. The network is in its last good state, and the run
            keeps the best weights so far.
        KeyboardInterrupt: Raised again after the weights of an unfinished first epoch are saved.
    """
    return _Training(run, network, train_split, val_split, callbacks, execution).run_epochs()


class _Training:
    """The state of one call of ``train``, which documents the arguments."""

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        train_split: Split,
        val_split: Split,
        callbacks: Callbacks,
        execution: Execution,
    ) -> None:
        self._run = run
        self._recipe = run.config.recipe
        self._network = network
        self._splits = train_split, val_split
        self._callbacks = callbacks
        self._back_off = execution.back_off
        self._ranks = execution.ranks
        lay_out(network)
        self._optimizers = make_optimizers(network, self._recipe)
        # The batch norm layers of a backbone keep their statistics: there is nothing to observe.
        self._observed = train_split.images[:0] if self._recipe.fine_tune else sample_images(train_split)
        self._reached = TrainingState(best=execution.initial)

    def run_epochs(self) -> Epoch:
        """Train all epochs of the recipe that are not done yet."""
        run, network, ranks = self._run, self._network, self._ranks
        self._resume()
        forward = ranks.wrap(network)  # a local variable, so that the process group is freed: `join_ranks`
        self._guard = Guard(network, self._optimizers)
        if ranks.is_first:
            run.metrics.keep(self._reached.epoch)
        self._layers = observe_layers(network, self._observed)
        if ranks.is_first and not self._reached.epoch:
            run.save_weights(network, INITIAL)
            if self._reached.best:
                run.save_weights(network)
            run.metrics.append({"epoch": 0, "layers": [asdict(layer) for layer in self._layers]})
        self._initial = ranks.broadcast(run.read_statistics(INITIAL) if ranks.is_first else {})
        try:
            while self._reached.epoch < self._recipe.epochs:
                self._run_epoch(forward)
        except KeyboardInterrupt:
            if ranks.is_first and not run.has_weights():
                if not are_finite(network.state_dict().values()):
                    self._guard.restore()
                run.save_weights(network)
            raise
        assert self._reached.best is not None  # a recipe has at least one epoch
        return self._reached.best

    def _resume(self) -> None:
        """Restore the newest checkpoint.

        The first process reads it and sends the state of the optimizers to the others; `Ranks.wrap` sends the weights.
        """
        ranks = self._ranks
        if ranks.is_first:
            reached = resume_checkpoint(self._run.folder, self._network, self._optimizers, self._callbacks.on_warning)
            self._reached = reached if reached.epoch else self._reached
        states = ranks.broadcast([optimizer.state_dict() for optimizer in self._optimizers])
        if not ranks.is_first:
            for optimizer, state in zip(self._optimizers, states, strict=True):
                optimizer.load_state_dict(state)
        self._reached = ranks.broadcast(self._reached)

    def _run_epoch(self, forward: nn.Module) -> None:
        """Train and validate for one epoch; after non-finite values, return to the last good epoch."""
        epoch, started = self._reached.epoch + 1, time.perf_counter()
        try:
            loss, train_accuracy, cross_entropy = self._train_epoch(forward, epoch)
            self._ranks.average_buffers(self._network)
            moved = list_moved(self._initial, self._network.state_dict())
            val_accuracy, val_loss = self._validate(moved, epoch)
        except TrainingDiverged as error:
            self._restore(error)
            return
        self._guard.mark()
        warnings = self._observe(loss, moved)
        self._finish_epoch(
            Epoch(
                epoch,
                loss,
                train_accuracy,
                val_accuracy,
                val_loss,
                learning_rate=self._optimizers[0].param_groups[0]["lr"],
                seconds=time.perf_counter() - started,
                warnings=warnings,
                layers=[asdict(layer) for layer in self._layers],
                cross_entropy=cross_entropy,
            )
        )

    def _train_epoch(self, forward: nn.Module, epoch: int) -> tuple[float, float, float]:
        """Pass once over the training images; returns mean loss, accuracy and mean cross-entropy."""
        forward.train()
        split, ranks = self._splits[0], self._ranks
        batches = Batches(split, self._recipe, epoch, ranks, next(forward.parameters()).device)
        learned = list(forward.parameters())
        loss_sum, right, entropy_sum = 0.0, 0.0, 0.0
        for batch in batches:
            torch.manual_seed(batch.seed)
            logits = forward(batch.inputs)
            loss = batch.loss_of(logits) * batch.loss_scale
            hits = (logits.argmax(1) == batch.targets).sum()
            entropy = functional.cross_entropy(logits.detach(), batch.targets, reduction="sum")
            value, hit, own = ranks.sum(torch.stack([loss.detach() / ranks.count, hits, entropy])).tolist()
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not (math.isfinite(value) and are_finite(one.grad for one in learned)):
                raise self._explain_step(batch, value, f"epoch {epoch}, step {batch.step} of {len(batches)}")
            rate_factor = schedule(self._recipe, (epoch - 1 + (batch.step - 0.5) / len(batches)) / self._recipe.epochs)
            take_step(self._optimizers, rate_factor)
            loss_sum += value * batch.size
            right += hit
            entropy_sum += own
            self._callbacks.on_step(batch.step, len(batches), value)
        return loss_sum / len(split), right / len(split), entropy_sum / len(split)

    def _explain_step(self, batch: TrainingBatch, loss: float, place: str) -> TrainingDiverged:
        what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is NaN or infinite"
        torch.manual_seed(batch.seed)  # the same dropout again
        why = choose_reason(self._ranks.gather(self._guard.explain(batch.loss_of, batch.inputs, batch.rows)))
        return TrainingDiverged(f"{what} at {place}: {why}")

    def _validate(self, moved: list[str], epoch: int) -> tuple[float, float]:
        """Measure accuracy and mean loss on the validation images, with statistics close to those of the export.

        Raises:
            TrainingDiverged: A weight, a statistic or the loss is NaN or infinite.
        """
        network, ranks, (train_split, val_split) = self._network, self._ranks, self._splits
        what = "a weight or statistic is NaN or infinite"
        if are_finite(network.state_dict().values()):
            with sample_statistics(network, train_split, moved, self._recipe.batch_size, ranks):
                accuracy, loss = evaluate(network, val_split, ranks)
            if math.isfinite(loss):
                return accuracy, loss
            what = f"the loss is {loss}"
        why = self._guard.explain_evaluation(scale_batches(network, ranks.take_share(val_split)))
        raise TrainingDiverged(f"{what} at epoch {epoch}, in validation: {choose_reason(ranks.gather(why))}")

    def _restore(self, error: TrainingDiverged) -> None:
        """Return to the last good epoch at half the learning rate, or give up."""
        reached = self._reached
        if not self._back_off or reached.backed_off == MAX_BACK_OFFS:
            self._guard.restore()
            kept = "Nothing was learned yet"
            if reached.best:
                weights = f"epoch {reached.best.epoch}" if reached.best.epoch else "the head"
                kept = f"The run keeps the weights of {weights}"
            raise TrainingDiverged(f"{error}. {kept}") from None
        self._reached = TrainingState(reached.epoch, reached.best, reached.backed_off + 1)
        rate = self._guard.back_off()
        self._callbacks.on_warning(f"{error}. Continuing from the last good epoch at learning rate {rate:g}")

    def _observe(self, loss: float, moved: list[str]) -> list[str]:
        """Observe the batch norm layers after an epoch, and find warnings."""
        before = self._layers if self._reached.epoch else []  # the first epoch changes every layer
        self._layers = observe_layers(self._network, self._observed)
        still = list_norms(self._network).keys() - set(moved)
        return find_warnings(loss, len(self._run.config.labels), self._layers, before, still)

    def _finish_epoch(self, figures: Epoch) -> None:
        """Save the weights if they are the best so far, the figures and a checkpoint."""
        best = self._reached.best
        if best is None or (figures.val_accuracy, -figures.val_loss) > (best.val_accuracy, -best.val_loss):
            best = figures
        self._reached = TrainingState(figures.epoch, best, self._reached.backed_off)
        if self._ranks.is_first:
            if best is figures:
                self._run.save_weights(self._network)
            self._run.metrics.append(asdict(figures))
            save_checkpoint(self._run.folder, self._network, self._optimizers, self._reached)
        self._callbacks.on_epoch(figures)
