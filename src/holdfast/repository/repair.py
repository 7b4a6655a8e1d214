"""Mends what can be mended. Nothing that is whole is touched, nothing is deleted before its replacement is durable.

- ``repair_index`` writes the index anew from the packs' own tables, and removes damaged lock objects.
- ``repair_packs`` copies what is whole out of damaged packs into new ones and removes the damaged.
- ``repair_snapshots`` replaces snapshots that refer to lost chunks by ones without the files that are affected, and
  removes snapshot objects that no key will ever open again.

A storage that does not answer is not damage: what cannot be read just now is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import msgspec

from holdfast.errors import Damaged, HoldfastError, ObjectMissing, StorageDenied, StorageError, StorageUnavailable
from holdfast.repository.check import damaged_chunks
from holdfast.repository.contents import hole_length, items_of, split_items
from holdfast.repository.crypto import object_digest
from holdfast.repository.format import KIND_TREE, PACK_MAX, SEALED_MAGIC, Entry, Leaf, Node, PackRecord
from holdfast.repository.index import PENDING, Index, chunks_of, load_index
from holdfast.repository.leases import EXCLUSIVE, Hold
from holdfast.repository.packs import BlockReader, pack_name, read_contents
from holdfast.repository.pages import TreeWriter, decode_page, join
from holdfast.repository.prune import put_index
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository, Session
from holdfast.repository.snapshots import SHORT, Stored, put_snapshot, read_snapshot
from holdfast.repository.writer import LARGE, TREE, ChunkWriter
from holdfast.storage.base import Storage, check_range

REPAIRED = "repaired"
_MOST_LEVELS = 14
Tick = Callable[[str], None]


@dataclass
class Report:
    """What was mended, as sentences."""

    done: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


# -- the index and the locks -------------------------------------------------------------------------------------------


def repair_index(repo: Repository, *, dry_run: bool, tick: Tick = lambda text: None) -> Report:
    """Write the index anew from the packs alone; index objects that cannot be read go. Of a pack whose own table is
    damaged the index keeps what it knew: ``repair_packs`` may save it.
    """
    report = Report()
    with repo.leases.hold_alone(EXCLUSIVE) as hold:
        _remove_damaged_locks(repo, report, dry_run)
        stored = load_index(repo.storage, repo.secrets, contents=True)
        known = {**stored.records, **stored.lost}
        records: list[PackRecord] = []
        for info in list(repo.storage.list("data")):
            tick(f"reading {info.name[5:13]}")
            try:
                records.append(read_contents(repo.storage, repo.secrets, info.name, info.size))
            except ObjectMissing:
                continue
            except (StorageUnavailable, StorageDenied):
                raise
            except (Damaged, StorageError) as e:
                report.lost.append(str(e))
                if (old := known.get(bytes.fromhex(info.name[5:]))) is not None:
                    records.append(old)
        present = {r.name for r in records}
        report.lost += [f"The pack {pack_name(r)} is not there." for n, r in stored.lost.items() if n not in present]
        if not dry_run:
            hold.need()
            put_index(repo, records, set(stored.objects))
            for name in sorted(stored.objects):
                repo.storage.delete(name)
    report.done.append(f"The index {_was(dry_run, 'written')} anew from {len(records)} packs.")
    return report


def _remove_damaged_locks(repo: Repository, report: Report, dry_run: bool) -> None:
    for name in repo.leases.survey().damaged:
        if not dry_run:
            repo.storage.delete(name)
        report.done.append(f"The damaged lock object {name} {_was(dry_run, 'removed')}.")


def _was(dry_run: bool, done: str) -> str:
    return f"would be {done}" if dry_run else f"was {done}"


# -- packs -------------------------------------------------------------------------------------------------------------


def repair_packs(repo: Repository, *, dry_run: bool, tick: Tick = lambda text: None) -> Report:
    """Read every pack; copy what is whole out of the damaged ones, index it, then remove them. A pack that this key
    cannot open, or that cannot be understood though its bytes are those that were stored, is left alone.
    """
    repo.secrets.need_private("repair packs")
    report = Report()
    with repo.leases.hold_alone(EXCLUSIVE) as hold:
        loaded = load_index(repo.storage, repo.secrets, contents=True)
        writer = ChunkWriter(repo.storage, repo.secrets, loaded.index)
        rescue = _Rescue(repo, ChunkReader(repo.storage, repo.secrets, loaded.index), writer, report, dry_run)
        try:
            for record in [*loaded.records.values(), *loaded.lost.values()]:
                tick(f"reading {record.name.hex()[:8]}")
                rescue.look_at(record)
            if not dry_run:
                writer.flush()
        finally:
            writer.close()
        rubbish = [name for name in loaded.unreadable if _is_broken(repo, name, report)]
        for name in rubbish:
            report.done.append(f"{name}, which is broken and in no index, {_was(dry_run, 'removed')}.")
        if not dry_run and (rescue.removed or loaded.lost or rubbish):
            _remove_packs(repo, hold, rescue.removed, rubbish)
    return report


def _is_broken(repo: Repository, name: str, report: Report) -> bool:
    """Whether a pack that cannot be understood is not even what was stored; else a newer Holdfast may understand it."""
    try:
        size = repo.storage.stat(name).size
        if size <= PACK_MAX and object_digest([repo.storage.get(name, 0, size)]).hex() != name[5:]:
            return True
    except StorageError as e:
        report.lost.append(f"{name} cannot be read just now and was left alone: {e}")
        return False
    report.lost.append(f"{name} cannot be understood, but is what was stored; it was left alone.")
    return False


def _remove_packs(repo: Repository, hold: Hold, removed: list[PackRecord], unreadable: list[str]) -> None:
    """Out of the index first, then out of the storage."""
    gone = {r.name for r in removed}
    fresh = load_index(repo.storage, repo.secrets, contents=True)
    hold.need()
    put_index(repo, [r for r in fresh.records.values() if r.name not in gone], set(fresh.objects))
    for name in [*sorted(fresh.objects), *(pack_name(r) for r in removed), *unreadable]:
        hold.need()
        repo.storage.delete(name)


@dataclass
class _Rescue:
    """Finds damaged packs and adds what is whole in them anew."""

    repo: Repository
    reader: ChunkReader
    writer: ChunkWriter
    report: Report
    dry_run: bool
    removed: list[PackRecord] = field(default_factory=list)
    saved: set[bytes] = field(default_factory=set)

    def look_at(self, record: PackRecord) -> None:
        storage, name = self.repo.storage, pack_name(record)
        if not self.repo.secrets.has_epoch(record.epoch):
            self.report.lost.append(f"The pack {name} is sealed to a key epoch that this key does not hold.")
            return
        try:
            data = storage.get(name, 0, min(storage.stat(name).size, PACK_MAX))
        except ObjectMissing:
            self.report.lost.append(f"The pack {name} is not there.")
            return
        except StorageError as e:
            self.report.lost.append(f"The pack {name} cannot be read just now and was left alone: {e}")
            return
        lost = set(damaged_chunks(self.reader, record, data))
        if object_digest([data]) == record.name and not lost:
            return
        before = len(self.saved)
        self._save(record, data, lost)
        if (own := self._own_table(name, data)) is not None and own.ids != record.ids:  # another pack's content
            self._save(own, data, set(damaged_chunks(self.reader, own, data)))
        self.removed.append(record)
        self.report.done.append(
            f"{len(self.saved) - before} chunks {_was(self.dry_run, 'saved')} out of the damaged pack {name}; "
            f"{len(lost - self.saved)} are lost."
        )

    def _own_table(self, name: str, data: bytes) -> PackRecord | None:
        try:
            return read_contents(cast(Storage, _Bytes(data)), self.repo.secrets, name, len(data))
        except HoldfastError:
            return None

    def _save(self, record: PackRecord, data: bytes, lost: set[bytes]) -> None:
        wanted: dict[int, list[tuple[bytes, int, int]]] = {}
        for chunk_id, where in chunks_of(record):
            if chunk_id not in lost and chunk_id not in self.saved:
                wanted.setdefault(where.block, []).append((chunk_id, where.offset, where.length))
                self.saved.add(chunk_id)
        if self.dry_run or not wanted:
            return
        opened: BlockReader = self.reader.open_pack(record)
        stream = TREE if record.kind == KIND_TREE else LARGE
        for block, chunks in wanted.items():
            offset, stored = opened.extent(block)
            raw = opened.open(block, memoryview(data)[offset : offset + stored])[2]
            for chunk_id, at, length in chunks:
                self.writer.space(stream, length)[:length] = raw[at : at + length]
                self.writer.keep(stream, chunk_id, length)


class _Bytes:
    """A pack's bytes as something to read a table of contents from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        end = len(self._data) if length is None else start + length
        if end > len(self._data):
            raise StorageError(f"{name} is truncated.")
        return self._data[start:end]


