"""Content is cut at places that depend on nothing but the content."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.repository import chunking
from holdfast.repository.chunking import WINDOW, Cutter
from holdfast.repository.format import CHUNK_MAX, SMALL_MAX, Chunker
from tests.repository.making import reading, some_bytes

TINY = Chunker(min_size=64, avg_size=256, max_size=1024)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cutter(monkeypatch: pytest.MonkeyPatch) -> Cutter:
    """Cuts in small sizes through a small window, so that little content meets every edge."""
    monkeypatch.setattr(chunking, "SMALL_MAX", 300)
    monkeypatch.setattr(chunking, "WINDOW", 4096)
    return Cutter(TINY)


def cut(cutter: Cutter, content: bytes, sizes: list[int] | None = None) -> list[bytes]:
    """The chunks; ``sizes``: how much each read gives, again and again from the start."""
    if not sizes:
        return [bytes(c) for c in cutter.cut(reading(content))]
    turn = iter(range(1 << 62))
    return [bytes(c) for c in cutter.cut(reading(content, lambda free: sizes[next(turn) % len(sizes)]))]


# Content with stretches of its own and stretches that repeat, so that cuts are found and not found.
contents = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1 << 30), st.integers(0, 9000)).map(lambda t: some_bytes(*t)),
        st.integers(0, 5000).map(bytes),
        st.binary(max_size=300),
    ),
    max_size=5,
).map(b"".join)


@FEW
@given(content=contents, sizes=st.lists(st.integers(1, 5000), max_size=5))
def test_the_chunks_joined_are_the_content_whatever_the_reads(cutter: Cutter, content: bytes, sizes: list[int]) -> None:
    assert b"".join(cut(cutter, content, sizes)) == content


@FEW
@given(content=contents, sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_the_cuts_do_not_depend_on_the_reads(cutter: Cutter, content: bytes, sizes: list[int]) -> None:
    assert cut(cutter, content, sizes) == cut(cutter, content)


@FEW
@given(content=contents)
def test_the_cuts_do_not_depend_on_the_window(cutter: Cutter, content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "WINDOW", 1 << 20)
        wide = Cutter(TINY)
    assert cut(cutter, content) == cut(wide, content)


@FEW
@given(content=contents)
def test_every_chunk_keeps_to_the_sizes_of_the_config(cutter: Cutter, content: bytes) -> None:
    lengths = [len(c) for c in cut(cutter, content)]
    if len(content) <= 300:
        assert lengths == ([len(content)] if content else [])
    else:
        assert all(TINY.min_size <= n <= TINY.max_size for n in lengths[:-1])
        assert 0 < lengths[-1] <= TINY.max_size


def test_a_chunk_does_not_know_what_stood_before_it(cutter: Cutter) -> None:
    content = some_bytes("tail", 60_000)
    chunks = cut(cutter, content)
    at = 0
    for number, chunk in enumerate(chunks[:-1]):
        at += len(chunk)
        if len(content) - at > 300:
            assert cut(cutter, content[at:]) == chunks[number + 1 :]


@pytest.mark.parametrize("seed", range(8))
def test_an_insertion_in_the_middle_changes_few_chunks(cutter: Cutter, seed: int) -> None:
    dice = random.Random(seed)
    content = dice.randbytes(400_000)
    at = dice.randrange(100_000, 300_000)
    changed = content[:at] + dice.randbytes(dice.randrange(1, 200)) + content[at:]
    before, after = cut(cutter, content), cut(cutter, changed)
    assert len(before) > 1000
    assert len(set(after) - set(before)) <= 40


@pytest.mark.parametrize("size", [0, 1, SMALL_MAX - 1, SMALL_MAX])
def test_content_up_to_a_mebibyte_is_one_chunk(size: int) -> None:
    content = some_bytes("whole", size)
    assert cut(Cutter(Chunker()), content) == ([content] if content else [])


@pytest.mark.parametrize("size", [SMALL_MAX + 1, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + CHUNK_MAX + 12345])
def test_the_real_sizes_hold_around_the_window(size: int) -> None:
    content = some_bytes("real", size)
    sizes = Chunker()
    chunks = cut(Cutter(sizes), content, [1 << 20, 777_777])
    assert b"".join(chunks) == content
    assert all(sizes.min_size <= len(c) <= sizes.max_size for c in chunks[:-1])


def test_one_cutter_cuts_one_stream_after_the_other(cutter: Cutter) -> None:
    first, second = some_bytes(1, 20_000), some_bytes(2, 9_000)
    assert cut(cutter, first) == cut(Cutter(TINY), first)
    unfinished = cutter.cut(reading(first))
    next(unfinished)
    del unfinished
    assert cut(cutter, second) == cut(Cutter(TINY), second)


def test_zeros_are_cut_at_the_largest_size(cutter: Cutter) -> None:
    assert {len(c) for c in cut(cutter, bytes(TINY.max_size * 5))} == {TINY.max_size}
