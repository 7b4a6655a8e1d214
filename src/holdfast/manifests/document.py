"""A manifest as JSON: read piece by piece, checked, kept to the letter; and written out again with availability.

What is promised: memory does not grow with the number of files; what a client sent comes back as it was, but for what
it said of availability; broken JSON is refused with its line and column, a bad entry with its path.

Stored, a manifest is lines of JSON: ``["f", path, entry]`` for a file, ``["d", path, entry]`` for a directory, and at
the end ``["h", header]`` with everything else.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import ijson
import msgspec
from borghash import HashTable

from holdfast.errors import TooLarge, UsageError
from holdfast.manifests.files import State, parse_hash

HEADER_MOST = 1 << 20  # bytes of everything but files and directories
ENTRY_MOST = 64 << 10  # bytes of one entry
_HEADER_VALUES, _ENTRY_VALUES = 100_000, 10_000  # keys and values in everything but files and directories; in an entry
_DEEPEST = 50
_PATH_MOST = 4096
_NAME_MOST = 255
_SIZE_MOST = (1 << 63) - 1
_OURS = ("is_available", "available_bytes", "availability")
_OCTAL = re.compile(r"[0-7]{1,7}")
_ORDINARY = re.compile(r"(?:\./)?[^./\0][^/\0]*(?:/[^./\0][^/\0]*)*")  # a path with nothing odd in it
_NESTED = ("start_map", "start_array")
_BLOCK = 64 << 10

_digest = hashlib.blake2b
encode = msgspec.json.Encoder(decimal_format="number").encode
Event = tuple[str, Any]


class Line(msgspec.Struct, array_like=True):
    """A stored line of a file or directory; ``path`` and ``entry`` as they stand in JSON."""

    kind: str
    path: msgspec.Raw
    entry: msgspec.Raw


class Claim(msgspec.Struct):
    """What an entry says of its content."""

    hash: str
    size: int


_decode_line = msgspec.json.Decoder(Line).decode
_decode_claim = msgspec.json.Decoder(Claim).decode


class Reading:
    """One manifest being read from a seekable stream. ``lines`` first; then ``header`` and the counts are known."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.header: dict[str, Any] = {}
        self.files = self.directories = self.bytes = 0
        self._seen = HashTable(key_size=16, value_size=8)

    def lines(self) -> Iterator[tuple[bytes, Claim | None]]:
        """The lines to store, each with what it claims if it is a file's; the header's last."""
        try:
            yield from self._read()
        except (ijson.JSONError, UnicodeError, ValueError) as e:
            raise _broken(self._source, e) from None
        self._check_header()
        line = encode(["h", self.header]) + b"\n"
        if len(line) > HEADER_MOST:
            raise TooLarge("The manifest is too large besides its files and directories.")
        yield line, None

    @property
    def name(self) -> str:
        return str(self.header["name"])

    def _read(self) -> Iterator[tuple[bytes, Claim | None]]:
        events: Iterator[Event] = ijson.basic_parse(self._source, buf_size=_BLOCK)
        if next(events)[0] != "start_map":
            raise UsageError("A manifest is a JSON object.")
        budget = _Budget("The manifest", HEADER_MOST, _HEADER_VALUES)
        for kind, key in events:
            if kind == "end_map":
                break
            if key in ("files", "directories"):
                yield from self._section(key, events)
                continue
            value = _value(*next(events), events, budget, 1)
            if self.header.setdefault(key, value) != value:
                raise UsageError(f"The manifest has {key!r} twice, with different values.")
        for _ in events:  # whatever stands behind the object is an error of the parser
            pass

    def _section(self, section: str, events: Iterator[Event]) -> Iterator[tuple[bytes, Claim | None]]:
        if next(events)[0] != "start_map":
            raise UsageError(f"{section!r} must be an object.")
        is_file = section == "files"
        kind_of_line = "f" if is_file else "d"
        for kind, path in events:
            if kind == "end_map":
                return
            if next(events)[0] != "start_map":
                raise UsageError(f"The entry {path!r} must be an object.")
            entry = _entry(path, events)
            plain = _plain_path(path, is_file)
            claim = _check_entry(path, entry, is_file)
            line = encode([kind_of_line, path, entry]) + b"\n"
            if self._is_new(path, plain, line):
                self.files += is_file
                self.directories += not is_file
                self.bytes += claim.size if claim else 0
                yield line, claim

    def _is_new(self, path: str, plain: bytes, line: bytes) -> bool:
        """Whether the path was not named yet; UsageError when it was, with another entry."""
        key, value = _digest(plain, digest_size=16).digest(), _digest(line, digest_size=8).digest()
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = value
            return True
        if known != value:
            raise UsageError(f"The manifest names {path!r} twice, with different entries.")
        return False

    def _check_header(self) -> None:
        header = self.header
        demand_name(header.get("name"))
        _check_timestamp(None, header)
        if not isinstance(header.get("base", ""), str):
            raise UsageError("The manifest's 'base' must be a text.")
        omit = header.get("omit", [])
        if not isinstance(omit, list) or not all(isinstance(spec, str) for spec in omit):
            raise UsageError("The manifest's 'omit' must be a list of texts.")


