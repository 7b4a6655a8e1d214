"""From chunks to packs: deduplicate, gather into blocks, compress, seal, store. The write path of everything.

One thread (the caller's) adds chunks; it reads straight into the block being filled, so a small file is copied once.
Full blocks go to a few workers, which compress without Python's lock and seal into the current pack; full packs go to
two more, which store them. Buffers are reused and bounded: when all are out, the caller waits, so memory does not grow
with the work. No more threads compute than there are processors, the caller's counted while it does not wait: zstd's
tables fill a processor's cache, and taking turns there costs a quarter of the speed.

Invariants: packs are durable before the index object that names them is written; ``flush`` returns when everything
added before it is durable and indexed. A worker's failure stops the caller at its next call and is raised there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

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
from holdfast.storage.caching import pages_of

BLOCK_CHUNKS = 1 << 15  # of one block: tiny files must not make a pack's table larger than the pack
INDEX_PACKS = 128  # an index object is written at the latest after so many packs
STORING = 4  # packs that are being stored at the same time at most: one of pages, others of up to 34 MB of memory
_WORTH = 32  # a block is stored raw unless zstd saves more than 1/32 of it


def worker_count() -> int:
    """Compressing threads: one per processor this process may use, between 2 and 8."""
    return max(2, min(8, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, eq=False)  # compared as what it is: it is looked up for every file
class Stream:
    """A kind of chunks that share blocks: the kind of their packs, the raw size at which a block is closed, and the
    least size, as a power of 2, of zstd's window and of its table of long matches (0: what the level says).
    """

    kind: int
    target: int
    window_log: int
    hash_log: int


# Whole small files, many to a block, because likeness pays and lies far apart: of 100,000 files of /usr, level 3 in
# blocks of 1 MiB makes 261 MB in 2.6 s of a processor; in these, with a table that reaches as far as they are long,
# 241 MB in 3.0 s; level 5 makes 238 MB in 6.0 s.
SMALL = Stream(KIND_DATA, 14 << 20, 24, 19)
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
        self._processors = threading.Semaphore(workers - 1)  # the caller has one
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
        storing = min(STORING, storage.connections + 1)
        self._stores = ThreadPoolExecutor(storing, thread_name_prefix="store")
        others = _pool(workers + 3, BLOCK_MAX)
        self._block_buffers = {SMALL: _pool(workers + 2, BLOCK_MAX), LARGE: others, TREE: others}
        self._pack_buffers = {KIND_DATA: _pool(max(2, storing), BUFFER_SIZE), KIND_TREE: _pool(2, BUFFER_SIZE)}
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
            self._close_block(stream, block)
            block = None
        if block is None:
            block = self._open[stream] = self._new_block(stream)
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
        self._compute(self._seal, Block(kind, raw, ids, lengths), codec, payload)

    def flush(self) -> None:
        """Wait until every chunk added so far is durable and the index says where it is."""
        for stream, block in list(self._open.items()):
            self._close_block(stream, block)
        self._open.clear()
        self._join()
        with self._building_lock:
            builders, self._building = list(self._building.values()), {}
        for builder in builders:
            if builder.number:
                self._submit(self._stores, self._store_pack, builder)
            else:
                self._pack_buffers[builder.kind].put(builder.buffer)
        self._join()
        self._write_index()

    def give_back(self) -> None:
        """Give the memory of buffers that are free back to the system: for a writer that lives long and rests often."""
        for pool in {id(p): p for p in (*self._block_buffers.values(), *self._pack_buffers.values())}.values():
            free: list[mmap.mmap] = []
            with contextlib.suppress(queue.Empty):
                while True:
                    free.append(pool.get_nowait())
            for buffer in free:
                buffer.madvise(mmap.MADV_DONTNEED)
                pool.put(buffer)

    def take_pack(self, record: PackRecord) -> None:
        """Have a pack that is in storage already named by the next index object (adopted packs)."""
        self._records.append(record)

    def close(self) -> None:
        """End the workers. What was not flushed and lies in no full pack is dropped."""
        self._failure = self._failure or RuntimeError("closed")
        with self._waiting():
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._stores.shutdown(wait=True, cancel_futures=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _new_block(self, stream: Stream) -> _OpenBlock:
        return _OpenBlock(self._buffer(self._block_buffers[stream]))

    def _buffer(self, pool: queue.LifoQueue[mmap.mmap]) -> mmap.mmap:
        """Wait for a free buffer; the workers' failure ends the wait."""
        self._raise_failure()
        with contextlib.suppress(queue.Empty):
            return pool.get_nowait()
        with self._waiting():
            return self._awaited(pool)

    def _awaited(self, pool: queue.LifoQueue[mmap.mmap]) -> mmap.mmap:
        while True:
            self._raise_failure()
            with contextlib.suppress(queue.Empty):
                return pool.get(timeout=1.0)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """The caller waits: let another worker have its processor."""
        self._processors.release()
        try:
            yield
        finally:
            self._processors.acquire()

    def _close_block(self, stream: Stream, block: _OpenBlock) -> None:
        self._open.pop(stream, None)
        whole = min(len(block.ids), len(block.lengths))  # a signal may have struck in the middle of ``keep``
        del block.ids[whole:], block.lengths[whole:]
        block.used = sum(block.lengths)
        if not block.ids:
            self._block_buffers[stream].put(block.buffer)
            return
        self._compute(self._pack_block, stream, block)

    def _compute(self, task: Callable[..., None], *args: object) -> None:
        """Have a worker do it, once there is a processor for it."""
        self._submit(self._pool, self._with_processor, task, *args)

    def _with_processor(self, task: Callable[..., None], *args: object) -> None:
        with self._processors:
            task(*args)

    def _submit(self, pool: ThreadPoolExecutor, task: Callable[..., None], *args: object) -> None:
        self._raise_failure()
        future = pool.submit(self._guarded, task, *args)
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
        with self._waiting():
            while tasks := list(self._tasks):  # blocks that are packed may fill packs, which are tasks again
                wait(tasks)
        self._raise_failure()

    def _pack_block(self, stream: Stream, block: _OpenBlock) -> None:
        """A worker's task: compress the block, seal it into the current pack."""
        with block.view[: block.used] as raw:
            codec, payload = self._compress(stream, raw)
            self._seal(Block(stream.kind, len(raw), block.ids, block.lengths), codec, payload)
        block.view.release()
        self._block_buffers[stream].put(block.buffer)

    def _seal(self, block: Block, codec: int, payload: Buffer) -> None:
        """A worker's task for a block that is compressed: seal it into the current pack of its kind. When that one is
        full it goes to be stored, and the block into a new one.
        """
        kind = block.kind
        with self._building_lock:
            builder = self._building.get(kind)
            if builder is not None and not builder.has_room(len(payload) + TAG_SIZE, len(block.ids)):
                del self._building[kind]
                self._submit(self._stores, self._store_pack, builder)
                builder = None
            if builder is None:
                builder = PackBuilder(self._secrets, kind, self._cipher, self._awaited(self._pack_buffers[kind]))
                self._building[kind] = builder
            builder.add(block, codec, payload)

    def _wait_for_room(self) -> None:
        """Let no more blocks wait than there are buffers, so that memory stays bounded."""
        with self._waiting():
            while len(self._tasks) > self._most_waiting:
                self._raise_failure()
                wait(list(self._tasks), return_when=FIRST_COMPLETED)

    def _compress(self, stream: Stream, raw: memoryview) -> tuple[int, Buffer]:
        known = self._local.__dict__.setdefault("compressors", {})
        compressor = known.get(stream)
        if compressor is None:
            compressor = known[stream] = new_compressor(self._level, stream)
        packed = compressor.compress(raw)
        if len(packed) < len(raw) - len(raw) // _WORTH:
            return CODEC_ZSTD, packed
        return CODEC_RAW, raw

    def _store_pack(self, builder: PackBuilder) -> None:
        record, parts = builder.finish()
        storage = pages_of(self._storage) if builder.kind == KIND_TREE else self._storage
        try:
            storage.put(pack_name(record), parts)
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


def new_compressor(level: int, stream: Stream) -> zstandard.ZstdCompressor:
    """A compressor for a stream's blocks whose frames say their content's size."""
    own = zstandard.ZstdCompressionParameters.from_level(min(level, zstandard.MAX_COMPRESSION_LEVEL))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        min(level, zstandard.MAX_COMPRESSION_LEVEL),
        write_content_size=1,
        window_log=max(own.window_log, stream.window_log),
        hash_log=max(own.hash_log, stream.hash_log),
    )
    return zstandard.ZstdCompressor(compression_params=parameters)
