"""OAuth2's flows over one transaction: Authlib's authorization server, with our catalog under it.

A ``Flows`` lives for one request and holds that request's transaction, so that whatever it gives out or takes back
happens as a whole, and so that of two requests with the same code one comes second. Refusals are answers, not errors:
what they changed (a replayed code ends the tokens that came from it) stays changed.

What is promised: PKCE by S256 or not at all, and never without it for a client that has no secret; a code is shown
once, whatever comes of it; a refresh token is used once, and using it again ends its whole family; nobody gets a
scope that was not granted, that the client does not have, or that the account may not.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationServer
from authlib.oauth2.rfc6749.errors import (
    AccessDeniedError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    UnauthorizedClientError,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant, RefreshTokenGrant
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7636.challenge import create_s256_code_challenge
from authlib.oauth2.rfc8628 import (
    AuthorizationPendingError,
    DeviceAuthorizationEndpoint,
    DeviceCodeGrant,
    ExpiredTokenError,
    SlowDownError,
)

from holdfast.accounts.asking import (
    Answer,
    Asked,
    Program,
    Request,
    by_basic,
    by_name,
    by_post,
    fit_for_errors,
    program,
)
from holdfast.accounts.clients import DEVICE
from holdfast.accounts.directory import digest_of
from holdfast.accounts.guard import source_of
from holdfast.accounts.scopes import ALL_SCOPES, scopes_of
from holdfast.catalog import grants, people
from holdfast.catalog.database import Connection
from holdfast.catalog.grants import Code, Device, GrantToken
from holdfast.catalog.people import Account

ACCESS_PREFIX, REFRESH_PREFIX = "hfa_", "hfr_"
ACCESS_S = 3600
REFRESH_S = 30 * 86400  # from its last use
CODE_S = 300
DEVICE_S = 900
POLL_S = 5  # between two questions of a device; so much more after one that came too soon
MOST_WAITING = 50  # device codes from one address
MOST_GRANTS = 1000  # of one account to one client; those that would end first make room
_FORGET_DEVICE_S = 3600  # so long an expired device code is told to be one
_SECOND = 1_000_000_000
_AUTH = ("client_secret_basic", "client_secret_post", "none")


class Flows(AuthorizationServer):
    """See the module. ``c``: the transaction; ``now_ns``: the time of the request."""

    def __init__(self, c: Connection, now_ns: int, asked: Asked) -> None:
        super().__init__(scopes_supported=sorted(ALL_SCOPES))
        self.c, self.now_ns, self.asked = c, now_ns, asked
        self.has_ended = False  # whether a token that was good is none any more
        self.register_client_auth_method("client_secret_basic", by_basic)
        self.register_client_auth_method("client_secret_post", by_post)
        self.register_client_auth_method("none", by_name)
        self.register_grant(CodeGrant, [_Challenge(required=True)])
        for grant in (_CredentialsGrant, _DeviceGrant, _RefreshGrant):
            self.register_grant(grant)
        for endpoint in (_DeviceEndpoint, _Revocation):
            self.register_endpoint(endpoint)

    def note(self, action: str, subject: str, detail: str = "", actor: str = "") -> None:
        """Into the audit log."""
        people.add_audit(
            self.c, at_ns=self.now_ns, actor=actor, address=self.asked.address, action=action, subject=subject,
            detail=detail,
        )  # fmt: skip

    def account(self, number: int | None) -> Account | None:
        """The account, as long as it may do anything."""
        found = None if number is None else people.account_by_id(self.c, number)
        return None if found is None or found.disabled else found

    def end(self, family: int, why: str) -> None:
        """End a grant with all its tokens."""
        self.has_ended = True
        found = grants.grant_by_id(self.c, family)
        grants.end_grant(self.c, family)
        if found is not None and (whose := people.account_by_id(self.c, found.account)):
            self.note("grant ended", whose.username, f"{found.client}: {why}")

    # -- what Authlib asks of its server ---------------------------------------------------------------------------

    def query_client(self, client_id: str) -> Program | None:
        return program(self.c, client_id)

    def create_oauth2_request(self, request: Asked) -> Request:
        return Request(request)

    def handle_response(self, status: int, body: Any, headers: Any) -> Answer:
        told = dict(body) if body else {}
        if "error_description" in told:  # some repeat what was asked, which may hold what they must not
            told["error_description"] = fit_for_errors(str(told["error_description"]))
        return Answer(status, told, dict(headers))

    def send_signal(self, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def generate_token(
        self,
        grant_type: str,
        client: Program,
        user: Account | None = None,
        scope: str | None = None,
        expires_in: int | None = None,
        include_refresh_token: bool = True,
    ) -> dict[str, Any]:
        account = user or self.account(client.row.account)
        wanted = client.get_allowed_scope(scope)
        if account is None or wanted is None or (user is not None and not scope):
            raise InvalidScopeError()  # what a person allowed is named; only a client's own token may be for everything
        granted = frozenset(wanted.split()) & scopes_of(account.role)
        if not granted:
            raise InvalidScopeError("The account may do nothing of that.")
        made = {
            "access_token": ACCESS_PREFIX + secrets.token_urlsafe(32), "token_type": "Bearer", "expires_in": ACCESS_S,
            "scope": " ".join(sorted(granted)),
        }  # fmt: skip
        if include_refresh_token:
            made["refresh_token"] = REFRESH_PREFIX + secrets.token_urlsafe(32)
        return made

    def save_token(self, token: dict[str, Any], request: Request) -> None:
        lasts_ns = self.now_ns + (REFRESH_S if "refresh_token" in token else ACCESS_S) * _SECOND
        request.family = self._family(token, request, lasts_ns)
        self._add(request.family, "access", token["access_token"], token["scope"], ACCESS_S)
        if "refresh_token" in token:
            self._add(request.family, "refresh", token["refresh_token"], "", REFRESH_S)
        if request.credential is not None:
            grants.change_device(self.c, request.credential.row.digest, state="used")

    def _family(self, token: dict[str, Any], request: Request, lasts_ns: int) -> int:
        """The grant that new tokens belong to: the one that was refreshed, or a new one."""
        if request.refresh_token is not None:
            family = int(request.refresh_token.row.family)
            grants.extend_grant(self.c, family, lasts_ns)
            return family
        source = request.authorization_code or request.credential
        client, account = request.client.row.id, request.user.id if request.user else request.client.row.account
        scopes = source.row.scopes if source else token["scope"]
        if grants.end_surplus(self.c, client=client, account=account, most=MOST_GRANTS - 1):
            self.has_ended = True
        return grants.add_grant(
            self.c, client=client, account=account, scopes=scopes, created_ns=self.now_ns, expires_ns=lasts_ns
        )

    def _add(self, family: int, kind: str, secret: str, scopes: str, lasts_s: int) -> None:
        grants.add_token(
            self.c, digest=digest_of(secret), family=family, kind=kind, scopes=scopes, created_ns=self.now_ns,
            expires_ns=self.now_ns + lasts_s * _SECOND,
        )  # fmt: skip


class _Row:
    """A row that was looked up, as Authlib asks for it."""

    def __init__(self, row: Any, scopes: str) -> None:
        self.row, self._scopes = row, scopes

    def get_scope(self) -> str:
        return self._scopes

    def get_client_id(self) -> str:
        return str(self.row.client)

    def get_redirect_uri(self) -> str:
        return str(self.row.redirect_uri)

    def check_client(self, client: Program) -> bool:
        """It was looked up for that client only."""
        return True

    @property
    def code_challenge(self) -> str | None:
        challenge: str | None = self.row.challenge
        return challenge

    @property
    def code_challenge_method(self) -> str:
        return "S256"


# -- the flows ---------------------------------------------------------------------------------------------------------


class _Challenge(CodeChallenge):
    """PKCE: S256 only, and always for a client without a secret."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)
    CODE_CHALLENGE_METHODS: Mapping[str, Any] = {
        "S256": lambda verifier, challenge: hmac.compare_digest(create_s256_code_challenge(verifier), challenge)
    }

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        fields = grant.request.form
        if "code_challenge" not in fields and grant.request.client.is_public:
            raise InvalidRequestError("A public client must send a 'code_challenge'.")
        if "code_challenge" in fields and fields.get("code_challenge_method") != "S256":
            raise InvalidRequestError("The 'code_challenge_method' must be S256.")
        super().validate_code_challenge(grant, redirect_uri)


