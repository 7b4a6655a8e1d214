"""The index against a dictionary, in memory and on storage."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast.errors import ObjectMissing, StorageUnavailable
from holdfast.repository import prune
from holdfast.repository.format import BLOCK, ID_SIZE, PackRecord
from holdfast.repository.index import (
    PENDING,
    PURPOSE,
    Index,
    Loaded,
    Location,
    chunks_of,
    load_index,
    put_index_object,
)
from holdfast.repository.repository import Repository
from holdfast.repository.writer import SMALL
from holdfast.storage.base import Storage
from tests.repository.making import SECOND, memory, names, new_repository, read_back, store, through
from tests.support.storages import Counting, Misbehaving, does, fails


def an_id(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:ID_SIZE]


def a_record(name: int, chunks: Chunks) -> PackRecord:
    ids = b"".join(an_id(n) for n in chunks)
    lengths = b"".join(length.to_bytes(4, "big") for length, _ in chunks.values())
    raws: dict[int, int] = {}
    for block, offset, length in laid_out(chunks).values():
        raws[block] = offset + length
    blocks = b"".join(BLOCK.pack(0, 0, raw, 0) for raw in raws.values())
    return PackRecord(hashlib.sha256(b"pack %d" % name).digest(), 1000, 0, 0, 1, b"sealed", blocks, ids, lengths)


def laid_out(chunks: Chunks) -> dict[int, tuple[int, int, int]]:
    """Block, offset and length of each chunk: end to end, a block ends where a chunk says so."""
    found, block, offset = {}, 0, 0
    for number, (length, last) in chunks.items():
        found[number] = block, offset, length
        block, offset = (block + 1, 0) if last else (block, offset + length)
    return found


Chunks = dict[int, tuple[int, bool]]  # by number: the length, and whether a block ends behind it
CHUNKS = st.dictionaries(st.integers(0, 30), st.tuples(st.integers(1, 1 << 20), st.booleans()), max_size=12)


class IndexBesideADictionary(RuleBasedStateMachine):
    """Packs that share chunks come and go; chunks are reserved before their pack is known."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index()
        self.records: list[PackRecord] = []  # by number
        self.dropped: set[int] = set()
        self.chunks: dict[int, Location] = {}
        self.ordinals: dict[int, int] = {}

    @rule(chunks=CHUNKS, weak=st.booleans())
    def add(self, chunks: Chunks, weak: bool) -> None:
        """A chunk is found in the pack added last, in a weak one only when it is nowhere else."""
        number = len(self.records)
        self.records.append(a_record(number, chunks))
        assert self.index.add_pack(self.records[number], weak=weak) == number
        for chunk, where in laid_out(chunks).items():
            if not weak or chunk not in self.chunks:
                self.chunks[chunk] = Location(number, *where)

    @precondition(lambda self: len(self.records) > len(self.dropped))
    @rule(data=st.data(), weak=st.booleans())
    def add_again(self, data: st.DataObject, weak: bool) -> None:
        number = data.draw(st.sampled_from(sorted(set(range(len(self.records))) - self.dropped)))
        assert self.index.add_pack(self.records[number], weak=weak) == number

    @rule(number=st.integers(0, 40), length=st.integers(0, 1 << 22))
    def reserve(self, number: int, length: int) -> None:
        self.index.reserve(an_id(number), length)
        self.chunks[number] = Location(PENDING, 0, 0, length)

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """What was found in a dropped pack is absent, wherever else it may be: it will be stored anew."""
        gone = data.draw(st.sets(st.integers(0, len(self.records) - 1), min_size=1))
        self.index.drop_packs([*(self.records[n].name for n in gone), b"a pack that nobody knows"])
        self.dropped |= gone
        self.chunks = {c: where for c, where in self.chunks.items() if where.pack not in gone}
        self.ordinals.clear()

    @invariant()
    def they_agree(self) -> None:
        for number in range(42):
            chunk_id, wanted = an_id(number), self.chunks.get(number)
            assert self.index.find(chunk_id) == wanted
            assert self.index.pack_of(chunk_id) == (None if wanted is None else wanted.pack)
            assert (chunk_id in self.index) == (wanted is not None)
            self.look_at_ordinal(number, self.index.ordinal(chunk_id), wanted is not None)
        assert sorted(self.index.ids()) == sorted(an_id(n) for n in self.chunks)
        assert len(self.index) == len(self.chunks)
        for number, record in enumerate(self.records):
            assert self.index.number_of(record.name) == (None if number in self.dropped else number)
            assert self.index.packs[number] == record

    def look_at_ordinal(self, number: int, ordinal: int | None, there: bool) -> None:
        """Every chunk has a number of its own, and keeps it while chunks are only added."""
        assert (ordinal is not None) == there
        if ordinal is not None:
            assert ordinal < len(self.index) or self.dropped
            assert self.ordinals.setdefault(number, ordinal) == ordinal
            assert len(set(self.ordinals.values())) == len(self.ordinals)


