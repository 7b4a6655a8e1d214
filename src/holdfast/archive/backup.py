"""A file tree into a snapshot.

What is promised: the snapshot is put only after everything it needs is durable, and a backup is reported only after it
was seen that all of it is still there. Files that cannot be read, or change while they are read, are named in the report
and the snapshot is made all the same. A file counts as unchanged when size, mtime, ctime and inode are those of the
parent snapshot and all its chunks are in storage; a file changed too shortly before the backup began to tell (the clock
of file systems ticks slowly) is noted so that the next run reads it again.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from holdfast.archive.attributes import KIND_OF, Owners, path_at, read_xattrs
from holdfast.archive.exclude import Excludes
from holdfast.archive.files import FileReader
from holdfast.archive.parent import Parent, Remembered, find_parent
from holdfast.archive.scan import Folder, Scanner, common_base
from holdfast.errors import Damaged, StorageUnavailable, UsageError
from holdfast.repository.contents import hole_length, split_items
from holdfast.repository.format import ID_SIZE, Entry, Snapshot, Totals
from holdfast.repository.index import PENDING
from holdfast.repository.pages import TreeWriter, join, sort_key
from holdfast.repository.repository import Repository, Session
from holdfast.repository.writer import TREE

TICK_NS = 20_000_000  # file systems' clocks may tick this slowly
_TRIES = 4


@dataclass(frozen=True)
class Request:
    """What to back up. ``paths``: absolute. ``parent``: an id, empty for the newest of the same host and paths."""

    paths: tuple[bytes, ...]
    excludes: Excludes = Excludes()
    tags: tuple[str, ...] = ()
    host: str = ""
    parent: str = ""
    force: bool = False
    dry_run: bool = False
    level: int = 3
    program: str = ""
    remembered: str = ""  # a folder of this machine where a write-only key's last snapshot is known


@dataclass
class Trouble:
    """A path (relative to the base) and what was wrong with it, as a sentence's end."""

    path: bytes
    reason: str


@dataclass
class Progress:
    """What a backup is at, read by whoever shows it while it runs."""

    totals: Totals = field(default_factory=Totals)
    current: bytes = b""
    expected_files: int = 0
    expected_bytes: int = 0
    troubles: list[Trouble] = field(default_factory=list)


@dataclass
class Report:
    """What a backup did. ``snapshot_id`` is empty after a dry run."""

    snapshot_id: str
    snapshot: Snapshot
    troubles: list[Trouble]


def back_up(repo: Repository, request: Request, progress: Progress | None = None) -> Report:
    """Back the paths up into one snapshot. Storage errors end it; what was stored by then stays and is found again."""
    if not request.paths:
        raise UsageError("Nothing to back up was named.")
    progress = progress or Progress()
    for path in request.paths:
        if not os.path.lexists(path):
            raise UsageError(f"{os.fsdecode(path)} does not exist.")
    base, targets = common_base(list(request.paths))
    started = time.monotonic()
    with repo.writing("backup", level=request.level) as session:
        parent = find_parent(session, request, base)
        progress.expected_files, progress.expected_bytes = parent.totals.files, parent.totals.bytes_total
        for _ in range(_TRIES):
            progress.totals, progress.troubles = Totals(), []
            start_ns = repo.now_ns()
            walk = _Pass(session, request, parent, progress, start_ns)
            root = walk.run(base, targets)
            session.writer.flush()
            lost = session.newly_condemned(walk.used) | session.missing(walk.used)
            if lost and not request.dry_run:
                session.index.drop_packs(lost)
                continue
            progress.totals.bytes_stored = session.writer.bytes_stored
            progress.totals.seconds = round(time.monotonic() - started, 3)
            snapshot = _snapshot(repo, request, base, root, parent, progress.totals, start_ns)
            if request.dry_run:
                return Report("", snapshot, progress.troubles)
            snapshot_id = session.commit(snapshot)
            lost = session.missing(walk.used)
            if not lost:
                walk.remember(snapshot)
                return Report(snapshot_id, snapshot, progress.troubles)
            repo.storage.delete(f"snapshots/{snapshot_id}")
            session.index.drop_packs(lost)
    raise StorageUnavailable(f"Packs keep vanishing from {repo.storage.place}.", "Is something deleting its objects?")


def _snapshot(
    repo: Repository, request: Request, base: bytes, root: bytes, parent: Parent, totals: Totals, start_ns: int
) -> Snapshot:
    """``time_ns`` is later than the parent's even when the clock was set back, so that ``latest`` stays true."""
    return Snapshot(
        time_ns=max(start_ns, parent.time_ns + 1),
        host=request.host or repo.owner.host,
        user=repo.owner.user,
        base=base,
        paths=list(request.paths),
        tags=list(request.tags),
        root=root,
        parent=parent.id,
        program=request.program,
        totals=totals,
    )


