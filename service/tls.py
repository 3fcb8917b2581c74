"""Certificates of the server, for HTTP and gRPC, as they are in their files now.

Both protocols look at the files when a client connects, so that a renewed certificate needs no
restart, and connections that are open keep theirs.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from service.errors import SettingsError
from service.settings import Settings
from service.watched_files import WatchedFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: a chain with its private key, and who signs the clients of gRPC if they must."""

    certificate: Path
    key: Path
    client_ca: Path | None

    @classmethod
    def of(cls, settings: Settings) -> TlsFiles | None:
        """Returns the files that the settings name, or None without TLS."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(
            certificate=settings.tls_cert, key=settings.tls_key, client_ca=settings.grpc_client_ca
        )

    def watch(self) -> WatchedFiles:
        """Returns what tells when one of them has changed."""
        paths = [self.certificate, self.key, self.client_ca]
        return WatchedFiles([path for path in paths if path is not None])


def make_http_context(files: TlsFiles) -> ssl.SSLContext:
    """Returns a context that gives each handshake the certificate of that moment.

    Raises:
        SettingsError: The files do not go together or cannot be read.
    """
    watched = files.watch()
    outer = current = _load(files)

    def choose(
        connection: ssl.SSLObject | ssl.SSLSocket,
        name: str | None,  # noqa: ARG001
        context: ssl.SSLContext,  # noqa: ARG001
    ) -> None:
        nonlocal current
        if watched.have_changed():
            current = _try_to_renew(lambda: _load(files)) or current
        if current is not outer:
            connection.context = current

    outer.sni_callback = choose
    return outer


def make_grpc_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Returns credentials that give each handshake the certificate of that moment.

    Raises:
        SettingsError: The files do not go together or cannot be read.
    """
    watched = files.watch()
    first = _read(files)

    def renew() -> Any:
        """Returns other certificates, or None when they are the same; called by the library."""
        return _try_to_renew(lambda: _read(files)) if watched.have_changed() else None

    return grpc.dynamic_ssl_server_credentials(
        first, renew, require_client_authentication=files.client_ca is not None
    )


def _try_to_renew(read: Any) -> Any:
    try:
        renewed = read()
    except SettingsError as error:
        # While it is being replaced, perhaps: the key comes a moment after its certificate.
        logger.error("%s; the certificate read before stays in use", error)
        return None
    logger.info("read the TLS certificate again")
    return renewed


def _load(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With a password, be it empty, an encrypted key is an error and not a question.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"cannot use the certificate {files.certificate} with {files.key}: {reason}"
        ) from error
    return context


def _read(files: TlsFiles) -> Any:
    _load(files)  # the library would find out only when a client connects
    try:
        chain, key = files.certificate.read_bytes(), files.key.read_bytes()
        client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {error.filename}: {error.strerror}") from error
    return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)
