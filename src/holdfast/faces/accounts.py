"""``/accounts``: users, one's own account, API tokens, OAuth2 clients, what programs were allowed, the audit log.

Who may what is decided in the room below. Users and the audit log are for administrators (scope ``admin``); the rest
is one's own, for every log-in, with three exceptions: a password is changed, an OAuth2 client registered or removed,
and what a program was allowed ended, only by the person (a password or a session); an OAuth2 access token neither makes
nor revokes API tokens; an API token makes only tokens that may no more and live no longer than itself. No token, also
one with ``admin``, deletes accounts or sets passwords, e-mail addresses or roles.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from holdfast.accounts.clients import CODE, MOST_REDIRECTS, Clients
from holdfast.accounts.directory import LONGEST_LIFE_S, MOST_AUDIT, Directory, Identity
from holdfast.accounts.passwords import LEAST, MOST
from holdfast.accounts.scopes import ALL_SCOPES
from holdfast.catalog.grants import Client, Program
from holdfast.catalog.people import Account, Token
from holdfast.errors import AccountExists, Contradiction, NoAccount, TooLarge
from holdfast.faces.contract import failing_behind_the_gate
from holdfast.faces.forms import ShortBody
from holdfast.faces.gate import COOKIE, Gate

_LARGEST = (1 << 63) - 1
_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"
_EMAIL = r"^([^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+)?$"
_GRANTS = ["authorization_code", "client_credentials", "device_code", "refresh_token"]

Line = Annotated[str, Field(max_length=255, pattern=_LINE)]
Email = Annotated[str, Field(max_length=255, pattern=_EMAIL)]
Password = Annotated[str, Field(min_length=LEAST, max_length=MOST)]
Scope = Annotated[str, Field(json_schema_extra={"enum": sorted(ALL_SCOPES)})]
Amount = Annotated[int, Field(ge=0, le=(1 << 53) - 1)]  # what every reader of JSON takes for the same number


class _Body(BaseModel):
    """What is sent: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewUser(_Body):
    username: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
    password: Password
    email: Email = ""
    name: Line = ""
    role: Literal["user", "admin"] = "user"


class QuotaChange(_Body):
    """Null: no limit. What is left out stays."""

    bytes: Amount | None = None
    objects: Amount | None = None


class UserChange(_Body):
    """What is left out stays."""

    password: Password = ""
    email: Email = ""
    name: Line = ""
    role: Literal["user", "admin"] = "user"
    disabled: bool = False
    quota: QuotaChange = QuotaChange()


class PasswordChange(_Body):
    old: Annotated[str, Field(max_length=MOST)]
    new: Password


class NewToken(_Body):
    """``expires_in``: seconds from now; null: never."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=_LINE)]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    expires_in: Annotated[int, Field(ge=1, le=LONGEST_LIFE_S)] | None = None


class NewClient(_Body):
    """``public``: a program that can keep no secret; it gets none and must use PKCE."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=_LINE)]
    redirect_uris: Annotated[list[str], Field(max_length=MOST_REDIRECTS)] = []
    grants: Annotated[list[Annotated[str, Field(json_schema_extra={"enum": _GRANTS})]], Field(min_length=1)] = [CODE]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    public: bool = False


class Usage(BaseModel):
    bytes: int
    objects: int


class Quota(BaseModel):
    """Null: no limit."""

    bytes: int | None
    objects: int | None


class User(BaseModel):
    username: str
    email: str
    name: str
    role: str
    disabled: bool
    created: datetime.datetime
    usage: Usage
    quota: Quota


class Me(User):
    """``scopes``: what this log-in may do; ``via``: login, token or oauth."""

    scopes: list[str]
    via: str


class Users(BaseModel):
    users: list[User]


class TokenAbout(BaseModel):
    """``used``: about when it was used last."""

    id: int
    name: str
    scopes: list[str]
    created: datetime.datetime
    expires: datetime.datetime | None
    used: datetime.datetime | None


class TokenMade(TokenAbout):
    """``token`` is told this once."""

    token: str


class Tokens(BaseModel):
    tokens: list[TokenAbout]


class ClientAbout(BaseModel):
    client_id: str
    name: str
    redirect_uris: list[str]
    grants: list[str]
    scopes: list[str]
    public: bool
    created: datetime.datetime


class ClientMade(ClientAbout):
    """``client_secret`` is told this once; null for a public client."""

    client_secret: str | None


class ClientsAbout(BaseModel):
    clients: list[ClientAbout]


class GrantAbout(BaseModel):
    """What one allowed a program. ``expires``: when its last token ends, unless it fetches another one before."""

    id: int
    client_id: str
    client: str
    scopes: list[str]
    created: datetime.datetime
    expires: datetime.datetime


class Grants(BaseModel):
    grants: list[GrantAbout]


class Entry(BaseModel):
    """``actor``: who did it, empty for nobody; ``subject``: what it was done to."""

    id: int
    at: datetime.datetime
    actor: str
    address: str
    action: str
    subject: str
    detail: str


