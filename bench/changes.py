"""Changes to a corpus, made in place between two backups, and their undoing.

Promise: a change is decided by its seed alone. What it overwrites is written to a journal first, so that
`undo` puts back every byte and modification time, also in a later run after a crash or Ctrl-C.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import IO

from bench.work import remove

BLOCK = 4096


class Journal:
    """Old contents, kept until `undo`: one line of JSON a change, and the old bytes in a second file."""

    def __init__(self, folder: Path) -> None:
        undo(folder)
        folder.mkdir()
        self._lines: IO[str] = (folder / "lines").open("w")
        self._bytes: IO[bytes] = (folder / "bytes").open("wb")

    def keep(self, path: Path, offset: int, length: int) -> None:
        """Note what `path` holds at this place, its size and its time."""
        status = path.stat()
        with path.open("rb") as source:
            source.seek(offset)
            old = source.read(length)
        self._bytes.write(old)
        self._bytes.flush()
        note = [str(path), offset, len(old), status.st_size, status.st_mtime_ns]
        self._lines.write(json.dumps(note) + "\n")
        self._lines.flush()

    def close(self) -> None:
        """No more changes; the journal stays until `undo`."""
        self._lines.close()
        self._bytes.close()


def undo(folder: Path) -> None:
    """Put back everything the journal in `folder` holds, last change first, and delete it."""
    if not (folder / "lines").exists():
        remove(folder)
        return
    notes = [json.loads(line) for line in (folder / "lines").read_text().splitlines()]
    with (folder / "bytes").open("rb") as old:
        place = sum(note[2] for note in notes)
        for path, offset, length, size, mtime in reversed(notes):
            place -= length
            old.seek(place)
            with open(path, "r+b") as out:
                out.seek(offset)
                out.write(old.read(length))
                out.truncate(size)
            os.utime(path, ns=(mtime, mtime))
    remove(folder)


def edited(data: bytes, source: random.Random) -> bytes:
    """The data with one line put in and a few bytes overwritten, as an editor or an upgrade would."""
    place = source.randrange(len(data) + 1)
    line = b"\n# changed: %s\n" % source.randbytes(source.randrange(4, 40)).hex().encode()
    result = bytearray(data[:place] + line + data[place:])
    for _ in range(source.randrange(4)):
        result[source.randrange(len(result))] = source.randrange(32, 127)
    return bytes(result)


def change_files(root: Path, journal: Journal, share: float, seed: str) -> int:
    """Edit this share of the files below `root`; returns how many."""
    source = random.Random(seed)
    files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    chosen = source.sample(files, max(1, round(len(files) * share)))
    for name in chosen:
        path = Path(name)
        data = path.read_bytes()
        journal.keep(path, 0, len(data))
        with path.open("r+b") as out:
            out.write(edited(data, source))
    return len(chosen)


def change_image(image: Path, journal: Journal, share: float, seed: str) -> int:
    """Overwrite this share of the image's data (not its holes), 4 to 256 KiB at a time; returns the bytes."""
    source = random.Random(seed)
    extents = data_extents(image)
    left = int(sum(length for _, length in extents) * share)
    changed = 0
    with image.open("r+b") as out:
        while changed < left:
            start, length = source.choices(extents, weights=[size for _, size in extents])[0]
            burst = min(length, BLOCK * int(2 ** source.uniform(0, 7)))
            offset = start + source.randrange((length - burst) // BLOCK + 1) * BLOCK
            journal.keep(image, offset, burst)
            out.seek(offset)
            out.write(source.randbytes(burst))
            out.flush()
            changed += burst
    return changed


def data_extents(path: Path) -> list[tuple[int, int]]:
    """The (offset, length) of everything that is not a hole."""
    found: list[tuple[int, int]] = []
    handle = os.open(path, os.O_RDONLY)
    try:
        size, place = os.fstat(handle).st_size, 0
        while place < size:
            try:
                start = os.lseek(handle, place, os.SEEK_DATA)
            except OSError:
                break
            place = os.lseek(handle, start, os.SEEK_HOLE)
            found.append((start, place - start))
    finally:
        os.close(handle)
    return found
