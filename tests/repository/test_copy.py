"""Copies into another repository: the same trees, the same compressed bytes, and nothing twice."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Damaged, HoldfastError, StorageUnavailable
from holdfast.repository import copy as room
from holdfast.repository import pages
from holdfast.repository.check import check
from holdfast.repository.copy import Copied, copy_snapshots
from holdfast.repository.format import KIND_DATA, Chunker, Entry, Leaf
from holdfast.repository.index import load_index
from holdfast.repository.pages import Tree, join
from holdfast.repository.prune import Request, prune
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import put_snapshot
from holdfast.repository.writer import TREE
from tests.repository.making import (
    FINE,
    SECOND,
    Clock,
    a_snapshot,
    an_owner,
    memory,
    names,
    new_repository,
    read_back,
    some_bytes,
    store,
    through,
    what_is_left,
    write_only,
)
from tests.support.storages import Misbehaving, cuts_power, does

TREES = [
    {b"docs/%d" % n: b"text %d " % n * 40 for n in range(30)} | {b"large": some_bytes("large", 300_000)},
    {b"docs/%d" % n: b"text %d " % n * 40 for n in range(3, 33)} | {b"long/file": some_bytes("long", 1_200_000)},
    {b"only": b"only this"},
]


def a_source() -> tuple[Repository, list[str]]:
    repo = new_repository(clock=Clock())
    return repo, [store(repo, files, tags=[f"t{n}"]) for n, files in enumerate(TREES)]


def a_target(chunker: Chunker = FINE) -> Repository:
    return new_repository(chunker=chunker, clock=Clock())


def copied(source: Repository, target: Repository, ids: list[str] | None = None) -> list[Copied]:
    return copy_snapshots(source, target, [s for s in source.snapshots() if ids is None or s.id in ids])


def entries_of(repo: Repository, snapshot_id: str) -> dict[bytes, Any]:
    """Everything in every entry but where its content lies."""
    root = next(s for s in repo.snapshots() if s.id == snapshot_id).snapshot.root
    return {
        join(directory, e.name): (msgspec.structs.replace(e, content=b"", depth=0), leaf.users, leaf.groups)
        for leaf in Tree(repo.reader().read, root).leaves()
        for directory, entries in leaf.runs
        for e in entries
    }


def payloads(repo: Repository) -> dict[bytes, int]:
    """What every block of files holds, as it is compressed, and how often."""
    index = load_index(repo.storage, repo.secrets, contents=True).index
    reader, found = repo.reader(), dict[bytes, int]()
    for record in index.packs:
        if record.kind == KIND_DATA:
            opened = reader.open_pack(record)
            for number in range(len(record.blocks) // 13):
                payload = opened.read_payload(repo.storage, number)[1]
                found[payload] = found.get(payload, 0) + 1
    return found


# -- the same ---------------------------------------------------------------------------------------------------------


def test_copies_are_equal_trees_with_everything_about_them() -> None:
    (source, ids), target = a_source(), a_target()
    done = copied(source, target)
    assert [c.source.id for c in done] == ids and not any(c.skipped for c in done)
    for c, files in zip(done, TREES, strict=True):
        assert read_back(target, c.id) == files
        assert entries_of(target, c.id) == entries_of(source, c.source.id)
    assert check(target, read_data=1).good


def test_a_copy_tells_where_it_came_from_and_is_as_old_as_its_original() -> None:
    (source, _), target = a_source(), a_target()
    copied(source, target)
    for old, new in zip(source.snapshots(), target.snapshots(), strict=True):
        assert new.snapshot.original == old.id and new.snapshot.parent == ""
        same = ("time_ns", "host", "user", "base", "paths", "tags", "program")
        assert [getattr(new.snapshot, f) for f in same] == [getattr(old.snapshot, f) for f in same]


def test_nothing_is_compressed_again() -> None:
    (source, _), target = a_source(), a_target()
    copied(source, target)
    assert payloads(target) == payloads(source)


def test_nothing_is_compressed_again_when_a_block_spans_many_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of one block stand in many pages; it is taken as a whole all the same."""
    monkeypatch.setattr(pages, "MOST", 40)
    source, target = new_repository(), a_target()
    store(source, {b"%04d" % n: b"content %d" % n for n in range(1000)})
    assert sum(payloads(source).values()) == 1
    copied(source, target)
    assert payloads(target) == payloads(source)


