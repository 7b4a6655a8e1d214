"""Sorting on disk."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from holdfast.shelf import sorting
from holdfast.shelf.sorting import sorted_on_disk

decode = msgspec.msgpack.Decoder(tuple[int, bytes]).decode


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 95, 1000])
def test_any_number_comes_back_in_order(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sorting, "AT_ONCE", 10)
    monkeypatch.setattr(sorting, "FILES", 4)
    rng = random.Random(count)
    items = [(rng.randrange(100), rng.randbytes(3)) for _ in range(count)]
    assert list(sorted_on_disk(items, decode, str(tmp_path))) == sorted(items)
    assert os.listdir(tmp_path) == []


def test_few_files_are_open_however_many_items_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sorting, "AT_ONCE", 10)
    before = len(os.listdir("/proc/self/fd"))
    items = sorted_on_disk(((n * 7919 % 10_007, b"") for n in range(10_000)), decode, str(tmp_path))
    next(items)
    assert len(os.listdir("/proc/self/fd")) - before <= sorting.FILES + 1
