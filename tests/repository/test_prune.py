"""Prune frees what nobody needs, and nothing else: while others work, and when it is killed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Busy, Damaged, HoldfastError, KeyCannotRead, StorageUnavailable
from holdfast.repository import prune as room
from holdfast.repository.check import check
from holdfast.repository.format import PACK_TARGET, Entry
from holdfast.repository.index import load_index
from holdfast.repository.leases import LEASE_LIFE_S, Hold
from holdfast.repository.pages import Tree, TreeWriter, split
from holdfast.repository.prune import DEADLINE_S, Report, Request, choose_partly, choose_small, prune
from holdfast.repository.repository import Repository, Session
from holdfast.repository.writer import SMALL, TREE
from tests.repository.making import (
    HOUR,
    SECOND,
    Clock,
    Files,
    a_snapshot,
    an_owner,
    content_of,
    everything,
    memory,
    names,
    new_repository,
    read_back,
    some_bytes,
    store,
    through,
    write_only,
    write_tree,
)
from tests.support.storages import Misbehaving, cuts_power, does, fails

NOW = Request(now=True)
LATER = Request()
DAY = 24 * HOUR


def tree(number: int, *, shared: int = 2, own: int = 3) -> dict[bytes, bytes]:
    """A small tree: some files that every tree has, some of its own."""
    return {b"shared %d" % n: some_bytes(f"shared {n}", 900) for n in range(shared)} | {
        b"own/%d" % n: some_bytes(f"{number}.{n}", 700 + 100 * n) for n in range(own)
    }


class Kept:
    """A repository and what its snapshots must hold."""

    def __init__(self, repo: Repository | None = None) -> None:
        self.repo = repo or new_repository(clock=Clock())
        self.trees: dict[str, Files] = {}

    def store(self, number: int, **sizes: int) -> str:
        snapshot_id = store(self.repo, tree(number, **sizes))
        self.trees[snapshot_id] = tree(number, **sizes)
        return snapshot_id

    def forget(self, *snapshots: str) -> None:
        for snapshot_id in snapshots:
            self.repo.storage.delete(f"snapshots/{snapshot_id}")
            del self.trees[snapshot_id]

    def pass_time(self, ns: int) -> None:
        """For everybody: the storage and those who work."""
        memory(self.repo).now_ns += ns
        assert isinstance(self.repo.now_ns, Clock)
        self.repo.now_ns.at_ns += ns

    def prune(self, request: Request = LATER) -> Report:
        return prune(self.repo, request)

    def demand_whole(self) -> None:
        assert {s.id for s in self.repo.snapshots()} >= self.trees.keys()
        for snapshot_id, files in self.trees.items():
            assert read_back(self.repo, snapshot_id) == files
        report = check(self.repo, read_data=1)
        assert report.good, (report.findings, report.affected)

    @property
    def stored(self) -> int:
        return sum(info.size for info in self.repo.storage.list("data"))

    def demand_no_waste(self) -> None:
        """What is stored is what these snapshots alone would take."""
        fresh = new_repository()
        for files in self.trees.values():
            store(fresh, files)
        prune(fresh, NOW)
        alone = sum(info.size for info in fresh.storage.list("data"))
        assert self.stored <= alone * 1.02 + 2000, (self.stored, alone)


def half_forgotten() -> Kept:
    """Packs that are needed, packs that are not, and packs of which a little is."""
    kept = Kept()
    ids = [kept.store(n) for n in range(4)]
    with kept.repo.writing() as session:  # one pack with files of two snapshots
        mixed = {b"keep": some_bytes("keep", 500), **{b"drop %d" % n: some_bytes(f"d{n}", 3000) for n in range(4)}}
        both = session.commit(a_snapshot(kept.repo, write_tree(session, mixed)))
    store_again = {b"keep": mixed[b"keep"]}
    kept.trees[store(kept.repo, store_again)] = store_again
    kept.repo.storage.delete(f"snapshots/{both}")
    kept.forget(ids[0], ids[2])
    kept.pass_time(2 * HOUR)
    return kept


# -- alone ------------------------------------------------------------------------------------------------------------


def test_what_is_needed_stays_and_the_rest_goes_at_once() -> None:
    kept = half_forgotten()
    report = kept.prune(NOW)
    assert report.deleted_packs > 0 and report.rewritten_packs > 0 and report.waiting_packs == 0
    kept.demand_whole()
    kept.demand_no_waste()
    assert names(kept.repo.storage, "locks") == []


def test_when_nothing_is_needed_nothing_stays() -> None:
    kept = Kept()
    kept.forget(kept.store(1), kept.store(2))
    kept.prune(NOW)
    assert names(kept.repo.storage, "data") == [] and names(kept.repo.storage, "locks") == []
    kept.store(3)
    kept.demand_whole()


def test_a_second_prune_finds_nothing_to_do() -> None:
    kept = half_forgotten()
    kept.prune(NOW)
    before = memory(kept.repo).objects
    report = kept.prune(NOW)
    assert (report.condemned_packs, report.deleted_packs, report.copied_bytes) == (0, 0, 0)
    assert memory(kept.repo).objects == before


def test_an_empty_repository_is_pruned_without_ado() -> None:
    for request in (NOW, LATER, Request(dry_run=True)):
        assert prune(new_repository(), request).packs == 0


def test_the_report_says_what_was_done() -> None:
    kept = half_forgotten()
    before = kept.stored
    report = kept.prune(NOW)
    assert report.bytes == before and report.packs > report.condemned_packs == report.deleted_packs
    assert report.condemned_bytes == report.deleted_bytes
    assert before - report.deleted_bytes + report.copied_bytes == kept.stored


@pytest.mark.parametrize("now", [True, False])
def test_a_dry_run_changes_nothing_and_says_what_would_be_done(now: bool) -> None:
    kept = half_forgotten()
    before = memory(kept.repo).objects
    told = kept.prune(Request(now=now, dry_run=True))
    assert memory(kept.repo).objects == before
    done = kept.prune(Request(now=now))
    assert (told.condemned_packs, told.condemned_bytes, told.rewritten_packs, told.live_chunks, told.dead_chunks) == (
        done.condemned_packs, done.condemned_bytes, done.rewritten_packs, done.live_chunks, done.dead_chunks
    )  # fmt: skip


def test_a_little_waste_may_stay() -> None:
    kept = half_forgotten()
    packs = set(names(kept.repo.storage, "data"))
    report = kept.prune(Request(now=True, max_unused=0.9))
    assert report.rewritten_packs == 0 and report.deleted_packs > 0
    assert set(names(kept.repo.storage, "data")) < packs
    kept.demand_whole()


def test_a_write_only_key_cannot_prune() -> None:
    kept = half_forgotten()
    before = memory(kept.repo).objects
    with pytest.raises(KeyCannotRead):
        prune(write_only(kept.repo), NOW)
    assert memory(kept.repo).objects == before


def test_a_repository_that_misses_something_is_not_pruned() -> None:
    """Who deletes must know everything."""
    for folder in ("data", "snapshots"):
        kept = half_forgotten()
        storage = memory(kept.repo)
        wanted = next(iter(kept.trees))
        if folder == "snapshots":
            storage.overwrite(f"snapshots/{wanted}", b"rubbish")
        else:
            root = next(s for s in kept.repo.snapshots() if s.id == wanted).snapshot.root
            index = kept.repo.reader()._index
            storage.delete(f"data/{index.packs[index.pack_of(root) or 0].name.hex()}")
        before = {n: d for n, d in storage.objects.items() if not n.startswith("locks/")}
        with pytest.raises(Damaged):
            kept.prune(NOW)
        assert storage.objects == before


# -- what is copied ---------------------------------------------------------------------------------------------------


def test_of_a_mostly_dead_pack_every_needed_chunk_is_copied() -> None:
    kept = Kept()
    contents = {b"%d" % n: some_bytes(n, 2000) for n in range(60)}
    with kept.repo.writing() as session:
        session.commit(a_snapshot(kept.repo, write_tree(session, contents)))
    (first,) = [s.id for s in kept.repo.snapshots()]
    few = {name: contents[name] for name in (b"0", b"17", b"31", b"59")}
    kept.trees[store(kept.repo, few)] = few
    kept.repo.storage.delete(f"snapshots/{first}")
    report = kept.prune(NOW)
    assert report.rewritten_packs >= 1
    kept.demand_whole()
    kept.demand_no_waste()


def test_blocks_that_are_needed_as_a_whole_are_copied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression is what costs; it is not done again."""
    kept = Kept()
    with kept.repo.writing() as session:
        needed = {b"needed": some_bytes("needed", 5000) + bytes(9000)}
        root = write_tree(session, needed)
        for stream in list(session.writer._open):
            session.writer._close_block(stream, session.writer._open[stream])  # close the blocks, not the pack
        session.writer.add(SMALL, some_bytes("dead", 90_000))
        kept.trees[session.commit(a_snapshot(kept.repo, root))] = needed
    payloads = payloads_of(kept.repo)
    assert kept.prune(NOW).rewritten_packs == 1
    kept.demand_whole()
    assert payloads_of(kept.repo) < payloads


