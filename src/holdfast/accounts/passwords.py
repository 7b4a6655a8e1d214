"""Passwords: hashed by Argon2id, checked in the same time whether or not the account exists.

Hashing takes 64 MiB for a while, so only a few run at a time: many log-ins at once wait instead of filling the
memory.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from holdfast.errors import UsageError

LEAST, MOST = 8, 1024  # characters; a longest, so that nobody has us hash a book
_AT_ONCE = 2
_PROOF_S = 300
_MOST_PROOFS = 1024


class Passwords:
    """Hashes and checks. Safe to share between threads. ``hasher`` sets the cost."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()  # RFC 9106's second choice: 3 passes over 64 MiB in 4 lanes
        self._room = threading.Semaphore(_AT_ONCE)
        self._nobody = self.hash(secrets.token_hex(16))

    def hash(self, password: str, *, least: int = LEAST) -> str:
        """In PHC form. UsageError when the password is too short (fewer than ``least`` characters) or too long."""
        if not least <= len(password) <= MOST:
            raise UsageError(f"A password has {least} to {MOST} characters.")
        with self._room:
            return self._hasher.hash(password.encode("utf-8", "surrogatepass"))

    def verify(self, password: str, stored: str | None) -> bool:
        """Whether the password is the one that was hashed. With no account (None) it takes as long, and is wrong."""
        if len(password) > MOST:
            password, stored = "", None
        with self._room:
            try:
                self._hasher.verify(stored or self._nobody, password.encode("utf-8", "surrogatepass"))
            except (VerificationError, InvalidHashError):
                return False
        return stored is not None

    def is_old(self, stored: str) -> bool:
        """Whether it was hashed at another cost than today's."""
        return self._hasher.check_needs_rehash(stored)


class Proofs:
    """Remembers, for this process and _PROOF_S seconds, which password was right for which hash and came from which
    address, without the first two. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._until: dict[bytes, float] = {}

    def keep(self, stored: str, password: str, address: str) -> None:
        if len(self._until) >= _MOST_PROOFS:
            self._until = {}
        self._until[self._proof(stored, password, address)] = time.monotonic() + _PROOF_S

    def holds(self, stored: str, password: str, address: str) -> bool:
        return self._until.get(self._proof(stored, password, address), 0.0) > time.monotonic()

    def _proof(self, stored: str, password: str, address: str) -> bytes:
        parts = (part.encode("utf-8", "surrogatepass") for part in (stored, address, password))
        return hmac.digest(self._key, b"\0".join(parts), hashlib.sha256)
