"""The table of servers and the rules of the Open Inference Protocol that each of them passed."""

from __future__ import annotations

import re

from docs.tables import ROOT
from docs.tables.markdown import draw
from docs.tables.measured.results import cite_inline, read_result

NOT_ASKED = "not asked"  # the rule does not apply to the model, or the server's load cannot be controlled
DOCUMENT = "docs/reference/conformance.md"
RESULTS = ROOT / "tests" / "conformance" / "results"


def show_conformance() -> str:
    """Show the result of each tested server for each rule."""
    paths = sorted(RESULTS.glob("*.json"))
    results = [read_result(path) for path in paths]
    rules = list(dict.fromkeys(rule for result in results for rule in result["rules"]))
    passed = [sum(outcome == "passed" for outcome in result["rules"].values()) for result in results]
    asked = [len(result["rules"]) for result in results]
    head = ("rule", *(result["server"] for result in results))
    rows = [(rule, *(mark(result["rules"].get(rule, NOT_ASKED)) for result in results)) for rule in rules]
    total = ("**passed**", *(f"{count} of {of}" for count, of in zip(passed, asked, strict=True)))
    return f"{draw(head, [*rows, total])}\nSource: {cite_inline(DOCUMENT, paths)}.\n"


def mark(outcome: str) -> str:
    """Shorten the outcome of a rule to one word, with the status that was returned where the rule expects another."""
    status = re.search(r"StatusCode\.(\w+)|assert '(\w+)' ==", outcome)
    if outcome == NOT_ASKED:
        return outcome
    return "yes" if outcome == "passed" else f"no: {status[1] or status[2]}" if status else "no"
