"""What the tests of the repository work with: repositories made in a moment, snapshots of trees that are dictionaries.

``store`` writes a tree the way a backup does, without files on a disk; ``read_back`` reads it the way a restore does.
Nothing here looks into an object: what is stored is made and read by the code under test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.repository.chunking import Cutter
from holdfast.repository.contents import ContentList, hole_length, items_of
from holdfast.repository.crypto import Secrets
from holdfast.repository.format import Argon2, Chunker, Entry, Lease, Snapshot, Totals
from holdfast.repository.keys import KeyFile, without_private
from holdfast.repository.leases import Owner
from holdfast.repository.pages import Tree, TreeWriter, join, sort_key, split
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository, Session, create
from holdfast.repository.writer import LARGE, SMALL, TREE
from holdfast.storage.base import FOLDERS, Storage
from tests.support.storages import MemoryStorage

KEY = KeyFile(bytes(range(32)))
QUICK = Argon2(passes=1, memory=8, lanes=1)
FINE = Chunker(min_size=256, avg_size=1024, max_size=4096)
SECOND = 1_000_000_000
HOUR = 3600 * SECOND
START = 1_700_000_000 * SECOND
Files = Mapping[bytes, bytes]


@dataclass
class Clock:
    """A clock that moves a little whenever it is looked at, and as far as a test wants."""

    at_ns: int = START

    def __call__(self) -> int:
        self.at_ns += SECOND
        return self.at_ns


def an_owner(host: str = "here", process: str = "1/100/1", dead: Iterable[str] = ()) -> Owner:
    """``dead``: processes that are known to have ended; looked at whenever it is asked."""

    def ended(lease: Lease) -> bool:
        return lease.process in dead

    return Owner(host, "somebody", process, "this boot", ended)


def new_repository(
    storage: Storage | None = None, credential: KeyFile = KEY, chunker: Chunker = FINE, clock: Clock | None = None
) -> Repository:
    return create(storage or MemoryStorage(), credential, an_owner(), clock or Clock(), chunker=chunker)


def memory(repo: Repository) -> MemoryStorage:
    """The storage behind, where a test knows that it is one in memory."""
    assert isinstance(repo.storage, MemoryStorage)
    return repo.storage


def through(repo: Repository, storage: Storage, owner: Owner | None = None) -> Repository:
    """The same repository seen through another storage, or by somebody else."""
    return replace(repo, storage=storage, owner=owner or repo.owner)


def write_only(repo: Repository) -> Repository:
    """The same repository opened with a write-only key."""
    return replace(repo, secrets=Secrets(without_private(repo.secrets.bundle)))


def some_bytes(seed: object, size: int) -> bytes:
    """Bytes that do not shrink, the same for the same seed."""
    return random.Random(str(seed)).randbytes(size)


# -- a tree in, a tree out ---------------------------------------------------------------------------------------------


def store(repo: Repository, files: Files, **about: Any) -> str:
    """Back a tree up; the snapshot's id. Folders are made as paths need them. ``about``: as of ``a_snapshot``."""
    with repo.writing() as session:
        return session.commit(a_snapshot(repo, write_tree(session, files), **about))


def a_snapshot(
    repo: Repository, root: bytes, *, host: str = "here", tags: Iterable[str] = (), name: bytes = b"/tree"
) -> Snapshot:
    return Snapshot(
        time_ns=repo.now_ns(), host=host, user="me", base=name, paths=[name], tags=[*tags], root=root, totals=Totals()
    )


def write_tree(session: Session, files: Files) -> bytes:
    """Chunks and pages of a tree; the root's id."""
    writer = session.writer
    tree = TreeWriter(
        lambda page: writer.add(TREE, page),
        session.repository.secrets.cut_seed,
        lambda uid: f"user {uid}",
        lambda gid: "",
    )
    cutter = Cutter(session.repository.config.chunker)
    for directory, entries in runs_of(files, lambda content: keep(session, cutter, content)):
        tree.add(directory, entries)
    return tree.finish()


def keep(session: Session, cutter: Cutter, content: bytes) -> tuple[bytes, int]:
    """A file's content as chunks: what stands in its entry."""
    items = ContentList(lambda piece: session.writer.add(TREE, piece))
    for chunk in cutter.cut(reading(content)):
        items.add(session.writer.add(SMALL if len(content) < 1 << 18 else LARGE, chunk))
    return items.finish()


def reading(content: bytes, sizes: Callable[[int], int] = lambda free: free) -> Callable[[memoryview], int]:
    """A ``read_into`` that gives content in pieces as large as ``sizes`` says of the room there is."""
    at = 0

    def read_into(view: memoryview) -> int:
        nonlocal at
        part = content[at : at + max(1, min(sizes(len(view)), len(view)))]
        view[: len(part)] = part
        at += len(part)
        return len(part)

    return read_into


def runs_of(files: Files, content_of: Callable[[bytes], tuple[bytes, int]]) -> list[tuple[bytes, list[Entry]]]:
    """Runs as a scan gives them: every folder of every path, sorted."""
    folders = {b""}
    for path in files:
        while path:
            path = split(path)[0]
            folders.add(path)
    found: dict[bytes, list[Entry]] = {}
    for path in sorted({*folders, *files}, key=lambda p: sort_key(*split(p))):
        directory, name = split(path)
        if path in files:
            content, depth = content_of(files[path])
            entry = Entry(name, "f", 0o644, 7, 8, 1, 2, 3, len(files[path]), content, depth)
        else:
            entry = Entry(name, "d", 0o755, 7, 8, 1, 2, 3)
        found.setdefault(directory, []).append(entry)
    return [(d, found[d]) for d in sorted(found, key=lambda d: sort_key(d, b""))]


def read_back(repo: Repository, snapshot_id: str, reader: ChunkReader | None = None) -> dict[bytes, bytes]:
    """Every file of a snapshot, verified; Damaged when a byte of it cannot be had."""
    found = {}
    for path, content in each_file(repo, snapshot_id, reader):
        if isinstance(content, HoldfastError):
            raise content
        found[path] = content
    return found


def what_is_left(repo: Repository, snapshot_id: str) -> tuple[dict[bytes, bytes], set[bytes]]:
    """What can still be had of a snapshot, and the paths of files that cannot. Raises when its pages cannot be read."""
    whole, lost = {}, set()
    for path, content in each_file(repo, snapshot_id, None):
        if isinstance(content, HoldfastError):
            lost.add(path)
        else:
            whole[path] = content
    return whole, lost


def each_file(
    repo: Repository, snapshot_id: str, reader: ChunkReader | None
) -> Iterable[tuple[bytes, bytes | HoldfastError]]:
    stored = next(s for s in repo.snapshots(damaged=[]) if s.id == snapshot_id)
    reader = reader or repo.reader()
    for directory, entries in Tree(reader.read, stored.snapshot.root).runs():
        for entry in entries:
            if entry.kind == "f":
                try:
                    yield join(directory, entry.name), content_of(reader, entry)
                except HoldfastError as e:
                    yield join(directory, entry.name), e


def content_of(reader: ChunkReader, entry: Entry) -> bytes:
    parts = []
    for item in items_of(entry, reader.read):
        length = hole_length(item)
        parts.append(reader.read(item) if length is None else bytes(length))
    return b"".join(parts)


def names(storage: Storage, folder: str) -> list[str]:
    """Every object of a folder, sorted."""
    return sorted(info.name for info in storage.list(folder))


def everything(storage: Storage) -> list[str]:
    """Every object but the config."""
    return [name for folder in FOLDERS for name in names(storage, folder)]
