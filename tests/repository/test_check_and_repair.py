"""Check and repair while others work; and trees that lost a page of their folders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from holdfast.archive import restore
from holdfast.errors import Busy, HoldfastError
from holdfast.repository import pages
from holdfast.repository.check import check
from holdfast.repository.chunking import Cutter
from holdfast.repository.format import Entry, Leaf
from holdfast.repository.pages import TreeWriter
from holdfast.repository.prune import Request, prune
from holdfast.repository.repair import repair_index, repair_packs, repair_snapshots
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import put_snapshot
from holdfast.repository.writer import TREE
from tests.repository.making import (
    HOUR,
    Clock,
    a_snapshot,
    an_owner,
    keep,
    memory,
    names,
    new_repository,
    read_back,
    runs_of,
    some_bytes,
    store,
    through,
)
from tests.support.storages import Misbehaving, does

TREES = [{b"a/%d" % n: some_bytes(f"{t}.{n}", 900) for n in range(4)} | {b"same": b"same" * 99} for t in range(4)]
STEPS = {"index": repair_index, "packs": repair_packs, "snapshots": repair_snapshots}
EVERY = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])


def with_garbage() -> tuple[Repository, str]:
    """A repository with one snapshot, and another one's packs condemned long ago."""
    repo = new_repository(clock=Clock())
    left, gone = store(repo, TREES[0]), store(repo, TREES[1])
    repo.storage.delete(f"snapshots/{gone}")
    memory(repo).now_ns += 2 * HOUR
    prune(repo, Request(deadline_s=3600))
    memory(repo).now_ns += 2 * HOUR
    return repo, left


def somebody_else(repo: Repository) -> Repository:
    return through(repo, repo.storage, an_owner("elsewhere", "1/300/1"))


def meanwhile(repo: Repository, nth: int, act: Callable[[Repository], object]) -> tuple[Repository, list[object]]:
    """The repository for whoever is disturbed by ``act`` before his nth call; what it gave, once it was done."""
    done: list[object] = []
    storage = Misbehaving(repo.storage, [does("any", lambda: done.append(act(somebody_else(repo))), nth)])
    return through(repo, storage), done


@EVERY
@pytest.mark.parametrize("read_data", [0.0, 1.0])
def test_a_check_raises_no_alarm_for_a_backup_that_ends_meanwhile(every: int, read_data: float) -> None:
    for nth in range(1, 200, every):
        repo, _ = with_garbage()
        disturbed, done = meanwhile(repo, nth, lambda other: store(other, TREES[2]))
        report = check(disturbed, read_data=read_data)
        assert report.good, (report.findings, report.affected)
        if not done:
            break
    assert nth > 10


@EVERY
@pytest.mark.parametrize("read_data", [0.0, 1.0])
def test_a_check_raises_no_alarm_for_a_prune_meanwhile(every: int, read_data: float) -> None:
    for nth in range(1, 200, every):
        repo, _ = with_garbage()
        disturbed, done = meanwhile(repo, nth, lambda other: prune(other, Request()))
        report = check(disturbed, read_data=read_data)
        assert report.good, (report.findings, report.affected)
        if not done:
            break
    assert nth > 10


@EVERY
@pytest.mark.parametrize("what", STEPS)
def test_a_backup_that_ends_during_a_repair_stays_as_it_is(what: str, every: int) -> None:
    for nth in range(1, 200, every):
        repo, first = with_garbage()
        disturbed, done = meanwhile(repo, nth, lambda other: store(other, TREES[2]))
        report = STEPS[what](disturbed, dry_run=False)
        assert report.lost == []
        assert {s.id for s in repo.snapshots()} == {first, *done}
        for snapshot_id in done:
            assert read_back(repo, str(snapshot_id)) == TREES[2]
        assert read_back(repo, first) == TREES[0]
        assert check(repo, read_data=1).good
        if not done:
            break
    assert nth > 8


@pytest.mark.parametrize("what", ["index", "packs"])
def test_a_repair_and_a_prune_do_not_work_at_once(what: str) -> None:
    repo, _ = with_garbage()
    refused: list[Busy] = []

    def try_it() -> None:
        try:
            prune(somebody_else(repo), Request())
        except Busy as e:
            refused.append(e)

    STEPS[what](through(repo, Misbehaving(repo.storage, [does("list", try_it, folder="data")])), dry_run=False)
    assert refused


