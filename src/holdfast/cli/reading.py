"""``holdfast dump`` and ``holdfast mount``."""

from __future__ import annotations

import contextlib
import datetime
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

import click

from holdfast.archive.listing import Listed, entry_at, need_entry
from holdfast.cli.output import Output, command, filter_options, make_filter, printable, size_text
from holdfast.cli.restoring import find_snapshot
from holdfast.errors import HoldfastError, UsageError
from holdfast.repository.pages import Tree
from holdfast.repository.reader import ChunkReader
from holdfast.repository.snapshots import Stored
from holdfast.storage.base import Buffer

_BUFFER = 1 << 20


@command("dump")
@click.argument("snapshot")
@click.argument("path", required=False, default="")
@click.option("-a", "--archive", type=click.Choice(["tar", "zip"]), default="tar", help="How a folder is written.")
@click.option("-o", "--output", "target", metavar="FILE", help="Write to a file and not to standard output.")
@filter_options
def dump(out: Output, snapshot: str, path: str, archive: str, target: str | None, **options: Any) -> int:
    """Write the file PATH of SNAPSHOT to standard output; a folder, or the whole snapshot without PATH, as tar.

    PATH is relative to the snapshot's base (as `holdfast ls` shows it), or absolute as it was. Everything is verified
    before it is written: at a damaged place the output ends, with exit status 1.
    """
    repo = out.open()
    chosen, within = find_snapshot(out, repo, snapshot, options["hosts"], options["paths"], options["tags"])
    with repo.reading("dump") as reader:
        found = _locate(Tree(reader.read, chosen.snapshot.root), chosen, within, os.fsencode(path))
        if not target and found.entry.kind == "d" and sys.stdout.isatty():
            raise UsageError(f"A {archive} is nothing for a terminal.", "Send it to a file (-o FILE) or to a program.")
        with _target(target) as sink:
            left_out = _write(out, sink, reader, chosen, found, archive)
    if target:
        out.event("summary", snapshot_id=chosen.id, bytes_written=sink.written, left_out=left_out)
        out.note(f"Wrote {size_text(sink.written)} to {printable(target)}.")
    return 0


def _locate(tree: Tree, chosen: Stored, within: bytes, path: bytes) -> Listed:
    """The entry that is meant: relative to the base, or to the path given with the snapshot, or absolute as it was."""
    if b".." in path.split(b"/"):
        raise UsageError(f"{printable(path)!r} leads out of the snapshot.")
    wanted = os.path.normpath(b"/" + within + b"/" + path).strip(b"/")
    base = chosen.snapshot.base.rstrip(b"/") + b"/"
    if not within and (path.rstrip(b"/") + b"/").startswith(base):
        found = entry_at(tree, path[len(base) :].strip(b"/"))
        if found:
            return found
    return need_entry(tree, wanted)


def _write(out: Output, sink: Sink, reader: ChunkReader, chosen: Stored, found: Listed, archive: str) -> int:
    """Write what was asked for; how many entries of a folder were left out."""
    from holdfast.archive.content import Contents
    from holdfast.archive.tarring import write_tar, write_zip

    left_out = 0

    def leave_out(path: bytes, reason: str) -> None:
        nonlocal left_out
        left_out += 1
        click.echo(f"holdfast: {printable(path)}: {reason}; it was left out.", err=True)

    try:
        with Contents(reader) as contents:
            if found.entry.kind == "f":
                for piece in contents.of(found.entry, found.path):
                    sink.write(piece)
            elif found.entry.kind == "d":
                write = write_zip if archive == "zip" else write_tar
                write(sink, Tree(reader.read, chosen.snapshot.root), found.path, contents, leave_out)
            else:
                raise UsageError(f"{printable(found.path)} is neither a file nor a folder.")
    except HoldfastError:
        sink.flush()  # what came before the damage is good
        raise
    sink.flush()
    return left_out


class Sink:
    """An open file descriptor to write to: small writes are gathered, and every byte is written or it raises."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._gathered = bytearray()
        self.written = 0

    def write(self, data: Buffer, /) -> int:
        size = len(data)
        self.written += size
        if len(self._gathered) + size <= _BUFFER:
            self._gathered += data
            return size
        self.flush()
        if size < _BUFFER:
            self._gathered += data
        else:
            self._put(memoryview(data))
        return size

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._put(memoryview(gathered))

    def _put(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


@contextlib.contextmanager
def _target(name: str | None) -> Iterator[Sink]:
    """Standard output, or a file that gets its name only when it is whole; a device or a pipe is simply written to."""
    if not name:
        sys.stdout.flush()
        yield Sink(1)
        return
    if os.path.isdir(name):
        raise UsageError(f"{printable(name)} is a folder; name a file.")
    if os.path.exists(name) and not stat.S_ISREG(os.stat(name).st_mode):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield Sink(fd)
        finally:
            os.close(fd)
        return
    path = os.path.realpath(name)
    part = f"{path}.{os.getpid()}.part"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise UsageError(f"{printable(name)} cannot be written: {os.strerror(e.errno or 0)}.") from None
    try:
        yield Sink(fd)
        os.fsync(fd)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(fd)


@command("mount")
@click.argument("folder")
@click.option("--allow-other", is_flag=True, help="Let other users see it too, as the files' modes allow.")
@filter_options
def mount(out: Output, folder: str, allow_other: bool, **options: Any) -> int:
    """Show the repository's snapshots at FOLDER, read-only, until Ctrl-C or `fusermount3 -u FOLDER`.

    `snapshots` holds them by time, `ids`, `hosts` and `tags` by those; `latest` is the newest. New snapshots appear.
    """
    from holdfast.archive import mount as archive
    from holdfast.archive.views import Library

    archive.load_fuse()
    archive.check_folder(folder)
    repo = out.open()
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])

    def report(sentence: str) -> None:
        click.echo(f"holdfast: {printable(sentence)}", err=True)

    def ready() -> None:
        out.event("mounted", folder=os.path.abspath(folder))
        sys.stdout.flush()
        out.note(f"Mounted at {printable(folder)}. Ctrl-C, or `fusermount3 -u {printable(folder)}`, ends it.")

    with repo.reading("mount") as reader:
        library = Library(repo, reader, wanted, _folder_time, report)
        archive.mount(library, repo.storage, folder, report, ready, allow_other=allow_other)
    out.event("summary", folder=os.path.abspath(folder))
    return 0


def _folder_time(time_ns: int) -> str:
    """A snapshot's time as a folder's name, in the user's own zone."""
    return datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC).astimezone().isoformat(timespec="seconds")