IndexBesideADictionary.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_the_index_answers_as_a_dictionary_does = IndexBesideADictionary.TestCase


@given(CHUNKS)
def test_a_record_tells_its_chunks_as_they_are(chunks: Chunks) -> None:
    found = list(chunks_of(a_record(1, chunks)))
    assert found == [(an_id(n), Location(0, *where)) for n, where in laid_out(chunks).items()]


def test_ordinals_stay_while_the_index_grows() -> None:
    index = Index()
    index.add_pack(a_record(0, dict.fromkeys(range(100), (1, False))))
    before = [index.ordinal(an_id(n)) for n in range(100)]
    index.add_pack(a_record(1, dict.fromkeys(range(50, 6000), (1, False))))
    assert [index.ordinal(an_id(n)) for n in range(100)] == before
    assert sorted(index.ordinal(i) or 0 for i in index.ids()) == list(range(6000))


# -- on storage -------------------------------------------------------------------------------------------------------


def stored_index(repo: Repository, storage: Storage | None = None) -> Loaded:
    """What the index objects say, whatever packs there are."""
    return load_index(storage or repo.storage, repo.secrets, survey=False, contents=True)


def three_snapshots() -> tuple[Repository, list[str]]:
    repo = new_repository()
    return repo, [store(repo, {b"file %d" % n: b"content %d" % n * 50}) for n in range(3)]


def test_what_was_stored_is_loaded_with_and_without_looking_at_the_packs() -> None:
    repo, _ = three_snapshots()
    for survey in (True, False):
        loaded = load_index(repo.storage, repo.secrets, survey=survey)
        assert len(loaded.index.packs) == len(names(repo.storage, "data")) == 6
        assert (loaded.adopted, loaded.absent, loaded.unreadable) == ([], [], {})


def test_the_index_is_split_over_objects_and_read_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    repo, ids = three_snapshots()
    monkeypatch.setattr(prune, "INDEX_CHUNKS", 1)
    stored = stored_index(repo)
    prune.put_index(repo, list(stored.records.values()), set(stored.objects))
    again = stored_index(repo)
    assert len(again.packs) == 6 and again.records == stored.records
    for name in stored.objects:
        repo.storage.delete(name)
    assert [read_back(repo, i) for i in ids] == [{b"file %d" % n: b"content %d" % n * 50} for n in range(3)]


def test_superseded_index_objects_do_not_count() -> None:
    repo, _ = three_snapshots()
    stored = stored_index(repo)
    some = sorted(stored.records.values(), key=lambda r: r.name)[:2]
    memory(repo).now_ns += SECOND
    name, _ = put_index_object(repo.storage, repo.secrets, some, stored.objects)
    again = stored_index(repo)
    assert list(again.packs) == [name] and set(again.objects) == {name, *stored.objects}
    assert again.records.keys() == {r.name for r in some}


def test_packs_that_no_index_object_knows_are_adopted_from_their_own_tables() -> None:
    repo, ids = three_snapshots()
    wanted = [read_back(repo, i) for i in ids]
    before = load_index(repo.storage, repo.secrets, contents=True)
    for name in names(repo.storage, "index"):
        repo.storage.delete(name)
    after = load_index(repo.storage, repo.secrets, contents=True)
    assert len(after.adopted) == 6
    assert {r.name: r for r in after.index.packs} == {r.name: r for r in before.index.packs}
    assert [read_back(repo, i) for i in ids] == wanted  # a reader finds them too


def test_no_packs_table_is_read_while_the_index_is_whole() -> None:
    repo, _ = three_snapshots()
    counting = Counting(repo.storage)
    through(repo, counting).reader()
    assert not [n for n in counting.log if n.kind == "get" and n.subject.startswith("data/")]


def test_packs_that_are_gone_or_of_another_size_hold_nothing() -> None:
    repo, _ = three_snapshots()
    gone, longer, *_ = names(repo.storage, "data")
    repo.storage.delete(gone)
    memory(repo).overwrite(longer, repo.storage.get(longer) + b"x")
    loaded = load_index(repo.storage, repo.secrets)
    assert sorted(loaded.absent) == [gone, longer]
    assert len(loaded.index.packs) == 4


def test_chunks_of_condemned_packs_are_absent_for_writers() -> None:
    repo, _ = three_snapshots()
    whole = load_index(repo.storage, repo.secrets, contents=True).index
    condemned = {whole.packs[0].name, whole.packs[3].name}
    index = load_index(repo.storage, repo.secrets, condemned=condemned).index
    held = {i for p in whole.packs for i, _ in chunks_of(p) if p.name in condemned}
    assert {p.name for p in index.packs} == {p.name for p in whole.packs} - condemned
    assert held and not any(i in index for i in held)