class Audit(BaseModel):
    """The newest first. ``next``: give it as ``before`` to go on; null at the end."""

    entries: list[Entry]
    next: int | None


def add_accounts(app: FastAPI, gate: Gate, directory: Directory, clients: Clients) -> None:
    """Add the endpoints to the app."""
    router = APIRouter(route_class=ShortBody)
    _users(router, gate, directory)
    _me(router, gate, directory)
    _tokens(router, gate, directory)
    _clients(router, gate, clients)
    _grants(router, gate, clients)
    _audit(router, gate, directory)
    app.include_router(router)


def _users(app: APIRouter, gate: Gate, directory: Directory) -> None:
    tags: list[Any] = ["accounts"]

    @app.post(
        "/accounts/users", status_code=201, tags=tags, summary="Make an account",
        responses=failing_behind_the_gate(AccountExists, TooLarge),
    )  # fmt: skip
    async def make_user(body: NewUser, response: Response, by: Identity = Depends(gate.identity)) -> User:
        about = {"email": body.email, "name": body.name, "role": body.role}
        made = await run_sync(lambda: directory.create(by, body.username, body.password, **about))
        response.headers["Location"] = f"/accounts/users/{made.username}"
        return _user(made)

    @app.get("/accounts/users", tags=tags, summary="All accounts, by name", responses=failing_behind_the_gate())
    async def list_users(by: Identity = Depends(gate.identity)) -> Users:
        return Users(users=[_user(account) for account in await run_sync(directory.accounts, by)])

    @app.get("/accounts/users/{username}", tags=tags, summary="One account",
             responses=failing_behind_the_gate(NoAccount))  # fmt: skip
    async def one_user(username: str, by: Identity = Depends(gate.identity)) -> User:
        return _user(await run_sync(directory.account, by, username))

    @app.patch("/accounts/users/{username}", tags=tags, summary="Change, disable or enable an account",
               responses=failing_behind_the_gate(NoAccount, TooLarge))  # fmt: skip
    async def change_user(username: str, body: UserChange, by: Identity = Depends(gate.identity)) -> User:
        return _user(await run_sync(directory.change, by, username, _changes(body)))

    @app.delete("/accounts/users/{username}", status_code=204, tags=tags, summary="Remove an account",
                responses=failing_behind_the_gate(NoAccount, Contradiction))  # fmt: skip
    async def remove_user(username: str, by: Identity = Depends(gate.identity)) -> None:
        await run_sync(directory.delete, by, username)


def _me(app: APIRouter, gate: Gate, directory: Directory) -> None:
    tags: list[Any] = ["accounts"]

    @app.get("/accounts/me", tags=tags, summary="One's own account", responses=failing_behind_the_gate())
    async def me(by: Identity = Depends(gate.identity)) -> Me:
        account = await run_sync(directory.account, by, by.username)
        return Me(**_user(account).model_dump(), scopes=sorted(by.scopes), via=by.via)

    @app.put("/accounts/me/password", status_code=204, tags=tags, summary="Change one's password",
             responses=failing_behind_the_gate(TooLarge))  # fmt: skip
    async def change_password(request: Request, body: PasswordChange, by: Identity = Depends(gate.identity)) -> None:
        session = request.cookies.get(COOKIE, "")
        await run_sync(lambda: directory.change_own_password(by, body.old, body.new, session=session))


def _tokens(app: APIRouter, gate: Gate, directory: Directory) -> None:
    tags: list[Any] = ["API tokens"]

    @app.post("/accounts/tokens", status_code=201, tags=tags, summary="Make an API token",
              responses=failing_behind_the_gate(TooLarge))  # fmt: skip
    async def make_token(body: NewToken, response: Response, by: Identity = Depends(gate.identity)) -> TokenMade:
        secret, made = await run_sync(directory.create_token, by, body.name, body.scopes, body.expires_in)
        response.headers["Location"] = f"/accounts/tokens/{made.id}"
        response.headers["Cache-Control"] = "no-store"
        return TokenMade(**_token(made).model_dump(), token=secret)

    @app.get("/accounts/tokens", tags=tags, summary="One's API tokens", responses=failing_behind_the_gate())
    async def list_tokens(by: Identity = Depends(gate.identity)) -> Tokens:
        return Tokens(tokens=[_token(token) for token in await run_sync(directory.tokens, by)])

    @app.get("/accounts/tokens/{id}", tags=tags, summary="One API token", responses=failing_behind_the_gate(NoAccount))
    async def one_token(
        number: int = Path(alias="id", ge=1, le=_LARGEST), by: Identity = Depends(gate.identity)
    ) -> TokenAbout:
        return _token(await run_sync(directory.token, by, number))

    @app.delete("/accounts/tokens/{id}", status_code=204, tags=tags, summary="Revoke an API token",
                responses=failing_behind_the_gate(NoAccount))  # fmt: skip
    async def revoke_token(
        number: int = Path(alias="id", ge=1, le=_LARGEST), by: Identity = Depends(gate.identity)
    ) -> None:
        await run_sync(directory.revoke_token, by, number)


