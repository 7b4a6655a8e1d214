"""A limit of bandwidth holds over the time of a few objects."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from holdfast.storage.limiting import Limiting
from tests.storage.writing import an_object
from tests.support.storages import MemoryStorage


def test_what_is_sent_by_all_threads_together_stays_below_the_limit():
    storage = Limiting(MemoryStorage(), up=1_000_000, down=0)
    objects = [an_object(size=50_000) for _ in range(11)]
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda o: storage.put(o[0], [o[1]]), objects))
    assert time.monotonic() - began >= 0.5
    assert all(storage.get(name) == data for name, data in objects)


def test_what_is_got_stays_below_its_own_limit_whole_or_in_pieces():
    storage = Limiting(MemoryStorage(), up=0, down=1_000_000)
    name, data = an_object(size=100_000)
    storage.put(name, [data])
    began = time.monotonic()
    for _ in range(3):
        storage.get(name)
        storage.get(name, 0, 100_000)
    assert time.monotonic() - began >= 0.5


def test_without_a_limit_nobody_waits():
    storage = Limiting(MemoryStorage(), up=0, down=0)
    name, data = an_object(size=10_000_000)
    storage.put(name, [data])
    assert storage.get(name) == data


def test_leases_and_the_like_do_not_wait_behind_packs():
    storage = Limiting(MemoryStorage(), up=1000, down=0)
    storage.put(*_as_parts(an_object(size=50_000)))
    began = time.monotonic()
    storage.put(*_as_parts(an_object("locks", size=300)))
    assert time.monotonic() - began < 10


def _as_parts(made):
    return made[0], [made[1]]
