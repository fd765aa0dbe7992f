"""The head: its batch norm has the moments of the features, and its dense layer is the optimum of its loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from training.head import PENALTIES, HeadExamples, choose_head, compute_logits, fit_dense, measure_head, set_moments
from training.networks.pretrained import Head

LABELS, SIZE = 3, 8


def draw(count: int, seed: int, noise: float = 1.0) -> HeadExamples:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % LABELS
    means = 5 * torch.eye(LABELS, SIZE)[targets] + 100
    return HeadExamples(means + 5 * noise * torch.randn((count, SIZE), generator=generator), targets)


def make_head() -> Head:
    return Head(SIZE, LABELS, 0.2)


def test_batch_norm_has_the_exact_moments_of_the_training_features() -> None:
    head, train = make_head(), draw(60, 0)
    choose_head(head, train, draw(30, 1))
    assert head.norm.running_mean is not None
    assert head.norm.running_var is not None
    exact = train.features.double()
    torch.testing.assert_close(head.norm.running_mean, exact.mean(0).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(head.norm.running_var, exact.var(0, correction=0).float(), rtol=1e-6, atol=0)
    assert not any(module.training for module in head.modules())


@pytest.mark.parametrize("weights", [None, torch.tensor([3.0, 1.0, 0.5])])
def test_the_dense_layer_is_an_optimum(weights: torch.Tensor | None) -> None:
    head, train = make_head(), draw(60, 0)
    set_moments(head, train.features)
    fit_dense(head, train, 0.1, weights)
    loss = functional.cross_entropy(head(train.features), train.targets, weight=weights)
    (loss + 0.05 * head.dense.weight.square().sum()).backward()  # type: ignore[no-untyped-call]
    assert head.dense.weight.grad is not None
    assert head.dense.weight.grad.abs().max() < 1e-3


def test_the_penalty_with_the_smallest_validation_loss_is_chosen() -> None:
    train, val = draw(30, 0, noise=2.0), draw(90, 1, noise=2.0)
    losses = {}
    for penalty in PENALTIES:
        head = make_head()
        set_moments(head, train.features)
        torch.nn.init.zeros_(head.dense.weight)
        torch.nn.init.zeros_(head.dense.bias)
        fit_dense(head, train, penalty)
        losses[penalty] = measure_head(head, val)[1]
    head = make_head()
    chosen = choose_head(head, train, val)
    assert chosen.penalty == min(losses, key=lambda penalty: losses[penalty])
    assert chosen.penalty != PENALTIES[-1]  # or the last one would be kept whatever the loss
    assert chosen.val_loss == pytest.approx(losses[chosen.penalty], abs=1e-3)
    assert (chosen.val_accuracy, chosen.val_loss) == measure_head(head, val)  # the head has the chosen weights


def test_neither_seed_nor_initial_weights_decide_the_head() -> None:
    logits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        head = make_head()
        choose_head(head, draw(60, 0), draw(30, 1))
        logits.append(compute_logits(head, draw(30, 1).features))
    assert torch.equal(*logits)


def test_rare_labels_count_more_with_weights() -> None:
    train = draw(60, 0, noise=3.0)
    rare = torch.cat([torch.arange(60)[train.targets != 0], torch.arange(6)[train.targets[:6] == 0]])
    few, head = HeadExamples(train.features[rare], train.targets[rare]), make_head()
    recalls = []
    for weights in (None, torch.tensor([14.0, 0.7, 0.7])):
        set_moments(head, few.features)
        fit_dense(head, few, 1.0, weights)
        recalls.append((compute_logits(head, train.features).argmax(1) == 0).sum().item())
    assert recalls[1] > recalls[0]
