"""Faults at every layer of both networks are named and undone, and no saved weight is NaN or infinite."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import StartRun
from tests.training.states import equal, state_of
from training.callbacks import Callbacks
from training.checkpoint import Epoch
from training.datasets import Dataset, Split
from training.errors import TrainingDiverged
from training.guard import Guard
from training.loop import MAX_BACK_OFFS, Execution, train
from training.networks import build_network, scale_pixels
from training.optimizers import make_optimizers, schedule
from training.run import Run

RECIPES: dict[str, dict[str, Any]] = {
    "compact": {"network": "compact", "epochs": 2, "batch_size": 32, "optimizer": "muon", "learning_rate": 0.1},
    "reference": {"network": "reference", "epochs": 2, "batch_size": 32, "optimizer": "adam", "learning_rate": 1e-3},
}
NETWORKS = {name: build_network(name, (8, 8, 1), 10, 1.0, 0.0) for name in RECIPES}
LAYERS = [
    (network, name)
    for network, built in NETWORKS.items()
    for name, layer in built.named_modules()
    if not any(layer.children())
]
WEIGHTS = [(network, name) for network, built in NETWORKS.items() for name, _ in built.named_parameters()]
LEARNED = [(one, name) for one, name in WEIGHTS if NETWORKS[one].get_parameter(name).requires_grad]


def ignore(*_: object) -> None:
    pass


def run_to_fault(run: Run, network: nn.Module, split: Split, digits: Dataset, on_epoch: Any = ignore) -> str:
    """Train until the fault and return its message; the weights that the run keeps must be finite."""
    with pytest.raises(TrainingDiverged) as stopped:
        train(run, network, split, digits.val, Callbacks(on_epoch=on_epoch))
    if run.has_weights():
        run.load_weights(kept := run.config.build_network())
        assert all(tensor.isfinite().all() for tensor in kept.state_dict().values())
    return str(stopped.value)


@pytest.mark.parametrize(("network_name", "weight"), WEIGHTS, ids=str)
@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_a_weight_that_is_nan_or_infinite_is_named(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str, weight: str, value: float
) -> None:
    run, network = start_run(**RECIPES[network_name])
    good: list[dict[str, Tensor]] = []

    def spoil(_: object) -> None:
        good.append(state_of(network))
        with torch.no_grad():
            dict(network.named_parameters())[weight].data[(0,) * dict(network.named_parameters())[weight].ndim] = value

    message = run_to_fault(run, network, few, digits, spoil)
    assert f": weight {weight} is NaN or infinite in " in message  # if no image reaches it, after a step has spread it
    assert "at epoch 2, " in message
    assert "this value was assigned or loaded" in message
    assert equal(state_of(network), good[0])  # weights and statistics, as they were after the last good epoch


@pytest.mark.parametrize(
    ("network_name", "statistic"),
    [(network, name) for network, built in NETWORKS.items() for name, _ in built.named_buffers() if "running" in name],
    ids=str,
)
def test_a_moving_statistic_that_is_nan_or_infinite_is_named(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str, statistic: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    good: list[dict[str, Tensor]] = []

    def spoil(_: object) -> None:
        good.append(state_of(network))
        network.get_buffer(statistic)[0] = math.inf

    message = run_to_fault(run, network, few, digits, spoil)
    assert f"at epoch 2, in validation: statistic {statistic} is NaN or infinite in 1 of " in message
    assert "The run keeps the weights of epoch 1" in message
    assert equal(state_of(network), good[0])


@pytest.mark.parametrize(("network_name", "layer"), LAYERS, ids=str)
def test_a_layer_whose_output_is_nan_or_infinite_is_named(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str, layer: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    initial = state_of(network)
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output * math.nan)
    message = run_to_fault(run, network, few, digits)
    assert f"output of {layer} (" in message
    assert "Weights are as large as before: look at this layer" in message
    assert equal(state_of(network), initial)


@pytest.mark.parametrize("network_name", RECIPES)
def test_a_late_fault_with_healthy_weights_is_not_blamed_on_the_weights(
    start_run: StartRun, digits: Dataset, network_name: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    layer = next(name for one, name in reversed(LAYERS) if one == network_name)
    calls: list[None] = []

    def spoil_late(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls.append(None)
        return output * (math.nan if len(calls) > 30 else 1)

    network.get_submodule(layer).register_forward_hook(spoil_late)
    message = run_to_fault(run, network, digits.train, digits)
    assert "at epoch 1, step " in message
    assert f"output of {layer} (" in message
    assert "Weights are as large as before: look at this layer" in message


def test_a_fault_that_only_some_images_cause_names_them(start_run: StartRun, few: Split, digits: Dataset) -> None:
    images = few.images.copy()
    images[7] = 255
    run, network = start_run(**RECIPES["reference"])
    last = LAYERS[-1][1]
    white: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: white.append((inputs[0] == 1).flatten(1).all(1)))
    network.get_submodule(last).register_forward_hook(
        lambda module, inputs, output: torch.where(white[-1][:, None], math.inf, output)
    )
    message = run_to_fault(run, network, Split(images, few.targets), digits)
    assert f"output of {last} (" in message
    assert "for image 7 of the training images" in message


def test_a_fault_that_depends_on_dropout_is_reproduced_and_named(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(**{**RECIPES["reference"], "dropout": 0.5})
    dropout = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Dropout))
    network.get_submodule(dropout).register_forward_hook(
        lambda module, inputs, output: output * (math.nan if output.flatten()[0] == 0 != inputs[0].flatten()[0] else 1)
    )
    message = run_to_fault(run, network, few, digits)
    assert f"output of {dropout} (Dropout) is NaN or infinite" in message


def test_a_fault_in_eval_mode_only_is_named(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(**RECIPES["compact"])
    layer = next(name for one, name in LAYERS if one == "compact")
    network.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: output * (1 if module.training else math.nan)
    )
    message = run_to_fault(run, network, few, digits)
    assert f"the loss is nan at epoch 1, in validation: output of {layer} (" in message


def test_a_nan_or_infinite_value_between_layers_is_named_by_the_next_layer(
    start_run: StartRun, few: Split, digits: Dataset
) -> None:
    run, network = start_run(**RECIPES["reference"])
    last = LAYERS[-1][1]
    network.get_submodule(last).register_forward_pre_hook(lambda module, inputs: (inputs[0] - math.inf,))
    message = run_to_fault(run, network, few, digits)
    assert f"the input of {last} (Linear) is NaN or infinite" in message


@pytest.mark.parametrize(("network_name", "weight"), LEARNED, ids=str)
def test_a_gradient_that_is_nan_or_infinite_is_detected_in_its_step(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str, weight: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    initial, learned = state_of(network), dict(network.named_parameters())[weight]
    learned.register_hook(lambda gradient: gradient * math.nan)
    message = run_to_fault(run, network, few, digits)
    assert "a gradient is NaN or infinite at epoch 1, step 1 of 3: " in message
    assert f"yet the gradient of {weight} is NaN or infinite" in message
    assert equal(state_of(network), initial)


class Spoil(torch.autograd.Function):
    """Passes values on unchanged and turns their gradient into NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


