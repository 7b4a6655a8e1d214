"""A file tree into a snapshot, in one repository or in several at once.

What is promised: the snapshot is put only after everything it needs is durable, and a backup is reported only after
it was seen that all of it is still there. Files that cannot be read, or change while they are read, are named in the
report and the snapshot is made all the same. A file counts as unchanged when size, mtime, ctime and inode are those of
the parent snapshot and all its chunks are in storage; a file changed too shortly before the backup began to tell (the
clock of file systems ticks slowly) is noted so that the next run reads it again. A backup that is interrupted makes
what it has durable first. The repository's own folder is left out of a tree that holds it: each run would store all
that the runs before it stored.

For several repositories the tree is walked once, and a file is read once when any of them needs it: each compares with
its own parent. One that fails takes no more part, and is the only one to fail; its next run catches up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from holdfast.archive.attributes import KIND_OF, explain, path_at, storable_time, xattrs_that_fit
from holdfast.archive.exclude import Excludes
from holdfast.archive.files import FileReader
from holdfast.archive.parent import Parent, find_parent
from holdfast.archive.scan import TURNED, Folder, Identity, Scanner, common_base
from holdfast.archive.targets import TICK_NS, NobodyLeft, SnapshotWriter, Trouble, each, identity_of, left
from holdfast.errors import HoldfastError, InterruptedByUser, SnapshotMissing, StorageUnavailable, UsageError
from holdfast.repository.format import Chunker, Entry, Snapshot, Totals
from holdfast.repository.pages import join
from holdfast.repository.repository import Repository, Session
from holdfast.storage.wrappers import DryRun, hurry

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
    remembered: str = ""  # a file of this machine where a write-only key's last snapshot is known
    left_out: tuple[str, ...] = ()  # more repositories' places, to be left out like those that are backed up to


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
    """What a backup did. ``snapshot_id`` is empty after a dry run. ``packs``: the names of those the snapshot needs."""

    snapshot_id: str
    snapshot: Snapshot
    troubles: list[Trouble]
    packs: list[bytes] = field(default_factory=list)


@dataclass
class Outcome:
    """What became of one repository: a report, or the error that ended its part."""

    place: str
    report: Report | None
    failure: HoldfastError | None


Aim = tuple[Repository, Request]


def back_up(repo: Repository, request: Request, progress: Progress | None = None) -> Report:
    """Back the paths up into one snapshot. Storage errors end it; what was stored by then stays and is found again.

    KeyboardInterrupt ends it as InterruptedByUser once what was read is durable; a second one ends it at once.
    """
    return _report_of(back_up_to([(repo, request)], progress))


def back_up_to(aims: Sequence[Aim], progress: Progress | None = None) -> list[Outcome]:
    """The same into several repositories, each with a request of its own; what is walked is what the first one says. An
    error of one of them is in its outcome; one that concerns all is raised.
    """
    progress, request = progress or Progress(), aims[0][1]
    chunker = _one_chunker(aims)
    base, paths = _where(request.paths)
    own = set[Identity]().union(*map(identity_of, [*request.left_out, *(repo.storage.place for repo, _ in aims)]))
    started = time.monotonic()
    with _opened(aims, base, progress) as targets:
        waiting = [t for t in targets if not t.failure]
        for _ in range(_TRIES):
            if not waiting:
                break
            start_ns = waiting[0].repo.now_ns()
            with contextlib.ExitStack() as stack:
                writers = [stack.enter_context(contextlib.closing(t.new_writer(start_ns))) for t in waiting]
                with contextlib.suppress(NobodyLeft):
                    _Pass(writers, request.excludes, own, chunker, progress).run(base, paths)
                for target in waiting:
                    with target.failing():
                        target.settle(base, started)
            waiting = [t for t in waiting if not t.failure and not t.report]
        for target in waiting:
            target.failure = StorageUnavailable(
                f"Packs keep vanishing from {target.repo.storage.place}.", "Is something deleting its objects?"
            )
        return [t.outcome for t in targets]


def back_up_stream(
    repo: Repository, request: Request, name: bytes, fd: int, progress: Progress | None = None
) -> Report:
    """Back what comes out of ``fd`` up as one file of that name. A stream cannot be read twice: when packs vanish
    meanwhile, this fails.
    """
    return _report_of(back_up_stream_to([(repo, request)], name, fd, progress))


def back_up_stream_to(aims: Sequence[Aim], name: bytes, fd: int, progress: Progress | None = None) -> list[Outcome]:
    """The same into several repositories: the stream is read once."""
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise UsageError("The name of the file from standard input must be a plain file name.")
    progress, chunker = progress or Progress(), _one_chunker(aims)
    aims = [(repo, replace(request, paths=(b"/" + name,), remembered="")) for repo, request in aims]
    started, start_ns = time.monotonic(), aims[0][0].now_ns()
    with _opened(aims, b"/", progress) as targets:
        live = [t for t in targets if not t.failure]
        writers = [t.new_writer(start_ns) for t in live]
        with contextlib.suppress(NobodyLeft):
            _store_stream(left(writers), chunker, name, fd, progress)
        for target in live:
            with target.failing():
                target.settle(b"/", started)
            if not target.failure and not target.report:
                target.failure = StorageUnavailable(
                    f"Packs vanished from {target.repo.storage.place} meanwhile.", "Run the backup again."
                )
        return [t.outcome for t in targets]


def _report_of(outcomes: list[Outcome]) -> Report:
    """Of the only repository there is."""
    (outcome,) = outcomes
    if outcome.failure:
        raise outcome.failure
    assert outcome.report
    return outcome.report


def _one_chunker(aims: Sequence[Aim]) -> Chunker:
    """How all of them cut content. UsageError when they differ, for a file is cut once, and when two are the same."""
    seen: list[object] = []
    first = aims[0][0]
    for repo, _ in aims:
        place = repo.storage.place
        if (identity := identity_of(place) or place) in seen:
            raise UsageError(f"The repository at {place} is named twice.", "Name each repository once.")
        seen.append(identity)
        if repo.config.chunker != first.config.chunker:
            raise UsageError(
                f"The repositories at {first.storage.place} and {place} cut files in different ways.",
                "Back up into each of them on its own.",
            )
    return first.config.chunker


def _where(paths: tuple[bytes, ...]) -> tuple[bytes, list[bytes]]:
    """The common base, and the paths relative to it; UsageError when one is not there."""
    if not paths:
        raise UsageError("Nothing to back up was named.")
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{os.fsdecode(path)} does not exist.")
    return common_base(list(paths))


class _Target:
    """One repository, over all tries: its session, what it compares with, and what becomes of it."""

    session: Session
    parent: Parent
    writer: SnapshotWriter

    def __init__(self, repo: Repository, request: Request) -> None:
        self.repo = replace(repo, storage=DryRun(repo.storage)) if request.dry_run else repo
        self.request = request
        self.failure: HoldfastError | None = None
        self.report: Report | None = None
        self.missing: SnapshotMissing | None = None  # the parent that was asked for

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.repo.storage.place, self.report, self.failure)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """An error in the block is this repository's."""
        try:
            yield
        except HoldfastError as e:
            self.failure = e

    def open(self, stack: contextlib.ExitStack) -> None:
        self.session = stack.enter_context(self.repo.writing("backup", level=self.request.level))

    def compare(self, stack: contextlib.ExitStack, base: bytes) -> None:
        """Find the parent; where there is none of the id asked for, the usual one."""
        try:
            parent = find_parent(self.session, self.request, base)
        except SnapshotMissing as e:
            self.missing, usual = e, replace(self.request, parent="")
            parent = find_parent(self.session, usual, base)
        self.parent = stack.enter_context(contextlib.closing(parent))

    def new_writer(self, start_ns: int) -> SnapshotWriter:
        r = self.request
        self.writer = SnapshotWriter(self.session, self.parent, r.remembered, start_ns, force=r.force)
        return self.writer

    def settle(self, base: bytes, started: float) -> None:
        """Put the snapshot that was written; no report when packs it relies on vanished meanwhile."""
        writer, session = self.writer, self.session
        if writer.failure:
            raise writer.failure
        if not self.request.dry_run and self._lost():
            return
        totals = writer.totals
        totals.bytes_total = min(totals.bytes_total, _MOST_BYTES)
        totals.bytes_stored = session.writer.bytes_stored
        totals.seconds = round(time.monotonic() - started, 3)
        snapshot, snapshot_id = self._snapshot(base), ""
        if not self.request.dry_run:
            snapshot_id = session.commit(snapshot)
            if self._lost():
                self.repo.storage.delete(f"snapshots/{snapshot_id}")
                return
            writer.remember(snapshot)
        packs = [self.session.index.packs[number].name for number in sorted(writer.used)]
        self.report = Report(snapshot_id, snapshot, writer.troubles, packs)

    def _lost(self) -> bool:
        lost = self.session.lost(self.writer.used)
        if lost:
            self.session.drop(lost)
        return bool(lost)

    def _snapshot(self, base: bytes) -> Snapshot:
        """Its time is later than the parent's even when the clock was set back, so that ``latest`` stays true."""
        request, owner, writer = self.request, self.repo.owner, self.writer
        return Snapshot(
            time_ns=max(writer.start_ns, self.parent.time_ns + 1),
            host=request.host or owner.host,
            user=owner.user,
            base=base,
            paths=list(request.paths),
            tags=list(request.tags),
            root=writer.root,
            parent=self.parent.id,
            program=request.program,
            totals=writer.totals,
        )


