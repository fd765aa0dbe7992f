"""Writes the generated parts of the chart: ``python deploy/generate.py``, after options or values have changed.

They are the options of ``evalmode serve`` in ``values.schema.json``, and the table of values in the chart's README.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from evalmode.cli.serve import serve

CHART = Path(__file__).parent / "helm" / "evalmode"
# Options that the chart sets itself, from values of its own or always to the same value.
SET_BY_THE_CHART = {
    "host", "port", "metrics-port", "repository", "transport", "provider", "lame-duck", "grace",
    "tls-cert", "tls-key", "tls-client-ca", "tokens",
}  # fmt: skip
# Its probes need /livez, and a call that loads a model would reach one pod of many.
LEFT_OUT = {"no-metrics", "enable-control", "control-tokens"}
LISTS = {"model", "follow-links"}
TABLE = re.compile(r"(<!-- table: values -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> None:
    """Write both files."""
    schema, readme = CHART / "values.schema.json", CHART / "README.md"
    schema.write_text(renew_schema(schema.read_text()))
    readme.write_text(renew_readme(readme.read_text()))


def renew_schema(text: str) -> str:
    """Replace the options in a schema.

    Args:
        text: The content of ``values.schema.json``.

    Returns:
        The content with the present options of ``evalmode serve``.
    """
    schema = json.loads(text)
    schema["properties"]["options"]["properties"] = describe_options()
    return json.dumps(schema, indent=2) + "\n"


def describe_options() -> dict[str, Any]:
    """Return the JSON Schema of each option that ``values.options`` may hold, by name."""
    options = {parameter.opts[0].lstrip("-"): parameter for parameter in serve.params}
    kept = options.keys() - SET_BY_THE_CHART - LEFT_OUT - {"help"}
    return {name: _describe_option(name, options[name]) for name in options if name in kept}


def renew_readme(text: str) -> str:
    """Replace the table of values in a document.

    Args:
        text: The content of ``README.md``.

    Returns:
        The content with the present values and their comments.
    """
    rows = ["| value | default | description |", "| --- | --- | --- |"]
    rows += [
        f"| `{name}` | {default} | {what} |" for name, default, what in read_values((CHART / "values.yaml").read_text())
    ]
    return TABLE.sub(lambda match: match[1] + "\n".join(rows) + "\n" + match[2], text)


def read_values(text: str) -> list[tuple[str, str, str]]:
    """Read the name, the default and the comment of each value.

    Args:
        text: The content of ``values.yaml``, indented by two spaces.

    Returns:
        A row for each value. A key that only holds other keys has none unless it has a comment.
    """
    rows, path, comment = [], [""], ""
    for line in text.splitlines():
        if match := re.fullmatch(r" *# (.*)", line):
            comment = f"{comment} {match[1]}".strip()
        elif match := re.fullmatch(r"( *)([\w]+):(.*)", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            default = match[3].strip()
            if default or comment:
                rows.append((".".join(path), f"`{default}`" if default else "", comment))
            comment = ""
    return rows


def _describe_option(name: str, parameter: click.Parameter) -> dict[str, Any]:
    """Return the JSON Schema of the values of an option, as the command checks them."""
    kind = parameter.type
    if name in LISTS:
        return {"type": "array", "items": {"type": "string"}}
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = {"minimum": kind.min, "maximum": kind.max}
        number = "integer" if isinstance(kind, click.IntRange) else "number"
        return {"type": number, **{key: bound for key, bound in bounds.items() if bound is not None}}
    if isinstance(kind, click.Choice):
        return {"enum": list(kind.choices)}
    if name == "workers":
        return {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}
    return {"type": "boolean" if isinstance(kind, click.types.BoolParamType) else "string"}


if __name__ == "__main__":
    main()
