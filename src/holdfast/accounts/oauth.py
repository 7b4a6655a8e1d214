"""OAuth2 for every face: which program acts for whom, and what it may do.

The endpoints take a plain request and give a plain answer; what a person decides (to allow a program, or the device
whose code is typed in) is asked for by the pages and done here. Authlib does the protocol (``flows``), the catalog
keeps what was granted.

What is promised: secrets, codes and tokens are kept as digests; an access token counts for an hour, a refresh token
for 30 days from its last use; a disabled or removed account, client or grant counts for nothing at once; a person
alone allows a program, never another program for him.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc6749.errors import AccessDeniedError, InvalidRequestError, OAuth2Error

from holdfast.accounts import guard
from holdfast.accounts.asking import Answer, Asked, Program, Request, program
from holdfast.accounts.clients import CODE, CREDENTIALS, DEVICE, REFRESH, Clients
from holdfast.accounts.directory import OAUTH, Directory, Identity, digest_of
from holdfast.accounts.flows import CodeGrant, Flows
from holdfast.accounts.scopes import ADMIN, ALL_SCOPES, scopes_of
from holdfast.catalog import grants, people
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.grants import Device, Grant, GrantToken
from holdfast.catalog.people import Account
from holdfast.errors import Forbidden, NoAccount, NotLoggedIn

AUTHORIZE, TOKEN, DEVICES, REVOKE, INTROSPECT, VERIFY = (
    f"/oauth2/{name}" for name in ("authorize", "token", "device", "revoke", "introspect", "verify")
)
_SECRET_WAYS = ["client_secret_basic", "client_secret_post"]
_SECOND = 1_000_000_000
_NO_CODE = "There is no such code, or it has expired."


@dataclass(frozen=True)
class Consent:
    """What a person is asked: whether that program may do this. ``registered_by``: a username, empty for our own."""

    client: str
    registered_by: str
    scopes: tuple[str, ...]
    redirect_uri: str = ""
    address: str = ""  # from where a device asked: an IPv4 address, or an IPv6 network


@dataclass(frozen=True)
class _Live:
    """A token that counts, and everything it counts for."""

    token: GrantToken
    grant: Grant
    account: Account
    scopes: frozenset[str]


class OAuth:
    """See the module. Safe to share between threads."""

    def __init__(self, database: Database, directory: Directory, now_ns: Callable[[], int]) -> None:
        self._database, self._directory, self._now_ns = database, directory, now_ns
        self.clients = Clients(database, directory, now_ns)

    def by_access_token(self, secret: str, address: str) -> Identity:
        """Who shows that token. NotLoggedIn when it is none, has expired or was revoked, or its account is disabled."""
        with self._database.reading() as c:
            live = _live(c, secret, self._now_ns())
        if live is None or live.token.kind != "access":
            raise NotLoggedIn("The access token is unknown, has expired, or was revoked.", "Refresh it, or ask anew.")
        account = live.account
        return Identity(account.id, account.username, account.role, live.scopes, address, OAUTH, live.token.expires_ns)

    # -- endpoints for programs ------------------------------------------------------------------------------------

    def token(self, asked: Asked) -> Answer:
        """Codes, credentials, device codes and refresh tokens against access tokens."""
        with self._flows(asked) as flows:
            if "grant_type" not in asked.form:
                return _refusal(flows, InvalidRequestError("The 'grant_type' is missing."))
            answer: Answer = flows.create_token_response(asked)
            return answer

    def device(self, asked: Asked) -> Answer:
        """RFC 8628: a code for a device, and one for its user to type in."""
        with self._flows(asked) as flows:
            answer: Answer = flows.create_endpoint_response("device_authorization", asked)
            return answer

    def revoke(self, asked: Asked) -> Answer:
        """RFC 7009."""
        with self._flows(asked) as flows:
            answer: Answer = flows.create_endpoint_response("revocation", asked)
            return answer

    def introspect(self, asked: Asked, by: Identity | None = None) -> Answer:
        """RFC 7662: for a client that shows its secret, of its own tokens; for administrators (``by``), of all."""
        if by is not None:
            by.demand(ADMIN)
        with self._flows(asked) as flows:
            try:
                client: Program | None = None
                if by is None:
                    client = flows.authenticate_client(Request(asked), _SECRET_WAYS, "introspection")
                if not (secret := asked.form.get("token")):
                    raise InvalidRequestError("The 'token' is missing.")
            except OAuth2Error as e:
                return _refusal(flows, e)
            live = _live(flows.c, secret, flows.now_ns)
            mine = live is not None and (client is None or live.grant.client == client.row.id)
            told = _description(live, asked.issuer) if live is not None and mine else {"active": False}
            return Answer(200, told, {"Cache-Control": "no-store"})

    @staticmethod
    def metadata(issuer: str) -> dict[str, Any]:
        """RFC 8414: where everything is, and what can be done there."""
        return {
            "issuer": issuer,
            "authorization_endpoint": issuer + AUTHORIZE,
            "token_endpoint": issuer + TOKEN,
            "device_authorization_endpoint": issuer + DEVICES,
            "revocation_endpoint": issuer + REVOKE,
            "introspection_endpoint": issuer + INTROSPECT,
            "scopes_supported": sorted(ALL_SCOPES),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": [CODE, CREDENTIALS, DEVICE, REFRESH],
            "token_endpoint_auth_methods_supported": [*_SECRET_WAYS, "none"],
            "revocation_endpoint_auth_methods_supported": [*_SECRET_WAYS, "none"],
            "introspection_endpoint_auth_methods_supported": _SECRET_WAYS,
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    # -- what a person decides -------------------------------------------------------------------------------------

    def consent(self, asked: Asked, by: Identity | None) -> Consent | Answer:
        """What to ask the person before a code is given out, or the answer to a request that makes no sense: with a
        ``location`` it is for the program, without one it must be shown to the person and led nowhere.
        """
        with self._database.reading() as c:
            flows = Flows(c, self._now_ns(), asked)
            try:
                grant = _consent_grant(flows, asked, by)
            except OAuth2Error as e:
                return _told_by(asked.issuer, _refusal(flows, e))
            client: Program = grant.request.client
            scopes = grant.granted() if by is not None else frozenset()
            return Consent(client.row.name, _registrar(c, client), tuple(sorted(scopes)), grant.redirect_uri)

    def decide(self, asked: Asked, by: Identity, approve: bool) -> Answer:
        """What the person decided, as an answer that leads back to the program."""
        with self._flows(asked) as flows:
            try:
                grant = _consent_grant(flows, asked, by)
            except OAuth2Error as e:
                return _told_by(asked.issuer, _refusal(flows, e))
            answer: Answer = flows.create_authorization_response(grant.request, by if approve else None, grant)
            if approve:
                flows.note("client allowed", grant.request.client.row.name, _listed(grant.granted()), by.username)
            return _told_by(asked.issuer, answer)

    def waiting(self, by: Identity, user_code: str) -> Consent:
        """What to ask the person who typed a device's code. NoAccount when nothing waits for it; TooManyAttempts."""
        device = self._device(by, user_code)
        with self._database.reading() as c:
            client = program(c, device.client)
            if client is None:
                raise NoAccount(_NO_CODE)
            scopes = tuple(sorted(frozenset(device.scopes.split()) & by.scopes))
            return Consent(client.row.name, _registrar(c, client), scopes, address=device.address)

    def decide_device(self, by: Identity, user_code: str, approve: bool) -> None:
        """What the person decided. NoAccount when nothing waits for that code (any more)."""
        device = self._device(by, user_code)
        scopes = frozenset(device.scopes.split()) & by.scopes
        if approve and not scopes:
            raise Forbidden("Your account may do nothing of what the device asks for.")
        state = "approved" if approve else "denied"
        with self._database.writing() as c:
            done = grants.decide_device(c, device.user_code, account=by.account, state=state, scopes=_listed(scopes))
            if not done:
                raise NoAccount(_NO_CODE)
            client = grants.client_by_id(c, device.client)
            people.add_audit(
                c, at_ns=self._now_ns(), actor=by.username, address=by.address, action=f"device {state}",
                subject=client.name if client else device.client, detail=_listed(scopes),
            )  # fmt: skip

    # -- inside ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _flows(self, asked: Asked) -> Iterator[Flows]:
        with self._database.writing() as c:
            flows = Flows(c, self._now_ns(), asked)
            yield flows
        if flows.has_ended:
            self._directory.generation += 1

    def _device(self, by: Identity, user_code: str) -> Device:
        """The device code that waits for that person's decision. Wrong ones are counted like wrong passwords."""
        by.demand_person("allow a device")
        now, subject = self._now_ns(), f"code:{by.username}"
        with self._database.writing() as c:
            guard.hold(c, subject, by.address, now)
            guard.demand_calm(c, subject, by.address, now)
            found = grants.device_by_user_code(c, digest_of(_as_printed(user_code)))
            if found is not None and found.state == "waiting" and found.expires_ns > now:
                guard.forget(c, subject, by.address)
                return found
            guard.count_failure(c, subject, by.address, now)
        raise NoAccount(_NO_CODE, "Look again at what the device shows, or have it show a new one.")


