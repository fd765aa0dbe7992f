"""For test_ranks.py: ``ranks_job.py FOLDER RECIPE [EPOCHS]``, in processes with the variables that torchrun sets.

Each process writes its final state. RECIPE is JSON. With "spoil": N, training image N becomes a NaN in the network's
input, whichever process gets it.
"""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from evalmode.errors import EvalmodeError
from training.callbacks import Callbacks
from training.datasets import ReadOptions, Split, load_dataset
from training.loop import Execution, train
from training.networks import inputs, scale_pixels
from training.ranks import check_ranks, join_ranks
from training.recipe import Recipe
from training.run import Run
from training.run_config import RunConfig
from training.statistics import recompute_statistics

folder, recipe = Path(sys.argv[1]), json.loads(sys.argv[2])
stop_after = int(sys.argv[3]) if len(sys.argv) > 3 else None
spoil = recipe.pop("spoil", None)
torch.set_num_threads(1)
digits = load_dataset("digits")
few = Split(
    digits.train.images[:201].copy(), digits.train.targets[:201]
)  # batches of 40 and a last one of 41; or of 99 and 3


def keep(network: nn.Module, name: str) -> None:
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / f"{name}.safetensors")


def linear(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Without batch norm and dropout the result does not depend on how a batch is divided."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


def normed(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """With batch norm whose statistics are over the images of a batch alone."""
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size := channels * height * width), nn.Linear(size, classes))


def spoil_pixels(pixels):
    """Scale pixels, and turn the value 254, which no digit has, into NaN."""
    return scale_pixels(pixels).masked_fill((pixels == 254).permute(0, 3, 1, 2), torch.nan)


if spoil is not None:
    few.images[spoil, 3, 3] = 254
    inputs.scale_pixels = spoil_pixels


def stop(epoch):
    if epoch.epoch == stop_after:
        raise KeyboardInterrupt


def count_gloo_threads() -> int:
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


config = RunConfig.of(digits, ReadOptions(), Recipe(**recipe))
folder.mkdir(exist_ok=True)
try:
    with join_ranks(torch.device("cpu")) as ranks:
        torch.manual_seed(ranks.number)  # the weights of the first process must replace the others
        network = config.build_network()
        check_ranks(ranks, config.recipe, digits)
        resuming = (folder / "run.json").exists()
        run = Run(folder, config) if resuming or not ranks.is_first else Run.create(folder, config)
        ranks.broadcast(None)  # before the others write their final state
        train(run, network, few, digits.val, Callbacks(on_epoch=stop), Execution(ranks=ranks))
        keep(network, f"moving-{ranks.number}")
        recompute_statistics(network, digits.train, ranks)
        assert count_gloo_threads() > 0
except (EvalmodeError, KeyboardInterrupt) as error:
    message, threads = repr(error), count_gloo_threads()  # while the error and its references are alive
else:
    message, threads = "", count_gloo_threads()
keep(network, f"ended-{ranks.number}")
(folder / f"error-{ranks.number}.txt").write_text(message)
(folder / f"threads-{ranks.number}.txt").write_text(str(threads))
