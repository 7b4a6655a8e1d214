"""From chunks to packs: deduplicate, gather into blocks, compress, seal, store. The write path of everything.

One thread (the caller's) adds chunks; it reads straight into the block being filled, so a small file is copied once.
Full blocks go to a few workers, which compress without Python's lock, seal into the current pack, and store packs that
are full. Buffers are reused and bounded: when all are out, the caller waits, so memory does not grow with the work.

Invariants: packs are durable before the index object that names them is written; ``flush`` returns when everything
added before it is durable and indexed. A worker's failure stops the caller at its next call and is raised there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import zstandard

from holdfast.errors import ObjectExists
from holdfast.repository.crypto import Secrets, preferred_cipher
from holdfast.repository.format import (
    BLOCK_MAX,
    CODEC_RAW,
    CODEC_ZSTD,
    KIND_DATA,
    KIND_TREE,
    TAG_SIZE,
    PackRecord,
)
from holdfast.repository.index import Index, put_index_object
from holdfast.repository.packs import BUFFER_SIZE, Block, PackBuilder, pack_name
from holdfast.storage.base import Buffer, Storage

BLOCK_CHUNKS = 1 << 15  # of one block: tiny files must not make a pack's table larger than the pack
INDEX_PACKS = 128  # an index object is written at the latest after so many packs
_WORTH = 32  # a block is stored raw unless zstd saves more than 1/32 of it


def worker_count() -> int:
    """Compressing threads: one per processor this process may use, between 2 and 8."""
    return max(2, min(8, len(os.sched_getaffinity(0))))


class Stream(NamedTuple):
    """A kind of chunks that share blocks: the kind of their packs, the raw size at which a block is closed, the levels
    of zstd above the asked one, and the size (a power of 2) of zstd's window (0: the level's own).
    """

    kind: int
    target: int
    extra_level: int
    window_log: int


SMALL = Stream(KIND_DATA, 6 << 20, 2, 23)  # whole small files: many to a block, where likeness pays
LARGE = Stream(KIND_DATA, 1 << 20, 0, 0)  # pieces of large files, read at random by a mount: small blocks
TREE = Stream(KIND_TREE, 1 << 20, 0, 0)


def _pool(count: int, size: int) -> queue.LifoQueue[mmap.mmap]:
    """Buffers whose memory is taken only as far as they are used; the one used last is used first again."""
    pool: queue.LifoQueue[mmap.mmap] = queue.LifoQueue()
    for _ in range(count):
        pool.put(mmap.mmap(-1, size))
    return pool


class _OpenBlock:
    """The block being filled: a buffer, how much of it is used, and whose chunks they are."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.used = 0
        self.ids: list[bytes] = []
        self.lengths: list[int] = []


