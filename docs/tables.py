"""The tables in the documents that code decides: ``python docs/tables.py`` writes them anew, a test holds them equal.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from serving import errors
from serving.errors import RequestError
from serving.limits import Limits
from serving.services.metrics import METRICS
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of

NOT_ASKED = "not asked"  # the model cannot be, or the server cannot be made to
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "conformance" / "results"


def main() -> None:
    """Write every table into its document."""
    for document in {document for document, _ in TABLES}:
        path = ROOT / document
        path.write_text(renew(document, path.read_text()))


def renew(document: str, text: str) -> str:
    """A document's text with its tables as the code has them now.

    Raises:
        ValueError: a table has no place in it.
    """
    for name in (name for owner, name in TABLES if owner == document):
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.DOTALL)
        table = TABLES[document, name]()
        text, count = place.subn(lambda match, table=table: match[1] + table + match[2], text)
        if count != 1:
            raise ValueError(f"{document} has {count} places for the table {name!r}, wanted one")
    return text


def show_limits() -> str:
    """The options of ``evalmode serve`` that bound it."""
    shown = (
        (f"`--{limit.name.replace('_', '-')}`", limit.default, limit.metadata["what"], limit.metadata["beyond"])
        for limit in fields(Limits)
    )
    return draw(("option", "default", "limits", "beyond it"), shown)


def show_reasons() -> str:
    """Why a request is refused."""
    rows = [(f"`{reason_of(error)}`", code, say_retry(error), say(error)) for error, code in CODES.items()]
    internal = "A fault of the server: its log has the cause under the id in the metadata."
    return draw(("reason", "code", "retry", "when"), [*rows, (f"`{INTERNAL_REASON}`", "INTERNAL", "no", internal)])


# What an operator does about a refusal, where it is not the caller who has to change the request.
REMEDIES: dict[type[RequestError], str] = {
    errors.TokenInvalid: "give the caller a token of `--tokens`; look whether his has ended",
    errors.ControlForbidden: "use a token of `--control-tokens`",
    errors.ModelNotFound: "`RepositoryIndex` tells why it is not served; or correct the name",
    errors.ModelInvalid: "`evalmode check` the file, export it again, or `evalmode rollback`",
    errors.ControlDisabled: "publish into the repository, or start with `--enable-control --control-tokens FILE`",
    errors.NotServed: "nothing: the caller has to do without",
    errors.QueueFull: "more servers, each with a core; look at `evalmode_requests_waiting`",
    errors.StreamsFull: "find who leaves streams open, or raise `--max-streams`",
    errors.DeadlineExpired: "more servers, or longer deadlines; `evalmode_wait_seconds` tells which",
    errors.RequestCancelled: "nothing; if there are many, callers give up: see `DEADLINE_EXPIRED`",
}
BY_CALLER = "the caller changes the request: the message names the field and what is wanted"


def show_remedies() -> str:
    """What to do about each refusal."""
    rows = [(f"`{reason_of(error)}`", say(error), REMEDIES.get(error, BY_CALLER)) for error in CODES]
    internal = ("a fault of the server", "look for the id in the log, and report it")
    return draw(("reason", "means", "do"), [*rows, (f"`{INTERNAL_REASON}`", *internal)])


def show_metrics() -> str:
    """What Prometheus is told."""
    rows = ((f"`{name}`", one.kind, ", ".join(one.labels), one.says) for name, one in METRICS.items())
    return draw(("metric", "kind", "labels", "says"), rows)


def say_retry(error: type[RequestError]) -> str:
    """Whether the same request may succeed later."""
    return f"after {RETRY_AFTER_S[error]} s" if error in RETRY_AFTER_S else "no"


def say(error: type[RequestError]) -> str:
    """What an error means, of its docstring."""
    return " ".join((error.__doc__ or "").split())


def show_conformance() -> str:
    """What each server that was looked at does about each rule."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rules = list(dict.fromkeys(rule for result in results for rule in result["rules"]))
    kept = [sum(told == "passed" for told in result["rules"].values()) for result in results]
    asked = [len(result["rules"]) for result in results]
    head = ("rule", *(f"{result['server']}, {result['date']}" for result in results))
    rows = [(rule, *(mark(result["rules"].get(rule, NOT_ASKED)) for result in results)) for rule in rules]
    return draw(head, [*rows, ("**passed**", *(f"{count} of {of}" for count, of in zip(kept, asked, strict=True)))])


def mark(told: str) -> str:
    """A result as a word: what was given instead, where a status is what the rule is about."""
    given = re.search(r"StatusCode\.(\w+)|assert '(\w+)' ==", told)
    if told == NOT_ASKED:
        return told
    return "yes" if told == "passed" else f"no: {given[1] or given[2]}" if given else "no"


def draw(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "limits"): show_limits,
    ("docs/wire-protocol.md", "reasons"): show_reasons,
    ("docs/conformance.md", "conformance"): show_conformance,
    ("docs/operating.md", "metrics"): show_metrics,
    ("docs/operating.md", "remedies"): show_remedies,
}

if __name__ == "__main__":
    main()
