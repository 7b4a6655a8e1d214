"""Somebody with an account on a real server and the command line at hand, and a tree of files to push."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.inside import Inside
from tests.support.commands import Commands, Done
from tests.support.server import Running

PASSWORD = "correct horse"
MIB = 1 << 20


def noise(size: int, seed: object = 1) -> bytes:
    return random.Random(f"{seed}").randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Visitor:
    """``call`` runs the command line inside this process, ``apart`` as one of its own; both know server and token."""

    folder: Path
    name: str
    token: str
    url: str

    @property
    def settings(self) -> dict[str, str]:
        return {"HOLDFAST_SERVER": self.url, "HOLDFAST_TOKEN": self.token}

    @property
    def call(self) -> Inside:
        return Inside(
            Path(), Path(), self.folder, {**self.settings, "HOLDFAST_REPOSITORY": "", "HOLDFAST_KEY_FILE": ""}
        )

    @property
    def apart(self) -> Commands:
        more = {**self.settings, "HOLDFAST_REPOSITORY": "", "HOLDFAST_KEY_FILE": ""}
        return Commands(Path(), Path(), self.folder, more)

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def push(self, *words: object, status: int = 0) -> dict[str, Any]:
        """Push the tree; its summary."""
        return summary(self.call("manifest", "push", self.tree, *words, "--json", status=status))

    def pull(self, *words: object, status: int = 0) -> dict[str, Any]:
        return summary(self.call("manifest", "pull", "tree", "--target", self.out, *words, "--json", status=status))


def summary(done: Done) -> dict[str, Any]:
    assert done.events[-1]["message_type"] == "summary", done.text
    return dict(done.events[-1])


def warnings(done: Done) -> list[str]:
    return [str(e["message"]) for e in done.events if e["message_type"] == "warning"]


def visitor(server: Running, name: str, folder: Path, url: str = "") -> Visitor:
    """A new account on the server, with a token for manifests and files."""
    with server.user(name, PASSWORD) as client:
        made = client.post("/accounts/tokens", json={"name": "tests", "scopes": ["files:read", "files:write"]})
        assert made.status_code == 201, made.text
    found = Visitor(folder, name, made.json()["token"], url or server.url)
    found.tree.mkdir()
    return found


def small_tree(root: Path) -> Path:
    """A bit of everything that a manifest holds."""
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "plain").write_bytes(noise(5000))
    (root / "nothing").write_bytes(b"")
    (root / "sub" / "Größe ✓\n").write_bytes(b"odd name")
    (root / "sub" / "twin").write_bytes(noise(5000))
    (root / "sub" / "deep" / "large").write_bytes(noise(3 * MIB))
    (root / "sub" / "link").symlink_to("../plain")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "sub" / "script").write_text("#!/bin/sh\n")
    for number, (path, is_folder) in enumerate(_entries(root)):
        if not path.is_symlink():
            os.chmod(path, 0o750 if is_folder else 0o640 + number % 2 * 0o100)
    os.chmod(root / "sub" / "script", 0o755)
    for number, (path, _) in enumerate(reversed(_entries(root))):
        os.utime(path, ns=(0, 981_173_106_789_012_000 + number * 1_000_001_000), follow_symlinks=False)
    return root


def _entries(root: Path) -> list[tuple[Path, bool]]:
    return [(p, p.is_dir() and not p.is_symlink()) for p in sorted(root.rglob("*"))]


def described(root: Path) -> dict[str, object]:
    """Everything of a tree that a manifest keeps, by path; times to the microsecond."""
    found: dict[str, object] = {}
    for path, is_folder in _entries(root):
        st = path.lstat()
        about: list[object] = [st.st_uid, st.st_gid, st.st_mtime_ns // 1000]
        if path.is_symlink():
            about.append(os.readlink(path))
        else:
            about.append(oct(st.st_mode))
            about.append("" if is_folder else sha256(path.read_bytes()))
        found[str(path.relative_to(root))] = about
    return found


def requests_of(server: Running, method: str, prefix: str) -> Iterator[dict[str, Any]]:
    """What the server's log says of requests."""
    for line in list(server.log):
        if not line.startswith("{"):  # what asyncio says of tasks whose client has gone
            continue
        told = json.loads(line)
        if told.get("method") == method and str(told.get("path", "")).startswith(prefix):
            yield told
