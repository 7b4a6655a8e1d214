"""Where this user is logged in: ``servers.json`` in the config folder, readable by its owner alone.

What is promised: a change is on the disk, whole, before it counts; of several processes that change it at once each
sees what the one before it wrote; a token appears in no text that is shown or logged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast.errors import UsageError


class Login(msgspec.Struct, frozen=True):
    """One log-in. ``expires_ns``: when the access token stops to count, by this machine's clock."""

    access_token: str
    refresh_token: str
    expires_ns: int

    def __repr__(self) -> str:
        return "Login(…)"


class _File(msgspec.Struct):
    servers: dict[str, Login] = {}


class Logins:
    """The log-ins kept in a folder, by the servers' addresses."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.path = folder, folder / "servers.json"

    def all(self) -> dict[str, Login]:
        """Every log-in there is. UsageError when the file cannot be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_File).servers
        except FileNotFoundError:
            return {}
        except OSError as e:
            raise UsageError(f"{self.path} cannot be read: {e.strerror}.") from None
        except msgspec.MsgspecError:
            raise UsageError(f"{self.path} is damaged.", "Remove it, then run `holdfast login` again.") from None

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Login]]:
        """Every log-in, for this process alone while the block runs; what the block makes of them is kept."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._folder / "servers.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.all()
            found = dict(before)
            yield found
            if found != before:
                self._write(found)
        finally:
            os.close(lock)

    def _write(self, logins: dict[str, Login]) -> None:
        text = msgspec.json.format(msgspec.json.encode(_File(logins)), indent=2) + b"\n"
        new = self._folder / f".servers.json.{secrets.token_hex(8)}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as f:
                f.write(text)
                f.flush()
                os.fsync(fd)
            os.rename(new, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
