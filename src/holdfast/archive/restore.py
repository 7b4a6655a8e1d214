"""A snapshot back into a file tree.

What is promised: nothing is written outside the target, whatever the snapshot says and whoever plays with links below
it (every name is checked, every folder opened beneath the target without following links); no byte is written that was
not verified; what cannot be restored is named and the rest is restored.

The entries are walked in windows. In a window, folders are made first, then every block that is needed is read once, in
the order it lies in its pack, by a few threads that write the files; then hard links. At the end folders get their
attributes, the deepest first, so that making files in them does not disturb their times.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast.archive.attributes import explain as explain_plainly
from holdfast.archive.clearing import May, clear_others
from holdfast.archive.comparing import Forecast, LinkKey, difference, link_key
from holdfast.archive.placing import Judgement, Placer, Settings, explain, full
from holdfast.archive.walking import Walk
from holdfast.archive.walking import Wanted as Wanted
from holdfast.archive.writing import FileWriter
from holdfast.errors import HoldfastError, InterruptedByUser, StorageDenied, UsageError
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.format import ID_SIZE, Entry
from holdfast.repository.pages import Run, Tree, join, split
from holdfast.repository.reader import ChunkReader

WINDOW_ENTRIES = 16_384
WINDOW_BYTES = 512 << 20

_Path = bytes


@dataclass(frozen=True)
class Request:
    """What to restore and where. ``within``: a path inside the snapshot whose contents go into the target (empty: all).
    ``wanted``: which paths (relative to the base) to restore; folders on the way to them are made as needed.
    ``delete``: remove what the snapshot does not have, and folders that stand where something else goes; only what is
    ``wanted``.
    """

    target: bytes
    within: bytes = b""
    wanted: Wanted | None = None
    delete: bool = False
    dry_run: bool = False
    verify: bool = False


@dataclass
class Trouble:
    """A path (relative to the target) and what was wrong with it, as a sentence's end."""

    path: bytes
    reason: str


@dataclass
class Progress:
    """What a restore did so far. ``files``: made or written anew, hard links and nodes too; ``notes``: things that were
    not restored because this user, or this file system, may not.
    """

    files: int = 0
    bytes: int = 0
    written: int = 0
    unchanged: int = 0
    deleted: int = 0
    verified: int = 0
    expected_files: int = 0
    expected_bytes: int = 0
    current: _Path = b""
    troubles: list[Trouble] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[str, _Path]] = field(default_factory=list)  # what was removed; all a dry run found: what, path


def restore(reader: ChunkReader, root: bytes, request: Request, progress: Progress | None = None) -> Progress:
    """Bring the target to what the snapshot says; what could not be done stands in the progress's ``troubles``.

    Errors: UsageError and StorageDenied when the target is none, StorageFull when it has no room left, Damaged when
    nothing of the snapshot can be read, InterruptedByUser after KeyboardInterrupt. What was restored by then stays.
    """
    progress = progress or Progress()
    target_fd = _open_target(request)
    try:
        _Restore(reader, Tree(reader.read, root), request, progress, target_fd).run()
    except KeyboardInterrupt:
        raise InterruptedByUser(
            "The restore was interrupted.", "What is restored stays; run it again and it goes on from there."
        ) from None
    finally:
        if target_fd >= 0:
            os.close(target_fd)
    return progress


