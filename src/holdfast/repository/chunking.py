"""Content-defined cutting: the same content is cut at the same places wherever it stands.

FastCDC (2020, normalised) with the sizes the repository's config records. Content up to SMALL_MAX bytes is one chunk.
``cut`` works in a sliding window, so memory does not grow with the content.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

from pyfastcdc import FastCDC

from holdfast.repository.format import SMALL_MAX, Chunker

WINDOW = 8 << 20

ReadInto = Callable[[memoryview], int]


class Cutter:
    """Cuts streams. One instance cuts one stream at a time and reuses its window of WINDOW bytes."""

    def __init__(self, chunker: Chunker) -> None:
        self._fastcdc = FastCDC(
            chunker.avg_size,
            min_size=chunker.min_size,
            max_size=chunker.max_size,
            normalized_chunking=chunker.normalization,  # type: ignore[arg-type]
        )
        self._max = chunker.max_size
        self._window = mmap.mmap(-1, max(WINDOW, 2 * chunker.max_size))  # taken as far as it is used

    def cut(self, read_into: ReadInto) -> Iterator[memoryview]:
        """The stream's chunks in order; each is valid until the next is asked for.

        ``read_into`` fills a view as far as it likes and returns the number of bytes; 0 ends the stream.
        """
        view = memoryview(self._window)
        held = self._fill(read_into, view, 0)
        ended = held < len(view)
        if ended and held <= SMALL_MAX:
            if held:
                yield view[:held]
            return
        while held:
            done = 0
            cuts = iter(self._fastcdc.cut_buf(view[:held]))
            while done < held and (ended or held - done >= self._max):  # else the window's end might pass for a cut
                chunk = next(cuts)
                done = chunk.offset + chunk.length
                yield view[chunk.offset : done]
            held -= done
            view[:held] = view[done : done + held]
            if not ended:
                held = self._fill(read_into, view, held)
                ended = held < len(view)

    @staticmethod
    def _fill(read_into: ReadInto, view: memoryview, held: int) -> int:
        """Read until the window is full or the stream ends; how much of the window is then held."""
        while held < len(view):
            got = read_into(view[held:])
            if got == 0:
                break
            held += got
        return held