class _Pass:
    """One walk over the tree: compares with the parent, stores what is new, gives the root of the pages."""

    def __init__(self, session: Session, request: Request, parent: Parent, progress: Progress, start_ns: int) -> None:
        self._session, self._index, self._request = session, session.index, request
        self._progress, self._totals, self._parent = progress, progress.totals, parent
        self._settled_ns = start_ns - TICK_NS
        self.used: set[int] = set()
        owners, chunker = Owners(), session.repository.config.chunker
        self._remembered = Remembered(request.remembered) if request.remembered else None
        self._tree = TreeWriter(self._store_page, session.repository.secrets.cut_seed, owners.user, owners.group)
        self._files = FileReader(session.writer, session.index, self.used, chunker, self._trouble_text, progress)

    def run(self, base: bytes, targets: list[bytes]) -> bytes:
        base_fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            scanner = Scanner(base_fd, targets, self._request.excludes, self._trouble)
            parents = _FolderMerge(self._parent.runs())
            for folder in scanner.folders():
                self._folder(folder, parents.entries_of(folder.path))
        finally:
            os.close(base_fd)
        root = self._tree.finish()
        self._session.writer.flush()
        self.used.update(self._session.writer.packs)
        self.used.discard(PENDING)
        return root

    def remember(self, snapshot: Snapshot) -> None:
        if self._remembered:
            self._remembered.commit(snapshot)

    def _folder(self, folder: Folder, known: dict[bytes, Entry]) -> None:
        totals, progress = self._totals, self._progress
        progress.current = folder.path
        entries: list[Entry] = []
        if not folder.path:
            st = os.fstat(folder.fd)
            entries.append(self._plain(b"", "d", st, read_xattrs(folder.fd)))
            totals.directories += 1
        for name, st in folder.entries:
            old = known.get(name)
            kind = KIND_OF.get(stat.S_IFMT(st.st_mode))
            if old is not None and self._same(old, st, kind):
                entry: Entry | None = old
                self._count_old(old)
            elif kind == "f":
                entry = self._file(folder, name, st, old)
            else:
                entry = self._other(folder, name, kind, st)
            if entry is not None:
                entries.append(entry)
        self._tree.add(folder.path, entries)

    def _same(self, old: Entry, st: os.stat_result, kind: str | None) -> bool:
        """Whether the parent's entry still describes the file, and everything in it can be used."""
        if (
            old.ctime_ns != st.st_ctime_ns
            or old.mtime_ns != st.st_mtime_ns
            or old.inode != st.st_ino
            or old.kind != kind
            or (kind == "f" and old.size != st.st_size)
        ):
            return False
        if self._request.force:
            return False
        content = old.content
        if len(content) == ID_SIZE:
            pack = self._index.pack_of(content)
            if pack is not None:
                self.used.add(pack)
                return True
        return not content or self._use(old)

    def _use(self, entry: Entry) -> bool:
        """Note the packs an entry's content lies in; False when a part of it is in none."""
        packs = []
        try:
            for item in self._parent.items(entry):
                if hole_length(item) is None:
                    pack = self._index.pack_of(item)
                    if pack is None:
                        return False
                    packs.append(pack)
            if entry.depth:
                for piece in split_items(entry.content):
                    pack = self._index.pack_of(piece)
                    if pack is None:
                        return False
                    packs.append(pack)
        except Damaged:
            return False
        self.used.update(packs)
        return True

    def _count_old(self, entry: Entry) -> None:
        totals = self._totals
        if entry.kind == "f":
            totals.files += 1
            totals.files_unmodified += 1
            totals.bytes_total += entry.size
        elif entry.kind == "d":
            totals.directories += 1
        else:
            totals.others += 1

    def _file(self, folder: Folder, name: bytes, st: os.stat_result, old: Entry | None) -> Entry | None:
        path = folder.path, name
        try:
            entry = self._files.read(folder.fd, path, st)
        except OSError as e:
            self._trouble(join(*path), e)
            return None
        if entry.ctime_ns >= self._settled_ns:
            entry.ctime_ns = 0
        totals = self._totals
        totals.files += 1
        totals.bytes_total += entry.size
        if old is None or old.kind != "f":
            totals.files_new += 1
        else:
            totals.files_changed += 1
        return entry

    def _other(self, folder: Folder, name: bytes, kind: str | None, st: os.stat_result) -> Entry | None:
        if kind is None:
            self._progress.troubles.append(Trouble(join(folder.path, name), "it is of an unknown kind"))
            return None
        try:
            entry = self._plain(name, kind, st, read_xattrs(path_at(folder.fd, name)))
            if kind == "l":
                entry.target = os.readlink(name, dir_fd=folder.fd)
                entry.size = len(entry.target)
        except OSError as e:
            self._trouble(join(folder.path, name), e)
            return None
        if kind == "d":
            self._totals.directories += 1
        else:
            self._totals.others += 1
        return entry

    def _plain(self, name: bytes, kind: str, st: os.stat_result, xattrs: dict[bytes, bytes] | None) -> Entry:
        ctime = st.st_ctime_ns if st.st_ctime_ns < self._settled_ns else 0
        return Entry(
            name,
            kind,
            stat.S_IMODE(st.st_mode),
            st.st_uid,
            st.st_gid,
            st.st_mtime_ns,
            ctime,
            st.st_ino,
            device=st.st_rdev if kind in "bc" else 0,
            links=(st.st_dev, st.st_ino) if st.st_nlink > 1 and kind != "d" else None,
            xattrs=xattrs,
        )

    def _trouble(self, path: bytes, error: OSError) -> None:
        self._trouble_text(path, os.strerror(error.errno) if error.errno else str(error))

    def _trouble_text(self, path: bytes, reason: str) -> None:
        self._totals.errors += 1
        self._progress.troubles.append(Trouble(path, reason))

    # -- pages -----------------------------------------------------------------------------------------------------

    def _store_page(self, page: bytes) -> bytes:
        if self._remembered:
            self._remembered.add(page)
        page_id = self._session.writer.add(TREE, page)
        pack = self._index.pack_of(page_id)
        if pack is not None:
            self.used.add(pack)
        return page_id


