"""Sentences of measured figures about what is refused: hostile files, and no valid export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.tables.measured.newest import describe_alarms
from docs.tables.measured.results import find_result, read_result

KINDS = ("float32", "int8")


def show_hostile_files() -> str:
    """Say how fast hostile files are refused, and whether a mutation opened a file."""
    found = read_result(find_result("hostile-files"))
    files, mutations = found["files"].values(), found["mutations"]
    served = max(one["honest_served_s"] for one in files)
    return (
        f"{len(files)} hostile files were refused, each within {max(one['refused_s'] for one in files):.0f} s. Honest "
        f"versions were served within {served:.1f} s meanwhile. {mutations['opened']} of {mutations['mutations']:,} "
        "mutations opened a file.\n"
    )


def show_false_alarms() -> str:
    """Say how many exports of small networks were refused, and how far an emulated processor was off."""
    result = read_result(find_result("false-alarms"))
    emulated = {kind: [one for one in _list_artifacts(result, kind) if one.get("emulated")] for kind in KINDS}
    differences = {kind: max(one["emulated"]["difference"] for one in found) for kind, found in emulated.items()}
    share = max(one["emulated"]["difference"] / one["tolerance"] for found in emulated.values() for one in found)
    return (
        f"{_describe(result)} {sum(map(len, emulated.values()))} artifacts were replayed on the emulated processor, "
        f"too. Logits differed by at most {differences['float32']:.2g} as float32 and {differences['int8']:.2g} as "
        f"int8, which is at most {share:.2f} of the tolerance.\n"
    )


def show_false_alarms_of_photos() -> str:
    """Say how many exports of classifiers of photos were refused."""
    return _describe(read_result(find_result("false-alarms-photos"))) + "\n"


def _list_artifacts(result: Mapping[str, Any], *kinds: str) -> list[dict[str, Any]]:
    return [run[kind] for run in result["runs"] for kind in kinds if kind in run]


def _describe(result: dict[str, Any]) -> str:
    artifacts = _list_artifacts(result, *KINDS)
    equal = sum(one["invariant"] for one in artifacts)
    return f"**{describe_alarms([result])}**; {equal} of {len(artifacts)} artifacts give the same bits in every batch."