def forget(repo: Repository, snapshot_id: str) -> None:
    for stored in repo.snapshots():
        if snapshot_id in (stored.id, stored.snapshot.original):
            repo.storage.delete(f"snapshots/{stored.id}")


def test_a_snapshot_that_is_forgotten_during_a_repair_does_not_come_back() -> None:
    for nth in range(1, 60):
        repo, first = with_garbage()
        second = store(repo, TREES[3])
        name = max(names(repo.storage, "data"), key=lambda n: repo.storage.stat(n).size)
        memory(repo).overwrite(name, b"rubbish")
        disturbed, done = meanwhile(repo, nth, partial(forget, snapshot_id=second))
        with contextlib.suppress(HoldfastError):
            repair_snapshots(disturbed, dry_run=False)
        if not done:
            break
        assert {s.snapshot.original or s.id for s in repo.snapshots()} <= {first, second}


# -- lost pages -------------------------------------------------------------------------------------------------------


def paged(monkeypatch: pytest.MonkeyPatch, files: dict[bytes, bytes]) -> tuple[Repository, str, dict[bytes, str]]:
    """A tree whose every page lies in a pack of its own; the packs, by the first path of each leaf."""
    monkeypatch.setattr(pages, "LEAST", 2)
    monkeypatch.setattr(pages, "MOST", 3)
    repo = new_repository()
    where: dict[bytes, str] = {}
    with repo.writing() as session:
        cutter = Cutter(repo.config.chunker)

        def keep_page(page: bytes) -> bytes:
            before = set(names(repo.storage, "data"))
            page_id = session.writer.add(TREE, page)
            session.writer.flush()
            content = pages.decode_page(page, page_id)
            if isinstance(content, Leaf):
                first = pages.join(content.runs[0][0], content.runs[0][1][0].name)
                (where[first],) = set(names(repo.storage, "data")) - before
            return page_id

        runs = runs_of(files, lambda content: keep(session, cutter, content))
        session.writer.flush()
        tree = TreeWriter(keep_page, repo.secrets.cut_seed, lambda u: "", lambda g: "")
        for directory, entries in runs:
            tree.add(directory, entries)
        snapshot_id = session.commit(a_snapshot(repo, tree.finish()))
    return repo, snapshot_id, where


FILES = {
    b"%s/%s/%d" % (a, b, n): b"%s%s%d" % (a, b, n) for a in (b"a", b"b", b"c") for b in (b"x", b"y") for n in range(3)
}


def test_files_whose_folders_page_is_lost_can_still_be_restored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = len(paged(monkeypatch, FILES)[2])
    assert count > 5
    for number in range(count):
        repo, _, where = paged(monkeypatch, FILES)
        repo.storage.delete(where[sorted(where)[number]])
        report = repair_snapshots(repo, dry_run=False)
        assert report.lost
        assert check(repo, read_data=1).good == (repair_index(repo, dry_run=False).done != [])
        (stored,) = repo.snapshots()
        left = read_back(repo, stored.id)
        assert len(left) >= len(FILES) - 3
        target = tmp_path / str(number)
        with repo.reading() as reader:
            done = restore.restore(reader, stored.snapshot.root, restore.Request(bytes(target)))
        found = {bytes(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
        assert found == left, done.troubles
        assert not done.troubles


def test_a_snapshot_whose_pages_are_in_no_order_is_named_and_left_alone() -> None:
    """Only somebody with a key can have made it; nobody's command fails for it."""
    repo = new_repository()
    good = store(repo, TREES[0])
    with repo.writing() as session:
        entry = Entry(b"b", "f", 0, 0, 0, 0, 0, 0)
        leaf = Leaf({}, {}, [(b"", [entry, msgspec.structs.replace(entry, name=b"a", content=bytes([7] * 24))])])
        root = session.writer.add(TREE, msgspec.msgpack.encode(leaf))
        session.writer.flush()
        forged = put_snapshot(repo.storage, repo.secrets, a_snapshot(repo, root))
    report = repair_snapshots(repo, dry_run=False)
    assert any(forged[:8] in sentence for sentence in report.lost)
    assert read_back(repo, good) == TREES[0]