class _FolderMerge:
    """The parent's entries, folder by folder, for a reader that asks in the same order."""

    def __init__(self, runs: Iterator[tuple[bytes, list[Entry]]]) -> None:
        self._runs = runs
        self._next = next(runs, None)

    def entries_of(self, path: bytes) -> dict[bytes, Entry]:
        """What the parent had in that folder, by name."""
        wanted = sort_key(path, b"")[0]
        found: dict[bytes, Entry] = {}
        while self._next is not None:
            key = sort_key(self._next[0], b"")[0]
            if key > wanted:
                break
            if key == wanted:
                found.update((e.name, e) for e in self._next[1])
            self._next = next(self._runs, None)
        return found


def back_up_stream(
    repo: Repository, request: Request, name: bytes, fd: int, progress: Progress | None = None
) -> Report:
    """Back what comes out of ``fd`` up as one file of that name. A stream cannot be read twice: when packs vanish
    meanwhile, this fails.
    """
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise UsageError("The name of the file from standard input must be a plain file name.")
    progress = progress or Progress()
    started, start_ns = time.monotonic(), repo.now_ns()
    totals, used, owners = progress.totals, set[int](), Owners()
    with repo.writing("backup", level=request.level) as session:
        chunker = repo.config.chunker
        files = FileReader(session.writer, session.index, used, chunker, lambda path, reason: None, progress)
        content, depth, size = files.read_stream(lambda view: os.readv(fd, [view]))
        mine = os.geteuid(), os.getegid()
        folder = Entry(b"", "d", 0o700, *mine, start_ns, 0, 0)
        file = Entry(name, "f", 0o600, *mine, start_ns, 0, 0, size, content, depth)
        seed = repo.secrets.cut_seed
        tree = TreeWriter(lambda page: session.writer.add(TREE, page), seed, owners.user, owners.group)
        tree.add(b"", [folder, file])
        root = tree.finish()
        session.writer.flush()
        used.update(session.writer.packs)
        used.discard(PENDING)
        if session.missing(used) and not request.dry_run:
            raise StorageUnavailable(f"Packs vanished from {repo.storage.place} meanwhile.", "Run the backup again.")
        totals.files = totals.files_new = totals.directories = 1
        totals.bytes_total, totals.bytes_stored = size, session.writer.bytes_stored
        totals.seconds = round(time.monotonic() - started, 3)
        stream = Request(paths=(b"/" + name,), tags=request.tags, host=request.host, program=request.program)
        snapshot = _snapshot(repo, stream, b"/", root, Parent(), totals, start_ns)
        return Report("" if request.dry_run else session.commit(snapshot), snapshot, [])
