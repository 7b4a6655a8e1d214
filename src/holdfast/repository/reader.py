"""Chunks out of packs, verified: a block is authenticated, a chunk is hashed again, and only then is it given back.

A few unpacked blocks are kept (``BLOCK_CACHE`` raw bytes unless told), because neighbours in a directory are neighbours
in a block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from holdfast.errors import Damaged, StorageDenied, StorageError, StorageUnavailable
from holdfast.repository.crypto import Secrets
from holdfast.repository.format import KIND_TREE, PackRecord
from holdfast.repository.index import Index, Loaded, Location, chunks_of
from holdfast.repository.packs import BlockReader, pack_name
from holdfast.storage.base import Storage
from holdfast.storage.caching import pages_of

BLOCK_CACHE = 40 << 20


class ChunkReader:
    """Reads chunks by id. Safe to share between threads. ``cache``: raw bytes of blocks that it keeps.

    ``survey``: given where the index was believed without a look at what is in storage. It loads the index again, with
    contents and with that look, and is asked once, when a chunk is in no pack or a pack is not there.
    """

    def __init__(
        self,
        storage: Storage,
        secrets: Secrets,
        index: Index,
        *,
        cache: int = BLOCK_CACHE,
        survey: Callable[[], Loaded] | None = None,
    ) -> None:
        self.storage, self._secrets, self._index, self._cache, self._survey = storage, secrets, index, cache, survey
        self._pages = pages_of(storage)
        self._hash = secrets.chunk_hasher()
        self._packs: dict[int, BlockReader] = {}
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._held = 0
        self._contents: dict[int, dict[int, list[tuple[bytes, Location]]]] = {}
        self._seen: Loaded | None = None
        self._lock, self._survey_lock = threading.Lock(), threading.Lock()

    def locate(self, chunk_id: bytes) -> Location:
        """Where the chunk lies; Damaged when nothing knows it."""
        location = self._index.find(chunk_id)
        if location is None and (seen := self._surveyed()) is not None:
            location = self._index.find(chunk_id) if seen.index.find(chunk_id) else None
        if location is None:
            raise Damaged(
                f"The chunk {chunk_id.hex()[:16]} is in no pack.", "Run `holdfast check`, then `holdfast repair`."
            )
        return location

    def length(self, chunk_id: bytes) -> int:
        return self.locate(chunk_id).length

    def read(self, chunk_id: bytes) -> bytes:
        """A chunk's content, verified."""
        where = self.locate(chunk_id)
        return bytes(self.cut(chunk_id, where, self.block(where.pack, where.block)))

    def cut(self, chunk_id: bytes, where: Location, block: bytes) -> memoryview:
        """The chunk's part of an unpacked block, verified against its id."""
        part = memoryview(block)[where.offset : where.offset + where.length]
        if len(part) != where.length or self._hash(part) != chunk_id:
            name = pack_name(self._index.packs[where.pack])
            raise Damaged(f"The chunk {chunk_id.hex()[:16]} in the pack {name} is not what was stored.")
        return part

    def matches(self, data: bytes | memoryview, chunk_id: bytes) -> bool:
        """Whether data is the content of that chunk."""
        return self._hash(data) == chunk_id

    def block(self, pack: int, number: int) -> bytes:
        """One unpacked block, from memory when it was read just now."""
        key = pack, number
        with self._lock:
            found = self._blocks.get(key)
            if found is not None:
                self._blocks.move_to_end(key)
                return found
        data = self.fetch(pack, number)
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = data
                self._held += len(data)
                while self._held > self._cache and len(self._blocks) > 1:
                    self._held -= len(self._blocks.popitem(last=False)[1])
        return data

    def fetch(self, pack: int, number: int) -> bytes:
        """One unpacked block, from storage."""
        storage = self._pages if self._index.packs[pack].kind == KIND_TREE else self.storage
        try:
            return self.pack(pack).read(storage, number)
        except StorageError as e:
            if isinstance(e, StorageUnavailable | StorageDenied) or (seen := self._surveyed()) is None:
                raise
            return self._elsewhere(seen, pack, number, e)

    def _elsewhere(self, seen: Loaded, pack: int, number: int, error: StorageError) -> bytes:
        """A block of a pack that is not there (lost, or pruned since the index was read) or cut short, out of other
        packs; a chunk that is in none of them stays zeros, which no id fits. The error, when there is nothing else.
        """
        chunks, name = self._index.found_in(pack, number), self._index.packs[pack].name
        block = bytearray(max((where.offset + where.length for _, where in chunks), default=0))
        other, found = ChunkReader(self.storage, self._secrets, seen.index), False
        for chunk_id, where in chunks:
            there = seen.index.find(chunk_id)
            if there is not None and seen.index.packs[there.pack].name != name:
                block[where.offset : where.offset + where.length] = other.read(chunk_id)
                found = True
        if not found:
            raise error
        return bytes(block)

    def _surveyed(self) -> Loaded | None:
        """The index with a look at storage, its new packs taken into this one; None where that was done at first."""
        if self._survey is None:
            return None
        with self._survey_lock:
            if self._seen is None:
                self._seen = self._survey()
                for record in self._seen.records.values():
                    self._index.add_pack(record, weak=True)
            return self._seen

    def chunks_in(self, pack: int, block: int) -> list[tuple[bytes, Location]]:
        """The chunks of one block, in order."""
        found = self._contents.get(pack)
        if found is None:
            found = {}
            for chunk_id, where in chunks_of(self._index.packs[pack]):
                found.setdefault(where.block, []).append((chunk_id, where))
            self._contents = {pack: found}  # one pack is enough: blocks are asked for in order
        return found.get(block, [])

    def pack(self, number: int) -> BlockReader:
        """The reader of that pack, its key opened once."""
        found = self._packs.get(number)
        if found is None:
            found = self._packs[number] = self.open_pack(self._index.packs[number])
        return found

    def open_pack(self, record: PackRecord) -> BlockReader:
        """A reader of any pack whose record is at hand."""
        name = pack_name(record)
        key = self._secrets.open_secret(record.epoch, record.sealed, f"The pack {name}")
        return BlockReader(name, record.size, record.cipher, record.blocks, key)