# -- snapshots ---------------------------------------------------------------------------------------------------------


def repair_snapshots(repo: Repository, *, dry_run: bool, tick: Tick = lambda text: None) -> Report:
    """Replace each snapshot that refers to lost chunks by one without the files they are in, tagged ``repaired``."""
    report = Report()
    with repo.leases.hold("repair"):  # before snapshots are read, and those before the index: then it knows all chunks
        snapshots = _readable_snapshots(repo, report, dry_run)
        with repo.writing("repair") as session:
            for stored in snapshots:
                tick(f"looking at {stored.short}")
                _mend(repo, session, stored, report, dry_run)
    return report


def _readable_snapshots(repo: Repository, report: Report, dry_run: bool) -> list[Stored]:
    """Those that can be read; what never will be again is removed."""
    found = []
    for name in [info.name for info in repo.storage.list("snapshots")]:
        try:
            found.append(Stored(name[10:], read_snapshot(repo.storage, repo.secrets, name[10:])))
        except ObjectMissing:
            continue
        except Damaged as e:
            report.lost.append(str(e))
            if _is_rubbish(repo, name):
                if not dry_run:
                    repo.storage.delete(name)
                report.done.append(f"{name}, which is no snapshot any more, {_was(dry_run, 'removed')}.")
    return sorted(found, key=lambda s: (s.snapshot.time_ns, s.id))


