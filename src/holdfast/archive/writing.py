"""Writes files' contents: plans which parts of which files come out of which block, then reads each block once.

A plan is bounded (PLAN_PARTS), so that memory grows neither with a file nor with a tree. Blocks are read, opened, unpacked,
verified and written by a few threads in the order they lie in storage. A file is finished (attributes, final name) by
whoever writes its last part; one with a part that cannot be had is removed again and reported.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.archive.beneath import open_beneath
from holdfast.archive.placing import Placer, explain, part_name
from holdfast.errors import HoldfastError, StorageFull
from holdfast.repository.contents import hole_length
from holdfast.repository.format import ID_SIZE, Entry
from holdfast.repository.index import Location
from holdfast.repository.pages import join, split
from holdfast.repository.reader import ChunkReader
from holdfast.repository.writer import worker_count

PLAN_PARTS = 8192
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class Counts(Protocol):
    """Where writing is counted."""

    files: int
    bytes: int
    written: int
    current: bytes


@dataclass
class File:
    """A file being written. ``temporary``: the name it has until it is whole, when another one is in its place.
    ``left``: parts not yet written, plus one while parts are still being planned.
    """

    entry: Entry
    path: bytes
    temporary: bytes = b""
    fd: int = -1
    left: int = 1
    failed: str = ""
    mode_is_set: bool = False
    in_place: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Part:
    """A chunk's place in a file. A lone part is the whole file, made and finished in one go."""

    file: File
    offset: int
    chunk: bytes
    where: Location
    lone: bool = False


