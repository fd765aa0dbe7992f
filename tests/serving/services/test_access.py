"""Access control: tokens, TLS certificates and reflection, for every method of every service of a real server."""

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
from typing import Any
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
PREDICT_TOKEN, CONTROLS_TOKEN, EXPIRED_TOKEN, NEW_TOKEN = (
    f"{name}-0123456789abcdef" for name in ("predict", "control", "expired", "new")
)

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
    """Make a call with an empty message; return its status code and reason."""
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


def list_refusals(channel: grpc.Channel, authorization: str | None) -> dict[str, tuple[str, str]]:
    """The calls that are refused, with their status codes and reasons."""
    answers = {path: call(channel, path, authorization) for path in CALLS}
    return {path: answer for path, answer in answers.items() if answer[0] in ("UNAUTHENTICATED", "PERMISSION_DENIED")}


EVERY_CALL_BUT_HEALTH = dict.fromkeys((*OWN_CALLS, *REFLECTION), ("UNAUTHENTICATED", "TOKEN_INVALID"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "tokens").write_text(f"# for predictions\n{PREDICT_TOKEN}\n{EXPIRED_TOKEN} 2026-01-31T00:00:00Z\n")
    (folder / "control").write_text(f"{CONTROLS_TOKEN} 2999-01-01T00:00:00+01:00\n")
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
            f"Bearer {PREDICT_TOKEN[:-1]}",
            f"Bearer {PREDICT_TOKEN}x",
            f"Bearer {EXPIRED_TOKEN}",
            f"Basic {PREDICT_TOKEN}",
            PREDICT_TOKEN,
            f"Bearer # for predictions\n{PREDICT_TOKEN}".replace("\n", " "),
        ],
    )
    def test_all_calls_but_health_are_refused_without_a_valid_token(
        self, channel: grpc.Channel, authorization: str | None
    ) -> None:
        assert list_refusals(channel, authorization) == EVERY_CALL_BUT_HEALTH

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_a_token_for_predictions_permits_all_but_load_and_unload(self, channel: grpc.Channel, scheme: str) -> None:
        forbidden = dict.fromkeys(CONTROLS, ("PERMISSION_DENIED", "CONTROL_FORBIDDEN"))
        assert len(forbidden) == 2
        assert list_refusals(channel, f"{scheme} {PREDICT_TOKEN}") == forbidden

    def test_a_control_token_permits_all_calls(self, channel: grpc.Channel) -> None:
        assert list_refusals(channel, f"Bearer {CONTROLS_TOKEN}") == {}

    def test_an_unknown_method_is_not_revealed_without_a_token(self, channel: grpc.Channel) -> None:
        for authorization, code in ((None, "UNAUTHENTICATED"), (f"Bearer {PREDICT_TOKEN}", "UNIMPLEMENTED")):
            metadata = (("authorization", authorization),) if authorization else ()
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/evalmode.v1.Classifier/Nothing")(b"", metadata=metadata, timeout=WAIT_S)
            assert caught.value.code().name == code

    def test_tokens_are_rotated_without_a_restart(self, colours: Path, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        path.write_text(PREDICT_TOKEN)
        with serving(colours, "--tokens", path) as server, grpc.insecure_channel(server.address) as channel:
            assert list_refusals(channel, f"Bearer {PREDICT_TOKEN}") == {}
            path.write_text(f"{PREDICT_TOKEN}\n{NEW_TOKEN}")
            wait_until(lambda: list_refusals(channel, f"Bearer {NEW_TOKEN}") == {})
            assert list_refusals(channel, f"Bearer {PREDICT_TOKEN}") == {}
            path.write_text(NEW_TOKEN)
            wait_until(lambda: list_refusals(channel, f"Bearer {PREDICT_TOKEN}") == EVERY_CALL_BUT_HEALTH)
            assert list_refusals(channel, f"Bearer {NEW_TOKEN}") == {}
            path.write_text("short")
            wait_until(lambda: "the token has 5 characters" in server.logged())
            assert list_refusals(channel, f"Bearer {NEW_TOKEN}") == {}
            path.unlink()
            wait_until(lambda: server.logged().count("the previous tokens stay in use") == 2)
            assert list_refusals(channel, f"Bearer {NEW_TOKEN}") == {}
            _, logged = server.stop()
        assert logged.count("the previous tokens stay in use") == 2
        assert PREDICT_TOKEN not in logged
        assert NEW_TOKEN not in logged

    def test_without_tokens_only_control_calls_need_one(self, colours: Path, files: tuple[Path, Path]) -> None:
        with (
            serving(colours, "--enable-control", "--control-tokens", files[1]) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            assert list_refusals(channel, None) == dict.fromkeys(CONTROLS, ("UNAUTHENTICATED", "TOKEN_INVALID"))
            assert list_refusals(channel, f"Bearer {CONTROLS_TOKEN}") == {}

    def test_without_any_token_file_no_token_is_needed_and_control_is_disabled(self, server: Server) -> None:
        with grpc.insecure_channel(server.address) as channel:
            assert list_refusals(channel, None) == {}
            assert {call(channel, path, None) for path in CONTROLS} == {("UNIMPLEMENTED", "CONTROL_DISABLED")}


@pytest.mark.native_lacks("early refusal")
def test_a_large_message_without_a_token_is_refused_before_it_is_read(token_server: Server) -> None:
    with Client(token_server.address) as client, pytest.raises(CallFailed) as caught:
        client.predict(bytes(40 * 1024 * 1024))  # more than the limit, which would be RESOURCE_EXHAUSTED
    assert caught.value.code == "UNAUTHENTICATED"


class TestClient:
    def test_sends_its_token(self, token_server: Server) -> None:
        with Client(token_server.address, token=PREDICT_TOKEN) as client:
            assert client.predict(RED).label == "red"
        with (
            Client(token_server.address) as client,
            pytest.raises(CallFailed, match="authorization: Bearer TOKEN") as caught,
        ):
            client.predict(RED)
        assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")

    def test_of_the_command_reads_its_token_from_a_file(self, token_server: Server, tmp_path: Path, evalmode) -> None:
        (tmp_path / "red.png").write_bytes(RED)
        (tmp_path / "token").write_text(PREDICT_TOKEN + "\n")
        asked = ("predict", tmp_path / "red.png", "--address", token_server.address)
        assert "red" in evalmode(*asked, "--token-file", tmp_path / "token").stdout
        refused = evalmode(*asked)
        assert refused.returncode == 2
        assert "UNAUTHENTICATED" in refused.stderr


class TestTokens:
    def holds(self, tmp_path: Path, text: str, token: str) -> bool:
        (tmp_path / "tokens").write_text(text)
        return Tokens(tmp_path / "tokens").holds(token)

    def test_expire_at_their_time(self, tmp_path: Path) -> None:
        soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        assert self.holds(tmp_path, f"{NEW_TOKEN} {soon}", NEW_TOKEN)
        assert not self.holds(tmp_path, f"{NEW_TOKEN} {past}", NEW_TOKEN)
        assert not self.holds(tmp_path, f"{NEW_TOKEN} 2026-01-01", NEW_TOKEN)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "contains no token"),
            ("# only a comment\n\n", "contains no token"),
            (f"{NEW_TOKEN}\nshort", "line 2: the token has 5 characters, the minimum is 16"),
            (f"{NEW_TOKEN} tomorrow", "line 1: 'tomorrow' is not a time: use the form"),
        ],
    )
    def test_of_an_invalid_file_are_reported_by_line_and_not_by_value(
        self, tmp_path: Path, text: str, expected: str
    ) -> None:
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(TokensInvalid, match=expected) as caught:
            Tokens(tmp_path / "tokens")
        assert NEW_TOKEN not in str(caught.value)

    def test_are_all_compared_in_constant_time(self, tmp_path: Path, monkeypatch) -> None:
        compared: list[tuple[bytes, bytes]] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return one == other

        monkeypatch.setattr("hmac.compare_digest", compare)
        assert self.holds(tmp_path, f"{NEW_TOKEN}\n{PREDICT_TOKEN}\n{CONTROLS_TOKEN}", NEW_TOKEN)
        assert [len(one) == len(other) == 32 for one, other in compared] == [True] * 3

    def test_are_looked_up_without_reading_the_file(self, tmp_path: Path) -> None:
        """A file system that hangs must not block the thread that checks tokens."""
        (tmp_path / "tokens").write_text(NEW_TOKEN)
        tokens = Tokens(tmp_path / "tokens")
        with patch.object(Path, "stat", side_effect=AssertionError), patch("builtins.open", side_effect=AssertionError):
            assert tokens.holds(NEW_TOKEN)
            assert not tokens.holds(PREDICT_TOKEN)


