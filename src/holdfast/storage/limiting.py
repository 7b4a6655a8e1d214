"""A limit of bandwidth, up and down, shared by all threads of one storage.

Objects go over whole and at full speed, each after the time that its bytes are allowed to take. So the limit holds over
the time of a pack, not over each second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from holdfast.storage.base import Buffer, Storage
from holdfast.storage.wrappers import Passing

_SMALL = 16 << 10  # bytes: leases and the like do not wait behind packs


class Allowance:
    """Bytes that may pass, at so many a second; 0: as many as there are."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0  # when what has passed so far will have been allowed, by the monotonic clock

    def take(self, size: int) -> None:
        """Wait until everything before, and this, is allowed; then it is on its way."""
        if not self._rate or size < _SMALL:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = until = max(now, self._free_at) + size / self._rate
        time.sleep(until - now)


class Limiting(Passing):
    """``up`` and ``down``: bytes a second, 0 for any number."""

    def __init__(self, inner: Storage, up: int, down: int) -> None:
        super().__init__(inner)
        self._up, self._down = Allowance(up), Allowance(down)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._up.take(sum(memoryview(p).nbytes for p in parts))
        self.inner.put(name, parts)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        self._down.take(length or 0)
        data = self.inner.get(name, start, length)
        if length is None:
            self._down.take(len(data))
        return data
