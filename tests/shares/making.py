"""The room of shares without a server: accounts, shares, and a clock that stands."""

from __future__ import annotations

import time
from pathlib import Path

from argon2 import PasswordHasher

from holdfast.accounts.directory import Identity
from holdfast.accounts.passwords import Passwords
from holdfast.accounts.scopes import scopes_of
from holdfast.catalog import people
from holdfast.catalog.database import Database
from holdfast.shares.gone import GoneHere
from holdfast.shares.keeping import Keeper
from holdfast.shares.shares import Download, Made, Shares, Wish
from holdfast.storage.loose import LooseFiles

SECOND = 1_000_000_000
CONTENT = b"content " * 1000
PASSWORDS = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
HOME = "192.0.2.1"


class Room:
    """One server's room. Several over one database and folder are several servers'."""

    def __init__(self, database: Database, root: Path, most_bytes: int = 1 << 20) -> None:
        self.database, self.root = database, root
        self.now_ns = time.time_ns()
        self.told: list[str] = []
        self.files = LooseFiles(root)
        self.files.create()
        self.gone = GoneHere()
        self.shares = Shares(
            database, self.files, PASSWORDS, self.gone, lambda: self.now_ns, self._tell, most_bytes=most_bytes
        )
        self.keeper = self.make_keeper(alone=False)

    def make_keeper(self, *, alone: bool) -> Keeper:
        return Keeper(self.database, self.files, self.shares, lambda: self.now_ns, self._tell, alone=alone)

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
        return Identity(number, name, "user", scopes_of("user"), HOME)

    def put(
        self, by: Identity, content: bytes = CONTENT, *, password: str = "", lasts_s: int = 0, downloads: int = 1
    ) -> Made:
        upload = self.shares.begin(by, len(content))
        upload.feed(content)
        lasts_ns = lasts_s * SECOND or None
        return upload.finish(Wish("report.xls", "application/vnd.ms-excel", password, lasts_ns, downloads))

    def take(self, made: Made, password: str = "", address: str = HOME) -> Download:
        """Claim it, as a download does."""
        return self.shares.take(self.shares.prove(made.id, password, address))

    def get(self, made: Made, password: str = "", address: str = HOME) -> bytes:
        """Download all of it."""
        download = self.take(made, password, address)
        content = b"".join(download.pieces())
        download.make_final()
        download.end(taken=True)
        return content

    def files_there(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    def used(self, by: Identity) -> tuple[int, int]:
        with self.database.reading() as c:
            account = people.account_by_id(c, by.account)
        assert account is not None
        return account.used_bytes, account.used_objects

    def pass_time(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)
        self.keeper.look()
