"""Files by hash: whole, in parts, by range; whose they are; what they cost."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import (
    Contradiction,
    Damaged,
    NoContent,
    OutOfRange,
    QuotaFull,
    StorageFull,
    UsageError,
    WrongContent,
)
from holdfast.manifests.files import demand_range, merged, parse_hash
from holdfast.repository.check import check
from holdfast.repository.pages import Tree
from holdfast.repository.snapshots import Filter
from holdfast.shelf.shelf import TAG
from tests.manifests.making import Room, sha256


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_file_comes_back_as_it_was_put(room: Room):
    for size in (0, 1, 4096, 1 << 20):
        data = noise(size)
        assert room.put(room.ann, data)
        assert room.get(room.ann, data) == data


def test_a_large_file_comes_back_whole_and_by_range(room: Room):
    data = noise(9 << 20)
    assert room.put_large(room.ann, data)
    assert room.get(room.ann, data) == data
    for start, stop in ((0, 1), (len(data) - 1, len(data)), (1 << 20, 5 << 20), (4_000_001, 4_000_002)):
        assert room.get(room.ann, data, start, stop) == data[start:stop]


def test_a_file_that_is_there_is_not_new(room: Room):
    assert room.put(room.ann, b"x") is True
    assert room.put(room.ann, b"x") is False


def test_bytes_that_hash_to_something_else_are_refused_and_nothing_is_kept(room: Room):
    with pytest.raises(WrongContent):
        room.put(room.ann, b"these", sha256(b"those"))
    assert not room.files.state(room.ann, sha256(b"those")).is_available
    assert room.house.directory.account(room.ann, "ann").used_bytes == 0


def test_sha1_names_files_too(room: Room):
    name = hashlib.sha1(b"old").hexdigest()
    future, _ = room.files.put(room.ann, name, b"old", name)
    future.result(60)
    assert b"".join(room.files.pieces(room.files.file(room.ann, name))) == b"old"


@pytest.mark.parametrize("text", ["", "x" * 64, "0" * 63, "0" * 65, "0" * 40 + "\n", "../" + "0" * 61])
def test_what_is_no_hash_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_hash(text)


def test_any_case_of_a_hash_is_the_same():
    assert parse_hash("AB" * 32) == "ab" * 32


def test_knowing_a_hash_gives_no_right_to_read(room: Room):
    room.put(room.ann, b"secret")
    assert not room.files.state(room.ben, sha256(b"secret")).is_available
    with pytest.raises(NoContent):
        room.get(room.ben, b"secret")
    assert room.put(room.ben, b"secret"), "he has to send all of it"
    assert room.get(room.ben, b"secret") == b"secret"


def test_what_two_accounts_send_is_stored_once(room: Room):
    data = noise(4 << 20)
    room.put_large(room.ann, data)
    before = sum(i.size for i in room.repo.storage.list("data"))
    room.put_large(room.ben, data)
    assert sum(i.size for i in room.repo.storage.list("data")) - before < 64 << 10


def test_many_at_once_are_all_durable_and_share_snapshots(room: Room):
    contents = [noise(4096, seed) for seed in range(200)]
    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(lambda data: room.put(room.ann, data), contents))
    assert len(room.repo.snapshots()) < 150
    room.stop()
    room.start()
    assert all(room.get(room.ann, data) == data for data in contents)
    assert check(room.repo).good


def test_the_same_file_many_times_at_once_is_charged_once(room: Room):
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: room.put(room.ann, b"again"), range(50))) >= 1
    account = room.house.directory.account(room.ann, "ann")
    assert (account.used_bytes, account.used_objects) == (5, 1)


def test_what_comes_twice_at_once_in_other_pieces_is_kept_as_the_catalog_names_it(room: Room):
    data, name = noise(9_000), sha256(noise(9_000))
    room.shelf._lock.acquire()  # so that all of it waits for one commit
    try:
        orders = []
        for cuts in ([0, 9_000], [0, 4_000, 9_000]):
            upload = room.files.receive(None)
            room.shelf._lock.release()
            for start, stop in pairwise(cuts):
                upload.feed(data[start:stop])
            content, _ = upload.finish()
            room.shelf._lock.acquire()
            orders.append(room.files.put_part(room.ann, name, 0, 9_000, content))
        orders += [room.files.put(room.ann, name, data, name)[0]]
    finally:
        room.shelf._lock.release()
    for order in orders:
        order.result(60)
    named = room.files.file(room.ann, name)
    (entry,) = [
        entry
        for stored in room.repo.snapshots()
        for _, entries in Tree(room.shelf.read, stored.snapshot.root).runs()
        for entry in entries
        if entry.name == name.encode() and entry.kind == "f"
    ]
    assert entry.content == named.chunks


# -- parts -------------------------------------------------------------------------------------------------------------


def test_parts_come_in_any_order_over_many_runs_of_the_server(room: Room):
    data = noise(3_000_000)
    state = room.put_part(room.ann, data, 2_000_000, 3_000_000)
    assert (state.size, state.is_available, state.ranges) == (3_000_000, False, ((2_000_000, 3_000_000),))
    room.stop()
    room.start()
    state = room.put_part(room.ann, data, 0, 1_000_000)
    assert state.ranges == ((0, 1_000_000), (2_000_000, 3_000_000)) and state.leading == 1_000_000
    with pytest.raises(NoContent):
        room.get(room.ann, data)
    assert room.put_part(room.ann, data, 1_000_000, 2_000_000).is_available
    assert room.get(room.ann, data) == data
    account = room.house.directory.account(room.ann, "ann")
    assert (account.used_bytes, account.used_objects) == (3_000_000, 1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_parts_that_overlap_make_the_file_all_the_same(room: Room, data: st.DataObject):
    content = noise(20_000, data.draw(st.integers(0, 1 << 30)))
    cuts = st.integers(0, len(content))
    for start, stop in data.draw(st.lists(st.tuples(cuts, cuts).map(sorted), max_size=8)):
        if start < stop and not room.files.state(room.ann, sha256(content)).is_available:
            room.put_part(room.ann, content, start, stop)
    for start in data.draw(st.permutations(range(0, len(content), 5_000))):
        if not room.files.state(room.ann, sha256(content)).is_available:
            room.put_part(room.ann, content, start, start + 5_000)
    assert room.files.state(room.ann, sha256(content)).is_available
    assert room.get(room.ann, content) == content


def test_parts_that_do_not_add_up_to_the_hash_are_forgotten(room: Room):
    data = noise(100_000)
    room.put_part(room.ann, data, 0, 50_000)
    with pytest.raises(WrongContent):
        room.put_part(room.ann, bytes(100_000), 50_000, 100_000, sha256(data))
    assert room.files.state(room.ann, sha256(data)).ranges == ()
    assert room.house.directory.account(room.ann, "ann").used_bytes == 0


def test_another_total_is_a_contradiction(room: Room):
    data = noise(1000)
    room.put_part(room.ann, data, 0, 500)
    with pytest.raises(Contradiction, match="has 1000 bytes, not 999"):
        room.files.demand_room(room.ann, sha256(data), 999)


def test_a_total_that_a_manifest_contradicts_is_a_contradiction(room: Room):
    room.post(room.ann, {"name": "m", "files": {"a": {"hash": sha256(b"abc"), "size": 3}}})
    with pytest.raises(Contradiction):
        room.files.demand_room(room.ann, sha256(b"abc"), 4)
    room.files.demand_room(room.ben, sha256(b"abc"), 4)


def test_a_file_whose_last_part_came_just_before_the_end_is_made_at_the_next_start(room: Room):
    data = noise(10_000)
    room.put_part(room.ann, data, 0, 5_000)
    upload = room.files.receive(None)
    upload.feed(data[5_000:])
    room.files.put_part(room.ann, sha256(data), 5_000, 10_000, upload.finish()[0]).result(60)
    room.stop()
    room.start()
    room.files.finish_all()
    assert room.get(room.ann, data) == data


def test_parts_can_be_given_up(room: Room):
    data = noise(1000)
    room.put_part(room.ann, data, 0, 500)
    room.remover.forget_file(room.ann, sha256(data))
    assert room.files.state(room.ann, sha256(data)).ranges == ()
    with pytest.raises(NoContent):
        room.remover.forget_file(room.ann, sha256(data))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20))))
def test_merged_ranges_hold_the_same_bytes_in_order(pairs: list[tuple[int, int]]):
    ranges = [(start, start + size) for start, size in pairs]
    found = merged(ranges)
    assert {b for a, e in found for b in range(a, e)} == {b for a, e in ranges for b in range(a, e)}
    assert all(a[1] < b[0] for a, b in pairwise(found))


@pytest.mark.parametrize("bounds", [(0, 11), (5, 5), (10, 11), (-1, 3)])
def test_a_range_that_does_not_exist_is_out_of_range(bounds: tuple[int, int]):
    with pytest.raises(OutOfRange) as caught:
        demand_range(*bounds, 10)
    assert caught.value.size == 10


# -- quotas and faults -------------------------------------------------------------------------------------------------


def test_a_full_quota_refuses_this_file_and_no_other(room: Room):
    room.house.directory.change(room.house.admin, "ann", {"quota_bytes": 10})
    assert room.put(room.ann, b"12345678")
    with pytest.raises(QuotaFull):
        room.put(room.ann, b"123")
    assert room.put(room.ann, b"12")
    assert room.put(room.ben, b"more than ten bytes")
    with pytest.raises(QuotaFull):
        room.put_part(room.ann, b"x" * 20, 0, 5)


def test_a_quota_of_files_counts_files(room: Room):
    room.house.directory.change(room.house.admin, "ann", {"quota_objects": 1})
    assert room.put(room.ann, b"1")
    with pytest.raises(QuotaFull):
        room.put(room.ann, b"2")
    assert room.put(room.ann, b"1") is False


def test_a_full_disk_fails_what_it_met_and_the_next_one_goes_on(room: Room, monkeypatch: pytest.MonkeyPatch):
    def full(name: str, parts: object) -> None:
        raise StorageFull("No space is left.")

    with monkeypatch.context() as patch:
        patch.setattr(room.repo.storage, "put", full)
        with pytest.raises(StorageFull):
            room.put(room.ann, b"while it is full")
    assert not room.files.state(room.ann, sha256(b"while it is full")).is_available
    assert room.put(room.ann, b"later")
    assert room.get(room.ann, b"later") == b"later"


def test_damage_is_never_given_out(room: Room):
    data = noise(3 << 20)
    room.put_large(room.ann, data)
    pack = max(room.repo.storage.list("data"), key=lambda info: info.size)
    path = room.folder / "repository" / "data" / pack.name[5:7] / pack.name[5:]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    room.stop()
    room.start()
    with pytest.raises(Damaged):
        room.get(room.ann, data)


def test_an_ordinary_look_at_the_snapshots_does_not_show_the_shelf(room: Room):
    room.put(room.ann, b"x")
    stored = room.repo.snapshots()
    assert [s for s in stored if Filter().matches(s.snapshot)] == []
    assert [s for s in stored if Filter(tags=((TAG,),)).matches(s.snapshot)] == stored != []