class _Budget:
    """How much one value may take in memory."""

    def __init__(self, thing: str, size: int, values: int) -> None:
        self._thing, self._size, self._values = thing, size, values

    def take(self, value: Any) -> None:
        self._values -= 1
        self._size -= len(value) if isinstance(value, str) else 8
        if self._values < 0 or self._size < 0:
            raise TooLarge(f"{self._thing} is too large.")


def _value(kind: str, value: Any, events: Iterator[Event], budget: _Budget, depth: int) -> Any:
    """The value that begins with this event."""
    budget.take(value)
    if kind == "start_map":
        found: dict[str, Any] = {}
        for _, key in _inside(events, "end_map", depth):
            budget.take(key)
            item = _value(*next(events), events, budget, depth + 1)
            if found.setdefault(key, item) != item:
                raise UsageError(f"The key {key!r} is given twice, with different values.")
        return found
    if kind == "start_array":
        return [_value(k, v, events, budget, depth + 1) for k, v in _inside(events, "end_array", depth)]
    return value


def _inside(events: Iterator[Event], end: str, depth: int) -> Iterator[Event]:
    if depth > _DEEPEST:
        raise UsageError(f"The manifest is nested more than {_DEEPEST} deep.")
    for event in events:
        if event[0] == end:
            return
        yield event


def _entry(path: str, events: Iterator[Event]) -> dict[str, Any]:
    """An entry whose object has begun. Nearly all are flat, so that is the quick way."""
    found: dict[str, Any] = {}
    budget: _Budget | None = None
    size = 0
    for kind, key in events:
        if kind == "end_map":
            return found
        kind, value = next(events)
        if kind in _NESTED:
            budget = budget or _Budget(f"The entry {path!r}", ENTRY_MOST, _ENTRY_VALUES)
            value = _value(kind, value, events, budget, 3)
        size += len(key) + (len(value) if type(value) is str else 8)
        if size > ENTRY_MOST:
            raise TooLarge(f"The entry {path!r} is too large.")
        if found.setdefault(key, value) != value:
            raise UsageError(f"The key {key!r} is given twice, with different values.")
    return found


def demand_name(name: object) -> str:
    """A manifest's name; UsageError when it is none."""
    if not isinstance(name, str) or not 1 <= len(name) <= _NAME_MOST or "/" in name or "\0" in name:
        raise UsageError(f"A manifest's name has 1 to {_NAME_MOST} characters, no slash and no NUL.")
    if not _encodable(name):
        raise UsageError("A manifest's name must be text.")
    return name


def normal(path: str) -> str:
    """A path without what does not matter in it: ``./a//b/`` is ``a/b``."""
    return "/".join(step for step in path.split("/") if step not in ("", "."))


def _plain_path(path: str, is_file: bool) -> bytes:
    """The path without what does not matter in it. UsageError when it leads astray, or names no file."""
    if _ORDINARY.fullmatch(path) and len(path) <= _PATH_MOST and _encodable(path):
        return path.removeprefix("./").encode()
    steps = path.split("/")
    if path.startswith("/") or ".." in steps or "\0" in path or len(path) > _PATH_MOST or not _encodable(path):
        raise UsageError(f"The entry {path!r}: its path must be relative, without `..` and NUL.")
    if is_file and (not normal(path) or steps[-1] in ("", ".")):
        raise UsageError(f"The entry {path!r}: its path must name a file.")
    return normal(path).encode()


def _check_entry(path: str, entry: dict[str, Any], is_file: bool) -> Claim | None:
    """Refuse what cannot be an entry, and take out what a client says of availability; a file's claim."""
    for key in _OURS:
        entry.pop(key, None)
    _check_timestamp(path, entry)
    permissions = entry.get("permissions", 0)
    if isinstance(permissions, bool) or not _OCTAL.fullmatch(str(permissions)):
        raise UsageError(f"The entry {path!r}: its permissions must be octal digits.")
    for key in ("user", "group"):
        if type(entry.get(key, "")) not in (str, int):
            raise UsageError(f"The entry {path!r}: its {key} must be a name or a number.")
    return _check_claim(path, entry) if is_file else None


def _check_claim(path: str, entry: dict[str, Any]) -> Claim:
    hash_, size = entry.get("hash"), entry.get("size")
    if not isinstance(hash_, str):
        raise UsageError(f"The entry {path!r} must have a hash.")
    if type(size) is not int or not 0 <= size <= _SIZE_MOST:
        raise UsageError(f"The entry {path!r}: its size must be a number of bytes.")
    try:
        return Claim(parse_hash(hash_), size)
    except UsageError as e:
        raise UsageError(f"The entry {path!r}: {e}") from None


