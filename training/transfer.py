"""Train a pretrained network in stages: features of the frozen backbone, a head on them, and the last stages.

Each stage starts from the result of the one before it. The last one is kept only if the validation images say so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from training.batches import balance_labels
from training.callbacks import Callbacks, Outcome, StageFigures
from training.checkpoint import Epoch
from training.cross_validation import refit_head
from training.datasets import Dataset, Split, find_near_duplicates
from training.events import train_with_events
from training.feature_cache import FeatureCache
from training.features import Features, compute_features
from training.head import HeadExamples, choose_head, compute_logits
from training.loop import Execution
from training.networks import PretrainedNetwork
from training.outcome import describe_outcome
from training.plan import count_views
from training.review import Review, review_data
from training.run import BEST, EXACT, INITIAL, Run
from training.run_metrics import Result, state_time


def fit_pretrained(
    run: Run, network: PretrainedNetwork, dataset: Dataset, execution: Execution, callbacks: Callbacks
) -> Outcome:
    """Train the head of a pretrained network and its last stages, and measure the result.

    Args:
        run: The run, with its folder. It gets the weights, the features, the figures and the result.
        network: The network with its pretrained weights. It ends on the CPU with the best weights.
        dataset: The data set to train on.
        execution: How to run the training.
        callbacks: Functions to call with the progress.

    Returns:
        The outcome, as passed to ``on_outcome``.

    Raises:
        TrainingDiverged: A loss or a gradient is NaN or infinite.
        DataError: The features do not fit onto the disk.
    """
    return _StagedTraining(run, network, dataset, execution, callbacks).run_stages()


class _StagedTraining:
    """The state of one call of ``fit_pretrained``, which documents the arguments."""

    def __init__(
        self, run: Run, network: PretrainedNetwork, dataset: Dataset, execution: Execution, callbacks: Callbacks
    ) -> None:
        self._run = run
        self._recipe = run.config.recipe
        self._network = network
        self._dataset = dataset
        self._execution = execution
        self._ranks = execution.ranks
        self._callbacks = callbacks
        self._label_weights = balance_labels(dataset.train) if self._recipe.balance else None
        self._penalty = 0.0  # of the head; only the first process chooses it
        self._stages: list[StageFigures] = []

    def run_stages(self) -> Outcome:
        """Train all stages."""
        with self._open_folder() as folder:
            cache = FeatureCache(folder, self._network, self._run.config, self._dataset)
            features = self._compute_features(cache)
            head = self._train_head(features)
            if self._ranks.is_first and not self._recipe.fine_tune:
                self._run.metrics.keep(0)
                self._run.save_weights(self._network, INITIAL)
                self._run.save_weights(self._network, BEST)
            best = self._fine_tune(cache, head) if self._recipe.fine_tune else head
            if self._ranks.is_first:
                self._run.load_weights(self._network, BEST)
            self._network.cpu()
            self._ranks.copy_first(self._network)
            result = self._measure(best, features)
            cache.remove_maps()  # before the result is saved: nothing is done for a run that has one
        if self._ranks.is_first:
            self._run.metrics.append(asdict(result))
        outcome = describe_outcome(self._run, best, result, self._network, (), self._dataset)
        self._callbacks.on_outcome(outcome)
        return outcome

    @contextmanager
    def _open_folder(self) -> Iterator[Path]:
        """Yield the folder of the features: the run folder, or a temporary one in all but the first process."""
        if self._ranks.is_first:
            yield self._run.folder
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)

    def _compute_features(self, cache: FeatureCache) -> Features:
        started = time.perf_counter()
        features = cache.load_or_compute(self._ranks, self._callbacks)
        views, _, count = features.train.shape
        self._finish_stage("features", started, f"{count:,} of each image; {count_views(views)}, for the head")
        return features

    def _train_head(self, features: Features) -> Epoch:
        """Train the head in the first process, and return its figures as those of epoch 0."""
        started, head, data, ranks = time.perf_counter(), self._network.head, self._dataset, self._ranks
        figures = 0.0, 0.0
        if ranks.is_first:
            device = head.dense.weight.device
            targets = torch.from_numpy(data.train.targets).repeat(len(features.train))
            train = HeadExamples(torch.from_numpy(features.train).flatten(0, 1).to(device), targets.to(device))
            val = HeadExamples(torch.from_numpy(features.val).to(device), torch.from_numpy(data.val.targets).to(device))
            weights = self._label_weights
            chosen = choose_head(head, train, val, None if weights is None else weights.to(device))
            figures = chosen.val_accuracy, chosen.val_loss
            self._finish_stage("head", started, f"penalty {chosen.penalty:g}", chosen.val_accuracy)
            self._penalty = chosen.penalty
        ranks.copy_first(self._network)
        accuracy, loss = ranks.broadcast(figures)
        return Epoch(0, loss, 0.0, accuracy, loss, 0.0, time.perf_counter() - started, [], [])

    def _fine_tune(self, cache: FeatureCache, head: Epoch) -> Epoch:
        """Train the last stages, and return the figures of the best epoch; those of the head if it validates better."""
        started, network, count = time.perf_counter(), self._network, self._recipe.fine_tune
        frozen = len(network.stages) - count
        network.freeze(frozen)
        with network.start_at(frozen):
            execution = replace(self._execution, initial=head)
            best = train_with_events(self._run, network, *cache.open_maps(), self._callbacks, execution)
        kept = f"best epoch {best.epoch}" if best.epoch else "not kept, since no epoch was better than the head alone"
        text = f"the last {count} of {len(network.stages)} stages; {count_views(self._recipe.views)}; {kept}"
        self._finish_stage("fine-tune", started, text, best.val_accuracy)
        return best

    def _measure(self, best: Epoch, features: Features) -> Result:
        """Measure the network that the run keeps on the validation and the test images, and save its exact weights."""
        run, data, ranks = self._run, self._dataset, self._ranks
        network = self._network
        pooled = [features.val, features.test]
        if best.epoch:
            pooled = compute_features(network, [data.val.images, data.test.images], ranks)
        val, test = (compute_logits(network.head, torch.from_numpy(part)) for part in pooled)
        val_accuracy, test_accuracy = _measure_accuracy(val, data.val), _measure_accuracy(test, data.test)
        stages = [asdict(stage) for stage in self._stages]
        result = Result(best.epoch, val_accuracy, [], test_accuracy, stages, finished=state_time())
        if ranks.is_first:
            review = self._review(features)
            if review.cross_validated:
                result = replace(result, cross_validated=asdict(review.cross_validated))
            run.save_weights(network, EXACT)
            run.save_logits({"val": val, "test": test})
        return result

    def _review(self, features: Features) -> Review:
        """Cross-validate heads on the features, and find doubtful labels and near-duplicates."""
        data = self._dataset
        fit = refit_head(self._network.cpu().head, self._penalty, self._label_weights)
        by_split = {"train": features.train[0], "val": features.val, "test": features.test}
        review = review_data(features, data, fit, find_near_duplicates(by_split), self._recipe.seed)
        review.save(self._run.folder)
        return review

    def _finish_stage(self, stage: str, started: float, text: str, val_accuracy: float | None = None) -> None:
        figures = StageFigures(stage, time.perf_counter() - started, text, val_accuracy)
        self._stages.append(figures)
        self._callbacks.on_stage(figures)


def _measure_accuracy(logits: Tensor, split: Split) -> float:
    return (logits.argmax(1) == torch.from_numpy(split.targets)).double().mean().item()