def _is_rubbish(repo: Repository, name: str) -> bool:
    """Whether the bytes are not those that were stored, or are sealed to a key of this repository and yet do not open.
    One that names a key epoch unknown here may be good: another full key may know it.
    """
    data = repo.storage.get(name)
    if object_digest([data]).hex() != name[10:]:
        return True
    known = {SEALED_MAGIC + epoch.number.to_bytes(4, "big") for epoch in repo.secrets.bundle.epochs}
    return data[: len(SEALED_MAGIC) + 4] in known


def _mend(repo: Repository, session: Session, stored: Stored, report: Report, dry_run: bool) -> None:
    mender = _Mender(repo, session)
    try:
        root = mender.mend(stored)
    except ValueError as e:  # of TreeWriter: entries that are not in order
        report.lost.append(f"{stored.short}: it cannot be mended: {e}")
        return
    if not mender.lost:
        return
    report.lost += [f"{stored.short}:{path.decode(errors='replace')}" for path in mender.lost]
    if dry_run:
        report.done.append(f"Snapshot {stored.short} would lose {len(mender.lost)} entries.")
        return
    session.writer.flush()
    new = _replace(repo, session, stored, root, mender.used | session.writer.packs)
    report.done.append(
        f"Snapshot {stored.short} is now {new[:SHORT]}, without {len(mender.lost)} entries that are lost."
    )


def _replace(repo: Repository, session: Session, stored: Stored, root: bytes, used: set[int]) -> str:
    """Put the mended snapshot, see that all of it is there, and only then delete the old one; the new id."""
    tags = [*(t for t in stored.snapshot.tags if t != REPAIRED), REPAIRED]
    original = stored.snapshot.original or stored.id
    new = put_snapshot(
        repo.storage, repo.secrets, msgspec.structs.replace(stored.snapshot, root=root, tags=tags, original=original)
    )
    if session.lost(used - {PENDING}):
        repo.storage.delete(f"snapshots/{new}")
        raise StorageUnavailable(f"Packs vanish from {repo.storage.place} meanwhile.", "Run the repair again.")
    repo.storage.delete(f"snapshots/{stored.id}")
    return new


class _Mender:
    """Writes a snapshot's pages anew without what is lost. ``used``: the packs that the new pages rely on."""

    def __init__(self, repo: Repository, session: Session) -> None:
        self._repo, self._session = repo, session
        self._index: Index = session.index
        self._reader = ChunkReader(repo.storage, repo.secrets, session.index)
        self.lost: list[bytes] = []
        self.used: set[int] = set()

    def mend(self, stored: Stored) -> bytes:
        users: dict[int, str] = {}
        groups: dict[int, str] = {}
        tree = TreeWriter(
            self._store, self._repo.secrets.cut_seed, lambda u: users.get(u, ""), lambda g: groups.get(g, "")
        )
        for leaf in self._leaves(stored.snapshot.root, b"", _MOST_LEVELS):
            users.update(leaf.users)
            groups.update(leaf.groups)
            for directory, entries in leaf.runs:
                tree.add(directory, [e for e in entries if self._is_whole(directory, e)])
        return tree.finish()

    def _store(self, page: bytes) -> bytes:
        page_id = self._session.writer.add(TREE, page)
        self._use(page_id)
        return page_id

    def _use(self, chunk_id: bytes) -> bool:
        pack = self._index.pack_of(chunk_id)
        if pack is None:
            return False
        self.used.add(pack)
        return True

    def _leaves(self, page: bytes, first: bytes, levels: int) -> Iterator[Leaf]:
        try:
            content: Leaf | Node = decode_page(self._reader.read(page), page)
        except (StorageUnavailable, StorageDenied):
            raise
        except HoldfastError:
            self.lost.append(first)
            return
        if isinstance(content, Leaf):
            yield content
        elif levels:
            for child in content.children:
                yield from self._leaves(child.page, join(child.directory, child.name), levels - 1)

    def _is_whole(self, directory: bytes, entry: Entry) -> bool:
        try:
            items = items_of(entry, self._reader.read) if entry.content else iter(())
            whole = all(hole_length(item) is not None or self._use(item) for item in items)
            if entry.depth:
                whole = whole and all(self._use(piece) for piece in split_items(entry.content))
        except (StorageUnavailable, StorageDenied):
            raise
        except HoldfastError:
            whole = False
        if not whole:
            self.lost.append(join(directory, entry.name))
        return whole
