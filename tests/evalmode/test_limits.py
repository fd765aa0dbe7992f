"""The limits table: defaults, ranges, and a flag for every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from evalmode.errors import UsageError
from evalmode.images.formats import FORMATS, SERVED_FORMATS, name_formats
from evalmode.limits import Limits

NAMES = [limit.name for limit in fields(Limits)]


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_defaults_are_as_documented() -> None:
    assert asdict(Limits()) == {
        "max_image_bytes": 10 * 1024 * 1024,
        "max_image_pixels": 50_000_000,
        "max_decode_bytes": 0,
        "max_request_bytes": 32 * 1024 * 1024,
        "max_batch": 64,
        "max_queue": 512,
        "max_streams": 128,
        "max_watches": 256,
        "max_connections": 1024,
        "message_timeout": 20,
        "default_deadline": 0,
        "grace": 30,
        "lame_duck": 5,
        "load_seconds": 50,
        "load_bytes": 640 * 1024 * 1024,
    }
    assert name_formats(SERVED_FORMATS) == "JPEG, PNG, WEBP, BMP"
    assert name_formats(FORMATS) == "JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIC"


@pytest.mark.parametrize("limit", fields(Limits), ids=lambda limit: limit.name)
def test_the_error_of_a_value_out_of_range_names_the_limit(limit) -> None:
    low, high = limit.metadata["minimum"], limit.metadata["maximum"]
    for value in (low - 1, high + 1):
        with pytest.raises(UsageError, match=f"{limit.name} {value} is out of range: at least {low}, at most {high}"):
            Limits(**{limit.name: value})
    for value in (low, high):
        assert asdict(Limits(**{limit.name: value}))[limit.name] == value


def test_a_value_of_another_type_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="max_queue 'x' is not of type int"):
        Limits(max_queue="x")  # type: ignore[arg-type]


def test_limits_are_within_those_of_pillow_and_grpc() -> None:
    with pytest.raises(UsageError):
        Limits(max_image_pixels=178_956_971)  # the limit of Pillow
    with pytest.raises(UsageError):
        Limits(max_request_bytes=2**31)  # gRPC's option is a signed 32-bit integer


def test_every_limit_is_a_flag_with_its_default(evalmode: Callable) -> None:
    shown = evalmode("serve", "--help")
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    for limit in fields(Limits):
        text = words.partition(f"{flag_of(limit.name)} INTEGER RANGE")[2]
        assert text, f"{flag_of(limit.name)} has no flag"
        assert f"[default: {limit.default};" in text.partition(" --")[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_out_of_range_is_a_usage_error(evalmode: Callable, tmp_path: Path, name: str) -> None:
    done = evalmode("serve", "--repository", tmp_path, flag_of(name), -1)
    assert done.returncode == 2
    assert flag_of(name) in done.stderr
    assert "Traceback" not in done.stderr
