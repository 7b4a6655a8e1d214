"""The self-test: a small tree through the whole of the program, and a planted fault that must be found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast.archive import backup, restore
from holdfast.errors import Damaged, HoldfastError
from holdfast.repository.check import check
from holdfast.repository.keys import Password
from holdfast.repository.leases import Owner
from holdfast.repository.prune import Request as PruneRequest
from holdfast.repository.prune import prune
from holdfast.repository.repository import create, open_repository
from holdfast.storage.local import LocalStorage


def run(folder: str, password: str, owner: Owner, now_ns: Callable[[], int]) -> Iterator[str]:
    """Yields what worked, step by step; HoldfastError says what did not."""
    source, out, place = Path(folder, "source"), Path(folder, "out"), Path(folder, "repository")
    _make_tree(source)
    storage = LocalStorage(place)
    storage.create()
    create(storage, Password(password), owner, now_ns)
    repo = open_repository(storage, Password(password), owner, now_ns)
    yield "a repository is made, and opens with its password"
    request = backup.Request(paths=(os.fsencode(source),))
    first = backup.back_up(repo, request)
    again = backup.back_up(repo, request)
    _demand(not first.troubles and again.snapshot.root == first.snapshot.root, "Two backups of one tree differ.")
    yield "a tree is backed up, and an unchanged one costs nothing"
    with repo.reading() as reader:
        done = restore.restore(reader, first.snapshot.root, restore.Request(os.fsencode(out), verify=True))
    _demand(not done.troubles and _content(source) == _content(out), "The restored tree is not the one backed up.")
    yield "it is restored, read back and equal"
    storage.delete(f"snapshots/{first.snapshot_id}")
    prune(repo, PruneRequest(now=True))
    _demand(check(repo, read_data=1).good, "The check found damage after a prune.")
    yield "old snapshots are pruned, and every stored byte is verified"
    pack = max(storage.list("data"), key=lambda info: info.size)
    _flip(place / "data" / pack.name[5:7] / pack.name[5:], pack.size // 2)
    _demand(not check(repo, read_data=1).good, "A flipped bit in a pack was not found.")
    yield "a flipped bit is found"


def _demand(condition: bool, sentence: str) -> None:
    if not condition:
        raise Damaged(sentence, "Do not trust backups made here; check memory and disk, and report it.")


def _make_tree(root: Path) -> None:
    (root / "folder" / "deeper").mkdir(parents=True)
    (root / "empty").touch()
    for i in range(50):
        (root / "folder" / f"file-{i}").write_bytes(os.urandom(16) * (i * 37))
    (root / "folder" / "deeper" / "large").write_bytes(os.urandom(3 << 20) + bytes(1 << 20))
    (root / "link").symlink_to("folder/file-7")
    os.link(root / "folder" / "file-7", root / "hard link")


def _content(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in root.rglob("*"):
        st = path.lstat()
        data = (
            path.read_bytes()
            if path.is_file() and not path.is_symlink()
            else os.fsencode(os.readlink(path))
            if path.is_symlink()
            else b""
        )
        found[str(path.relative_to(root))] = (st.st_mode, st.st_mtime_ns, data)
    return found


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)
        if not byte:
            raise HoldfastError("The pack to plant a fault in is empty.")
        f.seek(at)
        f.write(bytes([byte[0] ^ 1]))
