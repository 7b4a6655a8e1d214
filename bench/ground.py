"""The ground a measure stands on: the same state of disk, memory and cache before each, so that the order of
the measures does not decide who is quick.

Four things were found to decide more than the programs do, each worth seconds:

- What the last one wrote is still on its way to the disk. So: sync.
- The memory of a virtual machine may be slow to touch (bench.ballast says why). So: ballast.
- The cache forgets: some machines drop pages nobody has looked at for a minute. So: corpus and repository are
  read before each measure.
- ext4 does not use the numbers of files deleted within the last minute again, and looks at each of them for
  every file it creates: after deleting 100,000 files, `cp -a` of as many took 40 s instead of 4. So: trees are
  put aside, deleted at the end of a round, and nobody restores a tree within a minute after that.

Promise: `settle` takes its time outside every measure and changes nothing. At the quick scale it only syncs.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench.ballast import Ballast
from bench.work import read_through, remove

FORGOTTEN_AFTER = 65.0


class Ground:
    """Brings the machine into the same state again and again."""

    def __init__(self, folder: Path, *, careful: bool) -> None:
        self.careful = careful
        self._removed = folder / "removed"
        self._ballast = Ballast() if careful else None

    def settle(self, *read: Path, creates_files: bool = False) -> None:
        """Sync; when careful, also wait for deleted files to be forgotten, read what will be read, load ballast."""
        os.sync()
        if self._ballast is None:
            return
        if creates_files:
            self._wait()
        for path in read:
            read_through(path)
        self._ballast.grab()

    def put_aside(self, path: Path, aside: Path) -> None:
        """Delete a file at once; keep a tree in the folder `aside` until `clear`."""
        if path.is_dir() and not path.is_symlink():
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{len(os.listdir(aside))}")
        else:
            remove(path)

    def clear(self, folder: Path) -> None:
        """Delete the folder with everything in it, and note when."""
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
