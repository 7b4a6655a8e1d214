"""A manifest as a server sends it, read piece by piece from a file, and believed in nothing.

Whatever a server sends, no more than a little of it stands in memory: entries that are too large or nested too deep end
the reading.

What comes out of here has paths whose every step is a name of its own (nothing absolute, no ``..``, no NUL) and
numbers that a file can have; anything else is refused with a sentence. Availability is only a hint what to ask for.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import ijson
import msgspec

from holdfast.archive.walking import RefusedName, check_name
from holdfast.errors import ContentError

_BLOCK = 64 << 10
_ENTRY_MOST = 2 << 20  # bytes of one entry, or of everything that is omitted
_DEEPEST = 20
_OPENING, _CLOSING = ("start_map", "start_array"), ("end_map", "end_array")
_SIZE_MOST = (1 << 63) - 1
_OWNER_MOST = (1 << 32) - 2
_TARGET_MOST = 4095
_HASH = re.compile(r"[0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}")
_OCTAL = re.compile(r"[0-7]{1,7}")
_OURS = re.compile(rb"\.holdfast-[0-9a-f]{16}\.part")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)

Event = tuple[str, Any]
Refuse = Callable[[str, str], None]  # a path as it stands in the manifest, and what is wrong, as a sentence's end
Owner = str | int | None  # a name, a number, or not said
L = TypeVar("L", bound="About")


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
    """See the module. It is read once, from ``source``; what can be used of it waits in files made by ``scratch``.
    ``refuse`` hears of the rest. ``size``: bytes of all its files; ``omit``: the specs of what is to be ignored.
    ``close`` it, or use it as a context.
    """

    def __init__(self, source: BinaryIO, scratch: Callable[[], BinaryIO], refuse: Refuse) -> None:
        self.omit: tuple[str, ...] = ()
        self.size = 0
        self._refuse, self._stack = refuse, contextlib.ExitStack()
        self._has_files = False
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(self._stack.close)
            self._spools = {kind: _Spool(self._stack.enter_context(contextlib.closing(scratch()))) for kind in _MADE}
            source.seek(0)
            self._read(_Bounded(source))
            unfinished.pop_all()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def files(self) -> Iterator[FileLine]:
        return self._spools["files"].lines(FileLine)

    def folders(self) -> Iterator[About]:
        """The directories, but for the one that everything lies in."""
        return self._spools["directories"].lines(About)

    def links(self) -> Iterator[LinkLine]:
        return self._spools["symlinks"].lines(LinkLine)

    def _read(self, source: _Bounded) -> None:
        events = _events(source)
        try:
            if next(events)[0] != "start_map":
                raise ContentError("What the server sent is no manifest.")
            for kind, key in events:
                if kind == "end_map":
                    break
                self._part(key, source, events)
            for _ in events:  # whatever stands behind the object is an error of the parser
                pass
        except (ijson.JSONError, UnicodeError, ValueError, OverflowError):
            raise ContentError("The manifest that the server sent is not JSON.") from None
        if not self._has_files:  # what names no files, be it none, would let a pull remove everything
            raise ContentError("What the server sent is no manifest: it has no list of files.")

    def _part(self, key: str, source: _Bounded, events: Iterator[Event]) -> None:
        """One of the manifest's keys, with its value."""
        source.go_on()
        kind, value = next(events)
        if key in _MADE and kind == "start_map":
            self._has_files |= key == "files"
            self._section(key, source, events)
        elif key == "omit":
            omit = _value(kind, value, events, 1)
            if not isinstance(omit, list) or not all(isinstance(spec, str) for spec in omit):
                raise ContentError("The manifest's 'omit' is not a list of texts.")
            self.omit = tuple(omit)
        else:
            _pass_over(kind, source, events)

    def _section(self, key: str, source: _Bounded, events: Iterator[Event]) -> None:
        made, add = _MADE[key], self._spools[key].add
        for kind, path in events:
            if kind == "end_map":
                return
            source.go_on()
            entry = _value(*next(events), events, 2)
            try:
                if not isinstance(entry, dict):
                    raise RefusedName("its entry is no object")
                line = made(path, entry)
            except RefusedName as e:
                self._refuse(path, str(e))
                continue
            if line is not None:
                add(line)
                self.size += line.size if isinstance(line, FileLine) else 0


def _events(source: _Bounded) -> Iterator[Event]:
    """The parser's events. (``ijson.basic_parse`` may hand out an event without a value, at which Python crashes, for a
    number of more digits than ``int`` takes: seen in 3.6.0. A list's ``append`` does not look at it, and tells.)
    """
    found = ijson.sendable_list()
    parser = ijson.basic_parse_coro(found, use_float=True)
    try:
        while piece := source.read(_BLOCK):
            parser.send(piece)
            yield from found
            found.clear()
        parser.close()
    except SystemError:
        raise ValueError("a number without end") from None
    yield from found


class _Bounded:
    """A source that ends when it has given more than an entry may have since somebody went on to the next one."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._given = source, 0

    def go_on(self) -> None:
        self._given = 0

    def read(self, size: int) -> bytes:
        self._given += size
        if size and self._given > _ENTRY_MOST:
            raise ContentError("The manifest that the server sent has an entry that is too large.")
        return self._source.read(size)


class _Spool:
    """Lines that wait in a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._encode = file, msgspec.msgpack.Encoder().encode

    def add(self, line: About) -> None:
        text = self._encode(line)
        self._file.write(len(text).to_bytes(4, "little") + text)

    def lines(self, kind: type[L]) -> Iterator[L]:
        decode = msgspec.msgpack.Decoder(kind).decode
        self._file.seek(0)
        while head := self._file.read(4):
            yield decode(self._file.read(int.from_bytes(head, "little")))


def _value(kind: str, value: Any, events: Iterator[Event], depth: int) -> Any:
    """The value that begins with this event."""
    if depth > _DEEPEST:
        raise ContentError("The manifest that the server sent is nested too deep.")
    if kind == "start_map":
        found: dict[str, Any] = {}
        for inner, key in events:
            if inner == "end_map":
                break
            found[key] = _value(*next(events), events, depth + 1)
        return found
    if kind == "start_array":
        items: list[Any] = []
        for inner, item in events:
            if inner == "end_array":
                break
            items.append(_value(inner, item, events, depth + 1))
        return items
    return value


def _pass_over(kind: str, source: _Bounded, events: Iterator[Event]) -> None:
    """Leave a value out, however large it is."""
    depth = int(kind in _OPENING)
    while depth:
        inner, _ = next(events)
        source.go_on()
        depth += (inner in _OPENING) - (inner in _CLOSING)


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


_MADE: dict[str, Callable[[str, dict[str, Any]], About | None]] = {
    "files": _file, "directories": _folder, "symlinks": _link,
}  # fmt: skip
