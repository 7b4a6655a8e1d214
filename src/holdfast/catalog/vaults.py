"""Vaults as rows: whose they are, what others may do with them, how much lies in them, what is under way.

What a vault holds is counted in its row and in its owner's usage, always together. A change (an upload, a deletion)
has a row from before its first byte until it is counted: one that nobody renews is left of a server that was killed,
and says that its vault must be counted anew.

Each function takes the connection of a transaction that its caller opened; one that changes what is counted begins
with ``hold_accounts``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from holdfast.catalog import people
from holdfast.catalog.database import Connection
from holdfast.catalog.holdings import hold_accounts, some_of
from holdfast.catalog.numbers import next_number
from holdfast.catalog.rows import columns, every, insert_new, one
from holdfast.catalog.tables import accounts, vault_changes, vault_grants, vaults


class Vault(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``vaults``, and its owner's name. ``account``: None when it was deleted. ``quota_bytes``: None for no
    limit but the owner's. ``bytes`` and ``objects``: with what is reserved for what is under way.
    """

    id: int
    account: int | None
    owner: str
    name: str
    folder: str
    quota_bytes: int | None
    append_only: bool
    bytes: int
    objects: int
    created_ns: int


class VaultGrant(msgspec.Struct, frozen=True):
    """What an account may do with somebody else's vault."""

    username: str
    allowed: str
    created_ns: int


class Change(msgspec.Struct, frozen=True):
    """A row of ``vault_changes``. ``bytes`` and ``objects``: as what the object of that ``name`` counts meanwhile."""

    id: str  # of a deletion with DELETION before it
    vault: int
    name: str
    bytes: int
    objects: int

    @property
    def deletes(self) -> bool:
        return self.id.startswith(DELETION)


DELETION = "deletion "

_columns = [
    accounts.c.username.label("owner") if name == "owner" else vaults.c[name] for name in Vault.__struct_fields__
]
_vaults = sa.select(*_columns).join(accounts, accounts.c.id == vaults.c.account)


# -- vaults ------------------------------------------------------------------------------------------------------------


def add_vault(
    connection: Connection,
    account: int,
    name: str,
    *,
    folder: str,
    quota_bytes: int | None,
    append_only: bool,
    created_ns: int,
) -> int | None:
    """The new vault's number; None when the account has one of that name."""
    number = next_number(connection, "vaults")
    row = {
        "id": number, "account": account, "name": name, "folder": folder, "quota_bytes": quota_bytes,
        "append_only": append_only, "created_ns": created_ns,
    }  # fmt: skip
    return number if insert_new(connection, vaults, row) else None


def vault_named(connection: Connection, owner: str, name: str) -> Vault | None:
    return one(connection, Vault, _vaults.where(accounts.c.username == owner, vaults.c.name == name))


def vault_by_id(connection: Connection, number: int) -> Vault | None:
    """None also when it was deleted."""
    return one(connection, Vault, _vaults.where(vaults.c.id == number))


def list_vaults(connection: Connection, account: int | None) -> list[Vault]:
    """An account's own, by name; None: everybody's, by owner and name."""
    query = _vaults.order_by(accounts.c.username, vaults.c.name)
    return every(connection, Vault, query if account is None else query.where(vaults.c.account == account))


def change_vault(connection: Connection, number: int, **changes: object) -> None:
    connection.execute(sa.update(vaults).where(vaults.c.id == number).values(changes))


def give_up_vault(connection: Connection, vault: Vault) -> bool:
    """It is nobody's any more, and counts no longer; its folder is still to be removed. False when that was so."""
    hold_accounts(connection, [] if vault.account is None else [vault.account])
    mine = sa.and_(vaults.c.id == vault.id, vaults.c.account == vault.account)
    gone = sa.update(vaults).where(mine).values(account=None).returning(vaults.c.bytes, vaults.c.objects)
    row = connection.execute(gone).one_or_none()
    if row is None or vault.account is None:
        return False
    connection.execute(sa.delete(vault_grants).where(vault_grants.c.vault == vault.id))
    people.charge(connection, vault.account, -row.bytes, -row.objects)
    return True


def given_up(connection: Connection) -> list[tuple[int, str]]:
    """Number and folder of those whose folder is still to be removed."""
    query = sa.select(vaults.c.id, vaults.c.folder).where(vaults.c.account.is_(None)).order_by(vaults.c.id)
    return [(number, folder) for number, folder in connection.execute(query)]


