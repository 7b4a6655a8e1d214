"""A manifest as JSON: read piece by piece, checked, kept to the letter; and written out again with availability.

What is promised: memory does not grow with the size of the body, but for 24 bytes and a little more for each of
``ENTRIES_MOST`` files and directories; what a client sent comes back as it was, but for what it said of availability;
broken JSON is refused with its line and column, after three readings at most, a bad entry with its path.

Stored, a manifest is lines of JSON: ``["f", path, entry]`` for a file, ``["d", path, entry]`` for a directory, and at
the end ``["h", header]`` with everything else.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import ijson
import msgspec
from borghash import HashTable

from holdfast.errors import TooLarge, UsageError
from holdfast.manifests.files import State, parse_hash

ENTRIES_MOST = 10_000_000  # files and directories together
HEADER_MOST = 1 << 20  # bytes of everything but files and directories
ENTRY_MOST = 64 << 10  # bytes of one entry
_HEADER_VALUES, _ENTRY_VALUES = 100_000, 10_000  # keys and values in everything but files and directories; in an entry
_DEEPEST = 50
_PATH_MOST = 4096
_NAME_MOST = 255
_OWNER_MOST = (1 << 32) - 2  # the number after it means nobody
_TIME_MOST = 64  # characters of a timestamp
_SHOWN_MOST = 200  # characters of a text that an error repeats
_SIZE_MOST = (1 << 63) - 1
_NO_TIME = "its timestamp must be like 2015-04-15T00:00:00+00:00."
_OURS = {"is_available", "available_bytes", "availability"}
_OCTAL = re.compile(r"[0-7]{1,7}")
_ORDINARY = re.compile(r"(?:\./)?[^./\0][^/\0]*(?:/[^./\0][^/\0]*)*")  # a path with nothing odd in it
# A date, and behind it nothing, or T or a space: ``fromisoformat`` takes any sign there.
_DATE = re.compile(r"[0-9]{4}(?:-?[0-9]{2}-?[0-9]{2}|-?W[0-9]{2}(?:-?[0-9])?)(?:[T ]|\Z)")
# Bytes without half a character: two escapes that are one character stand together.
_ESCAPED = rb"[^u]|u(?:[^dD]...|[dD][0-7]..|[dD][89abAB]..\\u[dD][c-fC-F]..)"
_WHOLE = re.compile(rb"[^\\]*(?:\\(?:" + _ESCAPED + rb")[^\\]*)*", re.DOTALL)
_PAIR = len(r"\ud83d\ude00")
_NESTED = ("start_map", "start_array")
_BLOCK, _PIECE = 64 << 10, 256

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
        self._source = _Checked(source, 0, _BLOCK)
        self.header: dict[str, Any] = {}
        self.files = self.directories = self.bytes = 0
        self._seen = HashTable(key_size=16, value_size=8)

    def lines(self) -> Iterator[tuple[bytes, Claim | None]]:
        """The lines to store, each with what it claims if it is a file's; the header's last."""
        yield from self._read()
        self._check_header()
        line = encode(["h", self.header]) + b"\n"
        if len(line) > HEADER_MOST:
            raise TooLarge("The manifest is too large besides its files and directories.")
        yield line, None

    @property
    def name(self) -> str:
        return str(self.header["name"])

    def _read(self) -> Iterator[tuple[bytes, Claim | None]]:
        events = itertools.chain.from_iterable(self._source.events())
        if next(events)[0] != "start_map":
            raise UsageError("A manifest is a JSON object.")
        budget = _Budget("The manifest", HEADER_MOST, _HEADER_VALUES)
        for kind, key in events:
            if kind == "end_map":
                break
            if key in ("files", "directories"):
                yield from self._section(key, events)
                continue
            budget.take(key)
            value = _value(*next(events), events, budget, 1)
            if self.header.setdefault(key, value) != value:
                raise UsageError(f"The manifest has {_shown(key)} twice, with different values.")
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
                raise UsageError(f"The entry {_shown(path)} must be an object.")
            entry = _entry(path, events)
            plain = _plain_path(path, is_file)
            claim = _check_entry(path, entry, is_file)
            line = encode([kind_of_line, path, entry]) + b"\n"
            if self._is_new(path, plain, line):
                if claim is None:
                    self.directories += 1
                else:
                    self.files += 1
                    self.bytes += claim.size
                yield line, claim

    def _is_new(self, path: str, plain: bytes, line: bytes) -> bool:
        """Whether the path was not named yet; UsageError when it was, with another entry."""
        key = _digest(plain, digest_size=16).digest()
        value = hash(line).to_bytes(8, "little", signed=True)  # nobody gains by two that are alike
        known = self._seen.get(key)
        if known is None:
            if self.files + self.directories >= ENTRIES_MOST:
                raise TooLarge(f"The manifest has more than {ENTRIES_MOST:,} files and directories.")
            self._seen[key] = value
            return True
        if known != value:
            raise UsageError(f"The manifest names {_shown(path)} twice, with different entries.")
        return False

    def _check_header(self) -> None:
        header = self.header
        demand_name(header.get("name"))
        _check_timestamp(None, header)
        base = header.get("base", "")
        if not isinstance(base, str) or "\0" in base:
            raise UsageError("The manifest's 'base' must be a text without NUL.")
        omit = header.get("omit", [])
        if not isinstance(omit, list) or not all(isinstance(spec, str) for spec in omit):
            raise UsageError("The manifest's 'omit' must be a list of texts.")


class _Pieces:
    """A stream as the parser gets it: ``good`` bytes in blocks, then the others ``step`` by ``step``.

    ``taken``: how many of its bytes the parser did not refuse; ``piece``: what it has got last.
    """

    def __init__(self, source: BinaryIO, good: int, step: int) -> None:
        self.source, self._good, self._step = source, good, step
        self.taken = 0
        self.piece = b""

    def events(self) -> Iterator[list[Event]]:
        """The parser's events, those of a piece together; those of the end last.

        ``ijson.basic_parse`` would hand out an event without a value, at which Python crashes, for a number of more
        digits than ``int`` takes (seen in 3.6.0). A list's ``append`` does not look at it, and tells.
        """
        self.source.seek(0)
        events = ijson.sendable_list()
        parser = ijson.basic_parse_coro(events)
        try:
            while piece := self._next():
                parser.send(piece)
                yield events
                self.taken += len(piece)
                events.clear()
            parser.close()
        except SystemError:
            raise ArithmeticError from None
        yield events

    def _next(self) -> bytes:
        size = min(_BLOCK, self._good - self.taken) if self.taken < self._good else self._step
        self.piece = self.source.read(size)
        return self.piece


class _Checked(_Pieces):
    """A stream that is refused where it is broken, where something goes on and on (TooLarge), be it white space, and
    where it has half a character.
    """

    def events(self) -> Iterator[list[Event]]:
        silent, rest = 0, b""
        try:
            for events in super().events():
                silent = 0 if events else silent + len(self.piece)
                if silent > HEADER_MOST:
                    raise TooLarge(
                        f"The manifest has a text, a number or white space of more than {HEADER_MOST:,} bytes."
                    )
                rest = self._demand_characters(rest)
                yield events
        except _REFUSALS as e:
            raise _broken(self.source, self.taken, e) from None

    def _demand_characters(self, rest: bytes) -> bytes:
        """UsageError when a piece has half a character: the parser makes a question mark of it. ``rest``: what of the
        piece before goes on in this one; the answer: what goes on in the next.
        """
        text = rest + self.piece
        if b"\\" not in text:
            return b""
        whole = _WHOLE.match(text)
        rest = text[whole.end() if whole else 0 :]
        if rest and (len(rest) >= _PAIR or not self.piece):
            half = rest[: _PAIR // 2].decode("ascii", "replace")
            at = self.taken + len(self.piece) - len(rest)
            raise _refusal(self.source, at, f"{half} is half a character")
        return rest


class _Budget:
    """How much one value may take in memory."""

    def __init__(self, thing: str, size: int, values: int) -> None:
        self._thing, self._size, self._values = thing, size, values

    def take(self, value: Any) -> None:
        self._values -= 1
        self._size -= _length(value)
        if self._values < 0 or self._size < 0:
            raise TooLarge(f"{self._thing} is too large.")


def _length(value: Any) -> int:
    """What a value counts in a budget: about as many bytes as it takes in JSON, but at least 8 if it is no text."""
    if type(value) is str:
        return len(value)
    if type(value) is int and value.bit_length() <= 64:
        return 8
    return max(8, len(str(value)))


def _value(kind: str, value: Any, events: Iterator[Event], budget: _Budget, depth: int) -> Any:
    """The value that begins with this event."""
    budget.take(value)
    if kind == "start_map":
        found: dict[str, Any] = {}
        for _, key in _inside(events, "end_map", depth):
            budget.take(key)
            item = _value(*next(events), events, budget, depth + 1)
            if found.setdefault(key, item) != item:
                raise UsageError(f"The key {_shown(key)} is given twice, with different values.")
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
        if kind == "string":
            size += len(key) + len(value)
        elif kind in _NESTED:
            budget = budget or _Budget(f"The entry {_shown(path)}", ENTRY_MOST, _ENTRY_VALUES)
            value = _value(kind, value, events, budget, 3)
            size += len(key) + 8
        else:
            size += len(key) + _length(value)
        if size > ENTRY_MOST:
            raise TooLarge(f"The entry {_shown(path)} is too large.")
        if found.setdefault(key, value) != value:
            raise UsageError(f"The key {_shown(key)} is given twice, with different values.")
    return found


def demand_name(name: object) -> str:
    """A manifest's name; UsageError when it is none."""
    if not isinstance(name, str) or not 1 <= len(name) <= _NAME_MOST or "/" in name or "\0" in name:
        raise UsageError(f"A manifest's name has 1 to {_NAME_MOST} characters, no slash and no NUL.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError("A manifest's name must be text.") from None
    return name


def normal(path: str) -> str:
    """A path without what does not matter in it: ``./a//b/`` is ``a/b``."""
    return "/".join(step for step in path.split("/") if step not in ("", "."))


def _plain_path(path: str, is_file: bool) -> bytes:
    """The path without what does not matter in it. UsageError when it leads astray, or names no file."""
    if len(path) <= _PATH_MOST and _ORDINARY.fullmatch(path):
        return path.removeprefix("./").encode()
    steps = path.split("/")
    if path.startswith("/") or ".." in steps or "\0" in path or len(path) > _PATH_MOST:
        raise UsageError(f"The entry {_shown(path)}: its path must be relative, without `..` and NUL.")
    if is_file and (not normal(path) or steps[-1] in ("", ".")):
        raise UsageError(f"The entry {_shown(path)}: its path must name a file.")
    return normal(path).encode()


def _check_entry(path: str, entry: dict[str, Any], is_file: bool) -> Claim | None:
    """Refuse what cannot be an entry, and take out what a client says of availability; a file's claim."""
    if not _OURS.isdisjoint(entry):
        for key in _OURS:
            entry.pop(key, None)
    _check_timestamp(path, entry)
    permissions = entry.get("permissions", 0)
    if isinstance(permissions, bool) or not _OCTAL.fullmatch(str(permissions)):
        raise UsageError(f"The entry {_shown(path)}: its permissions must be octal digits.")
    for key in ("user", "group"):
        if not _is_owner(entry.get(key, "")):
            raise UsageError(
                f"The entry {_shown(path)}: its {key} must be a name of at most {_NAME_MOST} characters, without NUL, "
                f"or a number up to {_OWNER_MOST}."
            )
    return _check_claim(path, entry) if is_file else None


def _is_owner(value: object) -> bool:
    """Whether it is a name, or a number that a user or a group can have, perhaps as a text."""
    if type(value) is str:
        if len(value) > _NAME_MOST or "\0" in value:
            return False
        if not (value.isdigit() and value.isascii()):
            return True
        value = int(value)
    return type(value) is int and 0 <= value <= _OWNER_MOST


def _check_claim(path: str, entry: dict[str, Any]) -> Claim:
    hash_, size = entry.get("hash"), entry.get("size")
    if not isinstance(hash_, str):
        raise UsageError(f"The entry {_shown(path)} must have a hash.")
    if type(size) is not int or not 0 <= size <= _SIZE_MOST:
        raise UsageError(f"The entry {_shown(path)}: its size must be a number of bytes.")
    try:
        return Claim(parse_hash(hash_), size)
    except UsageError as e:
        raise UsageError(f"The entry {_shown(path)}: {e}") from None


def _check_timestamp(path: str | None, content: dict[str, Any]) -> None:
    text = content.get("timestamp")
    if text is not None and not _is_time(text):
        thing = "The manifest" if path is None else f"The entry {_shown(path)}"
        raise UsageError(f"{thing}: {_NO_TIME}")


def _is_time(text: object) -> bool:
    if type(text) is not str or len(text) > _TIME_MOST or not _DATE.match(text):
        return False
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def parse_time(text: object) -> datetime.datetime:
    """A timestamp, with a zone (UTC if it names none). UsageError when it is none."""
    try:
        found = datetime.datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        raise UsageError(_NO_TIME) from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _shown(text: str) -> str:
    """A text as errors repeat it."""
    return repr(text if len(text) <= _SHOWN_MOST else text[:_SHOWN_MOST] + "…")


# -- where JSON is broken ----------------------------------------------------------------------------------------------


_REFUSALS = (ijson.JSONError, UnicodeError, ValueError, ArithmeticError)  # how the parser says that it takes no more


def _broken(source: BinaryIO, good: int, error: Exception) -> UsageError:
    """The error for JSON of which ``good`` bytes can be read, and the next block cannot.

    It is read twice more to find the byte: not byte by byte at once, as a token is begun anew with each piece of it.
    """
    for step in (_PIECE, 1):
        good = _taken(_Pieces(source, good, step))
    return _refusal(source, good, _reason(error))


def _taken(pieces: _Pieces) -> int:
    """How many bytes the parser takes."""
    with contextlib.suppress(*_REFUSALS):
        collections.deque(pieces.events(), maxlen=0)
    return pieces.taken


def _reason(error: Exception) -> str:
    if not isinstance(error, (ijson.JSONError, UnicodeError)):
        return "a number is too large"
    text = str(error).strip() or "it cannot be read"
    return re.sub(r"^(lexical|parse) error: ?", "", text.splitlines()[0]).rstrip(".")


def _refusal(source: BinaryIO, at: int, reason: str) -> UsageError:
    line, column = _place(source, at)
    return UsageError(f"The manifest is not JSON: {reason} (line {line}, column {column}).", "Correct it there.")


def _place(source: BinaryIO, at: int) -> tuple[int, int]:
    """Line and column, from 1, of a byte."""
    line = column = 1
    source.seek(0)
    while at and (text := source.read(min(_BLOCK, at))):
        at -= len(text)
        newlines = text.count(b"\n")
        line += newlines
        column = len(text) - text.rfind(b"\n") if newlines else column + len(text)
    return line, column


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
