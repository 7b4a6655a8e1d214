"""The ground a measure stands on: the same state of disk, memory and cache before each, so that the order of
the measures does not decide who is quick.

Three things were found to decide more than the programs do (each costs the unlucky one seconds):

- What the last one wrote is still on its way to the disk. So: sync.
- A virtual machine may give its free memory back to its host within two seconds (free page reporting), and
  every page of it then costs a fault into the host, some 2 s a GiB: `dd` of 2 GiB took 5.5 s instead of 1.2.
  So, on such a machine: fill the free memory with page cache that may be dropped at no cost (a sparse file,
  read), as memory is on any machine that has been up for a while.
- ext4 does not use the numbers of files deleted within the last minute again, and looks at each of them for
  every file it creates: after deleting 100,000 files, creating as many took 40 s instead of 10. So: trees are
  put aside, deleted at the end of a round, and nobody restores a tree within a minute after that.

Promise: `settle` takes its time outside every measure and changes no file but its own sparse `filler`. At the
quick scale it only syncs.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench.work import read_through, remove

PIECE = 4 << 20
ENOUGH = 512 << 20
FORGOTTEN_AFTER = 65.0
BALLOONS = Path("/sys/bus/virtio/drivers/virtio_balloon")
REPORTS_FREE_PAGES = 5
"""The number of the balloon's feature bit."""


class Ground:
    """Brings the machine into the same state again and again."""

    def __init__(self, folder: Path, *, careful: bool) -> None:
        self.careful = careful
        self._filler = folder / "filler"
        self._removed = folder / "removed"
        self._fills = careful and gives_memory_back()
        self._place = 0

    def settle(self, corpus: Path | None = None, *, creates_files: bool = False) -> None:
        """Sync; then, when careful, fill the memory, wait for deleted files to be forgotten, read the corpus."""
        os.sync()
        if self._fills:
            self._fill()
        if self.careful and creates_files:
            self._wait()
        if self.careful and corpus:
            read_through(corpus)

    def put_aside(self, path: Path, aside: Path) -> None:
        """Delete a file at once; keep a tree in the folder `aside` until `clear`."""
        if path.is_dir() and not path.is_symlink():
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{len(os.listdir(aside))}")
        else:
            remove(path)

    def clear(self, folder: Path) -> None:
        """Delete everything in the folder and the folder, and note when."""
        if not folder.exists():
            return
        remove(folder)
        os.sync()
        self._removed.touch()

    def _wait(self) -> None:
        try:
            left = FORGOTTEN_AFTER - (time.time() - self._removed.stat().st_mtime)
        except FileNotFoundError:
            return
        if left > 0:
            print(f"  waiting {left:.0f} s until deleted files are forgotten", file=sys.stderr, flush=True)
            time.sleep(min(left, FORGOTTEN_AFTER))

    def _fill(self) -> None:
        """Read on in a sparse file larger than the memory; what falls out of the cache is its own oldest part."""
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 5 // 4
        left = 2 * free_memory()
        buffer = bytearray(PIECE)
        handle = os.open(self._filler, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, size)
            while left > 0 and free_memory() > ENOUGH:
                os.preadv(handle, [buffer], self._place)
                self._place = (self._place + PIECE) % (size - PIECE)
                left -= PIECE
        finally:
            os.close(handle)


def gives_memory_back() -> bool:
    """Whether this is a virtual machine that reports its free pages to its host."""
    for features in BALLOONS.glob("*/features"):
        if features.read_text()[REPORTS_FREE_PAGES : REPORTS_FREE_PAGES + 1] == "1":
            return True
    return False


def free_memory() -> int:
    """Bytes of memory nothing is in, not even cache."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemFree:"):
                return int(line.split()[1]) * 1024
    return 0
