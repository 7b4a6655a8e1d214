"""A folder as a manifest has it: walked, and every file hashed, or known from the last time.

What a manifest cannot hold is counted and named: names that are no text, devices, pipes and sockets, second names of
one file, extended attributes. What cannot be read is trouble; everything else is still taken.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.archive.attributes import KIND_OF, Owners, explain, path_at
from holdfast.archive.exclude import Excludes
from holdfast.archive.scan import Folder, Scanner
from holdfast.remote.drafting import Draft, FileEntry, FolderEntry, LinkEntry, permissions, timestamp
from holdfast.remote.progress import Progress
from holdfast.remote.reading import is_ours
from holdfast.remote.remembered import Remembered, mark_of
from holdfast.repository.pages import join

_THREADS = 2
_BATCH_FILES, _BATCH_BYTES = 256, 64 << 20
_AHEAD = 32  # batches that wait to be written down
_AT_ONCE = 1 << 20
_PATH_MOST = 4096  # characters, as servers take it
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LEFT_OUT = {
    "b": "is a device", "c": "is a device", "p": "is a pipe", "s": "is a socket", "": "is of a kind of its own",
}  # fmt: skip


class _Found(NamedTuple):
    """A file: ``hash`` is empty when it could not be read; ``steady``: it did not change while it was."""

    name: bytes
    st: os.stat_result
    hash: bytes
    steady: bool = True


@dataclass
class _Batch:
    """Some files of one folder. ``fd``: the folder, open while there is something to read in it."""

    directory: bytes
    now_ns: int
    files: list[_Found] = field(default_factory=list)
    unread: int = 0
    bytes: int = 0
    fd: int = -1


class Survey:
    """Walks the open folder ``base`` into a draft. ``now_ns`` is the clock."""

    def __init__(
        self, base: int, omit: tuple[str, ...], known: Remembered, progress: Progress, now_ns: Callable[[], int]
    ) -> None:
        self._base, self._known, self._progress, self._now_ns = base, known, progress, now_ns
        self._scanner = Scanner(base, [b""], Excludes(omit), self._failed, _nothing)
        self._owners = Owners()
        self._linked = 0
        self._ended = False

    def into(self, draft: Draft) -> None:
        """Walk everything, and write it down in the order of the walk."""
        waiting: deque[tuple[_Batch, Future[_Batch]]] = deque()
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hash")
        try:
            for folder in self._scanner.folders():
                self._progress.current = folder.path
                if folder.path and not self._folder(draft, folder):
                    continue
                for batch in self._batches(draft, folder):
                    waiting.append((batch, pool.submit(self._hashed, batch)))
                    while len(waiting) > _AHEAD:
                        self._write(draft, waiting.popleft()[1].result())
            while waiting:
                self._write(draft, waiting.popleft()[1].result())
        finally:
            self._ended = True
            for batch, left in waiting:
                if left.cancel() and batch.fd >= 0:
                    os.close(batch.fd)
            pool.shutdown(wait=True)
        if self._linked:
            self._progress.note(f"{self._linked} names are hard links; each became a file of its own")

    # -- in the order of the walk ----------------------------------------------------------------------------------

    def _folder(self, draft: Draft, folder: Folder) -> bool:
        """Write a directory down; whether what it holds can be written down too."""
        if (path := self._text(folder.path)) is None:
            return False
        st = os.fstat(folder.fd)
        self._count_xattrs(folder.fd)
        draft.add_folder(
            path,
            FolderEntry(timestamp(st.st_mtime_ns), self._user(st), self._group(st), permissions(st.st_mode)),
        )
        self._progress.directories += 1
        return True

    def _batches(self, draft: Draft, folder: Folder) -> Iterator[_Batch]:
        batch = _Batch(folder.path, self._now_ns())
        for name, seen in folder.entries:
            try:
                st = seen or os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since the folder was listed
            except OSError as e:
                self._failed(join(folder.path, name), e)
                continue
            if not stat.S_ISREG(st.st_mode):
                self._other(draft, folder, name, st)
                continue
            if is_ours(name) or self._text(join(folder.path, name)) is None:
                continue
            self._look(batch, folder, name, st)
            if len(batch.files) >= _BATCH_FILES or batch.bytes >= _BATCH_BYTES:
                yield batch
                batch = _Batch(folder.path, self._now_ns())
        if batch.files:
            yield batch

    def _look(self, batch: _Batch, folder: Folder, name: bytes, st: os.stat_result) -> None:
        """Take a file into the batch, with its hash if that is known."""
        self._linked += st.st_nlink > 1
        self._count_xattrs(path_at(folder.fd, name))
        hash_ = self._known.find(folder.path, name, mark_of(st)) or b""
        batch.files.append(_Found(name, st, hash_))
        if not hash_:
            batch.unread += 1
            batch.bytes += st.st_size
            if batch.fd < 0:
                batch.fd = os.dup(folder.fd)

    def _other(self, draft: Draft, folder: Folder, name: bytes, st: os.stat_result) -> None:
        kind = KIND_OF.get(stat.S_IFMT(st.st_mode), "")
        if kind == "l":
            self._link(draft, folder, name, st)
        elif kind != "d":
            self._progress.left_out.add(join(folder.path, name), f"{_LEFT_OUT[kind]}, which a manifest cannot hold")

    def _link(self, draft: Draft, folder: Folder, name: bytes, st: os.stat_result) -> None:
        inner = join(folder.path, name)
        if (path := self._text(inner)) is None:
            return
        try:
            target = os.readlink(name, dir_fd=folder.fd)
        except OSError as e:
            self._failed(inner, e)
            return
        entry = LinkEntry(_as_text(target) or "", self._user(st), self._group(st), timestamp(st.st_mtime_ns))
        if not entry.target:
            self._progress.left_out.add(inner, "points to what is no UTF-8 text, which a manifest cannot hold")
        elif draft.add_link(path, entry):
            self._progress.links += 1
        else:
            self._progress.left_out.add(inner, "is a symbolic link more than the manifest has room for")

    def _write(self, draft: Draft, batch: _Batch) -> None:
        for found in batch.files:
            if not found.hash:
                continue
            st, path = found.st, self._text(join(batch.directory, found.name)) or ""
            draft.add_file(path, FileEntry(
                found.hash.hex(), st.st_size, timestamp(st.st_mtime_ns), self._user(st), self._group(st),
                permissions(st.st_mode),
            ))  # fmt: skip
            if found.steady:
                self._known.keep(batch.directory, found.name, mark_of(st), found.hash, batch.now_ns)
            self._progress.files += 1
            self._progress.size += st.st_size

    # -- hashing, in any thread ------------------------------------------------------------------------------------

    def _hashed(self, batch: _Batch) -> _Batch:
        if batch.fd < 0:
            return batch
        try:
            buffer = memoryview(bytearray(_AT_ONCE))
            batch.files = [f if f.hash else self._read(batch, f, buffer) for f in batch.files]
        finally:
            os.close(batch.fd)
        return batch

    def _read(self, batch: _Batch, found: _Found, buffer: memoryview) -> _Found:
        try:
            fd = os.open(found.name, _READ, dir_fd=batch.fd)
        except FileNotFoundError:
            return found
        except OSError as e:
            self._failed(join(batch.directory, found.name), e)
            return found
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return found
            hasher, size = hashlib.sha256(), 0
            while not self._ended and (count := os.readv(fd, [buffer])):
                hasher.update(buffer[:count])
                size += count
                self._progress.count(hashed_bytes=count)
            steady = mark_of(before) == mark_of(os.fstat(fd)) and size == before.st_size
            st = before if steady else _with_size(before, size)
            self._progress.count(hashed=1)
            return _Found(found.name, st, hasher.digest(), steady)
        except OSError as e:
            self._failed(join(batch.directory, found.name), e)
            return found
        finally:
            os.close(fd)

    # -- small things ----------------------------------------------------------------------------------------------

    def _failed(self, path: bytes, error: OSError) -> None:
        self._progress.troubles.add(path, explain(error))

    def _text(self, path: bytes) -> str | None:
        """A path as a manifest has it; None, and said, when it cannot have it."""
        text = _as_text(path)
        if text is None:
            above, _, _ = path.rpartition(b"/")
            if _as_text(above) is not None:  # else it was said of the folder
                self._progress.left_out.add(path, "has a name that is no UTF-8 text, which a manifest cannot hold")
            return None
        if len(text) > _PATH_MOST - 2:
            self._progress.left_out.add(path, f"has a path of more than {_PATH_MOST} characters")
            return None
        return f"./{text}"

    def _user(self, st: os.stat_result) -> str | int:
        return _as_text(os.fsencode(self._owners.user(st.st_uid))) or st.st_uid

    def _group(self, st: os.stat_result) -> str | int:
        return _as_text(os.fsencode(self._owners.group(st.st_gid))) or st.st_gid

    def _count_xattrs(self, where: int | bytes) -> None:
        try:
            found = os.listxattr(where, follow_symlinks=isinstance(where, int))
        except OSError:
            return
        if any(not name.startswith("security.") or name == "security.capability" for name in found):
            self._progress.with_xattrs += 1


def _nothing(path: bytes) -> tuple[bytes, ...]:
    """Of no folder the names have to be looked at while it is listed: that is done here, a few at a time."""
    return ()


def _as_text(path: bytes) -> str | None:
    try:
        return path.decode()
    except UnicodeDecodeError:
        return None


def _with_size(st: os.stat_result, size: int) -> os.stat_result:
    """The same with another size: that of what was hashed."""
    fields = list(st)
    fields[stat.ST_SIZE] = size
    return os.stat_result(fields, {name: getattr(st, name) for name in ("st_mtime_ns", "st_ctime_ns", "st_nlink")})
