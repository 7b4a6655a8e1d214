"""Builds the objects and hands them down: which storage, which key, which clock, who we are.

Nothing below this floor asks the machine for the time, the host's name or a password; it is given them from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import os
import pwd
import shlex
import socket
import subprocess
import time
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from holdfast.errors import ObjectMissing, StorageUnavailable, UsageError
from holdfast.repository.format import Argon2, Lease
from holdfast.repository.keys import Credential, KeyFile, Password, Sheet, new_key_file, parse_key_file
from holdfast.repository.leases import Owner
from holdfast.repository.repository import Repository, create, open_repository, read_config
from holdfast.settings import Settings, child_environment, size_of
from holdfast.storage.base import Storage
from holdfast.storage.caching import Caching, cache_folder, clear_old
from holdfast.storage.limiting import Limiting
from holdfast.storage.select import Access, Login, is_remote, open_storage, scheme_of
from holdfast.storage.wrappers import DryRun
from holdfast.wiring.profiles import settings_at

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's mallopt

AskPassword = Callable[[str], str | None]


@dataclass(frozen=True)
class App:
    """What a command works with. ``ask_password`` asks a person (None: there is nobody to ask); ``tell`` tells one what
    is being waited for.
    """

    settings: Settings
    ask_password: AskPassword
    now_ns: Callable[[], int] = time.time_ns
    tell: Callable[[str], None] = lambda text: None

    @property
    def address(self) -> str:
        """The repository's address: the one given, or the one in the user's data folder."""
        return self.settings.repository or str(self.settings.default_repository)

    @property
    def uses_default(self) -> bool:
        return not self.settings.repository

    def zone(self) -> datetime.tzinfo:
        """The time zone that days and weeks are counted in: TZ's, else the machine's, else UTC."""
        with contextlib.suppress(OSError, ValueError, LookupError):
            if self.settings.time_zone:
                return zoneinfo.ZoneInfo(self.settings.time_zone.removeprefix(":"))
        with contextlib.suppress(OSError, ValueError), open("/etc/localtime", "rb") as f:
            return zoneinfo.ZoneInfo.from_file(f, key="local")
        return datetime.UTC

    def owner(self) -> Owner:
        return machine_owner(self.settings.host)

    def uncached(self) -> App:
        """The same, seeing what is in the storage itself."""
        return replace(self, settings=msgspec.structs.replace(self.settings, cache=False))

    def storage(self, address: str = "", *, dry_run: bool = False) -> Storage:
        found = storage_at(address or self.address, self.settings, self.tell)
        return DryRun(found) if dry_run else found

    def open(self, address: str = "", *, dry_run: bool = False) -> Repository:
        """Open the repository; a person is asked for the password when nothing gives it."""
        return_freed_memory()
        storage = self.storage(address, dry_run=dry_run)
        found = read_config(storage)  # first, so that nobody is asked for the password of what is not there
        return open_repository(storage, self.credential(), self.owner(), self.now_ns, found)

    def create(self, *, argon2: Argon2 | None = None) -> Repository:
        """Make the repository at ``address``."""
        storage = self.storage()
        credential = self.credential(new=True)
        if isinstance(credential, Sheet):
            raise UsageError(
                "A recovery sheet opens a repository; it cannot make one.", "Give a password or a key file."
            )
        storage.create()
        return create(storage, credential, self.owner(), self.now_ns, argon2=argon2)

    def other(self, address: str, password_file: str, key_file: str) -> App:
        """The same for a second repository: its own password file or key file, else the credential of this one."""
        changed = {"repository": address}
        if password_file or key_file:
            nothing = {"password": "", "password_command": ""}
            changed |= {**nothing, "password_file": password_file, "key_file": key_file}
        settings = msgspec.structs.replace(self.settings, **changed)
        return replace(self, settings=settings_at(settings, {"config": settings.config_file}))

    def locking(self, days: int) -> App:
        """The same with every object locked for so many days that is stored from now on."""
        scheme = scheme_of(self.address)
        if scheme != "s3":
            raise UsageError("Only repositories on S3 can be locked.", "Leave --lock-days out, or name one with s3:.")
        storage = {**self.settings.storage, "HOLDFAST_S3_LOCK_DAYS": str(days)}
        return replace(self, settings=msgspec.structs.replace(self.settings, storage=storage))

    def credential(self, *, new: bool = False) -> Credential:
        """The password or key file that the settings name; for the default repository its own key file."""
        s = self.settings
        if s.key_file:
            return read_key_file(Path(s.key_file).expanduser())
        if s.password_command:
            return Password(run_password_command(s.password_command))
        if s.password_file:
            return Password(read_first_line(Path(s.password_file).expanduser(), "password file"))
        if s.password:
            return Password(s.password)
        if self.uses_default:
            if new and not s.default_key_file.exists():
                write_key_file(s.default_key_file)
            if s.default_key_file.exists():
                return read_key_file(s.default_key_file)
        password = self.ask_password("New password" if new else "Password")
        if password is None:
            raise UsageError(
                "The repository needs a password or a key file.",
                "Set HOLDFAST_PASSWORD, HOLDFAST_PASSWORD_FILE, HOLDFAST_PASSWORD_COMMAND or HOLDFAST_KEY_FILE.",
            )
        return Password(password)

    def remembered(self, repo: Repository, paths: tuple[bytes, ...]) -> str:
        """Where a write-only key keeps what it knows of its last snapshot of these paths; empty for a full key."""
        if repo.secrets.can_read:
            return ""
        name = repo.secrets.chunk_id(b"\0".join(sorted(paths))).hex()[:32]
        return str(self.settings.cache_folder / repo.id / f"last-{name}")


def storage_at(address: str, loaded: Settings, tell: Callable[[str], None] = lambda text: None) -> Storage:
    """The storage at an address, with what the settings know of it. One that is far away is asked patiently, within the
    limits of bandwidth, and what it was asked before is kept.
    """

    def told(error: StorageUnavailable, seconds: float) -> None:
        if seconds >= 1:
            tell(f"{error} Trying again in {seconds:.0f} s.")

    found = open_storage(address, Access(loaded.storage, loaded.home, login=functools.partial(_login, loaded)))
    up, down = (size_of(text) if text else 0 for text in (loaded.limit_upload, loaded.limit_download))
    if up or down:
        found = Limiting(found, up, down)
    if not is_remote(address):
        return found
    from holdfast.storage.retrying import Patience, Retrying

    found = Retrying(found, Patience(told=told))
    if not loaded.cache:
        return found
    folder = cache_folder(loaded.cache_folder, found.place)
    clear_old(folder, time.time())
    return Caching(found, folder)


def _login(loaded: Settings, address: str) -> tuple[str, Login] | None:
    """The server that an address belongs to, and how one is known there."""
    from holdfast.wiring import remote

    return remote.login_at(loaded, address, time.time_ns)


def read_key_file(path: Path) -> KeyFile | Sheet:
    """A key file or a recovery sheet."""
    try:
        return parse_key_file(path.read_text())
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise UsageError(f"The key file {path} cannot be read: {reason}.") from None


def write_key_file(path: Path) -> None:
    """Make a new key file, mode 0600, durable before anything is locked with it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, new_key_file().encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def run_password_command(command: str) -> str:
    """The first line a program prints. It is started without a shell and without our secrets."""
    try:
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, env=child_environment(), check=False)
    except (OSError, ValueError) as e:
        raise UsageError(f"The password command cannot be run: {e}.") from None
    if done.returncode != 0:
        raise UsageError(f"The password command failed with status {done.returncode}.")
    line = done.stdout.decode("utf-8", "surrogateescape").split("\n", 1)[0].rstrip("\r")
    if not line:
        raise UsageError("The password command printed no password.")
    return line


