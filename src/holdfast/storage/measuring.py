"""How quick a storage is, as Holdfast uses it: questions, small objects, packs, listings.

Everything that is stored for it is random, in an empty place, and deleted again, also after an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from holdfast.errors import ObjectMissing, StorageError, UsageError
from holdfast.storage.base import CONFIG, FOLDERS, Storage

PACK = 16 << 20


@dataclass(frozen=True)
class Figure:
    """One thing measured: ``value`` in ``unit``, ``count`` times."""

    name: str
    value: float
    unit: str
    count: int


def measure(storage: Storage, packs: int = 8, smalls: int = 64) -> Iterator[Figure]:
    """Measure a storage that holds no repository, one figure after the other. UsageError when it holds one."""
    storage.create()
    _need_empty(storage)
    made: list[str] = []
    try:
        yield from _measure(storage, made, packs, smalls)
    finally:
        with contextlib.suppress(StorageError):
            _each(storage, storage.delete, made)


def _measure(storage: Storage, made: list[str], packs: int, smalls: int) -> Iterator[Figure]:
    large = _objects(made, packs, PACK)
    small = _objects(made, smalls, 1024)
    yield _one_by_one("latency of a question", lambda name: _missing(storage, name), ["data/" + "00" * 32] * 20)
    yield _one_by_one("latency of a small put", lambda name: storage.put(name, [small[name]]), list(small)[:10])
    took = _each(storage, lambda name: storage.put(name, [small[name]]), list(small)[10:])
    yield Figure("small puts", (len(small) - 10) / took, "/s", len(small) - 10)
    took = _each(storage, lambda name: storage.put(name, [large[name]]), large)
    yield Figure("put of packs", packs * PACK / took, "B/s", packs)
    took = _each(storage, lambda name: _got(storage, name, large[name]), large)
    yield Figure("get of packs", packs * PACK / took, "B/s", packs)
    yield _one_by_one("latency of a small get", lambda name: storage.get(name, 0, 512), list(small)[:20])
    began = time.perf_counter()
    count = sum(1 for _ in storage.list("data"))
    if count != packs + smalls:
        raise StorageError(f"{storage.place} lists {count} objects of {packs + smalls}: it is not to be relied on.")
    yield Figure("a listing", time.perf_counter() - began, "s", 1)
    took = _each(storage, storage.delete, made)
    yield Figure("deletions", len(made) / took, "/s", len(made))
    made.clear()


def _need_empty(storage: Storage) -> None:
    with contextlib.suppress(ObjectMissing):
        storage.stat(CONFIG)
        raise UsageError(
            f"There is a repository at {storage.place}.", "Name an empty place beside it: another folder or prefix."
        )
    if any(True for folder in FOLDERS for _ in storage.list(folder)):
        raise UsageError(f"{storage.place} is not empty.", "Name an empty place: another folder or prefix.")


def _objects(made: list[str], count: int, size: int) -> dict[str, bytes]:
    found = {}
    for _ in range(count):
        data = os.urandom(size)
        found[f"data/{hashlib.sha256(data).hexdigest()}"] = data
    made += found
    return found


def _missing(storage: Storage, name: str) -> None:
    with contextlib.suppress(ObjectMissing):
        storage.stat(name)


def _got(storage: Storage, name: str, data: bytes) -> None:
    if storage.get(name) != data:
        raise StorageError(f"{storage.place} gives back something else than was stored: it is not to be relied on.")


def _one_by_one(what: str, ask: Callable[[str], object], names: list[str]) -> Figure:
    times = []
    for name in names:
        began = time.perf_counter()
        ask(name)
        times.append(time.perf_counter() - began)
    return Figure(what, median(times), "s", len(names))


def _each(storage: Storage, ask: Callable[[str], object], names: Iterable[str]) -> float:
    """Ask for all of them, as many at once as the storage has connections; seconds."""
    began = time.perf_counter()
    with ThreadPoolExecutor(storage.connections) as pool:
        list(pool.map(ask, names))
    return max(time.perf_counter() - began, 1e-9)