class ChunkWriter:
    """Stores chunks. Not to be shared between threads; ``close`` must be called, also after an error."""

    def __init__(self, storage: Storage, secrets: Secrets, index: Index, *, level: int = 3) -> None:
        self._storage, self._secrets, self._index, self._level = storage, secrets, index, level
        self._cipher = preferred_cipher()
        self.chunk_id = secrets.chunk_hasher()
        self.bytes_stored = 0
        self.packs: set[int] = set()  # the numbers, in the index, of the packs stored so far
        workers = worker_count()
        self._most_waiting = workers + 2
        self._pool = ThreadPoolExecutor(workers + 1, thread_name_prefix="pack")
        self._block_buffers = _pool(workers + 2, BLOCK_MAX)
        self._pack_buffers = {KIND_DATA: _pool(2, BUFFER_SIZE), KIND_TREE: _pool(2, BUFFER_SIZE)}
        self._open: dict[Stream, _OpenBlock] = {}
        self._building: dict[int, PackBuilder] = {}
        self._building_lock = threading.Lock()
        self._tasks: set[Future[None]] = set()
        self._records: list[PackRecord] = []
        self._records_lock = threading.Lock()
        self._failure: BaseException | None = None
        self._local = threading.local()

    # -- adding chunks ---------------------------------------------------------------------------------------------

    def add(self, stream: Stream, data: Buffer) -> bytes:
        """Store one chunk of at most CHUNK_MAX bytes unless it is there; its id."""
        chunk_id = self.chunk_id(data)
        if chunk_id not in self._index:
            length = len(data)
            self.space(stream, length)[:length] = data
            self.keep(stream, chunk_id, length)
        return chunk_id

    def space(self, stream: Stream, size: int) -> memoryview:
        """At least ``size`` (up to CHUNK_MAX + 1) free bytes at the end of the open block, to read a chunk into.

        What is put there counts only after ``keep``; the next call may hand out the same bytes again.
        """
        block = self._open.get(stream)
        if block is not None and (
            block.used >= stream.target or block.used + size > BLOCK_MAX or len(block.ids) >= BLOCK_CHUNKS
        ):
            self._submit(stream, block)
            block = None
        if block is None:
            block = self._open[stream] = self._new_block()
        return block.view[block.used :]

    def keep(self, stream: Stream, chunk_id: bytes, length: int) -> None:
        """Make the first ``length`` bytes of the last ``space`` a chunk of that id, which must be absent so far."""
        block = self._open[stream]
        block.ids.append(chunk_id)
        block.lengths.append(length)
        block.used += length
        self._index.reserve(chunk_id, length)

    def add_block(self, kind: int, codec: int, payload: bytes, raw: int, ids: list[bytes], lengths: list[int]) -> None:
        """Take a block as another pack has it: nothing is unpacked or compressed again. Its chunks' new ids are
        given.
        """
        for chunk_id, length in zip(ids, lengths, strict=True):
            self._index.reserve(chunk_id, length)
        self._wait_for_room()
        self._run(self._seal, kind, Block(kind, raw, ids, lengths), codec, payload)

    def flush(self) -> None:
        """Wait until every chunk added so far is durable and the index says where it is."""
        for stream, block in list(self._open.items()):
            self._submit(stream, block)
        self._open.clear()
        self._join()
        with self._building_lock:
            builders, self._building = list(self._building.values()), {}
        for builder in builders:
            if builder.number:
                self._run(self._store_pack, builder)
            else:
                self._pack_buffers[builder.kind].put(builder.buffer)
        self._join()
        self._write_index()

    def take_pack(self, record: PackRecord) -> None:
        """Have a pack that is in storage already named by the next index object (adopted packs)."""
        self._records.append(record)

    def close(self) -> None:
        """End the workers. What was not flushed and lies in no full pack is dropped."""
        self._failure = self._failure or RuntimeError("closed")
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _new_block(self) -> _OpenBlock:
        while True:
            self._raise_failure()
            with contextlib.suppress(queue.Empty):
                return _OpenBlock(self._block_buffers.get(timeout=1.0))

    def _submit(self, stream: Stream, block: _OpenBlock) -> None:
        self._open.pop(stream, None)
        whole = min(len(block.ids), len(block.lengths))  # a signal may have struck in the middle of ``keep``
        del block.ids[whole:], block.lengths[whole:]
        block.used = sum(block.lengths)
        if not block.ids:
            self._block_buffers.put(block.buffer)
            return
        self._run(self._pack_block, stream, block)

    def _run(self, task: Callable[..., None], *args: object) -> None:
        self._raise_failure()
        future = self._pool.submit(self._guarded, task, *args)
        self._tasks.add(future)
        future.add_done_callback(self._tasks.discard)

    def _guarded(self, task: Callable[..., None], *args: object) -> None:
        if self._failure is not None:
            return
        try:
            task(*args)
        except BaseException as e:  # noqa: BLE001 - it is raised in the caller's thread
            if self._failure is None:
                self._failure = e

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _join(self) -> None:
        for future in list(self._tasks):
            future.result()
        self._raise_failure()

    def _pack_block(self, stream: Stream, block: _OpenBlock) -> None:
        """A worker's task: compress the block, seal it into the current pack, store that pack if it is full."""
        with block.view[: block.used] as raw:
            codec, payload = self._compress(stream, raw)
            full = self._append(Block(stream.kind, len(raw), block.ids, block.lengths), codec, payload)
        block.view.release()
        self._block_buffers.put(block.buffer)
        if full is not None:
            self._store_pack(full)

    def _seal(self, kind: int, block: Block, codec: int, payload: Buffer) -> None:
        """A worker's task for a block that is compressed already."""
        full = self._append(block, codec, payload)
        if full is not None:
            self._store_pack(full)

    def _append(self, block: Block, codec: int, payload: Buffer) -> PackBuilder | None:
        """Seal the payload into the current pack of its kind; the pack before it when that one is full now."""
        full, kind = None, block.kind
        with self._building_lock:
            builder = self._building.get(kind)
            if builder is not None and not builder.has_room(len(payload) + TAG_SIZE, len(block.ids)):
                full, builder = builder, None
            if builder is None:
                try:
                    builder = PackBuilder(self._secrets, kind, self._cipher, self._pack_buffer(kind))
                finally:
                    self._building.pop(kind, None)
                self._building[kind] = builder
            builder.add(block, codec, payload)
        return full

    def _wait_for_room(self) -> None:
        """Let no more blocks wait than there are buffers, so that memory stays bounded."""
        while len(self._tasks) > self._most_waiting:
            self._raise_failure()
            next(iter(list(self._tasks))).result()

    def _pack_buffer(self, kind: int) -> mmap.mmap:
        while True:
            self._raise_failure()
            with contextlib.suppress(queue.Empty):
                return self._pack_buffers[kind].get(timeout=1.0)

    def _compress(self, stream: Stream, raw: memoryview) -> tuple[int, Buffer]:
        known = self._local.__dict__.setdefault("compressors", {})
        compressor = known.get(stream)
        if compressor is None:
            compressor = known[stream] = new_compressor(self._level + stream.extra_level, stream.window_log)
        packed = compressor.compress(raw)
        if len(packed) < len(raw) - len(raw) // _WORTH:
            return CODEC_ZSTD, packed
        return CODEC_RAW, raw

    def _store_pack(self, builder: PackBuilder) -> None:
        record, parts = builder.finish()
        try:
            self._storage.put(pack_name(record), parts)
        except ObjectExists:
            # Only a put that was tried again meets its own pack; that it is there is not taken on trust.
            if self._storage.stat(pack_name(record)).size != record.size:
                raise
        parts.clear()
        self._pack_buffers[builder.kind].put(builder.buffer)
        self.packs.add(self._index.add_pack(record))
        with self._records_lock:
            self._records.append(record)
            self.bytes_stored += record.size
        if len(self._records) >= INDEX_PACKS:
            self._write_index()

    def _write_index(self) -> None:
        """Name the packs stored since the last time in an index object; in any thread."""
        with self._records_lock:
            records, self._records = self._records, []
        if records:
            size = put_index_object(self._storage, self._secrets, records)[1]
            with self._records_lock:
                self.bytes_stored += size


def new_compressor(level: int, window_log: int) -> zstandard.ZstdCompressor:
    """A compressor whose frames say their content's size."""
    level = min(level, zstandard.MAX_COMPRESSION_LEVEL)
    window = {"window_log": window_log} if window_log else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(level, write_content_size=1, **window)
    return zstandard.ZstdCompressor(compression_params=parameters)
