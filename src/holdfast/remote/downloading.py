"""Files from a server: each to a name of its own beneath the target, its hash checked, and only then put in place.

Until it is whole a file has a name made from its path and hash, so that a pull that was cut off goes on with it. What
is there under that name is not trusted: it is hashed like everything else, and one that somebody else owns, or that has
a second name, is thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Protocol

from holdfast.archive.beneath import open_beneath
from holdfast.archive.placing import Placer, explain, full
from holdfast.errors import HoldfastError, WrongContent
from holdfast.remote.crew import Crew
from holdfast.remote.http import pieces_of
from holdfast.remote.progress import Progress
from holdfast.remote.reading import FileLine
from holdfast.remote.server import Server, is_fatal
from holdfast.repository.format import Entry
from holdfast.repository.pages import split

_AT_ONCE = 1 << 20
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_THERE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Hasher(Protocol):
    """As hashlib's are."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def hasher_of(hash_: str) -> Hasher:
    """The function that the hash is of, by its length. SHA-1 is for manifests that were made with it."""
    return hashlib.sha256() if len(hash_) == 64 else hashlib.sha1(usedforsecurity=False)


def has_hash(target: int, path: bytes, line: FileLine) -> bool:
    """Whether what lies there is a file with that content. OSError when it cannot be read."""
    fd = open_beneath(target, path, _READ)
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_size != line.size:
            return False
        hasher = hasher_of(line.hash)
        return _hash_through(fd, hasher, line.size) == line.size and hasher.hexdigest() == line.hash
    finally:
        os.close(fd)


class Downloader:
    """Brings files into the target of ``placer``."""

    def __init__(self, server: Server, crew: Crew, placer: Placer, progress: Progress) -> None:
        self._server, self._crew, self._placer, self._progress = server, crew, placer, progress

    def add(self, line: FileLine, entry: Entry) -> None:
        """Have a file brought and put in place. ``entry``: its name and attributes."""
        self._crew.do(line.size, lambda: self._bring(line, entry))

    def _bring(self, line: FileLine, entry: Entry) -> None:
        try:
            self._progress.current = line.path
            _Download(self._server, self._placer, line, entry, self._progress).run()
            self._progress.count(moved=1)
        except HoldfastError as e:
            if is_fatal(e):
                raise
            self._progress.troubles.add(line.path, str(e))
        except OSError as e:
            if stop := full(e):
                raise stop from None
            self._progress.troubles.add(line.path, explain(e))


class _Download:
    """One file. ``at``: so many bytes of it are here and went into the hasher."""

    def __init__(self, server: Server, placer: Placer, line: FileLine, entry: Entry, progress: Progress) -> None:
        self._server, self._placer, self._line, self._entry = server, placer, line, entry
        self._progress = progress
        self._folder = split(line.path)[0]
        self._part = part_name(line)
        self._hasher, self._at, self._shown = hasher_of(line.hash), 0, 0

    def run(self) -> None:
        try:
            with self._opened() as fd:
                taken_over = self._at > 0
                self._fetch(fd)
                if self._hasher.hexdigest() != self._line.hash and taken_over:
                    self._begin_anew(fd)  # what an earlier pull had left was damaged
                    self._fetch(fd)
                if self._hasher.hexdigest() != self._line.hash:
                    raise WrongContent("the server sent other bytes than its hash promises; nothing of them was kept")
                os.ftruncate(fd, self._line.size)
                self._placer.settle(fd, self._entry, self._line.path)
                with self._placer.folder(self._folder) as above:
                    os.rename(self._part, self._entry.name, src_dir_fd=above, dst_dir_fd=above)
        except HoldfastError as e:
            if not is_fatal(e):  # else it goes on with what is here
                with contextlib.suppress(OSError), self._placer.folder(self._folder) as above:
                    os.unlink(self._part, dir_fd=above)
            raise

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The file it becomes, with what is there of it hashed."""
        with self._placer.folder(self._folder) as above:
            fd = self._left_over(above)
            if fd < 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._part, dir_fd=above)
                fd = os.open(self._part, _NEW | os.O_CLOEXEC, 0o600, dir_fd=above)
        try:
            self._at = _hash_through(fd, self._hasher, self._line.size)
            self._show()
            yield fd
        finally:
            os.close(fd)

    def _left_over(self, above: int) -> int:
        """What an earlier pull has left of it, open; -1 when there is nothing that may be used."""
        try:
            fd = os.open(self._part, _THERE | os.O_CLOEXEC, dir_fd=above)
        except OSError:
            return -1
        st = os.fstat(fd)
        if (
            stat.S_ISREG(st.st_mode)
            and st.st_nlink == 1
            and st.st_uid == os.geteuid()
            and st.st_size <= self._line.size
        ):
            return fd
        os.close(fd)
        return -1

    def _begin_anew(self, fd: int) -> None:
        os.ftruncate(fd, 0)
        self._hasher, self._at = hasher_of(self._line.hash), 0

    def _fetch(self, fd: int) -> None:
        """Get what is missing; it goes on where a connection broke."""
        if self._at < self._line.size:
            self._server.patiently(lambda: self._attempt(fd), progress=lambda: self._at)

    def _attempt(self, fd: int) -> None:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        with self._server.answering("GET", f"files/{self._line.hash}", headers) as answer:
            if self._at and answer.status_code != 206:
                self._begin_anew(fd)
            for piece in pieces_of(answer, self._line.size - self._at):
                self._server.demand_running()
                self._write(fd, piece)
        if self._at < self._line.size:
            raise WrongContent(f"the server has {self._at} bytes of it, not {self._line.size}")

    def _write(self, fd: int, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            done = os.pwrite(fd, rest, self._at)
            self._hasher.update(rest[:done])
            self._at, rest = self._at + done, rest[done:]
        self._progress.count(moved_bytes=len(piece))
        self._show()

    def _show(self) -> None:
        if self._at > self._shown:
            self._progress.count(done=self._at - self._shown)
            self._shown = self._at


def part_name(line: FileLine) -> bytes:
    """The name that a file has until it is whole; ``reading.is_ours`` knows it."""
    digest = hashlib.blake2b(line.path + b"\0" + line.hash.encode(), digest_size=8).hexdigest()
    return b".holdfast-%s.part" % digest.encode()


def _hash_through(fd: int, hasher: Hasher, most: int) -> int:
    """Hash what is there of a file from its beginning, at most so many bytes; how many there are."""
    at = 0
    while at < most and (piece := os.pread(fd, min(_AT_ONCE, most - at), at)):
        hasher.update(piece)
        at += len(piece)
    return at
