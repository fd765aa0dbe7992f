"""Generates the tables and drawings in the documents that follow from the code.

``python -m docs.tables`` writes them; a test fails if one is out of date. A drawing is a file; a table stands between
``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from docs.benchmark_index import show_benchmarks
from docs.command_tables import show_commands
from docs.drawing import draw_packages
from docs.figures import MEASURED, make_table
from docs.results import draw
from evalmode import errors
from evalmode.artifact.pixel_facts import read_contract, write_contract
from evalmode.errors import RequestError
from evalmode.images.contract import PixelContract
from evalmode.limits import Limits
from evalmode.options import Option, list_options
from serving.config import LogConfig, ServeConfig
from serving.engine.memory import MAX_DEFAULT_BYTES
from serving.services.metrics import METRICS
from serving.services.models import LOADERS
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of
from serving.transports.grpcio import CONTROL_THREADS, MIN_UNFINISHED_BYTES, UNFINISHED_MESSAGES
from serving.transports.messages import HELD_MESSAGES, MIN_HELD_BYTES
from serving.trial import FILE_FACTOR

NOT_ASKED = "not asked"  # the rule does not apply to the model, or the server's load cannot be controlled
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
MIB = 1024 * 1024
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "conformance" / "results"
PACKAGES = tomllib.loads((ROOT / "docs" / "packages.toml").read_text())
# The other folders of the repository.
FOLDERS = {
    "protos": "the wire contracts: `evalmode.v1` and the Open Inference Protocol v2",
    "tests": "mirror the packages; `contract/` (training meets serving), `e2e/` (the commands), `conformance/`",
    "benchmarks": "long measurements and their results",
    "examples": "small programs to copy; each is run by a test",
    "docker": "container images, compose file, and their test",
    "deploy": "Helm chart, Kustomize, KServe; rules for Prometheus, a dashboard for Grafana; configurations of proxies",
    "docs": "architecture, Python API, commands, training, operating, security, artifact, performance, decisions",
}


def main() -> None:
    """Write every table into its document."""
    for document in {document for document, _ in TABLES}:
        path = ROOT / document
        path.write_text(renew(document, path.read_text()))
    for name, draw_file in DRAWINGS.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(draw_file())


def renew(document: str, text: str) -> str:
    """Replace the tables of a document.

    Args:
        document: Path of the document, relative to the repository.
        text: Its content.

    Returns:
        The content with every table as the code has it now.

    Raises:
        ValueError: The document does not have exactly one place for a table.
    """
    for name in (name for owner, name in TABLES if owner == document):
        places = re.findall(rf"<!-- table: {name} -->\n.*?<!-- end of table -->", text, re.DOTALL)
        if len(places) != 1:
            raise ValueError(f"{document} has {len(places)} places for the table {name!r}, expected 1")
        table = f"<!-- table: {name} -->\n{TABLES[document, name]()}<!-- end of table -->"
        text = text.replace(places[0], table)
    return text


def draw_tree() -> str:
    """Draw the packages and folders of the repository, each with its purpose."""
    lines = []
    for name, package in PACKAGES.items():
        *outer, last = name.split(".")
        suffix = "/" if (ROOT / name.replace(".", "/")).is_dir() else ".py"
        lines.append(f"{'  ' * len(outer) + last + suffix:<18} {package['what']}")
    lines += [f"{name + '/':<18} {what}" for name, what in FOLDERS.items()]
    return "```\n" + "\n".join(lines).replace("`", "") + "\n```\n"


def find_arrows() -> dict[str, set[str]]:
    """Find which package imports which, without what follows from longer paths.

    Packages that may import all others are left out.
    """
    graph = {name: set(package["imports"]) for name, package in PACKAGES.items() if package["imports"] != ["*"]}
    return {
        name: imports - {far for near in imports for far in find_reachable(graph, near)}
        for name, imports in graph.items()
    }


def find_reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Find the packages that a package imports, directly or through others.

    Args:
        graph: The imports of each package.
        start: The package to start from.

    Returns:
        The packages, ``start`` not among them.
    """
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


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


