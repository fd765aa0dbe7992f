"""The table of error reasons: the status code of each, its meaning, and what to do about it."""

from __future__ import annotations

from docs.tables.markdown import draw
from evalmode import errors
from evalmode.errors import RequestError
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of
from serving.transports.messages import HELD_MESSAGES

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


def describe_retry(error: type[RequestError]) -> str:
    """Say when the same request may succeed on the same server; "" for never."""
    return f"after {RETRY_AFTER_S[error]} s" if error in RETRY_AFTER_S else ""


def describe(error: type[RequestError]) -> str:
    """Return the meaning of an error: its docstring."""
    return " ".join((error.__doc__ or "").split()).replace("``", "`")
