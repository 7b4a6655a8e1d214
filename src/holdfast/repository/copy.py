"""Copies snapshots into another repository: no source file is read, nothing is compressed again.

Chunk ids are keyed by each repository, so every chunk is verified against its old id, hashed anew, and the pages are
written with the new ids. Blocks go over as they are packed when all of their chunks are wanted and new; otherwise their
chunks are added one by one. What is already there is not copied, so a copy that was cut off goes on where it was. A
snapshot that was copied before (``original``) is skipped.

Each snapshot is gone through twice: first its chunks are copied, WINDOW of them at a time so that memory is bounded and
blocks are still met whole; then its pages are written, for which every new id is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec
from borghash import HashTable

from holdfast.errors import Damaged, StorageDenied, StorageError, StorageUnavailable
from holdfast.repository.contents import ContentList, hole_length, items_of
from holdfast.repository.format import ID_SIZE, KIND_DATA, Entry, Snapshot, Totals
from holdfast.repository.index import PENDING, Index
from holdfast.repository.pages import Tree, TreeWriter
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository, Session
from holdfast.repository.snapshots import Stored
from holdfast.repository.writer import LARGE, SMALL, TREE
from holdfast.storage.parallel import answers

WINDOW = 1 << 18  # chunks whose blocks are gathered before any is copied


@dataclass
class Copied:
    """One snapshot: its id here, its id there, and whether it was there already."""

    source: Stored
    id: str
    skipped: bool


def copy_snapshots(
    source: Repository, target: Repository, chosen: Iterable[Stored], tick: Callable[[str], None] = lambda text: None
) -> list[Copied]:
    """Copy the chosen snapshots, oldest first; each is committed on its own."""
    source.secrets.need_private("copy snapshots")
    target.secrets.need_private("take copies in: it does not know what is there")
    there = {s.snapshot.original or s.id: s.id for s in target.snapshots()}
    result = []
    with source.reading("copy", contents=True) as reader, target.writing("copy") as session:
        copier = _Copier(source, target, reader, session)
        for stored in chosen:
            origin = stored.snapshot.original or stored.id
            if origin in there:
                result.append(Copied(stored, there[origin], skipped=True))
                continue
            tick(f"copying {stored.short}")
            there[origin] = copier.copy(stored, origin)
            result.append(Copied(stored, there[origin], skipped=False))
    return result


class _Copier:
    def __init__(self, source: Repository, target: Repository, reader: ChunkReader, session: Session) -> None:
        self._source, self._target, self._reader, self._session = source, target, reader, session
        self._ids = _IdMap()
        self._used: set[int] = set()

    def copy(self, stored: Stored, origin: str) -> str:
        """One snapshot with everything it needs; its id in the target."""
        session, before = self._session, self._session.writer.bytes_stored
        root = stored.snapshot.root
        try:
            self._copy_chunks(root)
            new_root = self._write_pages(root)
        except ValueError as e:  # of TreeWriter: entries that are not in order
            raise Damaged(f"The snapshot {stored.short} cannot be copied: {e}.") from None
        session.writer.flush()
        self._used |= session.writer.packs
        self._used.discard(PENDING)
        vanished = StorageUnavailable(f"Packs vanish from {self._target.storage.place}.", "Run the copy again.")
        if session.lost(self._used):
            raise vanished
        totals = msgspec.structs.replace(stored.snapshot.totals, bytes_stored=session.writer.bytes_stored - before)
        new = session.commit(_copied(stored.snapshot, new_root, origin, totals))
        if session.lost(self._used):
            self._target.storage.delete(f"snapshots/{new}")
            raise vanished
        return new

    # -- pages -----------------------------------------------------------------------------------------------------

    def _write_pages(self, root: bytes) -> bytes:
        """Write a tree with the new ids of its chunks; its new root."""
        users: dict[int, str] = {}
        groups: dict[int, str] = {}
        tree = TreeWriter(
            self._store, self._target.secrets.cut_seed, lambda u: users.get(u, ""), lambda g: groups.get(g, "")
        )
        for leaf in Tree(self._reader.read, root).leaves():
            users.update(leaf.users)
            groups.update(leaf.groups)
            for directory, entries in leaf.runs:
                tree.add(directory, [self._translated(e) for e in entries])
        return tree.finish()

    def _translated(self, entry: Entry) -> Entry:
        if not entry.content:
            return entry
        items = ContentList(self._store)
        for item in items_of(entry, self._reader.read):
            items.add(item if hole_length(item) is not None else self._note(self._ids[item]))
        content, depth = items.finish()
        return msgspec.structs.replace(entry, content=content, depth=depth)

    def _store(self, piece: bytes) -> bytes:
        """A page, or a piece of a long list."""
        return self._note(self._session.writer.add(TREE, piece))

    def _note(self, chunk_id: bytes) -> bytes:
        """Remember the pack this chunk is relied on to be in."""
        pack = self._session.index.pack_of(chunk_id)
        if pack is not None:
            self._used.add(pack)
        return chunk_id

    # -- chunks ----------------------------------------------------------------------------------------------------

    def _copy_chunks(self, root: bytes) -> None:
        """Make sure that every chunk below this root is in the target, and that its new id is known."""
        wanted: dict[tuple[int, int], set[bytes]] = {}
        count = 0
        for chunk_id in self._unknown_chunks(root):
            where = self._reader.locate(chunk_id)
            of_block = wanted.setdefault((where.pack, where.block), set())
            count += chunk_id not in of_block
            of_block.add(chunk_id)
            if count >= WINDOW:
                self._copy_blocks(wanted)
                wanted, count = {}, 0
        self._copy_blocks(wanted)

    def _unknown_chunks(self, root: bytes) -> Iterator[bytes]:
        """The chunks of every file below this root whose new ids are not known yet."""
        for _, entries in Tree(self._reader.read, root).runs():
            for entry in entries:
                for item in items_of(entry, self._reader.read) if entry.content else ():
                    if hole_length(item) is None and item not in self._ids:
                        yield item

    def _copy_blocks(self, wanted: dict[tuple[int, int], set[bytes]]) -> None:
        """Blocks in order; of a storage that is far away the next ones are asked for meanwhile."""
        reader, storage = self._reader, self._source.storage

        def get(where: tuple[int, int]) -> bytes:
            pack = reader.pack(where[0])
            return storage.get(pack.name, *pack.extent(where[1]))

        def size(where: tuple[int, int]) -> int:
            return reader.pack(where[0]).extent(where[1])[1]

        with contextlib.closing(answers(storage, sorted(wanted), get, size)) as blocks:
            for (pack, block), sealed in blocks:
                try:
                    content = sealed()
                except (StorageUnavailable, StorageDenied):
                    raise
                except StorageError:  # the pack is gone or cut short; its chunks may be elsewhere
                    self._copy_chunks_of(wanted[pack, block])
                    continue
                self._copy_block(pack, block, content, wanted[pack, block])

    def _copy_chunks_of(self, wanted: set[bytes]) -> None:
        writer, index = self._session.writer, self._session.index
        for chunk_id in wanted:
            content = self._reader.read(chunk_id)
            new_id = writer.chunk_id(content)
            self._add(new_id, memoryview(content), index)
            self._ids[chunk_id] = new_id

    def _copy_block(self, pack: int, block: int, sealed: bytes, wanted: set[bytes]) -> None:
        reader, writer, index = self._reader, self._session.writer, self._session.index
        codec, payload, raw = reader.pack(pack).open(block, sealed)
        chunks = reader.chunks_in(pack, block)
        parts = {i: reader.cut(i, where, raw) for i, where in chunks if i in wanted}
        ids = {i: writer.chunk_id(part) for i, part in parts.items()}
        new, lengths = [ids[i] for i, _ in chunks if i in ids], [where.length for _, where in chunks]
        whole = len(new) == len(chunks)
        if whole and not any(i in index for i in new) and len(set(new)) == len(new):
            writer.add_block(KIND_DATA, codec, payload, len(raw), new, lengths)
        else:
            for chunk_id, part in parts.items():
                self._add(ids[chunk_id], part, index)
        for old, new_id in ids.items():
            self._ids[old] = new_id

    def _add(self, new_id: bytes, part: memoryview, index: Index) -> None:
        if new_id in index:
            return
        writer, length = self._session.writer, len(part)
        stream = SMALL if length <= SMALL.target // 16 else LARGE
        writer.space(stream, length)[:length] = part
        writer.keep(stream, new_id, length)


class _IdMap:
    """Old chunk id -> new one, compactly."""

    def __init__(self) -> None:
        self._table = HashTable(key_size=ID_SIZE, value_size=ID_SIZE)

    def __contains__(self, chunk_id: bytes) -> bool:
        return chunk_id in self._table

    def __getitem__(self, chunk_id: bytes) -> bytes:
        found: bytes = self._table[chunk_id]
        return found

    def __setitem__(self, chunk_id: bytes, new: bytes) -> None:
        self._table[chunk_id] = new


def _copied(snapshot: Snapshot, root: bytes, origin: str, totals: Totals) -> Snapshot:
    """The snapshot as it stands in the target. Its parent is of the source, so it has none here."""
    return msgspec.structs.replace(snapshot, root=root, original=origin, parent="", totals=totals)
