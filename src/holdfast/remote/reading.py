"""A manifest as a server sends it, read piece by piece from a file, and believed in nothing.

What comes out of here has paths whose every step is a name of its own (nothing absolute, no ``..``, no NUL) and
numbers that a file can have; anything else is refused with a sentence. Availability is only a hint what to ask for.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ijson
import msgspec

from holdfast.archive.walking import RefusedName, check_name
from holdfast.errors import ContentError

_BLOCK = 256 << 10
_SIZE_MOST = (1 << 63) - 1
_OWNER_MOST = (1 << 32) - 2
_TARGET_MOST = 4095
_HASH = re.compile(r"[0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}")
_OCTAL = re.compile(r"[0-7]{1,7}")
_OURS = re.compile(rb"\.holdfast-[0-9a-f]{16}\.part")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)

Refuse = Callable[[str, str], None]  # a path as it stands in the manifest, and what is wrong, as a sentence's end
Owner = str | int | None  # a name, a number, or not said


class About(msgspec.Struct):
    """What a manifest says of an entry besides its content. ``time_us``: microseconds since 1970. None: not said."""

    path: bytes
    user: Owner = None
    group: Owner = None
    mode: int | None = None
    time_us: int | None = None


class FileLine(About):
    """One file. ``available``: whether the server says that it has all of it; ``leading``: how many bytes from the
    first one on it has otherwise.
    """

    hash: str = ""
    size: int = 0
    available: bool = False
    leading: int = 0


class LinkLine(About):
    """One symbolic link."""

    target: bytes = b""


class Manifest:
    """See the module. ``source`` is read from its beginning each time; ``refuse`` hears what cannot be used."""

    def __init__(self, source: BinaryIO, refuse: Refuse) -> None:
        self._source, self._refuse = source, refuse

    def omit(self) -> tuple[str, ...]:
        """The specs of what is to be ignored."""
        found: Any = next(self._read(ijson.items, "omit"), [])
        if not isinstance(found, list) or not all(isinstance(spec, str) for spec in found):
            raise ContentError("The manifest's 'omit' is not a list of texts.")
        return tuple(found)

    def files(self) -> Iterator[FileLine]:
        return self._lines("files", _file)

    def folders(self) -> Iterator[About]:
        """The directories, but for the one that everything lies in."""
        return self._lines("directories", _folder)

    def links(self) -> Iterator[LinkLine]:
        return self._lines("symlinks", _link)

    def _lines(self, section: str, made: Callable[[str, dict[str, Any]], Any]) -> Iterator[Any]:
        for path, entry in self._read(ijson.kvitems, section):
            try:
                if not isinstance(entry, dict):
                    raise RefusedName("its entry is no object")
                line = made(path, entry)
            except RefusedName as e:
                self._refuse(path, str(e))
                continue
            if line is not None:
                yield line

    def _read(self, reader: Callable[..., Iterator[Any]], prefix: str) -> Iterator[Any]:
        self._source.seek(0)
        try:
            yield from reader(self._source, prefix, buf_size=_BLOCK, use_float=True)
        except (ijson.JSONError, UnicodeError, ValueError, OverflowError, RecursionError):
            raise ContentError("The manifest that the server sent is not JSON.") from None


def path_of(text: str) -> bytes:
    """A path below the target; RefusedName when it is none. Empty for the target itself."""
    if text.startswith("/"):
        raise RefusedName("its path is absolute")
    try:
        steps = text.encode().split(b"/")
    except UnicodeEncodeError:
        raise RefusedName("its path is no text") from None
    kept = [check_name(step) for step in steps if step not in (b"", b".")]
    if any(is_ours(step) for step in kept):
        raise RefusedName("that name is kept for files that are not whole yet")
    return b"/".join(kept)


def is_ours(name: bytes) -> bool:
    """Whether it is the name of a file that is being restored."""
    return _OURS.fullmatch(name) is not None


def _named(text: str) -> bytes:
    if not (path := path_of(text)):
        raise RefusedName("its path names nothing")
    return path


def _about(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "user": _owner(entry.get("user")), "group": _owner(entry.get("group")), "mode": _mode(entry.get("permissions")),
        "time_us": _time(entry.get("timestamp")),
    }  # fmt: skip


def _file(path: str, entry: dict[str, Any]) -> FileLine:
    hash_, size = entry.get("hash"), entry.get("size")
    if not isinstance(hash_, str) or not _HASH.fullmatch(hash_):
        raise RefusedName("its hash is none")
    if type(size) is not int or not 0 <= size <= _SIZE_MOST:
        raise RefusedName("its size is not one a file can have")
    return FileLine(
        path=_named(path), hash=hash_.lower(), size=size, available=entry.get("is_available") is True,
        leading=_leading(entry.get("available_bytes"), size), **_about(entry),
    )  # fmt: skip


def _folder(path: str, entry: dict[str, Any]) -> About | None:
    found = path_of(path)
    return About(path=found, **_about(entry)) if found else None


def _link(path: str, entry: dict[str, Any]) -> LinkLine:
    target = entry.get("target")
    try:
        points_to = target.encode() if isinstance(target, str) else b""
    except UnicodeEncodeError:
        points_to = b""
    if not points_to or len(points_to) > _TARGET_MOST or b"\0" in points_to:
        raise RefusedName("it points to what is no path")
    return LinkLine(path=_named(path), target=points_to, **_about(entry))


def _leading(ranges: object, size: int) -> int:
    """How many bytes from the first one on are there, from merged ranges with both ends in them."""
    first = ranges[0] if isinstance(ranges, list) and ranges else None
    if isinstance(first, list) and len(first) == 2 and first[0] == 0 and type(first[1]) is int:
        return int(max(0, min(first[1] + 1, size)))
    return 0


def _owner(value: object) -> Owner:
    if value is None or isinstance(value, str):
        return value
    if type(value) is not int or not 0 <= value <= _OWNER_MOST:
        raise RefusedName("its owner is not one a file can have")
    return value


def _mode(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not _OCTAL.fullmatch(str(value)):
        raise RefusedName("its permissions are not octal digits")
    return int(str(value), 8) & 0o7777


def _time(value: object) -> int | None:
    if value is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(value if isinstance(value, str) else "")
        return ((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise RefusedName("its timestamp is none") from None
