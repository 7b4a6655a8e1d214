"""A small repository, trees to back up, and the one question after every fault: is everything whole?

A tree is made from a number, so that the same number is the same tree; its snapshot is tagged with it. ``House`` holds
what a test works with; its ``storage`` is what really is there, while the work under test may get one that misbehaves.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.archive import backup, restore
from holdfast.repository import check, prune
from holdfast.repository.keys import KeyFile
from holdfast.repository.leases import Owner
from holdfast.repository.repository import Repository, create, open_repository
from holdfast.repository.snapshots import Stored
from holdfast.storage.base import FOLDERS, Storage
from holdfast.wiring.app import machine_owner

KEY = KeyFile(b"k" * 32)
KEY_TEXT = "holdfast-key-1:" + base64.b64encode(KEY.secret).decode() + "\n"
Print = dict[str, tuple[object, ...]]  # a tree by path: what each thing in it is
FILES = 18


def make_tree(folder: Path, number: int, *, kilobytes: int = 200) -> Print:
    """Tree ``number``: most of its files are those of the tree before, some changed, one new, one gone."""
    shutil.rmtree(folder, ignore_errors=True)
    for i in range(number % 5, FILES + number % 5):
        path = folder / f"folder-{i % 4}" / f"file-{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        last_change = number if (i + number) % 6 == 0 else 0
        dice = random.Random(f"{i} {last_change}")
        path.write_bytes(dice.randbytes(dice.randrange(1 << 15)) + b"compressible " * dice.randrange(2000))
        os.utime(path, ns=(0, 1_600_000_000_000_000_000 + last_change * 1_000_000_007))
    (folder / "large").write_bytes(random.Random(number // 2).randbytes(kilobytes << 10))
    (folder / "link").symlink_to(f"target-{number}")
    os.link(folder / "large", folder / "folder-0" / "same")
    os.utime(folder / "large", ns=(0, 10**18 + number // 2))
    return fingerprint(folder)


def fingerprint(folder: Path) -> Print:
    """What a backup must keep of the tree (times of folders left out: making trees changes them)."""
    found: Print = {}
    for top, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(top, name)
            st = os.lstat(path)
            shape: tuple[object, ...] = (stat.filemode(st.st_mode),)
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as f:
                    shape = (*shape, st.st_mtime_ns, st.st_nlink, hashlib.file_digest(f, "sha256").hexdigest())
            elif stat.S_ISLNK(st.st_mode):
                shape = (*shape, os.readlink(path))
            found[os.path.relpath(path, folder)] = shape
    return found


def one_after_the_other() -> Callable[[], Owner]:
    """Owners as if each were a process that starts when the one before has ended, all within one process."""
    counter = itertools.count()

    def owner() -> Owner:
        me = f"test/{next(counter)}/0"
        return Owner("host", "user", me, "boot", lambda lease: lease.process != me)

    return owner


@dataclass
class House:
    """A repository in ``storage``, a folder for trees and restores, and what the trees of each tag are."""

    storage: Storage
    folder: Path
    trees: dict[str, Print] = field(default_factory=dict)
    owner: Callable[[], Owner] = lambda: machine_owner("host")

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    def create(self) -> None:
        create(self.storage, KEY, self.owner(), time.time_ns)

    def open(self, storage: Storage | None = None) -> Repository:
        """As the command line does it; through another storage when one is given."""
        return open_repository(storage or self.storage, KEY, self.owner(), time.time_ns)

    def prepare_tree(self, number: int, *, kilobytes: int = 200) -> str:
        """Make tree ``number``; its tag."""
        tag = str(number)
        self.trees[tag] = make_tree(self.tree, number, kilobytes=kilobytes)
        return tag

    def back_up(self, number: int, *, storage: Storage | None = None, kilobytes: int = 200) -> str:
        """Make tree ``number`` and back it up; the snapshot's id."""
        tag = self.prepare_tree(number, kilobytes=kilobytes)
        return self.back_up_tree(tag, storage)

    def back_up_tree(self, tag: str, storage: Storage | None = None) -> str:
        """Back the tree up as it is."""
        request = backup.Request(paths=(os.fsencode(self.tree),), tags=(tag,), host="host")
        report = backup.back_up(self.open(storage), request)
        assert not report.troubles
        return report.snapshot_id

    def forget(self, snapshot_id: str, *, storage: Storage | None = None) -> None:
        (storage or self.storage).delete(f"snapshots/{snapshot_id}")

    def prune(
        self, *, storage: Storage | None = None, now: bool = True, deadline_s: int = 0, max_unused: float = 0.0
    ) -> prune.Report:
        request = prune.Request(now=now, max_unused=max_unused, deadline_s=deadline_s)
        return prune.prune(self.open(storage), request)

    def copy(self, storage: Storage) -> House:
        """The same house with another storage."""
        return House(storage, self.folder, dict(self.trees), self.owner)

    # -- is everything whole? --------------------------------------------------------------------------------------

    def snapshots(self) -> dict[str, Stored]:
        return {s.id: s for s in self.open().snapshots()}

    def assert_whole(self, reported: Iterable[str], *, only: Iterable[str] | None = None) -> None:
        """Every reported snapshot is there; every one that is there (or of ``only``) restores to exactly its tree."""
        found = self.snapshots()
        lost = set(reported) - found.keys()
        assert not lost, f"reported and lost: {lost}"
        repo = self.open()
        for snapshot_id in found if only is None else only:
            self._assert_restores(repo, found[snapshot_id])

    def _assert_restores(self, repo: Repository, stored: Stored) -> None:
        target = self.folder / "restored"
        shutil.rmtree(target, ignore_errors=True)
        with repo.reading() as reader:
            done = restore.restore(reader, stored.snapshot.root, restore.Request(os.fsencode(target)))
        assert not done.troubles, (stored.short, done.troubles)
        tag = stored.snapshot.tags[0]
        assert fingerprint(target) == self.trees[tag], f"snapshot {stored.short} is not tree {tag}"

    def assert_no_garbage(self) -> None:
        """Every object is what its name says."""
        for folder in FOLDERS:
            for info in self.storage.list(folder):
                digest = hashlib.sha256(self.storage.get(info.name)).hexdigest()
                assert info.name == f"{folder}/{digest}", f"{info.name} holds something else"

    def assert_check_is_good(self) -> None:
        report = check.check(self.open(), read_data=1.0)
        assert report.good, (report.findings, report.affected)

    def condemned_lists(self) -> int:
        return len(self.open().leases.survey().condemned)

    def pack_bytes(self) -> int:
        return sum(info.size for info in self.storage.list("data"))


