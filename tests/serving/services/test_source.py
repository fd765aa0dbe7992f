"""What the log says about a loaded version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evalmode.runtime.loading import load_artifact
from serving.services.source import Facts, log_loaded
from tests.conftest import colour_artifact


def test_a_network_that_rounds_differently_in_batches_is_logged_with_its_bound_and_its_cost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load_artifact(colour_artifact())
    log_loaded(Facts.of(model))
    assert caplog.text == ""
    log_loaded(Facts.of(replace(model, batch_invariant=False, max_batch=1)))
    (message,) = (record.getMessage() for record in caplog.records)
    assert "rounds differently in a batch than alone, within the tolerance 1e-04 of its certificate" in message
    assert "one image at a time, which keeps every bit and costs throughput" in message