def payloads_of(repo: Repository) -> set[bytes]:
    """What every block holds, as it is compressed."""
    index = load_index(repo.storage, repo.secrets, contents=True).index
    reader = repo.reader()
    found = set()
    for record in index.packs:
        opened = reader.open_pack(record)
        found |= {opened.read_payload(repo.storage, n)[1] for n in range(len(record.blocks) // 13)}
    return found


def test_a_chunk_as_large_as_a_block_can_be_is_copied() -> None:
    kept = Kept()
    with kept.repo.writing() as session:
        large = session.writer.add(TREE, some_bytes("large", 5 << 20))
        list_of_it = session.writer.add(TREE, large)
        writer = TreeWriter(lambda page: session.writer.add(TREE, page), 1, lambda u: "", lambda g: "")
        writer.add(b"", [Entry(b"file", "f", 0, 0, 0, 0, 0, 0, 5 << 20, list_of_it, 1)])
        root = writer.finish()
        session.writer.add(TREE, some_bytes("dead", 4 << 20))
        snapshot_id = session.commit(a_snapshot(kept.repo, root))
    kept.prune(Request(now=True, max_unused=0))
    assert read_back(kept.repo, snapshot_id) == {b"file": some_bytes("large", 5 << 20)}
    assert check(kept.repo, read_data=1).good


def test_many_small_packs_become_few() -> None:
    kept = Kept()
    for number in range(20):
        kept.store(number, own=1)
    assert len(names(kept.repo.storage, "data")) == 40
    kept.prune(NOW)
    assert len(names(kept.repo.storage, "data")) <= 2
    kept.demand_whole()


def test_many_index_objects_become_one() -> None:
    kept = Kept()
    for number in range(17):
        kept.store(number, own=1)
    assert len(names(kept.repo.storage, "index")) == 17
    kept.prune(Request(max_unused=1))
    assert len(names(kept.repo.storage, "index")) == 1
    kept.demand_whole()


def test_few_index_objects_are_left_alone() -> None:
    kept = Kept()
    for number in range(16):
        kept.store(number, own=1)
    before = names(kept.repo.storage, "index")
    kept.prune(Request(max_unused=1))
    assert names(kept.repo.storage, "index") == before


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=4), st.tuples(st.integers(1, 1000), st.integers(0, 1000)), max_size=20
    ),
    st.floats(0, 1),
)
def test_packs_are_rewritten_until_little_enough_is_dead(parts: dict[bytes, tuple[int, int]], most: float) -> None:
    uses = {name: (live, live + dead) for name, (live, dead) in parts.items()}
    chosen = choose_partly(uses, most)
    total, dead = sum(t for _, t in uses.values()), sum(d for _, d in parts.values())
    left = dead - sum(parts[name][1] for name in chosen)
    assert left <= total * most
    assert all(parts[name][1] for name in chosen)  # what is wholly needed is never touched
    if chosen:  # and not one more than needed
        last = max(chosen, key=lambda n: (uses[n][0] / max(1, uses[n][1]), n))
        assert left + parts[last][1] > total * most


