"""Who may call what: tokens, certificates and reflection, by every call of every service, on a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from evalmode.client import CallFailed, Client
from evalmode.errors import CertificatesInvalid, TokensInvalid
from serving.services import classifier, open_inference
from serving.services.access import CONTROL, Tokens
from serving.transports.tls import Certificates
from tests.conftest import Server, encode, plain, serving
from tests.serving.conftest import wait_until

RED = encode(plain("red"))
WAIT_S = 30
PREDICTS, LEADS, EXPIRED, NEW = (f"{name}-0123456789abcdef" for name in ("predicts", "leads", "expired", "new"))

UNARY, STREAM, WATCH = "unary_unary", "stream_stream", "unary_stream"
HEALTH = {"/grpc.health.v1.Health/Check": UNARY, "/grpc.health.v1.Health/Watch": WATCH}
REFLECTION = {
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": STREAM for version in ("v1", "v1alpha")
}
OWN_CALLS = {
    f"/{contract.full_name}/{method.name}": STREAM if method.client_streaming else UNARY
    for contract in (classifier.DESCRIPTOR, open_inference.DESCRIPTOR)
    for method in contract.methods
}
CALLS = {**OWN_CALLS, **HEALTH, **REFLECTION}
CONTROLS = [path for path in OWN_CALLS if path.endswith(CONTROL)]
MESSAGES = {path: reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString() for path in REFLECTION}


def call(channel: grpc.Channel, path: str, authorization: str | None) -> tuple[str, str]:
    """Make a call with an empty message; the code that it ends with, and the reason."""
    kind, message = CALLS[path], MESSAGES.get(path, b"")
    metadata = () if authorization is None else (("authorization", authorization),)
    try:
        reply = getattr(channel, kind)(path)(
            iter([message]) if kind == STREAM else message, metadata=metadata, timeout=WAIT_S
        )
        if kind != UNARY:
            next(reply)
            reply.cancel()
    except grpc.RpcError as error:
        info = error_details_pb2.ErrorInfo()
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                assert status_pb2.Status.FromString(value).details[0].Unpack(info)
        return error.code().name, info.reason
    return "OK", ""


def refuses(channel: grpc.Channel, authorization: str | None) -> dict[str, tuple[str, str]]:
    """The calls that are not let through, with what they are told."""
    answers = {path: call(channel, path, authorization) for path in CALLS}
    return {path: answer for path, answer in answers.items() if answer[0] in ("UNAUTHENTICATED", "PERMISSION_DENIED")}


EVERY_CALL_BUT_HEALTH = dict.fromkeys((*OWN_CALLS, *REFLECTION), ("UNAUTHENTICATED", "TOKEN_INVALID"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "tokens").write_text(f"# who predicts\n{PREDICTS}\n{EXPIRED} 2026-01-31T00:00:00Z\n")
    (folder / "control").write_text(f"{LEADS} 2999-01-01T00:00:00+01:00\n")
    return folder / "tokens", folder / "control"


@pytest.fixture(scope="module")
def token_server(colours: Path, files: tuple[Path, Path]) -> Iterator[Server]:
    options = ("--tokens", files[0], "--enable-control", "--control-tokens", files[1])
    with serving(colours, *options) as running:
        yield running


@pytest.fixture(scope="module")
def channel(token_server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(token_server.address) as opened:
        yield opened


class TestMatrix:
    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong-0123456789abcdef",
            f"Bearer {PREDICTS[:-1]}",
            f"Bearer {PREDICTS}x",
            f"Bearer {EXPIRED}",
            f"Basic {PREDICTS}",
            PREDICTS,
            f"Bearer # who predicts\n{PREDICTS}".replace("\n", " "),
        ],
    )
    def test_nobody_else_is_let_through(self, channel: grpc.Channel, authorization: str | None) -> None:
        assert refuses(channel, authorization) == EVERY_CALL_BUT_HEALTH

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_who_may_predict_may_all_but_load_and_unload(self, channel: grpc.Channel, scheme: str) -> None:
        forbidden = dict.fromkeys(CONTROLS, ("PERMISSION_DENIED", "CONTROL_FORBIDDEN"))
        assert len(forbidden) == 2
        assert refuses(channel, f"{scheme} {PREDICTS}") == forbidden

    def test_who_may_lead_may_all(self, channel: grpc.Channel) -> None:
        assert refuses(channel, f"Bearer {LEADS}") == {}

    def test_a_method_that_is_not_there_is_not_shown_to_strangers(self, channel: grpc.Channel) -> None:
        for authorization, code in ((None, "UNAUTHENTICATED"), (f"Bearer {PREDICTS}", "UNIMPLEMENTED")):
            metadata = (("authorization", authorization),) if authorization else ()
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/evalmode.v1.Classifier/Nothing")(b"", metadata=metadata, timeout=WAIT_S)
            assert caught.value.code().name == code

    def test_tokens_are_rotated_without_a_restart(self, colours: Path, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        path.write_text(PREDICTS)
        with serving(colours, "--tokens", path) as server, grpc.insecure_channel(server.address) as channel:
            assert refuses(channel, f"Bearer {PREDICTS}") == {}
            path.write_text(f"{PREDICTS}\n{NEW}")
            wait_until(lambda: refuses(channel, f"Bearer {NEW}") == {})
            assert refuses(channel, f"Bearer {PREDICTS}") == {}
            path.write_text(NEW)
            wait_until(lambda: refuses(channel, f"Bearer {PREDICTS}") == EVERY_CALL_BUT_HEALTH)
            assert refuses(channel, f"Bearer {NEW}") == {}
            path.write_text("short")
            wait_until(lambda: "the token has 5 characters" in server.logged())
            assert refuses(channel, f"Bearer {NEW}") == {}
            path.unlink()
            wait_until(lambda: server.logged().count("the previous tokens stay in use") == 2)
            assert refuses(channel, f"Bearer {NEW}") == {}
            _, logged = server.stop()
        assert logged.count("the previous tokens stay in use") == 2
        assert PREDICTS not in logged
        assert NEW not in logged

    def test_without_tokens_only_control_asks_for_one(self, colours: Path, files: tuple[Path, Path]) -> None:
        with (
            serving(colours, "--enable-control", "--control-tokens", files[1]) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            assert refuses(channel, None) == dict.fromkeys(CONTROLS, ("UNAUTHENTICATED", "TOKEN_INVALID"))
            assert refuses(channel, f"Bearer {LEADS}") == {}

    def test_without_any_nobody_is_asked_and_nothing_is_loaded(self, server: Server) -> None:
        with grpc.insecure_channel(server.address) as channel:
            assert refuses(channel, None) == {}
            assert {call(channel, path, None) for path in CONTROLS} == {("UNIMPLEMENTED", "CONTROL_DISABLED")}


@pytest.mark.native_lacks("early refusal")
def test_a_large_message_of_a_stranger_is_not_read(token_server: Server) -> None:
    with Client(token_server.address) as client, pytest.raises(CallFailed) as caught:
        client.predict(bytes(40 * 1024 * 1024))  # more than the limit, which would be RESOURCE_EXHAUSTED
    assert caught.value.code == "UNAUTHENTICATED"


class TestClient:
    def test_sends_its_token(self, token_server: Server) -> None:
        with Client(token_server.address, token=PREDICTS) as client:
            assert client.predict(RED).label == "red"
        with (
            Client(token_server.address) as client,
            pytest.raises(CallFailed, match="authorization: Bearer TOKEN") as caught,
        ):
            client.predict(RED)
        assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")

    def test_of_the_command_reads_it_from_a_file(self, token_server: Server, tmp_path: Path, evalmode) -> None:
        (tmp_path / "red.png").write_bytes(RED)
        (tmp_path / "token").write_text(PREDICTS + "\n")
        asked = ("predict", tmp_path / "red.png", "--address", token_server.address)
        assert "red" in evalmode(*asked, "--token-file", tmp_path / "token").stdout
        refused = evalmode(*asked)
        assert refused.returncode == 2
        assert "UNAUTHENTICATED" in refused.stderr


class TestTokens:
    def holds(self, tmp_path: Path, text: str, token: str) -> bool:
        (tmp_path / "tokens").write_text(text)
        return Tokens(tmp_path / "tokens").holds(token)

    def test_end_when_they_say(self, tmp_path: Path) -> None:
        soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        assert self.holds(tmp_path, f"{NEW} {soon}", NEW)
        assert not self.holds(tmp_path, f"{NEW} {past}", NEW)
        assert not self.holds(tmp_path, f"{NEW} 2026-01-01", NEW)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "contains no token"),
            ("# only a comment\n\n", "contains no token"),
            (f"{NEW}\nshort", "line 2: the token has 5 characters, the minimum is 16"),
            (f"{NEW} tomorrow", "line 1: 'tomorrow' is not a time: use the form"),
        ],
    )
    def test_of_a_file_that_is_wrong_say_where_and_not_what(self, tmp_path: Path, text: str, expected: str) -> None:
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(TokensInvalid, match=expected) as caught:
            Tokens(tmp_path / "tokens")
        assert NEW not in str(caught.value)

    def test_are_compared_all_of_them_in_constant_time(self, tmp_path: Path, monkeypatch) -> None:
        compared = []
        monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or one == other)
        assert self.holds(tmp_path, f"{NEW}\n{PREDICTS}\n{LEADS}", NEW)
        assert [len(one) == len(other) == 32 for one, other in compared] == [True] * 3

    def test_are_looked_up_without_the_file(self, tmp_path: Path) -> None:
        """A file system that hangs must not hold the thread that looks them up."""
        (tmp_path / "tokens").write_text(NEW)
        tokens = Tokens(tmp_path / "tokens")
        with patch.object(Path, "stat", side_effect=AssertionError), patch("builtins.open", side_effect=AssertionError):
            assert tokens.holds(NEW)
            assert not tokens.holds(PREDICTS)


def test_who_is_refused_is_counted(token_server: Server) -> None:
    with Client(token_server.address) as client, pytest.raises(CallFailed):
        client.predict(RED)
    page = urllib.request.urlopen(f"http://{token_server.metrics}/metrics").read().decode()
    counted = re.search(
        r'evalmode_requests_total{code="UNAUTHENTICATED",model="",reason="TOKEN_INVALID",version=""} (\S+)', page
    )
    assert counted
    assert float(counted[1]) >= 1


# TLS, by real handshakes


def write_pair(folder: Path, authority: trustme.CA, name: str = "localhost", **options: object) -> tuple[Path, Path]:
    """A certificate and its key, as files."""
    issued = authority.issue_cert(name, **options)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


@contextmanager
def secured(address: str, authority: trustme.CA, pair: tuple[Path, Path] | None = None) -> Iterator[Callable[[], str]]:
    """A connection of its own at each call: what health says, or UNAVAILABLE where no handshake succeeds."""
    key, certificate = (pair[1].read_bytes(), pair[0].read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, certificate)
    port = address.rpartition(":")[2]

    def check() -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
            ask = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                reply = health_pb2.HealthCheckResponse.FromString(ask(b"", timeout=WAIT_S))
            except grpc.RpcError as error:
                return error.code().name
            return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    yield check


class TestTls:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def tls(self, tmp_path: Path, authority: trustme.CA) -> tuple[object, ...]:
        certificate, key = write_pair(tmp_path, authority)
        return "--transport", "grpcio", "--tls-cert", certificate, "--tls-key", key

    def test_answers_who_trusts_its_authority(self, colours: Path, tls, authority: trustme.CA) -> None:
        with serving(colours, *tls) as server:
            with secured(server.address, authority) as check:
                assert check() == "SERVING"
            with secured(server.address, trustme.CA()) as check:
                assert check() == "UNAVAILABLE"
            with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=WAIT_S)

    def test_a_renewed_certificate_is_taken_without_a_restart(
        self, colours: Path, tls, authority: trustme.CA, tmp_path: Path
    ) -> None:
        with serving(colours, *tls) as server:
            other = trustme.CA()
            with secured(server.address, authority) as check:
                assert check() == "SERVING"
            write_pair(tmp_path, other)

            def is_served() -> bool:
                with secured(server.address, other) as check:
                    return check() == "SERVING"

            wait_until(is_served)
            with secured(server.address, authority) as check:
                assert check() == "UNAVAILABLE"
            _, logged = server.stop()
        assert "certificates read again" in logged

    def test_half_of_a_new_pair_changes_nothing(
        self, tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
    ) -> None:
        certificate, key = write_pair(tmp_path, authority)
        with caplog.at_level("INFO"), patch("serving.watching.POLL_S", 0.01):
            assert Certificates(certificate, key, None)
            certificate.write_bytes(b"half of a new pair")
            wait_until(lambda: "the previous certificates stay in use: cannot use" in caplog.text)
            assert "certificates read again" not in caplog.text
            write_pair(tmp_path, authority)
            wait_until(lambda: "certificates read again" in caplog.text)

    def test_clients_need_a_certificate_where_they_are_asked_for_one(
        self, colours: Path, tls, authority: trustme.CA, tmp_path: Path
    ) -> None:
        clients, folder = trustme.CA(), tmp_path / "client"
        clients.cert_pem.write_to_path(tmp_path / "clients.pem")
        folder.mkdir()
        with serving(colours, *tls, "--tls-client-ca", tmp_path / "clients.pem") as server:
            with secured(server.address, authority) as check:
                assert check() == "UNAVAILABLE"  # none
            for issuer, options, expected in (
                (clients, {}, "SERVING"),
                (trustme.CA(), {}, "UNAVAILABLE"),
                (clients, {"not_after": datetime.now(UTC) - timedelta(days=1)}, "UNAVAILABLE"),
            ):
                pair = write_pair(folder, issuer, "somebody@example.org", **options)
                with secured(server.address, authority, pair) as check:
                    assert check() == expected

    def test_our_client_speaks_it(self, colours: Path, tls, authority: trustme.CA, tmp_path: Path, evalmode) -> None:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        (tmp_path / "red.png").write_bytes(RED)
        folder = tmp_path / "client"
        folder.mkdir()
        certificate, key = write_pair(folder, authority, "somebody@example.org")
        with serving(colours, *tls, "--tls-client-ca", tmp_path / "ca.pem") as server:
            address = f"localhost:{server.address.rpartition(':')[2]}"
            with Client(address, tls_ca=tmp_path / "ca.pem", tls_cert=certificate, tls_key=key) as client:
                assert client.predict(RED).label == "red"
            options = ("--tls-ca", tmp_path / "ca.pem", "--tls-cert", certificate, "--tls-key", key)
            asked = evalmode("predict", tmp_path / "red.png", "--address", address, *options)
            assert (asked.returncode, "red" in asked.stdout) == (0, True), asked.stderr

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (lambda certificate, key: key.write_bytes(b""), "cannot use"),
            (lambda certificate, key: certificate.write_text("no certificate"), "cannot use"),
            (lambda certificate, key: trustme.CA().issue_cert("x").private_key_pem.write_to_path(key), "cannot use"),
        ],
    )
    def test_files_that_do_not_fit_are_named_at_the_start(
        self, tmp_path: Path, authority: trustme.CA, spoil: Callable[[Path, Path], object], expected: str
    ) -> None:
        certificate, key = write_pair(tmp_path, authority)
        spoil(certificate, key)
        with pytest.raises(CertificatesInvalid, match=expected):
            Certificates(certificate, key, None)

    def test_the_health_check_of_the_image_asks_over_http(self, colours: Path, tls) -> None:
        command = [sys.executable, Path(__file__).parents[3] / "docker" / "healthcheck.py"]
        with serving(colours, *tls) as server:
            environment = {"EVALMODE_SERVE_TLS_CERT": str(tls[3]), "EVALMODE_SERVE_METRICS_PORT": server.metrics[10:]}
            assert subprocess.run(command, env={**os.environ, **environment}).returncode == 0
        stopped = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert stopped.returncode == 1
        assert "/livez: " in stopped.stderr

    def test_the_other_transport_refuses_it(self, colours: Path, tls, evalmode) -> None:
        refused = evalmode("serve", "--repository", colours, *tls[2:], "--transport", "native")
        assert refused.returncode == 2
        assert "--transport native does not support TLS" in refused.stderr


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("--tls-cert", "FILE"), "TLS needs both --tls-cert and --tls-key"),
            (("--tls-client-ca", "FILE"), "TLS needs both --tls-cert and --tls-key"),
            (("--enable-control",), "needs both --enable-control and --control-tokens"),
            (("--control-tokens", "FILE"), "needs both --enable-control and --control-tokens"),
            (("--tokens", "FILE"), "contains no token"),
        ],
    )
    def test_that_lack_another_say_so(self, colours: Path, tmp_path: Path, evalmode, options, expected: str) -> None:
        (tmp_path / "file").write_text("")
        given = (str(tmp_path / "file") if one == "FILE" else one for one in options)
        refused = evalmode("serve", "--repository", colours, "--port", 0, *given)
        assert refused.returncode == 2
        assert expected in refused.stderr

    def test_beyond_loopback_without_tls_there_is_a_warning(self, colours: Path, files: tuple[Path, Path]) -> None:
        beyond = ("--host", "0.0.0.0", "--allow-unbounded-messages")
        with serving(colours, *beyond, "--tokens", files[0]) as server:
            _, logged = server.stop()
        assert "images, answers and tokens are not encrypted" in logged

    def test_reflection_can_be_switched_off(self, colours: Path) -> None:
        with serving(colours, "--no-reflection") as server, grpc.insecure_channel(server.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
