"""Every kind of object, damaged in every way: it is found and named, no wrong byte is given back, what does not depend
on it is there, repair leaves a repository that is good, and a new backup heals what the source still has.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.archive import restore
from holdfast.errors import Damaged, HoldfastError, StorageUnavailable, WrongKey
from holdfast.repository.check import Report, check
from holdfast.repository.contents import items_of, split_items
from holdfast.repository.keys import KeyFile, Password, add_key, remove_key
from holdfast.repository.leases import Hold
from holdfast.repository.pages import Tree, join
from holdfast.repository.prune import Request, prune
from holdfast.repository.repair import REPAIRED, repair_index, repair_packs, repair_snapshots
from holdfast.repository.repository import Repository, open_repository
from tests.repository.making import (
    KEY,
    QUICK,
    Clock,
    Files,
    an_owner,
    each_file,
    everything,
    memory,
    names,
    new_repository,
    read_back,
    some_bytes,
    store,
    through,
    what_is_left,
)
from tests.support.storages import MemoryStorage, Misbehaving, fails

# -- a repository with everything in it -------------------------------------------------------------------------------

SMALL_FILES = {b"docs/%d" % n: some_bytes(n, 100 * n) + b"text " * 50 for n in range(12)}
TREES: list[dict[bytes, bytes]] = [
    {**SMALL_FILES, b"one piece": some_bytes("piece", 400_000)},
    {**SMALL_FILES, b"docs/5": b"changed", b"new": some_bytes("new", 5000)},
    {b"other": b"other", b"docs/3": SMALL_FILES[b"docs/3"], b"long": some_bytes("long", 1_200_000)},
]


@dataclass(frozen=True)
class Whole:
    """The objects, what each snapshot holds, and what in it depends on which pack."""

    objects: dict[str, bytes]
    trees: dict[str, Files]
    needs: dict[str, dict[bytes, set[str]]]  # snapshot -> path -> data packs, and tree packs of its list
    pages: dict[str, set[str]]  # snapshot -> tree packs
    keys: dict[str, KeyFile | Password]


@functools.cache
def whole() -> Whole:
    repo = new_repository()
    keys: dict[str, KeyFile | Password] = {f"keys/{repo.key_id}": KEY}
    for n in range(2):
        password = Password(f"password {n}")
        key = add_key(repo.storage, repo.secrets.bundle, password, label="", now_ns=1, argon2=QUICK)
        keys[f"keys/{key.id}"] = password
    trees: dict[str, Files] = {store(repo, files): files for files in TREES}
    for n in range(2):
        repo.leases.condemn([bytes([n]) * 32], 10**6)
        Hold(repo.leases, "backup").put(frozenset())
    needs: dict[str, dict[bytes, set[str]]] = {}
    pages: dict[str, set[str]] = {}
    for snapshot_id in trees:
        needs[snapshot_id], pages[snapshot_id] = dependencies(repo, snapshot_id)
    return Whole(memory(repo).objects, trees, needs, pages, keys)


def dependencies(repo: Repository, snapshot_id: str) -> tuple[dict[bytes, set[str]], set[str]]:
    reader = repo.reader()
    tree_packs: set[str] = set()

    def pack_of(chunk_id: bytes) -> str:
        return f"data/{reader._index.packs[reader.locate(chunk_id).pack].name.hex()}"

    def read(page: bytes) -> bytes:
        tree_packs.add(pack_of(page))
        return reader.read(page)

    root = next(s for s in repo.snapshots() if s.id == snapshot_id).snapshot.root
    found = {}
    for directory, entries in Tree(read, root).runs():
        for entry in entries:
            if entry.kind == "f":
                packs = {pack_of(item) for item in items_of(entry, reader.read)}
                packs |= {pack_of(piece) for piece in split_items(entry.content)} if entry.depth else set()
                found[join(directory, entry.name)] = packs
    return found, tree_packs


def fresh() -> Repository:
    """The whole repository, newly copied, opened by somebody who knows the others' processes for dead."""
    storage = MemoryStorage()
    for name, data in whole().objects.items():
        storage.put(name, [data])
    repo = open_repository(storage, KEY, an_owner(), Clock(Clock().at_ns + 10**15))
    return as_process(101, repo)


