"""A small OpenID Connect provider for tests: a real HTTP server on loopback with a signing key of its own.

Whoever comes to its log-in page is logged in at once as ``person``. ``change`` alters the ID token's claims, ``key``
signs it; both can be set to what an attacker would like.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support import pkce

CLIENT, SECRET = "holdfast at the provider", "the provider's secret:%"


@dataclass
class Provider:
    url: str
    key: RSAKey
    published: RSAKey
    person: dict[str, Any] = field(default_factory=dict)
    change: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    issuer: str = ""
    asked: dict[str, dict[str, str]] = field(default_factory=dict)  # by code: the log-in's request

    def begin(self, fields: dict[str, str]) -> str:
        """The log-in page: where it leads."""
        code = pkce.pair()[0]
        self.asked[code] = fields
        return f"{fields['redirect_uri']}?" + urlencode({"code": code, "state": fields["state"]})

    def token(self, fields: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """The token endpoint's answer; None: refused."""
        asked = self.asked.pop(fields.get("code", ""), None)
        named = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        wanted = "holdfast+at+the+provider:the+provider%27s+secret%3A%25"
        proved = asked is not None and pkce.challenge_of(fields.get("code_verifier", "")) == asked["code_challenge"]
        if asked is None or not proved or named != wanted or fields["redirect_uri"] != asked["redirect_uri"]:
            return None
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"], **self.person,
            **self.change,
        }  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        return {
            "access_token": "not ours to use",
            "token_type": "Bearer",
            "id_token": self._signed({"alg": self.algorithm, "kid": self.published.kid}, kept),
        }

    def _signed(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        """Honestly, or with the public key as if it were a secret, or not at all."""
        if self.algorithm == "RS256":
            return jwt.encode(header, claims, self.key, algorithms=["RS256"])
        content = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
        secret = self.published.as_pem(private=False)
        signature = b"" if self.algorithm == "none" else hmac.digest(secret, content.encode(), "sha256")
        return f"{content}.{_encoded(signature)}"

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer or self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
        }


@contextlib.contextmanager
def running() -> Iterator[Provider]:
    key = RSAKey.generate_key(2048, auto_kid=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    provider = Provider(f"http://127.0.0.1:{server.server_address[1]}", key, key)
    server.RequestHandlerClass = _handler(provider)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/.well-known/openid-configuration":
                self._send(200, provider.metadata())
            elif parts.path == "/jwks":
                self._send(200, {"keys": [provider.published.as_dict(private=False)]})
            elif parts.path == "/authorize":
                self.send_response(302)
                self.send_header("Location", provider.begin(_fields(parts.query)))
                self.end_headers()
            else:
                self._send(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            answer = provider.token(_fields(body), self.headers.get("Authorization", ""))
            self._send(200 if answer else 400, answer or {"error": "invalid_grant"})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            """Nothing is printed."""

    return Handler


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _fields(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
