"""TLS for grpcio: certificates of files, which are read again when they change."""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from pathlib import Path

import grpc

from evalmode.errors import CertificatesInvalid
from evalmode.files import sign_file
from serving.threads import start_threads

log = logging.getLogger(__name__)

RENEW_S = 0.5  # between two looks at the files


def make_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """What grpcio listens with; new connections see a change within a second.

    Args:
        certificate: the server's, PEM, with those that lead to its authority.
        key: its private key, PEM.
        client_ca: PEM, the authorities that clients' certificates must come from; None: clients need none.

    Raises:
        CertificatesInvalid: a file cannot be read, or they do not fit together.
        ThreadsUnavailable: The system does not start the thread that reads them again.
    """
    paths = [certificate, key, *([client_ca] if client_ca else [])]
    signature = [*map(sign_file, paths)]
    first = _read(*paths)
    renewed: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)

    def follow() -> None:
        """Read the files again when they change: a file system that hangs holds up no handshake."""
        nonlocal signature
        while True:
            time.sleep(RENEW_S)
            now = [*map(sign_file, paths)]
            if now == signature:
                continue
            try:
                renewed.append(_read(*paths))
            except CertificatesInvalid as error:  # half of a pair, say, while the other is being written
                log.error("the certificates stay as they were: %s", error)
            else:
                log.info("certificates read again: %s", ", ".join(map(str, paths)))
            signature = now

    def take() -> grpc.ServerCertificateConfiguration | None:
        """The newest, once; called by grpc's own thread at each handshake, so it reads and waits for nothing."""
        try:
            return renewed.pop()
        except IndexError:
            return None

    start_threads(1, "certificates", follow)
    return grpc.dynamic_ssl_server_credentials(first, take, require_client_authentication=client_ca is not None)


def _read(certificate: Path, key: Path, client_ca: Path | None = None) -> grpc.ServerCertificateConfiguration:
    """The files, once they were seen to fit together."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")
        if client_ca:
            context.load_verify_locations(client_ca)
        pair = (key.read_bytes(), certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca.read_bytes() if client_ca else None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = ", ".join(str(path) for path in (certificate, key, client_ca) if path)
        raise CertificatesInvalid(f"no TLS with {named}: {error}") from error