def as_process(number: int, repo: Repository) -> Repository:
    """The same, when all processes before this one are dead."""
    return through(repo, repo.storage, an_owner("here", f"1/{number}/1", [f"1/{n}/1" for n in range(number)]))


def packs(kind: str) -> list[str]:
    trees = set().union(*whole().pages.values())
    found = trees if kind == "tree" else {n for n in whole().objects if n.startswith("data/")} - trees
    return sorted(found)


KINDS: dict[str, Callable[[], list[str]]] = {
    "key": lambda: sorted(n for n in whole().keys if whole().keys[n] != KEY),
    "index": lambda: sorted(n for n in whole().objects if n.startswith("index/")),
    "data pack": lambda: packs("data"),
    "tree pack": lambda: packs("tree"),
    "snapshot": lambda: sorted(n for n in whole().objects if n.startswith("snapshots/")),
    "lock": lambda: sorted(n for n in whole().objects if n.startswith("locks/")),
}


def flipped(part: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        changed, at = bytearray(data), min(len(data) - 1, int(len(data) * part))
        changed[at] ^= 0x10
        return bytes(changed)

    return flip


DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    **{f"a bit at {part:.0%}": flipped(part) for part in (0, 0.01, 0.3, 0.6, 0.9, 1)},
    "its last byte missing": lambda d: d[:-1],
    "its second half missing": lambda d: d[: len(d) // 2],
    "empty": lambda d: b"",
    "a byte longer": lambda d: d + b"\0",
    "much longer": lambda d: d + d + bytes(5000),
    "its first bytes missing": lambda d: d[9:],
    "missing": None,
    "swapped with its sibling": None,
}
NOBODY_CAN_SEE = {("key", "missing"), ("snapshot", "missing"), ("lock", "missing")}
OFTEN = {
    "a bit at 30%",
    "a bit at 90%",
    "its last byte missing",
    "a byte longer",
    "missing",
    "swapped with its sibling",
}


def cases(wanted: Callable[[str, str], bool] = lambda kind, how: True, *, all_fast: bool = False) -> list[Any]:
    """Kinds and damages; those that are much like another one are left to the slow tests."""
    return [
        pytest.param(kind, how, id=f"{kind}: {how}", marks=[] if all_fast or how in OFTEN else [pytest.mark.slow])
        for kind in KINDS
        for how in DAMAGES
        if wanted(kind, how)
    ]


def can_be_seen(kind: str, how: str) -> bool:
    return (kind, how) not in NOBODY_CAN_SEE


def damage(repo: Repository, kind: str, how: str, which: int = -1) -> list[str]:
    """Do it to an object of that kind; the names of those that are damaged now."""
    storage, name = memory(repo), KINDS[kind]()[which]
    if how == "missing":
        storage.delete(name)
        return [name]
    if how.startswith("swapped"):
        other = KINDS[kind]()[which - 1]
        mine, others = storage.get(name), storage.get(other)
        storage.overwrite(name, others)
        storage.overwrite(other, mine)
        return [name, other]
    change = DAMAGES[how]
    assert change
    storage.overwrite(name, change(storage.get(name)))
    return [name]


def demand_nothing_wrong(repo: Repository, bad: list[str]) -> None:
    """No wrong byte anywhere, and everything that does not depend on what is damaged."""
    left = {s.id for s in repo.snapshots(damaged=[])}
    for snapshot_id, files in whole().trees.items():
        needs = whole().needs[snapshot_id]
        if snapshot_id not in left:
            assert f"snapshots/{snapshot_id}" in bad
            continue
        try:
            found, lost = what_is_left(repo, snapshot_id)
        except HoldfastError:
            assert whole().pages[snapshot_id] & set(bad)
            continue
        assert all(files[path] == content for path, content in found.items())
        assert {path for path in files if not needs[path] & set(bad)} <= found.keys()
        assert found.keys() | lost == files.keys()


def said(report: Report) -> str:
    return "\n".join(f"{f.object}: {f.text}" for f in report.findings)


# -- found, named, and harmless ---------------------------------------------------------------------------------------


def test_the_repository_is_whole_before() -> None:
    repo = fresh()
    assert check(repo, read_data=1).good
    for snapshot_id, files in whole().trees.items():
        assert read_back(repo, snapshot_id) == files


@pytest.mark.parametrize(("kind", "how"), cases(can_be_seen, all_fast=True))
def test_damage_is_found_and_named(kind: str, how: str) -> None:
    repo = fresh()
    bad = damage(repo, kind, how)
    report = check(repo, read_data=1)
    assert not report.good
    if (kind, how) == ("index", "missing"):
        known = {f"data/{r.name.hex()}" for r in repo.reader()._index.packs}
        assert known & {f.object for f in report.findings}  # nothing has the name; the packs that it named have
    else:
        assert all(name in said(report) for name in bad), said(report)
    demand_affected_are_named(repo, report, bad)


def demand_affected_are_named(repo: Repository, report: Report, bad: list[str]) -> None:
    """A file that cannot be restored is named as affected, and one that can is not."""
    for snapshot_id in whole().trees:
        named = {a.path for a in report.affected if a.snapshot == snapshot_id}
        if any("entries from here on" in a.reason for a in report.affected if a.snapshot == snapshot_id):
            assert whole().pages[snapshot_id] & set(bad)
        elif f"snapshots/{snapshot_id}" not in bad:
            assert named == what_is_left(repo, snapshot_id)[1]


@pytest.mark.parametrize(("kind", "how"), cases(lambda kind, how: can_be_seen(kind, how) and kind != "data pack"))
def test_damage_outside_of_files_is_found_without_reading_them(kind: str, how: str) -> None:
    repo = fresh()
    which = -1
    if kind == "tree pack" and how.startswith("a bit"):  # of these, only blocks are read: not what the index knows too
        which, how = packs("tree").index(max(packs("tree"), key=lambda n: len(whole().objects[n]))), "a bit at 60%"
    bad = damage(repo, kind, how, which)
    report = check(repo)
    assert not report.good
    assert (kind, how) == ("index", "missing") or any(name in said(report) + str(report.affected) for name in bad)


@pytest.mark.parametrize(("kind", "how"), cases())
def test_no_wrong_byte_is_read_and_what_does_not_depend_on_it_is_there(kind: str, how: str) -> None:
    repo = fresh()
    demand_nothing_wrong(repo, damage(repo, kind, how))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["a bit at 30%", "its last byte missing", "missing", "swapped with its sibling"])
