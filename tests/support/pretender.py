"""A server that answers every method with what a test wants, by HTTP or HTTPS; and a certificate for it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Answer = tuple[int, dict[str, str], bytes]
WEB_PAGE: Answer = (200, {"Content-Type": "text/html"}, b"<html><h1>It works!</h1></html>")


class Pretender(ThreadingHTTPServer):
    """``answer``: called with the method and the path. ``seen``: the methods and paths that came, ``tokens`` and
    ``authorizations`` the headers of X-Auth-Token and Authorization.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[str, str], Answer], certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.seen, self.tokens = answer, list[str](), list[str]()
        self.authorizations: list[str] = []
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.server_address[1]}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that do not like our certificate are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: Pretender
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.seen.append(f"{self.command} {self.path}")
        self.server.tokens.append(self.headers.get("X-Auth-Token", ""))
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        status, headers, body = self.server.answer(self.command, self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any  # noqa: N815 - called like this by the library

    def log_message(self, *args: Any) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def pretending(answer: Callable[[str, str], Answer], certificate: Path | None = None) -> Iterator[Pretender]:
    server = Pretender(answer, certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def a_certificate(path: Path, address: str) -> Path:
    """A key and a certificate of its own for an IP address, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    made = built.add_extension(names, critical=False).sign(key, hashes.SHA256())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(form[0]))
    return path
