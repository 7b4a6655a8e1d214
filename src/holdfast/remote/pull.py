"""A manifest and its files from a server into a folder.

What is promised: nothing is written outside the target, whatever the manifest says and whoever plays with links below
it; a file is put in place when all of it is here and its hash was checked; what the manifest omits is neither touched
nor removed; what cannot be had is named, and everything else is brought. A pull that was cut off goes on when it is run
again. The manifest waits in a file and is read from it piece by piece, so memory does not grow with it.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
from borghash import HashTable

from holdfast.archive.attributes import TooManyXattrs, explain, path_at, read_xattrs
from holdfast.archive.beneath import open_beneath
from holdfast.archive.clearing import clear_others
from holdfast.archive.exclude import Matcher, matcher
from holdfast.archive.placing import Judgement, Placer, Settings, full
from holdfast.archive.placing import explain as explain_placing
from holdfast.errors import ContentError, StorageDenied, UsageError
from holdfast.remote.crew import Crew
from holdfast.remote.downloading import Downloader, has_hash
from holdfast.remote.drafting import MOST_BYTES
from holdfast.remote.progress import Progress
from holdfast.remote.push import Machine, address_of
from holdfast.remote.reading import About, FileLine, LinkLine, Manifest, Owner
from holdfast.remote.server import Server
from holdfast.repository.format import Entry
from holdfast.repository.pages import join, split

_MANIFEST_MOST = MOST_BYTES * 2
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755  # where the manifest says nothing
_SPECIAL = stat.S_ISUID | stat.S_ISGID
_WAY = os.O_PATH | os.O_DIRECTORY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True)
class Request:
    """What to pull and where to. ``version``: None for the newest. ``delete``: remove what the manifest does not name,
    and folders that stand where something else goes. ``verify``: hash what is there already, too.
    """

    name: str
    target: bytes
    version: int | None = None
    delete: bool = False
    dry_run: bool = False
    verify: bool = False


def pull(server: Server, request: Request, progress: Progress, machine: Machine) -> int:
    """Bring the target to what the manifest says, and give its version; what could not be had or done stands in the
    progress's ``troubles``. HoldfastError when it cannot be done at all.
    """

    def refused(path: str, reason: str) -> None:
        progress.troubles.add(path.encode("utf-8", "backslashreplace"), reason)

    with contextlib.closing(machine.scratch()) as source:
        progress.begin("Asking")
        params = {"version": str(request.version)} if request.version is not None else None
        headers = server.fetch_into(source, address_of(request.name), _MANIFEST_MOST, params)
        with Manifest(source, machine.scratch, refused) as manifest:
            target = _opened(request)
            try:
                _Pull(server, request, progress, machine, manifest, target).run()
            finally:
                if target >= 0:
                    os.close(target)
    version = headers.get("x-manifest-version", "")
    return int(version) if version.isascii() and version.isdigit() else request.version or 0


def _opened(request: Request) -> int:
    """The target, open; -1 for a dry run into a folder that is not there."""
    shown = os.fsdecode(request.target)
    try:
        if not request.dry_run:
            os.makedirs(request.target, mode=0o700, exist_ok=True)
        return os.open(request.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except (NotADirectoryError, FileExistsError):
        raise UsageError(f"{shown} is not a folder.") from None
    except OSError as e:
        raise StorageDenied(f"The target {shown} cannot be used: {explain(e)}.") from None


class _Pull:
    def __init__(
        self, server: Server, request: Request, progress: Progress, machine: Machine, manifest: Manifest, target: int
    ) -> None:
        self._server, self._request, self._progress, self._machine = server, request, progress, machine
        self._manifest = manifest
        self._target = target
        self._omitted = self._matcher()
        self._owners = _Owners(progress)
        settings = Settings(os.geteuid() == 0, False, request.delete, self._may)
        self._placer = Placer(target, settings, progress.troubles.add, progress.note)
        self._named = HashTable(key_size=16, value_size=1)
        self._named_folder: bytes | None = None

    def run(self) -> None:
        p, lines = self._progress, self._manifest
        p.begin("Comparing", lines.size)
        if self._request.dry_run:
            self._foresee()
            return
        with contextlib.closing(self._machine.scratch()) as spool:
            folders = _Folders(spool)
            for folder in self._wanted(lines.folders()):
                if self._safely(folder, self._make_folder):
                    folders.add(folder)
            with Crew(self._server.stop) as crew:
                self._files(Downloader(self._server, crew, self._placer, p))
            for link in self._wanted(lines.links()):
                self._safely(link, self._link)
            if self._request.delete:
                self._delete_others()
            for folder in folders.deepest_first():
                self._safely(folder, self._settle_folder)

    # -- what the manifest names -----------------------------------------------------------------------------------

    def _matcher(self) -> Matcher | None:
        try:
            return matcher(self._manifest.omit)
        except UsageError as e:
            raise ContentError(f"The manifest's 'omit' cannot be used: {e}") from None

    def _wanted(self, lines: Iterator[About], *, folders: bool | None = None) -> Iterator[About]:
        """Those that are not omitted; all of them are noted, when the others are to be removed."""
        for line in lines:
            if self._request.delete:
                self._note_name(line.path)
            if not self._is_omitted(line.path, type(line) is About):
                yield line

    def _is_omitted(self, path: bytes, is_folder: bool) -> bool:
        return self._omitted is not None and self._omitted(path, is_folder)

    def _may(self, path: bytes, is_folder: bool) -> bool:
        """Whether it may be removed."""
        return not self._is_omitted(path, is_folder)

    def _note_name(self, path: bytes) -> None:
        self._named[_digest(path)] = b"\1"
        above = split(path)[0]
        if above == self._named_folder:
            return
        self._named_folder = above
        while above and self._named.get(_digest(above)) is None:
            self._named[_digest(above)] = b"\1"
            above = split(above)[0]

    def _safely(self, line: About, act: Callable[[int, About], None]) -> bool:
        """Do something to an entry in its open folder; whether it could be done. What fails is named."""
        self._progress.current = line.path
        try:
            with self._placer.folder(split(line.path)[0]) as above:
                act(above, line)
        except OSError as e:
            if stop := full(e):
                raise stop from None
            self._progress.troubles.add(line.path, explain_placing(e))
            return False
        return True

    def _entry(self, line: About, kind: str, default_mode: int) -> Entry:
        """An entry as rooms below know it. A time that is not said: 0, and whoever uses it looks at ``time_us``."""
        uid, gid, known = self._owners.of(line)
        mode = default_mode if line.mode is None else line.mode
        time_ns = 0 if line.time_us is None else line.time_us * 1000
        return Entry(split(line.path)[1], kind, mode if known else mode & ~_SPECIAL, uid, gid, time_ns, 0, 0)

    # -- folders ---------------------------------------------------------------------------------------------------

    def _make_folder(self, above: int, line: About) -> None:
        name = split(line.path)[1]
        there = self._placer.existing(above, name)
        if there is None or not stat.S_ISDIR(there.st_mode):
            self._placer.make_folder(above, name)
            self._progress.directories += 1

    def _settle_folder(self, above: int, line: About) -> None:
        entry = self._entry(line, "d", _FOLDER_MODE)
        try:
            fd = open_beneath(above, entry.name, _FOLDER)
        except PermissionError:
            with self._placer.folder(line.path):  # which opens it up
                fd = open_beneath(above, entry.name, _FOLDER)
        try:
            st = os.fstat(fd)
            _keep(entry, line, st, _xattrs(fd))
            if (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) != (entry.mode, entry.uid, entry.gid) or (
                st.st_mtime_ns != entry.mtime_ns
            ):
                self._placer.settle(fd, entry, line.path)
        finally:
            os.close(fd)

    # -- files -----------------------------------------------------------------------------------------------------

    def _files(self, downloader: Downloader) -> None:
        directory: bytes | None = None
        with contextlib.ExitStack() as stack:
            above = -1
            for line in self._wanted(self._manifest.files()):
                assert isinstance(line, FileLine)
                try:
                    if split(line.path)[0] != directory:
                        directory = None
                        stack.close()
                        above = stack.enter_context(self._placer.folder(split(line.path)[0]))
                        directory = split(line.path)[0]
                    self._file(above, line, downloader)
                except OSError as e:
                    self._progress.troubles.add(line.path, explain_placing(e))

    def _file(self, above: int, line: FileLine, downloader: Downloader) -> None:
        placer, p, entry = self._placer, self._progress, self._entry(line, "f", _FILE_MODE)
        p.current = line.path
        there = placer.existing(above, entry.name)
        if there is not None:
            if self._is_there(above, line, entry, there):
                p.count(unchanged=1, done=line.size)
                return
            if stat.S_ISDIR(there.st_mode):
                placer.make_way(above, line.path, there, self._removed)
        if not line.available:
            p.troubles.add(line.path, "the server does not have all of it yet")
            return
        if line.time_us is None:
            entry.mtime_ns = self._machine.now_ns()
        downloader.add(line, entry)

    def _is_there(self, above: int, line: FileLine, wanted: Entry, there: os.stat_result) -> bool:
        """Whether the file is there, with its attributes, which may have had to be set."""
        if not self._has_content(line, there):
            return False
        entry = msgspec.structs.replace(wanted)
        _keep(entry, line, there, _xattrs(path_at(above, entry.name)))
        if self._placer.has_attributes(above, entry, there):
            return True
        fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or not self._placer.may_keep(entry, st):
                return False
            self._placer.settle(fd, entry, line.path)
            return True
        finally:
            os.close(fd)

    def _has_content(self, line: FileLine, there: os.stat_result) -> bool:
        """Whether what lies there is the file: one of the same size and time is believed, but not to verify."""
        if not stat.S_ISREG(there.st_mode) or there.st_size != line.size:
            return False
        if there.st_mtime_ns // 1000 == line.time_us and not self._request.verify:
            return True
        try:
            return has_hash(self._target, line.path, line)
        except OSError:
            return False

    # -- links -----------------------------------------------------------------------------------------------------

    def _link(self, above: int, line: About) -> None:
        assert isinstance(line, LinkLine)
        placer, entry = self._placer, self._entry(line, "l", 0o777)
        entry.target = line.target
        there = placer.existing(above, entry.name)
        if there is not None:
            _keep(entry, line, there, None)
        judgement = placer.judge(above, entry, there) if there is not None else Judgement.DIFFERS
        if judgement is Judgement.DIFFERS:
            if there is not None:
                placer.make_way(above, line.path, there, self._removed)
            placer.make_node(above, entry)
            if line.time_us is None:
                entry.mtime_ns = self._machine.now_ns()
        if judgement is Judgement.SAME:
            return
        placer.settle_node(above, entry, line.path)
        self._progress.links += 1

    # -- removing --------------------------------------------------------------------------------------------------

    def _removed(self, path: bytes) -> None:
        self._progress.count(deleted=1)
        self._progress.change("delete", path)

    def _delete_others(self) -> None:
        """Remove what the manifest does not name, folder by folder; what it omits stays."""
        waiting = [b""]
        while waiting:
            folder = waiting.pop()
            names, inner = self._listed(folder)
            gone = clear_others(
                self._target, folder, names, self._may, lambda count: self._progress.count(deleted=count),
                lambda path, e: self._progress.troubles.add(path, explain_placing(e)), dry_run=self._request.dry_run,
            )  # fmt: skip
            for path in gone:
                self._progress.change("delete", path)
            waiting += inner

    def _listed(self, folder: bytes) -> tuple[set[bytes], list[bytes]]:
        """The names in a folder that the manifest has, and the paths of those that are folders."""
        names, inner = set[bytes](), list[bytes]()
        try:
            fd = open_beneath(self._target, folder, _FOLDER)
        except OSError:
            return names, inner
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    path = join(folder, name := os.fsencode(item.name))
                    if self._named.get(_digest(path)) is not None:
                        names.add(name)
                        if item.is_dir(follow_symlinks=False):
                            inner.append(path)
        finally:
            os.close(fd)
        return names, inner

    # -- a dry run -------------------------------------------------------------------------------------------------

    def _foresee(self) -> None:
        for folder in self._wanted(self._manifest.folders()):
            there = self._seen(folder.path)
            if there is None or not stat.S_ISDIR(there.st_mode):
                self._progress.change("new" if there is None else "changed", folder.path)
        for line in self._wanted(self._manifest.files()):
            assert isinstance(line, FileLine)
            self._foresee_file(line)
        for link in self._wanted(self._manifest.links()):
            assert isinstance(link, LinkLine)
            there = self._seen(link.path)
            if there is None or not stat.S_ISLNK(there.st_mode) or not self._points_to(link):
                self._progress.change("new" if there is None else "changed", link.path)
        if self._request.delete and self._target >= 0:
            self._delete_others()

    def _foresee_file(self, line: FileLine) -> None:
        there = self._seen(line.path)
        same = there is not None and self._has_content(line, there)
        self._progress.count(done=line.size)
        if same:
            self._progress.unchanged += 1
            return
        self._progress.change("new" if there is None else "changed", line.path)
        if not line.available:
            self._progress.troubles.add(line.path, "the server does not have all of it yet")

    def _seen(self, path: bytes) -> os.stat_result | None:
        if self._target < 0:
            return None
        directory, name = split(path)
        try:
            fd = open_beneath(self._target, directory, _WAY)
        except OSError:
            return None
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _points_to(self, link: LinkLine) -> bool:
        directory, name = split(link.path)
        fd = open_beneath(self._target, directory, _WAY)
        try:
            return os.readlink(name, dir_fd=fd) == link.target
        except OSError:
            return False
        finally:
            os.close(fd)


class _Folders:
    """Folders in a file, so that they come back the deepest first: making something in one changes its time."""

    def __init__(self, spool: BinaryIO) -> None:
        self._spool, self._end = spool, 0
        self._places = array("Q")  # depth and place in one number

    def add(self, line: About) -> None:
        text = msgspec.msgpack.encode(line)
        self._places.append(min(line.path.count(b"/"), 0x7FFF) << 48 | self._end)
        self._end += self._spool.write(len(text).to_bytes(4, "little") + text)

    def deepest_first(self) -> Iterator[About]:
        for place in sorted(self._places, reverse=True):
            self._spool.seek(place & ((1 << 48) - 1))
            length = int.from_bytes(self._spool.read(4), "little")
            yield msgspec.msgpack.decode(self._spool.read(length), type=About)


class _Owners:
    """Numbers of users and groups as a manifest names them. Names that this machine does not know are noted; what they
    own goes to whoever pulls.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._own = os.geteuid(), os.getegid()
        self._users: dict[Owner, int | None] = {None: None}
        self._groups: dict[Owner, int | None] = {None: None}

    def of(self, line: About) -> tuple[int, int, bool]:
        """User and group, and whether both are the ones that the manifest names."""
        if line.user not in self._users:
            self._users[line.user] = _number(line.user, lambda name: pwd.getpwnam(name).pw_uid)
        if line.group not in self._groups:
            self._groups[line.group] = _number(line.group, lambda name: grp.getgrnam(name).gr_gid)
        uid, gid = self._users[line.user], self._groups[line.group]
        for what, asked, found in (("user", line.user, uid), ("group", line.group, gid)):
            if found is None and asked is not None and self._own[0] == 0:
                self._progress.note(f"the {what} {asked}, which this machine does not know,")
        own_uid, own_gid = self._own
        known = uid is not None and gid is not None
        return own_uid if uid is None else uid, own_gid if gid is None else gid, known


def _number(name: Owner, look_up: Callable[[str], int]) -> int | None:
    if name is None or isinstance(name, int):
        return name
    try:
        return look_up(name)
    except (KeyError, ValueError, OSError):
        return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None


def _keep(entry: Entry, line: About, there: os.stat_result, xattrs: dict[bytes, bytes] | None) -> None:
    """Take over from what is there what a manifest does not say: attributes, and what is finer than a microsecond."""
    if line.time_us is None or there.st_mtime_ns // 1000 == line.time_us:
        entry.mtime_ns = there.st_mtime_ns
    entry.xattrs = xattrs


def _xattrs(where: int | bytes) -> dict[bytes, bytes] | None:
    try:
        return read_xattrs(where)
    except (TooManyXattrs, OSError):
        return None


def _digest(path: bytes) -> bytes:
    return hashlib.blake2b(path, digest_size=16).digest()
