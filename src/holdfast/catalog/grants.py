"""OAuth2's clients, grants, tokens, codes and device codes, as rows.

Each function takes the connection of a transaction that its caller opened (``Database.reading`` or ``writing``). They
ask and change; what is allowed is decided above. ``hold_…`` keeps a row from everybody else until the transaction
ends, so that of two who show the same code one comes second.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from holdfast.catalog.database import Connection
from holdfast.catalog.rows import columns, every, one
from holdfast.catalog.tables import clients, codes, devices, grant_tokens, grants


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``clients``. ``account``: who registered it, None for our own; ``digest``: None for a public one."""

    id: str
    account: int | None
    name: str
    digest: bytes | None
    redirect_uris: str
    grants: str
    scopes: str
    created_ns: int


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``grants``: what somebody allowed a client, and the family of all tokens that come from it."""

    id: int
    client: str
    account: int
    scopes: str
    created_ns: int
    expires_ns: int


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A grant, and what its client is called."""

    id: int
    client: str
    client_name: str
    scopes: str
    created_ns: int
    expires_ns: int


class GrantToken(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``grant_tokens``. ``kind``: access or refresh; ``used``: a refresh token that was exchanged."""

    digest: bytes
    family: int
    kind: str
    scopes: str
    created_ns: int
    expires_ns: int
    used: bool


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``codes``. ``family``: the grant it was exchanged for, None before."""

    digest: bytes
    client: str
    account: int
    redirect_uri: str
    challenge: str | None
    scopes: str
    expires_ns: int
    used: bool
    family: int | None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``devices``. ``state``: waiting, approved, denied or used; ``account``: who decided."""

    digest: bytes
    user_code: bytes
    client: str
    account: int | None
    scopes: str
    address: str
    state: str
    interval_s: int
    polled_ns: int | None
    expires_ns: int


# -- clients -----------------------------------------------------------------------------------------------------------


def add_client(connection: Connection, client: Client) -> None:
    connection.execute(sa.insert(clients).values(msgspec.structs.asdict(client)))


def client_by_id(connection: Connection, number: str) -> Client | None:
    return one(connection, Client, sa.select(*columns(Client, clients)).where(clients.c.id == number))


def list_clients(connection: Connection, account: int) -> list[Client]:
    """Those that an account registered, the oldest first."""
    mine = sa.select(*columns(Client, clients)).where(clients.c.account == account)
    return every(connection, Client, mine.order_by(clients.c.created_ns, clients.c.id))


def delete_client(connection: Connection, account: int, number: str) -> bool:
    """With everything that was granted to it. Whether that account had registered it."""
    mine = sa.delete(clients).where(clients.c.id == number, clients.c.account == account)
    return connection.execute(mine).rowcount == 1


# -- grants and their tokens -------------------------------------------------------------------------------------------


def add_grant(
    connection: Connection, *, client: str, account: int, scopes: str, created_ns: int, expires_ns: int
) -> int:
    """A new family; those whose last token has expired by then are removed."""
    connection.execute(sa.delete(grants).where(grants.c.expires_ns <= created_ns))
    row = {
        "client": client, "account": account, "scopes": scopes, "created_ns": created_ns, "expires_ns": expires_ns
    }  # fmt: skip
    return int(connection.execute(sa.insert(grants).values(row).returning(grants.c.id)).scalar_one())


def end_surplus(connection: Connection, *, client: str, account: int, most: int) -> int:
    """Of what an account allows a client, only the ``most`` that last longest stay: how many ended."""
    theirs = sa.select(grants.c.id).where(grants.c.client == client, grants.c.account == account)
    surplus = theirs.order_by(grants.c.expires_ns.desc(), grants.c.id.desc()).offset(most)
    # one that somebody else is ending is left to him, so that no two wait for each other
    gone = sa.select(grants.c.id).where(grants.c.id.in_(surplus)).with_for_update(skip_locked=True)
    return connection.execute(sa.delete(grants).where(grants.c.id.in_(gone))).rowcount


def grant_by_id(connection: Connection, number: int) -> Grant | None:
    return one(connection, Grant, sa.select(*columns(Grant, grants)).where(grants.c.id == number))


def list_grants(connection: Connection, account: int, now_ns: int) -> list[Program]:
    """What an account allows whom, the newest first."""
    there = (grants.c.account == account, grants.c.expires_ns > now_ns)
    shown = [*columns(Grant, grants), clients.c.name.label("client_name")]
    wanted = [column for column in shown if column.name in Program.__struct_fields__]
    query = sa.select(*wanted).join(clients, clients.c.id == grants.c.client).where(*there)
    return every(connection, Program, query.order_by(grants.c.id.desc()))


def extend_grant(connection: Connection, number: int, expires_ns: int) -> None:
    connection.execute(sa.update(grants).where(grants.c.id == number).values(expires_ns=expires_ns))


def end_grant(connection: Connection, number: int) -> None:
    """With all its tokens."""
    connection.execute(sa.delete(grants).where(grants.c.id == number))


def end_grants(connection: Connection, account: int) -> None:
    """Everything that an account allowed anybody, codes that nobody has exchanged yet included."""
    connection.execute(sa.delete(grants).where(grants.c.account == account))
    connection.execute(sa.delete(codes).where(codes.c.account == account))
    connection.execute(sa.delete(devices).where(devices.c.account == account))


def add_token(
    connection: Connection, *, digest: bytes, family: int, kind: str, scopes: str, created_ns: int, expires_ns: int
) -> None:
    """One more of a family; its tokens that have expired by then are removed."""
    gone = sa.delete(grant_tokens).where(grant_tokens.c.family == family, grant_tokens.c.expires_ns <= created_ns)
    connection.execute(gone)
    row = {
        "digest": digest, "family": family, "kind": kind, "scopes": scopes, "created_ns": created_ns,
        "expires_ns": expires_ns,
    }  # fmt: skip
    connection.execute(sa.insert(grant_tokens).values(row))


def token_by_digest(connection: Connection, digest: bytes) -> GrantToken | None:
    return one(connection, GrantToken, _token(digest))


def hold_token(connection: Connection, digest: bytes) -> GrantToken | None:
    return one(connection, GrantToken, _token(digest).with_for_update())


def use_token(connection: Connection, digest: bytes) -> None:
    connection.execute(sa.update(grant_tokens).where(grant_tokens.c.digest == digest).values(used=True))


def delete_token(connection: Connection, digest: bytes) -> None:
    connection.execute(sa.delete(grant_tokens).where(grant_tokens.c.digest == digest))


def _token(digest: bytes) -> sa.Select[Any]:
    return sa.select(*columns(GrantToken, grant_tokens)).where(grant_tokens.c.digest == digest)


# -- codes -------------------------------------------------------------------------------------------------------------


def add_code(connection: Connection, code: Code, now_ns: int) -> None:
    """A used one is known as long as what came from it, so that it is noticed when it is shown again; others are
    removed when they have expired.
    """
    connection.execute(sa.delete(codes).where(codes.c.expires_ns <= now_ns, codes.c.family.is_(None)))
    connection.execute(sa.insert(codes).values(msgspec.structs.asdict(code)))


def hold_code(connection: Connection, digest: bytes) -> Code | None:
    query = sa.select(*columns(Code, codes)).where(codes.c.digest == digest)
    return one(connection, Code, query.with_for_update())


def use_code(connection: Connection, digest: bytes, family: int | None = None) -> None:
    connection.execute(sa.update(codes).where(codes.c.digest == digest).values(used=True, family=family))


# -- device codes ------------------------------------------------------------------------------------------------------


def add_device(connection: Connection, device: Device, forget_before_ns: int) -> None:
    """Those that expired before ``forget_before_ns`` are removed."""
    connection.execute(sa.delete(devices).where(devices.c.expires_ns <= forget_before_ns))
    connection.execute(sa.insert(devices).values(msgspec.structs.asdict(device)))


def count_waiting(connection: Connection, address: str, now_ns: int) -> int:
    """How many that were asked for from an address nobody has decided on."""
    waiting = sa.and_(devices.c.address == address, devices.c.state == "waiting", devices.c.expires_ns > now_ns)
    return connection.execute(sa.select(sa.func.count()).select_from(devices).where(waiting)).scalar_one()


def hold_device(connection: Connection, digest: bytes) -> Device | None:
    query = sa.select(*columns(Device, devices)).where(devices.c.digest == digest)
    return one(connection, Device, query.with_for_update())


def device_by_user_code(connection: Connection, user_code: bytes) -> Device | None:
    return one(connection, Device, sa.select(*columns(Device, devices)).where(devices.c.user_code == user_code))


def decide_device(connection: Connection, user_code: bytes, *, account: int, state: str, scopes: str) -> bool:
    """Whether it was still waiting for a decision."""
    waiting = sa.update(devices).where(devices.c.user_code == user_code, devices.c.state == "waiting")
    return connection.execute(waiting.values(account=account, state=state, scopes=scopes)).rowcount == 1


def change_device(connection: Connection, digest: bytes, **changes: Any) -> None:
    """Set columns of one device code."""
    connection.execute(sa.update(devices).where(devices.c.digest == digest).values(changes))
