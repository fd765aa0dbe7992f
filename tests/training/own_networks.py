"""Networks of users: some train and export, each of the others fails for a different reason."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import evalmode


class Plain(nn.Module):
    """A convolution and a dense layer; each other network differs from it in one property."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dense = nn.Linear(8, classes)
        self.recipe: Any = {}

    def see(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.dense(self.see(x).mean((2, 3)))
        return logits


def plain(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Plain(channels, classes)


# These train and export


def weight_norm(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    parametrizations.weight_norm(network.stem)
    return network


def spectral_norm(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    parametrizations.spectral_norm(network.stem)
    return network


def old_weight_norm(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Weight norm by hooks and attributes: such a network cannot be copied."""
    network = Plain(channels, classes)
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        nn.utils.weight_norm(network.stem)
    return network


class Shared(Plain):
    """One convolution and one batch norm, each under two names and called twice."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.middle

    def see(self, x: Tensor) -> Tensor:
        x = self.middle(super().see(x))
        return functional.relu(self.norm(self.again(functional.relu(self.norm(x)))))


def shared_modules(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Shared(channels, classes)


class SharedBuffers(Plain):
    """Two batch norms with the same statistics."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.second = nn.BatchNorm2d(8)
        self.second.running_mean, self.second.running_var = self.norm.running_mean, self.norm.running_var

    def see(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(super().see(x)))


def shared_buffers(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return SharedBuffers(channels, classes)


class Keeps(Plain):
    """Keeps its last activation, counts its calls, and calls its batch norm by keyword."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.calls = 0

    def see(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = functional.relu(self.norm(input=self.stem(x)))
        return self.seen


def keeps_activations(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Keeps(channels, classes)


class NoReturn(Plain):
    """train() returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def train_returns_nothing(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return NoReturn(channels, classes)


class Frozen(Plain):
    """A backbone whose batch norm stays in eval mode with its own statistics, as in fine-tuning."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.head = nn.BatchNorm1d(8)
        self.norm.requires_grad_(False)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean += 0.3
        self.norm.running_var *= 0.2

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.dense(self.head(self.see(x).amax((2, 3))))
        return logits


def frozen(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Frozen(channels, classes)


class Scaled(Plain):
    """Logits in the hundreds, or in the thousandths."""

    def __init__(self, channels: int, classes: int, factor: float) -> None:
        super().__init__(channels, classes)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


def large_logits(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Scaled(channels, classes, 3000.0)


def small_logits(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Scaled(channels, classes, 1e-3)


def ends_in_softmax(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return nn.Sequential(Plain(channels, classes), nn.Softmax(1))


# These cannot be trained or exported


def wrong_signature(num_classes: int = 10) -> nn.Module:
    return nn.Linear(1, num_classes)


def missing_import(channels: int, height: int, width: int, classes: int) -> nn.Module:
    import not_installed_at_all  # type: ignore[import-not-found]

    return not_installed_at_all.Network()


def downloads(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.load_state_dict(torch.hub.load_state_dict_from_url("http://127.0.0.1:9/weights.pth", progress=False))
    return network


def fails(channels: int, height: int, width: int, classes: int) -> nn.Module:
    raise KeyError("layers\nof which there are none")


def exits(channels: int, height: int, width: int, classes: int) -> nn.Module:
    raise SystemExit(3)


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


def no_parameters(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return NoParameters()


def all_frozen(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Plain(channels, classes).requires_grad_(False)


class Auxiliary(Plain):
    """Returns two tensors of logits in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits  # type: ignore[return-value]


def auxiliary(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Auxiliary(channels, classes)


class WantsSize(Plain):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[-1] == 224, f"expected 224, got {x.shape[-1]}")
        return super().forward(x)


def wants_size(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return WantsSize(channels, classes)


class FailsInTraining(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise LookupError("no mask")
        return super().forward(x)


def fails_in_training(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return FailsInTraining(channels, classes)


class Dropping(Plain):
    """Dropout that eval() does not switch off."""

    def see(self, x: Tensor) -> Tensor:
        return functional.dropout(super().see(x), 0.5)


def functional_dropout(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Dropping(channels, classes)


class Drawing(Plain):
    """Draws from the generators of Python, NumPy and torch."""

    def see(self, x: Tensor) -> Tensor:
        return super().see(x) * (random.random() + float(np.random.rand()) + torch.rand(1))


def draws(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Drawing(channels, classes)


class Detached(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def detached(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Detached(channels, classes)


class Untracked(Plain):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


def untracked(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Untracked(channels, classes)


class Mixing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits.mean(0, keepdim=True)


def mixes(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Mixing(channels, classes)


class Branching(Plain):
    def see(self, x: Tensor) -> Tensor:
        x = super().see(x)
        return x * 2 if x.mean() > -1 else x


def branches(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Branching(channels, classes)


class AdaptiveMax(Plain):
    def see(self, x: Tensor) -> Tensor:
        return functional.adaptive_max_pool2d(super().see(x), 3)


def adaptive_max(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return AdaptiveMax(channels, classes)


class Stuck(Plain):
    """eval() has no effect."""

    def train(self, mode: bool = True) -> Stuck:
        return super().train()


def stuck(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Stuck(channels, classes)
    network.norm = nn.Identity()  # type: ignore[assignment]
    return network


def scripted(channels: int, height: int, width: int, classes: int) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes)))


class Extra(Plain):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def extra_state(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Extra(channels, classes)


# These have custom or unusual layers


class MeanOnly(nn.Module):
    """Batch norm that subtracts the mean alone (Salimans and Kingma, 1602.07868)."""

    running_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3)) if self.training else self.running_mean
        if self.training:
            self.running_mean += 0.1 * (mean.detach() - self.running_mean)
        return x - mean[:, None, None]


class MeanOnlyBatchNorm(nn.BatchNorm2d):
    """Mean-only batch norm, derived from torch's class."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.running_var = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        mean = x.mean((0, 2, 3)) if self.training else self.running_mean
        if self.training:
            self.running_mean += 0.1 * (mean.detach() - self.running_mean)
        return x - mean[:, None, None]


def mean_only(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.stem = nn.Sequential(network.stem, MeanOnly(8))  # type: ignore[assignment]
    return network


def mean_only_batch_norm(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.stem = nn.Sequential(network.stem, MeanOnlyBatchNorm(8))  # type: ignore[assignment]
    return network


class Volume(Plain):
    """Weights of five dimensions, which have no channels_last layout."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.deep = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1))

    def see(self, x: Tensor) -> Tensor:
        return self.deep(super().see(x).unsqueeze(2)).squeeze(2)


def volume(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Volume(channels, classes)


class Growing(Plain):
    """Registers another buffer during training."""

    def see(self, x: Tensor) -> Tensor:
        if self.training:
            self.register_buffer("seen", x.detach().mean())
        return super().see(x)


def grows(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Growing(channels, classes)


def instance_norm(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)  # type: ignore[assignment]
    return network


def instance_norm_untracked(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.norm = nn.InstanceNorm2d(8, affine=True)  # type: ignore[assignment]
    return network


def no_image_network(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return nn.Linear(17, classes)


def one_label_more(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Plain(channels, classes + 1)


class Doubles(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


def doubles(channels: int, height: int, width: int, classes: int) -> nn.Module:
    return Doubles(channels, classes)


# These return a backbone, or bring a recipe


class Features(nn.Sequential):
    """A convolution to 8 feature maps."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU())


def backbone(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    stages = [Features(channels), Features(8)]
    return evalmode.Backbone(stages, 8, [0.5] * channels, [0.25] * channels, recipe={"epochs": 3, "dropout": 0.4})


def pooled_backbone(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    pool = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten())
    return evalmode.Backbone([Features(channels)], 32, [0.5], [0.5], pool)


def wrong_features(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    return evalmode.Backbone([Features(channels)], 9, [0.5], [0.5])


def wrong_stages(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    return evalmode.Backbone([Features(channels), nn.Linear(3, 4)], 8, [0.5], [0.5])


class Pair(nn.Module):
    """Returns two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def paired_stages(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    return evalmode.Backbone([Features(channels), Pair()], 8, [0.5], [0.5])


def without_stages(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    return evalmode.Backbone([], 8, [0.5], [0.5])


def zero_std(channels: int, height: int, width: int, classes: int) -> evalmode.Backbone:
    return evalmode.Backbone([Features(channels)], 8, [0.5], [0.0])


def with_recipe(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.recipe = {"learning_rate": 1e-3, "optimizer": "adamw", "mirror": True}
    return network


def unknown_recipe(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.recipe = {"lr": 1e-3}
    return network


def unknown_optimizer(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.recipe = {"optimizer": "lion"}
    return network


def recipe_out_of_range(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.recipe = {"epochs": 0}
    return network


def recipe_as_text(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = Plain(channels, classes)
    network.recipe = "fast"
    return network
