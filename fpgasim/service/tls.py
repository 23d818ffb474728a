"""Certificates of a server: checked when read, read anew when their files change, and made where there are none."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError

Paths = tuple[Path, Path, Path | None]


@dataclass(frozen=True)
class Certificate:
    """A certificate chain and its private key in PEM, and the CA that callers must be of (None: any caller)."""

    chain: bytes
    key: bytes
    client_ca: bytes | None = None

    @classmethod
    def read(
        cls,
        chain: str | os.PathLike[str],
        key: str | os.PathLike[str],
        client_ca: str | os.PathLike[str] | None = None,
    ) -> Certificate:
        """The certificate in these files. InputError for one that is not there, is no PEM, or key and chain of which
        do not belong together."""
        return cls(_pem(chain), _pem(key), None if client_ca is None else _pem(client_ca)).checked(os.fspath(chain))

    def checked(self, name: str = "certificate") -> Certificate:
        """This, if key and chain belong together; else InputError."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization as forms

        try:
            chain = x509.load_pem_x509_certificates(self.chain)
            key: Any = forms.load_pem_private_key(self.key, None)
            if self.client_ca is not None:
                x509.load_pem_x509_certificates(self.client_ca)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{name!r}: certificate, key and CA must be PEM, the key without a password: {error}"
            ) from None
        public = (forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo)
        if chain[0].public_key().public_bytes(*public) != key.public_key().public_bytes(*public):
            raise InputError(f"{name!r}: the key does not belong to the first certificate of the chain")
        return self


class CertificateFiles:
    """A certificate that follows its files: new connections get the new one, and none is dropped.

    Files that do not fit (yet) leave the old one in force and are logged.
    """

    def __init__(
        self,
        chain: str | os.PathLike[str],
        key: str | os.PathLike[str],
        client_ca: str | os.PathLike[str] | None = None,
        every_s: float = 1.0,
    ) -> None:
        self._paths: Paths = Path(chain), Path(key), None if client_ca is None else Path(client_ca)
        self._every_s, self._next = every_s, 0.0
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self.current = Certificate.read(*self._paths)

    def credentials(self) -> Any:
        """gRPC server credentials that ask for the certificate at every new connection."""
        import grpc

        sent = self.current

        def configuration(certificate: Certificate) -> Any:
            pair = [(certificate.key, certificate.chain)]
            return grpc.ssl_server_certificate_configuration(pair, root_certificates=certificate.client_ca)

        def fetch() -> Any:
            nonlocal sent
            self.refresh()
            if self.current == sent:
                return None  # no change
            sent = self.current
            return configuration(sent)

        asked = self.current.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(configuration(sent), fetch, require_client_authentication=asked)

    def refresh(self) -> None:
        """Reads the files anew if one of them has changed, at most once in `every_s` seconds."""
        with self._lock:
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + self._every_s
            stamps = self._stamps()
            if stamps == self._seen:
                return
            try:
                self.current = Certificate.read(*self._paths)
                self._seen = stamps
            except InputError as error:
                logging.getLogger("fpgasim.service").error("the certificate stays as it was: %s", error)

    def _stamps(self) -> tuple[tuple[int, int] | None, ...]:
        def stamp(path: Path) -> tuple[int, int] | None:
            try:
                found = path.stat()
            except OSError:
                return None
            return found.st_mtime_ns, found.st_ino

        return tuple(stamp(path) for path in self._paths if path is not None)


def self_signed(hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 365) -> Certificate:
    """A new self-signed certificate for these names and addresses: for development, and for clients that are given it.

    A client trusts it if GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names its file, or if it is handed the chain.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    chain = builder.sign(key, hashes.SHA256()).public_bytes(forms.Encoding.PEM)
    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    return Certificate(chain, private)


def speaks_tls(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether whoever listens there answers in TLS, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])  # without, gRPC hangs up
    try:
        with socket.create_connection((host, port), timeout_s) as line, context.wrap_socket(line, server_hostname=host):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it refuses us, in TLS
    except OSError:
        return False


def _host(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(path: str | os.PathLike[str]) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(path)!r} cannot be read: {error.strerror or error}") from None
    if b"-----BEGIN " not in data:
        raise InputError(f"{os.fspath(path)!r} is not PEM: it has no line -----BEGIN …")
    return data
