"""Proves that a restore gave back what was backed up: a quick restore of something else is worth nothing.

Promise: `differences` compares names, kinds, sizes, modes and modification times of everything, link
targets, and with `contents` every byte as well; it never changes either tree.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

PIECE = 1 << 20


def restored_root(target: Path, source: Path) -> Path:
    """Where the source came out: below the target by its whole path or its name, or as the target itself."""
    for candidate in (target / source.relative_to(source.anchor), target / source.name):
        if candidate.exists():
            return candidate
    return target


def differences(source: Path, restored: Path, *, contents: bool) -> list[str]:
    """What is not as it was, at most a handful of lines."""
    found: list[str] = []
    pending = [""]
    while pending and len(found) < 5:
        name = pending.pop()
        wanted, got = source / name if name else source, restored / name if name else restored
        said, children = _compare(wanted, got, contents=contents, top=not name)
        found += [f"{name or '.'}: {word}" for word in said]
        pending += [os.path.join(name, child) for child in children]
    return found


def _compare(wanted: Path, got: Path, *, contents: bool, top: bool) -> tuple[list[str], list[str]]:
    """What differs in this entry itself, and the names of its children."""
    if not os.path.lexists(got):
        return ["missing"], []
    one, two = wanted.lstat(), got.lstat()
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(two.st_mode):
        return ["of another kind"], []
    said = []
    if one.st_mode != two.st_mode and not top:
        said.append("mode differs")
    if one.st_mtime_ns != two.st_mtime_ns and not top and not stat.S_ISLNK(one.st_mode):
        said.append("modification time differs")
    if stat.S_ISDIR(one.st_mode):
        names, others = sorted(os.listdir(wanted)), sorted(os.listdir(got))
        return [*said, *(["other names inside"] if names != others else [])], names if names == others else []
    if stat.S_ISLNK(one.st_mode) and os.readlink(wanted) != os.readlink(got):
        said.append("points elsewhere")
    if stat.S_ISREG(one.st_mode) and (one.st_size != two.st_size or (contents and not _same_bytes(wanted, got))):
        said.append("contents differ")
    return said, []


def _same_bytes(one: Path, two: Path) -> bool:
    with one.open("rb", buffering=0) as left, two.open("rb", buffering=0) as right:
        while piece := left.read(PIECE):
            if right.read(PIECE) != piece:
                return False
        return not right.read(1)
