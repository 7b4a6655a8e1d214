"""A real OpenSSH server on loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from holdfast.storage.select import Access
from tests.support.components import need
from tests.support.rclone import free_port

_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp {options}
PermitRootLogin prohibit-password
MaxStartups 100
AllowTcpForwarding yes
"""


@dataclass
class Sshd:
    """``home``: a user's home folder, with a key that is let in and the server's key among the known hosts."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    user: str = field(default_factory=getpass.getuser)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def access(self, **variables: str) -> Access:
        return Access(variables, self.home)

    def address(self, path: Path | str) -> str:
        return f"sftp://{self.user}@127.0.0.1:{self.port}/{str(path).lstrip('/')}"

    def sessions(self) -> list[int]:
        """The processes that serve somebody. For each connection its monitor, the one that speaks for the user, and his
        SFTP server: the innermost last, where there is one connection.
        """
        parents = {}
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry)
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for parent in found:
            found += [pid for pid in parents if parents[pid] == parent]
        return found[1:]

    def log(self) -> str:
        return (self.folder / "log").read_text()


def write_key(path: Path, kind: str = "ssh-ed25519", passphrase: str | None = None) -> asyncssh.SSHKey:
    key = asyncssh.generate_private_key(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(key.export_private_key(passphrase=passphrase))
    path.chmod(0o600)
    return key


@contextlib.contextmanager
def serving(folder: Path, options: str = "") -> Iterator[Sshd]:
    """An sshd with its files in the folder. ``options``: of its SFTP server."""
    program = need("sshd")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # where it locks a child in that has not logged in yet
    port = free_port()
    (folder / "sshd_config").write_text(_CONFIG.format(port=port, folder=folder, options=options))
    host_key = write_key(folder / "host_key")
    key = write_key(folder / "home" / ".ssh" / "id_ed25519")
    (folder / "authorized_keys").write_bytes(key.export_public_key())
    known = f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}"
    (folder / "home" / ".ssh" / "known_hosts").write_text(known)
    command = [program, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
    server = Sshd(folder, port, subprocess.Popen(command))
    try:
        end = time.monotonic() + 20
        while "Server listening" not in (server.log() if (folder / "log").exists() else ""):
            assert server.process.poll() is None and time.monotonic() < end, "sshd did not start"
            time.sleep(0.005)
        yield server
    finally:
        left = server.sessions()
        server.process.kill()
        server.process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
