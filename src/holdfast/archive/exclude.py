"""What a backup leaves out: gitignore patterns, cache folders, other file systems, large files.

Patterns are git's, relative to the snapshot's base: ``*.tmp`` anywhere, ``/build`` at the top, ``cache/`` folders only,
``!keep`` takes back. The last pattern that fits decides; what lies below an excluded folder is never looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast.errors import UsageError

CACHE_TAG = b"CACHEDIR.TAG"
_NEWLINE = "\0"  # stands for it in matching, where "." and "$" would treat it specially; no name holds a NUL
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


@dataclass(frozen=True)
class Excludes:
    """``patterns``: gitignore lines. ``larger_than``: bytes, None for no limit."""

    patterns: tuple[str, ...] = ()
    caches: bool = False
    one_file_system: bool = False
    larger_than: int | None = None


Matcher = Callable[[bytes, bool], bool]


def matcher(patterns: Sequence[str]) -> Matcher | None:
    """A test of (path relative to the base, is a folder); None when nothing is excluded."""
    lines = [p for p in patterns if p.strip() and not p.startswith("#")]
    if not lines:
        return None
    from pathspec import GitIgnoreSpec  # slow to import, rarely needed

    try:
        spec = GitIgnoreSpec.from_lines(line.replace("\n", _NEWLINE) for line in lines)
    except ValueError as e:
        raise UsageError(f"An exclude pattern cannot be understood: {e}.") from None

    def excluded(path: bytes, is_folder: bool) -> bool:
        text = os.fsdecode(path).replace("\n", _NEWLINE)
        return bool(spec.match_file(text + "/" if is_folder else text))

    return excluded


def is_cache_folder(folder: int) -> bool:
    """Whether the open folder holds a valid CACHEDIR.TAG."""
    try:
        fd = os.open(CACHE_TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return os.read(fd, len(_CACHE_SIGNATURE)) == _CACHE_SIGNATURE
    except OSError:
        return False
    finally:
        os.close(fd)
