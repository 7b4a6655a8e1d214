"""Writes files' contents: plans which parts of which files come out of which block, then reads each block once.

A plan is bounded (PLAN_PARTS), so that memory grows neither with a file nor with a tree; so is the number of files
open at once. Blocks are read, opened, unpacked, verified and written by a few threads in the order they lie in storage.
A file is finished (attributes, final name) by whoever writes its last part; one with a part that cannot be had is
removed again and reported. ``close`` removes what was not finished when a restore ends early.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.archive.beneath import open_beneath
from holdfast.archive.placing import Placer, explain, full, part_name
from holdfast.errors import HoldfastError, StorageDenied, StorageUnavailable
from holdfast.repository.contents import hole_length
from holdfast.repository.format import Entry
from holdfast.repository.index import Location
from holdfast.repository.pages import join, split
from holdfast.repository.reader import ChunkReader
from holdfast.repository.writer import worker_count
from holdfast.storage.wrappers import hurry

PLAN_PARTS = 8192
MOST_OPEN = 200
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_THERE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
_USELESS = StorageUnavailable, StorageDenied  # no other block can be had either

_Path = bytes
Items = Callable[[], Iterable[bytes]]


class Counts(Protocol):
    """Where writing is counted."""

    files: int
    bytes: int
    written: int
    current: _Path


@dataclass(slots=True)
class File:
    """A file being written. ``temporary``: the name it has until it is whole, when another one is in its place.
    ``left``: parts not yet written, plus one while parts are still being planned. ``born``: see Placer.settle.
    """

    entry: Entry
    path: bytes
    temporary: bytes = b""
    fd: int = -1
    left: int = 1
    failed: str = ""
    born: int | None = None
    in_place: bool = False
    lone: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class Part:
    """A chunk's place in a file. A lone part is the whole file, made and finished in one go."""

    file: File
    offset: int
    chunk: bytes
    where: Location