def test_readers_find_a_chunk_in_a_condemned_pack_only_when_it_is_nowhere_else() -> None:
    repo = new_repository()
    with repo.writing() as session:
        chunk = session.writer.add(SMALL, b"twice")
        only = session.writer.add(SMALL, b"once")
    with repo.writing() as session:
        session.writer.add(SMALL, b"twice")
        session.writer.add(SMALL, b"once")
        session.writer.flush()
    (condemned,) = [p.name for p in load_index(repo.storage, repo.secrets).index.packs]
    repo.leases.condemn([condemned], 1000)
    with repo.writing() as session:
        assert session.writer.add(SMALL, b"twice") == chunk
        session.writer.flush()
    reader = repo.reader()
    index = load_index(repo.storage, repo.secrets, condemned={condemned}, with_condemned=True).index
    assert reader.read(chunk) == b"twice" and reader.read(only) == b"once"
    assert index.packs[index.pack_of(chunk) or 0].name != condemned
    assert index.packs[index.pack_of(only) or 0].name == condemned


def test_an_index_object_that_vanishes_while_it_is_read_was_superseded() -> None:
    repo, _ = three_snapshots()
    stored = stored_index(repo)

    def compact() -> None:
        prune.put_index(repo, list(stored.records.values()), set(stored.objects))
        for name in stored.objects:
            repo.storage.delete(name)

    storage = Misbehaving(repo.storage, [does("get", compact, 2, folder="index")])
    again = stored_index(repo, storage)
    assert len(again.objects) == 1 and again.records == stored.records


def test_an_index_that_never_comes_to_rest_is_said_to_be_so() -> None:
    repo, _ = three_snapshots()
    storage = Misbehaving(repo.storage, [fails("get", 1, ObjectMissing, times=None, folder="index")])
    with pytest.raises(StorageUnavailable, match="keeps changing"):
        stored_index(repo, storage)


@pytest.mark.parametrize(
    "change", [{"ids": b"x" * 25}, {"lengths": b"x" * 7}, {"lengths": b"x" * 8}, {"blocks": b"x" * 14}]
)
def test_a_record_with_ragged_columns_is_damage_and_left_out(change: dict[str, bytes]) -> None:
    repo, _ = three_snapshots()
    record = stored_index(repo).index.packs[0]
    put_index_object(repo.storage, repo.secrets, [msgspec.structs.replace(record, **change)])
    stored = stored_index(repo)
    assert len(stored.damaged) == 1 and "ragged" in str(stored.damaged)
    assert len(stored.records) == 6


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x91\x01", msgspec.msgpack.encode([1, 2, 3])])
def test_an_index_object_that_is_none_is_damage(content: bytes) -> None:
    repo, _ = three_snapshots()
    data = repo.secrets.share(PURPOSE, content)
    repo.storage.put(f"index/{hashlib.sha256(data).hexdigest()}", [data])
    stored = stored_index(repo)
    assert len(stored.damaged) == 1 and "understood" in str(stored.damaged) and len(stored.records) == 6


def test_an_index_object_of_the_future_may_hold_more_columns() -> None:
    repo, _ = three_snapshots()
    stored = stored_index(repo)
    more = [[*msgspec.to_builtins(r, builtin_types=(bytes,)), "new"] for r in stored.records.values()]
    data = repo.secrets.share(PURPOSE, msgspec.msgpack.encode([more, [], "new"]))
    repo.storage.put(f"index/{hashlib.sha256(data).hexdigest()}", [data])
    assert stored_index(repo).damaged == {}


_MEASURE = """
import random, sys
from holdfast.repository.format import BLOCK, ID_SIZE, PackRecord
from holdfast.repository.index import Index

def held():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

dice, per, packs = random.Random(1), 4096, int(sys.argv[1])
for warm_up in range(2):
    before = held()
    index = Index(contents=False)
    for number in range(packs if warm_up else 1):
        ids, lengths = dice.randbytes(ID_SIZE * per), (4096).to_bytes(4, "big") * per
        blocks = BLOCK.pack(0, 0, per * 256, 0) * 16
        index.add_pack(PackRecord(number.to_bytes(32, "big"), 1, 0, 0, 1, bytes(1152), blocks, ids, lengths))
print((held() - before) / len(index))
"""


def test_a_chunk_takes_little_memory() -> None:
    """The tables grow in steps, and are largest for what they hold just after one, so several sizes are measured."""
    found = []
    for packs in (170, 190, 210, 245):
        done = subprocess.run([sys.executable, "-c", _MEASURE, str(packs)], capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    print("bytes of memory for a chunk in the index:", ", ".join(f"{f:.1f}" for f in found))
    assert max(found) <= 64
