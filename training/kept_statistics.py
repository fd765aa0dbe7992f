"""Check that batch norm statistics which training keeps are the same in all weights files of a run.

The moments of the inputs are compared only for layers whose statistics were recomputed. Those of a pretrained backbone
belong to other images, so that the files can only be compared with each other.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from training.datasets import Split
from training.errors import StatisticsReplaced
from training.networks import PretrainedNetwork
from training.run import BEST, EXACT, INITIAL, Run
from training.statistics import choose_layers, list_moved


def check_kept_statistics(run: Run, network: nn.Module, train: Split) -> None:
    """Compare the statistics that training keeps, bit for bit, in the weights before, of the best epoch, and exact.

    Args:
        run: The run, with its weights.
        network: The network of the run, in eval mode.
        train: The training images; two of them are run through the network.

    Raises:
        StatisticsReplaced: A file has other statistics of a layer than the one before it.
        RunError: A file is missing or damaged.
    """
    if isinstance(network, PretrainedNetwork):  # all of it stays in eval mode
        _compare(run, INITIAL, BEST, ())
    if run.has_weights(EXACT):
        moved = list_moved(run.read_statistics(INITIAL), run.read_statistics(BEST))
        recomputed = choose_layers(network, train, moved).values()
        modules = network.named_modules(remove_duplicate=False)  # a layer may have several names
        _compare(run, BEST, EXACT, [name for name, module in modules if module in recomputed])


def _compare(run: Run, earlier: str, later: str, recomputed: Collection[str]) -> None:
    """Compare the statistics of two files, except for layers that were recomputed.

    Raises:
        StatisticsReplaced: They differ.
    """
    moved = list_moved(run.read_statistics(earlier), run.read_statistics(later))
    if replaced := [name for name in moved if name not in recomputed]:
        raise StatisticsReplaced(
            f"{', '.join(replaced)}: other batch norm statistics in {later}.safetensors than in {earlier}.safetensors, "
            "although training does not change them; was a file edited since?"
        )