def _check_timestamp(path: str | None, content: dict[str, Any]) -> None:
    text = content.get("timestamp")
    if text is None:
        return
    try:
        parse_time(text)
    except UsageError as e:
        thing = "The manifest" if path is None else f"The entry {path!r}"
        raise UsageError(f"{thing}: {e}") from None


def parse_time(text: object) -> datetime.datetime:
    """A timestamp, with a zone (UTC if it names none). UsageError when it is none."""
    try:
        found = datetime.datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        raise UsageError("its timestamp must be like 2015-04-15T00:00:00+00:00.") from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- where JSON is broken ----------------------------------------------------------------------------------------------


def _broken(source: BinaryIO, error: Exception) -> UsageError:
    """The error for JSON that cannot be read: it is read again, to find the byte where the parser stops."""
    source.seek(0)
    line, column = _place(source)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is not JSON"
    reason = re.sub(r"^(lexical|parse) error: ?", "", reason).rstrip(".")
    return UsageError(f"The manifest is not JSON: {reason} (line {line}, column {column}).", "Correct it there.")


def _place(source: BinaryIO) -> tuple[int, int]:
    """Line and column, from 1, of the first byte that the parser refuses, or of the end."""
    line = column = 1

    def pass_over(text: bytes) -> None:
        nonlocal line, column
        newlines = text.count(b"\n")
        line += newlines
        column = len(text) - text.rfind(b"\n") if newlines else column + len(text)

    good = 0
    while block := source.read(_BLOCK):
        if not _accepts(source, good, len(block)):
            low, high = 0, len(block)  # so many bytes of it are fine; so many are not
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _accepts(source, good, middle) else (low, middle)
            pass_over(block[:low])
            return line, column
        good += len(block)
        pass_over(block)
        source.seek(good)
    return line, column


def _accepts(source: BinaryIO, good: int, more: int) -> bool:
    """Whether the parser takes the first ``good + more`` bytes, as far as they go."""
    source.seek(0)
    parser = ijson.basic_parse_coro(_Nothing())
    left = good + more
    try:
        while left and (block := source.read(min(_BLOCK, left))):
            parser.send(block)
            left -= len(block)
    except (ijson.JSONError, ValueError, StopIteration):
        return False
    return True


class _Nothing:
    """Takes the parser's events and forgets them."""

    def send(self, event: object) -> None:
        pass


# -- writing it out ----------------------------------------------------------------------------------------------------

Judge = Callable[[list[Claim]], list[State]]
AVAILABLE = b',"is_available":true'


def rendered(header: bytes, lines: Iterable[bytes], judge: Judge | None, as_number: bool) -> Iterator[bytes]:
    """The manifest as JSON, piece by piece. ``header``: a JSON object; ``lines``: those of files and directories, all
    of a section together; ``judge`` tells for claims what is here (None: all is).
    """
    yield header[:-1]
    comma = b"" if header == b"{}" else b","
    section, first, has_files = "", True, False
    for batch in _batches(lines):
        found = [_decode_line(line) for line in batch]
        claims = [_decode_claim(line.entry) for line in found if line.kind == "f"]
        states = iter(judge(claims) if judge and claims else ())
        out: list[bytes] = []
        for line in found:
            if line.kind != section:
                opening = b'"files":{' if line.kind == "f" else b'"directories":{'
                out.append((b"}" if section else b"") + comma + opening)
                comma, section, first = b",", line.kind, True
                has_files = has_files or line.kind == "f"
            more = b"" if line.kind == "d" else _availability(next(states, None), as_number)
            entry = bytes(line.entry)
            if entry == b"{}":
                more = more[1:]
            out += (b"" if first else b",", bytes(line.path), b":", entry[:-1], more, b"}")
            first = False
        yield b"".join(out)
    yield (b"}" if section else b"") + (b"" if has_files else comma + b'"files":{}') + b"}"


def _availability(state: State | None, as_number: bool) -> bytes:
    """What is said of one file. ``state``: None when it is here."""
    if as_number:
        number = -1 if state is None or state.is_available else state.leading
        return b',"availability":%d' % number
    if state is None or state.is_available:
        return AVAILABLE
    if not state.ranges:
        return b',"is_available":false'
    ranges = b",".join(b"[%d,%d]" % (start, stop - 1) for start, stop in state.ranges)
    return b',"is_available":false,"available_bytes":[' + ranges + b"]"


def _batches(lines: Iterable[bytes], most: int = 1000) -> Iterator[list[bytes]]:
    held: list[bytes] = []
    for line in lines:
        held.append(line)
        if len(held) == most:
            yield held
            held = []
    if held:
        yield held


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Stored lines out of the pieces of a content, the header's left out."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            if not line.startswith(b'["h"'):
                yield line