def test_small_packs_are_merged_when_they_are_many() -> None:
    few = {b"%d" % n: 1000 for n in range(room.MOST_SMALL_PACKS)}
    assert choose_small({**few, b"large": PACK_TARGET}) == set()
    assert choose_small({**few, b"one more": 1000, b"large": PACK_TARGET}) == {*few, b"one more"}


# -- a file whose content is a page -----------------------------------------------------------------------------------


def test_a_file_that_holds_the_bytes_of_a_page_costs_nobody_his_files() -> None:
    """Chunks of files and pages have ids of one kind: met as a file first, a page must still be walked."""
    kept = Kept()
    snapshot_id = kept.store(1)
    (stored,) = kept.repo.snapshots()
    reader = kept.repo.reader()
    page = reader.read(stored.snapshot.root)
    assert isinstance(kept.repo.now_ns, Clock)
    kept.repo.now_ns.at_ns -= DAY  # so that the trap is older, and met first
    trap = {b"trap": page}
    kept.trees[store(kept.repo, trap)] = trap
    assert [s.id for s in kept.repo.snapshots()][-1] == snapshot_id
    kept.prune(NOW)
    kept.demand_whole()


def test_a_file_that_holds_the_bytes_of_a_list_costs_nobody_his_files() -> None:
    kept = Kept()
    long = {b"long": some_bytes("long", 2 << 20)}
    long_id = store(kept.repo, long)
    kept.trees[long_id] = long
    (stored,) = kept.repo.snapshots()
    reader = kept.repo.reader()
    entry = Tree(reader.read, stored.snapshot.root).find(b"long")
    assert entry is not None and entry.depth == 1
    assert isinstance(kept.repo.now_ns, Clock)
    kept.repo.now_ns.at_ns -= DAY
    for at in range(0, len(entry.content), 24):
        trap = {b"trap": reader.read(entry.content[at : at + 24])}
        kept.trees[store(kept.repo, trap)] = trap
    kept.prune(NOW)
    kept.demand_whole()


