"""The pixel contract in the file: every rule is stated, and a value that is not supported is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evalmode.artifact.manifest import ClassifierManifest, read_manifest
from evalmode.artifact.pixel_facts import ADDED, FIXED, KEYS, VARIABLE, read_contract, write_contract
from evalmode.errors import ArtifactInvalid
from evalmode.images.pixels import PixelContract, Resize

CONTRACT = PixelContract(224, 192, 3, Resize(0.875, "bicubic", False))
OTHERS: dict[str, list[Any]] = {
    "layout": ["NCHW", None],
    "dtype": ["float32"],
    "range": [[0, 1], [0.0, 255], [False, 255]],
    "resize": ["stretch", "None", True, ["crop"], None],
    "exact_size": ["kept", True, None],
    "antialias": [0, 1, None, "false"],
    "exif_orientation": [0, 1, None],
    "background": ["white", [255, 255, 255, 255], [0, 0, 256], [0, 0, -1], [0, 0, True], [0.5, 0, 0], False],
    "height": [0, -1, 65_536, 8.0, "8", True, None],
    "width": [0, 10**400],
    "channels": [4, 2, True, 3.0, []],
    "channel_order": ["GBR", "grey", 3, None, ["RGB"]],
    "crop_ratio": [0, 0.2, 1.1, True, "1", float("nan"), None, 10**400],
    "interpolation": ["area", "BICUBIC", ["bicubic"], 3],
    "jpeg_scaling": ["auto", 0, None],
    "padding": [[0, 0], "grey", None, [0, 0, 256]],
    "crop_offset": ["ceiled", None, 0],
}


@pytest.mark.parametrize(
    "contract",
    [
        CONTRACT,
        PixelContract(28, 20, 1),
        PixelContract(1, 65_535, 3, Resize(0.25, "nearest")),
        PixelContract(8, 9, 3, Resize(mode="letterbox", padding=(1, 2, 3), antialias=False), "BGR", False, None),
        PixelContract(8, 9, 3, Resize(0.5, mode="squash", keeps_exact_size=False, crop_offset="floored")),
        PixelContract(8, 9, 1, Resize(mode="none"), background=(0, 128, 255)),
    ],
    ids=str,
)
def test_a_contract_survives_the_round_trip(contract: PixelContract) -> None:
    assert read_contract(json.loads(json.dumps(write_contract(contract)))) == contract


def test_every_rule_is_stated_and_checked() -> None:
    assert write_contract(CONTRACT).keys() == KEYS == OTHERS.keys() - ADDED.keys()
    assert {*FIXED, *VARIABLE} == KEYS


def test_rules_that_earlier_files_do_not_have_are_stated_where_they_apply() -> None:
    letterbox = PixelContract(8, 8, 3, Resize(mode="letterbox", crop_offset="floored"))
    facts = write_contract(letterbox)
    assert facts.keys() - KEYS == ADDED.keys()
    assert read_contract({key: facts[key] for key in facts if key != "crop_offset"}).resize.crop_offset == "rounded"
    del facts["padding"]
    with pytest.raises(ArtifactInvalid, match="damaged: it has no padding"):
        read_contract(facts)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "none"},
        {"resize": "letterbox", "padding": [0, 0, 0]},
        {"antialias": False, "interpolation": "lanczos"},
        {"antialias": False, "interpolation": "nearest"},
    ],
)
def test_rules_that_do_not_fit_together_are_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactInvalid, match=r"evalmode\.pixels is damaged: .* does not fit"):
        read_contract({**write_contract(CONTRACT), **changes})


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
