"""A snapshot back into a file tree.

What is promised: nothing is written outside the target, whatever the snapshot says and whoever plays with links below
it (every name is checked, every folder opened beneath the target without following links); no byte is written that was not
verified; what cannot be restored is named and the rest is restored.

The entries are walked in windows. In a window, folders are made first, then every block that is needed is read once, in
the order it lies in its pack, by a few threads that write the files; then hard links. At the end folders get their
attributes, the deepest first, so that making files in them does not disturb their times.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast.archive.attributes import TYPE_OF
from holdfast.archive.beneath import open_beneath
from holdfast.archive.placing import (
    Placer,
    RefusedName,
    Settings,
    check_directory,
    check_entry,
    explain,
    remove_tree,
)
from holdfast.archive.writing import FileWriter
from holdfast.errors import UsageError
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.format import ID_SIZE, Entry
from holdfast.repository.pages import Run, Tree, join, sort_key, split
from holdfast.repository.reader import ChunkReader

WINDOW_ENTRIES = 16_384
WINDOW_BYTES = 512 << 20

Wanted = Callable[[bytes, Entry], bool]


@dataclass(frozen=True)
class Request:
    """What to restore and where. ``within``: a path inside the snapshot whose contents go into the target (empty: all).
    ``wanted``: which paths (relative to the base) to restore; folders on the way to them are made as needed.
    """

    target: bytes
    within: bytes = b""
    wanted: Wanted | None = None
    delete: bool = False
    dry_run: bool = False
    verify: bool = False


@dataclass
class Trouble:
    path: bytes
    reason: str


@dataclass
class Progress:
    """What a restore did so far. ``notes``: things that were not restored because this user may not."""

    files: int = 0
    bytes: int = 0
    written: int = 0
    unchanged: int = 0
    deleted: int = 0
    verified: int = 0
    expected_files: int = 0
    expected_bytes: int = 0
    current: bytes = b""
    troubles: list[Trouble] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[str, bytes]] = field(default_factory=list)  # a dry run's findings: what, path


def restore(reader: ChunkReader, root: bytes, request: Request, progress: Progress | None = None) -> Progress:
    """Bring the target to what the snapshot says; what could not be done stands in the progress's ``troubles``."""
    progress = progress or Progress()
    tree = Tree(reader.read, root)
    if not request.dry_run:
        os.makedirs(request.target, mode=0o700, exist_ok=True)
    try:
        target_fd = os.open(request.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        target_fd = -1  # a dry run into a folder that is not there: everything would be new
    except NotADirectoryError:
        raise UsageError(f"{os.fsdecode(request.target)} is not a folder.") from None
    mask = os.umask(0)
    try:
        _Restore(reader, tree, request, progress, target_fd).run()
    finally:
        os.umask(mask)
        if target_fd >= 0:
            os.close(target_fd)
    return progress


class _Restore:
    def __init__(self, reader: ChunkReader, tree: Tree, request: Request, progress: Progress, target_fd: int) -> None:
        self._reader, self._tree, self._request, self._progress = reader, tree, request, progress
        fresh = target_fd >= 0 and not os.listdir(target_fd)
        settings = Settings(os.geteuid() == 0, fresh, request.dry_run, clear=request.delete)
        self._placer = Placer(target_fd, settings, self._trouble, self._note)
        self._writer = FileWriter(reader, self._placer, progress)
        self._first: dict[tuple[int, int], bytes] = {}  # of each hard-linked file, where it was restored first
        self._links: list[tuple[bytes, bytes, Entry]] = []

    def run(self) -> None:
        for window in self._windows():
            for directory, entries in window:
                self._run(directory, entries)
            self._writer.flush()
            self._make_links()
        if self._request.delete:
            self._delete_others()
        if self._request.dry_run:
            return
        self._settle_folders()
        if self._request.verify:
            self._verify()

    # -- what to restore -------------------------------------------------------------------------------------------

    def _runs(self) -> Iterator[Run]:
        """The entries to restore, directories and names as the snapshot has them, checked."""
        within = self._request.within
        for directory, entries in self._tree.runs((within, b"") if within else None):
            if not _is_below(directory, within):
                if sort_key(directory, b"") > sort_key(within, b""):
                    return
                continue
            if kept := self._kept(directory, entries):
                yield directory, kept

    def _kept(self, directory: bytes, entries: list[Entry]) -> list[Entry]:
        wanted = self._request.wanted
        try:
            check_directory(directory)
        except RefusedName as e:
            self._trouble(directory, str(e))
            return []
        kept = []
        for entry in entries:
            if not entry.name:  # the base itself: settled with the folders
                continue
            try:
                path = check_entry(directory, entry)
            except RefusedName as e:
                self._trouble(join(directory, entry.name), str(e))
                continue
            if wanted is None or wanted(path, entry):
                kept.append(entry)
        return kept

    def _windows(self) -> Iterator[list[Run]]:
        window: list[Run] = []
        count = size = 0
        for directory, entries in self._runs():
            window.append((directory, entries))
            count += len(entries)
            size += sum(e.size for e in entries if e.kind == "f")
            if count >= WINDOW_ENTRIES or size >= WINDOW_BYTES:
                yield window
                window, count, size = [], 0, 0
        if window:
            yield window

    def _local(self, path: bytes) -> bytes:
        """A snapshot's path as it is below the target."""
        return path[len(self._request.within) :].lstrip(b"/")

    # -- one folder's entries --------------------------------------------------------------------------------------

    def _run(self, directory: bytes, entries: list[Entry]) -> None:
        self._progress.current = directory
        if self._request.dry_run:
            self._compare(directory, entries)
            return
        try:
            with self._placer.folder(self._local(directory)) as above:
                for entry in entries:
                    self._entry(above, directory, entry)
        except OSError as e:
            self._trouble(directory, explain(e))

    def _entry(self, above: int, directory: bytes, entry: Entry) -> None:
        path = self._local(join(directory, entry.name))
        try:
            if entry.kind == "d":
                self._placer.make_folder(above, entry.name)
            elif entry.kind == "f":
                self._file(above, entry, path)
            else:
                self._node(above, entry, path)
        except OSError as e:
            if e.errno in (errno.EPERM, errno.EACCES) and entry.kind in "bc" and os.geteuid() != 0:
                self._note("device file")
            else:
                self._trouble(path, explain(e))

    def _node(self, above: int, entry: Entry, path: bytes) -> None:
        placer = self._placer
        there = placer.existing(above, entry.name)
        if there is None or not placer.is_same_node(above, entry, there):
            if there is not None:
                placer.make_way(above, entry.name, there)
            placer.make_node(above, entry)
            self._progress.files += 1
        else:
            self._progress.unchanged += 1
        placer.settle_node(above, entry, path)

    def _file(self, above: int, entry: Entry, path: bytes) -> None:
        if entry.links is not None:
            first = self._first.setdefault(entry.links, path)
            if first != path:
                self._links.append((first, path, entry))
                return
        there = self._placer.existing(above, entry.name)
        if there is not None and self._is_current(entry, there):
            self._keep(above, entry, path)
            return
        if there is not None and stat.S_ISDIR(there.st_mode):
            self._placer.make_way(above, entry.name, there)
            there = None
        if len(entry.content) == ID_SIZE and not entry.depth and hole_length(entry.content) is None:
            self._writer.add_small(entry, path, replaces=there is not None)
            return
        items = items_of(entry, self._reader.read)
        if there is not None and stat.S_ISREG(there.st_mode) and there.st_nlink == 1:
            self._writer.add_in_place(entry, path, items)
        else:
            self._writer.add(entry, path, items, replaces=there is not None)

    @staticmethod
    def _is_current(entry: Entry, there: os.stat_result) -> bool:
        """A file of the same size and time is taken for the same; ``--verify`` does not take it on trust."""
        return stat.S_ISREG(there.st_mode) and (there.st_size, there.st_mtime_ns) == (entry.size, entry.mtime_ns)

    def _keep(self, above: int, entry: Entry, path: bytes) -> None:
        self._progress.unchanged += 1
        self._progress.bytes += entry.size
        fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        try:
            self._placer.settle(fd, entry, path)
        finally:
            os.close(fd)

    def _make_links(self) -> None:
        links, self._links = self._links, []
        for first, path, entry in links:
            try:
                with self._placer.folder(split(first)[0]) as src, self._placer.folder(split(path)[0]) as dst:
                    self._link(src, split(first)[1], dst, entry.name)
                self._progress.files += 1
                self._progress.bytes += entry.size
            except OSError as e:
                self._trouble(path, f"it cannot be linked to {os.fsdecode(first)}: {explain(e)}")

    def _link(self, src: int, first: bytes, dst: int, name: bytes) -> None:
        there = self._placer.existing(dst, name)
        if there is not None:
            if os.path.samestat(there, os.stat(first, dir_fd=src, follow_symlinks=False)):
                return
            self._placer.make_way(dst, name, there)
        os.link(first, name, src_dir_fd=src, dst_dir_fd=dst, follow_symlinks=False)

    # -- afterwards ------------------------------------------------------------------------------------------------

    def _settle_folders(self) -> None:
        """Give folders their attributes, the deepest first; the target gets those of the folder it stands for."""
        within = self._request.within
        for directory, entries in self._tree.reversed_runs():
            for entry in entries:
                path = join(directory, entry.name)
                if entry.kind != "d" or not _is_below(path, within):
                    continue
                wanted = self._request.wanted
                local = self._local(path)
                if wanted is None or local in self._placer.made or (entry.name and wanted(path, entry)):
                    self._settle_folder(local, entry)

    def _settle_folder(self, path: bytes, entry: Entry) -> None:
        try:
            check_directory(path)
            fd = open_beneath(self._placer.target, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                self._placer.settle(fd, entry, path)
            finally:
                os.close(fd)
        except RefusedName:
            return  # named when it was met first
        except OSError as e:
            self._trouble(path, explain(e))

    def _delete_others(self) -> None:
        """Remove what the snapshot does not have, in every folder that it has."""
        within = self._request.within
        folders = [within] if within else [b""]
        for directory, entries in self._runs():
            folders.extend(join(directory, e.name) for e in entries if e.kind == "d")
            for path in folders:
                self._delete_in(path)
            folders.clear()
        for path in folders:
            self._delete_in(path)

    def _delete_in(self, path: bytes) -> None:
        local = self._local(path)
        try:
            fd = open_beneath(self._placer.target, local, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return
        try:
            kept = {e.name for e in self._tree.directory(path)}
            for name in sorted(os.fsencode(n) for n in os.listdir(fd)):
                if name not in kept and self._may_delete(path, name):
                    self._progress.changes.append(("delete", join(local, name)))
                    if not self._request.dry_run:
                        self._progress.deleted += remove_tree(fd, name)
        except OSError as e:
            self._trouble(local, explain(e))
        finally:
            os.close(fd)

    def _may_delete(self, path: bytes, name: bytes) -> bool:
        wanted = self._request.wanted
        return wanted is None or wanted(join(path, name), Entry(name, "f", 0, 0, 0, 0, 0, 0))

    def _compare(self, directory: bytes, entries: list[Entry]) -> None:
        """A dry run: say what would be made or changed."""
        for entry in entries:
            path = self._local(join(directory, entry.name))
            try:
                there = self._lstat(path)
            except OSError as e:
                self._trouble(path, explain(e))
                continue
            if there is None:
                self._progress.changes.append(("new", path))
            elif stat.S_IFMT(there.st_mode) != TYPE_OF[entry.kind] or (
                entry.kind == "f" and not self._is_current(entry, there)
            ):
                self._progress.changes.append(("changed", path))
            else:
                self._progress.unchanged += 1

    def _lstat(self, path: bytes) -> os.stat_result | None:
        if self._placer.target < 0:
            return None
        try:
            fd = open_beneath(self._placer.target, split(path)[0], os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            return os.stat(split(path)[1], dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            os.close(fd)

    def _verify(self) -> None:
        """Read every restored file back and compare it, chunk by chunk, with what the snapshot says."""
        for directory, entries in self._runs():
            for entry in entries:
                if entry.kind == "f":
                    path = self._local(join(directory, entry.name))
                    try:
                        self._verify_file(path, entry)
                    except OSError as e:
                        self._trouble(path, explain(e))

    def _verify_file(self, path: bytes, entry: Entry) -> None:
        fd = open_beneath(self._placer.target, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            offset = 0
            for item in items_of(entry, self._reader.read):
                length = hole_length(item)
                if length is None:
                    length = self._reader.length(item)
                    if not self._reader.matches(os.pread(fd, length, offset), item):
                        self._trouble(path, f"it differs from the snapshot near byte {offset}")
                        return
                elif any(os.pread(fd, min(length, 1 << 20), offset)):
                    self._trouble(path, f"it differs from the snapshot near byte {offset}")
                    return
                offset += length
            if os.fstat(fd).st_size != entry.size:
                self._trouble(path, "its size differs from the snapshot's")
                return
            self._progress.verified += 1
        finally:
            os.close(fd)

    def _trouble(self, path: bytes, reason: str) -> None:
        self._progress.troubles.append(Trouble(path, reason))

    def _note(self, what: str) -> None:
        notes = self._progress.notes
        notes[what] = notes.get(what, 0) + 1


def _is_below(path: bytes, within: bytes) -> bool:
    return not within or path == within or path.startswith(within + b"/")
