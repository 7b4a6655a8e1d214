"""What is kept of a storage far away, and never believed."""

from __future__ import annotations

import os

import pytest

from holdfast.errors import ObjectMissing
from holdfast.storage.caching import KEPT_DAYS, Caching, clear_old, pages_of
from tests.storage.writing import an_object
from tests.support.storages import Counting, MemoryStorage, list_of


@pytest.fixture
def inner():
    return Counting(MemoryStorage())


@pytest.fixture
def cached(inner, tmp_path):
    return Caching(inner, tmp_path / "cache")


def files_in(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("folder", ["index", "snapshots", "keys"])
def test_what_was_fetched_once_is_not_fetched_again_by_anybody_on_this_machine(cached, inner, tmp_path, folder):
    name, data = an_object(folder)
    inner.put(name, [data])
    for client in (cached, cached, Caching(inner, tmp_path / "cache")):
        assert client.get(name) == data
    assert inner.calls["get"] == 1


def test_what_was_stored_from_here_is_not_fetched(cached, inner):
    name, data = an_object("index")
    cached.put(name, [data[:20], data[20:]])
    assert cached.get(name) == data
    assert inner.calls["get"] == 0


@pytest.mark.parametrize("name", ["config", "locks/" + "ab" * 32, "data/" + "ab" * 32])
def test_everything_else_is_always_asked_for(cached, inner, name):
    inner.put(name, [b"content"])
    assert cached.get(name) == cached.get(name) == b"content"
    assert cached.get(name, 1, 2) == cached.get(name, 1, 2) == b"on"
    assert inner.calls["get"] == 4


def test_what_does_not_hash_to_its_name_is_not_kept(cached, inner):
    name = "index/" + "ab" * 32
    inner.put(name, [b"damaged"])
    assert cached.get(name) == cached.get(name) == b"damaged"
    assert inner.calls["get"] == 2


def test_a_damaged_cache_is_not_believed(cached, inner, tmp_path):
    name, data = an_object("index")
    pack, content = an_object("data", 1000)
    whole, pages = an_object("data", 1000)
    inner.put(name, [data])
    inner.put(pack, [content])
    cached.pages.put(whole, [pages])
    cached.get(name)
    cached.pages.get(pack, 100, 50)
    found = files_in(tmp_path / "cache")
    assert len(found) == 3
    for path in found:
        spoiled = bytearray(path.read_bytes())
        spoiled[10] ^= 1
        path.write_bytes(spoiled)
    fresh = Caching(inner, tmp_path / "cache")
    assert fresh.get(name) == data
    assert fresh.pages.get(pack, 100, 50) == content[100:150]
    assert fresh.pages.get(whole, 100, 50) == pages[100:150]


def test_a_cache_that_cannot_be_written_to_is_no_error(inner, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cached = Caching(inner, tmp_path / "cache")
    name, data = an_object("index")
    inner.put(name, [data])
    assert cached.get(name) == data
    assert [i.name for i in list_of(cached, "index")] == [name]
    cached.pages.put("data/" + "ab" * 32, [b"x"])
    clear_old(tmp_path / "cache", 0)


def test_what_is_deleted_from_the_storage_leaves_the_cache(cached, inner, tmp_path):
    names = []
    for _ in range(3):
        name, data = an_object("snapshots")
        inner.put(name, [data])
        cached.get(name)
        names.append(name)
    cached.delete(names[0])
    inner.delete(names[1])
    list_of(cached, "snapshots")
    assert [p.name for p in files_in(tmp_path / "cache")] == [names[2][10:]]
    with pytest.raises(ObjectMissing):
        cached.get(names[0])


def test_pages_are_kept_by_the_piece_and_whole_where_they_were_stored_from_here(cached, inner):
    one, data = an_object("data", 1000)
    inner.put(one, [data])
    other, content = an_object("data", 1000)
    pages = pages_of(cached)
    pages.put(other, [content[:300], content[300:]])
    for _ in range(2):
        assert pages.get(one, 10, 20) == data[10:30]
        assert pages.get(other, 10, 20) == content[10:30]
        assert pages.get(other, 900, 100) == content[900:]
    assert inner.calls["get"] == 1


def test_pages_that_nobody_used_for_long_go(cached, inner, tmp_path):
    folder, now = tmp_path / "cache", 2_000_000_000
    for age_days in (1, KEPT_DAYS + 1):
        before = files_in(folder)
        name, data = an_object("data")
        inner.put(name, [data])
        cached.pages.get(name, 0, 10)
        (new,) = set(files_in(folder)) - set(before)
        os.utime(new, (now - age_days * 86400,) * 2)
    clear_old(folder, now)
    assert len(files_in(folder / "pages")) == 1
    name, data = an_object("data")
    inner.put(name, [data])
    cached.pages.get(name, 0, 10)
    for path in files_in(folder / "pages"):
        os.utime(path, (0, 0))
    os.utime(folder / "cleared", (now - 3600,) * 2)
    clear_old(folder, now)  # only once a day
    assert len(files_in(folder / "pages")) == 2
