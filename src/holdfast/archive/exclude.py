"""What a backup leaves out: gitignore patterns, cache folders, other file systems, large files.

Patterns are git's, relative to the snapshot's base: ``*.tmp`` anywhere, ``/build`` at the top, ``cache/`` folders only,
``src/**/x`` at any depth, ``!keep`` takes back. The last pattern that fits decides; what lies below an excluded folder
is excluded with it and never looked at. Names are compared as text, so ``?`` is one letter whatever its bytes.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.errors import UsageError

CACHE_TAG = b"CACHEDIR.TAG"
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_NEVER = "(?!)"


@dataclass(frozen=True)
class Excludes:
    """``patterns``: gitignore lines. ``larger_than``: bytes, None for no limit."""

    patterns: tuple[str, ...] = ()
    caches: bool = False
    one_file_system: bool = False
    larger_than: int | None = None


Matcher = Callable[[bytes, bool], bool]


class _Line(NamedTuple):
    takes_back: bool
    folders_only: bool
    pattern: str


def matcher(patterns: Sequence[str]) -> Matcher | None:
    """A test of (path relative to the base, is a folder); None when nothing is excluded."""
    lines = [line for p in patterns if (line := _parse(p)) is not None]
    if not lines:
        return None
    groups = [
        (takes_back, folders_only, re.compile("|".join(line.pattern for line in group), re.DOTALL))
        for (takes_back, folders_only), group in itertools.groupby(lines, key=lambda line: line[:2])
    ][::-1]
    known = [b"", False]  # the folder asked about last, and whether it is excluded

    def decide(path: bytes, is_folder: bool) -> bool:
        text = os.fsdecode(path)
        for takes_back, folders_only, pattern in groups:
            if (is_folder or not folders_only) and pattern.fullmatch(text):
                return not takes_back
        return False

    def excluded(path: bytes, is_folder: bool) -> bool:
        above = path.rpartition(b"/")[0]
        if known[0] != above:
            parts = above.split(b"/")
            known[:] = above, any(decide(b"/".join(parts[:i]), True) for i in range(1, len(parts) + 1))
        return bool(above and known[1]) or decide(path, is_folder)

    return excluded


def _parse(line: str) -> _Line | None:
    """A line of gitignore as a regular expression for whole paths; None for comments and empty lines."""
    if line.startswith("#"):
        return None
    bare = line.rstrip(" ")  # spaces at the end count only behind a backslash
    line = bare + " " if bare != line and (len(bare) - len(bare.rstrip("\\"))) % 2 else bare
    if not line:
        return None
    takes_back = line.startswith("!")
    pattern = line[takes_back:]
    folders_only = pattern.endswith("/")
    pattern = pattern[: len(pattern) - folders_only]
    if not pattern:
        raise UsageError(f"The pattern {line!r} stands for nothing.")
    if "/" not in pattern:
        return _Line(takes_back, folders_only, "(?:.*/)?" + _translate(pattern))
    return _Line(takes_back, folders_only, _translate(pattern.removeprefix("/")))


def _translate(pattern: str) -> str:
    found, at, size = "", 0, len(pattern)
    while at < size:
        sign = pattern[at]
        if sign == "*":
            end = at + len(pattern[at:]) - len(pattern[at:].lstrip("*"))
            alone = end - at > 1 and pattern[at - 1 : at] in ("", "/") and pattern[end : end + 1] in ("", "/")
            if alone and end < size:
                found, at = found + "(?:.*/)?", end + 1
            else:
                found, at = found + (".*" if alone else "[^/]*"), end
        elif sign == "?":
            found, at = found + "[^/]", at + 1
        elif sign == "[":
            part, at = _translate_class(pattern, at + 1)
            found += part
        elif sign == "\\":
            found, at = found + (re.escape(pattern[at + 1]) if at + 1 < size else _NEVER), at + 2
        else:
            found, at = found + re.escape(sign), at + 1
    return f"(?:{found})"


def _translate_class(pattern: str, at: int) -> tuple[str, int]:
    """``[...]`` from behind its bracket: the expression, and where it ends. One without an end fits nothing."""
    start = at + (pattern[at : at + 1] in ("!", "^"))
    negated, members, at = start > at, "", start
    while at < len(pattern):
        if pattern[at] == "]" and at > start:
            inside = f"[^/{members}]" if negated else f"(?!/)[{members}]" if members else _NEVER
            return inside, at + 1
        named = re.compile(r"\[:([a-z]*):\]").match(pattern, at)
        if named:
            members, at = members + _CLASSES.get(named[1], ""), named.end()
            continue
        low, at = _letter(pattern, at)
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] not in ("", "]"):
            high, at = _letter(pattern, at + 1)
            members += f"{re.escape(low)}-{re.escape(high)}" if low <= high else re.escape(low)
        else:
            members += re.escape(low)
    return _NEVER, len(pattern)


def _letter(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] == "\\" and at + 1 < len(pattern):
        at += 1
    return pattern[at], at + 1


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
