"""Reads regular files into chunks, each file once for all who need it: small ones in one call straight into the block
being filled, large ones through the cutter, holes left out. A file that changes under the reader is stored as it was
read, and reported; never more of it is read than it had when that was seen, so one that grows without end ends.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from holdfast.archive.attributes import storable_time, xattrs_that_fit
from holdfast.archive.scan import TURNED
from holdfast.archive.targets import SnapshotWriter, each, left
from holdfast.errors import HoldfastError
from holdfast.repository.chunking import Cutter
from holdfast.repository.contents import hole
from holdfast.repository.format import SMALL_MAX, Chunker, Entry
from holdfast.repository.pages import Key, join
from holdfast.repository.writer import LARGE, SMALL

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileReader:
    """Reads files below one base, each once for all its ``takers``: those who need the file that is read next. One that
    fails is no longer among them; when none is left, NobodyLeft ends the reading.
    """

    def __init__(self, chunker: Chunker, report: Callable[[bytes, str], None]) -> None:
        self.takers: list[SnapshotWriter] = []
        self._report = report
        self._cutter = Cutter(chunker)
        self._uid = os.geteuid()

    def read(self, folder: int, path: Key, listed: os.stat_result | None) -> None:
        """Store the file ``path`` (directory, name), open folder ``folder``, for every taker. OSError when it cannot be
        read.

        ``listed``: its lstat, where it is known.
        """
        name = path[1]
        fd = self._open(folder, name, listed)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise OSError(0, TURNED)
            xattrs = xattrs_that_fit(fd, path, self._report)
            got = self._content(fd, st, path)
        finally:
            os.close(fd)
        links = (st.st_dev, st.st_ino) if st.st_nlink > 1 else None
        mode, times = stat.S_IMODE(st.st_mode), (storable_time(st.st_mtime_ns), storable_time(st.st_ctime_ns))
        facts = name, "f", mode, st.st_uid, st.st_gid, *times, st.st_ino, got
        for taker in self.takers:
            taker.take_file(Entry(*facts, taker.content, taker.depth, links=links, xattrs=xattrs))

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

    def _content(self, fd: int, st: os.stat_result, path: Key) -> int:
        """Store an open file's content; how many bytes it has."""
        size = st.st_size
        sparse = st.st_blocks * 512 < size
        if sparse and size <= SMALL_MAX:  # or a file system that keeps small or compressible files in less
            sparse = list(data_extents(fd, size)) != [(0, size)]
            os.lseek(fd, 0, os.SEEK_SET)
        if sparse:
            got = self._read_sparse(fd, size)
        elif size <= SMALL_MAX:
            got = self._read_small(fd, size)
        else:
            got = self.read_stream(_bounded(fd, 0, size))
        if got != size:
            self._report(join(*path), f"it changed from {size} to {got} bytes while it was read")
        elif sparse or size > SMALL_MAX:
            now = os.fstat(fd)
            if (now.st_mtime_ns, now.st_size) != (st.st_mtime_ns, size):
                self._report(join(*path), "it changed while it was read")
        return got

    def read_stream(self, read_into: Callable[[memoryview], int]) -> int:
        """Store a stream's content for each taker; how many bytes it has."""
        self._each(SnapshotWriter.begin_content)
        got = 0
        for chunk in self._cutter.cut(read_into):
            self._add(chunk)
            got += len(chunk)
        self._each(SnapshotWriter.end_content)
        return got

    def _read_small(self, fd: int, size: int) -> int:
        """One read, straight into the first taker's block; the others copy it from there."""
        first = self.takers[0]
        try:
            view = first.chunks.space(SMALL, size + 1)
        except HoldfastError as e:
            first.failure = e
            self.takers = left(self.takers)
            return self._read_small(fd, size)
        got = os.readv(fd, [view[: size + 1]])
        while 0 < got < size or got > size:
            if got > size:  # it grew: read what it is now from the start (kernel files have a size of 0 and content)
                return self.read_stream(_bounded(fd, 0, max(SMALL_MAX, os.fstat(fd).st_size)))
            more = os.readv(fd, [view[got : size + 1]])
            if more == 0:
                break
            got += more
        if got == 0:
            for taker in self.takers:
                taker.content, taker.depth = b"", 0
            return 0
        first.totals.bytes_read += got
        chunk_id = first.chunk_id(view[:got])
        pack = first.index.pack_of(chunk_id)
        if pack is None:
            first.chunks.keep(SMALL, chunk_id, got)
        else:
            first.used.add(pack)
        first.content, first.depth = chunk_id, 0
        if len(self.takers) > 1:
            self._copy(view[:got], first)
        return got

    def _copy(self, content: memoryview, first: SnapshotWriter) -> None:
        """Give the others what the first one has read; it stands there until that one is asked for space again."""
        for taker in self.takers:
            if taker is not first:
                try:
                    taker.keep_whole(content, SMALL)
                except HoldfastError as e:
                    taker.failure = e
        self.takers = left(self.takers)

    def _read_sparse(self, fd: int, size: int) -> int:
        """Extents are cut each on its own; what lies between them are holes."""
        self._each(SnapshotWriter.begin_content)
        at = 0
        for start, end in data_extents(fd, size):
            if start > at:
                self._add_hole(start - at)
            at = start
            for chunk in self._cutter.cut(_bounded(fd, start, end)):
                self._add(chunk)
                at += len(chunk)
            if at != end:  # it shrank
                break
        else:
            if at < size:
                self._add_hole(size - at)
                at = size
        self._each(SnapshotWriter.end_content)
        return at

    def _add(self, chunk: memoryview) -> None:
        self._each(lambda taker: taker.add_chunk(chunk, LARGE))

    def _add_hole(self, length: int) -> None:
        item = hole(length)
        self._each(lambda taker: taker.add_hole(item))

    def _each(self, act: Callable[[SnapshotWriter], object]) -> None:
        self.takers = each(self.takers, act)


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
