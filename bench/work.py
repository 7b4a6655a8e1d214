"""The work folder: where corpora, peers and the repositories being measured live.

Promise: everything the benchmark writes is below `work_folder()` (but for docs/benchmarks.md, with
--write), and `remove` takes a tree away completely, read-only directories included.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
HOLDFAST = CHECKOUT / "holdfast"
BUFFER = bytearray(1 << 20)


def work_folder() -> Path:
    """$HOLDFAST_BENCH_DIR, or `.bench` in the checkout; made when missing."""
    folder = Path(os.environ.get("HOLDFAST_BENCH_DIR") or CHECKOUT / ".bench").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove(path: Path) -> None:
    """Delete a file or a tree; what is not there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    if not path.is_dir():
        return
    for folder, _, _ in os.walk(path):
        mode = os.stat(folder).st_mode
        if mode & 0o700 != 0o700:
            os.chmod(folder, mode | 0o700)
    shutil.rmtree(path)


def stored_bytes(path: Path) -> int:
    """The sizes of all regular files below `path` (as `du --apparent-size`, without directories)."""
    total = 0
    pending = [os.fspath(path)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def read_through(path: Path) -> None:
    """Look at every entry and read every byte of a corpus, so that every program finds it in the cache."""
    if path.is_file():
        _read(os.fspath(path))
        return
    pending = [os.fspath(path)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.stat(follow_symlinks=False).st_size and entry.is_file(follow_symlinks=False):
                    _read(entry.path)


def _read(path: str) -> None:
    """Read the data of a file; holes are skipped, for they would fill the cache with nothing."""
    handle = os.open(path, os.O_RDONLY)
    try:
        place, size = 0, os.fstat(handle).st_size
        while place < size:
            try:
                place = os.lseek(handle, place, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(handle, place, os.SEEK_HOLE)
            while place < end:
                place += os.preadv(handle, [BUFFER], place) or end
    finally:
        os.close(handle)
