"""The model card of the hub of Hugging Face: a README with metadata, figures, and how to use the file.

Source: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evalmode.artifact.sealing import digest_file
from evalmode.artifact.standard_keys import LICENSE, UNPRINTABLE
from evalmode.deployment.release import Release

# Names of licences on the hub that are the SPDX identifiers in lower case; any other licence is "other" with its name.
LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "unlicense", "wtfpl", "zlib"),
    *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "epl-2.0", "eupl-1.2"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
TRAINING = ("epochs", "seed", "data_digest")  # of the recipe
SPECIAL = "\\`*_[]|#"  # in Markdown


def write_card(release: Release, report: str) -> str:
    """Write the card of a version.

    Args:
        release: The version.
        report: The name of the report beside the card; "" if there is none.

    Returns:
        Markdown with metadata in YAML.
    """
    templates = Environment(
        loader=PackageLoader("evalmode.deployment", "."),
        autoescape=False,  # noqa: S701  this is Markdown: the template escapes names by ``escape``
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["escape"] = _escape
    properties = release.manifest.properties
    training = properties.get("training", {})
    return templates.get_template("model_card.md.j2").render(
        metadata=_list_metadata(release),
        name=release.name,
        version=release.version,
        digest=digest_file(release.artifact),
        classifier=release.classifier,
        certificate=release.manifest.certificate,
        signature=release.signature,
        properties=properties,
        quality=properties.get("quality"),
        measured_on=_name_images(properties),
        training={key: training[key] for key in TRAINING if key in training},
        report=report,
    )


def _list_metadata(release: Release) -> list[str]:
    """The metadata that the hub reads, as lines of YAML: each value is JSON, which is YAML, too."""
    facts: dict[str, Any] = {**_name_licence(release.manifest.properties.get(LICENSE)), "library_name": "onnx"}
    if release.classifier is None:
        facts["tags"] = ["onnx", "evalmode"]
    else:
        facts |= {"pipeline_tag": "image-classification", "metrics": ["accuracy"]}
        facts["tags"] = ["onnx", "evalmode", "image-classification"]
        if quality := release.manifest.properties.get("quality"):
            facts["model-index"] = [_index(release.name, quality, _name_images(release.manifest.properties))]
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]


def _name_licence(text: str | None) -> dict[str, str]:
    """The licence by its name on the hub."""
    if text is None:
        return {}
    known = text.strip().lower()
    return {"license": known} if known in LICENSES else {"license": "other", "license_name": text.strip()}


def _name_images(properties: Mapping[str, Any]) -> str:
    """What the figures were measured on: of a certified network, nobody knows whether it was trained on them."""
    return "labelled images" if properties.get("network") == "adopted" else "labelled test images"


def _index(name: str, quality: Mapping[str, Any], images: str) -> dict[str, Any]:
    """The accuracy as an evaluation result of the hub."""
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": "imagefolder", "name": f"{quality['images']} {images}"},
        "metrics": [{"type": "accuracy", "value": round(quality["accuracy"], 4)}],
    }
    return {"name": name, "results": [result]}


def _escape(text: object) -> str:
    """Escape text for Markdown, in one line."""
    escaped = html.escape(UNPRINTABLE.sub("?", " ".join(str(text).split())), quote=False)
    return "".join(f"\\{sign}" if sign in SPECIAL else sign for sign in escaped)
