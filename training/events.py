"""Train with events for TensorBoard, and with Ctrl-C between two steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from training.callbacks import Callbacks
from training.checkpoint import Epoch
from training.datasets import Split
from training.interrupts import delay_interrupts
from training.loop import Execution, train
from training.networks import explain
from training.run import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = ("loss", "train_accuracy", "val_accuracy", "val_loss", "learning_rate")


def train_with_events(
    run: Run,
    network: nn.Module,
    train_split: Split,
    val_split: Split,
    callbacks: Callbacks,
    execution: Execution,
) -> Epoch:
    """Train a network as ``train`` does, with events for TensorBoard; Ctrl-C takes effect between two steps.

    Args:
        run: Holds the recipe. Its folder gets the weights, the figures and the events.
        network: The network, on the device to train on.
        train_split: The training images.
        val_split: The validation images, which choose the best epoch.
        callbacks: ``on_step``, ``on_epoch`` and ``on_warning`` are called.
        execution: How to run the training.

    Returns:
        The figures of the epoch whose weights the run keeps.

    Raises:
        NetworkError: The checkpoints of the run belong to another network.
        TrainingDiverged: A loss or a gradient is NaN or infinite.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    events_of = _open_events(run.folder, callbacks) if execution.ranks.is_first else nullcontext()
    with events_of as events, delay_interrupts() as check_interrupt:

        def on_step(step: int, steps: int, loss: float) -> None:
            callbacks.on_step(step, steps, loss)
            check_interrupt()

        def on_epoch(epoch: Epoch) -> None:
            callbacks.on_epoch(epoch)
            for warning in epoch.warnings:
                callbacks.on_warning(warning)
            if events:
                for name in EVENTS:
                    events.add_scalar(name, getattr(epoch, name), epoch.epoch)

        wrapped = replace(callbacks, on_step=on_step, on_epoch=on_epoch)
        return train(run, network, train_split, val_split, wrapped, execution)


def _open_events(folder: Path, callbacks: Callbacks) -> AbstractContextManager[SummaryWriter | None]:
    """Open the event file of TensorBoard, if tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return nullcontext()
    except Exception as error:  # tensorboard of an incompatible build, or for another version of protobuf
        callbacks.on_warning(f"no events for TensorBoard, which is installed but cannot be imported: {explain(error)}")
        return nullcontext()
    try:
        return SummaryWriter(folder)
    except UnicodeEncodeError:
        callbacks.on_warning(f"no events for TensorBoard, which cannot use a folder whose name is not UTF-8: {folder}")
        return nullcontext()