class FileWriter:
    """Collects files to write; ``flush`` writes all that is planned."""

    def __init__(self, reader: ChunkReader, placer: Placer, counts: Counts) -> None:
        self._reader, self._placer, self._counts = reader, placer, counts
        self._plan: dict[tuple[int, int], list[Part]] = {}
        self._parts = 0
        self._open: list[File] = []
        self._count_lock = threading.Lock()

    def add_small(self, entry: Entry, path: bytes, replaces: bool) -> None:
        """A file of one chunk."""
        file = File(entry, path, part_name() if replaces else b"")
        try:
            where = self._reader.locate(entry.content)
        except HoldfastError as e:
            self._placer.report(path, str(e))
            return
        if where.length != entry.size:
            self._placer.report(path, "its size contradicts its content")
            return
        self._put(where, Part(file, 0, entry.content, where, lone=True))

    def add(self, entry: Entry, path: bytes, items: Iterable[bytes], replaces: bool) -> None:
        """A file of any content; it is made at once and filled as blocks come in."""
        file = File(entry, path, part_name() if replaces else b"")
        try:
            self._create(file)
        except OSError as e:
            self._placer.report(path, explain(e))
            return
        self._fill(file, items)

    def add_in_place(self, entry: Entry, path: bytes, items: Iterable[bytes]) -> None:
        """A file that is there and alone under its name: only the chunks that differ are written into it."""
        file = File(entry, path, in_place=True)
        try:
            file.fd = open_beneath(self._placer.target, path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as e:
            self._placer.report(path, explain(e))
            return
        self._fill(file, items)

    def flush(self) -> None:
        """Write everything planned so far."""
        plan, self._plan, self._parts = self._plan, {}, 0
        if not plan:
            return
        with ThreadPoolExecutor(worker_count(), thread_name_prefix="restore") as pool:
            for failure in pool.map(self._block, sorted(plan), [plan[k] for k in sorted(plan)]):
                if failure is not None:
                    raise failure

    # -- planning --------------------------------------------------------------------------------------------------

    def _put(self, where: Location, part: Part) -> None:
        self._plan.setdefault((where.pack, where.block), []).append(part)
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
                        self._put(where, Part(file, offset, item, where))
                elif file.in_place:
                    _punch(file.fd, offset, length)
                offset += length
                if offset > file.entry.size:
                    break
        except (HoldfastError, OSError) as e:
            file.failed = str(e) if isinstance(e, HoldfastError) else explain(e)
        if offset != file.entry.size and not file.failed:
            file.failed = "its size contradicts its content"
        self._one_less(file)

    def _is_there(self, file: File, offset: int, chunk: bytes, length: int) -> bool:
        return self._reader.matches(os.pread(file.fd, length, offset), chunk)

    def _create(self, file: File) -> None:
        placer, path = self._placer, file.path
        if file.temporary:
            path = join(split(path)[0], file.temporary)
        mode = placer.creation_mode(file.entry)
        file.mode_is_set = (mode == file.entry.mode & 0o777 and mode != 0o600) or mode == file.entry.mode
        file.fd = open_beneath(placer.target, path, _NEW, mode)

    # -- writing, in any thread ------------------------------------------------------------------------------------

    def _block(self, key: tuple[int, int], parts: list[Part]) -> Exception | None:
        """Write every part that lies in one block. Only a full disk is given back: it ends the restore."""
        try:
            block = self._reader.fetch(*key)
        except HoldfastError as e:
            for part in parts:
                self._failed(part, str(e))
            return None
        for part in parts:
            try:
                data = self._reader.cut(part.chunk, part.where, block)
                if part.lone:
                    self._whole(part.file, data)
                else:
                    _write_at(part.file.fd, data, part.offset)
                    self._one_less(part.file, len(data))
            except HoldfastError as e:
                self._failed(part, str(e))
            except OSError as e:
                self._failed(part, explain(e))
                if e.errno in (28, 122):  # ENOSPC, EDQUOT
                    return StorageFull("The target has no space left.", "Free some, then run the restore again.")
        return None

    def _whole(self, file: File, data: memoryview) -> None:
        self._create(file)
        _write_at(file.fd, data, 0)
        self._one_less(file, len(data))

    def _failed(self, part: Part, reason: str) -> None:
        part.file.failed = part.file.failed or reason
        self._one_less(part.file)

    def _one_less(self, file: File, size: int = 0) -> None:
        with self._count_lock:
            self._counts.bytes += size
            self._counts.written += size
        if file.left > 1 or not size:
            with file.lock:
                file.left -= 1
                if file.left:
                    return
        self._finish(file)

    def _finish(self, file: File) -> None:
        """The last part is written, or will never be."""
        try:
            if not file.failed and file.fd >= 0:
                self._complete(file)
        except OSError as e:
            file.failed = explain(e)
        finally:
            if file.fd >= 0:
                os.close(file.fd)
        if file.failed:
            self._placer.report(file.path, file.failed)
            if not file.in_place and file.fd >= 0:
                self._discard(file)
            return
        with self._count_lock:
            self._counts.files += 1
            self._counts.current = file.path

    def _complete(self, file: File) -> None:
        entry = file.entry
        if len(entry.content) > ID_SIZE or file.in_place or not entry.content:
            os.ftruncate(file.fd, entry.size)  # a hole at the end, or what was longer before
        self._placer.settle(file.fd, entry, file.path, mode_is_set=file.mode_is_set)
        if file.temporary:
            with self._placer.folder(split(file.path)[0]) as above:
                os.rename(file.temporary, entry.name, src_dir_fd=above, dst_dir_fd=above)

    def _discard(self, file: File) -> None:
        with contextlib.suppress(OSError), self._placer.folder(split(file.path)[0]) as above:
            os.unlink(file.temporary or file.entry.name, dir_fd=above)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _punch(fd: int, offset: int, length: int) -> None:
    """Make a hole in a file that is there; zeros do where the file system has no holes."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2
    size = os.fstat(fd).st_size
    length = min(length, max(0, size - offset))
    if length and libc.fallocate(fd, keep_size | punch_hole, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        zeros = bytes(1 << 20)
        while length:
            done = os.pwrite(fd, zeros[: min(length, len(zeros))], offset)
            offset, length = offset + done, length - done
