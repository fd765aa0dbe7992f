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
from serving.memory import MAX_DEFAULT_BYTES
from serving.services.metrics import METRICS
from serving.services.models import LOADERS
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of
from serving.transports.grpcio import CONTROL_THREADS, MIN_UNFINISHED_BYTES, UNFINISHED_MESSAGES
from serving.transports.messages import HELD_MESSAGES, MIN_HELD_BYTES
from serving.trial import FILE_FACTOR

NOT_ASKED = "not asked"  # the model cannot be, or the server cannot be made to
MIB = 1024 * 1024
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
    errors.TokenInvalid: "give the client a token of `--tokens`; check whether its token has expired",
    errors.ControlForbidden: "use a token of `--control-tokens`",
    errors.ModelNotFound: "`RepositoryIndex` has the reason why it is not served; or correct the name",
    errors.ModelInvalid: "`evalmode check` the file, export it again, or `evalmode rollback`",
    errors.ControlDisabled: "publish into the repository, or start with `--enable-control --control-tokens FILE`",
    errors.NotServed: "nothing: it is not supported",
    errors.MethodUnknown: "the client calls another service or version of it; the log has the method at debug",
    errors.ServiceUnknown: 'correct the service in the client\'s health check: `""`, `NAME` or `NAME/VERSION`',
    errors.ImageNeedsTooMuchMemory: "raise `--max-decode-bytes` if there is memory, or send a smaller image",
    errors.MessageInvalid: "the client sends the method's own message; see the contracts in `protos/`",
    errors.MessageTooLarge: "the client sends less in one message; or raise `--max-request-bytes`",
    errors.MessageLate: "the client sends each call's message at once; or raise `--message-timeout`",
    errors.MessagesFull: f"more servers, or raise `--max-request-bytes`: {HELD_MESSAGES} times as much is held",
    errors.CallsFull: "find the clients that open calls and send no message; more servers",
    errors.WatchesFull: "find the clients that leave watches open, or raise `--max-watches`",
    errors.ServerLeaving: "nothing: clients call another server",
    errors.QueueFull: "more servers, each with a core; look at `evalmode_requests_waiting`",
    errors.StreamsFull: "find the clients that leave streams open, or raise `--max-streams`",
    errors.DeadlineExpired: "more servers if `evalmode_wait_seconds` is high, else longer deadlines",
    errors.RequestCancelled: "nothing; if there are many, clients give up: see `DEADLINE_EXPIRED`",
}
BY_CALLER = "the client changes the request: the message names the field and what is wanted"


def show_remedies() -> str:
    """What to do about each refusal."""
    rows = [(f"`{reason_of(error)}`", say(error), REMEDIES.get(error, BY_CALLER)) for error in CODES]
    internal = ("a fault of the server", "look for the id in the log, and report it")
    return draw(("reason", "means", "do"), [*rows, (f"`{INTERNAL_REASON}`", *internal)])


def show_memory() -> str:
    """What requests and new versions may add to the memory of an idle server."""
    limits = Limits()
    held, unfinished = HELD_MESSAGES * limits.max_request_bytes, UNFINISHED_MESSAGES * limits.max_request_bytes
    trials = LOADERS * limits.load_bytes
    file_bytes = f"{FILE_FACTOR} x the model file"
    rows = (
        ("images that are being decoded", "`--max-decode-bytes`", f"at most {MAX_DEFAULT_BYTES // MIB} MiB"),
        ("decoded images that wait", "(slots + `--max-queue`) x height x width x channels", "by the model"),
        (
            "messages of requests in flight",
            f"{HELD_MESSAGES} x `--max-request-bytes`, or {MIN_HELD_BYTES // MIB} MiB if that is more",
            f"{held // MIB} MiB",
        ),
        (
            "unfinished messages",
            f"{UNFINISHED_MESSAGES} x `--max-request-bytes`, or {MIN_UNFINISHED_BYTES // MIB} MiB if that is more",
            f"{unfinished // MIB} MiB",
        ),
        (
            "child processes that try new versions",
            f"{LOADERS} x (a Python process + `--load-bytes` + {file_bytes})",
            f"{trials // MIB} MiB, and what depends on the file",
        ),
    )
    return draw(("what", "at most", "by default"), rows)


def count_threads(slots: int, cpus: int) -> dict[str, int]:
    """The threads that answer calls, by what their names begin with.

    Args:
        slots: Inferences at the same time.
        cpus: That this process may use.
    """
    return {"event-loop": 1, "slot": slots, "small-decode": cpus, "large-decode": cpus, "control": CONTROL_THREADS}


def show_threads() -> str:
    """The threads that a server starts for calls."""
    formulas = {
        "event-loop": ("calls: they come, wait and go without a thread of their own", "1"),
        "slot": ("the network, and its replies", "slots"),
        "small-decode": ("requests with small images, large messages", "CPUs"),
        "large-decode": ("large images", "CPUs"),
        "control": ("every other call", CONTROL_THREADS),
    }
    counts = count_threads(2, 2)
    rows = [(f"`{name}-N`", what, how_many, counts[name]) for name, (what, how_many) in formulas.items()]
    return draw(
        ("threads", "run", "how many", "with two CPUs and two slots"), [*rows, ("all", "", "", sum(counts.values()))]
    )


def show_metrics() -> str:
    """The metrics for Prometheus."""
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
    ("docs/operating.md", "memory"): show_memory,
    ("docs/operating.md", "threads"): show_threads,
    ("docs/operating.md", "metrics"): show_metrics,
    ("docs/operating.md", "remedies"): show_remedies,
}

if __name__ == "__main__":
    main()
