"""Vaults as their owners and administrators see them: make, list, change, delete, grant.

What is promised: what a token that got out could be used for ends with the token: append-only is turned off, a quota
changed, a vault deleted as a whole and something granted only by a person (a password or a session); but a vault that
is not append-only can be emptied by whoever may delete in it. What is decided by is true until the change is committed:
its owner's account is held meanwhile. All of that stands in the audit log, written in the same transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.accounts.directory import Identity
from holdfast.accounts.scopes import ADMIN
from holdfast.catalog import people
from holdfast.catalog import vaults as rows
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import hold_accounts
from holdfast.catalog.vaults import VaultGrant
from holdfast.errors import Contradiction, Forbidden, HoldfastError, NoAccount, UsageError
from holdfast.vaults.folders import About, Folders
from holdfast.vaults.names import demand_vault_name
from holdfast.vaults.rights import GRANTS, OWNER, READS, WRITES, Seen, no_vault, see, shown

MOST_VAULTS = 100  # of one account
_LARGEST = 1 << 63


class Vaults:
    """See the module. Safe to share between threads. ``wake`` is told that there is a folder to remove."""

    def __init__(
        self, database: Database, folders: Folders, now_ns: Callable[[], int], wake: Callable[[], None]
    ) -> None:
        self._database, self._folders, self._now_ns, self._wake = database, folders, now_ns, wake

    def create(
        self, by: Identity, name: str, *, quota_bytes: int | None = None, append_only: bool = False
    ) -> tuple[Seen, bool]:
        """A new vault of his own, or the one that is there; whether it is new."""
        by.demand(WRITES)
        demand_vault_name(name)
        _demand_quota(quota_bytes)
        with self._database.reading() as c:
            found = rows.vault_named(c, by.username, name)
        if found is not None:
            return Seen(found, OWNER), False
        about = About(by.username, name, append_only, quota_bytes, self._now_ns())
        folder = self._folders.make(by.account, about)
        try:
            made = self._add(by, about, folder)
        except BaseException:
            with contextlib.suppress(HoldfastError):
                self._folders.remove(folder)
            raise
        if not made:
            self._folders.remove(folder)
        with self._database.reading() as c:
            return see(c, by, by.username, name), made

    def _add(self, by: Identity, about: About, folder: str) -> bool:
        """False when somebody else has made one of that name just now."""
        with self._database.writing() as c:
            hold_accounts(c, [by.account])
            if len(rows.list_vaults(c, by.account)) >= MOST_VAULTS:
                raise Forbidden(f"An account has at most {MOST_VAULTS} vaults.", "Delete one first.")
            number = rows.add_vault(
                c, by.account, about.name, folder=folder, quota_bytes=about.quota_bytes,
                append_only=about.append_only, created_ns=about.created_ns,
            )  # fmt: skip
            if number is not None:
                self._note(c, by, "vault made", f"{by.username}/{about.name}", _told(about))
        return number is not None

    def listed(self, by: Identity, *, everybody: bool = False) -> list[Seen]:
        """His own, by name, then those that were granted him; for administrators everybody's."""
        by.demand(READS)
        if everybody:
            by.demand(ADMIN)
        with self._database.reading() as c:
            own = [Seen(vault, OWNER) for vault in rows.list_vaults(c, by.account)]
            granted = [Seen(vault, right) for vault, right in rows.list_granted(c, by.account)]
            known = {seen.vault.id for seen in own + granted}
            rest = [Seen(vault, "") for vault in rows.list_vaults(c, None) if vault.id not in known]
        return own + granted + (rest if everybody else [])

    def about(self, by: Identity, owner: str, name: str) -> Seen:
        """NoContent when there is none, or none for him."""
        by.demand(READS)
        with self._database.reading() as c:
            return see(c, by, owner, name, as_admin=ADMIN in by.scopes)

    def change(self, by: Identity, owner: str, name: str, changes: Mapping[str, Any]) -> Seen:
        """Change ``quota_bytes`` or ``append_only``. Only a person changes the first, or turns off the second."""
        by.demand(WRITES)
        _demand_quota(changes.get("quota_bytes"))
        if "quota_bytes" in changes:
            by.demand_person("change a vault's quota")
        with self._database.writing() as c:
            seen = self._held(c, by, owner, name)
            if seen.vault.append_only and changes.get("append_only") is False:
                by.demand_person("turn append-only off")
            if changes:
                rows.change_vault(c, seen.vault.id, **changes)
            changed = see(c, by, owner, name, as_admin=True)
            vault = changed.vault
            about = About(vault.owner, vault.name, vault.append_only, vault.quota_bytes, vault.created_ns)
            self._note(c, by, "vault changed", shown(vault), _told(about))
            self._folders.note(vault.folder, about)
        return Seen(vault, seen.right)

    def delete(self, by: Identity, owner: str, name: str, confirm: str) -> None:
        """With all that is in it, when ``confirm`` is its name."""
        by.demand(WRITES)
        by.demand_person("delete a vault by its address here")
        if confirm != name:
            raise UsageError("A vault is deleted with all that is in it.", "Say `?confirm=` and its name.")
        self._delete(by, owner, name)

    def delete_own(self, by: Identity, owner: str, name: str) -> None:
        """The same by the protocol of other programs, for the owner only, who need be no person there: whoever may
        delete each object of a vault deletes it.
        """
        by.demand(WRITES)
        with self._database.reading() as c:
            if see(c, by, owner, name).right != OWNER:
                raise Forbidden(f"Only its owner deletes the vault {owner}/{name}.")
        self._delete(by, owner, name)

    def _delete(self, by: Identity, owner: str, name: str) -> None:
        with self._database.writing() as c:
            vault = self._held(c, by, owner, name).vault
            if vault.append_only:
                raise Forbidden(f"The vault {shown(vault)} is append-only.", "Turn that off first.")
            if not rows.give_up_vault(c, vault):
                raise no_vault(owner, name)
            self._note(c, by, "vault deleted", shown(vault), f"{vault.bytes} bytes, {vault.objects} objects")
        self._wake()

    # -- what others may -------------------------------------------------------------------------------------------

    def grants(self, by: Identity, owner: str, name: str) -> list[VaultGrant]:
        by.demand(READS)
        with self._database.reading() as c:
            return rows.list_grants(c, self._governed(c, by, owner, name).vault.id)

    def grant(self, by: Identity, owner: str, name: str, username: str, allowed: str) -> None:
        """Another account may do that with it from now on. NoAccount when there is none of that name."""
        by.demand(WRITES)
        by.demand_person("grant something")
        if allowed not in GRANTS:
            raise UsageError(f"What is granted is one of {', '.join(GRANTS)}.")
        with self._database.writing() as c:
            vault = self._governed(c, by, owner, name).vault
            found = people.account_named(c, username) if username.isprintable() else None
            if found is None:
                raise NoAccount("There is no account of that name.")
            if found.id == vault.account:
                raise Contradiction(f"{username} is the vault's owner, who may do everything.")
            rows.put_grant(c, vault.id, found.id, allowed, self._now_ns())
            self._note(c, by, "vault granted", shown(vault), f"{username} {allowed}")

    def end_grant(self, by: Identity, owner: str, name: str, username: str) -> None:
        """From now on he may nothing with it. NoAccount when nothing was granted him."""
        by.demand(WRITES)
        by.demand_person("end what was granted")
        with self._database.writing() as c:
            vault = self._governed(c, by, owner, name).vault
            found = people.account_named(c, username) if username.isprintable() else None
            if found is None or not rows.end_grant(c, vault.id, found.id):
                raise NoAccount("Nothing was granted to an account of that name.")
            self._note(c, by, "vault grant ended", shown(vault), username)

    def _governed(self, c: Connection, by: Identity, owner: str, name: str) -> Seen:
        """A vault that is his, or that he may govern as an administrator."""
        is_admin = ADMIN in by.scopes
        seen = see(c, by, owner, name, as_admin=is_admin)
        if seen.right != OWNER and not is_admin:
            raise Forbidden(f"Only its owner may do that with the vault {shown(seen.vault)}.")
        return seen

    def _held(self, c: Connection, by: Identity, owner: str, name: str) -> Seen:
        """The same; nobody else changes it until the transaction ends."""
        account = self._governed(c, by, owner, name).vault.account
        hold_accounts(c, [] if account is None else [account])
        seen = self._governed(c, by, owner, name)  # what was read before may have changed while we waited
        if seen.vault.account != account:
            raise no_vault(owner, name)
        return seen

    def _note(self, c: Connection, by: Identity, action: str, subject: str, detail: str = "") -> None:
        people.add_audit(
            c, at_ns=self._now_ns(), actor=by.username, address=by.address, action=action, subject=subject,
            detail=detail,
        )  # fmt: skip


def _demand_quota(quota_bytes: int | None) -> None:
    if quota_bytes is not None and not (type(quota_bytes) is int and 0 <= quota_bytes < _LARGEST):
        raise UsageError("quota_bytes must be a number from 0, or null for none.")


def _told(about: About) -> str:
    limit = "no quota" if about.quota_bytes is None else f"quota {about.quota_bytes} bytes"
    return f"append-only {'on' if about.append_only else 'off'}, {limit}"
