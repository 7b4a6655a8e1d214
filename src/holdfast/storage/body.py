"""The parts of an object as one file to read from, for libraries that send files: nothing is joined, nothing copied."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from holdfast.storage.base import Buffer


class Body(io.RawIOBase):
    """Reads and seeks in the parts; they must not change meanwhile. ``size``: bytes of all of them."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._views = [view for part in parts if (view := memoryview(part).cast("B"))]
        self._ends = list(accumulate(map(len, self._views)))
        self.size, self._at = self._ends[-1] if self._ends else 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, into: Buffer) -> int:  # type: ignore[override]
        target = memoryview(into).cast("B")
        got = 0
        while got < len(target) and self._at < self.size:
            number = bisect_right(self._ends, self._at)
            view, end = self._views[number], self._ends[number]
            start = self._at - (end - len(view))
            count = min(len(target) - got, end - self._at)
            target[got : got + count] = view[start : start + count]
            got += count
            self._at += count
        return got