def read_first_line(path: Path, what: str) -> str:
    """A secret that stands on the first line of a file."""
    try:
        line = path.read_text().split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"The {what} {path} cannot be read: {e}.") from None
    if not line:
        raise UsageError(f"The {what} {path} is empty.")
    return line


def return_freed_memory(*, arenas: int = 0) -> None:
    """Have glibc give freed blocks of 8 MiB or more back to the system, and keep smaller ones for their like.

    Without it each thread keeps whatever it freed once: a fifth more memory for a backup of small files, whose blocks
    are of 14 MiB. Given back from 1 MiB on, as chunks are, restoring 2 GiB took three times as long: all of it faulting
    in fresh pages. ``arenas``: into how many heaps all threads share (0: as many as glibc likes; each keeps what was
    freed in it).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, (8 if arenas else 32) << 20)
        if arenas:
            libc.mallopt(_M_ARENA_MAX, arenas)


def machine_owner(host: str = "") -> Owner:
    """This process, so that another one on this machine can tell whether it still runs."""
    boot, process = _boot(), _process(os.getpid())

    def ended(lease: Lease) -> bool:
        space, pid, _ = lease.process.split("/") if lease.process.count("/") == 2 else ("", "", "")
        if not boot or lease.boot != boot or not pid.isdigit() or space != process.split("/")[0]:
            return False
        return _process(int(pid)) != lease.process

    return Owner(host or socket.gethostname(), _user(), process, boot, ended)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process(pid: int) -> str:
    """``namespace/pid/start``: one process of this boot, told apart from a later one of the same number."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return f"//{pid}" if pid == os.getpid() else ""
    return f"{space}/{pid}/{start}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def no_repository_yet(app: App) -> bool:
    """Whether the default repository is meant and not made yet."""
    if not app.uses_default:
        return False
    try:
        app.storage().stat("config")
    except ObjectMissing:
        return True
    return False
