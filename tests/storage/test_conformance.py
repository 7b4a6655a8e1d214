"""What every storage promises (holdfast.storage.base), over every storage there is (PLACES in conftest.py)."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.errors import ObjectExists, ObjectMissing, StorageError, StorageUnavailable
from holdfast.storage.base import CONFIG, FOLDERS
from tests.storage.writing import an_object, another_writer, endless_objects, named
from tests.support.storages import list_of


def refused(call, *args) -> bool:
    """Whether the call is an error that speaks of the question, not of the object."""
    try:
        call(*args)
    except StorageError as e:
        return not isinstance(e, ObjectMissing | ObjectExists)
    return False


def names_in(storage, folder: str) -> set[str]:
    return {info.name for info in storage.list(folder)}


# -- what is put is there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_was_put_is_got_listed_and_known_by_every_client(place, folder):
    name, data = an_object(folder)
    place.storage.put(name, [data])
    for client in (place.storage, place.again()):
        assert client.get(name) == data
        assert client.stat(name).size == len(data)
        assert [(i.name, i.size) for i in client.list(folder)] == [(name, len(data))]


def test_the_config_is_an_object_that_no_folder_lists(place):
    place.storage.put(CONFIG, [b"config"])
    assert place.storage.get(CONFIG) == b"config"
    assert place.storage.stat(CONFIG).size == 6
    assert all(not list_of(place.storage, folder) for folder in FOLDERS)


def test_an_empty_object_is_an_object(place):
    name, _ = an_object(size=0)
    place.storage.put(name, [])
    assert place.storage.get(name) == b""
    assert place.storage.get(name, 0, 0) == b""
    assert place.storage.stat(name).size == 0


def test_thousands_of_parts_of_every_kind_of_buffer_are_joined(place):
    piece = bytes(range(256))
    wide = memoryview(bytearray(piece)).cast("I")  # its len() is not its size
    parts = [piece, bytearray(piece), memoryview(piece)[3:7], b"", wide] * 700
    whole = b"".join(bytes(p) for p in parts)
    assert len(parts) > 3 * 1024
    place.storage.put(named(whole), parts)
    assert place.storage.get(named(whole)) == whole


def test_a_large_object_comes_back_exactly(place):
    data = os.urandom(1 << 20) * 9
    place.storage.put(named(data), [memoryview(data)[:7], memoryview(data)[7:]])
    assert place.storage.get(named(data)) == data


def test_the_callers_buffer_may_be_used_again_after_a_put(place):
    buffer = bytearray(b"first content")
    place.storage.put(named(bytes(buffer)), [buffer])
    buffer[:] = b"other content"
    assert place.storage.get(named(b"first content")) == b"first content"


def test_stored_times_are_of_the_storages_clock_and_do_not_run_backwards(place):
    names = []
    for _ in range(3):
        name, data = an_object("locks")
        place.storage.put(name, [data])
        names.append(name)
        time.sleep(0.02)
    times = [place.storage.stat(name).stored_ns for name in names]
    assert times == sorted(times)
    if place.address:
        assert set(times) == {0} or all(abs(t - time.time_ns()) < 60_000_000_000 for t in times)
    assert {i.name: i.stored_ns for i in place.storage.list("locks")} == dict(zip(names, times, strict=True))


# -- ranges ----------------------------------------------------------------------------------------------------------


def test_a_range_is_exactly_what_was_asked_for(place):
    data = b"0123456789"
    place.storage.put(named(data), [data])
    for start, length in [(0, None), (0, 1), (3, 4), (9, 1), (0, 10), (5, None), (10, None), (10, 0), (0, 0)]:
        expected = data[start : 10 if length is None else start + length]
        assert place.storage.get(named(data), start, length) == expected, (start, length)


def test_beyond_the_end_there_is_an_error_and_not_fewer_bytes(place):
    data = b"0123456789"
    place.storage.put(named(data), [data])
    for start, length in [(0, 11), (9, 2), (10, 1), (11, 0), (11, None), (1 << 40, 1), (0, 1 << 40)]:
        assert refused(place.storage.get, named(data), start, length), (start, length)


def test_what_is_no_range_is_refused(place):
    data = b"0123456789"
    place.storage.put(named(data), [data])
    for start, length in [(-1, None), (-1, 1), (0, -1), (5, -5)]:
        assert refused(place.storage.get, named(data), start, length), (start, length)


# -- never replacing, deleting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, "keys/" + "ab" * 32, "data/" + "ab" * 32])
def test_a_second_put_is_refused_and_changes_nothing(place, name):
    place.storage.put(name, [b"first"])
    before = place.storage.stat(name)
    for client in (place.storage, place.again()):
        with pytest.raises(ObjectExists):
            client.put(name, [b"second, and longer"])
    assert place.storage.get(name) == b"first"
    assert place.storage.stat(name) == before


def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(place):
    name, data = an_object()
    place.storage.put(name, [data])
    for _ in range(2):
        place.storage.delete(name)
        assert list_of(place.storage, "data") == []
        with pytest.raises(ObjectMissing):
            place.storage.get(name)


def test_a_deleted_name_can_be_put_again(place):
    name, data = an_object("locks")
    for _ in range(2):
        place.storage.put(name, [data])
        place.storage.delete(name)
    assert list_of(place.storage, "locks") == []


def test_what_is_missing_is_missing_for_get_and_stat(place):
    for name in (CONFIG, "data/" + "00" * 32, "snapshots/" + "00" * 32):
        with pytest.raises(ObjectMissing):
            place.storage.get(name)
        with pytest.raises(ObjectMissing):
            place.storage.get(name, 5, 5)
        with pytest.raises(ObjectMissing):
            place.storage.stat(name)


def test_free_space_is_a_number_or_unknown(place):
    free = place.storage.free_space()
    assert free is None or free > 0


def test_the_place_has_a_name(place):
    assert place.storage.place


# -- names -----------------------------------------------------------------------------------------------------------

HEX = "ab" * 32
HOSTILE = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "config/",
    "config\n",
    "Config",
    "/config",
    "../config",
    "data",
    "data/",
    "data/.",
    "data/..",
    f"../data/{HEX}",
    f"data/../{HEX}",
    f"data/../../{HEX}",
    f"data//{HEX}",
    f"data/{HEX}/",
    f"data/{HEX}\n",
    f"data/{HEX}\0",
    f"\0data/{HEX}",
    f"data/{HEX[:-1]}",
    f"data/{HEX}0",
    f"data/{HEX[:-1]}g",
    f"data/{HEX[:-1]}/",
    f"data/{HEX[:-2]}..",
    f"data/{HEX.upper()}",
    f"data/{HEX[:2]}/{HEX}",
    f"data/{HEX[:-1]}٣",
    f"DATA/{HEX}",
    f"tmp/{HEX}",
    f"other/{HEX}",
    f"data\\{HEX}",
    f"data/%2e%2e/{HEX}",
    f"{HEX}",
    f" data/{HEX}",
]


def test_a_name_that_no_object_has_reaches_nothing(place):
    storage = place.storage
    for name in HOSTILE:
        assert refused(storage.put, name, [b"x"]), name
        for call in (storage.get, storage.stat, storage.delete):
            assert refused(call, name), (call, name)
    assert all(not list_of(storage, folder) for folder in FOLDERS)


def test_only_the_folders_there_are_can_be_listed(place):
    for folder in ["", ".", "..", "/", "data/", "Data", "tmp", "config", "data/ab", "../data", "\0"]:
        assert refused(list_of, place.storage, folder), folder


# -- listings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["data", "snapshots"])
def test_more_than_ten_thousand_names_are_all_listed_once(place, folder):
    names = {f"{folder}/{hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(10_300)}
    place.fill(names)
    listed = [i.name for i in place.storage.list(folder)]
    assert len(listed) == len(names)
    assert set(listed) == names


def test_a_listing_goes_on_while_objects_come_and_go(place):
    kept = {f"data/{hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(1000)}
    place.fill(kept)
    stop = threading.Event()

    def restless():
        while not stop.is_set():
            name, data = an_object()
            place.storage.put(name, [data])
            place.storage.delete(name)

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(restless) for _ in range(2)]
        try:
            for _ in range(10):
                assert kept <= names_in(place.storage, "data")
        finally:
            stop.set()
        for future in done:
            future.result()
    assert names_in(place.storage, "data") == kept


# -- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_reader_never_sees_a_part_of_an_object(place):
    objects = dict(an_object(size=3_000_000) for _ in range(8))
    stop, seen = threading.Event(), set()

    def look(client):
        while not stop.is_set():
            for info in client.list("data"):
                assert info.size == len(objects[info.name]) or not place.whole
            for name, data in objects.items():
                try:
                    assert client.get(name, len(data) - 1) == data[-1:]
                    assert client.get(name) == data
                    seen.add(name)
                except ObjectMissing:
                    pass
                except (AssertionError, StorageError):
                    assert not place.whole

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look, place.again())
        try:
            for name, data in objects.items():
                view = memoryview(data)
                place.storage.put(name, [view[i : i + 100_000] for i in range(0, len(data), 100_000)])
            end = time.monotonic() + 30
            while not seen and time.monotonic() < end and not looking.done():
                time.sleep(0.01)
        finally:
            stop.set()
        looking.result()
    assert seen


def test_a_writer_killed_at_any_moment_leaves_no_part_of_an_object(place, forked):
    if not place.outlives_process:
        return
    random_moments = random.Random(4)

    def write():
        for name, data in endless_objects(random_moments):
            place.storage.put(name, [data[:5], data[5:]])

    found = 0
    for _ in range(12 if not place.address else 4):
        if place.address:  # threads of a library do not survive a fork
            with another_writer(place.address, place.access) as pid:
                time.sleep(random_moments.uniform(0.005, 0.3))
                os.kill(pid, signal.SIGKILL)
        else:
            pid = forked(write)
            time.sleep(random_moments.uniform(0.005, 0.05))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for folder in FOLDERS:
            for info in place.storage.list(folder):
                data = place.storage.get(info.name)
                assert named(data, folder) == info.name or not place.whole
                found += 1
                place.storage.delete(info.name)
    assert found


# -- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, "data/" + HEX])
def test_of_many_who_put_one_name_exactly_one_wins(place, name):
    clients = [place.again() for _ in range(16)]
    for _ in range(5):
        start = threading.Barrier(len(clients))

        def put(number, start=start):
            start.wait()
            try:
                clients[number].put(name, [b"%d" % number] * 1000)
            except ObjectExists:
                return None
            except StorageUnavailable:
                assert not place.whole
                return None
            return number

        with ThreadPoolExecutor(len(clients)) as pool:
            winners = [n for n in pool.map(put, range(len(clients))) if n is not None]
        assert len(winners) == 1 if place.one_wins else winners
        if place.whole:  # elsewhere, those who came together may even have undone each other's
            assert place.storage.get(name) in {b"%d" % number * 1000 for number in winners}
        place.storage.delete(name)


def test_one_client_serves_many_threads(place):
    objects = dict(an_object(FOLDERS[i % 5], 1000 + i) for i in range(200))

    def work(item):
        name, data = item
        place.storage.put(name, [data])
        assert place.storage.get(name) == data
        assert place.storage.get(name, 10, 20) == data[10:30]
        return place.storage.stat(name).size == len(data)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, objects.items()))
    assert set().union(*(names_in(place.storage, folder) for folder in FOLDERS)) == set(objects)
