"""What OAuth2's endpoints are asked and answer, and which client asks: between our catalog and Authlib.

No web framework: a request is a plain structure, an answer is a status, a body and headers.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from authlib.oauth2.rfc6749 import OAuth2Request
from authlib.oauth2.rfc6749.errors import InvalidClientError
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload

from holdfast.accounts.clients import CODE, DEVICE, REFRESH, client_by_id, has_secret, may_answer_at, scopes_of_client
from holdfast.catalog import people
from holdfast.catalog.database import Connection
from holdfast.catalog.grants import Client

_ANYWHERE = "https://holdfast/"  # for Authlib; whether the connection is safe is decided by who runs the server
_NOT_FOR_ERRORS = re.compile(r"[^ !#-\[\]-~]")  # RFC 6749, 5.2


@dataclass(frozen=True)
class Asked:
    """One request to an endpoint. ``form``: the body's fields, or the query's; ``issuer``: the server's own URL."""

    method: str
    uri: str
    form: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)
    issuer: str = ""
    address: str = ""

    def basic(self) -> tuple[str, str] | None:
        """The name and secret of HTTP Basic, each of them percent-encoded (RFC 6749, 2.3.1); None: there are none."""
        given = next((value for name, value in self.headers.items() if name.lower() == "authorization"), "")
        scheme, _, rest = given.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, secret = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return "", ""
        return unquote_plus(name), unquote_plus(secret)


@dataclass(frozen=True)
class Answer:
    """What is answered: ``body`` is for JSON."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def location(self) -> str:
        """Where it leads; empty: nowhere."""
        return self.headers.get("Location", "")


def fit_for_errors(text: str) -> str:
    """The text without the signs that may not stand in an error's description."""
    return _NOT_FOR_ERRORS.sub("?", text)


def program(c: Connection, number: str) -> Program | None:
    """A client that may be used: whoever registered it has an account that is not disabled."""
    row = client_by_id(c, number)
    if row is not None and row.account is not None:
        owner = people.account_by_id(c, row.account)
        row = None if owner is None or owner.disabled else row
    return None if row is None else Program(row)


class Program:
    """A client, as Authlib asks for it."""

    def __init__(self, row: Client) -> None:
        self.row, self.scopes = row, scopes_of_client(row)

    def get_client_id(self) -> str:
        return self.row.id

    def get_default_redirect_uri(self) -> None:
        """There is none: the request must name it."""

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """The scopes that were asked for; None when there are some it does not have, or only spaces were sent. All of
        the client's when none were asked for: a field that is left out, or empty (RFC 6749, 3.1).
        """
        wanted = frozenset(scope.split()) if scope else self.scopes
        return " ".join(sorted(wanted)) if wanted and wanted <= self.scopes else None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return may_answer_at(self.row, redirect_uri)

    def check_client_secret(self, client_secret: str) -> bool:
        return has_secret(self.row, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return (method == "none") == self.is_public

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and self.check_grant_type(CODE)

    def check_grant_type(self, grant_type: str) -> bool:
        mine = self.row.grants.split()
        return grant_type in mine or (grant_type == REFRESH and (CODE in mine or DEVICE in mine))

    @property
    def is_public(self) -> bool:
        return self.row.digest is None


class Request(OAuth2Request):
    """A request, as Authlib asks for it."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked.method, _ANYWHERE, headers=dict(asked.headers))
        self.asked = asked
        fields = dict(asked.form)
        if "response_type" in fields:  # Authlib repeats it in an error, where not every sign may stand
            fields["response_type"] = fit_for_errors(fields["response_type"])
        self.payload = BasicOAuth2Payload(fields)
        self.family: int | None = None

    @property
    def args(self) -> Mapping[str, str]:
        return self.form

    @property
    def form(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.payload.data
        return found


def by_basic(query_client: Any, request: Request) -> Program | None:
    """The client that shows its secret by HTTP Basic."""
    shown = request.asked.basic()
    return None if shown is None else _proved(query_client, *shown)


def by_post(query_client: Any, request: Request) -> Program | None:
    """The client that shows its secret in fields of the body."""
    number, secret = request.form.get("client_id"), request.form.get("client_secret")
    return _proved(query_client, number, secret) if number and secret else None


def by_name(query_client: Any, request: Request) -> Program | None:
    """The client that only says which one it is; whether that will do for it is asked afterwards."""
    number = request.form.get("client_id")
    if not number or request.form.get("client_secret"):
        return None
    found: Program | None = query_client(number)
    if found is None:
        raise InvalidClientError(status_code=401, description="There is no such client.")
    return found


def _proved(query_client: Any, number: str, secret: str) -> Program:
    found: Program | None = query_client(number)
    if found is None or not found.check_client_secret(secret):
        raise InvalidClientError(status_code=401, description="The client or its secret is wrong.")
    return found
