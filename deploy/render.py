"""Writes the base of the Kustomize variant from the chart.

Run ``python deploy/render.py`` in the environment of ``make test-manifests``.
So the chart is the only description of the server's objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

DEPLOY = Path(__file__).parent
CHART = DEPLOY / "helm" / "evalmode"
BASE = DEPLOY / "kustomize" / "base" / "evalmode.yaml"
VALUES = {"models": {"claim": {"name": "evalmode-models"}}}
HELM_LABELS = ("app.kubernetes.io/managed-by", "helm.sh/chart")
HEADING = "# Generated from the chart by python deploy/render.py; change it by overlays.\n"


def main() -> None:
    """Write the base."""
    BASE.write_text(render_base())


def render(values: dict[str, Any], name: str = "pets") -> list[dict[str, Any]]:
    """Render the chart as ``helm template`` does.

    Args:
        values: The values that differ from those of the chart.
        name: The name of the release.

    Returns:
        The objects, in the order of the chart's files.

    Raises:
        HelmError: The chart refuses the values.
    """
    with Chart.load(CHART) as chart:
        files = chart.render(values=values, name=name, namespace="models")
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def render_base() -> str:
    """Return the content of the base: the chart's objects, without the labels that are Helm's own."""
    objects = render(VALUES, name="evalmode")
    for one in objects:
        for label in HELM_LABELS:
            one["metadata"]["labels"].pop(label)
    return HEADING + yaml.safe_dump_all(objects, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
