"""Authorization by bearer tokens. The files that hold the tokens are read again when they change."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from evalmode.errors import ControlForbidden, TokenInvalid, TokensInvalid
from serving.watching import Poller, WatchedFiles

log = logging.getLogger(__name__)

OPEN = "/grpc.health.v1.Health/"  # health probes send no token
CONTROL = ("RepositoryModelLoad", "RepositoryModelUnload")
MIN_CHARACTERS = 16  # of a token: a shorter one can be guessed
SCHEME = "Bearer "


class Tokens:
    """The bearer tokens in a file.

    Each line holds one token. A token that expires is followed by a space and the time at which it expires, such as
    2027-01-31T00:00:00Z. A line that begins with # is a comment.

    Args:
        path: The file.

    Raises:
        TokensInvalid: The file cannot be read, contains no token, or contains a line that is not a token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = WatchedFiles(path)
        self._expiries = dict(_read(path))

    def holds(self, token: str) -> bool:
        """Whether a token is in the file and has not expired. Reads no file and takes no lock."""
        digest, now = hashlib.sha256(token.encode()).digest(), datetime.now(UTC)
        # Every token is compared, each in constant time, so that the duration reveals nothing about them.
        found = [hmac.compare_digest(digest, known) and now < expiry for known, expiry in self._expiries.items()]
        return any(found)

    def renew(self) -> None:
        """Read the file again if it has changed. If it is invalid, the previous tokens stay in use."""
        if self._files.changed():
            try:
                self._expiries = dict(_read(self._path))
                log.info("%s: read %s tokens", self._path, len(self._expiries))
            except TokensInvalid as error:
                log.error("the previous tokens stay in use: %s", error)


class Access:
    """Decides whether a call is authorized.

    Args:
        tokens: Tokens that allow predictions; None: predictions need no token.
        control: Tokens that allow predictions, loading and unloading; None: repository control is disabled.
    """

    def __init__(self, tokens: Tokens | None, control: Tokens | None) -> None:
        self._tokens = tokens
        self._control = control
        self._poller: Poller | None = None

    def follow(self) -> None:
        """Start a thread that reads the files again when they change.

        Raises:
            ThreadsUnavailable: The system cannot start the thread.
        """
        self._poller = Poller("tokens", self._renew)

    def close(self) -> None:
        """Stop the thread that ``follow`` started."""
        if self._poller is not None:
            self._poller.close()

    def check(self, path: str, authorization: str) -> None:
        """Check that a call is authorized.

        Args:
            path: The full name of the method, ``/package.Service/Method``.
            authorization: The value of the ``authorization`` metadata, "" if there is none.

        Raises:
            TokenInvalid: The call carries no valid token.
            ControlForbidden: The call carries a token for predictions only, and the method is repository control.
        """
        is_control = self._control is not None and path.rpartition("/")[2] in CONTROL
        if path.startswith(OPEN) or not (is_control or self._tokens):
            return
        token = authorization[len(SCHEME) :] if authorization[: len(SCHEME)].lower() == SCHEME.lower() else ""
        may_control = self._control is not None and self._control.holds(token)
        may_predict = self._tokens is not None and self._tokens.holds(token)
        if is_control and may_predict and not may_control:
            raise make_control_forbidden()
        if not (may_control or may_predict):
            raise make_token_invalid()

    def _renew(self) -> None:
        for tokens in (self._tokens, self._control):
            if tokens is not None:
                tokens.renew()


def make_token_invalid() -> TokenInvalid:
    """The error of a call without a valid token."""
    return TokenInvalid("no valid token: send the metadata 'authorization: Bearer TOKEN' with a current token")


def make_control_forbidden() -> ControlForbidden:
    """The error of repository control with a token for predictions."""
    return ControlForbidden("this token allows predictions, but not loading and unloading models")


def _read(path: Path) -> Iterator[tuple[bytes, datetime]]:
    """The SHA-256 digest of each token in a file, with the time at which it expires."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokensInvalid(f"cannot read the tokens file: {error}") from error
    count = 0
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        token, _, until = line.strip().partition(" ")
        try:
            expiry = datetime.fromisoformat(until.strip()) if until else datetime.max.replace(tzinfo=UTC)
        except ValueError as error:
            raise TokensInvalid(
                f"{path}, line {number}: {until!r} is not a time: use the form 2027-01-31T00:00:00Z"
            ) from error
        if len(token) < MIN_CHARACTERS:
            raise TokensInvalid(
                f"{path}, line {number}: the token has {len(token)} characters, the minimum is {MIN_CHARACTERS}: "
                "create one with 'openssl rand -hex 32'"
            )
        yield hashlib.sha256(token.encode()).digest(), expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
        count += 1
    if not count:
        raise TokensInvalid(f"{path} contains no token: write one token per line")