class CodeGrant(AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _AUTH

    @staticmethod
    def validate_authorization_redirect_uri(request: Request, client: Program) -> str:
        uri = request.form.get("redirect_uri", "")
        if not client.check_redirect_uri(uri):
            raise InvalidRequestError("The 'redirect_uri' is none that the client has registered.")
        return uri

    def granted(self) -> frozenset[str]:
        """What the person who is asked can allow of what was asked for."""
        return frozenset(self.request.scope.split()) & frozenset(self.request.user.scopes)

    def generate_authorization_code(self) -> str:
        return secrets.token_urlsafe(32)

    def save_authorization_code(self, code: str, request: Request) -> None:
        made = Code(
            digest=digest_of(code), client=request.client.row.id, account=request.user.account,
            redirect_uri=request.form["redirect_uri"], challenge=request.form.get("code_challenge"),
            scopes=" ".join(sorted(self.granted())), expires_ns=self.server.now_ns + CODE_S * _SECOND, used=False,
            family=None,
        )  # fmt: skip
        grants.add_code(self.server.c, made, self.server.now_ns)

    def query_authorization_code(self, code: str, client: Program) -> _Row | None:
        """From here on it is used. One that was used before has been stolen, or sent twice: what came of it ends."""
        found = grants.hold_code(self.server.c, digest_of(code))
        if found is None or found.client != client.row.id:
            return None
        if found.used:
            if found.family is not None:
                self.server.end(found.family, "its code was used again")
            return None
        grants.use_code(self.server.c, found.digest)
        return _Row(found, found.scopes) if found.expires_ns > self.server.now_ns else None

    def authenticate_user(self, authorization_code: _Row) -> Account | None:
        found: Account | None = self.server.account(authorization_code.row.account)
        return found

    def delete_authorization_code(self, authorization_code: _Row) -> None:
        """It is kept instead, with what came of it."""
        grants.use_code(self.server.c, authorization_code.row.digest, self.request.family)


class _CredentialsGrant(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _AUTH[:2]


class _RefreshGrant(RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _AUTH
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> _Row | None:
        """None unless it is this client's, and not used before: then somebody else has it too, and all of it ends."""
        server = self.server
        token = grants.hold_token(server.c, digest_of(refresh_token))
        grant = grants.grant_by_id(server.c, token.family) if token else None
        if token is None or grant is None or token.kind != "refresh" or grant.client != self.request.client.row.id:
            return None
        if token.used:
            server.end(token.family, "a refresh token was used again")
            return None
        if token.expires_ns <= server.now_ns or server.account(grant.account) is None:
            return None
        return _Row(token, grant.scopes)

    def authenticate_user(self, refresh_token: _Row) -> Account | None:
        grant = grants.grant_by_id(self.server.c, refresh_token.row.family)
        found: Account | None = self.server.account(grant.account) if grant else None
        return found

    def revoke_old_credential(self, refresh_token: _Row) -> None:
        grants.use_token(self.server.c, refresh_token.row.digest)


class _DeviceGrant(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _AUTH

    def validate_token_request(self) -> None:
        """Who asks comes before what is asked for, as in the other flows."""
        self.authenticate_token_endpoint_client()
        super().validate_token_request()

    def query_device_credential(self, device_code: str) -> _Row:
        found = grants.hold_device(self.server.c, digest_of(device_code))
        if found is None or found.state == "used":
            raise InvalidGrantError("The 'device_code' is unknown, or was used.")
        return _Row(found, found.scopes)

    def validate_device_credential(self, credential: _Row) -> Account:
        device: Device = credential.row
        if device.expires_ns <= self.server.now_ns:
            raise ExpiredTokenError()
        if device.state == "waiting":
            slow = self.should_slow_down(credential)
            raise SlowDownError() if slow else AuthorizationPendingError()
        account: Account | None = self.server.account(device.account)
        if device.state != "approved" or account is None:
            raise AccessDeniedError()
        return account

    def should_slow_down(self, credential: _Row) -> bool:
        """Whether it asks too often; from then on it must wait longer between two questions."""
        device, now = credential.row, self.server.now_ns
        slow = device.polled_ns is not None and now - device.polled_ns < device.interval_s * _SECOND
        longer = device.interval_s + (POLL_S if slow else 0)
        grants.change_device(self.server.c, device.digest, polled_ns=now, interval_s=longer)
        return slow


class _DeviceEndpoint(DeviceAuthorizationEndpoint):
    CLIENT_AUTH_METHODS = _AUTH
    EXPIRES_IN, INTERVAL = DEVICE_S, POLL_S

    def authenticate_client(self, request: Request) -> Program:
        client: Program = super().authenticate_client(request)
        if not client.check_grant_type(DEVICE):
            raise UnauthorizedClientError("The client may not use the device grant.")
        if client.get_allowed_scope(request.payload.scope) is None:
            raise InvalidScopeError()
        server = self.server
        if grants.count_waiting(server.c, source_of(server.asked.address), server.now_ns) >= MOST_WAITING:
            raise SlowDownError("Too many codes from this address wait for an answer.")
        return client

    def generate_device_code(self) -> str:
        return secrets.token_urlsafe(32)

    def generate_user_code(self) -> str:
        """One that nobody else was given."""
        while True:
            code = str(super().generate_user_code())
            if grants.device_by_user_code(self.server.c, digest_of(code)) is None:
                return code

    def get_verification_uri(self) -> str:
        return f"{self.server.asked.issuer}/oauth2/verify"

    def save_device_credential(self, client_id: str, scope: str | None, data: dict[str, Any]) -> None:
        server = self.server
        made = Device(
            digest=digest_of(data["device_code"]), user_code=digest_of(data["user_code"]), client=client_id,
            account=None, scopes=program(server.c, client_id).get_allowed_scope(scope) or "",  # type: ignore[union-attr]
            address=source_of(server.asked.address), state="waiting", interval_s=POLL_S, polled_ns=None,
            expires_ns=server.now_ns + DEVICE_S * _SECOND,
        )  # fmt: skip
        grants.add_device(server.c, made, server.now_ns - _FORGET_DEVICE_S * _SECOND)


class _Revocation(RevocationEndpoint):
    """RFC 7009. A refresh token takes its whole family with it."""

    CLIENT_AUTH_METHODS = _AUTH

    def check_params(self, request: Request, client: Program) -> None:
        """The hint is not needed, so a wrong one does no harm."""
        if not request.form.get("token"):
            raise InvalidRequestError("The 'token' is missing.")

    def query_token(self, token_string: str, token_type_hint: str | None) -> _Owned | None:
        token = grants.hold_token(self.server.c, digest_of(token_string))
        grant = grants.grant_by_id(self.server.c, token.family) if token else None
        return None if token is None or grant is None else _Owned(token, grant.client)

    def revoke_token(self, token: _Owned, request: Request) -> None:
        if token.row.kind == "refresh":
            self.server.end(token.row.family, "revoked by the client")
        else:
            self.server.has_ended = True
            grants.delete_token(self.server.c, token.row.digest)


@dataclass(frozen=True)
class _Owned:
    """A token, and whose it is."""

    row: GrantToken
    client: str

    def check_client(self, client: Program) -> bool:
        return self.client == client.row.id
