"""The pixel contract in the file: every rule is stated, and a value that is not supported is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evalmode.artifact.manifest import ClassifierManifest, read_manifest
from evalmode.artifact.pixel_facts import FIXED, KEYS, VARIABLE, read_contract, write_contract
from evalmode.errors import ArtifactInvalid
from evalmode.images.pixels import PixelContract, Resize

CONTRACT = PixelContract(224, 192, 3, Resize(0.875, "bicubic", False))
OTHERS: dict[str, list[Any]] = {
    "layout": ["NCHW", None],
    "dtype": ["float32"],
    "range": [[0, 1], [0.0, 255], [False, 255]],
    "resize": ["squash", "letterbox", "none", True],
    "exact_size": ["resized"],
    "antialias": [False, 1],
    "exif_orientation": [False, 1],
    "background": [[0, 0, 0], "white", [255, 255, 255, 255]],
    "height": [0, -1, 65_536, 8.0, "8", True, None],
    "width": [0, 10**400],
    "channels": [4, 2, True, 3.0, []],
    "channel_order": ["BGR", "grey", 3],
    "crop_ratio": [0, 0.2, 1.1, True, "1", float("nan"), None, 10**400],
    "interpolation": ["area", "BICUBIC", ["bicubic"], 3],
    "jpeg_scaling": ["auto", 0, None],
}


@pytest.mark.parametrize(
    "contract", [CONTRACT, PixelContract(28, 20, 1), PixelContract(1, 65_535, 3, Resize(0.25, "nearest"))], ids=str
)
def test_a_contract_survives_the_round_trip(contract: PixelContract) -> None:
    assert read_contract(json.loads(json.dumps(write_contract(contract)))) == contract


def test_every_rule_is_stated_and_checked() -> None:
    assert write_contract(CONTRACT).keys() == KEYS == OTHERS.keys()
    assert {*FIXED, *VARIABLE, "channel_order"} == KEYS


@pytest.mark.parametrize("key", OTHERS)
def test_a_value_that_is_not_supported_is_refused_by_name(key: str) -> None:
    for value in OTHERS[key]:
        with pytest.raises(
            ArtifactInvalid, match=f"^evalmode.pixels: {key} .* is not supported: .*; install"
        ) as caught:
            read_contract({**write_contract(CONTRACT), key: value})
        assert caught.value.facts == {"key": key, "value": json.dumps(value)[:80]}


def test_the_error_names_the_value_and_the_supported_ones() -> None:
    message = 'interpolation "area" is not supported: nearest, box, bilinear, hamming, bicubic, lanczos are; install'
    with pytest.raises(ArtifactInvalid, match=message):
        read_contract({**write_contract(CONTRACT), "interpolation": "area"})


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(
        ArtifactInvalid, match=r"evalmode\.pixels: gamma 2\.2 is unknown: the keys are antialias, backgro"
    ):
        read_contract({**write_contract(CONTRACT), "gamma": 2.2})


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    facts = write_contract(CONTRACT)
    del facts[key]
    with pytest.raises(ArtifactInvalid, match=f"damaged: it has no {key}; export"):
        read_contract(facts)


def test_the_order_of_the_channels_must_be_that_of_their_number() -> None:
    with pytest.raises(ArtifactInvalid, match='channel_order "RGB" is not supported: "grey" is'):
        read_contract({**write_contract(PixelContract(4, 4, 1)), "channel_order": "RGB"})


class TestOptionalOutputs:
    MANIFEST = ClassifierManifest(("a", "b"), CONTRACT, {}, None, ("activation_map", "features"))

    def test_survive_the_round_trip(self) -> None:
        assert vars(read_manifest(self.MANIFEST.to_metadata())) == vars(self.MANIFEST)

    @pytest.mark.parametrize(
        "names",
        ['"features"', "[1]", '["a", "a"]', '["probabilities"]', '["logits"]', '[""]', "null", '{"a": 1}', "[[]]"],
    )
    def test_must_be_a_list_of_other_names(self, names: str) -> None:
        with pytest.raises(ArtifactInvalid, match="damaged"):
            read_manifest({**self.MANIFEST.to_metadata(), "evalmode.optional_outputs": names})
