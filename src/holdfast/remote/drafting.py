"""A manifest while it is written: files and directories wait in files of their own, so that memory does not grow.

Symbolic links are not part of the format; they stand under a key of ours, ``"symlinks"``, as far as the server takes
so much besides files and directories.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

MOST_BYTES = 1 << 30  # of the whole manifest, as servers take it
_BESIDES_BYTES = (1 << 20) - 4096  # of everything but files and directories; a little is left for what it costs to say
_BESIDES_VALUES = 99_000  # so many keys and values
_PIECE = 256 << 10
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LEAST_US = -62_135_596_800_000_000  # the years 1 to 9999, which is what a timestamp can say
_MOST_US = 253_402_300_799_999_999

encode = msgspec.json.Encoder().encode


class FileEntry(msgspec.Struct):
    """One file. ``permissions``: octal digits written as a number, as the format has it."""

    hash: str
    size: int
    timestamp: str
    user: str | int
    group: str | int
    permissions: int


class FolderEntry(msgspec.Struct):
    """One directory."""

    timestamp: str
    user: str | int
    group: str | int
    permissions: int


class LinkEntry(msgspec.Struct):
    """One symbolic link."""

    target: str
    user: str | int
    group: str | int
    timestamp: str


def timestamp(time_ns: int) -> str:
    """A time as a manifest says it: to the microsecond, with its zone. One that no timestamp can say: the nearest."""
    moment = _EPOCH + datetime.timedelta(microseconds=max(_LEAST_US, min(_MOST_US, time_ns // 1000)))
    return moment.isoformat(timespec="microseconds")


def permissions(mode: int) -> int:
    """Permission bits as octal digits written as a number: 0o644 is 644."""
    return int(f"{mode & 0o7777:o}")


class Draft:
    """See the module. ``close`` it, or use it as a context. ``header``: everything but files, directories and links."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self._header = encode(header)
        self._files, self._folders = _Section(folder), _Section(folder)
        self._links: list[bytes] = []
        values = len(header) * 2 + sum(len(v) for v in header.values() if isinstance(v, list))
        self._bytes, self._values = _BESIDES_BYTES - len(self._header), _BESIDES_VALUES - values

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()
        self._folders.close()

    def add_file(self, path: str, entry: FileEntry) -> None:
        self._files.add(encode(path) + b":" + encode(entry))

    def add_folder(self, path: str, entry: FolderEntry) -> None:
        self._folders.add(encode(path) + b":" + encode(entry))

    def add_link(self, path: str, entry: LinkEntry) -> bool:
        """Whether there was room for it."""
        line = encode(path) + b":" + encode(entry)
        self._bytes -= len(line) + 1
        self._values -= 2 + 2 * len(LinkEntry.__struct_fields__)
        if self._bytes < 0 or self._values < 0:
            return False
        self._links.append(line)
        return True

    @property
    def size(self) -> int:
        """Bytes of the JSON."""
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self._parts())

    def json(self) -> Iterator[bytes]:
        """The whole manifest, piece by piece; as often as one likes."""
        for part in self._parts():
            if isinstance(part, bytes):
                yield part
            else:
                yield from part.pieces()

    def _parts(self) -> list[bytes | _Section]:
        links = b',"symlinks":{' + b",".join(self._links) + b"}" if self._links else b""
        opening = self._header[:-1] + links + b',"files":{'
        return [opening, self._files, b'},"directories":{', self._folders, b"}}"]


class _Section:
    """Lines in a file without a name, commas between them."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the draft
        self.size = 0

    def close(self) -> None:
        self._file.close()

    def add(self, line: bytes) -> None:
        self.size += self._file.write(b"," + line if self.size else line)

    def pieces(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            yield piece
