"""Every check of a network, by its name and in order: ``certify`` requires all to pass, ``check`` reports each.

A check raises an EvalmodeError that says what is wrong, or returns what it found in words. To add one, write the
function and enter it in one of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from evalmode.artifact.sealing import check_operators
from evalmode.certification.golden import Claim, Replay, check_decoder, check_labels, check_replay
from evalmode.certification.graph import check_eval_mode, check_finite
from evalmode.certification.runs import Probe, check_batches, check_outputs, check_repeats

GRAPH_CHECKS: Mapping[str, Callable[[onnx.ModelProto], str]] = {
    "operators": check_operators,
    "eval mode": check_eval_mode,
    "weights": check_finite,
}
RUN_CHECKS: Mapping[str, Callable[[Probe], str]] = {
    "outputs": check_outputs,
    "repeats": check_repeats,
    "batches": check_batches,
}
DECODER_CHECKS: Mapping[str, Callable[[Claim], str]] = {"decoder": check_decoder}
REPLAY_CHECKS: Mapping[str, Callable[[Replay], str]] = {"replay": check_replay}
LABEL_CHECKS: Mapping[str, Callable[[Claim], str]] = {"labels": check_labels}
