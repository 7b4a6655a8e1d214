"""What files hashed to when they were last looked at, so that unchanged ones need not be read again.

A tree is always walked in the same order, so what is known of it is kept in that order and read along with the walk:
memory does not grow with the number of files. A file is known by its path, size, times and inode. One that changed just
before it was hashed is not remembered: a file system's clock ticks slowly, and a second change might look the same.

One tree's memory is one file. While a walk goes on a new one is written beside it; it takes the old one's place at the
end. What a walk that was killed had written is taken over by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import heapq
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from holdfast.repository.pages import Key, join, sort_key, split

_FRESH_NS = 2_000_000_000
_LONGEST = 1 << 16


class Mark(NamedTuple):
    """What tells that a file is still the one that was hashed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def mark_of(st: os.stat_result) -> Mark:
    return Mark(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)


class _Line(msgspec.Struct, array_like=True, gc=False):
    path: bytes
    mark: Mark
    hash: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Line).decode


class Remembered:
    """See the module. ``find`` and ``keep`` are each called in the order of the walk; then ``commit``; ``close`` it, or
    use it as a context. While another process uses the same memory, there is none.
    """

    def __init__(self, folder: Path, tree: bytes) -> None:
        name = hashlib.blake2b(tree, digest_size=16).hexdigest()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path, self._new_path = folder / name, folder / f"{name}.new"
        self._stack = contextlib.ExitStack()
        self._new: BinaryIO | None = None
        self._known: Iterator[_Line] = iter(())
        lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._stack.callback(os.close, lock)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_over()
            self._known = self._lines(self._path)
            self._new = self._stack.enter_context(_created(self._new_path))
        self._next: tuple[Key, _Line] | None = None
        self._advance()

    def __enter__(self) -> Remembered:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def find(self, directory: bytes, name: bytes, mark: Mark) -> bytes | None:
        """The hash of a file that is as it was; None when it has to be read."""
        key = sort_key(directory, name)
        while self._next is not None and self._next[0] < key:
            self._advance()
        if self._next is None or self._next[0] != key:
            return None
        line = self._next[1]
        return line.hash if line.mark == mark else None

    def keep(self, directory: bytes, name: bytes, mark: Mark, hash_: bytes, now_ns: int) -> None:
        """Remember a file. ``now_ns``: the time before it was read."""
        if self._new is None or max(mark.ctime_ns, mark.mtime_ns) > now_ns - _FRESH_NS:
            return
        line = _encode(_Line(join(directory, name), mark, hash_))
        self._new.write(len(line).to_bytes(4, "little") + line)

    def commit(self) -> None:
        """The walk went to its end: from now on this is what is known."""
        if self._new is not None:
            self._new.flush()
            os.rename(self._new_path, self._path)

    def _advance(self) -> None:
        line = next(self._known, None)
        self._next = (sort_key(*split(line.path)), line) if line is not None else None

    def _take_over(self) -> None:
        """Merge what a walk that did not come to its end has written into what was known before it."""
        if not self._new_path.exists():
            return
        merged = self._path.with_suffix(".merged")
        both = heapq.merge(self._lines(self._new_path), self._lines(self._path), key=_key)
        with _created(merged) as out:
            for _, same in itertools.groupby(both, key=_key):  # the newer one comes first
                line = _encode(next(same))
                out.write(len(line).to_bytes(4, "little") + line)
        os.rename(merged, self._path)
        self._new_path.unlink()

    def _lines(self, path: Path) -> Iterator[_Line]:
        """The lines of a file, up to the first one that is not whole."""
        try:
            file = self._stack.enter_context(path.open("rb"))
        except OSError:
            return
        while len(head := file.read(4)) == 4 and (length := int.from_bytes(head, "little")) <= _LONGEST:
            text = file.read(length)
            try:
                yield _decode(text)
            except msgspec.MsgspecError:
                return


def _key(line: _Line) -> Key:
    return sort_key(*split(line.path))


def _created(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return open(fd, "wb", buffering=256 << 10)