def _open_target(request: Request) -> int:
    """The target, open; -1 for a dry run into a folder that is not there: everything would be new."""
    shown = os.fsdecode(request.target)
    try:
        if not request.dry_run:
            os.makedirs(request.target, mode=0o700, exist_ok=True)
        fd = os.open(request.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except (NotADirectoryError, FileExistsError):
        raise UsageError(f"{shown} is not a folder.") from None
    except OSError as e:
        raise full(e) or StorageDenied(f"The target {shown} cannot be used: {explain_plainly(e)}.") from None
    if not request.dry_run and os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        os.close(fd)
        raise StorageDenied(f"The target {shown} is on a file system that is mounted read-only.")
    return fd


class _Restore:
    def __init__(self, reader: ChunkReader, tree: Tree, request: Request, progress: Progress, target_fd: int) -> None:
        self._reader, self._tree, self._request, self._progress = reader, tree, request, progress
        self._lock = threading.Lock()
        fresh = target_fd >= 0 and not request.dry_run and not os.listdir(target_fd)
        settings = Settings(os.geteuid() == 0, fresh, request.delete, self._may())
        self._placer = Placer(target_fd, settings, self._trouble, self._note)
        self._walk = Walk(tree, request.within, request.wanted, self._trouble_inside)
        self._writer = FileWriter(reader, self._placer, progress)
        self._first: dict[LinkKey, bytes] = {}  # where each thing with several names was restored first
        self._links: list[tuple[bytes, bytes, Entry]] = []
        self._shut: set[bytes] = set()  # folders that could not be made or entered: it was said

    def run(self) -> None:
        if self._request.dry_run:
            self._forecast()
        else:
            try:
                self._restore()
            finally:
                self._writer.close()
        if self._request.delete:
            self._delete_others()
        if self._request.dry_run:
            return
        self._settle_folders()
        if self._request.verify:
            self._verify()

    def _restore(self) -> None:
        for window in self._windows():
            for directory, entries in window:
                self._run(directory, entries)
            self._writer.flush()
            self._make_links()

    def _windows(self) -> Iterator[list[Run]]:
        window: list[Run] = []
        count = size = 0
        for directory, entries in self._walk.runs():
            window.append((directory, entries))
            count += len(entries)
            size += sum(e.size for e in entries if e.kind == "f")
            if count >= WINDOW_ENTRIES or size >= WINDOW_BYTES:
                yield window
                window, count, size = [], 0, 0
        if window:
            yield window

    def _forecast(self) -> None:
        forecast = Forecast(self._placer, self._trouble, self._progress.changes)
        for directory, entries in self._walk.runs():
            forecast.folder(self._local(directory), entries)
        self._progress.unchanged = forecast.unchanged

    def _local(self, path: bytes) -> bytes:
        """A snapshot's path as it is below the target."""
        within = self._request.within
        return path[len(within) + 1 :] if within else path

    # -- one folder's entries --------------------------------------------------------------------------------------

    def _run(self, directory: bytes, entries: list[Entry]) -> None:
        self._progress.current = directory
        local = self._local(directory)
        try:
            with self._placer.folder(local) as above:
                for entry in entries:
                    self._entry(above, join(local, entry.name), entry)
        except OSError as e:
            self._shut.add(local)
            self._failed(local, e)

    def _entry(self, above: int, path: bytes, entry: Entry) -> None:
        try:
            if entry.kind == "d":
                self._placer.make_folder(above, entry.name)
                return
            key = link_key(entry)
            if key is not None:
                first = self._first.setdefault(key, path)
                if first != path:
                    self._links.append((first, path, entry))
                    return
            if entry.kind == "f":
                self._file(above, entry, path)
            else:
                self._node(above, entry, path)
        except OSError as e:
            (self._shut if entry.kind == "d" else self._writer.failed).add(path)
            if e.errno in (errno.EPERM, errno.EACCES) and entry.kind in "bc":
                self._note("device file")
            else:
                self._failed(path, e)

    def _node(self, above: int, entry: Entry, path: bytes) -> None:
        placer = self._placer
        there = placer.existing(above, entry.name)
        judgement = placer.judge(above, entry, there) if there is not None else Judgement.DIFFERS
        if judgement is Judgement.DIFFERS:
            if there is not None:
                placer.make_way(above, path, there, self._removed_in_the_way(path))
            placer.make_node(above, entry)
            self._progress.files += 1
        else:
            self._progress.unchanged += 1
        if judgement is not Judgement.SAME:
            placer.settle_node(above, entry, path)

    def _file(self, above: int, entry: Entry, path: bytes) -> None:
        placer = self._placer
        there = placer.existing(above, entry.name)
        if there is not None:
            judgement = placer.judge(above, entry, there)
            if judgement is Judgement.SAME or (judgement is Judgement.SETTLE and self._settled(above, entry, path)):
                self._progress.unchanged += 1
                self._progress.bytes += entry.size
                return
            if stat.S_ISDIR(there.st_mode):
                placer.make_way(above, path, there, self._removed_in_the_way(path))
                there = None
        if len(entry.content) == ID_SIZE and not entry.depth and hole_length(entry.content) is None:
            self._writer.add_small(entry, path, replaces=there is not None)
        elif there is not None and stat.S_ISREG(there.st_mode) and placer.may_keep(entry, there):
            self._writer.add_in_place(entry, path, lambda: items_of(entry, self._reader.read))
        else:
            self._writer.add(entry, path, lambda: items_of(entry, self._reader.read), replaces=there is not None)

    def _settled(self, above: int, entry: Entry, path: bytes) -> bool:
        """Give a file that is there its attributes; False when it must be made anew instead."""
        try:
            fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        except OSError:
            return False
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or not self._placer.may_keep(entry, st):  # it was swapped just now
                return False
            self._placer.settle(fd, entry, path)
            return True
        finally:
            os.close(fd)

    def _make_links(self) -> None:
        links, self._links = self._links, []
        for first, path, entry in links:
            if first in self._writer.failed:
                self._trouble(path, f"it is the same as {os.fsdecode(first)}, which could not be restored")
                continue
            try:
                with self._placer.folder(split(first)[0]) as src, self._placer.folder(split(path)[0]) as dst:
                    made = self._link(src, split(first)[1], dst, path)
                self._progress.files += made
                self._progress.unchanged += not made
                self._progress.bytes += entry.size
            except OSError as e:
                self._failed(path, OSError(e.errno, f"it cannot be linked to {os.fsdecode(first)}: {explain(e)}"))

    def _link(self, src: int, first: bytes, dst: int, path: bytes) -> bool:
        """Whether the link had to be made."""
        name = split(path)[1]
        there = self._placer.existing(dst, name)
        if there is not None:
            if os.path.samestat(there, os.stat(first, dir_fd=src, follow_symlinks=False)):
                return False
            self._placer.make_way(dst, path, there, self._removed_in_the_way(path))
        os.link(first, name, src_dir_fd=src, dst_dir_fd=dst, follow_symlinks=False)
        return True

    # -- afterwards ------------------------------------------------------------------------------------------------

    def _settle_folders(self) -> None:
        """Give folders their attributes, the deepest first; the target gets those of the folder it stands for."""
        wanted, made = self._request.wanted, self._placer.made
        for path, entry in self._walk.folders():
            local = self._local(path)
            if wanted is None or local in made or (local and wanted(path, entry)):
                try:
                    self._placer.settle_folder(local, entry)
                except OSError as e:
                    if not self._is_shut(local):
                        self._failed(local, e)

    def _is_shut(self, path: bytes) -> bool:
        parts = path.split(b"/")
        return any(b"/".join(parts[:i]) in self._shut for i in range(1, len(parts) + 1))

    def _verify(self) -> None:
        """Read every restored file back and compare it, chunk by chunk, with what the snapshot says."""
        for directory, entries in self._walk.runs():
            self._progress.current = directory
            for entry in entries:
                path = join(self._local(directory), entry.name)
                if entry.kind != "f" or path in self._writer.failed or self._is_shut(path):
                    continue
                try:
                    wrong = difference(self._reader, self._placer.target, path, entry)
                except HoldfastError as e:
                    wrong = str(e)
                except OSError as e:
                    wrong = explain(e)
                if wrong:
                    self._trouble(path, wrong)
                else:
                    self._progress.verified += 1

    # -- removing --------------------------------------------------------------------------------------------------

    def _may(self) -> May | None:
        """What ``wanted`` lets go, by paths relative to the target."""
        wanted, within = self._request.wanted, self._request.within
        if wanted is None:
            return None

        def may(path: bytes, is_folder: bool) -> bool:
            stub = Entry(split(path)[1], "d" if is_folder else "f", 0, 0, 0, 0, 0, 0)
            return wanted(join(within, path), stub)

        return may

    def _removed_in_the_way(self, path: bytes) -> Callable[[bytes], None]:
        def removed(inner: bytes) -> None:
            self._progress.deleted += 1
            if inner != path:  # that one is changed, not gone
                self._progress.changes.append(("delete", inner))

        return removed

    def _delete_others(self) -> None:
        """Remove what the snapshot does not have, in every folder that it has."""
        walk, progress, target = self._walk, self._progress, self._placer.target
        may, dry_run = self._placer.settings.may, self._request.dry_run

        def removed(count: int) -> None:
            progress.deleted += 0 if dry_run else count

        for path, names in walk.names():
            if not walk.complete:
                self._trouble(b"", "nothing is deleted, because not all of the snapshot could be read")
                return
            gone = clear_others(target, self._local(path), names, may, removed, self._failed, dry_run=dry_run)
            progress.changes.extend(("delete", inner) for inner in gone)

    # -- what went wrong -------------------------------------------------------------------------------------------

    def _failed(self, path: bytes, error: OSError) -> None:
        """Report it; StorageFull when nothing more can be restored."""
        self._trouble(path, explain(error))
        if stop := full(error):
            raise stop

    def _trouble_inside(self, path: bytes, reason: str) -> None:
        self._trouble(self._local(path), reason)

    def _trouble(self, path: bytes, reason: str) -> None:
        with self._lock:
            self._progress.troubles.append(Trouble(path, reason))

    def _note(self, what: str) -> None:
        notes = self._progress.notes
        with self._lock:
            notes[what] = notes.get(what, 0) + 1