def _clients(app: APIRouter, gate: Gate, clients: Clients) -> None:
    tags: list[Any] = ["OAuth2"]

    @app.post("/accounts/clients", status_code=201, tags=tags, summary="Register an OAuth2 client",
              responses=failing_behind_the_gate(TooLarge))  # fmt: skip
    async def register_client(body: NewClient, response: Response, by: Identity = Depends(gate.identity)) -> ClientMade:
        secret, made = await run_sync(
            lambda: clients.register(
                by, body.name, redirect_uris=body.redirect_uris, allowed=body.grants, scopes=body.scopes,
                public=body.public,
            )
        )  # fmt: skip
        response.headers["Cache-Control"] = "no-store"
        return ClientMade(**_client(made).model_dump(), client_secret=secret)

    @app.get("/accounts/clients", tags=tags, summary="The OAuth2 clients one has registered",
             responses=failing_behind_the_gate())  # fmt: skip
    async def list_clients(by: Identity = Depends(gate.identity)) -> ClientsAbout:
        return ClientsAbout(clients=[_client(client) for client in await run_sync(clients.registered, by)])

    @app.delete("/accounts/clients/{client_id}", status_code=204, tags=tags, summary="Remove a client, end its tokens",
                responses=failing_behind_the_gate(NoAccount))  # fmt: skip
    async def remove_client(client_id: str, by: Identity = Depends(gate.identity)) -> None:
        await run_sync(clients.remove, by, client_id)


def _grants(app: APIRouter, gate: Gate, clients: Clients) -> None:
    tags: list[Any] = ["OAuth2"]

    @app.get("/accounts/grants", tags=tags, summary="The programs that may act for one",
             responses=failing_behind_the_gate())  # fmt: skip
    async def list_grants(by: Identity = Depends(gate.identity)) -> Grants:
        return Grants(grants=[_grant(program) for program in await run_sync(clients.allowed, by)])

    @app.delete("/accounts/grants/{id}", status_code=204, tags=tags, summary="End what a program was allowed",
                responses=failing_behind_the_gate(NoAccount))  # fmt: skip
    async def end_grant(
        number: int = Path(alias="id", ge=1, le=_LARGEST), by: Identity = Depends(gate.identity)
    ) -> None:
        await run_sync(clients.end, by, number)


def _audit(app: APIRouter, gate: Gate, directory: Directory) -> None:
    @app.get("/accounts/audit", tags=["accounts"], summary="Who did what", responses=failing_behind_the_gate())
    async def audit(
        limit: int = Query(100, ge=1, le=MOST_AUDIT),
        before: int | None = Query(None, ge=1, le=_LARGEST),
        by: Identity = Depends(gate.identity),
    ) -> Audit:
        found = await run_sync(directory.audit, by, limit, before)
        entries = [
            Entry(id=e.id, at=_when(e.at_ns), actor=e.actor, address=e.address, action=e.action, subject=e.subject,
                  detail=e.detail)
            for e in found
        ]  # fmt: skip
        return Audit(entries=entries, next=entries[-1].id if len(entries) == limit else None)


def _changes(body: UserChange) -> dict[str, Any]:
    """What was sent, by the names of the columns."""
    given = body.model_dump(exclude_unset=True)
    quota = given.pop("quota", {})
    return given | {f"quota_{unit}": amount for unit, amount in quota.items()}


def _user(account: Account) -> User:
    return User(
        username=account.username, email=account.email, name=account.name, role=account.role,
        disabled=account.disabled, created=_when(account.created_ns),
        usage=Usage(bytes=account.used_bytes, objects=account.used_objects),
        quota=Quota(bytes=account.quota_bytes, objects=account.quota_objects),
    )  # fmt: skip


def _token(token: Token) -> TokenAbout:
    return TokenAbout(
        id=token.id, name=token.name, scopes=token.scopes.split(), created=_when(token.created_ns),
        expires=None if token.expires_ns is None else _when(token.expires_ns),
        used=None if token.used_ns is None else _when(token.used_ns),
    )  # fmt: skip


def _client(client: Client) -> ClientAbout:
    return ClientAbout(
        client_id=client.id, name=client.name, redirect_uris=client.redirect_uris.split(),
        grants=client.grants.split(), scopes=client.scopes.split(), public=client.digest is None,
        created=_when(client.created_ns),
    )  # fmt: skip


def _grant(program: Program) -> GrantAbout:
    return GrantAbout(
        id=program.id, client_id=program.client, client=program.client_name, scopes=program.scopes.split(),
        created=_when(program.created_ns), expires=_when(program.expires_ns),
    )  # fmt: skip


def _when(at_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_ns // 1_000_000_000, datetime.UTC)
