"""The room of vaults without a server: accounts, vaults, objects, and a clock that stands."""

from __future__ import annotations

import hashlib
from pathlib import Path

from holdfast.accounts.directory import Identity
from holdfast.accounts.scopes import scopes_of
from holdfast.catalog import people
from holdfast.catalog import vaults as rows
from holdfast.catalog.database import Database
from holdfast.catalog.vaults import Vault
from holdfast.vaults.folders import Folders
from holdfast.vaults.keeping import Keeper
from holdfast.vaults.names import Where
from holdfast.vaults.objects import Objects, Upload
from holdfast.vaults.vaults import Vaults


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Room:
    """One server's room. Several over one database and folder are several servers'."""

    def __init__(self, database: Database, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.database, self.root = database, root
        self.now_ns = 10**18
        self.told: list[str] = []
        self.folders = Folders(root)
        self.objects = Objects(database, self.folders, lambda: self.now_ns, self._tell)
        self.keeper = self.make_keeper(alone=False)
        self.vaults = Vaults(database, self.folders, lambda: self.now_ns, lambda: None)

    def make_keeper(self, *, alone: bool) -> Keeper:
        return Keeper(self.database, self.folders, self.objects, lambda: self.now_ns, self._tell, alone=alone)

    def _tell(self, work: str, error: Exception) -> None:
        self.told.append(f"{work}: {error}")

    def user(self, name: str, quota_bytes: int | None = None) -> Identity:
        """A new account, logged in."""
        with self.database.writing() as c:
            number = people.add_account(
                c, username=name, email="", name="", role="user", password="-", created_ns=self.now_ns
            )
            assert number is not None
            people.change_account(c, number, quota_bytes=quota_bytes)
        return Identity(number, name, "user", scopes_of("user"), "127.0.0.1")

    def begin(self, by: Identity, data: bytes, kind: str = "data", size: int | None = -1) -> Upload:
        where = Where(by.username, "v", name=f"{kind}/{sha256(data)}")
        return self.objects.begin(by, where, len(data) if size == -1 else size)

    def put(self, by: Identity, data: bytes, kind: str = "data") -> None:
        upload = self.begin(by, data, kind)
        upload.feed(data)
        upload.finish()

    def delete(self, by: Identity, data: bytes) -> None:
        self.objects.delete(by, Where(by.username, "v", name=f"data/{sha256(data)}"))

    def vault(self, owner: str, name: str = "v") -> Vault:
        with self.database.reading() as c:
            found = rows.vault_named(c, owner, name)
        assert found is not None
        return found

    def counts(self, owner: str) -> tuple[int, int]:
        """Bytes and objects of the vault ``v``, which are what its owner uses, too."""
        vault = self.vault(owner)
        with self.database.reading() as c:
            account = people.account_named(c, owner)
        assert account is not None and (account.used_bytes, account.used_objects) == (vault.bytes, vault.objects)
        return vault.bytes, vault.objects
