"""Sentences of measured figures about what is refused: hostile files, and no valid export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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
    runs = read_result(find_result("false-alarms"))["runs"]
    emulated = {kind: [run[kind] for run in runs if run.get(kind, {}).get("emulated")] for kind in KINDS}
    differences = {kind: max(one["emulated"]["difference"] for one in found) for kind, found in emulated.items()}
    share = max(one["emulated"]["difference"] / one["tolerance"] for found in emulated.values() for one in found)
    return (
        f"{_count_alarms(runs)} {sum(map(len, emulated.values()))} artifacts were replayed on the emulated processor, "
        f"too. Logits differed by at most {differences['float32']:.2g} as float32 and {differences['int8']:.2g} as "
        f"int8, which is at most {share:.2f} of the tolerance.\n"
    )


def show_false_alarms_of_photos() -> str:
    """Say how many exports of classifiers of photos were refused."""
    return _count_alarms(read_result(find_result("false-alarms-photos"))["runs"]) + "\n"


def _count_alarms(runs: Iterable[Mapping[str, Any]]) -> str:
    exports = list(runs)
    artifacts = [run[kind] for run in exports for kind in KINDS if kind in run]
    return (
        f"**{sum(len(run['alarms']) for run in exports)} false alarms** in {len(exports)} exports; "
        f"{sum(one['invariant'] for one in artifacts)} of {len(artifacts)} artifacts give the same bits in every batch."
    )
