"""One suite over every file system of blobs: on disk, in object stores (S3, Swift), in the repository."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.blobs.filesystems import SMALL, Content
from holdfast.blobs.pieces import BLOCK, DIGEST, PIECE, Pieces, object_of
from holdfast.errors import Damaged, HoldfastError, ObjectMissing, StorageError, StorageFull, StorageUnavailable
from holdfast.storage.local import LocalStorage
from holdfast.storage.retrying import Patience, Retrying
from tests.blobs.making import SIZES, Kind, noise, where
from tests.support.storages import Fault, Misbehaving, fails, flips_bit, loses_answer, truncates

# -- what every one of them does ---------------------------------------------------------------------------------------


def test_what_is_kept_at_one_go_is_read_again(kind: Kind):
    is_read_again(kind, {size: kind.create(noise(size)) for size in SIZES if size <= SMALL})


def test_what_comes_in_pieces_is_read_again(kind: Kind):
    is_read_again(kind, {size: kind.create(noise(size), 3, 1000) for size in SIZES})


def is_read_again(kind: Kind, contents: dict[int, Content]) -> None:
    kind.files = kind.again()
    for size, content in contents.items():
        assert content.size == size
        assert kind.read(content) == noise(size), size


def test_every_range_is_just_those_bytes(kind: Kind):
    data = noise(2 * PIECE + BLOCK + 5)
    content = kind.create(data, 1)
    edges = [0, BLOCK - 1, BLOCK, PIECE, PIECE + 1, 2 * PIECE, len(data)]
    for start in edges:
        for stop in edges:
            if start < stop:
                assert kind.read(content, start, stop) == data[start:stop], (start, stop)


def test_contents_never_mix_also_when_they_come_at_once(kind: Kind):
    some = [noise(PIECE + number * BLOCK, number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        contents = list(pool.map(lambda data: kind.create(data, SMALL), some))
        assert list(pool.map(kind.read, contents)) == some


def test_the_same_bytes_twice_are_two_contents(kind: Kind):
    data = noise(BLOCK + 1)
    first, second = kind.create(data), kind.create(data)
    kind.files.delete(first.place, first.size)
    assert kind.read(second) == data


def test_who_does_not_read_to_the_end_leaves_nothing_open(kind: Kind):
    data = noise(3 * PIECE)
    content = kind.create(data, SMALL)
    for _ in range(5):
        with contextlib.closing(kind.files.pieces(content, 0, len(data))) as pieces:
            assert data.startswith(next(pieces))


def test_what_is_given_up_can_be_removed_and_others_stay(kind: Kind):
    before = kind.create(noise(10))
    at = where()
    draft = kind.files.begin(at)
    for number in range(10):
        draft.offer(noise(SMALL, number)).result(60)
    with contextlib.suppress(HoldfastError):
        draft.abandon().result(60)
    kind.files.delete(at.place, None)
    if kind.shelf is None:  # in the repository `prune` frees what no snapshot names
        assert kind.objects() == [object_of(before.place, 0)]
    assert kind.read(before) == noise(10)


def test_flipped_bytes_are_noticed_and_never_given_back(kind: Kind):
    data = noise(BLOCK * 2 + 5)
    content = kind.create(data)
    name = max(kind.objects(), key=lambda one: kind.storage.stat(one).size)
    stored = kind.storage.get(name)
    for at in (BLOCK - 1, BLOCK, len(data) // 2, len(data) - 6):
        changed = bytearray(stored)
        changed[at] ^= 0x10
        kind.change(name, bytes(changed))
        with pytest.raises(Damaged):
            kind.read(content)


def test_what_was_cut_off_or_is_missing_is_noticed(kind: Kind):
    data = noise(BLOCK * 2 + 5)
    content = kind.create(data)
    name = max(kind.objects(), key=lambda one: kind.storage.stat(one).size)
    stored = kind.storage.get(name)
    for length in (len(data) - 10, BLOCK, 1, 0):
        kind.change(name, stored[:length])
        with pytest.raises((Damaged, StorageError)):
            kind.read(content)
    kind.storage.delete(name)
    kind.files = kind.again()
    with pytest.raises((ObjectMissing, Damaged)):
        kind.read(content)


# -- those that cut contents into pieces -------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Kind]:
    storage = LocalStorage(tmp_path / "blobs")
    storage.create()
    with contextlib.closing(Pieces(storage)) as files:
        yield Kind(files, storage, lambda: files)


def over(disk: Kind, *plan: Fault) -> Kind:
    """The same with a storage that misbehaves before it."""
    return Kind(Pieces(Misbehaving(disk.storage, plan)), disk.storage, lambda: disk.files)


def test_deleting_removes_every_piece_and_twice_does_no_harm(kind: Kind):
    if kind.shelf is not None:
        return  # `prune` does
    content = kind.create(noise(2 * PIECE + 1), SMALL)
    assert len(kind.objects()) == 3
    for _ in range(2):
        kind.files.delete(content.place, content.size)
        assert kind.objects() == []
    with pytest.raises(ObjectMissing):
        kind.read(content)


def test_a_byte_that_is_wrong_in_any_region_is_noticed_by_every_range_over_it(disk: Kind):
    data = noise(PIECE + BLOCK + 7)
    content = disk.create(data, SMALL)
    for number, length in ((0, PIECE), (1, BLOCK + 7)):
        name = object_of(content.place, number)
        stored = disk.storage.get(name)
        digests = -(-length // BLOCK)
        assert len(stored) == length + digests * DIGEST
        for at in (0, BLOCK - 1, BLOCK, length - 1, length, length + DIGEST, len(stored) - 1):
            changed = bytearray(stored)
            changed[at] ^= 1
            disk.change(name, bytes(changed))
            block = min(at // BLOCK if at < length else (at - length) // DIGEST, digests - 1)
            begin = number * PIECE + block * BLOCK
            with pytest.raises(Damaged):
                disk.read(content, begin, begin + 1)
            with pytest.raises(Damaged):
                disk.read(content)
        disk.change(name, stored)
    assert disk.read(content) == data


def test_blocks_pieces_and_contents_in_each_others_places_are_noticed(disk: Kind):
    content, other = disk.create(noise(2 * PIECE, 1), SMALL), disk.create(noise(2 * PIECE, 2), SMALL)
    first, second = (disk.storage.get(object_of(content.place, number)) for number in range(2))
    theirs = disk.storage.get(object_of(other.place, 0))
    swapped = first[BLOCK : 2 * BLOCK] + first[:BLOCK] + first[2 * BLOCK : PIECE]
    digests = first[PIECE + DIGEST : PIECE + 2 * DIGEST] + first[PIECE : PIECE + DIGEST] + first[PIECE + 2 * DIGEST :]
    for wrong in (second, theirs, swapped + digests):
        disk.change(object_of(content.place, 0), wrong)
        with pytest.raises(Damaged):
            disk.read(content, 0, 1)


def test_a_content_that_was_cut_off_is_damaged_whatever_is_read_of_it(disk: Kind):
    content = disk.create(noise(PIECE), SMALL)
    stored = disk.storage.get(object_of(content.place, 0))
    for length in (PIECE, PIECE - 1, BLOCK, 0):
        disk.change(object_of(content.place, 0), stored[:length])
        for start, stop in ((0, 1), (PIECE - 1, PIECE), (0, PIECE)):
            with pytest.raises(Damaged):
                disk.read(content, start, stop)


def test_a_storage_that_gives_wrong_bytes_or_too_few_is_not_believed(disk: Kind):
    data = noise(PIECE + 5)
    content = disk.create(data, SMALL)
    for fault in (flips_bit(), flips_bit(bit=8 * (PIECE - 1)), truncates(), truncates(by=BLOCK), flips_bit(nth=2)):
        with pytest.raises(Damaged):
            over(disk, fault).read(content)
    assert over(disk).read(content) == data


@pytest.mark.parametrize("nth", [1, 2, 3, 5])
@pytest.mark.parametrize("error", [StorageUnavailable, StorageFull])
def test_a_storage_that_fails_is_told_and_what_came_can_be_removed(disk: Kind, nth: int, error: type[StorageError]):
    files, at = over(disk, fails("put", nth, error)).files, where()
    draft = files.begin(at)
    with pytest.raises(error):
        for number in range(20):
            draft.offer(noise(SMALL, number)).result(60)
        draft.ended().result(60)
    with pytest.raises(error):
        draft.abandon().result(60)
    files.delete(at.place, None)
    assert disk.objects() == []


def test_an_answer_that_is_lost_is_asked_for_again(disk: Kind):
    data = noise(2 * PIECE)
    patient = Retrying(Misbehaving(disk.storage, [loses_answer("put", times=2)]), Patience(5.0, 5.0))
    content = Kind(Pieces(patient), disk.storage, lambda: disk.files).create(data, SMALL)
    assert disk.read(content) == data


@pytest.mark.parametrize("removed", [1, 6, 7, 8, 20])
def test_removing_what_is_not_known_goes_on_where_it_broke_off(disk: Kind, removed: int):
    """The server may be killed, or the storage fail, in the middle of it."""
    at = where()
    for number in range(21):
        disk.storage.put(object_of(at.place, number), [b"x"])
    with pytest.raises(StorageUnavailable):
        over(disk, fails("delete", removed + 1)).files.delete(at.place, None)
    assert len(disk.objects()) == 21 - removed
    disk.files.delete(at.place, None)
    assert disk.objects() == []


def test_memory_does_not_grow_with_what_is_read_or_written(disk: Kind):
    """At most three pieces come in at once, and a few go out: so many are ever held."""
    held = Misbehaving(disk.storage)
    files, at = Pieces(held), where()
    draft = files.begin(at)
    for number in range(64):
        draft.offer(noise(SMALL, number)).result(60)
    content: Content
    content, _ = draft.ended().result(60)
    with contextlib.closing(files.pieces(content, 0, content.size)) as pieces:
        next(pieces)
        assert sum(step.kind == "get" for step in held.steps) <= 2  # nothing is read long before it is asked for
