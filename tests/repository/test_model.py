"""Backups, forgetting, prunes, copies, kills and time, in any order, beside a model of what must be there.

After every step every snapshot of the model is read back byte for byte, and the check finds nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.archive import backup, restore, tagging
from holdfast.errors import Busy, HoldfastError
from holdfast.repository.check import check
from holdfast.repository.copy import copy_snapshots
from holdfast.repository.marking import Marks
from holdfast.repository.prune import Request, prune
from holdfast.repository.repair import repair_index, repair_packs, repair_snapshots
from holdfast.repository.repository import Repository
from holdfast.storage.base import Storage
from tests.repository.making import (
    HOUR,
    Clock,
    an_owner,
    memory,
    names,
    new_repository,
    read_back,
    some_bytes,
    through,
    write_only,
)
from tests.support.storages import Misbehaving, fails

Tree = dict[bytes, bytes]
CONTENTS = [b"", b"small", b"text " * 500, *(some_bytes(n, 3000 + 500 * n) for n in range(6))]
PLACES = [b"a", b"b", b"c", b"sub/a", b"sub/b", b"sub/deep/a"]
TREES = st.dictionaries(st.sampled_from(PLACES), st.integers(0, len(CONTENTS) - 1), max_size=5)
SOURCES = st.sampled_from(["one", "two"])
STEPS = st.integers(1, 60)
NUMBERS = st.integers(0, 1000)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-model-"))
        self.clock = Clock()
        self.repo = new_repository(clock=self.clock)
        self.target = new_repository(clock=self.clock)
        self.there: dict[str, Tree] = {}
        self.over_there: dict[str, Tree] = {}  # by the id of the original
        self.origins: dict[str, str] = {}
        self.dead: set[str] = set()
        self.processes = 100

    def teardown(self) -> None:
        try:
            for number, (snapshot_id, tree) in enumerate(sorted(self.there.items())[:2]):
                self.demand_restored(snapshot_id, tree, self.folder / f"out {number}")
        finally:
            shutil.rmtree(self.folder)

    # -- who works, and what goes wrong ---------------------------------------------------------------------------

    def somebody(self, storage: Storage | None = None, repo: Repository | None = None) -> Repository:
        """A new process on this machine; those before it that were killed are known to be dead."""
        repo = repo or self.repo
        self.processes += 1
        owner = an_owner("here", f"1/{self.processes}/1", self.dead)
        return through(repo, storage or repo.storage, owner)

    def killed(self, step: int, work: Callable[[Repository], Any], repo: Repository | None = None) -> Any:
        """Do the work as a process that is killed before its nth call; what it gave when it ended before that."""
        repo = repo or self.repo
        victim = self.somebody(Misbehaving(repo.storage, [fails("any", step, times=None)]), repo)
        result = None
        with contextlib.suppress(HoldfastError):
            result = work(victim)
        self.dead.add(victim.owner.process)
        return result

    # -- rules ----------------------------------------------------------------------------------------------------

    def write(self, source: str, tree: Tree) -> backup.Request:
        top = self.folder / source
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
        for path, content in tree.items():
            place = top / path.decode()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return backup.Request(paths=(bytes(top),))

    @rule(source=SOURCES, numbers=TREES)
    def back_up(self, source: str, numbers: dict[bytes, int]) -> None:
        tree = {path: CONTENTS[n] for path, n in numbers.items()}
        report = backup.back_up(self.somebody(), self.write(source, tree))
        assert not report.troubles
        self.there[report.snapshot_id] = tree

    @rule(source=SOURCES, numbers=TREES)
    def back_up_with_a_write_only_key(self, source: str, numbers: dict[bytes, int]) -> None:
        tree = {path: CONTENTS[n] for path, n in numbers.items()}
        report = backup.back_up(write_only(self.somebody()), self.write(source, tree))
        self.there[report.snapshot_id] = tree

    @rule(source=SOURCES, numbers=TREES, step=STEPS)
    def back_up_and_be_killed(self, source: str, numbers: dict[bytes, int], step: int) -> None:
        tree = {path: CONTENTS[n] for path, n in numbers.items()}
        request, before = self.write(source, tree), set(names(self.repo.storage, "snapshots"))
        self.killed(step, lambda repo: backup.back_up(repo, request))
        for name in set(names(self.repo.storage, "snapshots")) - before:  # committed, whether or not it was told
            self.there[name[10:]] = tree

    def any_of_them(self, number: int) -> str | None:
        """What is drawn must not depend on what there is: names, and the steps at which work is killed, differ."""
        return list(self.there)[number % len(self.there)] if self.there else None

    @rule(number=NUMBERS)
    def forget(self, number: int) -> None:
        if (gone := self.any_of_them(number)) is None:
            return
        self.repo.storage.delete(f"snapshots/{gone}")
        del self.there[gone]

    @rule(number=NUMBERS, tag=st.sampled_from(["x", "y"]))
    def tag(self, number: int, tag: str) -> None:
        if (old := self.any_of_them(number)) is None:
            return
        stored = next(s for s in self.repo.snapshots() if s.id == old)
        new = tagging.retag(self.somebody(), stored, [tag])
        self.origins[new] = self.origins.pop(old, old)
        self.there[new] = self.there.pop(old)

    @rule(now=st.booleans(), max_unused=st.sampled_from([0, 0.05, 1]))
    def prune(self, now: bool, max_unused: float) -> None:
        with contextlib.suppress(Busy):
            prune(self.somebody(), Request(now=now, max_unused=max_unused, deadline_s=3600))

    @rule(now=st.booleans(), step=STEPS)
    def prune_and_be_killed(self, now: bool, step: int) -> None:
        self.killed(step, lambda repo: prune(repo, Request(now=now, deadline_s=3600)))

    @rule(hours=st.sampled_from([0.1, 0.6, 2, 50]))
    def time_passes(self, hours: float) -> None:
        ns = int(hours * HOUR)
        self.clock.at_ns += ns
        memory(self.repo).now_ns += ns
        memory(self.target).now_ns += ns

    @rule()
    def the_clock_is_set_back(self) -> None:
        self.clock.at_ns -= 30 * 24 * HOUR

    @rule()
    def copy(self) -> None:
        copy_snapshots(self.somebody(), self.somebody(repo=self.target), self.repo.snapshots())
        self.note_copies()

    @rule(step=STEPS)
    def copy_and_be_killed(self, step: int) -> None:
        chosen = self.repo.snapshots()
        self.killed(step, lambda target: copy_snapshots(self.somebody(), target, chosen), self.target)
        self.note_copies()

    def note_copies(self) -> None:
        mine = {self.origins.get(i, i): tree for i, tree in self.there.items()}
        for stored in self.target.snapshots():
            if stored.snapshot.original not in self.over_there:
                self.over_there[stored.snapshot.original] = mine[stored.snapshot.original]

    @rule(dry_run=st.booleans())
    def repair(self, dry_run: bool) -> None:
        before = {s.id for s in self.repo.snapshots()}
        with contextlib.suppress(Busy):
            for step in (repair_index, repair_packs, repair_snapshots):
                assert step(self.somebody(), dry_run=dry_run).lost == []
        assert {s.id for s in self.repo.snapshots()} == before

    @rule()
    def free_everything(self) -> None:
        """When all that was killed is over and everything is pruned, nothing is stored that is not needed."""
        self.time_passes(100)
        prune(self.somebody(), Request(now=True, max_unused=0))
        assert names(self.repo.storage, "locks") == []
        needed = {i for s in self.repo.snapshots() for i in self.needs(s.snapshot.root)}
        assert set(self.repo.reader()._index.ids()) == needed

    def needs(self, root: bytes) -> set[bytes]:
        reader = self.repo.reader()
        marks = Marks(reader._index, reader)
        marks.mark_trees([root])
        return {i for i in reader._index.ids() if i in marks}

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def every_snapshot_is_whole(self) -> None:
        assert {s.id for s in self.repo.snapshots()} == self.there.keys()
        for snapshot_id, tree in self.there.items():
            assert read_back(self.repo, snapshot_id) == tree

    @invariant()
    def every_copy_is_whole(self) -> None:
        for stored in self.target.snapshots():
            assert read_back(self.target, stored.id) == self.over_there[stored.snapshot.original]

    @invariant()
    def the_check_finds_nothing(self) -> None:
        for repo in (self.repo, self.target):
            report = check(self.somebody(repo=repo), read_data=1)
            assert report.good, (report.findings, report.affected)

    def demand_restored(self, snapshot_id: str, tree: Tree, out: Path) -> None:
        root = next(s for s in self.repo.snapshots() if s.id == snapshot_id).snapshot.root
        with self.somebody().reading() as reader:
            done = restore.restore(reader, root, restore.Request(bytes(out), verify=True))
        assert not done.troubles
        assert {bytes(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == tree


class LongLife(Life):
    pass


Life.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
LongLife.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_whatever_happens_every_snapshot_is_whole = Life.TestCase
test_whatever_happens_for_long_every_snapshot_is_whole = pytest.mark.slow(LongLife.TestCase)
