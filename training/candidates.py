"""Train a pretrained and a new network on the same data, and let the validation images choose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from evalmode.files import write_atomically
from training.callbacks import Callbacks
from training.choice import PHOTO_NETWORK, THUMBNAIL_NETWORK
from training.errors import RunError
from training.fit import fit
from training.options import AUTO, TrainOptions
from training.run import CHOSEN, Run, claim_folder

CANDIDATES = (PHOTO_NETWORK, THUMBNAIL_NETWORK)
UNUSED: dict[str, Any] = {"fine_tune": AUTO, "weights": None}  # of a network that is trained from scratch


def fit_candidates(data: str, out: Path, options: TrainOptions, callbacks: Callbacks) -> Run:
    """Train each candidate in a folder of its name inside the run folder, and choose the one that validates best.

    Args:
        data: Path or name of the data set.
        out: Run folder; new or empty, unless the training is resumed. ``chosen.json`` in it names the chosen network.
        options: How to train; its network is ``auto``.
        callbacks: Functions to call with the progress of both trainings.

    Returns:
        The run of the chosen network; ``Run.open`` of the folder returns it, too.

    Raises:
        EvalmodeError: See ``fit``.
        RunError: There are several processes, or the folder holds a run that compares nothing.
    """
    if dist.is_torchelastic_launched():
        raise RunError("--compare trains in one process: start it without torchrun, or train each --network by itself")
    if not options.resume:
        claim_folder(out)
    elif (out / "run.json").exists():
        raise RunError(f"{out} holds a training of one network: resume it without --compare")
    half = None if options.minutes is None else options.minutes / 2
    each = replace(options, compare=False, minutes=half)
    runs = [
        fit(data, out / PHOTO_NETWORK, replace(each, network=PHOTO_NETWORK), callbacks),
        fit(data, out / THUMBNAIL_NETWORK, replace(each, network=THUMBNAIL_NETWORK, **UNUSED), callbacks),
    ]
    accuracies = {run.config.recipe.network: run.read_result().exact_val_accuracy for run in runs}
    chosen = max(CANDIDATES, key=lambda name: accuracies[name])  # of equal ones the first
    write_atomically(out / CHOSEN, json.dumps({"network": chosen, "val_accuracy": accuracies}, indent=1))
    figures = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
    callbacks.on_notice(f"chosen by the accuracy on validation images: {chosen} ({figures}); {out} is its run")
    return runs[CANDIDATES.index(chosen)]