def test_restore_gives_the_exact_content_or_names_the_file(kind: str, how: str, tmp_path: Path) -> None:
    repo = fresh()
    bad = damage(repo, kind, how)
    for stored in repo.snapshots(damaged=[]):
        target, files = tmp_path / stored.id, whole().trees[stored.id]
        try:
            with repo.reading() as reader:
                done = restore.restore(reader, stored.snapshot.root, restore.Request(bytes(target)))
        except HoldfastError:
            assert whole().pages[stored.id] & set(bad)
            continue
        found = {bytes(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
        assert all(files[path] == content for path, content in found.items())
        assert {t.path for t in done.troubles} == files.keys() - found.keys()


@pytest.mark.parametrize("how", DAMAGES)
def test_other_keys_open_when_one_is_damaged(how: str) -> None:
    repo = fresh()
    bad = damage(repo, "key", how)
    for name, credential in whole().keys.items():
        if name not in bad:
            assert open_repository(repo.storage, credential, an_owner(), Clock()).id == repo.id
        else:
            with pytest.raises((Damaged, WrongKey)):
                open_repository(repo.storage, credential, an_owner(), Clock())


def test_a_part_of_the_packs_is_read_when_a_part_is_asked_for() -> None:
    repo = fresh()
    count = len(names(repo.storage, "data"))
    assert [check(repo, read_data=part).packs_read for part in (0, 0.5, 1)] == [0, round(count / 2), count]
    damage(repo, "data pack", "a bit at 30%")
    seen = [check(repo, read_data=0.34, seed=seed).good for seed in range(40)]
    assert set(seen) == {True, False}


def test_a_storage_that_does_not_answer_is_no_damage() -> None:
    for kind in ("list", "get"):
        for nth in range(1, 8):
            repo = fresh()
            storage = Misbehaving(repo.storage, [fails(kind, nth)])
            try:
                report = check(through(repo, storage), read_data=1)
            except StorageUnavailable:
                continue
            assert not report.good or check(repo).good  # it says what it could not read


# -- repair -----------------------------------------------------------------------------------------------------------


def repair(repo: Repository, *what: str, dry_run: bool = False) -> list[str]:
    """What is lost, as the steps say; without names: all of them, in the order of the command."""
    steps = {"index": repair_index, "packs": repair_packs, "snapshots": repair_snapshots}
    lost: list[str] = []
    for name in what or steps:
        lost += steps[name](repo, dry_run=dry_run).lost
    return lost


@pytest.mark.parametrize(("kind", "how"), cases())
def test_after_a_repair_the_repository_is_good_and_has_all_that_was_whole(kind: str, how: str) -> None:
    repo = fresh()
    bad = damage(repo, kind, how)
    could_be_read = {s.id: readable(repo, s.id) for s in repo.snapshots(damaged=[])}
    repair(repo)
    if kind == "key":
        for name in bad:
            remove_key(repo.storage, name[5:], repo.key_id)
    report = check(repo, read_data=1)
    assert report.good, (report.findings, report.affected)
    after = {s.snapshot.original or s.id: s for s in repo.snapshots()}
    assert after.keys() == could_be_read.keys()
    for snapshot_id, before in could_be_read.items():
        files = read_back(repo, after[snapshot_id].id)
        assert all(whole().trees[snapshot_id][path] == content for path, content in files.items())
        assert before <= files.keys()
        changed = after[snapshot_id].id != snapshot_id
        assert changed == (files.keys() != whole().trees[snapshot_id].keys())
        assert (REPAIRED in after[snapshot_id].snapshot.tags) == changed
    prune(repo, Request(now=True))
    assert check(repo, read_data=1).good


def readable(repo: Repository, snapshot_id: str) -> set[bytes]:
    found = set()
    with contextlib.suppress(HoldfastError):
        for path, content in each_file(repo, snapshot_id, None):
            if isinstance(content, bytes):
                found.add(path)
    return found


@pytest.mark.parametrize(("kind", "how"), cases(lambda kind, how: kind in ("index", "data pack", "tree pack")))
def test_a_new_backup_heals_what_the_source_still_has(kind: str, how: str) -> None:
    """Damaged packs go, what was whole in them is kept, and chunks that are absent now are stored anew."""
    repo = fresh()
    damage(repo, kind, how)
    repair(repo, "index", "packs")
    for tree in TREES:
        store(repo, tree)
    report = check(repo, read_data=1)
    assert report.good, (report.findings, report.affected)
    for snapshot_id, files in whole().trees.items():
        assert read_back(repo, snapshot_id) == files


@pytest.mark.parametrize("how", ["missing", "its last byte missing", "a byte longer"])
@pytest.mark.parametrize("kind", ["data pack", "tree pack"])
def test_what_shows_in_a_listing_is_healed_by_a_backup_alone(kind: str, how: str) -> None:
    repo = fresh()
    damage(repo, kind, how)
    for tree in TREES:
        store(repo, tree)
    for snapshot_id, files in whole().trees.items():
        assert read_back(repo, snapshot_id) == files


@pytest.mark.parametrize("how", ["a bit at 60%", "its last byte missing", "its second half missing", "a byte longer"])
def test_what_is_whole_in_a_damaged_pack_is_saved(how: str) -> None:
    """Also out of a pack that ends too early: the index still knows what it held."""
    repo = fresh()
    largest = max(packs("data"), key=lambda n: len(whole().objects[n]))
    damage(repo, "data pack", how, packs("data").index(largest))
    repair(repo)
    lost = {
        path
        for s in repo.snapshots()
        for path in whole().trees[s.snapshot.original or s.id].keys() - read_back(repo, s.id).keys()
    }
    assert (
        lost
        == {
            "a bit at 60%": {b"long"},
            "its second half missing": {b"long", b"other"},
            "its last byte missing": set(),
            "a byte longer": set(),
        }[how]
    )


@pytest.mark.parametrize("kind", ["data pack", "tree pack"])
def test_two_packs_whose_content_was_swapped_lose_nothing(kind: str) -> None:
    repo = fresh()
    damage(repo, kind, "swapped with its sibling")
    repair(repo)
    assert {s.id for s in repo.snapshots()} == whole().trees.keys()
    for snapshot_id, files in whole().trees.items():
        assert read_back(repo, snapshot_id) == files


@pytest.mark.parametrize(("kind", "how"), cases())
def test_a_dry_run_of_repair_changes_nothing(kind: str, how: str) -> None:
    repo = fresh()
    damage(repo, kind, how)
    before = memory(repo).objects
    repair(repo, dry_run=True)
    assert memory(repo).objects == before


def test_repair_touches_nothing_in_a_repository_that_is_whole() -> None:
    repo = fresh()
    before = {n: d for n, d in memory(repo).objects.items() if not n.startswith("index/")}
    assert repair(repo) == []
    assert {n: d for n, d in memory(repo).objects.items() if not n.startswith("index/")} == before
    assert check(repo, read_data=1).good


def test_the_index_is_written_anew_from_the_packs_alone() -> None:
    repo = fresh()
    for name in names(repo.storage, "index"):
        repo.storage.delete(name)
    repair(repo, "index")
    assert len(names(repo.storage, "index")) == 1
    assert check(repo, read_data=1).good
    for snapshot_id, files in whole().trees.items():
        assert read_back(repo, snapshot_id) == files


@pytest.mark.parametrize("what", ["index", "packs", "snapshots"])
def test_a_storage_that_does_not_answer_costs_nothing(what: str) -> None:
    """What cannot be read just now is not damaged: nothing is deleted for it."""
    steps = Misbehaving(fresh().storage)
    repair(through(fresh(), steps), what)
    for nth in range(1, len(steps.steps) + 1):
        repo = fresh()
        storage = Misbehaving(repo.storage, [fails("read", nth)])
        with contextlib.suppress(HoldfastError):
            repair(through(repo, storage), what)
        assert {s.id for s in repo.snapshots()} == whole().trees.keys()
        for snapshot_id, files in whole().trees.items():
            assert read_back(repo, snapshot_id) == files


@pytest.mark.parametrize("what", ["index", "packs", "snapshots"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_repair_killed_at_any_step_loses_nothing_that_was_whole(what: str, every: int) -> None:
    def broken() -> Repository:
        repo = fresh()
        damage(repo, "data pack", "a bit at 60%")
        damage(repo, "index", "a bit at 60%")
        return repo

    could_be_read = {s.id: readable(broken(), s.id) for s in broken().snapshots()}
    for nth in range(1, 200, every):
        repo = broken()
        storage = Misbehaving(repo.storage, [fails("any", nth, times=None)])
        try:
            repair(through(repo, storage), what)
        except HoldfastError:
            repair(as_process(102, repo))
        else:
            assert nth > 10
            break
        after: dict[str, set[bytes]] = {}
        for stored in repo.snapshots():
            after.setdefault(stored.snapshot.original or stored.id, set()).update(read_back(repo, stored.id))
        assert all(before <= after[snapshot_id] for snapshot_id, before in could_be_read.items())
        assert check(repo, read_data=1).good


def test_a_snapshot_sealed_for_an_unknown_key_is_not_removed() -> None:
    """It may be good: another full key may open it."""
    repo = fresh()
    name = KINDS["snapshot"]()[0]
    data = repo.storage.get(name)
    other = data[:8] + (77).to_bytes(4, "big") + data[12:]
    renamed = f"snapshots/{hashlib.sha256(other).hexdigest()}"
    repo.storage.put(renamed, [other])
    assert any("epoch 77" in sentence for sentence in repair(repo, "snapshots"))
    assert renamed in everything(repo.storage)
