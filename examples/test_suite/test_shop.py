"""The tests of the program, with a real server: MODELS=models pytest. Needs the extra serve, and pytest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import describe

import evalmode

PHOTOS = sorted(Path(os.environ.get("PHOTOS", "photos/test")).glob("*/*"))


@pytest.fixture(scope="session")
def client() -> Iterator[evalmode.Client]:
    """A client of a server in this process, on a free port. It takes part of a second, once for all tests."""
    with evalmode.start_server(os.environ["MODELS"]) as server, evalmode.Client(server.address) as connected:
        yield connected


def test_photos_get_their_label_or_none(client: evalmode.Client) -> None:
    answers = [describe(client, photo.read_bytes()) for photo in PHOTOS]
    right = sum(answer == photo.parent.name for answer, photo in zip(answers, PHOTOS, strict=True))
    assert right > len(PHOTOS) / 2


def test_a_letter_is_not_a_photo(client: evalmode.Client) -> None:
    assert describe(client, b"Dear shop") == "please send a photo"


def test_a_server_that_is_down_is_not_the_customers_fault() -> None:
    with evalmode.Client("127.0.0.1:1", timeout_s=0.2) as unreachable:
        assert describe(unreachable, PHOTOS[0].read_bytes()) == "please try again later"