# -- in two steps -----------------------------------------------------------------------------------------------------


def test_condemned_packs_wait_for_their_deadline() -> None:
    kept = half_forgotten()
    before = set(names(kept.repo.storage, "data"))
    first = kept.prune()
    assert first.condemned_packs > 0 and first.deleted_packs == 0 and first.waiting_packs == first.condemned_packs
    assert set(names(kept.repo.storage, "data")) >= before
    kept.demand_whole()
    kept.pass_time(DEADLINE_S * SECOND - HOUR)
    assert kept.prune().deleted_packs == 0
    kept.pass_time(HOUR)
    assert kept.prune().deleted_packs == first.condemned_packs
    kept.demand_whole()
    kept.demand_no_waste()
    assert names(kept.repo.storage, "locks") == []


def test_now_deletes_what_was_condemned_before() -> None:
    kept = half_forgotten()
    kept.prune()
    kept.prune(NOW)
    kept.demand_whole()
    kept.demand_no_waste()


@contextmanager
def at_work(repo: Repository, process: str = "1/300/1") -> Iterator[Session]:
    """Somebody else's backup."""
    with through(repo, repo.storage, an_owner("elsewhere", process)).writing() as session:
        yield session


def test_a_writer_that_does_not_know_a_list_keeps_it_from_being_swept() -> None:
    kept = half_forgotten()
    with at_work(kept.repo) as session:
        kept.prune()
        assert session.hold.knows == frozenset()
        kept.pass_time(LEASE_LIFE_S * SECOND // 2)
        memory(kept.repo).now_ns += DAY  # the list is old
        session.hold.put(session.hold.knows)  # and the lease is fresh
        report = kept.prune()
        assert report.deleted_packs == 0 and report.waiting_packs > 0
    assert kept.prune().deleted_packs > 0
    kept.demand_whole()


def test_a_writer_that_knows_a_list_does_not_keep_it() -> None:
    kept = half_forgotten()
    kept.prune()
    kept.pass_time(DAY)
    with at_work(kept.repo):
        assert kept.prune().deleted_packs > 0
    kept.demand_whole()


def test_a_reader_keeps_everything_that_it_may_still_read() -> None:
    kept = half_forgotten()
    gone = kept.store(9)
    files = kept.trees[gone]
    reader_of = through(kept.repo, kept.repo.storage, an_owner("elsewhere", "1/400/1"))
    stored = next(s for s in kept.repo.snapshots() if s.id == gone)
    with reader_of.reading() as reader:
        kept.forget(gone)
        for _ in range(2):
            report = kept.prune(Request(deadline_s=0))
            assert report.deleted_packs == 0 and report.waiting_packs > 0
        with pytest.raises(Busy, match="restore on elsewhere"):
            kept.prune(NOW)
        found = {e.name: content_of(reader, e) for _, es in Tree(reader.read, stored.snapshot.root).runs() for e in es}
        assert found.items() >= {(split(path)[1], content) for path, content in files.items()}
    assert kept.prune(Request(deadline_s=0)).deleted_packs > 0


def test_a_pack_that_a_snapshot_needs_after_all_is_pardoned() -> None:
    """A writer who did not know the list ended well: his snapshot counts, and the list does not."""
    kept = half_forgotten()
    again = store(kept.repo, tree(5))
    kept.repo.storage.delete(f"snapshots/{again}")
    kept.pass_time(2 * HOUR)
    with at_work(kept.repo) as session:
        kept.prune()
        root = write_tree(session, tree(5))
        assert not session.writer.bytes_stored
        kept.trees[session.commit(a_snapshot(kept.repo, root))] = tree(5)
    kept.pass_time(DAY)
    report = kept.prune()
    assert report.pardoned_packs > 0 and report.deleted_packs > 0
    kept.demand_whole()
    kept.prune(NOW)
    kept.demand_whole()
    kept.demand_no_waste()


def test_a_writer_notices_that_a_pack_it_relies_on_was_condemned() -> None:
    kept = half_forgotten()
    with at_work(kept.repo) as session:
        used = set(range(len(session.index.packs)))
        assert session.lost(used) == set()
        report = kept.prune()
        assert len(session.lost(used)) == report.condemned_packs > 0


def test_a_writer_notices_that_a_pack_it_relies_on_is_gone() -> None:
    kept = half_forgotten()
    with at_work(kept.repo) as session:
        used = set(range(len(session.index.packs)))
        memory(kept.repo).now_ns += (LEASE_LIFE_S + 1) * SECOND  # asleep
        gone = kept.prune(NOW).deleted_packs
        assert len(session.lost(used)) == gone > 0


def test_what_a_running_backup_has_stored_is_not_condemned() -> None:
    kept = half_forgotten()
    with at_work(kept.repo) as session:
        root = write_tree(session, tree(7))
        session.writer.flush()
        kept.prune()
        assert session.lost(session.writer.packs) == set()
        kept.trees[session.commit(a_snapshot(kept.repo, root))] = tree(7)
    kept.demand_whole()


def test_what_a_running_backup_has_stored_is_not_condemned_however_its_clock_goes() -> None:
    kept = half_forgotten()
    ahead = through(kept.repo, kept.repo.storage, an_owner("elsewhere", "1/300/1"))
    ahead.now_ns = Clock(memory(kept.repo).now_ns + 40 * DAY)
    with ahead.writing() as session:
        write_tree(session, tree(7))
        session.writer.flush()
        for _ in range(2):
            kept.prune()
            assert session.lost(session.writer.packs) == set()
            session.hold.put(session.hold.knows)


def test_what_a_dead_backup_has_stored_is_freed() -> None:
    kept = half_forgotten()
    with pytest.raises(StorageUnavailable):
        storage = Misbehaving(kept.repo.storage, [fails("put", 1, folder="index", times=None)])
        store(through(kept.repo, storage), tree(11))
    assert len(load_index(kept.repo.storage, kept.repo.secrets).adopted) == 2
    kept.prune(NOW)
    kept.demand_whole()
    kept.demand_no_waste()


def test_a_dead_process_does_not_keep_anything_waiting() -> None:
    kept, dead = half_forgotten(), set[str]()
    killed = Hold(through(kept.repo, kept.repo.storage, an_owner("elsewhere", "1/300/1")).leases, "backup")
    killed.put(frozenset())
    with pytest.raises(Busy, match="backup on elsewhere, process 300"):
        kept.prune(NOW)
    dead.add("1/300/1")
    report = prune(through(kept.repo, kept.repo.storage, an_owner(dead=dead)), NOW)
    assert report.deleted_packs > 0
    assert names(kept.repo.storage, "locks") == []
    kept.demand_whole()


def test_now_is_refused_while_somebody_is_at_work_and_changes_nothing() -> None:
    kept = half_forgotten()
    with at_work(kept.repo):
        before = everything(kept.repo.storage)
        with pytest.raises(Busy, match="backup on elsewhere") as caught:
            kept.prune(NOW)
        assert caught.value.exit_status == 11 and "without --now" in caught.value.hint
        assert everything(kept.repo.storage) == before


def test_of_two_prunes_one_is_busy() -> None:
    kept = half_forgotten()
    refused: list[Busy] = []

    def second() -> None:
        try:
            prune(through(kept.repo, kept.repo.storage, an_owner("elsewhere", "1/500/1")), LATER)
        except Busy as e:
            refused.append(e)

    storage = Misbehaving(kept.repo.storage, [does("list", second, folder="data")])
    prune(through(kept.repo, storage), NOW)
    assert len(refused) == 1
    kept.demand_whole()


def test_a_prune_that_was_asleep_for_too_long_deletes_nothing_more() -> None:
    """Somebody else's prune may have pardoned meanwhile what this one was about to delete."""
    kept = half_forgotten()

    def sleep() -> None:
        kept.pass_time(LEASE_LIFE_S * SECOND)

    storage = Misbehaving(kept.repo.storage, [does("delete", sleep, 1, folder="data")])
    before = set(names(kept.repo.storage, "data"))
    with pytest.raises(Busy, match="asleep"):
        prune(through(kept.repo, storage), NOW)
    assert len(before - set(names(kept.repo.storage, "data"))) <= 1
    kept.demand_whole()
    kept.prune(NOW)
    kept.demand_no_waste()


# -- others meanwhile, and killed, at every step ----------------------------------------------------------------------


def steps_of(make: Callable[[], Kept], request: Request) -> int:
    kept = make()
    storage = Misbehaving(kept.repo.storage)
    prune(through(kept.repo, storage), request)
    return len(storage.steps)


def half_forgotten_and_condemned() -> Kept:
    kept = half_forgotten()
    kept.prune()
    kept.forget(kept.store(20))
    kept.pass_time(DAY)
    return kept


CASES: dict[str, tuple[Callable[[], Kept], Request]] = {
    "now": (half_forgotten, NOW),
    "condemning": (half_forgotten, LATER),
    "sweeping": (half_forgotten_and_condemned, LATER),
    "now after condemning": (half_forgotten_and_condemned, NOW),
}


EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("moment", ["before", "written"])
def test_a_prune_killed_at_any_step_leaves_all_whole_and_the_next_one_goes_on(
    case: str, moment: str, every: int
) -> None:
    make, request = CASES[case]
    for nth in range(1 + list(CASES).index(case) % every, steps_of(make, request) + 1, every):
        kept, dead = make(), {"1/100/1"}
        storage = Misbehaving(kept.repo.storage, [cuts_power("any", nth, moment=moment)])
        with suppress(HoldfastError):
            prune(through(kept.repo, storage), request)
        kept.demand_whole()
        next_one = through(kept.repo, kept.repo.storage, an_owner("here", "1/101/1", dead))
        prune(next_one, NOW)
        kept.demand_whole()
        kept.demand_no_waste()
        assert names(kept.repo.storage, "locks") == []


@EVERY
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [0, 5])
def test_a_backup_at_any_step_of_a_prune_disturbs_nobody(case: str, number: int, every: int) -> None:
    """``number`` 0: of files that were forgotten, so that it relies on packs that are being condemned or deleted."""
    make, request = CASES[case]
    for nth in range(1 + list(CASES).index(case) % every, steps_of(make, request) + 1, every):
        kept = make()
        other = through(kept.repo, kept.repo.storage, an_owner("elsewhere", "1/300/1"))

        def back_up(kept: Kept = kept, other: Repository = other) -> None:
            with other.writing() as session:
                root = write_tree(session, tree(number))
                session.writer.flush()
                used = {p for i in session.index.ids() if (p := session.index.pack_of(i)) is not None}
                while lost := session.lost(used):
                    session.drop(lost)
                    root = write_tree(session, tree(number))
                    session.writer.flush()
                    used = {p for i in session.index.ids() if (p := session.index.pack_of(i)) is not None}
                kept.trees[session.commit(a_snapshot(other, root))] = tree(number)

        storage = Misbehaving(kept.repo.storage, [does("any", back_up, nth)])
        try:
            prune(through(kept.repo, storage), request)
        except Busy:
            assert request.now
        kept.demand_whole()
        kept.prune(NOW)
        kept.demand_whole()
        kept.demand_no_waste()
