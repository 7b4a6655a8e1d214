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

from holdfast.errors import Damaged, HoldfastError, ObjectMissing, StorageError
from holdfast.repository.contents import hole_length, split_items
from holdfast.repository.crypto import object_digest
from holdfast.repository.format import Leaf, Node, PackRecord
from holdfast.repository.index import Location, chunks_of, load_index, read_index_object
from holdfast.repository.keys import read_key
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
        locks = repo.leases.survey()
        report.findings += [Finding("", text) for text in locks.damaged]
        self._loaded = load_index(
            repo.storage, repo.secrets, condemned=locks.condemned_packs(), with_condemned=True, contents=True
        )
        self._index = self._loaded.index
        self._reader = ChunkReader(repo.storage, repo.secrets, self._index)
        self._pages: dict[bytes, bool] = {}  # page -> whether anything below it is damaged

    def run(self, read_data: float, seed: int | None) -> None:
        self._keys()
        self._index_objects()
        if read_data > 0:
            self._packs(read_data, seed)
        snapshots = self._snapshots()
        for number, stored in enumerate(snapshots):
            self._tick("snapshots", number, len(snapshots))
            if self._page(stored.snapshot.root, _MOST_LEVELS):
                self._name_affected(stored)
        self._report.chunks, self._report.packs = len(self._index), len(self._index.packs)

    def _find(self, name: str, text: str) -> None:
        self._report.findings.append(Finding(name, text))

    # -- objects ---------------------------------------------------------------------------------------------------

    def _keys(self) -> None:
        for info in list(self._repo.storage.list("keys")):
            try:
                read_key(self._repo.storage, info.name)
            except ObjectMissing:
                continue
            except HoldfastError as e:
                self._find(info.name, str(e))

    def _index_objects(self) -> None:
        loaded = self._loaded
        for name in sorted(loaded.objects):
            try:
                read_index_object(self._repo.storage, self._repo.secrets, name)
            except ObjectMissing:
                continue
            except HoldfastError as e:
                self._find(name, str(e))
        for name in loaded.absent:
            self._find(name, f"The pack {name} is missing or not of the size the index says.")
        for name, text in loaded.unreadable.items():
            self._find(name, text)
        if loaded.adopted:
            self._report.notes.append(
                f"{len(loaded.adopted)} packs are in no index object yet; the next backup or prune takes them in."
            )

    def _snapshots(self) -> list[Stored]:
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
        if (own.ids, own.places, own.blocks, own.sealed) != (record.ids, record.places, record.blocks, record.sealed):
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
        return decode_page(self._reader.read(page), page)

    def _why(self, content: bytes, depth: int) -> str | None:
        """What is wrong with a file's content, None when all of its chunks are there and none is known to be damaged."""
        try:
            for item in split_items(content):
                if hole_length(item) is not None:
                    continue
                if item not in self._index:
                    return f"the chunk {item.hex()[:16]} is missing"
                if item in self._report.damaged_chunks:
                    return f"the chunk {item.hex()[:16]} is damaged"
                if depth and (inner := self._why(self._reader.read(item), 0)):
                    return inner
        except HoldfastError as e:
            return str(e)
        return None

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