def drop_vault(connection: Connection, number: int) -> None:
    """Its folder is gone."""
    connection.execute(sa.delete(vaults).where(vaults.c.id == number, vaults.c.account.is_(None)))


def known_folders(connection: Connection) -> set[str]:
    """Also of those that were given up."""
    return set(connection.execute(sa.select(vaults.c.folder)).scalars())


# -- what others may ---------------------------------------------------------------------------------------------------


def allowed(connection: Connection, vault: int, account: int) -> str | None:
    """What that account was granted; None: nothing."""
    mine = (vault_grants.c.vault == vault, vault_grants.c.account == account)
    return connection.execute(sa.select(vault_grants.c.allowed).where(*mine)).scalar_one_or_none()


def list_granted(connection: Connection, account: int) -> list[tuple[Vault, str]]:
    """Others' vaults with which the account may do something, and what."""
    query = (
        sa.select(*_columns, vault_grants.c.allowed)
        .join(accounts, accounts.c.id == vaults.c.account)
        .join(vault_grants, vault_grants.c.vault == vaults.c.id)
        .where(vault_grants.c.account == account)
        .order_by(accounts.c.username, vaults.c.name)
    )
    rows = [dict(row._mapping) for row in connection.execute(query)]
    return [(Vault(**{k: v for k, v in row.items() if k != "allowed"}), str(row["allowed"])) for row in rows]


def list_grants(connection: Connection, vault: int) -> list[VaultGrant]:
    query = sa.select(accounts.c.username, vault_grants.c.allowed, vault_grants.c.created_ns)
    mine = query.join(accounts, accounts.c.id == vault_grants.c.account).where(vault_grants.c.vault == vault)
    return every(connection, VaultGrant, mine.order_by(accounts.c.username))


def put_grant(connection: Connection, vault: int, account: int, what: str, now_ns: int) -> None:
    """In place of what there was."""
    row = {"vault": vault, "account": account, "allowed": what, "created_ns": now_ns}
    if not insert_new(connection, vault_grants, row):
        mine = (vault_grants.c.vault == vault, vault_grants.c.account == account)
        connection.execute(sa.update(vault_grants).where(*mine).values(allowed=what, created_ns=now_ns))


def end_grant(connection: Connection, vault: int, account: int) -> bool:
    """Whether there was one."""
    mine = (vault_grants.c.vault == vault, vault_grants.c.account == account)
    return connection.execute(sa.delete(vault_grants).where(*mine)).rowcount == 1


# -- what is under way, and counting -----------------------------------------------------------------------------------


def begin_change(connection: Connection, change: Change, now_ns: int) -> None:
    row = {**msgspec.structs.asdict(change), "renewed_ns": now_ns}
    connection.execute(sa.insert(vault_changes).values(row))


def begin_alone(connection: Connection, vault: Vault, change: Change, now_ns: int) -> bool:
    """False, and nothing is noted, when something else is under way with the object."""
    hold_accounts(connection, [] if vault.account is None else [vault.account])
    same = sa.and_(vault_changes.c.vault == vault.id, vault_changes.c.name == change.name)
    if connection.execute(sa.select(vault_changes.c.id).where(same).limit(1)).first() is not None:
        return False
    begin_change(connection, change, now_ns)
    return True


def missing_room(connection: Connection, vault: Vault, size: int, objects: int) -> str:
    """What would stand against so much more just now, as ``reserve`` says it."""
    now = vault_by_id(connection, vault.id)
    owner = None if now is None or now.account is None else people.account_by_id(connection, now.account)
    if now is None or owner is None:
        return "gone"
    for quota, used, more in (
        (owner.quota_bytes, owner.used_bytes, size),
        (owner.quota_objects, owner.used_objects, objects),
    ):
        if more > 0 and quota is not None and used + more > quota:
            return "account"
    return "vault" if size > 0 and now.quota_bytes is not None and now.bytes + size > now.quota_bytes else ""


