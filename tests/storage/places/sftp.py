"""SFTP servers: OpenSSH's, and rclone's, whose rename replaces what is there and which lets a password in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from holdfast.storage.select import Access
from tests.storage.places import Open, Place, at, fill_folder
from tests.support import rclone, sshd


def _openssh(request: pytest.FixtureRequest) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="holdfast-test-") as folder, sshd.serving(Path(folder)) as server:
        root = Path(folder) / "storage"
        place = at(server.address(root), server.access(), one_wins=True, filled=lambda names: fill_folder(root, names))
        yield place
        place.close()


def rclone_access(folder: Path, *options: str) -> tuple[asyncssh.SSHKey, list[str], Access]:
    """A host key for rclone's server, its options, and an access that lets the user ``somebody`` in by a password."""
    key = sshd.write_key(folder / "rclone_host_key", "ecdsa-sha2-nistp256")
    more = ["--key", str(folder / "rclone_host_key"), "--user", "somebody", "--pass", "secret password"]
    more += ["--dir-cache-time", "1ms", *options]  # what is put into its folder behind its back is seen
    return key, more, Access({"HOLDFAST_SFTP_PASSWORD": "secret password"}, folder / "home")


def _rclone(request: pytest.FixtureRequest) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="holdfast-test-") as name:
        folder = Path(name)
        key, options, access = rclone_access(folder)
        served = folder / "served"
        served.mkdir()
        with rclone.serving("sftp", served, *options) as port:
            known = folder / "home" / ".ssh" / "known_hosts"
            known.parent.mkdir(parents=True)
            known.write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}")
            address = f"sftp://somebody@127.0.0.1:{port}/repo"
            place = at(address, access, one_wins=False, filled=lambda names: fill_folder(served / "repo", names))
            yield place
            place.close()


PLACES: dict[str, Open] = {"sftp-openssh": _openssh, "sftp-rclone": _rclone}
