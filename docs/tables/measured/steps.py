"""Tables of measured figures about a step of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from docs.tables.markdown import draw
from docs.tables.measured.results import find_result, read_result


def show_steps() -> str:
    """Show the milliseconds of a step by layout, precision and compilation."""
    rows = []
    for network, variants in read_result(find_result("train-step"))["variants"].items():
        first = next(iter(variants.values()))["median_ms"]
        for name, found in variants.items():
            shares = f"{found['guard_ms'] / found['median_ms']:.1%}" if "guard_ms" in found else ""
            median, fastest = found["median_ms"], min(found["round_ms"])
            shown = (f"{median:,.1f}", f"{fastest:,.1f}", f"{median / first:.2f}", f"{found['start_s']:.0f} s")
            rows.append((f"`{network}`", name, *shown, shares))
    head = (
        "network",
        "variant",
        "median",
        "fastest",
        "ratio of medians",
        "before the first step",
        "check of gradients",
    )
    return draw(head, rows)


def show_spins() -> str:
    """Show the milliseconds of a step by the iterations for which threads spin, on free and on busy cores."""
    runs = read_result(find_result("train-step"))["spins"]
    columns = [(network, busy) for busy in (False, True) for network in ("compact", "reference")]
    rows = [
        (f"{spins:,}", *(_show_medians(_select(runs, network, busy, spins)) for network, busy in columns))
        for spins in sorted({run["spins"] for run in runs})
    ]
    names = (f"`{network}`{', cores busy with two other trainings' * busy}" for network, busy in columns)
    return draw(("iterations", *names), rows)


def show_memory() -> str:
    """Show a step with memory that is kept and with memory that is returned to the system."""
    runs = read_result(find_result("train-step"))["memory"]
    rows = []
    for freed, label in ((True, "returned, glibc's default"), (False, "kept")):
        found = [run for run in runs if run["freed"] == freed]
        rows.append((label, _show_medians(found), ", ".join(f"{run['faults']:,.0f}" for run in found)))
    return draw(("", "medians", "page faults"), rows)


def _select(runs: Iterable[Mapping[str, Any]], *wanted: object) -> list[Mapping[str, Any]]:
    return [run for run in runs if (run["network"], run["busy"], run["spins"]) == wanted]


def _show_medians(runs: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{run['median_ms']:.0f}" for run in runs)