def reserve(connection: Connection, vault: Vault, size: int, objects: int) -> str:
    """Count so much more. What stands against it: ``account`` or ``vault`` when that quota would be passed, ``gone``
    when the vault was deleted; then the transaction is not to be committed. Empty: nothing.
    """
    if vault.account is None:
        return "gone"
    hold_accounts(connection, [vault.account])
    if not people.charge(connection, vault.account, size, objects):
        return "account"
    fits = sa.or_(vaults.c.quota_bytes.is_(None), vaults.c.bytes + size <= vaults.c.quota_bytes, sa.literal(size <= 0))
    mine = sa.and_(vaults.c.id == vault.id, vaults.c.account == vault.account)
    more = {"bytes": vaults.c.bytes + size, "objects": vaults.c.objects + objects}
    if connection.execute(sa.update(vaults).where(mine, fits).values(more)).rowcount == 1:
        return ""
    return "gone" if vault_by_id(connection, vault.id) is None else "vault"


def reserve_more(connection: Connection, change: str, size: int) -> None:
    """A change has reserved so much more."""
    mine = sa.update(vault_changes).where(vault_changes.c.id == change)
    connection.execute(mine.values(bytes=vault_changes.c.bytes + size))


def end_change(connection: Connection, vault: Vault, change: str, size: int, objects: int) -> bool:
    """A change is over, and its object counts so much from now on. False when its vault was deleted meanwhile, or the
    change was taken for one that nobody works at: then somebody else has counted.
    """
    if vault.account is None:
        return False
    hold_accounts(connection, [vault.account])
    mine = sa.delete(vault_changes).where(vault_changes.c.id == change)
    row = connection.execute(mine.returning(vault_changes.c.bytes, vault_changes.c.objects)).one_or_none()
    if row is None:
        return False
    return _add(connection, vault.id, vault.account, size - row.bytes, objects - row.objects)


def _add(connection: Connection, number: int, account: int, size: int, objects: int) -> bool:
    """Count, whatever the quotas say: it is there. Nothing ever counts less than nothing."""
    mine = sa.and_(vaults.c.id == number, vaults.c.account == account)
    row = connection.execute(sa.select(vaults.c.bytes, vaults.c.objects).where(mine)).one_or_none()
    if row is None:
        return False
    size, objects = max(size, -row.bytes), max(objects, -row.objects)
    more = {"bytes": vaults.c.bytes + size, "objects": vaults.c.objects + objects}
    connection.execute(sa.update(vaults).where(mine).values(more))
    used = {
        "used_bytes": _at_least_zero(accounts.c.used_bytes + size),
        "used_objects": _at_least_zero(accounts.c.used_objects + objects),
    }
    connection.execute(sa.update(accounts).where(accounts.c.id == account).values(used))
    return True


def _at_least_zero(value: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return sa.case((value < 0, 0), else_=value)


def renew_changes(connection: Connection, running: Iterable[str], now_ns: int) -> None:
    for some in some_of(running):
        mine = sa.update(vault_changes).where(vault_changes.c.id.in_(some))
        connection.execute(mine.values(renewed_ns=now_ns))


def vaults_left(connection: Connection, before_ns: int) -> list[int]:
    """The vaults in which something is under way that nobody has renewed since."""
    query = sa.select(vault_changes.c.vault).where(vault_changes.c.renewed_ns < before_ns)
    return list(connection.execute(query.distinct().order_by(vault_changes.c.vault)).scalars())


def count_again(connection: Connection, number: int, now_ns: int) -> None:
    """Have the vault counted anew when what is under way now has gone stale."""
    begin_change(connection, Change(f"count {secrets.token_hex(16)}", number, "", 0, 0), now_ns)


def hold_vault(connection: Connection, number: int) -> Vault | None:
    """Nobody else changes what is counted in it until the transaction ends."""
    vault = vault_by_id(connection, number)
    hold_accounts(connection, [] if vault is None or vault.account is None else [vault.account])
    return vault_by_id(connection, number)


def changes_in(connection: Connection, number: int, before_ns: int) -> list[Change]:
    """What is under way in a vault. What nobody has renewed since is forgotten."""
    old = sa.and_(vault_changes.c.vault == number, vault_changes.c.renewed_ns < before_ns)
    connection.execute(sa.delete(vault_changes).where(old))
    query = sa.select(*columns(Change, vault_changes)).where(vault_changes.c.vault == number)
    return every(connection, Change, query)


def set_counted(connection: Connection, vault: Vault, size: int, objects: int) -> None:
    """What was found in it."""
    if vault.account is not None:
        _add(connection, vault.id, vault.account, size - vault.bytes, objects - vault.objects)
