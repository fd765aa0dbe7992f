"""TLS for grpcio. The certificate files are read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections import deque
from pathlib import Path

import grpc

from evalmode.errors import CertificatesInvalid
from serving.watching import Poller, WatchedFiles

log = logging.getLogger(__name__)


class Certificates:
    """A server certificate and its key. New connections use changed files within a second.

    Args:
        certificate: PEM file with the server certificate, followed by the intermediate certificates.
        key: PEM file with the private key of the certificate.
        client_ca: PEM file with the authorities that must have issued a client's certificate; None: clients need no
            certificate.

    Attributes:
        credentials: What ``grpc.aio.Server.add_secure_port`` takes.

    Raises:
        CertificatesInvalid: A file cannot be read, or the certificate and the key do not match.
        ThreadsUnavailable: The system cannot start the thread that reads the files again.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._paths = (certificate, key, *([client_ca] if client_ca else []))
        self._files = WatchedFiles(*self._paths)
        self._renewed: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            _read(*self._paths), self._take, require_client_authentication=client_ca is not None
        )
        self._poller = Poller("certificates", self._renew)

    def close(self) -> None:
        """Stop the thread that reads the files again."""
        self._poller.close()

    def _renew(self) -> None:
        if not self._files.changed():
            return
        try:
            self._renewed.append(_read(*self._paths))
        except CertificatesInvalid as error:  # for example when only one file of a pair has been replaced so far
            log.error("the previous certificates stay in use: %s", error)
        else:
            log.info("certificates read again: %s", ", ".join(map(str, self._paths)))

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """The changed certificates, once. grpc calls this on its own thread at each handshake, so it must not block."""
        try:
            return self._renewed.pop()
        except IndexError:
            return None


def _read(certificate: Path, key: Path, client_ca: Path | None = None) -> grpc.ServerCertificateConfiguration:
    """Read the files, and check that the certificate and the key match."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")
        if client_ca:
            context.load_verify_locations(client_ca)
        pair = (key.read_bytes(), certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca.read_bytes() if client_ca else None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = ", ".join(str(path) for path in (certificate, key, client_ca) if path)
        raise CertificatesInvalid(f"cannot use {named} for TLS: {error}") from error
