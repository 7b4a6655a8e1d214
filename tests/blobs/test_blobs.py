"""The room of blobs over each kind of catalog: who wins, what counts, what is left over, what is read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.blobs.buckets import Email, Owner, Policy, Quota
from holdfast.blobs.conditions import ANY, Conditions
from holdfast.blobs.pieces import PIECE
from holdfast.blobs.places import LEASE_NS
from holdfast.catalog import blobs as rows
from holdfast.catalog.blobs import DISK, REPOSITORY, Blob, Leftover
from holdfast.catalog.database import Database
from holdfast.errors import (
    ConditionFailed,
    Contradiction,
    Damaged,
    Forbidden,
    HoldfastError,
    NoAccount,
    NoContent,
    ObjectMissing,
    QuotaFull,
    StorageFull,
    StorageUnavailable,
    TooLarge,
    UsageError,
)
from tests.blobs.making import SIZES, People, Room, new_room, noise, sha1
from tests.support.storages import Fault, Misbehaving, does, fails

MIB = 1 << 20
BOTH = pytest.mark.parametrize("filesystem", [DISK, REPOSITORY])


def written_by(writer: int, size: int) -> bytes:
    """A content that tells who wrote it, at each of its bytes."""
    return bytes([writer]) * size


# -- putting and reading -----------------------------------------------------------------------------------------------


@BOTH
def test_what_was_put_is_read_again_and_counted(people: People, filesystem: str):
    room, ann = people.room, people.ann
    room.bucket(ann, "b", filesystem=filesystem)
    total = 0
    for number, size in enumerate(SIZES):
        data = noise(size)
        blob = room.put(ann, "b", f"k/{number}", data)
        total += size
        assert (blob.size, blob.sha1, blob.key) == (size, sha1(data), f"k/{number}".encode())
        assert room.get(ann, "b", f"k/{number}") == data
    assert room.counts("b") == room.used("ann") == (total, len(SIZES))


@BOTH
def test_a_blob_put_again_is_the_new_one_and_counts_once(simply: People, filesystem: str):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b", filesystem=filesystem)
    for number in range(10):
        data = noise(100 * number, number)
        room.put(ann, "b", "k", data, large=number % 2 == 1)
        assert room.get(ann, "b", "k") == data
        assert room.counts("b") == room.used("ann") == (len(data), 1)


@BOTH
def test_keys_of_the_greatest_length_and_of_any_letters_are_kept_apart(simply: People, filesystem: str):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b", filesystem=filesystem)
    keys = ["a", "a/b", "a//b", "a/b/", "A", "%2e%2e", "..a", "a..", "x" * 1024, "ß" * 512, "\n", "\x7f ", "a\\..\\b"]
    for key in keys:
        room.put(ann, "b", key, key.encode())
    for key in keys:
        assert room.get(ann, "b", key) == key.encode()
    assert room.counts("b") == (sum(len(key.encode()) for key in keys), len(keys))


def test_keys_that_nothing_may_be_called(simply: People):
    simply.room.bucket(simply.ann, "b")
    for key in ["", "x" * 1025, "ß" * 513, "a\0b", ".", "..", "a/../b", "a/.", "./a", "\ud800"]:
        with pytest.raises(UsageError):
            simply.room.put(simply.ann, "b", key, b"x")


def test_names_that_no_bucket_may_have(simply: People):
    for name in ["", ".", "..", "-a", "_a", "a/b", "a b", "a" * 64, "ä", "a\n", "a\0"]:
        with pytest.raises(UsageError):
            simply.room.buckets.create(simply.ann, name, Policy())
        with pytest.raises(NoContent):
            simply.room.put(simply.ann, name, "k", b"x")


@BOTH
def test_a_damaged_blob_is_named_and_not_given_back(simply: People, filesystem: str):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b", filesystem=filesystem)
    room.put(ann, "b", "the key", noise(300_000))
    room.stop()
    storage = room.disk if filesystem == DISK else room.repo.storage
    name = max(storage.list("data"), key=lambda info: info.size).name
    stored = bytearray(storage.get(name))
    stored[len(stored) // 2] ^= 1
    storage.delete(name)
    storage.put(name, [bytes(stored)])
    room.start()
    with pytest.raises(Damaged) as told:
        room.get(ann, "b", "the key")
    assert "the key" in str(told.value) and str(room.folder) not in str(told.value)
    assert room.told  # the log says where it lies


# -- at once -----------------------------------------------------------------------------------------------------------


@BOTH
def test_of_many_who_put_one_key_one_wins_whole_and_readers_see_no_mixture(people: People, filesystem: str):
    room, ann = people.room, people.ann
    room.bucket(ann, "b", filesystem=filesystem)
    size, writers, rounds = 300_000, 6, 3
    room.put(ann, "b", "k", written_by(0, size))
    over, seen, faults = threading.Event(), set[int](), list[object]()

    def read() -> None:
        while not over.is_set():
            try:
                got = room.get(ann, "b", "k")
            except ObjectMissing:
                continue  # put again between being found and being read: the face looks again
            if len(set(got)) != 1 or len(got) != size + got[0]:
                faults.append((len(got), set(got)))
            seen.add(got[0])
            room.keeper.remove_left()

    def write(writer: int) -> None:
        for _ in range(rounds):
            room.put(ann, "b", "k", written_by(writer, size + writer), large=writer % 2 == 0)

    with ThreadPoolExecutor(writers + 3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for done in [pool.submit(write, writer) for writer in range(1, writers + 1)]:
            done.result(120)
        over.set()
        for reader in readers:
            reader.result(60)
    assert faults == [] and seen
    winner = room.get(ann, "b", "k")[0]
    assert room.counts("b") == room.used("ann") == (size + winner, 1)
    assert room.comes_to(1 if filesystem == DISK else 0)


def test_who_reads_a_blob_reads_it_to_its_end_though_it_is_put_again_and_deleted(simply: People):
    room, ann = simply.room, simply.ann
    data = noise(3 * PIECE)
    room.bucket(ann, "b")
    room.put(ann, "b", "k", data)
    found, blob = room.blobs.find(ann, "b", "k")
    pieces = room.blobs.pieces(found, blob, 0, blob.size)
    first = next(pieces)
    room.put(ann, "b", "k", b"new")
    room.keeper.remove_left()
    room.delete(ann, "b", "k")
    room.keeper.remove_left()
    assert first + b"".join(pieces) == data
    assert room.comes_to(0)


def test_who_comes_to_read_while_a_content_is_removed_is_sent_back_at_once(sqlite: Database, tmp_path: Path):
    """Not in the middle of it, when an answer has begun."""
    late: list[object] = []

    def read() -> None:
        try:
            late.append(next(room.blobs.pieces(found, blob, PIECE, 2 * PIECE)))
        except ObjectMissing as e:
            late.append(type(e))

    fault = does("delete", read, moment="after")
    room = new_room(sqlite, tmp_path, lambda storage: Misbehaving(storage, [fault]))
    try:
        ann = People(room).ann
        room.bucket(ann, "b")
        room.put(ann, "b", "k", noise(2 * PIECE))
        found, blob = room.blobs.find(ann, "b", "k")
        room.delete(ann, "b", "k")
        room.keeper.remove_left()
        assert late == [ObjectMissing]
    finally:
        room.stop()


def test_two_who_create_one_key_only_if_it_is_not_there(people: People):
    room, ann = people.room, people.ann
    room.bucket(ann, "b")
    together = threading.Barrier(8)

    def create(writer: int) -> bool:
        together.wait(30)
        try:
            room.put(ann, "b", "k", written_by(writer, 10), none=[ANY])
        except ConditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert room.get(ann, "b", "k") == written_by(won.index(True), 10)
    assert room.counts("b") == (10, 1)


def test_of_many_who_change_what_they_read_none_is_lost(people: People):
    """With If-Match a counter counts everybody."""
    room, ann = people.room, people.ann
    room.bucket(ann, "b")
    room.put(ann, "b", "k", b"0")

    def count_up(_: int) -> None:
        while True:
            try:
                before = room.get(ann, "b", "k")
                room.put(ann, "b", "k", b"%d" % (int(before) + 1), match=[sha1(before)])
            except (ConditionFailed, ObjectMissing):
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(12)))
    assert room.get(ann, "b", "k") == b"12"


def test_puts_and_deletes_of_one_key_at_once_leave_the_counts_right(people: People):
    room, ann = people.room, people.ann
    room.bucket(ann, "b")

    def act(number: int) -> None:
        if number % 3 == 2:
            try:
                room.delete(ann, "b", "k")
            except NoContent:
                return
        else:
            room.put(ann, "b", "k", noise(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(60)))
    left, _ = room.listed(ann, "b")
    assert (
        room.counts("b") == room.used("ann") == (sum(blob.size for blob in left if isinstance(blob, Blob)), len(left))
    )
    assert room.comes_to(len(left))


# -- conditions --------------------------------------------------------------------------------------------------------


def test_conditions_hold_or_nothing_is_changed(people: People):
    room, ann = people.room, people.ann
    room.bucket(ann, "b")
    old = sha1(b"old")
    with pytest.raises(ConditionFailed):
        room.put(ann, "b", "k", b"new", match=[ANY])  # it is not there
    room.put(ann, "b", "k", b"old", none=[old])  # it is not that one
    for match, none in ((None, [ANY]), (None, [old]), ([sha1(b"other")], None), ([], None)):
        with pytest.raises(ConditionFailed):
            room.put(ann, "b", "k", b"new", match=match, none=none)
        with pytest.raises(ConditionFailed):
            room.delete(ann, "b", "k", match=[sha1(b"other")])
    assert room.get(ann, "b", "k") == b"old" and room.counts("b") == (3, 1)
    room.put(ann, "b", "k", b"new", match=[sha1(b"other"), old])
    room.delete(ann, "b", "k", match=[ANY])
    assert room.counts("b") == (0, 0)
    with pytest.raises(NoContent):
        room.delete(ann, "b", "k")


def test_a_condition_that_ceases_to_hold_while_the_blob_comes_is_seen_in_the_end(people: People):
    room, ann = people.room, people.ann
    room.bucket(ann, "b")

    coming = room.blobs.receive(ann, "b", "k", 4, Conditions(none=frozenset([ANY])))
    content = room.blobs.keep(coming, b"late")
    room.put(ann, "b", "k", b"first")
    with pytest.raises(ConditionFailed):
        room.blobs.commit(coming, content, sha1(b"late")).result(30)
    assert room.get(ann, "b", "k") == b"first" and room.counts("b") == (5, 1)
    assert room.comes_to(1)


# -- quotas ------------------------------------------------------------------------------------------------------------


def test_a_buckets_quota_holds_and_putting_again_takes_only_the_difference(simply: People):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b", quota=Quota(bytes=100, objects=2))
    room.put(ann, "b", "k", noise(100))
    room.put(ann, "b", "k", noise(100, 1))
    room.put(ann, "b", "empty", b"")
    for key, size in (("k", 101), ("other", 0), ("empty", 1)):
        for large in (False, True):
            with pytest.raises(QuotaFull):
                room.put(ann, "b", key, noise(size), size=None, large=large)
    assert room.counts("b") == room.used("ann") == (100, 2)
    room.put(ann, "b", "k", noise(40))
    room.put(ann, "b", "empty", noise(60))
    assert room.counts("b") == (100, 2)


def test_a_quota_made_smaller_than_what_is_there_lets_one_make_it_less(simply: People):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b")
    room.put(ann, "b", "k", noise(100))
    room.put(ann, "b", "l", noise(10))
    room.buckets.change(ann, "b", Quota(bytes=50, objects=1))
    room.put(ann, "b", "k", noise(90))
    room.put(ann, "b", "k", noise(90, 1))
    with pytest.raises(QuotaFull):
        room.put(ann, "b", "k", noise(91))
    room.delete(ann, "b", "l")
    assert room.counts("b") == room.used("ann") == (90, 1)


@pytest.mark.parametrize("size", [101, None])
def test_the_accounts_quota_holds_and_is_named(people: People, size: int | None):
    room, ann = people.room, people.ann
    people.house.directory.change(people.admin, "ann", {"quota_bytes": 100, "quota_objects": 3})
    room.bucket(ann, "b", quota=Quota(bytes=10_000))
    room.bucket(ann, "c")
    room.put(ann, "b", "k", noise(60))
    room.put(ann, "c", "k", noise(40))
    with pytest.raises(QuotaFull, match="of ann is full"):
        room.put(ann, "b", "k", noise(101), size=size, large=True)
    with pytest.raises(QuotaFull, match="of ann is full"):
        room.put(ann, "c", "l", b"x")
    room.put(ann, "c", "l", b"")
    with pytest.raises(QuotaFull):
        room.put(ann, "c", "m", b"")
    assert room.used("ann") == (100, 3)
    assert room.comes_to(2)


def test_who_writes_into_anothers_bucket_uses_its_owners_quota(simply: People):
    room, ann, ben = simply.room, simply.ann, simply.ben
    room.bucket(ann, "b")
    room.buckets.grant(ann, "b", {"ben": ["write"]})
    room.put(ben, "b", "k", noise(10))
    assert room.used("ann") == (10, 1) and room.used("ben") == (0, 0)


def test_many_at_once_do_not_pass_a_quota(people: People):
    room, ann = people.room, people.ann
    room.bucket(ann, "b", quota=Quota(bytes=1000))
    room.put(ann, "b", "k0", noise(100))

    def put(number: int) -> bool:
        try:
            room.put(ann, "b", f"k{number % 16}", noise(100, number), size=None)
        except QuotaFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(put, range(40)))
    assert room.counts("b") == room.used("ann") == (1000, 10)
    assert 10 <= done.count(True) < 40
    assert room.comes_to(10)


def test_a_blob_larger_than_any_may_be_is_refused_as_that(simply: People):
    simply.room.bucket(simply.ann, "b")
    with pytest.raises(TooLarge):
        simply.room.put(simply.ann, "b", "k", b"x", size=(1 << 30) + 1)


# -- what is left over -------------------------------------------------------------------------------------------------


def test_what_is_put_again_or_deleted_leaves_nothing_behind(simply: People):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b")
    for number in range(3):
        room.put(ann, "b", "k", noise(PIECE + 1, number))
    room.put(ann, "b", "l", b"")
    assert room.on_disk() == 6
    assert room.comes_to(2)
    room.delete(ann, "b", "k")
    room.delete(ann, "b", "l")
    assert room.comes_to(0)
    assert room.counts("b") == room.used("ann") == (0, 0)


PLANS: dict[str, Callable[[], list[Fault]]] = {
    "first": lambda: [fails("put", 1)],
    "third": lambda: [fails("put", 3)],
    "full": lambda: [fails("put", 2, StorageFull)],
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_put_that_failed_leaves_the_old_one_and_nothing_else(sqlite: Database, tmp_path: Path, plan: str):
    room = new_room(sqlite, tmp_path)
    try:
        ann = People(room).ann
        room.bucket(ann, "b")
        room.put(ann, "b", "k", b"old")
        harmed = Misbehaving(room.disk, PLANS[plan]())
        room.pieces._storage = harmed
        with pytest.raises((StorageUnavailable, StorageFull)) as told:
            room.put(ann, "b", "k", noise(4 * PIECE))
        assert str(tmp_path) not in str(told.value) and "data/" not in str(told.value)
        assert room.get(ann, "b", "k") == b"old" and room.counts("b") == room.used("ann") == (3, 1)
        assert room.comes_to(1)
    finally:
        room.stop()


@BOTH
def test_a_bucket_that_is_deleted_while_a_blob_comes_has_none(people: People, filesystem: str):
    room, ann = people.room, people.ann

    room.bucket(ann, "b", filesystem=filesystem)
    coming = room.blobs.receive(ann, "b", "k", 4, Conditions())
    content = room.blobs.keep(coming, b"late")
    room.buckets.delete(ann, "b")
    room.bucket(people.ben, "b")
    with pytest.raises(NoContent):
        room.blobs.commit(coming, content, sha1(b"late")).result(30)
    assert room.counts("b") == room.used("ben") == room.used("ann") == (0, 0)
    assert room.comes_to(0)


@BOTH
def test_buckets_of_an_account_that_was_deleted_are_emptied(people: People, filesystem: str):
    room, ann = people.room, people.ann
    room.bucket(ann, "b", filesystem=filesystem)
    room.buckets.grant(ann, "b", {"ben": ["read", "write", "list"]})
    for number in range(5):
        room.put(ann, "b", f"k{number}", noise(10, number))
    people.house.directory.delete(people.admin, "ann")
    for act in (lambda: room.get(people.ben, "b", "k0"), lambda: room.put(people.ben, "b", "k9", b"x")):
        with pytest.raises(NoContent):
            act()
    assert [bucket.name for bucket in room.buckets.listed(people.admin)] == []
    room.keeper.empty_given_up()
    assert room.comes_to(0)
    room.bucket(people.ben, "b")  # its name is free
    assert room.listed(people.ben, "b")[0] == []


def test_what_another_server_may_be_reading_stays_for_as_long_as_it_may_take(people: People):
    one = people.room
    other = Room(one.database, one.folder, one.repo, alone=False)
    try:
        other.now = one.now
        one.bucket(people.ann, "b")
        other.put(people.ann, "b", "k", b"old")
        other.put(people.ann, "b", "k", b"new")
        assert other.comes_to(2)
        other.now += LEASE_NS
        assert other.comes_to(1)
        assert one.get(people.ann, "b", "k") == b"new"
    finally:
        other.stop()


def test_a_blob_that_took_longer_than_its_place_was_kept_for_is_refused_not_lost(people: People):
    """Nobody renewed it for an hour; another server has taken it for left over."""

    one, ann = people.room, people.ann
    other = Room(one.database, one.folder, one.repo, alone=False)
    try:
        one.bucket(ann, "b")
        one.put(ann, "b", "k", b"old")
        coming = one.blobs.receive(ann, "b", "k", 4, Conditions())
        content = one.blobs.keep(coming, b"late")
        other.now = one.now + 2 * LEASE_NS
        assert other.keeper.remove_left() > 0
        with pytest.raises(StorageUnavailable):
            one.blobs.commit(coming, content, sha1(b"late")).result(30)
        assert one.get(ann, "b", "k") == b"old" and one.counts("b") == one.used("ann") == (3, 1)
    finally:
        other.stop()


def test_what_is_renewed_stays(simply: People):

    one, ann = simply.room, simply.ann
    other = Room(one.database, one.folder, one.repo, alone=False)
    try:
        one.bucket(ann, "b")
        coming = one.blobs.receive(ann, "b", "k", 4, Conditions())
        content = one.blobs.keep(coming, b"late")
        one.now += LEASE_NS // 2
        one.places.renew()
        other.now = one.now + LEASE_NS // 2 + 10
        other.keeper.remove_left()
        one.blobs.commit(coming, content, sha1(b"late")).result(30)
        assert one.get(ann, "b", "k") == b"late"
    finally:
        other.stop()


def test_what_cannot_be_removed_holds_up_nothing_else(simply: People):
    """Of a file system that is not set up any more, and of one where removing fails."""
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b")
    room.put(ann, "b", "k", b"old")
    with room.database.writing() as c:
        rows.add_leftovers(c, [Leftover(f"far{number:030}", "object", 1) for number in range(450)], 1)
        rows.add_leftovers(c, [Leftover(f"bad{number:030}", DISK, 1) for number in range(450)], 2)
    room.put(ann, "b", "k", b"new")
    real, asked = room.pieces.delete, list[str]()

    def delete(place: str, size: int | None) -> None:
        asked.append(place)
        if place.startswith("bad"):
            raise PermissionError(place)
        real(place, size)

    room.pieces.delete = delete  # type: ignore[method-assign]
    assert room.comes_to(1)
    assert room.get(ann, "b", "k") == b"new"
    assert len(asked) == len(set(asked)) == 451


def test_a_file_system_that_is_down_is_asked_once_in_each_round(simply: People):
    room = simply.room
    with room.database.writing() as c:
        rows.add_leftovers(c, [Leftover(f"place{number:030}", DISK, 1) for number in range(450)], 1)
    asked: list[str] = []

    def delete(place: str, size: int | None) -> None:
        asked.append(place)
        raise StorageUnavailable("down")

    room.pieces.delete = delete  # type: ignore[method-assign]
    room.keeper.remove_left()
    assert len(asked) == 1


def test_a_bucket_of_a_file_system_that_is_not_set_up_says_so(simply: People):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b")
    room.put(ann, "b", "k", b"x")
    del room.filesystems[DISK]
    with pytest.raises(StorageUnavailable, match="not set up"):
        room.put(ann, "b", "l", b"x")
    with pytest.raises(StorageUnavailable, match="not set up"):
        room.get(ann, "b", "k")
    room.delete(ann, "b", "k")
    room.buckets.delete(ann, "b")


# -- starting again ----------------------------------------------------------------------------------------------------


@BOTH
def test_after_a_restart_everything_is_there_and_what_was_left_goes(simply: People, filesystem: str):

    room, ann = simply.room, simply.ann
    room.bucket(ann, "b", filesystem=filesystem)
    room.put(ann, "b", "k", noise(MIB + 5))
    coming = room.blobs.receive(ann, "b", "k", None, Conditions())
    room.blobs.keep(coming, b"never committed")
    room.stop()
    room.start()
    room.keeper.remove_left()
    assert room.get(ann, "b", "k") == noise(MIB + 5)
    assert room.on_disk() == (1 if filesystem == DISK else 0)


# -- buckets and rights ------------------------------------------------------------------------------------------------


def test_a_buckets_name_is_given_once_also_to_many_at_once(people: People):
    room = people.room
    together = threading.Barrier(6)

    def create(number: int) -> bool:
        together.wait(30)
        try:
            room.buckets.create(people.ann if number % 2 else people.ben, "b", Policy())
        except Contradiction:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(create, range(6))).count(True) == 1


def test_only_empty_buckets_are_deleted(simply: People):
    room, ann = simply.room, simply.ann
    room.bucket(ann, "b")
    room.put(ann, "b", "k", b"")
    with pytest.raises(Contradiction):
        room.buckets.delete(ann, "b")
    room.delete(ann, "b", "k")
    room.buckets.delete(ann, "b")
    with pytest.raises(NoContent):
        room.buckets.about(ann, "b")


ACTS: dict[str, Callable[[Room, People], object]] = {
    "read": lambda room, people: room.get(people.ben, "b", "k"),
    "write": lambda room, people: (room.put(people.ben, "b", "l", b"x"), room.delete(people.ben, "b", "l")),
    "list": lambda room, people: room.listed(people.ben, "b"),
    "admin": lambda room, people: (
        room.buckets.change(people.ben, "b", Quota()),
        room.buckets.grants(people.ben, "b"),
        room.buckets.grant(people.ben, "b", {"ben": ["admin"]}),
    ),
}


@pytest.mark.parametrize("to", ["ben", "*"])
def test_a_grant_lets_one_do_just_that(people: People, to: str):
    people.room.bucket(people.ann, "b")
    people.room.put(people.ann, "b", "k", b"x")
    for granted in ACTS:
        may_just_do(people, granted, to)


def may_just_do(people: People, granted: str, to: str) -> None:
    room, ann = people.room, people.ann
    for act in ACTS.values():
        with pytest.raises(NoContent):
            act(room, people)  # it is not there for him
    assert room.buckets.grant(ann, "b", {to: [granted]}) == {to: [granted]}
    assert [bucket.name for bucket in room.buckets.listed(people.ben)] == ["b"]
    for name, act in ACTS.items():
        if name == granted:
            act(room, people)
        else:
            with pytest.raises(Forbidden):
                act(room, people)
    room.buckets.grant(ann, "b", {})
    for act in ACTS.values():
        with pytest.raises(NoContent):
            act(room, people)


def test_grants_to_nobody_there_are_refused_and_change_nothing(people: People):
    room, ann = people.room, people.ann
    room.bucket(ann, "b")
    room.buckets.grant(ann, "b", {"ben": ["read"]})
    for who in ["", "nobody", "a\0b", "\x80", "x" * 10_000, "ANN\n"]:
        with pytest.raises(NoAccount):
            room.buckets.grant(ann, "b", {"ben": ["write"], who: ["read"]})
    with pytest.raises(UsageError):
        room.buckets.grant(ann, "b", {"ben": ["fly"]})
    assert room.buckets.grants(ann, "b") == {"ben": ["read"]}


def test_administrators_make_buckets_for_others_and_nobody_else_does(people: People):
    room = people.room
    policy = Policy(owner=Owner(Email("ANN@example.org")))
    assert room.buckets.create(people.admin, "b", policy).username == "ann"
    assert room.buckets.create(people.ann, "c", policy).username == "ann"
    with pytest.raises(Forbidden):
        room.buckets.create(people.ben, "d", policy)
    for nobody in ("x@example.org", "a\0@example.org"):
        with pytest.raises(NoAccount):
            room.buckets.create(people.admin, "e", Policy(owner=Owner(Email(nobody))))


def test_a_bucket_in_a_file_system_that_is_not_there_is_refused(simply: People):
    for filesystem in ["object", "tape", "\0"]:
        with pytest.raises(UsageError):
            simply.room.bucket(simply.ann, "b", filesystem=filesystem)


def test_a_quota_that_is_none_is_refused(simply: People):
    for quota in [Quota(bytes=-1), Quota(objects=-1), Quota(bytes=1 << 63), Quota(objects=1 << 200)]:
        with pytest.raises(UsageError):
            simply.room.bucket(simply.ann, "b", quota=quota)


def test_policies_in_a_folder_make_buckets_once(simply: People, tmp_path: Path):
    folder = tmp_path / "policies"
    folder.mkdir()
    owner = '"owner": {"email": {"Address": "ann@example.org", "Name": "Ann"}}'
    (folder / "one.json").write_text(f'{{"name": "first", {owner}, "quota": {{"bytes": 10}}}}')
    (folder / "second.entpolicy").write_text(f"{{{owner}}}")
    (folder / "notes.txt").write_text("no policy")
    for _ in range(2):
        simply.room.buckets.apply_policies(str(folder))
    found = {bucket.name: bucket for bucket in simply.room.buckets.listed(simply.ann)}
    assert found.keys() == {"first", "second"} and found["first"].quota_bytes == 10
    simply.room.buckets.change(simply.ann, "first", Quota(bytes=20))
    simply.room.buckets.apply_policies(str(folder))
    assert simply.room.buckets.about(simply.ann, "first").bucket.quota_bytes == 20


WRONG = ["", "[]", '{"owner": 1}', '{"nome": "x"}', "{}", '{"owner": {"email": {"Address": "x@example.org"}}}', "\xff"]


def test_a_policy_that_cannot_be_applied_names_its_file(simply: People, tmp_path: Path):
    folder = tmp_path / "policies"
    folder.mkdir()
    for policy in WRONG:
        (folder / "wrong.json").write_bytes(policy.encode("latin-1"))
        with pytest.raises(UsageError, match=r"wrong\.json"):
            simply.room.buckets.apply_policies(str(folder))


def test_a_folder_of_policies_that_is_not_there_is_named(simply: People, tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere"):
        simply.room.buckets.apply_policies(str(tmp_path / "nowhere"))


def test_errors_name_what_they_are_about_and_no_file_of_the_server(simply: People):
    room = simply.room
    room.bucket(simply.ann, "b")
    with pytest.raises(HoldfastError, match="'k' in the bucket 'b'"):
        room.get(simply.ann, "b", "k")
    with pytest.raises(HoldfastError, match="no bucket 'c'"):
        room.get(simply.ann, "c", "k")
