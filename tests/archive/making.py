"""What the tests of the archive work with: a repository on a real disk, back up and restore in one word each, file
systems of their own, another user.
"""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from holdfast.archive import backup, restore
from holdfast.archive.exclude import Excludes
from holdfast.repository.crypto import Secrets
from holdfast.repository.format import Argon2, Chunker, Snapshot, Totals
from holdfast.repository.keys import KeyFile, without_private
from holdfast.repository.leases import Owner
from holdfast.repository.pages import Tree, TreeWriter
from holdfast.repository.repository import Repository, create, open_repository
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage

T = TypeVar("T")

KEY = KeyFile(bytes(range(32)))
KEY_TEXT = f"holdfast-key-1:{base64.b64encode(KEY.secret).decode()}\n"
QUICK = Argon2(passes=1, memory=8, lanes=1)
FINE = Chunker(min_size=1 << 10, avg_size=4 << 10, max_size=16 << 10)
SECOND = 1_000_000_000
NOBODY = 65534


@dataclass
class Clock:
    """The clock a repository is given: the machine's, set ahead, so that files made just now count as settled.

    Where a test is about fractions of a second the clock stands at ``stands_ns``, however slow the machine is."""

    ahead_ns: int = SECOND
    stands_ns: int | None = None

    def __call__(self) -> int:
        return time.time_ns() + self.ahead_ns if self.stands_ns is None else self.stands_ns


@dataclass
class House:
    """A repository, and a folder for the trees of a test."""

    repo: Repository
    folder: Path
    clock: Clock

    def back_up(self, *paths: Path, **options: Any) -> backup.Report:
        """``excludes`` may be given as patterns."""
        if isinstance(options.get("excludes"), list | tuple):
            options["excludes"] = Excludes(tuple(options["excludes"]))
        request = backup.Request(paths=tuple(os.fsencode(p) for p in paths), **options)
        return backup.back_up(self.repo, request)

    def restore(self, report: backup.Report | bytes, target: Path | None = None, **options: Any) -> restore.Progress:
        root = report if isinstance(report, bytes) else report.snapshot.root
        target = target or self.folder / "restored"
        with self.repo.reading() as reader:
            return restore.restore(reader, root, restore.Request(os.fsencode(target), **options))

    @property
    def restored(self) -> Path:
        return self.folder / "restored"

    def tree(self, report: backup.Report) -> Tree:
        return Tree(self.repo.reader().read, report.snapshot.root)

    def names(self, report: backup.Report) -> list[str]:
        """The paths of everything in a snapshot but folders."""
        found = []
        for directory, entries in self.tree(report).runs():
            found += [os.fsdecode(os.path.join(directory, e.name)) for e in entries if e.kind != "d"]
        return sorted(found)

    def packs(self) -> dict[str, int]:
        return {info.name: info.size for info in self.repo.storage.list("data")}

    def path_of(self, pack: str) -> Path:
        return Path(self.repo.storage.place, "data", pack[5:7], pack[5:])

    def write_only(self) -> House:
        """The same repository as a write-only key sees it."""
        repo = self.repo
        secrets = Secrets(without_private(repo.secrets.bundle))
        other = Repository(repo.storage, secrets, repo.config, "", repo.owner, repo.now_ns)
        return House(other, self.folder, self.clock)

    def store_pages(self, *runs: tuple[bytes, list[Any]], store: Callable[..., Any] | None = None) -> bytes:
        """Commit a snapshot of exactly these entries, whatever they are; the root of its pages."""
        with self.repo.writing() as session:
            from holdfast.repository.writer import TREE

            tree = TreeWriter(lambda page: session.writer.add(TREE, page), 1, lambda n: "", lambda n: "")
            tree._check_order = lambda directory, entries: None  # type: ignore[method-assign]
            for directory, entries in runs:
                tree.add(directory, entries)
            root = tree.finish()
            session.commit(
                Snapshot(time_ns=1, host="h", user="u", base=b"/", paths=[b"/"], tags=[], root=root, totals=Totals())
            )
        return root


def make_house(folder: Path, chunker: Chunker | None = None, storage: Storage | None = None) -> House:
    if storage is None:
        storage = LocalStorage(folder / "repository")
        storage.create()
    clock = Clock()
    owner = Owner("host", "user", "1/1/1", "boot", lambda lease: False)
    repo = create(storage, KEY, owner, clock, argon2=QUICK, chunker=chunker)
    return House(repo, folder, clock)


def open_house(folder: Path) -> House:
    """The house that ``make_house`` made there, for another process."""
    clock = Clock()
    owner = Owner("host", "user", "2/2/2", "boot", lambda lease: False)
    return House(open_repository(LocalStorage(folder / "repository"), KEY, owner, clock), folder, clock)


@dataclass
class Mounts:
    """File systems for one test."""

    folder: Path
    made: list[Path] = field(default_factory=list)

    def tmpfs(self, path: Path, options: str = "size=1m") -> Path:
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        self.made.append(path)
        return path

    def remount(self, path: Path, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


class Ended(Exception):
    """A process was ended by the signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def elsewhere(act: Callable[..., T], *args: Any, uid: int = 0, within: Iterable[str] = ()) -> T:
    """What a function of a test module gives, or raises, in a process of its own (started anew: a fork of a process
    with threads may hang), as the user ``uid``, started by the command ``within``. A signal that ends it raises Ended.
    """
    program = "import tests.archive.making as making; making.child()"
    done = subprocess.run(
        [*within, sys.executable, "-c", program],
        input=pickle.dumps((act, args, uid)),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    if done.returncode < 0:
        raise Ended(-done.returncode)
    result = pickle.loads(done.stdout)
    if isinstance(result, BaseException):
        raise result
    answer: T = result
    return answer


def child() -> None:
    """The other half of ``elsewhere``."""
    act, args, uid = pickle.load(sys.stdin.buffer)
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        os.umask(0o022)
    try:
        answer = act(*args)
    except BaseException as e:  # noqa: BLE001 - it is raised where it belongs
        answer = e
    sys.stdout.buffer.write(pickle.dumps(answer))


def reasons(done: backup.Report | restore.Progress) -> dict[str, str]:
    """What went wrong, by path."""
    return {os.fsdecode(t.path): t.reason for t in done.troubles}
