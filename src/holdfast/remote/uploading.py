"""Files to a server: small ones whole, large ones resumably, going on at the byte that the server has got to.

A file is opened beneath the pushed folder without following links. One that is not what was hashed any more is told to
``changed``; the server keeps nothing of it, as its bytes do not hash to its name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from holdfast.archive.attributes import explain
from holdfast.archive.beneath import open_beneath
from holdfast.errors import ContentError, HoldfastError, NoContent, WrongContent
from holdfast.remote.crew import SMALL_BYTES, Crew
from holdfast.remote.http import Again
from holdfast.remote.progress import Progress
from holdfast.remote.reading import FileLine
from holdfast.remote.server import Server, is_fatal

_AT_ONCE = 1 << 20
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_PARTIAL = {"Content-Type": "application/partial-upload"}


class _Changed(Exception):
    """The file is not what was hashed."""


class Uploader:
    """Sends files of the open folder ``base``."""

    def __init__(
        self, server: Server, crew: Crew, base: int, progress: Progress, changed: Callable[[FileLine], None]
    ) -> None:
        self._server, self._crew, self._base, self._progress = server, crew, base, progress
        self._changed = changed

    def add(self, line: FileLine) -> None:
        """Have a file sent."""
        self._crew.do(line.size, lambda: self._send(line))

    def _send(self, line: FileLine) -> None:
        try:
            with self._opened(line) as fd:
                self._progress.current = line.path
                if line.size <= SMALL_BYTES:
                    self._whole(fd, line)
                else:
                    _Resumable(self._server, fd, line, self._progress).send()
            self._progress.count(moved=1)
        except (_Changed, WrongContent, FileNotFoundError):
            self._changed(line)
        except HoldfastError as e:
            if is_fatal(e):
                raise
            self._progress.troubles.add(line.path, str(e))
        except OSError as e:
            self._progress.troubles.add(line.path, explain(e))

    @contextlib.contextmanager
    def _opened(self, line: FileLine) -> Iterator[int]:
        fd = open_beneath(self._base, line.path, _OPEN)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or st.st_size != line.size:
                raise _Changed
            yield fd
        finally:
            os.close(fd)

    def _whole(self, fd: int, line: FileLine) -> None:
        data = _read_fully(fd, line.size + 1)
        if len(data) != line.size:
            raise _Changed
        self._server.patiently(lambda: self._server.once("PUT", f"files/{line.hash}", body=data))
        self._progress.count(done=line.size, moved_bytes=line.size)


class _Resumable:
    """One large file, by the resumable-upload draft of the IETF. ``at``: the byte that the server has got to."""

    def __init__(self, server: Server, fd: int, line: FileLine, progress: Progress) -> None:
        self._server, self._fd, self._line, self._progress = server, fd, line, progress
        self._address = f"files/{line.hash}"
        self._at = self._best = line.leading
        self._sure, self._in_one_go, self._shown = True, False, 0

    def send(self) -> None:
        self._show(self._at)
        try:
            self._server.patiently(self._attempt, progress=lambda: self._best)
        except _Changed:
            with contextlib.suppress(HoldfastError):  # what came of it is no part of any file
                self._server.once("DELETE", self._address)
            raise
        self._show(self._line.size)

    def _attempt(self) -> None:
        if not self._sure and not self._ask():
            return
        self._sure = False
        before = self._at
        try:
            self._server.once(*self._request())
        except ContentError as e:  # an answer was lost, or somebody else sends the file too
            if isinstance(e, WrongContent):
                raise
            if not self._ask():
                return
            if self._at == before and self._in_one_go:
                raise
            # There are parts behind a gap, which cannot be appended to: what is missing goes as one more part.
            self._in_one_go = self._at == before
            raise Again("The upload goes on in another way.") from None

    def _request(self) -> tuple[str, str, dict[str, str], Callable[[], Iterator[bytes]]]:
        size, at = self._line.size, self._at
        headers = {"Content-Length": str(size - at)}
        if self._in_one_go:
            return "PUT", self._address, headers | {"Content-Range": f"bytes {at}-{size - 1}/{size}"}, self._pieces
        headers |= {"Upload-Complete": "?1", "Upload-Length": str(size)}
        if at:
            return "PATCH", self._address, headers | _PARTIAL | {"Upload-Offset": str(at)}, self._pieces
        return "PUT", self._address, headers, self._pieces

    def _ask(self) -> bool:
        """Whether there is anything left to send, and from where on."""
        try:
            answer = self._server.once("HEAD", self._address)
        except NoContent:
            self._at = 0
            return True
        offset = answer.headers.get("upload-offset", "")
        self._at = min(int(offset), self._line.size) if offset.isascii() and offset.isdigit() else 0
        self._best = max(self._best, self._at)
        self._show(self._at)
        return answer.headers.get("upload-complete") != "?1"

    def _pieces(self) -> Iterator[bytes]:
        at = self._at
        while at < self._line.size:
            self._server.demand_running()
            piece = os.pread(self._fd, min(_AT_ONCE, self._line.size - at), at)
            if not piece:
                raise _Changed
            yield piece
            at += len(piece)
            self._progress.count(moved_bytes=len(piece))
            self._show(at)

    def _show(self, at: int) -> None:
        """How far it is, for people: never backwards."""
        if at > self._shown:
            self._progress.count(done=at - self._shown)
            self._shown = at


def _read_fully(fd: int, most: int) -> bytes:
    found = bytearray()
    while len(found) < most and (piece := os.read(fd, most - len(found))):
        found += piece
    return bytes(found)
