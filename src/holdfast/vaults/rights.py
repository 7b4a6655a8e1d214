"""Who may do what with a vault.

What is promised: to whom nothing was granted a vault is not there. ``read`` is looking, and taking and giving back
locks, without which other programs do not even read; ``append`` adds what is new; ``full`` deletes, too, as the owner
does. In a vault that is append-only nobody deletes anything but locks, not even its owner.
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast.accounts.directory import Identity
from holdfast.catalog import vaults as rows
from holdfast.catalog.database import Connection
from holdfast.catalog.vaults import Vault
from holdfast.errors import Forbidden, NoContent
from holdfast.vaults.names import are_names

OWNER, FULL, APPEND, READ = "owner", "full", "append", "read"
GRANTS = (READ, APPEND, FULL)
READS, WRITES = "vaults:read", "vaults:write"


class Seen(NamedTuple):
    """A vault as somebody sees it. ``right``: OWNER, or one of GRANTS; empty for an administrator to whom nothing was
    granted.
    """

    vault: Vault
    right: str


def see(c: Connection, by: Identity, owner: str, name: str, *, as_admin: bool = False) -> Seen:
    """The vault, and what he may with it. NoContent when it is not there, or not for him."""
    vault = rows.vault_named(c, owner, name) if are_names(owner, name) else None
    if vault is not None:
        right = OWNER if vault.account == by.account else rows.allowed(c, vault.id, by.account)
        if right or as_admin:
            return Seen(vault, right or "")
    raise no_vault(owner, name)


def no_vault(owner: str, name: str) -> NoContent:
    return NoContent(f"There is no vault {owner}/{name}.", "Make it: `POST /vaults`, or the other program's `init`.")


def demand_add(by: Identity, seen: Seen, name: str) -> bool:
    """Forbidden unless he may store an object of that name. Whether he may as a mere reader: only few, small locks."""
    _demand_scope(by, name)
    reader = seen.right == READ or WRITES not in by.scopes
    if reader and not _is_lock(name):
        raise Forbidden(f"You may only read the vault {shown(seen.vault)}.", "Its owner can grant more.")
    return reader


def demand_delete(by: Identity, seen: Seen, name: str) -> None:
    """Forbidden unless he may delete the object of that name."""
    _demand_scope(by, name)
    if _is_lock(name):
        return
    if seen.vault.append_only:
        raise Forbidden(f"The vault {shown(seen.vault)} is append-only: nothing in it is deleted but locks.", _OFF)
    if seen.right not in (OWNER, FULL):
        raise Forbidden(f"You may not delete from the vault {shown(seen.vault)}.", "Its owner can grant more.")


def _demand_scope(by: Identity, name: str) -> None:
    """Locks belong to reading as to writing."""
    by.demand(READS if _is_lock(name) and WRITES not in by.scopes else WRITES)


def shown(vault: Vault) -> str:
    return f"{vault.owner}/{vault.name}"


def _is_lock(name: str) -> bool:
    return name.startswith("locks/")


_OFF = "Its owner, logged in with the password, or an administrator can change that."