@contextlib.contextmanager
def _opened(aims: Sequence[Aim], base: bytes, progress: Progress) -> Iterator[list[_Target]]:
    """The repositories, each with a session and a parent unless that failed. An interrupt is raised again once what was
    read is durable.
    """
    targets = [_Target(repo, request) for repo, request in aims]
    with contextlib.ExitStack() as stack:
        for target in targets:
            with target.failing():
                target.open(stack)
        live = [t for t in targets if not t.failure]
        with _durable_when_interrupted(live):
            for target in live:
                with target.failing():
                    target.compare(stack, base)
            if all(t.missing for t in live):  # a snapshot's id is of one repository only
                for target in live:
                    target.failure = target.failure or target.missing
            found = [t.parent.totals for t in live if not t.failure]
            progress.expected_files = max((totals.files for totals in found), default=0)
            progress.expected_bytes = max((totals.bytes_total for totals in found), default=0)
            yield targets


@contextlib.contextmanager
def _durable_when_interrupted(targets: list[_Target]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        try:
            for target in targets:
                with contextlib.suppress(HoldfastError):
                    target.session.writer.flush()
        except KeyboardInterrupt:
            for target in targets:
                hurry(target.repo.storage)
            raise
        raise InterruptedByUser(
            "The backup was interrupted.", "What was read by now is stored, and the next backup finds it."
        ) from None


class _Pass:
    """One walk over the tree: what any of the snapshots needs is read once, and each gets what it needs."""

    def __init__(
        self,
        writers: list[SnapshotWriter],
        excludes: Excludes,
        own: Collection[Identity],
        chunker: Chunker,
        progress: Progress,
    ) -> None:
        self._excludes, self._own, self._progress = excludes, own, progress
        self._settled_ns = writers[0].start_ns - TICK_NS
        self._files = FileReader(chunker, self._trouble_in_file)
        self._live = writers
        progress.totals, progress.troubles = writers[0].totals, []

    def run(self, base: bytes, targets: list[bytes]) -> None:
        """Write everything, durably; NobodyLeft when all of them fail."""
        try:
            base_fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise UsageError(f"{os.fsdecode(base)} cannot be opened: {explain(e)}.") from None
        try:
            known = self._live[0].known if len(self._live) == 1 else self._known
            scanner = Scanner(base_fd, targets, self._excludes, self._trouble, known, self._own)
            for folder in scanner.folders():
                self._folder(folder)
        finally:
            os.close(base_fd)
        each(self._live, SnapshotWriter.finish)

    def _known(self, folder: bytes) -> set[bytes]:
        """The names that anybody's parent knows."""
        return set[bytes]().union(*(writer.known(folder) for writer in self._live))

    def _folder(self, folder: Folder) -> None:
        path = folder.path
        self._progress.current = path
        for writer in self._live:
            writer.begin(path)
        if not path:
            xattrs = xattrs_that_fit(folder.fd, (b"", b""), self._trouble_text)
            root = self._plain(b"", "d", os.fstat(folder.fd), xattrs)
            for writer in self._live:
                writer.take_other(root)
        for name, st in folder.entries:
            if st is None:  # nobody knows it
                self._file(folder, name, None, self._live)
                continue
            kind = KIND_OF.get(stat.S_IFMT(st.st_mode))
            needing = [writer for writer in self._live if not writer.keeps(name, st, kind)]
            if not needing:
                continue
            if kind == "f":
                self._file(folder, name, st, needing)
            else:
                self._other(folder, name, kind, st, needing)
        self._go_on_with(each(self._live, lambda writer: writer.end(path)))

    def _file(self, folder: Folder, name: bytes, st: os.stat_result | None, needing: list[SnapshotWriter]) -> None:
        files, path = self._files, (folder.path, name)
        files.takers = needing
        try:
            files.read(folder.fd, path, st)
        except OSError as e:
            self._trouble_in_file(join(*path), explain(e))
        except NobodyLeft:  # of those who need it
            self._go_on_with(left(self._live))
        if files.takers is not needing:
            self._go_on_with(left(self._live))

    def _other(
        self, folder: Folder, name: bytes, kind: str | None, st: os.stat_result, needing: list[SnapshotWriter]
    ) -> None:
        path = folder.path, name
        self._files.takers = needing
        if kind is None:
            self._trouble_in_file(join(*path), "it is of an unknown kind")
            return
        try:
            entry = self._plain(name, kind, st, xattrs_that_fit(path_at(folder.fd, name), path, self._trouble_in_file))
            if kind == "l":
                entry.target = os.readlink(name, dir_fd=folder.fd)
                entry.size = len(entry.target)
        except OSError as e:
            self._trouble_in_file(join(*path), TURNED if e.errno == errno.EINVAL else explain(e))
            return
        for writer in needing:
            writer.take_other(entry)

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

    def _go_on_with(self, writers: list[SnapshotWriter]) -> None:
        if writers is not self._live:
            self._live, self._progress.totals = writers, writers[0].totals

    def _trouble(self, path: bytes, error: OSError) -> None:
        self._trouble_text(path, explain(error))

    def _trouble_text(self, path: bytes, reason: str) -> None:
        self._tell(Trouble(path, reason), self._live)

    def _trouble_in_file(self, path: bytes, reason: str) -> None:
        """Of what is read for some only: the others have it as it was, unchanged."""
        self._tell(Trouble(path, reason), self._files.takers)

    def _tell(self, trouble: Trouble, writers: list[SnapshotWriter]) -> None:
        self._progress.troubles.append(trouble)
        for writer in writers:
            writer.note(trouble)


def _store_stream(writers: list[SnapshotWriter], chunker: Chunker, name: bytes, fd: int, progress: Progress) -> None:
    """Store what ``fd`` gives, and for each a tree of that one file, durably."""
    progress.totals = writers[0].totals
    files = FileReader(chunker, lambda path, reason: None)
    files.takers = writers
    try:
        size = files.read_stream(lambda view: os.readv(fd, [view]))
    except OSError as e:
        raise HoldfastError(f"What is to be backed up cannot be read: {explain(e)}.") from None
    mine, start_ns = (os.geteuid(), os.getegid()), writers[0].start_ns

    def finish(writer: SnapshotWriter) -> None:
        writer.take_other(Entry(b"", "d", 0o700, *mine, start_ns, 0, 0))
        writer.take_file(Entry(name, "f", 0o600, *mine, start_ns, 0, 0, size, writer.content, writer.depth))
        writer.end(b"")
        writer.finish()

    each(files.takers, finish)
