"""Log-in through an outside OpenID Connect provider, by the code flow with PKCE.

What is promised: an ID token counts only when the provider signed it with one of its published keys, for us, for the
log-in that this very browser began, and not long ago; an account is found by the provider's own name for the person,
or, the first time, by an e-mail address that the provider says it has verified and that one account has here.
Otherwise nobody is let in, unless the provider's people may all have accounts.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, urlsplit

import msgspec
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc7636.challenge import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from holdfast.accounts.directory import Identity, line_of_text
from holdfast.accounts.passwords import Passwords
from holdfast.accounts.scopes import scopes_of
from holdfast.catalog import people
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.people import Account
from holdfast.errors import Forbidden, NotLoggedIn, ProviderFailed, UsageError

Fetch = Callable[[str, Mapping[str, str] | None, Mapping[str, str]], bytes]

ALGORITHMS = ["RS256", "PS256", "ES256", "RS384", "PS384", "ES384", "RS512", "PS512", "ES512", "EdDSA", "Ed25519"]
BEGUN_S = 600  # so long one may take at the provider
_LEEWAY_S = 60  # between two clocks
_FRESH_S = 3600
_SECOND = 1_000_000_000
_BAD = "The provider's answer to the log-in does not hold."


@dataclass(frozen=True)
class Provider:
    """Where, and as whom we are known there. ``anyone``: whoever it vouches for gets an account."""

    issuer: str
    client_id: str
    secret: str
    scopes: str
    anyone: bool


class _Begun(msgspec.Struct):
    """What the browser keeps of a log-in until it comes back."""

    state: str
    nonce: str
    verifier: str
    path: str


class OpenID:
    """See the module. Safe to share between threads. ``fetch`` gets (or, with fields, posts to) an address; it raises
    ProviderFailed.
    """

    def __init__(
        self, database: Database, passwords: Passwords, provider: Provider, fetch: Fetch, now_ns: Callable[[], int]
    ) -> None:
        self._database, self._passwords, self._provider = database, passwords, provider
        self._fetch, self._now_ns = fetch, now_ns
        self._known: tuple[int, dict[str, Any], KeySet] | None = None
        self.host = urlsplit(provider.issuer).netloc  # what people know it by

    def begin(self, callback: str, path: str) -> tuple[str, str]:
        """The provider's page to go to, and what the browser must keep meanwhile. ``path``: where to go afterwards."""
        metadata, _ = self._provider_data()
        begun = _Begun(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(32), path)
        asked = {
            "response_type": "code", "client_id": self._provider.client_id, "redirect_uri": callback,
            "scope": self._provider.scopes, "state": begun.state, "nonce": begun.nonce,
            "code_challenge": create_s256_code_challenge(begun.verifier), "code_challenge_method": "S256",
        }  # fmt: skip
        address = add_params_to_uri(metadata["authorization_endpoint"], asked.items())
        return str(address), base64.urlsafe_b64encode(msgspec.json.encode(begun)).decode()

    def finish(self, kept: str, fields: Mapping[str, str], callback: str, address: str) -> tuple[Identity, str]:
        """Who came back from the provider, and where he wanted to go."""
        begun = _read(kept)
        if not hmac.compare_digest(fields.get("state", "").encode(), begun.state.encode()):
            raise NotLoggedIn("The log-in was not begun in this browser, or took too long.", "Begin again.")
        if "code" not in fields or fields.get("iss", self._provider.issuer) != self._provider.issuer:
            raise NotLoggedIn("The provider did not log you in.", "Begin again.")
        claims = self._claims(begun, fields["code"], callback)
        return self._admitted(claims, address), begun.path

    # -- what the provider says ------------------------------------------------------------------------------------

    def _claims(self, begun: _Begun, code: str, callback: str) -> Mapping[str, Any]:
        """The ID token's, after everything about it was checked."""
        metadata, keys = self._provider_data()
        named = f"{quote_plus(self._provider.client_id)}:{quote_plus(self._provider.secret)}"
        given = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": callback, "code_verifier": begun.verifier
        }  # fmt: skip
        shown = {"Authorization": "Basic " + base64.b64encode(named.encode()).decode()}
        answer = _decoded(self._fetch(metadata["token_endpoint"], given, shown))
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise ProviderFailed(_BAD)
        try:
            signed = jwt.decode(token, keys, algorithms=ALGORITHMS)
            wanted = {"iss": {"essential": True, "value": self._provider.issuer},
                      "aud": {"essential": True, "value": self._provider.client_id}}  # fmt: skip
            params = {"nonce": begun.nonce, "client_id": self._provider.client_id,
                      "access_token": answer.get("access_token")}  # fmt: skip
            claims = CodeIDToken(signed.claims, signed.header, wanted, params)
            claims.validate(now=self._now_ns() // _SECOND, leeway=_LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError):
            self._known = None  # its keys may have changed: next time they are fetched again
            raise ProviderFailed(_BAD, "Begin again.") from None
        return dict(claims)

    def _provider_data(self) -> tuple[dict[str, Any], KeySet]:
        """Its metadata and keys, fetched once an hour."""
        known = self._known
        if known is None or self._now_ns() - known[0] >= _FRESH_S * _SECOND:
            issuer = self._provider.issuer
            metadata = _decoded(self._fetch(issuer.rstrip("/") + "/.well-known/openid-configuration", None, {}))
            if metadata.get("issuer") != issuer:
                raise ProviderFailed("The provider's metadata is of another issuer than the settings name.")
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                _demand_safe(metadata.get(name))
            try:
                keys = KeySet.import_key_set(_decoded(self._fetch(metadata["jwks_uri"], None, {})))  # type: ignore[arg-type]
            except (JoseError, ValueError, TypeError, KeyError):
                raise ProviderFailed("The provider's keys cannot be read.") from None
            known = self._known = self._now_ns(), metadata, keys
        return known[1], known[2]

    # -- whose account it is ---------------------------------------------------------------------------------------

    def _admitted(self, claims: Mapping[str, Any], address: str) -> Identity:
        subject, email = _line(claims["sub"]), _line(claims.get("email"))
        if not subject:
            raise ProviderFailed(_BAD)
        if claims.get("email_verified") is not True or not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
            email = ""
        password = self._passwords.hash(secrets.token_urlsafe(32))  # nobody knows it; made before the transaction
        with self._database.writing() as c:
            found = people.account_of_subject(c, self._provider.issuer, subject)
            if found is None and (found := self._by_email(c, email)) is None and self._provider.anyone:
                found = self._made(c, claims, email, password)
            if found is not None:
                people.know_subject(c, self._provider.issuer, subject, found.id)
                self._note(c, address, "logged in by provider", found.username)
        if found is None:
            raise Forbidden(
                "There is no account for you here.", "Ask an administrator for one with your e-mail address."
            )
        if found.disabled:
            raise NotLoggedIn("The account is disabled.", "Ask an administrator.")
        return Identity(found.id, found.username, found.role, scopes_of(found.role), address)

    def _by_email(self, c: Connection, email: str) -> Account | None:
        """The one account that has the address."""
        found = people.accounts_with_email(c, email) if email else []
        return found[0] if len(found) == 1 else None

    def _made(self, c: Connection, claims: Mapping[str, Any], email: str, password: str) -> Account | None:
        """A new account, under the name the person has at the provider, or one like it."""
        wanted = _line(claims.get("preferred_username")) or email.partition("@")[0] or "user"
        stem = re.sub(r"[^A-Za-z0-9._@-]", "-", wanted).lstrip("._@-")[:48] or "user"
        for username in (stem, *(f"{stem}-{secrets.token_hex(3)}" for _ in range(3))):
            number = people.add_account(
                c, username=username, email=email, name=_line(claims.get("name")), role="user", password=password,
                created_ns=self._now_ns(),
            )  # fmt: skip
            if number is not None:
                self._note(c, "", "account made", username)
                return people.account_by_id(c, number)
        return None

    def _note(self, c: Connection, address: str, action: str, username: str) -> None:
        people.add_audit(
            c, at_ns=self._now_ns(), actor=username if address else "", address=address, action=action,
            subject=username, detail=self._provider.issuer,
        )  # fmt: skip


def _read(kept: str) -> _Begun:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(kept.encode()), type=_Begun)
    except (ValueError, msgspec.MsgspecError):
        raise NotLoggedIn("The log-in was not begun in this browser, or took too long.", "Begin again.") from None


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (ValueError, msgspec.MsgspecError):
        raise ProviderFailed("The provider's answer is not the JSON it should be.") from None


def _line(value: object) -> str:
    """A line of text; empty when it is none."""
    try:
        return line_of_text(value, "claim")
    except UsageError:
        return ""


def _demand_safe(address: object) -> None:
    """Secrets travel encrypted, or not over a network at all."""
    try:
        parts = urlsplit(address) if isinstance(address, str) else None
    except ValueError:
        parts = None
    loopback = parts is not None and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts is None or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise ProviderFailed("The provider's metadata names an address that is not https.")
