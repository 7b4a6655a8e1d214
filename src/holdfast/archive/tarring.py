"""A folder of a snapshot as a tar or zip stream.

The tar is POSIX (PAX) as GNU tar and bsdtar read it: owners by number and name, times in ns, extended attributes and
ACLs as ``SCHILY.xattr`` records, hard links as links, holes as zeros. Names are relative to the folder. Sockets have
no place in a tar: they are left out and told of. The zip holds names, modes, times, folders, files and symbolic links.

Everything is written as it is read, so memory does not grow with files; content is verified before it is written.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from holdfast.archive.attributes import TYPE_OF
from holdfast.archive.content import Contents
from holdfast.archive.listing import Listed, listing
from holdfast.archive.placing import RefusedName, check_directory
from holdfast.errors import Damaged
from holdfast.repository.format import Entry
from holdfast.repository.pages import Tree
from holdfast.storage.base import Buffer

_TYPES = {
    "f": tarfile.REGTYPE,
    "d": tarfile.DIRTYPE,
    "l": tarfile.SYMTYPE,
    "p": tarfile.FIFOTYPE,
    "c": tarfile.CHRTYPE,
    "b": tarfile.BLKTYPE,
}
_NO_TIME_BEFORE = 315_532_800  # 1980: a zip's own clock begins there
_UNIX = 3  # the system that a zip's attributes are of

Leave = Callable[[bytes, str], None]


class Sink(Protocol):
    """Where the stream goes."""

    def write(self, data: Buffer, /) -> int: ...


def write_tar(sink: Sink, tree: Tree, within: bytes, contents: Contents, leave_out: Leave) -> None:
    """Write the folder's entries as a tar; ``leave_out`` hears of a path that has no place in it, and why."""
    written = 0
    first: dict[tuple[int, int], bytes] = {}  # where each hard-linked file was written
    for path, found in _entries(tree, within, leave_out):
        entry = found.entry
        link = b""
        if entry.links is not None and entry.kind != "d":
            link = first.setdefault(entry.links, path)
        link = b"" if link == path else link
        head = _head(path, found, link)
        sink.write(head)
        written += len(head)
        if entry.kind == "f" and not link:
            for piece in contents.of(entry, found.path):
                sink.write(piece)
            padding = -entry.size % tarfile.BLOCKSIZE
            sink.write(bytes(padding))
            written += entry.size + padding
    end = 2 * tarfile.BLOCKSIZE
    sink.write(bytes(end + -(written + end) % tarfile.RECORDSIZE))


def _entries(tree: Tree, within: bytes, leave_out: Leave) -> Iterator[tuple[bytes, Listed]]:
    """Entries with their paths relative to the folder. A name that would lead elsewhere when unpacked ends it: such a
    snapshot was forged.
    """
    skip = len(within) + 1 if within else 0
    for found in listing(tree, within):
        path = found.path[skip:]
        try:
            check_directory(path)
        except RefusedName as e:
            raise Damaged(f"A folder of the snapshot cannot be trusted: {e}.") from None
        if found.entry.kind not in _TYPES:
            leave_out(found.path, "it is a socket" if found.entry.kind == "s" else "it is of an unknown kind")
            continue
        yield path, found


def _head(path: bytes, found: Listed, link: bytes) -> bytes:
    """The header of a tar's member; what does not fit into its fields stands in PAX records before it.

    They are written here and not by tarfile, which announces ``hdrcharset`` for every value that is no text: GNU tar
    does not know that word and says so for each file.
    """
    entry, records, info = found.entry, _Records(), tarfile.TarInfo()
    info.type = tarfile.LNKTYPE if link else _TYPES[entry.kind]
    info.name = records.text(b"path", path + (b"/" if entry.kind == "d" else b""), tarfile.LENGTH_NAME - 1)
    info.linkname = records.text(b"linkpath", link or entry.target, tarfile.LENGTH_LINK)
    info.uname = records.text(b"uname", os.fsencode(found.user), 31)
    info.gname = records.text(b"gname", os.fsencode(found.group), 31)
    info.mode, info.devmajor, info.devminor = entry.mode, os.major(entry.device), os.minor(entry.device)
    info.uid, info.gid = records.number(b"uid", entry.uid, 8), records.number(b"gid", entry.gid, 8)
    info.size = records.number(b"size", 0 if link else entry.size, 12) if entry.kind == "f" else 0
    seconds, rest = divmod(entry.mtime_ns, 1_000_000_000)
    info.mtime = records.number(b"mtime", seconds, 12)
    if rest or seconds < 0:
        records.put(b"mtime", _seconds(entry.mtime_ns))
    for name, value in (entry.xattrs or {}).items():
        records.put(b"SCHILY.xattr." + name.replace(b"%", b"%25").replace(b"=", b"%3D"), value)
    return records.block() + info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


