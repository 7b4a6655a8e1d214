"""Reads regular files into chunks: small ones in one call straight into the block being filled, large ones through the
cutter, holes left out. A file that changes under the reader is stored as it was read, and reported; never more of it is
read than it had when that was seen, so one that grows without end ends.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from holdfast.archive.attributes import storable_time, xattrs_that_fit
from holdfast.archive.scan import TURNED
from holdfast.repository.chunking import Cutter
from holdfast.repository.contents import ContentList, hole
from holdfast.repository.format import SMALL_MAX, Chunker, Entry, Totals
from holdfast.repository.index import Index
from holdfast.repository.pages import Key, join
from holdfast.repository.writer import LARGE, SMALL, ChunkWriter

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Counts(Protocol):
    """Where reading is counted."""

    @property
    def totals(self) -> Totals: ...


class FileReader:
    """Reads files below one base. ``used`` collects the packs of chunks that were there already; ``store_list`` keeps a
    piece of a long content list and gives its id.
    """

    def __init__(
        self,
        writer: ChunkWriter,
        index: Index,
        used: set[int],
        chunker: Chunker,
        store_list: Callable[[bytes], bytes],
        report: Callable[[bytes, str], None],
        counts: Counts,
    ) -> None:
        self._writer, self._index, self._used, self._report, self._counts = writer, index, used, report, counts
        self._store_list = store_list
        self._chunk_id = writer.chunk_id
        self._cutter = Cutter(chunker)
        self._uid = os.geteuid()

    def read(self, folder: int, path: Key, listed: os.stat_result | None) -> Entry:
        """Store the file ``path`` (directory, name), open folder ``folder``; its entry. OSError when it cannot be.

        ``listed``: its lstat, where it is known.
        """
        name = path[1]
        fd = self._open(folder, name, listed)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise OSError(0, TURNED)
            xattrs = xattrs_that_fit(fd, path, self._report)
            content, depth, got = self._content(fd, st, path)
        finally:
            os.close(fd)
        links = (st.st_dev, st.st_ino) if st.st_nlink > 1 else None
        mode, times = stat.S_IMODE(st.st_mode), (storable_time(st.st_mtime_ns), storable_time(st.st_ctime_ns))
        return Entry(
            name, "f", mode, st.st_uid, st.st_gid, *times, st.st_ino, got, content, depth, links=links, xattrs=xattrs
        )

    def _open(self, folder: int, name: bytes, listed: os.stat_result | None) -> int:
        """Open for reading without moving its access time, where that is allowed."""
        try:
            if listed is None or self._uid in (0, listed.st_uid):
                try:
                    return os.open(name, _OPEN | os.O_NOATIME, dir_fd=folder)
                except PermissionError:  # a file of somebody else, also for root of a container
                    pass
            return os.open(name, _OPEN, dir_fd=folder)
        except OSError as e:
            if e.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise OSError(0, TURNED) from None
            raise

    def _content(self, fd: int, st: os.stat_result, path: Key) -> tuple[bytes, int, int]:
        """Store an open file's content: (content, depth, bytes)."""
        size = st.st_size
        sparse = st.st_blocks * 512 < size
        if sparse and size <= SMALL_MAX:  # or a file system that keeps small or compressible files in less
            sparse = list(data_extents(fd, size)) != [(0, size)]
            os.lseek(fd, 0, os.SEEK_SET)
        if sparse:
            content, depth, got = self._read_sparse(fd, size)
        elif size <= SMALL_MAX:
            content, depth, got = self._read_small(fd, size)
        else:
            content, depth, got = self.read_stream(_bounded(fd, 0, size))
        if got != size:
            self._report(join(*path), f"it changed from {size} to {got} bytes while it was read")
        elif sparse or size > SMALL_MAX:
            now = os.fstat(fd)
            if (now.st_mtime_ns, now.st_size) != (st.st_mtime_ns, size):
                self._report(join(*path), "it changed while it was read")
        return content, depth, got

    def read_stream(self, read_into: Callable[[memoryview], int]) -> tuple[bytes, int, int]:
        """Store a stream's content: (content, depth, bytes)."""
        items, got = ContentList(self._store_list), 0
        for chunk in self._cutter.cut(read_into):
            items.add(self._keep(chunk))
            got += len(chunk)
            self._counts.totals.bytes_read += len(chunk)
        content, depth = items.finish()
        return content, depth, got

    def _read_small(self, fd: int, size: int) -> tuple[bytes, int, int]:
        view = self._writer.space(SMALL, size + 1)
        got = os.readv(fd, [view[: size + 1]])
        while 0 < got < size or got > size:
            if got > size:  # it grew: read what it is now from the start (kernel files have a size of 0 and content)
                return self.read_stream(_bounded(fd, 0, max(SMALL_MAX, os.fstat(fd).st_size)))
            more = os.readv(fd, [view[got : size + 1]])
            if more == 0:
                break
            got += more
        if got == 0:
            return b"", 0, 0
        self._counts.totals.bytes_read += got
        chunk_id = self._chunk_id(view[:got])
        pack = self._index.pack_of(chunk_id)
        if pack is None:
            self._writer.keep(SMALL, chunk_id, got)
        else:
            self._used.add(pack)
        return chunk_id, 0, got

    def _read_sparse(self, fd: int, size: int) -> tuple[bytes, int, int]:
        """Extents are cut each on its own; what lies between them are holes."""
        items, at = ContentList(self._store_list), 0
        for start, end in data_extents(fd, size):
            if start > at:
                items.add(hole(start - at))
            at = start
            for chunk in self._cutter.cut(_bounded(fd, start, end)):
                items.add(self._keep(chunk))
                at += len(chunk)
                self._counts.totals.bytes_read += len(chunk)
            if at != end:  # it shrank
                break
        else:
            if at < size:
                items.add(hole(size - at))
                at = size
        content, depth = items.finish()
        return content, depth, at

    def _keep(self, chunk: memoryview) -> bytes:
        chunk_id = self._chunk_id(chunk)
        pack = self._index.pack_of(chunk_id)
        if pack is None:
            length = len(chunk)
            self._writer.space(LARGE, length)[:length] = chunk
            self._writer.keep(LARGE, chunk_id, length)
        else:
            self._used.add(pack)
        return chunk_id


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of data below ``size``; the whole file where holes cannot be asked for."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data from here on
                return
            yield at, size
            return
        if start >= size:
            return
        try:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as e:
            if e.errno == errno.ENXIO:  # it was cut off meanwhile
                return
            raise
        yield start, end
        at = end


def _bounded(fd: int, start: int, end: int) -> Callable[[memoryview], int]:
    at = start

    def read_into(view: memoryview) -> int:
        nonlocal at
        got = os.preadv(fd, [view[: end - at]], at) if at < end else 0
        at += got
        return got

    return read_into