@pytest.mark.parametrize("window", [1, 7, 100])
def test_a_smaller_window_copies_the_same(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WINDOW", window)
    (source, _), target = a_source(), a_target()
    for c, files in zip(copied(source, target), TREES, strict=True):
        assert read_back(target, c.id) == files
    assert check(target, read_data=1).good


def test_only_what_is_needed_of_a_block_is_copied() -> None:
    source, target = new_repository(clock=Clock()), a_target()
    many = {b"%d" % n: some_bytes(n, 1000) for n in range(50)}
    gone = store(source, many)
    few = store(source, {b"7": many[b"7"], b"31": many[b"31"]})
    copied(source, target, [few])
    assert read_back(target, target.snapshots()[0].id) == {b"7": many[b"7"], b"31": many[b"31"]}
    assert sum(i.size for i in target.storage.list("data")) < 8000
    assert gone in {s.id for s in source.snapshots()}


@pytest.mark.parametrize("chunker", [Chunker(), Chunker(min_size=512, avg_size=2048, max_size=16384)])
def test_repositories_that_cut_differently_copy_in_both_directions(chunker: Chunker) -> None:
    (source, _), target = a_source(), a_target(chunker)
    for c, files in zip(copied(source, target), TREES, strict=True):
        assert read_back(target, c.id) == files
    back = a_target()
    for c, files in zip(copied(target, back), TREES, strict=True):
        assert read_back(back, c.id) == files
    assert check(back, read_data=1).good


def test_a_copy_and_a_backup_of_the_same_files_share_everything() -> None:
    """With the same sizes: also the pages, whose cuts depend on the target's own secret."""
    source, target = new_repository(clock=Clock()), a_target()
    files = {b"%d/%d" % (n % 7, n): b"content %d" % n for n in range(2000)}
    store(source, files)
    copied(source, target)
    before = set(names(target.storage, "data"))
    store(target, files)
    assert set(names(target.storage, "data")) - before == set()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join),
            st.tuples(st.integers(0, 12), st.sampled_from([0, 1, 500, 5000])).map(lambda t: some_bytes(*t)),
            max_size=12,
        ),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_any_trees_are_copied_in_any_order(trees: list[dict[bytes, bytes]], data: st.DataObject) -> None:
    source, target = new_repository(clock=Clock()), a_target()
    ids = {store(source, without_clashes(files)): without_clashes(files) for files in trees}
    for _ in range(2):
        some = data.draw(st.sets(st.sampled_from(sorted(ids)), min_size=1))
        copied(source, target, sorted(some))
    for stored in target.snapshots():
        assert read_back(target, stored.id) == ids[stored.snapshot.original]
    assert check(target, read_data=1).good