# What an operator can do about an error, where the request itself is not at fault.
REMEDIES: dict[type[RequestError], str] = {
    errors.TokenInvalid: "Give the client a token from `--tokens`. Check whether its token has expired.",
    errors.ControlForbidden: "Use a token from `--control-tokens`.",
    errors.ModelNotFound: "`RepositoryIndex` shows why the model is not available. Or correct the name.",
    errors.ModelInvalid: "Run `evalmode check` on the file, export it again, or run `evalmode rollback`.",
    errors.ControlDisabled: "Publish into the repository, or start with `--enable-control --control-tokens FILE`.",
    errors.NotServed: "None: the method is not supported.",
    errors.MethodUnknown: "The client calls another service or another version of it. The log has the method at debug.",
    errors.ServiceUnknown: 'Correct the service in the client\'s health check: `""`, `NAME` or `NAME/VERSION`.',
    errors.ImageNeedsTooMuchMemory: "Raise `--max-decode-bytes` if memory allows, or send a smaller image.",
    errors.MessageInvalid: "The client must send the message type of the method; see the contracts in `protos/`.",
    errors.MessageTooLarge: "Send smaller messages, or raise `--max-request-bytes`.",
    errors.MessageLate: "The client must send the message with the call. Or raise `--message-timeout`.",
    errors.MessagesFull: f"Add servers, or raise `--max-request-bytes`: {HELD_MESSAGES} times that size is held.",
    errors.CallsFull: "Find the clients that open calls without sending a message. Add servers.",
    errors.WatchesFull: "Find the clients that leave watches open, or raise `--max-watches`.",
    errors.ServerLeaving: "None: clients retry on another server.",
    errors.QueueFull: "Add servers, each with its own core. Look at `evalmode_requests_waiting`.",
    errors.StreamsFull: "Find the clients that leave streams open, or raise `--max-streams`.",
    errors.DeadlineExpired: "Add servers if `evalmode_wait_seconds` is high, otherwise use longer deadlines.",
    errors.RequestCancelled: "None. If there are many, clients give up early: see `DEADLINE_EXPIRED`.",
}
BY_CALLER = "The client must change the request: the message names the field and the expected value."


def show_errors() -> str:
    """Show each error reason with its status code, its meaning, and what to do about it."""
    rows = [
        (name_error(reason_of(error), code, describe_retry(error)), describe(error), REMEDIES.get(error, BY_CALLER))
        for error, code in CODES.items()
    ]
    internal = ("A fault in the server.", "Search the log for the id, and report the problem.")
    return draw(("reason", "meaning", "action"), [*rows, (name_error(INTERNAL_REASON, "INTERNAL", ""), *internal)])


def name_error(reason: str, code: str, retry: str) -> str:
    """Name an error by its reason, with the status code and what is known about retries below it."""
    return f"`{reason}`<br><small>{code}{retry and f', retry {retry}'}</small>"


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


def describe_retry(error: type[RequestError]) -> str:
    """Say when the same request may succeed on the same server; "" for never."""
    return f"after {RETRY_AFTER_S[error]} s" if error in RETRY_AFTER_S else ""


def describe(error: type[RequestError]) -> str:
    """Return the meaning of an error: its docstring."""
    return " ".join((error.__doc__ or "").split()).replace("``", "`")


def show_decisions() -> str:
    """Show the decisions with their titles."""
    titles = {path: path.read_text().splitlines()[0] for path in sorted((ROOT / "docs" / "decisions").glob("0*.md"))}
    rows = [(int(path.name[:4]), f"[{title.partition('. ')[2]}]({path.name})") for path, title in titles.items()]
    return draw(("", "decision"), rows)


def show_conformance() -> str:
    """Show the result of each tested server for each rule."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rules = list(dict.fromkeys(rule for result in results for rule in result["rules"]))
    passed = [sum(outcome == "passed" for outcome in result["rules"].values()) for result in results]
    asked = [len(result["rules"]) for result in results]
    head = ("rule", *(f"{result['server']}, {result['date']}" for result in results))
    rows = [(rule, *(mark(result["rules"].get(rule, NOT_ASKED)) for result in results)) for rule in rules]
    return draw(head, [*rows, ("**passed**", *(f"{count} of {of}" for count, of in zip(passed, asked, strict=True)))])


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


def mark(outcome: str) -> str:
    """Shorten the outcome of a rule to one word, with the status that was returned where the rule expects another."""
    status = re.search(r"StatusCode\.(\w+)|assert '(\w+)' ==", outcome)
    if outcome == NOT_ASKED:
        return outcome
    return "yes" if outcome == "passed" else f"no: {status[1] or status[2]}" if status else "no"


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/decisions/index.md", "decisions"): show_decisions,
    ("docs/explanation/architecture.md", "tree"): draw_tree,
    ("docs/how-to/sizing.md", "memory"): show_memory,
    ("docs/how-to/sizing.md", "threads"): show_threads,
    ("docs/how-to/monitoring.md", "alerts"): show_alerts,
    ("docs/reference/artifact.md", "libraries"): show_libraries,
    ("docs/reference/artifact.md", "makers"): show_makers,
    ("docs/reference/configuration.md", "options"): show_options,
    ("docs/reference/configuration.md", "limits"): show_limits,
    ("docs/reference/conformance.md", "conformance"): show_conformance,
    ("docs/reference/errors.md", "errors"): show_errors,
    ("docs/reference/metrics.md", "metrics"): show_metrics,
    ("docs/reference/options.md", "commands"): lambda: show_commands(draw),
    **{("benchmarks/README.md", folder): partial(show_benchmarks, folder) for folder in ("speed", "quality", "soak")},
    **{place: partial(make_table, *place) for place in MEASURED},
}
DRAWINGS: dict[str, Callable[[], str]] = {"docs/images/packages.svg": lambda: draw_packages(find_arrows())}

if __name__ == "__main__":
    main()