@pytest.mark.parametrize(
    ("network_name", "layer"), [(one, layer) for one, layer in LAYERS if layer != "whitening"], ids="-".join
)
def test_a_layer_whose_gradient_is_nan_or_infinite_is_named(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str, layer: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    initial = state_of(network)
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: Spoil.apply(output))
    message = run_to_fault(run, network, few, digits)
    assert "a gradient is NaN or infinite at epoch 1, step 1 of 3: gradient " in message
    assert re.search(rf": gradient (through {layer} is|of {layer}\.weight is) NaN or infinite", message)
    assert equal(state_of(network), initial)


@pytest.mark.parametrize("network_name", RECIPES)
def test_a_damaged_image_is_named(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = few.images.copy()
    images[7, 3, 3] = 254  # no digit has this value; the network gets NaN for it
    monkeypatch.setattr(
        "training.networks.inputs.scale_pixels",
        lambda pixels: scale_pixels(pixels).masked_fill((pixels == 254).permute(0, 3, 1, 2), math.nan),
    )
    run, network = start_run(**RECIPES[network_name])
    message = run_to_fault(run, network, Split(images, few.targets), digits)
    assert "image 7 of the training images holds values that are NaN or infinite" in message
    assert "The data are damaged, not the network" in message


# At 1e3 the reference's loss is thirty million and still finite, which test_warn.py covers.
@pytest.mark.parametrize(("network_name", "learning_rate"), [("compact", 1e3), ("reference", 1e30)])
@pytest.mark.parametrize("backs_off", [False, True], ids=["stop", "backoff"])
def test_a_learning_rate_that_explodes_the_weights_is_reported(
    start_run: StartRun, digits: Dataset, network_name: str, learning_rate: float, backs_off: bool
) -> None:
    run, network = start_run(**{**RECIPES[network_name], "learning_rate": learning_rate})
    initial = state_of(network)
    messages: list[str] = []
    with pytest.raises(TrainingDiverged) as stopped:
        train(
            run, network, digits.train, digits.val, Callbacks(on_warning=messages.append), Execution(back_off=backs_off)
        )
    messages.append(str(stopped.value))
    assert len(messages) == (1 + MAX_BACK_OFFS if backs_off else 1)
    assert all("Weights have exploded" in one and "try a lower --learning-rate" in one for one in messages)
    assert "Nothing was learned yet" in messages[-1]
    assert equal(state_of(network), initial)
    assert not run.has_weights()


@pytest.mark.parametrize("network_name", RECIPES)
def test_backing_off_continues_from_the_last_good_epoch_at_half_the_rate(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    warnings: list[str] = []
    epochs: list[Epoch] = []
    peak = make_optimizers(network, run.config.recipe)[0].param_groups[0]["peak_lr"]

    def spoil_once(epoch: Epoch) -> None:
        epochs.append(epoch)
        if len(epochs) == 1:
            with torch.no_grad():
                list(network.parameters())[-1].fill_(math.nan)

    train(
        run,
        network,
        few,
        digits.val,
        Callbacks(on_epoch=spoil_once, on_warning=warnings.append),
        Execution(back_off=True),
    )
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    share = schedule(run.config.recipe, (1 + 2.5 / 3) / 2)  # in the middle of the last step of three
    assert epochs[1].learning_rate == pytest.approx(share * peak / 2)
    [warning] = warnings
    assert warning.endswith(f". Continuing from the last good epoch at learning rate {peak / 2:g}")
    run.load_weights(kept := run.config.build_network())
    assert all(tensor.isfinite().all() for tensor in kept.state_dict().values())


@pytest.mark.parametrize("network_name", RECIPES)
def test_the_state_of_the_optimizers_is_restored_too(
    start_run: StartRun, few: Split, digits: Dataset, network_name: str
) -> None:
    run, network = start_run(**RECIPES[network_name])
    optimizers = make_optimizers(network, run.config.recipe)

    def step() -> None:
        network(scale_pixels(torch.from_numpy(few.images[:8]))).sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    def copy_optimizer_state() -> list[Tensor]:
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        return [value.clone() for state in states for value in state.values() if isinstance(value, Tensor)]

    step()
    guard, good = Guard(network, optimizers), copy_optimizer_state()
    step()
    guard.restore()
    assert len(good) > 0
    assert all(torch.equal(one, other) for one, other in zip(copy_optimizer_state(), good, strict=True))


def test_backing_off_ends_after_three_times(start_run: StartRun, few: Split, digits: Dataset) -> None:
    run, network = start_run(**RECIPES["reference"])
    initial = state_of(network)
    network.get_submodule(LAYERS[-1][1]).register_forward_hook(lambda module, inputs, output: output * math.nan)
    warnings: list[str] = []
    with pytest.raises(TrainingDiverged):
        train(run, network, few, digits.val, Callbacks(on_warning=warnings.append), Execution(back_off=True))
    assert len(warnings) == MAX_BACK_OFFS
    assert [warning.rpartition(" ")[2] for warning in warnings] == ["0.0005", "0.00025", "0.000125"]
    assert equal(state_of(network), initial)
