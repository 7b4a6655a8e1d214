"""Ballast: holds the memory nobody uses, and lets go of it piece by piece as the measured programs need it.

A virtual machine with free page reporting gives free memory back to its host within two seconds. Every page of
it then costs a fault into the host, some 2 s a GiB: `dd` of 2 GiB takes 5.5 s instead of 1.2, and whoever grows
the page cache first pays. Memory that somebody holds is not given back. So all of it is held, and given out warm.

Promise: only on such a machine anything is held; a thread lets go whenever less than `LOW` is free, whoever takes
it, and should the kernel run short all the same, this process is the first it ends.
"""

from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path

PIECE = 64 << 20
FLOOR = 256 << 20
LOW = 448 << 20
START = 640 << 20
LOOK_EVERY = 0.01
BALLOONS = Path("/sys/bus/virtio/drivers/virtio_balloon")
REPORTING_BIT = 5


class Ballast:
    """All free memory but a few hundred megabytes."""

    def __init__(self) -> None:
        self._held: list[mmap.mmap] = []
        self._lock = threading.Lock()
        self._needed = gives_memory_back()
        if self._needed:
            Path("/proc/self/oom_score_adj").write_text("1000")
            threading.Thread(target=self._feed, name="ballast", daemon=True).start()

    def grab(self) -> None:
        """Take what is free, then let go of a little: what was held last is warm, and is given out first."""
        if not self._needed:
            return
        with self._lock:
            while free_memory() > FLOOR + PIECE:
                piece = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
                piece.madvise(mmap.MADV_DONTFORK)
                self._held.append(piece)
            self._release(START)

    def _feed(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            if self._held and free_memory() < LOW and self._lock.acquire(blocking=False):
                try:
                    self._release(LOW)
                finally:
                    self._lock.release()

    def _release(self, wanted: int) -> None:
        while self._held and free_memory() < wanted:
            self._held.pop().close()


def gives_memory_back() -> bool:
    """Whether this is a virtual machine that reports its free pages to its host."""
    return any(file.read_text()[REPORTING_BIT] == "1" for file in BALLOONS.glob("*/features"))


def free_memory() -> int:
    """Bytes of memory nothing is in, not even cache."""
    with open("/proc/meminfo", "rb", buffering=0) as file:
        for line in file.read(512).splitlines():
            if line.startswith(b"MemFree:"):
                return int(line.split()[1]) * 1024
    return 0