def test_refused_calls_are_counted(token_server: Server) -> None:
    with Client(token_server.address) as client, pytest.raises(CallFailed):
        client.predict(RED)
    page = urllib.request.urlopen(f"http://{token_server.metrics}/metrics").read().decode()
    counted = re.search(
        r'evalmode_requests_total{code="UNAUTHENTICATED",model="",reason="TOKEN_INVALID",version=""} (\S+)', page
    )
    assert counted
    assert float(counted[1]) >= 1


# TLS, by real handshakes


def write_pair(folder: Path, authority: trustme.CA, name: str = "localhost", **options: Any) -> tuple[Path, Path]:
    """Write a certificate and its key to files."""
    issued = authority.issue_cert(name, **options)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


@contextmanager
def open_secure_connections(
    address: str, authority: trustme.CA, pair: tuple[Path, Path] | None = None
) -> Iterator[Callable[[], str]]:
    """A function that checks health over a new connection each time: UNAVAILABLE if the handshake fails."""
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

    def test_connects_clients_that_trust_the_authority(self, colours: Path, tls, authority: trustme.CA) -> None:
        with serving(colours, *tls) as server:
            with open_secure_connections(server.address, authority) as check:
                assert check() == "SERVING"
            with open_secure_connections(server.address, trustme.CA()) as check:
                assert check() == "UNAVAILABLE"
            with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=WAIT_S)

    def test_a_renewed_certificate_is_used_without_a_restart(
        self, colours: Path, tls, authority: trustme.CA, tmp_path: Path
    ) -> None:
        with serving(colours, *tls) as server:
            other = trustme.CA()
            with open_secure_connections(server.address, authority) as check:
                assert check() == "SERVING"
            write_pair(tmp_path, other)

            def is_served() -> bool:
                with open_secure_connections(server.address, other) as check:
                    return check() == "SERVING"

            wait_until(is_served)
            with open_secure_connections(server.address, authority) as check:
                assert check() == "UNAVAILABLE"
            _, logged = server.stop()
        assert "certificates read again" in logged

    def test_an_incomplete_new_pair_changes_nothing(
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

    def test_clients_need_a_certificate_with_tls_client_ca(
        self, colours: Path, tls, authority: trustme.CA, tmp_path: Path
    ) -> None:
        clients, folder = trustme.CA(), tmp_path / "client"
        clients.cert_pem.write_to_path(tmp_path / "clients.pem")
        folder.mkdir()
        with serving(colours, *tls, "--tls-client-ca", tmp_path / "clients.pem") as server:
            with open_secure_connections(server.address, authority) as check:
                assert check() == "UNAVAILABLE"  # none
            for issuer, options, expected in (
                (clients, {}, "SERVING"),
                (trustme.CA(), {}, "UNAVAILABLE"),
                (clients, {"not_after": datetime.now(UTC) - timedelta(days=1)}, "UNAVAILABLE"),
            ):
                pair = write_pair(folder, issuer, "client@example.org", **options)
                with open_secure_connections(server.address, authority, pair) as check:
                    assert check() == expected

    def test_the_client_and_the_command_use_it(
        self, colours: Path, tls, authority: trustme.CA, tmp_path: Path, evalmode
    ) -> None:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        (tmp_path / "red.png").write_bytes(RED)
        folder = tmp_path / "client"
        folder.mkdir()
        certificate, key = write_pair(folder, authority, "client@example.org")
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
    def test_files_that_do_not_match_are_rejected_at_the_start(
        self, tmp_path: Path, authority: trustme.CA, spoil: Callable[[Path, Path], object], expected: str
    ) -> None:
        certificate, key = write_pair(tmp_path, authority)
        spoil(certificate, key)
        with pytest.raises(CertificatesInvalid, match=expected):
            Certificates(certificate, key, None)

    def test_the_health_check_of_the_image_uses_http(self, colours: Path, tls) -> None:
        command = [sys.executable, str(Path(__file__).parents[3] / "docker" / "healthcheck.py")]
        with serving(colours, *tls) as server:
            environment = {"EVALMODE_SERVE_TLS_CERT": str(tls[3]), "EVALMODE_SERVE_METRICS_PORT": server.metrics[10:]}
            assert subprocess.run(command, env={**os.environ, **environment}).returncode == 0
        stopped = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert stopped.returncode == 1
        assert "/livez: " in stopped.stderr

    def test_the_native_transport_rejects_it(self, colours: Path, tls, evalmode) -> None:
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
    def test_that_need_another_option_are_rejected(
        self, colours: Path, tmp_path: Path, evalmode, options, expected: str
    ) -> None:
        (tmp_path / "file").write_text("")
        given = (str(tmp_path / "file") if one == "FILE" else one for one in options)
        refused = evalmode("serve", "--repository", colours, "--port", 0, *given)
        assert refused.returncode == 2
        assert expected in refused.stderr

    def test_beyond_loopback_without_tls_a_warning_is_logged(self, colours: Path, files: tuple[Path, Path]) -> None:
        beyond = ("--host", "0.0.0.0", "--allow-unbounded-messages")
        with serving(colours, *beyond, "--tokens", files[0]) as server:
            _, logged = server.stop()
        assert "images, answers and tokens are not encrypted" in logged

    def test_no_reflection_disables_reflection(self, colours: Path) -> None:
        with serving(colours, "--no-reflection") as server, grpc.insecure_channel(server.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
