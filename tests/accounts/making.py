"""A directory of accounts whose clock stands still until it is moved."""

from __future__ import annotations

from dataclasses import dataclass, field

from argon2 import PasswordHasher

from holdfast.accounts.directory import Directory, Identity
from holdfast.accounts.oauth import OAuth
from holdfast.accounts.passwords import Passwords
from holdfast.catalog.database import Database

SECOND = 1_000_000_000
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
ADMIN_PASSWORD, PASSWORD = "the admin's password", "correct horse"


@dataclass
class Clock:
    now: int = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


@dataclass
class House:
    database: Database
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.directory = Directory(self.database, Passwords(CHEAP), self.clock)
        self.directory.create_first_admin(ADMIN_PASSWORD)
        self.oauth = OAuth(self.database, self.directory, self.clock)
        self.admin = self.log_in("admin", ADMIN_PASSWORD)

    def log_in(self, username: str, password: str = PASSWORD, address: str = HOME) -> Identity:
        return self.directory.log_in(username, password, address)

    def user(self, username: str = "ann", **about: str) -> Identity:
        """A new account, logged in."""
        self.directory.create(self.admin, username, PASSWORD, **about)
        return self.log_in(username)
