"""What somebody who shares a file says of it, checked: its name, its type, how long and how often it may be had.

What is promised: a name is one step of a path, has no control characters and nothing that turns the direction of what
follows, and fits a file system; a type is one that a header can hold.
"""

from __future__ import annotations

import mimetypes
import re
import unicodedata

from holdfast.errors import UsageError

NAME_MOST = 255  # bytes of UTF-8
MOST_DOWNLOADS = 1000
LONGEST_S = 3650 * 86400
_ENDING_MOST = 32
_SECOND = 1_000_000_000
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,10})([smhdw]?)")
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DROPPED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]{1,100}"
_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN})(?:\s*;\s*charset=\"?({_TOKEN})\"?)?", re.IGNORECASE)
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9.+-]")
_UNKNOWN = "application/octet-stream"
_PACKED = {
    "gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz",
    "compress": "application/x-compress", "br": "application/x-brotli",
}  # fmt: skip
_types = mimetypes.MimeTypes()  # Python's own table: what the machine has in /etc is not read


def name_of(text: str) -> str:
    """The name that a file is kept under. UsageError when nothing is left of it."""
    last = re.split(r"[/\\]", text)[-1]
    kept = (c for c in last if unicodedata.category(c) not in _DROPPED and c not in _TURNING)
    name = _shortened("".join(kept).strip())
    if name in ("", ".", ".."):
        raise UsageError("The file has no name.", "Give it one.")
    return name


def _shortened(name: str) -> str:
    """At most NAME_MOST bytes of it, with its ending."""
    if len(name.encode()) <= NAME_MOST:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > _ENDING_MOST:
        stem, dot, ending = name, "", ""
    room = NAME_MOST - len((dot + ending).encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip() + dot + ending


def type_of(name: str, declared: str) -> str:
    """The media type: guessed from the name, else the one declared, else that of any bytes."""
    guessed, packed = _types.guess_type(_NOT_PLAIN.sub("_", name), strict=True)  # it takes what it gets for a URL
    if packed:
        return _PACKED.get(packed, _UNKNOWN)
    if guessed:
        return guessed
    found = _TYPE.fullmatch(declared.strip())
    if found is None:
        return _UNKNOWN
    kind, charset = found.groups()
    return kind.lower() + (f"; charset={charset}" if charset else "")


def expires_after(text: str) -> int | None:
    """``3600``, ``90m``, ``1h``, ``1d``, ``2w``, in ns; None for an empty text: never."""
    if not text.strip():
        return None
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        raise UsageError("How long it is kept must be like 3600, 90m, 1h, 1d or 2w, and at most ten years.")
    return seconds * _SECOND


def downloads_of(text: str) -> int:
    """A number of downloads; 1 for an empty text."""
    text = text.strip() or "1"
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not 1 <= number <= MOST_DOWNLOADS:
        raise UsageError(f"The number of downloads must be from 1 to {MOST_DOWNLOADS}.")
    return number
