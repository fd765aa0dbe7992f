"""For test_transfer.py: ``transfer_job.py FOLDER`` trains in child processes, kills them at some moments, and resumes.

Each child is a fork of this process, which imports torch once and never runs it.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.training.graphs import keep_graphs
from tests.training.tiny_backbone import NAME, save_dataset
from training import features, trial
from training.callbacks import Callbacks
from training.fit import fit
from training.options import TrainOptions

folder = Path(sys.argv[1])
torch.set_num_threads(1)
vars(features)["convert"] = keep_graphs(folder)  # these and the trial of a network would take most of the time
vars(trial)["try_network"] = lambda *_: None
data = save_dataset(folder)
OPTIONS: dict[str, Any] = {
    "network": NAME,
    "fine_tune": "1",
    "epochs": 3,
    "learning_rate": 0.01,
    "report": False,
    "device": "cpu",
}


def die(*_: object) -> None:
    """End this process as the kernel does if memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(count: int) -> Callable[..., None]:
    """Return a callback that ends the process at its n-th call."""
    calls = iter(range(1, 10**6))
    return lambda *_: die() if next(calls) == count else None


def start(name: str, callbacks: Callbacks, resume: bool) -> int:
    """Train in a child process, and return its exit status."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        fit(data, folder / name, TrainOptions(**OPTIONS, resume=resume), callbacks)
    finally:
        os._exit(1 if sys.exc_info()[0] else 0)


MOMENTS = {
    "features": Callbacks(on_load=die_at(2)),
    "head": Callbacks(on_stage=die_at(2)),
    "step": Callbacks(on_step=die_at(1)),
    "epoch": Callbacks(on_epoch=die_at(1)),
    "fine-tune": Callbacks(on_stage=die_at(3)),
    "end": Callbacks(on_outcome=die),
}
assert start("whole", Callbacks(), resume=False) == 0
for name, callbacks in MOMENTS.items():
    assert os.WIFSIGNALED(start(name, callbacks, resume=False)), name
    assert start(name, Callbacks(), resume=True) == 0, name
print(*MOMENTS)
