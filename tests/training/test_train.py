"""The training loop learns, gives equal results for equal seeds, keeps the best epoch and reports every fault."""

from __future__ import annotations

import copy
import json
import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.training.conftest import StartRun
from tests.training.states import State, equal, state_of
from training.batches import balance_labels, split_batches
from training.callbacks import Callbacks
from training.checkpoint import Epoch
from training.datasets import Dataset, Split
from training.errors import NetworkError, TrainingDiverged
from training.evaluation import count_batch, evaluate, predict_logits, split_evaluation
from training.loop import prepare_network, train
from training.networks import build_network, scale_pixels
from training.networks.compact import Compact
from training.optimizers import make_optimizers, schedule
from training.recipe import Recipe
from training.run import Run
from training.statistics import recompute_statistics
from training.torch_runtime import choose_device


def ignore(*_: object) -> None:
    pass


def saved_state(run: Run) -> State:
    network = run.config.build_network()
    run.load_weights(network)
    return state_of(network)


def numbered(count: int) -> Split:
    """Images of 1x1 that carry their number in red and green, all of label 0."""
    numbers = np.arange(count)
    images = np.stack([numbers % 256, numbers // 256, np.zeros(count)], axis=1).astype(np.uint8)
    return Split(images.reshape(count, 1, 1, 3), np.zeros(count, np.int64))


class Recorder(nn.Module):
    """A network of one weight that records the numbers of its images, and what torch draws in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: dict[bool, list[list[int]]] = {True: [], False: []}
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        red, green = torch.round((x[:, :2, 0, 0] + 1) * 127.5).int().T
        self.seen[self.training].append((red + 256 * green).tolist())
        if self.training:
            self.drawn.append(torch.rand(()).item())  # as dropout does
        return torch.stack([self.weight, -self.weight]).T.expand(len(x), 2)


class Scripted(nn.Module):
    """A network whose logits in eval mode follow a script: after each step, the margin of each image."""

    steps: Tensor

    def __init__(self, script: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("steps", torch.tensor(0))
        self.script = torch.tensor([[math.nan] * len(script[0]), *script])

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            return self.weight.expand(len(x), 2)
        margins = self.script[self.steps]
        return torch.stack([margins, torch.zeros_like(margins)], dim=1)


# Learning


def test_training_lowers_the_loss(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=5)
    losses: list[float] = []
    train(run, network, few, digits.val, Callbacks(on_epoch=lambda epoch: losses.append(epoch.loss)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 3


def test_training_learns_digits_it_has_not_seen(exported, digits: Dataset) -> None:
    assert evaluate(exported.load_network(), digits.test)[0] > 0.9


def test_the_same_seed_gives_the_same_weights_bit_for_bit(start_run: StartRun, few: Split, digits: Dataset) -> None:
    states: list[dict[str, Tensor]] = []
    for name in ("one", "two"):
        run, network = start_run(name, epochs=2, seed=3)
        torch.manual_seed(len(states))  # what was drawn before does not matter
        train(run, network, few, digits.val)
        states.append(state_of(network))
    assert equal(*states)


def test_another_seed_gives_other_weights_from_the_same_start(start_run: StartRun, few: Split, digits: Dataset) -> None:
    states = []
    _, initial = start_run("initial")
    for seed in (3, 4):
        run, network = start_run(str(seed), epochs=1, seed=seed)
        network.load_state_dict(initial.state_dict())
        train(run, network, few, digits.val)
        states.append(state_of(network))
    assert not equal(*states)


def test_every_epoch_shows_every_image_once(start_run: StartRun) -> None:
    run, _ = start_run(epochs=3, batch_size=64)
    network = Recorder()
    train(run, network, numbered(300), numbered(1))
    epochs = [chain.from_iterable(network.seen[True][start : start + 5]) for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(300)) for epoch in epochs)


def test_every_epoch_has_an_order_of_its_own(start_run: StartRun) -> None:
    run, _ = start_run(epochs=3, batch_size=300)
    network = Recorder()
    train(run, network, numbered(300), numbered(1))
    orders = network.seen[True]
    assert list(range(300)) not in orders
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_every_epoch_has_random_draws_of_its_own(start_run: StartRun) -> None:
    run, _ = start_run(epochs=3, batch_size=300)
    network = Recorder()
    train(run, network, numbered(300), numbered(1))
    assert len(set(network.drawn)) == 3


@pytest.mark.parametrize(("seed", "alike"), [(0, True), (1, False)])
def test_the_order_and_the_random_draws_follow_the_seed(start_run: StartRun, seed: int, alike: bool) -> None:
    networks = []
    for name, chosen in (("one", 0), ("two", seed)):
        run, _ = start_run(name, epochs=1, seed=chosen)
        networks.append(Recorder())
        train(run, networks[-1], numbered(50), numbered(1))
    one, two = networks
    assert (one.seen[True] == two.seen[True]) is alike
    assert (one.drawn == two.drawn) is alike


def test_neighbouring_seeds_share_no_epoch(start_run: StartRun) -> None:
    networks = []
    for seed in (0, 1, 2):
        run, _ = start_run(str(seed), epochs=3, batch_size=50, seed=seed)
        networks.append(Recorder())
        train(run, networks[-1], numbered(50), numbered(1))
    assert len({draw for network in networks for draw in network.drawn}) == 9
    assert len({tuple(order) for network in networks for order in network.seen[True]}) == 9


def test_training_uses_the_training_images_alone_and_validation_the_others(start_run: StartRun) -> None:
    run, _ = start_run(epochs=2, batch_size=300)
    network = Recorder()
    validation = Split(numbered(330).images[300:], np.zeros(30, np.int64))
    train(run, network, numbered(300), validation)
    assert [sorted(batch) for batch in network.seen[True]] == [list(range(300))] * 2
    assert network.seen[False] == [list(range(300, 330))] * 2


def test_targets_stay_with_their_images(start_run: StartRun) -> None:
    images = np.repeat(np.array([[[[0]]], [[[255]]]], np.uint8), 16, axis=0)
    targets = np.repeat([0, 1], 16)
    run, _ = start_run(epochs=30, batch_size=8, learning_rate=0.1)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    best = train(run, network, Split(images, targets), Split(images, targets))
    assert best.val_accuracy == 1
    assert best.val_loss < 0.1


# Recipe


@pytest.mark.parametrize(("weight_decay", "expected"), [(0.5, (1 - 0.1 * 0.5) ** 2), (0.0, 1.0)])
def test_weight_decay_shrinks_a_weight_independently_of_its_gradient(
    start_run: StartRun, weight_decay: float, expected: float
) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:  # the gradient is 0
            return (0 * self.weight).expand(len(x), 2)

    run, _ = start_run(epochs=1, batch_size=2, learning_rate=0.1, weight_decay=weight_decay)
    network = Idle()
    train(run, network, numbered(4), numbered(1))  # two steps
    assert network.weight.item() == pytest.approx(expected)


def test_adam_has_keras_epsilon(start_run: StartRun) -> None:
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:  # the gradient of the first step is 1e-7
            return torch.stack([-2e-7 * self.weight, torch.zeros(1)], dim=1).expand(len(x), 2)

    run, _ = start_run(epochs=1, batch_size=2, learning_rate=1.0)
    network = Faint()
    train(run, network, numbered(2), numbered(1))
    assert network.weight.item() == pytest.approx(-1e-7 / (1e-7 + 1e-7), rel=0.01)


def test_the_learning_rate_is_the_size_of_adams_first_step(start_run: StartRun) -> None:
    run, _ = start_run(epochs=1, batch_size=2, learning_rate=0.03)
    network = Recorder()
    train(run, network, numbered(2), numbered(1))
    assert abs(network.weight.item()) == pytest.approx(0.03, rel=1e-3)


def test_dropout_takes_effect(start_run: StartRun, few: Split, digits: Dataset) -> None:
    losses = []
    for dropout in (0.0, 0.9):
        run, network = start_run(str(dropout), epochs=3, dropout=dropout)
        train(run, network, few, digits.val, Callbacks(on_epoch=lambda epoch: losses.append(epoch.loss)))
    assert losses[2] < losses[5] / 2  # a network that drops nine of ten units learns more slowly


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (96, 32, [32, 32, 32]),
        (98, 32, [32, 32, 32, 2]),
        (97, 32, [32, 32, 33]),
        (33, 32, [33]),
        (5, 2, [2, 3]),
        (20, 32, [20]),
        (1, 32, [1]),
    ],
)
def test_no_batch_of_one_is_left_over_and_no_image_is_lost(count: int, batch_size: int, expected: list[int]) -> None:
    order = np.random.default_rng(0).permutation(count)
    batches = split_batches(order, batch_size)
    assert [len(batch) for batch in batches] == expected
    assert np.concatenate(batches).tolist() == order.tolist()


def test_a_left_over_image_does_not_stop_the_training(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=1)
    train(run, network, Split(few.images[:33], few.targets[:33]), digits.val)
    assert run.has_weights()


# Figures


def test_steps_are_reported_with_their_number_and_loss(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=2, batch_size=40)
    reported: list[tuple[int, int, float]] = []
    train(run, network, few, digits.val, Callbacks(on_step=lambda *step: reported.append(step)))
    assert [step[:2] for step in reported] == [(1, 3), (2, 3), (3, 3)] * 2
    assert all(math.isfinite(loss) for *_, loss in reported)


def test_an_epochs_loss_is_the_mean_over_images_not_over_batches(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(epochs=1, batch_size=40)  # 40, 40 and 16
    losses: list[float] = []
    best = train(run, network, few, digits.val, Callbacks(on_step=lambda step, steps, loss: losses.append(loss)))
    assert best.loss == pytest.approx((40 * losses[0] + 40 * losses[1] + 16 * losses[2]) / 96)


def test_an_epochs_accuracy_is_the_share_of_training_images_that_were_right(start_run: StartRun) -> None:
    split = Split(numbered(8).images, np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    run, _ = start_run(epochs=1, batch_size=3)
    best = train(run, Scripted([[1.0], [1.0], [1.0]]), split, numbered(1))  # in train mode, always label 0
    assert best.train_accuracy == 0.75


def test_an_epochs_cross_entropy_has_neither_label_smoothing_nor_label_weights(start_run: StartRun) -> None:
    """It can be compared with the validation loss, which has neither."""
    split = Split(numbered(8).images, np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    run, _ = start_run(epochs=1, batch_size=3, label_smoothing=0.2, balance=True, learning_rate=1e-12)
    network = nn.Sequential(nn.Flatten(), last := nn.Linear(3, 2))
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([1.0, 0.0])  # each image gets these logits
    best = train(run, network, split, split)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert best.cross_entropy is not None
    assert best.cross_entropy == pytest.approx((6 * right + 2 * wrong) / 8)
    assert best.cross_entropy == pytest.approx(best.val_loss)
    assert best.loss > best.cross_entropy + 0.05


def test_metrics_hold_a_line_for_every_epoch(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=3)
    epochs: list[Epoch] = []
    train(run, network, few, digits.val, Callbacks(on_epoch=epochs.append))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"epoch", "layers"}  # the statistics of batch norm before the first step
    assert lines[0]["epoch"] == 0
    assert [Epoch(**line) for line in lines[1:]] == epochs
    assert all(len(line["layers"]) == 5 for line in lines)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]


def test_validation_figures_are_those_of_eval_mode_with_the_statistics_of_the_training_images(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(epochs=1)
    best = train(run, network, few, digits.val)
    lagging, _ = evaluate(network, digits.val)
    recompute_statistics(network, few)  # as the export does
    with torch.no_grad():
        logits = network(scale_pixels(torch.from_numpy(digits.val.images)))
    targets = torch.from_numpy(digits.val.targets)
    assert best.val_accuracy == pytest.approx((logits.argmax(1) == targets).double().mean().item(), abs=5 / 143)
    assert best.val_loss == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=0.05)
    assert best.val_accuracy > lagging + 0.1


def test_the_epoch_is_chosen_by_the_weights_that_are_exported(start_run: StartRun, digits: Dataset) -> None:
    """Moving averages that lag would choose the epoch in which they happen to lag least."""
    run, network = start_run(epochs=4, batch_size=256)
    exact: list[float] = []

    def measure(_: Epoch) -> None:
        twin = copy.deepcopy(network)
        recompute_statistics(twin, digits.train)
        exact.append(evaluate(twin, digits.val)[0])

    best = train(run, network, digits.train, digits.val, Callbacks(on_epoch=measure))
    assert max(exact) - exact[best.epoch - 1] <= 2 / 143
    assert best.val_accuracy == pytest.approx(exact[best.epoch - 1], abs=2 / 143)


def test_validation_leaves_the_moving_statistics_as_training_moved_them(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(epochs=1, dropout=0.0)
    twin = copy.deepcopy(network)
    train(run, network, few, digits.val)
    order = np.random.default_rng([0, 1]).permutation(96)  # the first epoch's
    optimizers = make_optimizers(twin, run.config.recipe)
    twin.to(memory_format=torch.channels_last).train()
    for batch in order.reshape(3, 32):
        x, targets = scale_pixels(torch.from_numpy(few.images[batch])), torch.from_numpy(few.targets[batch])
        optimizers[0].zero_grad()
        functional.cross_entropy(twin(x), targets).backward()
        optimizers[0].step()
    assert equal(state_of(network), state_of(twin))


# The best epoch

RIGHT, WRONG = 1.0, -1.0


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([[WRONG, RIGHT], [RIGHT, RIGHT], [RIGHT, WRONG]], 2),  # the highest accuracy, at any epoch
        ([[RIGHT, RIGHT], [RIGHT, WRONG], [WRONG, WRONG]], 1),
        ([[WRONG, WRONG], [RIGHT, WRONG], [RIGHT, RIGHT]], 3),
        ([[0.1, 0.1], [9.0, -0.1], [9.0, -0.1]], 1),  # accuracy decides before loss
        ([[1.0, 1.0], [2.0, 2.0], [1.5, 1.5]], 2),  # equal accuracy: the lowest loss
        ([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], 1),  # equal in both: the first
    ],
)
def test_validation_chooses_the_weights_that_are_kept(
    start_run: StartRun, script: list[list[float]], best: int
) -> None:
    run, _ = start_run(epochs=len(script))
    chosen = train(run, Scripted(script), numbered(8), numbered(2))
    kept = Scripted(script)
    run.load_weights(kept)
    assert (chosen.epoch, kept.steps.item()) == (best, best)


def test_the_weights_kept_are_those_of_the_best_epoch(start_run: StartRun, few: Split, digits: Dataset) -> None:
    misled = Split(digits.val.images, (digits.val.targets + 1) % 10)  # learning more lowers this accuracy
    run, network = start_run(epochs=5, learning_rate=2e-3)
    epochs: list[tuple[Epoch, State]] = []
    best = train(run, network, few, misled, Callbacks(on_epoch=lambda epoch: epochs.append((epoch, state_of(network)))))
    expected, state = max(epochs, key=lambda epoch: (epoch[0].val_accuracy, -epoch[0].val_loss))
    assert best == expected
    assert best.epoch < 5
    assert equal(saved_state(run), state)
    assert not equal(saved_state(run), state_of(network))


# Faults and interruptions


def test_an_exploding_loss_stops_the_training_with_its_step_and_advice(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(epochs=2, learning_rate=1e30)
    with pytest.raises(TrainingDiverged) as stop:
        train(run, network, few, digits.val)
    assert "the loss is nan at epoch 1, step 2 of 3" in str(stop.value)
    assert "try a lower --learning-rate" in str(stop.value)
    assert stop.value.exit_code == 1


def test_an_infinite_loss_stops_the_training_too(start_run: StartRun) -> None:
    class Sure(nn.Module):
        """Logits as wrong as float32 allows, without a NaN."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([-3e38, 3e38]))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.expand(len(x), 2)

    run, _ = start_run(epochs=1)
    with pytest.raises(TrainingDiverged, match="the loss is inf at epoch 1, step 1 of 1"):
        train(run, Sure(), numbered(4), numbered(1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_keeps_the_best_weights_of_earlier_epochs(
    start_run: StartRun, few: Split, digits: Dataset, value: float
) -> None:
    run, network = start_run(epochs=3)
    good: list[State] = []

    def spoil(epoch: Epoch) -> None:
        good.append(state_of(network))
        with torch.no_grad():
            next(network.parameters()).view(-1)[0] = value

    with pytest.raises(TrainingDiverged, match="at epoch 2, step 1 of 3"):
        train(run, network, few, digits.val, Callbacks(on_epoch=spoil))
    assert equal(saved_state(run), good[0])


def test_a_diverging_step_changes_no_weight(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=1)
    with torch.no_grad():
        network.classifier[-1].bias[0] = math.nan
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    with pytest.raises(TrainingDiverged):
        train(run, network, few, digits.val)
    after = dict(network.named_parameters())
    assert all(torch.equal(after[name].nan_to_num(7), value.nan_to_num(7)) for name, value in before.items())


def test_weights_that_validate_to_nan_are_never_kept_as_the_best(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(epochs=1, batch_size=96, learning_rate=1e30)  # the only step explodes
    with pytest.raises(
        TrainingDiverged, match=r"the loss is nan at epoch 1, in validation: .* try a lower --learning-rate"
    ):
        train(run, network, few, digits.val)
    assert not run.has_weights()


class Stop:
    """Ctrl-C at one step of one epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.epoch, self.step, self.epochs_done = epoch, step, 0

    def on_step(self, step: int, steps: int, loss: float) -> None:
        if (self.epochs_done + 1, step) == (self.epoch, self.step):
            raise KeyboardInterrupt

    def on_epoch(self, epoch: Epoch) -> None:
        self.epochs_done += 1


def test_ctrl_c_in_the_first_epoch_leaves_the_weights_so_far(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=2)
    stop = Stop(epoch=1, step=2)
    with pytest.raises(KeyboardInterrupt):
        train(run, network, few, digits.val, Callbacks(on_step=stop.on_step, on_epoch=stop.on_epoch))
    assert equal(saved_state(run), state_of(network))


def test_ctrl_c_leaves_no_weights_that_are_nan_or_infinite(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=2)
    initial = state_of(network)

    def explode(*_: object) -> None:
        next(network.parameters()).data.fill_(torch.inf)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, network, few, digits.val, Callbacks(on_step=explode))
    assert equal(saved_state(run), initial)


def test_ctrl_c_later_leaves_the_best_weights(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=2)
    stop = Stop(epoch=2, step=1)
    states: list[State] = []

    def on_epoch(epoch: Epoch) -> None:
        stop.on_epoch(epoch)
        states.append(state_of(network))

    with pytest.raises(KeyboardInterrupt):
        train(run, network, few, digits.val, Callbacks(on_step=stop.on_step, on_epoch=on_epoch))
    assert equal(saved_state(run), states[0])
    assert not equal(saved_state(run), state_of(network))


# Evaluation and devices


def test_evaluating_leaves_the_moving_statistics_alone(start_run: StartRun, digits: Dataset) -> None:
    _, network = start_run()
    network.train()
    before = state_of(network)
    evaluate(network, digits.val)
    assert equal(state_of(network), before)


def test_evaluating_counts_every_image_of_every_batch(start_run: StartRun, digits: Dataset) -> None:
    _, network = start_run()
    accuracy, loss = evaluate(network, digits.train)  # 1,295 images are more than one batch
    with torch.no_grad():
        logits = network.eval()(scale_pixels(torch.from_numpy(digits.train.images)))
    targets = torch.from_numpy(digits.train.targets)
    assert accuracy == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert loss == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=1e-5)


def test_predicting_gives_logits_in_eval_mode_in_the_order_of_the_images(start_run: StartRun, digits: Dataset) -> None:
    _, network = start_run()
    network.train()
    logits = predict_logits(network, digits.train)
    assert not any(module.training for module in network.modules())
    assert (logits.shape, logits.dtype, logits.device.type) == ((1295, 10), torch.float32, "cpu")
    with torch.no_grad():
        one = network(scale_pixels(torch.from_numpy(digits.train.images[700:701])))
    torch.testing.assert_close(logits[700:701], one, rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU here")
def test_cuda_without_a_gpu_is_refused_with_the_option_to_use() -> None:
    with pytest.raises(NetworkError, match=r"--device cuda: torch .* finds no usable GPU; use --device cpu"):
        choose_device("cuda")


def test_auto_chooses_the_gpu_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cpu_is_the_cpu_on_every_machine() -> None:
    assert choose_device("cpu").type == "cpu"


# Compact's recipe


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0)])
def test_muons_learning_rate_is_a_triangle(progress: float, share: float) -> None:
    assert schedule(Recipe(optimizer="muon"), progress) == pytest.approx(share)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
def test_adams_learning_rate_is_constant(progress: float) -> None:
    assert schedule(Recipe(optimizer="adam"), progress) == 1.0


def test_the_learning_rate_follows_the_schedule_to_the_last_step(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    """Six steps in two epochs: the middles of the epochs' last steps are at 5/12 and 11/12 of the training."""
    run, network = start_run(network="compact", optimizer="muon", learning_rate=0.1, epochs=2)
    epochs: list[Epoch] = []
    train(run, network, few, digits.val, Callbacks(on_epoch=epochs.append))
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx([0.1 * (7 / 12) / 0.9, 0.1 * (1 / 12) / 0.9])


def test_muon_updates_the_convolutions_and_sgd_all_other_weights_that_are_not_frozen(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(network="compact", optimizer="muon", learning_rate=0.1, epochs=1)
    before = state_of(network)
    muon, sgd = make_optimizers(network, run.config.recipe)
    assert {tuple(w.shape)[2:] for group in muon.param_groups for w in group["params"]} == {(3, 3)}
    assert all(w.ndim < 4 for group in sgd.param_groups for w in group["params"])
    train(run, network, few, digits.val)
    changed = {name for name, value in state_of(network).items() if not torch.equal(value, before[name])}
    assert changed == set(before) - {"whitening.weight"}


def test_initial_weights_are_saved_in_addition_to_the_best(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=1)
    before = state_of(network)
    train(run, network, few, digits.val)
    initial = run.config.build_network()
    run.load_weights(initial, "initial")
    assert equal(state_of(initial), before)
    assert not equal(saved_state(run), before)


def test_compact_is_whitened_with_training_images(digits: Dataset) -> None:
    network = build_network("compact", (8, 8, 1), 10, 1.0, 0.0)
    assert isinstance(network, Compact)
    before = network.whitening.weight.clone()
    prepare_network(network, digits.train)
    assert not torch.equal(network.whitening.weight, before)
    seen = network.whitening(scale_pixels(torch.from_numpy(digits.train.images)))[:, :4].transpose(0, 1).flatten(1)
    moments = seen @ seen.T / seen.shape[1]
    assert torch.allclose(moments, torch.eye(4), atol=0.02)


def record_views(start_run: StartRun, name: str, **recipe: object) -> list[list[int]]:
    """For each of two epochs: ten times the bright pixels of every image, plus 1 if its first pixel is bright."""
    count = 64
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[:, :, :2, 0] = 200
    split = Split(images, np.zeros(count, np.int64))
    run, _ = start_run(name, epochs=2, **recipe)
    seen: list[list[int]] = [[]]

    class Watch(Recorder):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen[-1] += (x[:, 0] > 0).flatten(1).sum(1).mul(10).add(x[:, 0, 0, 0] > 0).tolist()
            return self.weight * x.new_ones(len(x), 2)

    def next_epoch(_: Epoch) -> None:
        seen.append([])

    train(run, Watch(), split, split, Callbacks(on_epoch=next_epoch))
    return seen[:2]


def test_mirroring_flips_half_of_the_images_in_each_epoch(start_run: StartRun) -> None:
    for epoch in record_views(start_run, "mirrored", mirror=True):
        assert epoch.count(81) == epoch.count(80) == 32  # 8 bright pixels, at the left or not


def test_without_mirroring_and_shifts_images_are_unchanged(start_run: StartRun) -> None:
    assert record_views(start_run, "plain", mirror=False, shift=0) == [[81] * 64] * 2


def test_shifts_move_images_in_training(start_run: StartRun) -> None:
    first, second = record_views(start_run, "shifted", mirror=False, shift=1)
    assert len(set(first)) > 1
    assert first != second


def test_label_smoothing_is_part_of_the_loss(start_run: StartRun, few: Split, digits: Dataset) -> None:
    losses = []
    for name, smoothing in (("sharp", 0.0), ("smooth", 0.5)):
        run, network = start_run(name, epochs=1, batch_size=96, dropout=0.0, label_smoothing=smoothing)
        logits = network.train()(scale_pixels(torch.from_numpy(few.images)))
        expected = functional.cross_entropy(logits, torch.from_numpy(few.targets), label_smoothing=smoothing).item()
        run, network = start_run(name + "2", epochs=1, batch_size=96, dropout=0.0, label_smoothing=smoothing)
        losses.append(train(run, network, few, digits.val).loss)
        assert losses[-1] == pytest.approx(expected, rel=1e-5)
    assert losses[0] != losses[1]


def test_balancing_gives_every_label_the_same_weight() -> None:
    targets = np.repeat([0, 1, 2], [60, 30, 10])
    weights = balance_labels(Split(np.zeros((100, 1, 1, 1), np.uint8), targets)).numpy()
    assert weights[targets].mean() == pytest.approx(1)
    assert np.bincount(targets) * weights == pytest.approx([100 / 3] * 3)


def test_balancing_counts_a_rare_label_as_much_as_a_frequent_one(start_run: StartRun) -> None:
    """A network that learns only the share of each label learns equal shares if labels are balanced."""
    split = Split(np.zeros((100, 8, 8, 1), np.uint8), np.repeat([0, 1], [90, 10]))
    shares = []
    for name, balance in (("as they are", False), ("balanced", True)):
        run, _ = start_run(name, epochs=60, batch_size=100, learning_rate=0.1, balance=balance)
        network = Guess()
        train(run, network, split, split)
        shares.append(torch.softmax(network.logits, 0)[1].item())
    assert shares == pytest.approx([0.1, 0.5], abs=0.02)


class Guess(nn.Module):
    """The same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 2)


@pytest.mark.parametrize(("side", "count"), [(32, 513), (128, 40), (1000, 3)])
def test_evaluation_bounds_the_pixels_of_a_batch_and_misses_no_image(side: int, count: int) -> None:
    images = np.broadcast_to(np.arange(count, dtype=np.uint16).reshape(-1, 1, 1, 1), (count, side, side, 3))
    batches = split_evaluation(images)  # type: ignore[arg-type]  # 16 bits, so that every image has its own value
    assert np.concatenate([batch[:, 0, 0, 0] for batch in batches]).tolist() == list(range(count))
    assert len(batches) > 1
    assert all(len(batch) == 1 or batch[..., 0].size <= 2**19 for batch in batches)


@pytest.mark.parametrize("shape", [(40, 28, 28), (197, 768)])  # EfficientNet-Lite0 at 224x224, and tokens
def test_evaluation_bounds_the_values_of_a_batch_of_maps(shape: tuple[int, ...]) -> None:
    maps = np.broadcast_to(np.float16(0), (1800, *shape))
    assert 2**18 < count_batch(maps) * maps[0].size <= 2**19
