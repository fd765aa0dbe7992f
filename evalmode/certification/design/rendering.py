"""Renders a page from a template of a package, with the style and the parts that all pages share."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

STYLE = Path(__file__).parent / "page.css"


def render_page(package: str, template: str, facts: dict[str, Any]) -> str:
    """Render a page that refers to no other file.

    Args:
        package: The package that holds the template.
        template: The file name of the template. It can import ``parts.html.j2`` and extend ``document.html.j2``.
        facts: The variables of the template; one that is missing is an error.

    Returns:
        The page, HTML.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("evalmode.certification.design", "")])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return pages.get_template(template).render(facts)


def embed(content: bytes, kind: str) -> str:
    """Encode a picture as a data URL.

    Args:
        content: The encoded picture.
        kind: Its format: ``png`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