# -- work to be disturbed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Something that is done to a repository and may be interrupted anywhere.

    ``prepare`` brings the repository to where it starts and gives the snapshots that must stay whole; ``run`` does it
    through the storage given; ``done`` asserts, after ``run`` once more without a fault, that the job is finished.
    """

    name: str
    prepare: Callable[[House], list[str]]
    run: Callable[[House, Storage | None], str]  # the id of a snapshot that was reported, or nothing
    done: Callable[[House], None]


def _two_snapshots(house: House) -> list[str]:
    kept = [house.back_up(0), house.back_up(1)]
    house.prepare_tree(2)
    return kept


def _latest_is_tree_two(house: House) -> None:
    assert max(house.snapshots().values(), key=lambda s: s.snapshot.time_ns).snapshot.tags == ["2"]


def _three_of_five_forgotten(house: House) -> list[str]:
    ids = [house.back_up(number) for number in range(5)]
    for snapshot_id in (ids[0], ids[1], ids[3]):
        house.forget(snapshot_id)
    return [ids[2], ids[4]]


def _also_condemned(house: House) -> list[str]:
    kept = _three_of_five_forgotten(house)
    house.prune(now=False, deadline_s=3600)
    return kept


def _nothing_is_left_over(house: House) -> None:
    house.prune()
    assert house.condemned_lists() == 0
    before = house.pack_bytes()
    report = house.prune()
    assert (report.deleted_packs, report.condemned_packs) == (0, 0)
    assert house.pack_bytes() == before
    house.assert_check_is_good()


def _prune(now: bool) -> Callable[[House, Storage | None], str]:
    def run(house: House, storage: Storage | None = None) -> str:
        house.prune(storage=storage, now=now)
        return ""

    return run


BACK_UP = Work("backup", _two_snapshots, lambda house, storage: house.back_up_tree("2", storage), _latest_is_tree_two)
PRUNE_NOW = Work("prune --now", _three_of_five_forgotten, _prune(True), _nothing_is_left_over)
PRUNE = Work("prune", _three_of_five_forgotten, _prune(False), _nothing_is_left_over)
SWEEP = Work("sweep", _also_condemned, _prune(True), _nothing_is_left_over)
WORKS = (BACK_UP, PRUNE_NOW, PRUNE, SWEEP)
