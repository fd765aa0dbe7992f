"""Tables about the server: its options, its limits, its memory and threads, its metrics and alerts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from docs.tables import ROOT
from docs.tables.markdown import draw
from evalmode.limits import Limits
from evalmode.options import Option, list_options
from serving.config import LogConfig, ServeConfig
from serving.engine.memory import MAX_DEFAULT_BYTES
from serving.services.metrics import METRICS
from serving.services.models import LOADERS
from serving.transports.grpcio import CONTROL_THREADS, MIN_UNFINISHED_BYTES, UNFINISHED_MESSAGES
from serving.transports.messages import HELD_MESSAGES, MIN_HELD_BYTES
from serving.trial import FILE_FACTOR

MIB = 1024 * 1024


def show_limits() -> str:
    """Show the options of ``evalmode serve`` that limit its load."""
    shown = (
        (f"`--{limit.name.replace('_', '-')}`", limit.default, limit.metadata["what"], limit.metadata["beyond"])
        for limit in fields(Limits)
    )
    return draw(("option", "default", "limits", "beyond it"), shown)


def show_options() -> str:
    """Show the options of ``evalmode serve`` that are not limits."""
    limits = {limit.name for limit in fields(Limits)}
    rows = (
        (f"`{option.flag}`", describe_default(option), describe_values(option), option.help)
        for option in list_options(ServeConfig, LogConfig)
        if option.name not in limits
    )
    return draw(("option", "default", "values", "description"), rows)


def describe_default(option: Option) -> str:
    """Describe the default of an option."""
    if option.is_required:
        return "required"
    if option.kind is bool:
        return "off"
    return "" if option.kind is tuple or option.default is None else str(option.default)


def describe_values(option: Option) -> str:
    """Describe the values that an option takes."""
    if option.choices:
        return ", ".join(option.choices)
    low, high = option.rules.get("minimum"), option.rules.get("maximum")
    if low is not None:
        return f"{low} to {high}" if high is not None else f"at least {low}"
    return str(option.rules.get("metavar", {Path: "path", bool: "flag", str: "text"}.get(option.kind))).replace(
        "|", r"\|"
    )


def show_memory() -> str:
    """Show the memory that requests and new versions may add to an idle server."""
    limits = Limits()
    held, unfinished = HELD_MESSAGES * limits.max_request_bytes, UNFINISHED_MESSAGES * limits.max_request_bytes
    trials = LOADERS * limits.load_bytes
    file_bytes = f"{FILE_FACTOR} x the model file"
    rows = (
        ("images being decoded", "`--max-decode-bytes`", f"at most {MAX_DEFAULT_BYTES // MIB} MiB"),
        (
            "decoded images waiting for a slot",
            "(slots + `--max-queue`) x height x width x channels",
            "depends on the model",
        ),
        (
            "messages of requests in flight",
            f"{HELD_MESSAGES} x `--max-request-bytes`, at least {MIN_HELD_BYTES // MIB} MiB",
            f"{held // MIB} MiB",
        ),
        (
            "incomplete messages",
            f"{UNFINISHED_MESSAGES} x `--max-request-bytes`, at least {MIN_UNFINISHED_BYTES // MIB} MiB",
            f"{unfinished // MIB} MiB",
        ),
        (
            "child processes that check new versions",
            f"{LOADERS} x (a Python process + `--load-bytes` + {file_bytes})",
            f"{trials // MIB} MiB plus the parts that depend on the file",
        ),
    )
    return draw(("memory for", "maximum", "default"), rows)


def count_threads(slots: int) -> dict[str, int]:
    """Count the threads that handle calls.

    Args:
        slots: The number of slots.

    Returns:
        The number of threads by the prefix of their names.
    """
    return {"event-loop": 1, "slot": slots, "large": slots, "control": CONTROL_THREADS}


def show_threads() -> str:
    """Show the threads that a server starts for calls."""
    formulas = {
        "event-loop": ("all calls: arrival, waiting and completion", "1"),
        "slot": ("decoding, inference and the encoding of replies", "slots"),
        "large": ("decoding of large images", "slots"),
        "control": ("all other methods", CONTROL_THREADS),
    }
    counts = count_threads(2)
    rows = [(f"`{name}-N`", what, how_many, counts[name]) for name, (what, how_many) in formulas.items()]
    return draw(("threads", "work", "number", "with two slots"), [*rows, ("total", "", "", sum(counts.values()))])


def show_metrics() -> str:
    """Show the metrics for Prometheus."""
    rows = ((f"`{name}`", one.kind, ", ".join(one.labels), one.help) for name, one in METRICS.items())
    return draw(("metric", "type", "labels", "description"), rows)


def show_alerts() -> str:
    """Show the alert rules for Prometheus."""
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())["groups"]
    rows = (
        (f"`{rule['alert']}`", rule["labels"]["severity"], f"`{rule['expr']}`", rule["for"], describe_alert(rule))
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    )
    return draw(("alert", "severity", "fires if", "for", "meaning and action"), rows)


def describe_alert(rule: Mapping[str, Any]) -> str:
    """Describe an alert by its annotations, with the names of labels in place of their values."""
    summary, description = (rule["annotations"][name] for name in ("summary", "description"))
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", re.sub(r"\{\{ \$value.*?\}\}", "N", summary))
    return f"{summary}. {description}"
