"""The first epoch does not squash the others, and a value that is cut off is named."""

from __future__ import annotations

import re

import numpy as np
import pytest

from evalmode.certification.metrics import measure_reliability
from training.report.axis import Limits, find_limits
from training.report.charts import Axes, Line, draw_lines, draw_reliability

OUTLIER = [15.0, 0.9, 0.6, 0.5, 0.4]


def test_a_first_value_far_above_the_others_leaves_them_the_axis() -> None:
    limits = find_limits([OUTLIER])
    assert limits == pytest.approx((0.36, 0.94))
    assert limits.cuts(15.0)
    assert not any(map(limits.cuts, OUTLIER[1:]))


def test_a_first_value_far_below_the_others_leaves_them_the_axis() -> None:
    assert find_limits([[0.1, 0.9, 0.92, 0.95]]) == pytest.approx((0.896, 0.954))


def test_an_axis_that_is_cut_has_no_negative_losses() -> None:
    assert find_limits([[230.0, 0.9, 0.6, 0.5, 0.01]]) == pytest.approx((0.0, 0.9712))


@pytest.mark.parametrize(
    "values",
    [
        [2.0, 1.2, 0.9, 0.7],  # the others have more than a third of the axis
        [15.0, 0.9, 0.6],  # too few to call one an outlier
        [0.5, 1.0, 1.0, 1.0],  # the others do not differ
        [0.5, 0.4, 9.0, 0.3],  # a peak of a later epoch is a finding
    ],
)
def test_other_values_are_all_shown(values: list[float]) -> None:
    assert find_limits([values]) == Limits()


def test_an_axis_that_begins_at_zero_counts_from_there() -> None:
    assert find_limits([[1.5, 0.9, 0.8, 0.7]]) == pytest.approx((0.684, 0.916))
    assert find_limits([[5.0, 0.9, 0.8, 0.7]], floor=0.0) == pytest.approx((0.0, 0.972))
    assert find_limits([[1.5, 0.9, 0.8, 0.7]], floor=0.0) == Limits()


def test_the_chart_says_what_is_beyond_the_axis() -> None:
    lines = [Line("training", "blue", OUTLIER), Line("validation", "orange", [0.8, 0.7, 0.6, 0.6, 0.6])]
    chart = draw_lines("Loss", Axes(range(1, 6)), lines, band=(OUTLIER, lines[1].values))
    assert chart.note == "Beyond the axis, so that the others can be read: epoch 1, training 15."
    shown = [float(text) for text in re.findall(r">\s*(\d+\.\d+)\s*</text>", chart.svg)]
    assert shown
    assert max(shown) < 1
    assert draw_lines("Loss", Axes(range(1, 6)), lines[1:]).note == ""


def test_many_lines_that_are_cut_off_are_counted() -> None:
    lines = [Line(str(first), "blue", [first, 0.3, 0.2, 0.1]) for first in (2.0, 3.0, 4.0)]
    note = draw_lines("Gap", Axes(range(4)), lines).note
    assert note == "Beyond the axis, so that the others can be read: epoch 0, 3 lines from 2 to 4."


def test_the_chart_of_a_share_says_it_in_percent() -> None:
    lines = [Line("training", "blue", [0.1, 0.9, 0.92, 0.95])]
    assert "training 10.0%" in draw_lines("A", Axes(range(4), y_percent=True), lines, band=([0.9] * 4, [0.95] * 4)).note


def test_the_epoch_that_is_kept_is_marked() -> None:
    line = [Line("validation", "orange", [0.5, 0.4, 0.3])]
    plain, marked = (draw_lines("Loss", Axes([1, 2, 3], marked=one), line).svg for one in (None, 2))
    assert marked.count("stroke-dasharray") == plain.count("stroke-dasharray") + 1


def test_calibration_shows_both_only_if_the_export_has_a_temperature() -> None:
    confidence, right = np.array([0.95, 0.92, 0.55]), np.array([True, True, False])
    exported, before = (measure_reliability(values, right) for values in (confidence, confidence * 0.9))
    assert draw_reliability(exported, None).keys == [("blue", "as exported")]
    both = draw_reliability(exported, before)
    assert [meaning for _, meaning in both.keys] == ["as exported", "without temperature"]
    assert "var(--orange)" in both.svg


def read_ticks(svg: str) -> list[str]:
    """The labels of the ticks of a chart, the horizontal axis first."""
    return re.findall(r">\s*(\d+(?:\.\d+)?%?)\s*</text>", svg)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.82, 0.9, 0.99], ["82.5%", "85.0%", "87.5%", "90.0%", "92.5%", "95.0%", "97.5%"]),
        ([0.0, 0.5, 1.0], ["0%", "20%", "40%", "60%", "80%", "100%"]),
    ],
)
def test_the_labels_of_shares_are_exact(values: list[float], wanted: list[str]) -> None:
    line = Line("accuracy", "blue", values)
    chart = draw_lines("Accuracy", Axes([1, 2, 3], y_percent=True), [line], band=(values, values))
    assert [tick for tick in read_ticks(chart.svg) if tick.endswith("%")] == wanted


def test_a_few_points_have_a_tick_each_and_many_have_some() -> None:
    few = draw_lines("Shifts", Axes([0, 4, 16], "shift"), [Line("accuracy", "blue", [0.9, 0.9, 0.9])])
    assert read_ticks(few.svg)[:3] == ["0", "4", "16"]
    many = draw_lines("Loss", Axes(range(1, 31)), [Line("loss", "blue", [1.0] * 30)])
    assert read_ticks(many.svg)[:6] == ["0", "6", "12", "18", "24", "30"]
