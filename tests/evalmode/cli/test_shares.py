"""A share on the command line is the number that is written, in percent or as a fraction."""

from __future__ import annotations

import click
import pytest

from evalmode.cli.compare import Share


@pytest.mark.parametrize("points", [0, 3, 7, 29, 57, 58, 114, 1000])
def test_a_limit_in_percent_equals_the_share_of_that_many_images(points: int) -> None:
    assert Share().convert(f"{points // 10}.{points % 10}%", None, None) == points / 1000
    assert Share().convert(str(points / 1000), None, None) == points / 1000


@pytest.mark.parametrize("text", ["", "%", "five", "-1%", "101%", "1.1", "nan", "sNaN", "inf", "1e999999999", "5%%"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a share such as 2%"):
        Share().convert(text, None, None)