class _Records:
    """The PAX records of one member."""

    def __init__(self) -> None:
        self._records: dict[bytes, bytes] = {}

    def put(self, keyword: bytes, value: bytes) -> None:
        self._records[keyword] = value

    def text(self, keyword: bytes, value: bytes, most: int) -> str:
        """What of a text the header's field can hold; a record has all of it when that is not everything."""
        if not value.isascii() or len(value) > most:
            self.put(keyword, value)
        return value[:most].decode("ascii", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")

    def number(self, keyword: bytes, value: int, width: int) -> int:
        """The same for a number and its field of so many octal digits and one byte."""
        if 0 <= value < 8 ** (width - 1):
            return value
        self.put(keyword, b"%d" % value)
        return 0

    def block(self) -> bytes:
        """The member that holds them, empty when there are none."""
        if not self._records:
            return b""
        data = b"".join(_record(k, v) for k, v in self._records.items())
        info = tarfile.TarInfo("././@PaxHeader")
        info.type, info.size = tarfile.XHDTYPE, len(data)
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _record(keyword: bytes, value: bytes) -> bytes:
    """``LENGTH KEYWORD=VALUE``, where the length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))
    return b"%d %s=%s\n" % (size, keyword, value)


def _seconds(time_ns: int) -> bytes:
    """A time as PAX has it: decimal seconds, exact."""
    seconds, rest = divmod(abs(time_ns), 1_000_000_000)
    return (b"-" if time_ns < 0 else b"") + (b"%d.%09d" % (seconds, rest)).rstrip(b"0").rstrip(b".")


# -- zip ---------------------------------------------------------------------------------------------------------------


def write_zip(sink: Sink, tree: Tree, within: bytes, contents: Contents, leave_out: Leave) -> None:
    """Write the folder's files, folders and links as a zip, deflated. Its table of contents stands at the end and is
    kept in memory until then (about 1 KiB an entry).
    """
    forward = _Forward(sink)
    with zipfile.ZipFile(forward, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, forward:
        for path, found in _entries(tree, within, leave_out):
            entry = found.entry
            if entry.kind not in "fdl":
                leave_out(found.path, "a zip holds only files, folders and links")
                continue
            info = _zip_info(path, entry)
            with archive.open(info, "w", force_zip64=entry.size > zipfile.ZIP64_LIMIT // 2) as out, forward:
                if entry.kind == "l":
                    out.write(entry.target)
                elif entry.kind == "f":
                    for piece in contents.of(entry, found.path):
                        out.write(piece)


def _zip_info(path: bytes, entry: Entry) -> zipfile.ZipInfo:
    """Times in UTC, as a zip's clock has no zone, and exactly in the field Info-ZIP adds."""
    import datetime

    seconds = entry.mtime_ns // 1_000_000_000
    shown = datetime.datetime.fromtimestamp(min(max(seconds, _NO_TIME_BEFORE), 4_354_819_198), datetime.UTC)
    info = zipfile.ZipInfo(_zip_name(path) + ("/" if entry.kind == "d" else ""), shown.timetuple()[:6])
    info.create_system = _UNIX
    info.external_attr = (TYPE_OF[entry.kind] | entry.mode) << 16 | (0x10 if entry.kind == "d" else 0)
    info.compress_type = zipfile.ZIP_STORED if entry.kind == "d" else zipfile.ZIP_DEFLATED
    if -(1 << 31) <= seconds < 1 << 31:
        info.extra = b"UT\x05\x00\x01" + seconds.to_bytes(4, "little", signed=True)
    return info


def _zip_name(path: bytes) -> str:
    """A zip's names are text: other bytes are written as ``\\xNN``."""
    return path.decode("utf-8", "backslashreplace")


class _Forward:
    """The part of a file that ZipFile needs of one that cannot seek. As a context manager it passes nothing on after an
    exception: ZipFile would end a broken archive as if it were whole.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink, self._broken = sink, False

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._broken = self._broken or e is not None

    def write(self, data: Buffer) -> int:
        return len(data) if self._broken else self._sink.write(data)

    def flush(self) -> None:
        """Everything is handed on at once."""

    def close(self) -> None:
        """The sink is its owner's to close."""
