"""A file tree into a snapshot.

What is promised: the snapshot is put only after everything it needs is durable, and a backup is reported only after
it was seen that all of it is still there. Files that cannot be read, or change while they are read, are named in the
report and the snapshot is made all the same. A file counts as unchanged when size, mtime, ctime and inode are those of
the parent snapshot and all its chunks are in storage; a file changed too shortly before the backup began to tell (the
clock of file systems ticks slowly) is noted so that the next run reads it again. A backup that is interrupted makes
what it has durable first. The repository's own folder is left out of a tree that holds it: each run would store all
that the runs before it stored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from holdfast.archive.attributes import KIND_OF, Owners, explain, path_at, storable_time, xattrs_that_fit
from holdfast.archive.exclude import Excludes
from holdfast.archive.files import FileReader
from holdfast.archive.parent import Parent, Remembered, find_parent
from holdfast.archive.scan import TURNED, Folder, Identity, Scanner, common_base
from holdfast.errors import HoldfastError, InterruptedByUser, StorageUnavailable, UsageError
from holdfast.repository.contents import hole_length, split_items
from holdfast.repository.format import ID_SIZE, Entry, Snapshot, Totals
from holdfast.repository.index import PENDING
from holdfast.repository.pages import TreeWriter, join, sort_key
from holdfast.repository.repository import Repository, Session
from holdfast.repository.writer import TREE, ChunkWriter
from holdfast.storage.wrappers import DryRun

TICK_NS = 20_000_000  # file systems' clocks may tick this slowly
_TRIES = 4
_MOST_BYTES = (1 << 63) - 1  # of a total: sparse files can claim more together than a snapshot can say


@dataclass(frozen=True)
class Request:
    """What to back up. ``paths``: absolute. ``parent``: an id, empty for the newest of the same host and paths."""

    paths: tuple[bytes, ...]
    excludes: Excludes = field(default_factory=Excludes)
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
    """Back the paths up into one snapshot. Storage errors end it; what was stored by then stays and is found again.

    KeyboardInterrupt ends it as InterruptedByUser once what was read is durable; a second one ends it at once.
    """
    progress = progress or Progress()
    base, targets = _where(request.paths)
    if request.dry_run:
        repo = replace(repo, storage=DryRun(repo.storage))
    started = time.monotonic()
    with (
        repo.writing("backup", level=request.level) as session,
        _durable_when_interrupted(session.writer),
        contextlib.closing(find_parent(session, request, base)) as parent,
    ):
        progress.expected_files, progress.expected_bytes = parent.totals.files, parent.totals.bytes_total
        for _ in range(_TRIES):
            progress.totals, progress.troubles = Totals(), []
            with contextlib.closing(_Pass(session, request, parent, progress, repo.now_ns())) as walk:
                if report := _attempt(walk, base, targets, started):
                    return report
    raise StorageUnavailable(f"Packs keep vanishing from {repo.storage.place}.", "Is something deleting its objects?")


def _where(paths: tuple[bytes, ...]) -> tuple[bytes, list[bytes]]:
    """The common base, and the paths relative to it; UsageError when one is not there."""
    if not paths:
        raise UsageError("Nothing to back up was named.")
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{os.fsdecode(path)} does not exist.")
    return common_base(list(paths))


@contextlib.contextmanager
def _durable_when_interrupted(writer: ChunkWriter) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(HoldfastError):
            writer.flush()
        raise InterruptedByUser(
            "The backup was interrupted.", "What was read by now is stored, and the next backup finds it."
        ) from None


def _attempt(walk: _Pass, base: bytes, targets: list[bytes], started: float) -> Report | None:
    """One try at a whole backup; None when packs it relies on vanished meanwhile."""
    session, request, progress = walk.session, walk.request, walk.progress
    root = walk.run(base, targets)
    lost = set() if request.dry_run else session.lost(walk.used)
    if lost:
        session.drop(lost)
        return None
    totals = progress.totals
    totals.bytes_total = min(totals.bytes_total, _MOST_BYTES)
    totals.bytes_stored = session.writer.bytes_stored
    totals.seconds = round(time.monotonic() - started, 3)
    snapshot = _snapshot(session.repository, request, base, root, walk.parent, totals, walk.start_ns)
    if request.dry_run:
        return Report("", snapshot, progress.troubles)
    snapshot_id = session.commit(snapshot)
    lost = session.lost(walk.used)
    if lost:
        session.repository.storage.delete(f"snapshots/{snapshot_id}")
        session.drop(lost)
        return None
    walk.remember(snapshot)
    return Report(snapshot_id, snapshot, progress.troubles)


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
        self.session, self.request, self.parent, self.progress = session, request, parent, progress
        self._index, self._totals = session.index, progress.totals
        self.start_ns, self._settled_ns = start_ns, start_ns - TICK_NS
        self.used: set[int] = set()
        writer, secrets, owners = session.writer, session.repository.secrets, Owners()
        self._remembered = Remembered(request.remembered, writer.chunk_id) if request.remembered else None
        self._store = _store_in(session, self.used)
        self._tree = TreeWriter(self._store_page, secrets.cut_seed, owners.user, owners.group)
        chunker = session.repository.config.chunker
        self._files = FileReader(
            writer, session.index, self.used, chunker, self._store_list, self._trouble_text, progress
        )

    def run(self, base: bytes, targets: list[bytes]) -> bytes:
        """Store everything, durably; the root's id."""
        try:
            base_fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise UsageError(f"{os.fsdecode(base)} cannot be opened: {explain(e)}.") from None
        try:
            own = _identity(self.session.repository.storage.place)
            parents = _FolderMerge(self.parent.runs())
            scanner = Scanner(base_fd, targets, self.request.excludes, self._trouble, parents.entries_of, own)
            for folder in scanner.folders():
                self._folder(folder, parents.entries_of(folder.path))
        finally:
            os.close(base_fd)
        root = self._tree.finish()
        self.session.writer.flush()
        self.used.update(self.session.writer.packs)
        self.used.discard(PENDING)
        return root

    def remember(self, snapshot: Snapshot) -> None:
        if self._remembered:
            self._remembered.commit(snapshot)

    def close(self) -> None:
        if self._remembered:
            self._remembered.close()

    def _folder(self, folder: Folder, known: dict[bytes, Entry]) -> None:
        totals = self._totals
        self.progress.current = folder.path
        entries: list[Entry] = []
        if not folder.path:
            xattrs = xattrs_that_fit(folder.fd, (b"", b""), self._trouble_text)
            entries.append(self._plain(b"", "d", os.fstat(folder.fd), xattrs))
            totals.directories += 1
        for name, st in folder.entries:
            old = known.get(name)
            kind = "f" if st is None else KIND_OF.get(stat.S_IFMT(st.st_mode))
            entry: Entry | None
            if st is None:
                entry = self._file(folder, name, None, old)
            elif old is not None and self._same(old, st, kind):
                entry = old
                if old.links is not None:
                    old.links = st.st_dev, st.st_ino  # a device's number may be another one after each start
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
        if self.request.force:
            return False
        content = old.content
        if len(content) == ID_SIZE and not old.depth:
            pack = self._index.pack_of(content)
            if pack is not None:
                self.used.add(pack)
                return True
        return not content or self._use(old)

    def _use(self, entry: Entry) -> bool:
        """Note the packs an entry's content lies in; False when a part of it is in none."""
        parts = list(split_items(entry.content)) if entry.depth else []
        try:
            pieces = [self.parent.piece(part) for part in parts] if self._remembered else []
            packs = {self._index.pack_of(part) for part in parts}
            for item in self.parent.items(entry):
                if hole_length(item) is None:
                    packs.add(self._index.pack_of(item))
        except HoldfastError:
            return False
        if None in packs:
            return False
        self.used.update(pack for pack in packs if pack is not None)
        if self._remembered:
            for piece in pieces:
                self._remembered.add_list(piece)
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

    def _file(self, folder: Folder, name: bytes, st: os.stat_result | None, old: Entry | None) -> Entry | None:
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
        path = folder.path, name
        if kind is None:
            self._trouble_text(join(*path), "it is of an unknown kind")
            return None
        try:
            entry = self._plain(name, kind, st, xattrs_that_fit(path_at(folder.fd, name), path, self._trouble_text))
            if kind == "l":
                entry.target = os.readlink(name, dir_fd=folder.fd)
                entry.size = len(entry.target)
        except OSError as e:
            self._trouble(join(*path), OSError(0, TURNED) if e.errno == errno.EINVAL else e)
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
            storable_time(st.st_mtime_ns),
            storable_time(ctime),
            st.st_ino,
            device=st.st_rdev if kind in "bc" else 0,
            links=(st.st_dev, st.st_ino) if st.st_nlink > 1 and kind != "d" else None,
            xattrs=xattrs,
        )

    def _trouble(self, path: bytes, error: OSError) -> None:
        self._trouble_text(path, explain(error))

    def _trouble_text(self, path: bytes, reason: str) -> None:
        self._totals.errors += 1
        self.progress.troubles.append(Trouble(path, reason))

    # -- pages -----------------------------------------------------------------------------------------------------

    def _store_page(self, page: bytes) -> bytes:
        if self._remembered:
            self._remembered.add_page(page)
        return self._store(page)

    def _store_list(self, piece: bytes) -> bytes:
        if self._remembered:
            self._remembered.add_list(piece)
        return self._store(piece)


