"""Chunks out of packs, verified: a block is authenticated, a chunk is hashed again, and only then is it given back.

A few unpacked blocks are kept (``BLOCK_CACHE`` raw bytes unless told), because neighbours in a directory are neighbours
in a block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from holdfast.errors import Damaged
from holdfast.repository.crypto import Secrets
from holdfast.repository.format import PackRecord
from holdfast.repository.index import Index, Location, chunks_of
from holdfast.repository.packs import BlockReader, pack_name
from holdfast.storage.base import Storage

BLOCK_CACHE = 40 << 20


class ChunkReader:
    """Reads chunks by id. Safe to share between threads. ``cache``: raw bytes of blocks that it keeps."""

    def __init__(self, storage: Storage, secrets: Secrets, index: Index, *, cache: int = BLOCK_CACHE) -> None:
        self.storage, self._secrets, self._index, self._cache = storage, secrets, index, cache
        self._hash = secrets.chunk_hasher()
        self._packs: dict[int, BlockReader] = {}
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._held = 0
        self._contents: dict[int, dict[int, list[tuple[bytes, Location]]]] = {}
        self._lock = threading.Lock()

    def locate(self, chunk_id: bytes) -> Location:
        """Where the chunk lies; Damaged when nothing knows it."""
        location = self._index.find(chunk_id)
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
        return self.pack(pack).read(self.storage, number)

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