def without_clashes(files: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """No file is where another one's folder is."""
    return {p: c for p, c in files.items() if not any(o.startswith(p + b"/") for o in files)}


# -- nothing twice ----------------------------------------------------------------------------------------------------


def test_what_was_copied_is_not_copied_again() -> None:
    (source, ids), target = a_source(), a_target()
    first = copied(source, target, ids[:2])
    before = memory(target).objects
    again = copied(source, target, ids[:2])
    assert [(c.id, c.skipped) for c in again] == [(c.id, True) for c in first]
    assert memory(target).objects == before
    assert [c.skipped for c in copied(source, target)] == [True, True, False]


def test_what_came_from_there_is_not_copied_back() -> None:
    (source, ids), target = a_source(), a_target()
    copied(source, target)
    assert [(c.id, c.skipped) for c in copied(target, source)] == [(i, True) for i in ids]


def test_of_two_forms_of_one_snapshot_one_is_copied() -> None:
    """As an interrupted change of tags leaves them."""
    (source, _), target = a_source(), a_target()
    old = source.snapshots()[0]
    changed = msgspec.structs.replace(old.snapshot, tags=["new"], original=old.id)
    put_snapshot(source.storage, source.secrets, changed)
    assert sorted(c.skipped for c in copied(source, target)) == [False, False, False, True]


def test_a_copy_that_was_cut_off_goes_on_where_it_was() -> None:
    source, _ = a_source()
    counting = Misbehaving(a_target().storage)
    copied(source, through(a_target(), counting))
    steps = len(counting.steps)
    for nth in range(2, steps, max(1, steps // 12)):
        target = a_target()
        storage = Misbehaving(target.storage, [cuts_power("any", nth)])
        with contextlib.suppress(HoldfastError):
            copied(source, through(target, storage))
        before = sum(i.size for i in target.storage.list("data"))
        assert check(target, read_data=1).good
        done = copied(source, target)
        for c, files in zip(done, TREES, strict=True):
            assert read_back(target, c.id) == files
        assert check(target, read_data=1).good
        # Of the chunks of files nothing is stored twice; a little of the pages may be.
        assert sum(payloads(target).values()) == sum(payloads(source).values())
        assert before <= sum(i.size for i in target.storage.list("data"))


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_damaged_source_is_not_copied_as_if_it_were_whole() -> None:
    (source, ids), target = a_source(), a_target()
    reader = source.reader()
    (stored,) = [s for s in source.snapshots() if s.id == ids[0]]
    entry = Tree(reader.read, stored.snapshot.root).find(b"large")
    assert entry
    pack = reader._index.packs[reader.locate(entry.content[:24]).pack]
    memory(source).overwrite(f"data/{pack.name.hex()}", b"rubbish")
    with pytest.raises(Damaged):
        copied(source, target)
    assert target.snapshots() == [] and check(target, read_data=1).good
    assert not what_is_left(source, ids[2])[1]
    assert len(copied(source, target, [ids[2]])) == 1


def test_a_snapshot_whose_entries_are_in_no_order_is_damage() -> None:
    source, target = new_repository(), a_target()
    store(source, TREES[2])
    with source.writing() as session:
        entry = Entry(b"b", "f", 0, 0, 0, 0, 0, 0)
        leaf = Leaf({}, {}, [(b"", [entry, msgspec.structs.replace(entry, name=b"a")])])
        root = session.writer.add(TREE, msgspec.msgpack.encode(leaf))
        session.writer.flush()
        put_snapshot(source.storage, source.secrets, a_snapshot(source, root))
    with pytest.raises(Damaged, match="cannot be copied"):
        copied(source, target)
    assert len(target.snapshots()) == 1


def test_who_cannot_read_cannot_copy() -> None:
    (source, _), target = a_source(), a_target()
    for a, b in ((write_only(source), target), (source, write_only(target))):
        with pytest.raises(HoldfastError) as caught:
            copy_snapshots(a, b, source.snapshots())
        assert caught.value.exit_status == 12
    assert target.snapshots() == []


def test_a_prune_of_the_target_at_any_step_costs_no_copy_that_was_reported() -> None:
    """The target holds, condemned or about to be, some of the chunks that are copied."""
    source, ids = a_source()
    for nth in range(1, 60, 2):
        target = a_target()
        stale = copied(source, target, ids[:1])[0].id
        target.storage.delete(f"snapshots/{stale}")
        memory(target).now_ns += 7200 * SECOND

        def prune_now(target: Repository = target) -> None:
            memory(target).now_ns += 1900 * SECOND  # everybody's lease is taken for over
            prune(through(target, target.storage, an_owner("elsewhere", "1/300/1")), Request(now=True))

        storage = Misbehaving(target.storage, [does("any", prune_now, nth)])
        try:
            done = copied(source, through(target, storage))
        except StorageUnavailable:
            done = copied(source, target)
        for c, files in zip(done, TREES, strict=True):
            assert read_back(target, c.id) == files
        assert check(target, read_data=1).good
