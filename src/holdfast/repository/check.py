"""Verifies a repository and says exactly which files of which snapshots are affected by what it finds.

Always: every key, lock, index and snapshot object against its name and its seal; every pack that is named is there in
its size; every page of every snapshot is read and verified; every chunk that is referred to is in a pack. With
``read_data`` also every pack (or a part of them) is read: its bytes against its name, its table against the index,
every block, every chunk.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.errors import Damaged, HoldfastError, KeyCannotRead, ObjectMissing, StorageError
from holdfast.repository.contents import hole_length, split_items
from holdfast.repository.crypto import object_digest
from holdfast.repository.format import Leaf, Node, PackRecord
from holdfast.repository.index import Location, chunks_of, load_index
from holdfast.repository.keys import read_keys
from holdfast.repository.packs import BlockReader, pack_name, read_contents
from holdfast.repository.pages import decode_page, join
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import Stored, read_snapshot

_MOST_LEVELS = 14


@dataclass
class Finding:
    """Something that is wrong. ``object``: the object's name, empty when none is to blame."""

    object: str
    text: str


@dataclass(frozen=True)
class Affected:
    """A file (or, for a damaged page, everything in it) of a snapshot that cannot be restored as it was."""

    snapshot: str
    path: bytes
    reason: str


@dataclass
class Report:
    """Findings are errors; notes are not. The counts say what was looked at."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    affected: list[Affected] = field(default_factory=list)
    snapshots: int = 0
    packs: int = 0
    packs_read: int = 0
    chunks: int = 0
    bytes_read: int = 0
    damaged_packs: set[bytes] = field(default_factory=set)
    damaged_chunks: set[bytes] = field(default_factory=set)

    @property
    def good(self) -> bool:
        return not self.findings and not self.affected


def check(
    repo: Repository,
    *,
    read_data: float = 0.0,
    seed: int | None = None,
    tick: Callable[[str, int, int], None] = lambda what, done, expected: None,
) -> Report:
    """Check everything; ``read_data`` is the part of the packs to read, 0 to 1. ``tick`` hears (what, done,
    expected).
    """
    report = Report()
    with repo.leases.hold("check", needed=False):
        _Check(repo, report, tick).run(read_data, seed)
    return report


class _Check:
    def __init__(self, repo: Repository, report: Report, tick: Callable[[str, int, int], None]) -> None:
        self._repo, self._report, self._tick = repo, report, tick
        self._snapshots = self._read_snapshots()  # before the index: what is committed later may be unknown to it
        locks = repo.leases.survey()
        self._condemned = locks.condemned_packs()
        report.findings += [Finding(name, text) for name, text in locks.damaged.items()]
        self._loaded = load_index(
            repo.storage, repo.secrets, condemned=self._condemned, with_condemned=True, contents=True
        )
        self._index = self._loaded.index
        self._reader = ChunkReader(repo.storage, repo.secrets, self._index)
        self._pages: dict[bytes, bool] = {}  # page -> whether anything below it is damaged
        self._missing: set[bytes] = set()  # chunks that snapshots need and no pack holds
        numbers = (self._index.number_of(r.name) for r in self._loaded.adopted)
        self._adopted = {
            n for n in numbers if n is not None
        }  # where a chunk is found only when no index object knows it
        self._unindexed: set[int] = set()  # those of them that snapshots need

    def run(self, read_data: float, seed: int | None) -> None:
        self._keys()
        for name, text in sorted(self._loaded.damaged.items()):
            self._find(name, text)
        if read_data > 0:
            self._packs(read_data, seed)
        for number, stored in enumerate(self._snapshots):
            self._tick("snapshots", number, len(self._snapshots))
            if self._page(stored.snapshot.root, _MOST_LEVELS):
                self._name_affected(stored)
        self._absent_packs()
        self._report.chunks, self._report.packs = len(self._index), len(self._index.packs)

    def _find(self, name: str, text: str) -> None:
        self._report.findings.append(Finding(name, text))

    # -- objects ---------------------------------------------------------------------------------------------------

    def _keys(self) -> None:
        damaged: dict[str, str] = {}
        for _ in read_keys(self._repo.storage, damaged):
            pass
        for key_id, text in damaged.items():
            self._find(f"keys/{key_id}", f"{text} `holdfast key remove {key_id[:8]}` removes it.")

    def _absent_packs(self) -> None:
        """A pack that is gone is damage when something in it is needed and nowhere else."""
        loaded, unneeded, wanted = self._loaded, 0, self._missing | self._report.damaged_chunks
        for name in loaded.absent:
            if wanted.isdisjoint(i for i, _ in chunks_of(loaded.lost[bytes.fromhex(name[5:])])):
                unneeded += 1
            else:
                self._find(name, f"The pack {name} is missing or not of the size the index says.")
        for name, text in {**loaded.unreadable, **loaded.unread}.items():
            self._find(name, text)
        if unneeded:
            self._report.notes.append(f"{unneeded} packs are missing that nothing needs; the next prune forgets them.")
        for number in sorted(self._unindexed):  # the index is stored before the snapshot
            name = pack_name(self._index.packs[number])
            self._find(name, f"Snapshots need the pack {name}, and no index object names it: one is lost.")
        if orphans := len(self._adopted - self._unindexed):
            self._report.notes.append(f"{orphans} packs are of a backup that was cut off; the next one takes them in.")

    def _read_snapshots(self) -> list[Stored]:
        repo, found = self._repo, []
        for info in list(repo.storage.list("snapshots")):
            snapshot_id = info.name[10:]
            try:
                found.append(Stored(snapshot_id, read_snapshot(repo.storage, repo.secrets, snapshot_id)))
            except ObjectMissing:
                continue
            except (Damaged, StorageError) as e:
                self._find(info.name, str(e))
        self._report.snapshots = len(found)
        return sorted(found, key=lambda s: s.snapshot.time_ns)

    # -- packs -----------------------------------------------------------------------------------------------------

    def _packs(self, part: float, seed: int | None) -> None:
        packs = sorted(self._index.packs, key=lambda p: p.name)
        if part < 1:
            count = max(1, round(len(packs) * part)) if packs else 0
            packs = random.Random(seed).sample(packs, count)
        total, done = sum(p.size for p in packs), 0
        for record in packs:
            self._tick("packs", done, total)
            self._pack(record)
            done += record.size
        self._report.packs_read, self._report.bytes_read = len(packs), total

    def _pack(self, record: PackRecord) -> None:
        name = pack_name(record)
        try:
            data = self._repo.storage.get(name)
        except HoldfastError as e:
            if not (isinstance(e, ObjectMissing) and record.name in self._condemned):  # else it was swept meanwhile
                self._damaged_pack(record, str(e), [i for i, _ in chunks_of(record)])
            return
        if object_digest([data]) == record.name:
            self._table(record, name)
            text = f"The pack {name} holds what cannot be opened."  # bytes as they were written, but written wrong
        else:
            text = f"The pack {name} does not have the content its name says."
            self._damaged_pack(record, text, [])
        bad = damaged_chunks(self._reader, record, data)
        if bad:
            self._damaged_pack(record, text, bad)

    def _table(self, record: PackRecord, name: str) -> None:
        try:
            own = read_contents(self._repo.storage, self._repo.secrets, name, record.size)
        except HoldfastError as e:
            self._find(name, str(e))
            return
        if (own.ids, own.lengths, own.blocks, own.sealed) != (
            record.ids,
            record.lengths,
            record.blocks,
            record.sealed,
        ):
            self._find(name, f"The pack {name} and the index do not agree on what is in it.")

    def _damaged_pack(self, record: PackRecord, text: str, chunks: list[bytes]) -> None:
        name = pack_name(record)
        if record.name not in self._report.damaged_packs:
            self._find(name, text)
        self._report.damaged_packs.add(record.name)
        number = self._index.number_of(record.name)
        self._report.damaged_chunks.update(c for c in chunks if self._index.pack_of(c) == number)

    # -- snapshots -------------------------------------------------------------------------------------------------

    def _page(self, page: bytes, levels: int) -> bool:
        """Whether anything at or below a page is damaged; each page is read once."""
        known = self._pages.get(page)
        if known is None:
            known = self._pages[page] = self._look_at(page, levels)
        return known

    def _look_at(self, page: bytes, levels: int) -> bool:
        try:
            content = self._read_page(page, levels)
        except HoldfastError:
            return True
        if not isinstance(content, Leaf):
            below = [self._page(child.page, levels - 1) for child in content.children]  # all of them, not the first
            return any(below)
        entries = (e for _, entries in content.runs for e in entries if e.content)
        return any(self._why(e.content, e.depth) is not None for e in entries)

    def _read_page(self, page: bytes, levels: int) -> Leaf | Node:
        if levels == 0:
            raise Damaged("Pages are nested deeper than any tree goes.")
        if page in self._report.damaged_chunks:
            raise Damaged(f"The page {page.hex()[:16]} is in a damaged pack.")
        self._locate(page)
        return decode_page(self._reader.read(page), page)

    def _locate(self, chunk_id: bytes) -> bool:
        """Whether a chunk is in any pack."""
        pack = self._index.pack_of(chunk_id)
        if pack is None:
            self._missing.add(chunk_id)
        elif pack in self._adopted:
            self._unindexed.add(pack)
        return pack is not None

    def _why(self, content: bytes, depth: int) -> str | None:
        """What is wrong with a file's content; None when all its chunks are there and none is known to be damaged."""
        damaged, reason = self._report.damaged_chunks, None
        try:
            for item in split_items(content):
                if hole_length(item) is not None:
                    continue
                if not self._locate(item):
                    reason = reason or f"the chunk {item.hex()[:16]} is missing"
                elif item in damaged:
                    reason = reason or f"the chunk {item.hex()[:16]} is damaged"
                elif depth:
                    reason = self._why(self._reader.read(item), 0) or reason
        except HoldfastError as e:
            return reason or str(e)
        return reason

    def _name_affected(self, stored: Stored) -> None:
        self._name_below(stored, stored.snapshot.root, b"", _MOST_LEVELS)

    def _name_below(self, stored: Stored, page: bytes, first: bytes, levels: int) -> None:
        if not self._pages.get(page):
            return
        try:
            content = self._read_page(page, levels)
        except HoldfastError as e:
            self._report.affected.append(Affected(stored.id, first, f"entries from here on are lost: {e}"))
            return
        if isinstance(content, Leaf):
            for directory, entries in content.runs:
                for entry in entries:
                    if entry.content and (why := self._why(entry.content, entry.depth)):
                        self._report.affected.append(Affected(stored.id, join(directory, entry.name), why))
            return
        for child in content.children:
            self._name_below(stored, child.page, join(child.directory, child.name), levels - 1)


def damaged_chunks(reader: ChunkReader, record: PackRecord, data: bytes) -> list[bytes]:
    """The chunks of a pack, given its stored bytes, that do not verify."""
    try:
        opened: BlockReader = reader.open_pack(record)
    except KeyCannotRead:  # says nothing of the pack
        raise
    except HoldfastError:
        return [i for i, _ in chunks_of(record)]
    blocks: dict[int, list[tuple[bytes, Location]]] = {}
    for chunk_id, where in chunks_of(record):
        blocks.setdefault(where.block, []).append((chunk_id, where))
    bad = []
    for number, chunks in blocks.items():
        try:
            offset, stored = opened.extent(number)
            _, _, raw = opened.open(number, memoryview(data)[offset : offset + stored])
        except HoldfastError:
            bad += [i for i, _ in chunks]
            continue
        view = memoryview(raw)
        bad += [i for i, w in chunks if not reader.matches(view[w.offset : w.offset + w.length], i)]
    return bad
