"""Tables about networks of other tools: their transforms as contracts, and how far their answers agree."""

from __future__ import annotations

import ast
import json

from docs.tables import ROOT
from docs.tables.markdown import draw
from evalmode.artifact.pixel_facts import read_contract, write_contract
from evalmode.images.contract import PixelContract

# Values that the table of other libraries does not show; for all of them jpeg_scaling is false.
USUAL_RULES = {
    "antialias": True,
    "channel_order": "RGB",
    "crop_offset": "rounded",
    "exact_size": "resized",
    "exif_orientation": False,
    "background": None,
    "padding": None,
}


def show_libraries() -> str:
    """Show the transforms of other libraries, the contract for each, and how far their pixels differ."""
    facts = json.loads((ROOT / "tests" / "foreign" / "pixels.json").read_text())
    rows = []
    for case in facts["cases"]:
        photos = case["photos"]
        contract = read_contract(photos["contract"])
        found = "the same"
        if photos["largest"]:
            found = f"{100 * photos['share']:.2g}% of the values differ, by {photos['largest']} at most"
        library = f"{case['library'].split()[0]} {facts['versions'][case['library'].split()[0]]}"
        called = (
            case["transform"] if " " not in case["library"] else f"{case['library'].split()[1]}: {case['transform']}"
        )
        rows.append((library, f"`{called}`", describe_rules(contract), found))
    return draw(("library", "transform", "contract", f"values of {facts['photos']} photos"), rows)


def show_makers() -> str:
    """Show how far the answers of certified networks are from those of the libraries that made them."""
    foreign = ROOT / "tests" / "foreign"
    rows = []
    for found in json.loads((foreign / "agreement.json").read_text())["makers"]:
        (script,) = (foreign / "makers").glob(f"{found['maker'].partition('-')[0]}*.py")
        made = (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()[0].rstrip(".")
        versions = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
        ties = f", {found['near_ties']} near ties" if found["near_ties"] else ""
        typed = f"`{' '.join(found['options'])}`" if found["options"] else "none"
        same = found["error"] or f"{found['equal']} of {found['photos']}{ties}"
        rows.append((found["maker"], made, versions, typed, same, f"{found['largest']:.1e}"))
    head = ("network", "made by", "versions", "options", "same label", "largest difference of a probability")
    return draw(head, rows)


def describe_rules(contract: PixelContract) -> str:
    """Show the rules of a contract by their keys, without the size and the rules that all rows share."""
    facts = write_contract(contract)
    shown = ["resize", "interpolation"]
    shown += ["crop_ratio"] * (contract.resize.crop_ratio != 1)
    shown += [key for key, usual in USUAL_RULES.items() if facts.get(key, usual) != usual]
    return ", ".join(f"`{key}` {_show_ratio(contract) if key == 'crop_ratio' else _show(facts[key])}" for key in shown)


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _show_ratio(contract: PixelContract) -> str:
    return f"{contract.resize.crop_ratio:.3g}"
