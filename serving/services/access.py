"""Who may call what: bearer tokens of files, which are read again when they change."""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from evalmode.errors import ControlForbidden, TokenInvalid, TokensInvalid
from evalmode.files import sign_file

log = logging.getLogger(__name__)

OPEN = "/grpc.health.v1.Health/"  # probes carry no token
CONTROL = ("RepositoryModelLoad", "RepositoryModelUnload")
RENEW_S = 0.5  # between two looks at the files
LEAST_CHARACTERS = 16  # of a token: shorter ones can be guessed
SCHEME = "Bearer "


class Tokens:
    """The tokens of a file: one a line, then, where it ends some day, a space and when, such as 2027-01-31T00:00:00Z.

    A line that begins with # is a comment.

    Raises:
        TokensInvalid: the file cannot be read, or holds no token, or a line that is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = sign_file(path)
        self._until = dict(_read(path))

    def holds(self, token: str) -> bool:
        """Whether a token is one of them, at this moment. Reads no file, takes no lock."""
        digest, now = hashlib.sha256(token.encode()).digest(), datetime.now(UTC)
        # Each is compared, and as long: how long it takes tells nothing of them.
        found = [hmac.compare_digest(digest, known) and now < until for known, until in self._until.items()]
        return any(found)

    def renew(self) -> None:
        """Read the file again if it has changed; one that is wrong leaves those that were there."""
        signature = sign_file(self._path)
        if signature != self._signature:
            self._signature = signature
            try:
                self._until = dict(_read(self._path))
                log.info("%s: %s tokens", self._path, len(self._until))
            except TokensInvalid as error:
                log.error("the tokens stay as they were: %s", error)


class Access:
    """Decides whether a call may go on.

    Args:
        tokens: of those who may predict; None: everybody may.
        control: of those who may also load and unload models; None: nobody is asked, as nobody can.
    """

    def __init__(self, tokens: Tokens | None, control: Tokens | None) -> None:
        self._tokens = tokens
        self._control = control

    def follow(self) -> None:
        """Read the files again when they change, in a thread: a file system that hangs holds no call."""
        threading.Thread(target=self._follow, name="tokens", daemon=True).start()

    def _follow(self) -> None:
        while True:
            time.sleep(RENEW_S)
            for tokens in (self._tokens, self._control):
                if tokens is not None:
                    tokens.renew()

    def check(self, path: str, authorization: str) -> None:
        """Let a call go on, or not.

        Args:
            path: of the method, ``/package.Service/Method``.
            authorization: the metadata of that name, "" where there is none.

        Raises:
            TokenInvalid: it has no token that holds.
            ControlForbidden: it has one, and that is not for repository control.
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


def make_token_invalid() -> TokenInvalid:
    """What a call without a token that holds is refused with."""
    return TokenInvalid("send 'authorization: Bearer TOKEN' with a token that the server knows and that holds")


def make_control_forbidden() -> ControlForbidden:
    """What repository control is refused with where the token is for predictions."""
    return ControlForbidden("this token is for predictions, not for loading and unloading models")


def _read(path: Path) -> Iterator[tuple[bytes, datetime]]:
    """The digest of each token of a file, and until when it holds."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokensInvalid(f"tokens cannot be read: {error}") from error
    count = 0
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        token, _, until = line.strip().partition(" ")
        try:
            ends = datetime.fromisoformat(until.strip()) if until else datetime.max.replace(tzinfo=UTC)
        except ValueError as error:
            raise TokensInvalid(f"{path}, line {number}: {until!r} is no time such as 2027-01-31T00:00:00Z") from error
        if len(token) < LEAST_CHARACTERS:
            raise TokensInvalid(
                f"{path}, line {number}: a token of {len(token)} characters, at least {LEAST_CHARACTERS} are wanted: "
                "openssl rand -hex 32 makes one"
            )
        yield hashlib.sha256(token.encode()).digest(), ends if ends.tzinfo else ends.replace(tzinfo=UTC)
        count += 1
    if not count:
        raise TokensInvalid(f"{path} holds no token: one a line")