class FileWriter:
    """Collects files to write; ``flush`` writes all that is planned. ``failed``: paths of files that are not right."""

    def __init__(self, reader: ChunkReader, placer: Placer, counts: Counts) -> None:
        self._reader, self._placer, self._counts = reader, placer, counts
        self._plan: dict[tuple[int, int], list[Part]] = {}
        self._parts = 0
        self._unfinished: dict[int, File] = {}
        self._count_lock = threading.Lock()
        self._stop: BaseException | None = None
        self.failed: set[bytes] = set()

    def add_small(self, entry: Entry, path: bytes, replaces: bool) -> None:
        """A file of one chunk."""
        try:
            where = self._reader.locate(entry.content)
        except HoldfastError as e:
            self._fail(path, str(e))
            return
        if where.length != entry.size:
            self._fail(path, "its size contradicts its content")
            return
        file = File(entry, path, part_name() if replaces else b"", lone=True)
        self._put(Part(file, 0, entry.content, where))

    def add(self, entry: Entry, path: bytes, items: Items, replaces: bool) -> None:
        """A file of any content; it is made at once and filled as blocks come in."""
        file = File(entry, path, part_name() if replaces else b"")
        if len(self._unfinished) >= MOST_OPEN:
            self.flush()
        try:
            self._create(file)
        except OSError as e:
            self._fail(path, explain(e), e)
            return
        self._unfinished[id(file)] = file
        self._fill(file, items())

    def add_in_place(self, entry: Entry, path: bytes, items: Items) -> None:
        """A file that is there: only the chunks that differ are written into it. It is left alone when it cannot
        become what it should be, and replaced when it cannot be written to.
        """
        try:
            total = sum(self._length(item) for item in items())
        except HoldfastError as e:
            self._fail(path, str(e))
            return
        if total != entry.size:
            self._fail(path, "its size contradicts its content")
            return
        if len(self._unfinished) >= MOST_OPEN:
            self.flush()
        file = File(entry, path, in_place=True)
        try:
            file.fd = open_beneath(self._placer.target, path, _THERE)
        except OSError:
            self.add(entry, path, items, replaces=True)
            return
        self._unfinished[id(file)] = file
        st = os.fstat(file.fd)
        if not stat.S_ISREG(st.st_mode) or not self._placer.may_keep(entry, st):  # it was swapped just now
            self._forget(file)
            self.add(entry, path, items, replaces=True)
            return
        self._fill(file, items())

    def flush(self) -> None:
        """Write everything planned so far. StorageFull ends it, and so do errors that no other file would survive."""
        plan, self._plan, self._parts = self._plan, {}, 0
        if not plan:
            return
        # Far away, blocks are read ahead: each thread waits for the network most of the time.
        count = max(worker_count(), self._reader.storage.connections)
        pool = ThreadPoolExecutor(count, thread_name_prefix="restore")
        try:
            for done in [pool.submit(self._block, key, plan.pop(key)) for key in sorted(plan)]:
                done.result()
        except BaseException as e:
            self._stop = e
            if isinstance(e, KeyboardInterrupt):
                hurry(self._reader.storage)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if self._stop is not None:
            raise self._stop

    def close(self) -> None:
        """Let go of what was not finished: files that were being made are removed."""
        for file in list(self._unfinished.values()):
            self._forget(file)
            self._discard(file)

    # -- planning --------------------------------------------------------------------------------------------------

    def _put(self, part: Part) -> None:
        self._plan.setdefault((part.where.pack, part.where.block), []).append(part)
        self._parts += 1
        if self._parts >= PLAN_PARTS:
            self.flush()

    def _fill(self, file: File, items: Iterable[bytes]) -> None:
        offset = 0
        try:
            for item in items:
                length = hole_length(item)
                if length is None:
                    where = self._reader.locate(item)
                    length = where.length
                    if not file.in_place or not self._is_there(file, offset, item, length):
                        with file.lock:
                            file.left += 1
                        self._put(Part(file, offset, item, where))
                elif file.in_place:
                    _punch(file.fd, offset, length)
                offset += length
                if offset > file.entry.size:
                    break
        except (HoldfastError, OSError) as e:
            if self._stop is not None:
                raise
            file.failed = str(e) if isinstance(e, HoldfastError) else explain(e)
        if offset != file.entry.size and not file.failed:
            file.failed = "its size contradicts its content"
        self._one_less(file)

    def _length(self, item: bytes) -> int:
        length = hole_length(item)
        return self._reader.length(item) if length is None else length

    def _is_there(self, file: File, offset: int, chunk: bytes, length: int) -> bool:
        return self._reader.matches(os.pread(file.fd, length, offset), chunk)

    def _create(self, file: File) -> None:
        placer, path = self._placer, file.path
        if file.temporary:
            path = join(split(path)[0], file.temporary)
        mode = placer.creation_mode(file.entry)
        file.born = placer.born(mode)
        file.fd = open_beneath(placer.target, path, _NEW, mode)

    # -- writing, in any thread ------------------------------------------------------------------------------------

    def _block(self, key: tuple[int, int], parts: list[Part]) -> None:
        """Write every part that lies in one block. What ends the restore is left in ``_stop``."""
        if self._stop is not None:
            return
        try:
            block = self._reader.fetch(*key)
        except _USELESS as e:
            self._stop = e
            return
        except HoldfastError as e:
            for part in parts:
                self._failed(part, str(e))
            return
        for part in parts:
            if self._stop is not None:
                return
            try:
                data = self._reader.cut(part.chunk, part.where, block)
                if part.file.lone:
                    self._create(part.file)
                _write_at(part.file.fd, data, part.offset)
            except HoldfastError as e:
                self._failed(part, str(e))
            except OSError as e:
                self._stop = full(e) or self._stop
                self._failed(part, explain(e))
            else:
                self._one_less(part.file, len(data))

    def _failed(self, part: Part, reason: str) -> None:
        part.file.failed = part.file.failed or reason
        self._one_less(part.file)

    def _one_less(self, file: File, size: int = 0) -> None:
        """A part of the file is done with, or its planning is; whoever does the last one finishes it."""
        with self._count_lock:
            self._counts.bytes += size
            self._counts.written += size
        if not file.lone:
            with file.lock:
                file.left -= 1
                if file.left:
                    return
        self._finish(file)

    def _finish(self, file: File) -> None:
        try:
            if not file.failed:
                self._complete(file)
        except OSError as e:
            self._stop = full(e) or self._stop
            file.failed = explain(e)
        finally:
            self._forget(file)
        if file.failed:
            self._discard(file)
            self._fail(file.path, file.failed)
            return
        with self._count_lock:
            self._counts.files += 1
            self._counts.current = file.path

    def _complete(self, file: File) -> None:
        entry = file.entry
        if not file.lone:
            os.ftruncate(file.fd, entry.size)  # a hole at the end, or what was longer before
        self._placer.settle(file.fd, entry, file.path, file.born)
        if file.temporary:
            with self._placer.folder(split(file.path)[0]) as above:
                os.rename(file.temporary, entry.name, src_dir_fd=above, dst_dir_fd=above)
                file.temporary = b""

    def _forget(self, file: File) -> None:
        self._unfinished.pop(id(file), None)
        if file.fd >= 0:
            os.close(file.fd)
            file.fd = -2  # it was made

    def _discard(self, file: File) -> None:
        """Remove what was made of a file that will never be whole."""
        if file.in_place or file.fd == -1:
            return
        with contextlib.suppress(OSError), self._placer.folder(split(file.path)[0]) as above:
            os.unlink(file.temporary or file.entry.name, dir_fd=above)

    def _fail(self, path: bytes, reason: str, error: OSError | None = None) -> None:
        self.failed.add(path)
        self._placer.report(path, reason)
        if error is not None and (stop := full(error)):
            raise stop


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def _punch(fd: int, offset: int, length: int) -> None:
    """Make a hole in a file that is there; zeros do where the file system has no holes."""
    length = min(length, max(0, os.fstat(fd).st_size - offset))
    if not length or _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    zeros = bytes(1 << 20)
    while length:
        done = os.pwrite(fd, zeros[: min(length, len(zeros))], offset)
        offset, length = offset + done, length - done