def _store_in(session: Session, used: set[int]) -> Callable[[bytes], bytes]:
    """What stores a chunk of kind tree and gives its id, noting the pack when it is there already."""
    add, pack_of = session.writer.add, session.index.pack_of

    def store(data: bytes) -> bytes:
        chunk_id = add(TREE, data)
        pack = pack_of(chunk_id)
        if pack is not None:
            used.add(pack)
        return chunk_id

    return store


def _identity(place: str) -> set[Identity]:
    """The folder a storage lies in, where it lies in one."""
    try:
        st = os.stat(place)
    except (OSError, ValueError):
        return set()
    return {(st.st_dev, st.st_ino)}


class _FolderMerge:
    """The parent's entries, folder by folder, for a reader that asks in the same order."""

    def __init__(self, runs: Iterator[tuple[bytes, list[Entry]]]) -> None:
        self._runs = runs
        self._next = next(runs, None)
        self._path: bytes | None = None
        self._found: dict[bytes, Entry] = {}

    def entries_of(self, path: bytes) -> dict[bytes, Entry]:
        """What the parent had in that folder, by name; the last folder may be asked for again."""
        if path == self._path:
            return self._found
        self._path, self._found = path, self._read(sort_key(path, b"")[0])
        return self._found

    def _read(self, wanted: bytes) -> dict[bytes, Entry]:
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
    request = replace(request, paths=(b"/" + name,), remembered="")
    if request.dry_run:
        repo = replace(repo, storage=DryRun(repo.storage))
    started, start_ns = time.monotonic(), repo.now_ns()
    totals, used = progress.totals, set[int]()
    with repo.writing("backup", level=request.level) as session, _durable_when_interrupted(session.writer):
        parent = find_parent(session, request, b"/")
        root, size = _store_stream(session, used, name, fd, progress, start_ns)
        totals.files = totals.files_new = totals.directories = 1
        totals.bytes_total, totals.bytes_stored = size, session.writer.bytes_stored
        totals.seconds = round(time.monotonic() - started, 3)
        snapshot = _snapshot(repo, request, b"/", root, parent, totals, start_ns)
        if request.dry_run:
            return Report("", snapshot, [])
        snapshot_id = ""
        if not session.lost(used):
            snapshot_id = session.commit(snapshot)
            if not session.lost(used):
                return Report(snapshot_id, snapshot, [])
            repo.storage.delete(f"snapshots/{snapshot_id}")
    raise StorageUnavailable(f"Packs vanished from {repo.storage.place} meanwhile.", "Run the backup again.")


def _store_stream(
    session: Session, used: set[int], name: bytes, fd: int, progress: Progress, start_ns: int
) -> tuple[bytes, int]:
    """Store what ``fd`` gives, and a tree of that one file, durably: the root's id, and the number of bytes."""
    repo, owners = session.repository, Owners()
    store = _store_in(session, used)
    files = FileReader(
        session.writer, session.index, used, repo.config.chunker, store, lambda path, reason: None, progress
    )
    try:
        content, depth, size = files.read_stream(lambda view: os.readv(fd, [view]))
    except OSError as e:
        raise HoldfastError(f"What is to be backed up cannot be read: {explain(e)}.") from None
    mine = os.geteuid(), os.getegid()
    tree = TreeWriter(store, repo.secrets.cut_seed, owners.user, owners.group)
    folder = Entry(b"", "d", 0o700, *mine, start_ns, 0, 0)
    tree.add(b"", [folder, Entry(name, "f", 0o600, *mine, start_ns, 0, 0, size, content, depth)])
    root = tree.finish()
    session.writer.flush()
    used.update(session.writer.packs)
    used.discard(PENDING)
    return root, size
