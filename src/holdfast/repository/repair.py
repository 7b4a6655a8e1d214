"""Mends what can be mended. Nothing that is whole is touched, nothing is deleted before its replacement is durable.

- ``repair_index`` writes the index anew from the packs' own tables.
- ``repair_packs`` copies what is whole out of damaged packs into new ones and removes the damaged.
- ``repair_snapshots`` replaces snapshots that refer to lost chunks by ones without the files that are affected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from holdfast.errors import Damaged, HoldfastError, StorageError
from holdfast.repository.check import damaged_chunks
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.crypto import object_digest
from holdfast.repository.format import KIND_TREE, Entry, Leaf, Node, PackRecord
from holdfast.repository.index import Index, chunks_of, load_index
from holdfast.repository.leases import EXCLUSIVE
from holdfast.repository.packs import pack_name, read_contents
from holdfast.repository.pages import TreeWriter, decode_page, join
from holdfast.repository.prune import put_index
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository, Session
from holdfast.repository.snapshots import Stored, put_snapshot
from holdfast.repository.writer import LARGE, TREE, ChunkWriter

REPAIRED = "repaired"
_MOST_LEVELS = 14
Tick = Callable[[str], None]


@dataclass
class Report:
    """What was mended, as sentences."""

    done: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def repair_index(repo: Repository, *, dry_run: bool, tick: Tick = lambda text: None) -> Report:
    """Write the index anew from the packs alone; index objects that cannot be read go."""
    report = Report()
    with repo.leases.hold_alone(EXCLUSIVE):
        stored = load_index(repo.storage, repo.secrets, contents=True)
        records: list[PackRecord] = []
        for info in list(repo.storage.list("data")):
            tick(f"reading {info.name[5:13]}")
            try:
                records.append(read_contents(repo.storage, repo.secrets, info.name, info.size))
            except (Damaged, StorageError) as e:
                known = stored.records.get(bytes.fromhex(info.name[5:]))
                if known is not None and known.size == info.size:
                    records.append(known)  # its table is damaged, the index still knows it: repair_packs may save it
                else:
                    report.lost.append(str(e))
        if not dry_run:
            put_index(repo, records, set(stored.objects))
            for name in sorted(stored.objects):
                repo.storage.delete(name)
    report.done.append(f"The index was written anew from {len(records)} packs.")
    return report


def repair_packs(repo: Repository, *, dry_run: bool, tick: Tick = lambda text: None) -> Report:
    """Read every pack; copy what is whole out of the damaged ones, index it, then remove them."""
    report = Report()
    with repo.leases.hold_alone(EXCLUSIVE):
        loaded = load_index(repo.storage, repo.secrets, contents=True)
        reader = ChunkReader(repo.storage, repo.secrets, loaded.index)
        writer = ChunkWriter(repo.storage, repo.secrets, loaded.index)
        removed: list[PackRecord] = []
        try:
            for record in list(loaded.index.packs):
                tick(f"reading {record.name.hex()[:8]}")
                if _rescue(repo, reader, writer, record, report):
                    removed.append(record)
            if removed and not dry_run:
                writer.flush()
        finally:
            writer.close()
        for name in loaded.unreadable:
            report.done.append(f"Removed {name}, which cannot be understood and is in no index.")
        if dry_run or not (removed or loaded.unreadable):
            return report
        gone = {r.name for r in removed}
        fresh = load_index(repo.storage, repo.secrets, contents=True)
        put_index(repo, [r for r in fresh.records.values() if r.name not in gone], set(fresh.objects))
        for name in [*sorted(fresh.objects), *(pack_name(r) for r in removed), *loaded.unreadable]:
            repo.storage.delete(name)
    return report


def _rescue(repo: Repository, reader: ChunkReader, writer: ChunkWriter, record: PackRecord, report: Report) -> bool:
    """Add the whole chunks of a damaged pack anew; whether it is damaged."""
    name = pack_name(record)
    try:
        data = repo.storage.get(name)
    except HoldfastError:
        data = b""
    if object_digest([data]) == record.name:
        return False
    bad = set(damaged_chunks(reader, record, data))
    saved = 0
    for chunk_id, where in chunks_of(record):
        if chunk_id not in bad:
            opened = reader.open_pack(record)
            offset, stored = opened.extent(where.block)
            raw = opened.open(where.block, data[offset : offset + stored])[2]
            stream = TREE if record.kind == KIND_TREE else LARGE
            writer.space(stream, where.length)[: where.length] = raw[where.offset : where.offset + where.length]
            writer.keep(stream, chunk_id, where.length)
            saved += 1
    report.done.append(f"Saved {saved} chunks out of the damaged pack {name}; {len(bad)} are lost.")
    return True


def repair_snapshots(repo: Repository, *, dry_run: bool, tick: Tick = lambda text: None) -> Report:
    """Replace each snapshot that refers to lost chunks by one without the files they are in, tagged ``repaired``."""
    report = Report()
    damaged: list[str] = []
    with repo.writing("repair") as session:
        for stored in repo.snapshots(damaged):
            tick(f"looking at {stored.short}")
            lost: list[bytes] = []
            root = _Mender(repo, session, lost).mend(stored)
            if not lost:
                continue
            report.lost += [f"{stored.short}:{path.decode(errors='replace')}" for path in lost]
            if dry_run:
                report.done.append(f"Snapshot {stored.short} would lose {len(lost)} entries.")
                continue
            session.writer.flush()
            new = _replace(repo, stored, root)
            report.done.append(f"Snapshot {stored.short} is now {new[:8]}, without {len(lost)} entries that are lost.")
    report.lost += damaged
    return report


def _replace(repo: Repository, stored: Stored, root: bytes) -> str:
    tags = [*(t for t in stored.snapshot.tags if t != REPAIRED), REPAIRED]
    original = stored.snapshot.original or stored.id
    snapshot = msgspec.structs.replace(stored.snapshot, root=root, tags=tags, original=original)
    new = put_snapshot(repo.storage, repo.secrets, snapshot)
    repo.storage.delete(f"snapshots/{stored.id}")
    return new


class _Mender:
    """Writes a snapshot's pages anew without what is lost."""

    def __init__(self, repo: Repository, session: Session, lost: list[bytes]) -> None:
        self._repo, self._session, self._lost = repo, session, lost
        self._index: Index = session.index
        self._reader = ChunkReader(repo.storage, repo.secrets, session.index)

    def mend(self, stored: Stored) -> bytes:
        users: dict[int, str] = {}
        groups: dict[int, str] = {}
        tree = TreeWriter(
            lambda page: self._session.writer.add(TREE, page),
            self._repo.secrets.cut_seed,
            lambda u: users.get(u, ""),
            lambda g: groups.get(g, ""),
        )
        for leaf in self._leaves(stored.snapshot.root, b"", _MOST_LEVELS):
            users.update(leaf.users)
            groups.update(leaf.groups)
            for directory, entries in leaf.runs:
                tree.add(directory, [e for e in entries if self._is_whole(directory, e)])
        return tree.finish()

    def _leaves(self, page: bytes, first: bytes, levels: int) -> Iterator[Leaf]:
        try:
            content: Leaf | Node = decode_page(self._reader.read(page), page)
        except HoldfastError:
            self._lost.append(first)
            return
        if isinstance(content, Leaf):
            yield content
        elif levels:
            for child in content.children:
                yield from self._leaves(child.page, join(child.directory, child.name), levels - 1)

    def _is_whole(self, directory: bytes, entry: Entry) -> bool:
        try:
            items = items_of(entry, self._reader.read) if entry.content else iter(())
            whole = all(item in self._index or hole_length(item) is not None for item in items)
        except HoldfastError:
            whole = False
        if not whole:
            self._lost.append(join(directory, entry.name))
        return whole