def _live(c: Connection, secret: str, now_ns: int) -> _Live | None:
    """Everything about a token, as long as it, its grant, its client and its account count."""
    token = grants.token_by_digest(c, digest_of(secret))
    grant = grants.grant_by_id(c, token.family) if token else None
    client = program(c, grant.client) if grant else None
    account = people.account_by_id(c, grant.account) if grant else None
    if token is None or grant is None or client is None or account is None:
        return None
    if token.used or token.expires_ns <= now_ns or account.disabled:
        return None
    given = frozenset(grant.scopes.split())
    if token.kind == "access":  # it may be for less than was granted, and is never for more
        given &= frozenset(token.scopes.split())
    return _Live(token, grant, account, given & client.scopes & scopes_of(account.role))


def _description(live: _Live, issuer: str) -> dict[str, Any]:
    return {
        "active": True,
        "client_id": live.grant.client,
        "username": live.account.username,
        "sub": live.account.username,
        "scope": _listed(live.scopes),
        "token_type": "Bearer" if live.token.kind == "access" else "refresh_token",
        "iat": live.token.created_ns // _SECOND,
        "exp": live.token.expires_ns // _SECOND,
        "iss": issuer,
    }


def _consent_grant(flows: Flows, asked: Asked, by: Identity | None) -> CodeGrant:
    """The grant that is asked for, checked. With nothing in it that the person could allow, it is refused."""
    if by is not None:
        by.demand_person("allow a client")
    grant: CodeGrant = flows.get_consent_grant(asked, by)
    if by is not None and not grant.granted():
        raise AccessDeniedError(
            "The account may do nothing of that.", redirect_uri=grant.redirect_uri, state=asked.form.get("state")
        )
    return grant


def _refusal(flows: Flows, error: OAuth2Error) -> Answer:
    answer: Answer = flows.handle_error_response(None, error)
    return answer


def _told_by(issuer: str, answer: Answer) -> Answer:
    """RFC 9207: an answer that leads somewhere says who gives it."""
    if not answer.location:
        return answer
    location = add_params_to_uri(answer.location, [("iss", issuer)])
    return dataclasses.replace(answer, headers={**answer.headers, "Location": location})


def _registrar(c: Connection, client: Program) -> str:
    account = people.account_by_id(c, client.row.account) if client.row.account is not None else None
    return account.username if account else ""


def _listed(scopes: frozenset[str]) -> str:
    return " ".join(sorted(scopes))


def _as_printed(user_code: str) -> str:
    """A code as devices show it, however it was typed."""
    letters = "".join(sign for sign in user_code.upper() if sign.isalpha())
    return f"{letters[:4]}-{letters[4:]}"
