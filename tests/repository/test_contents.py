"""A file's content as a list: what goes in comes out, however long it is and whatever holes it has."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Damaged
from holdfast.repository.contents import ContentList, hole, hole_length, items_of, split_items
from holdfast.repository.format import ID_SIZE, INLINE_CHUNKS, Entry

Pieces = dict[bytes, bytes]


def made(items: list[bytes]) -> tuple[Entry, Pieces]:
    """The entry of a file of these items, and the chunks that its list took."""
    pieces: Pieces = {}

    def keep(piece: bytes) -> bytes:
        number = len(pieces).to_bytes(ID_SIZE, "big")
        pieces[b"\1" + number[1:]] = piece
        return b"\1" + number[1:]

    content = ContentList(keep)
    for item in items:
        content.add(item)
    packed, depth = content.finish()
    return Entry(b"file", "f", 0o644, 0, 0, 0, 0, 0, 0, packed, depth), pieces


def chunk_id(number: int, first: int | None = None) -> bytes:
    digits = random.Random(number).randbytes(ID_SIZE)
    return digits if first is None else bytes([first]) + digits[1:]


items = st.one_of(
    st.integers(0, 1 << 20).map(chunk_id),
    st.integers(0, 1 << 20).map(lambda n: chunk_id(n, 0)),  # the first byte at which a long list may be cut
    st.integers(0, (1 << 64) - 1).map(hole),
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(items, max_size=40),
    st.sampled_from([0, 1, INLINE_CHUNKS - 20, INLINE_CHUNKS - 1, INLINE_CHUNKS, INLINE_CHUNKS + 1, 600, 5000]),
)
def test_a_list_comes_back_as_it_was(some: list[bytes], more: int) -> None:
    whole = [*some, *(chunk_id(n) for n in range(more))]
    entry, pieces = made(whole)
    assert list(items_of(entry, pieces.__getitem__)) == whole


@pytest.mark.parametrize("length", [0, 1, INLINE_CHUNKS - 1, INLINE_CHUNKS])
def test_a_short_list_stands_in_its_entry(length: int) -> None:
    whole = [chunk_id(n) for n in range(length)]
    entry, pieces = made(whole)
    assert (entry.content, entry.depth, pieces) == (b"".join(whole), 0, {})


@pytest.mark.parametrize("first", [0, 1])
def test_a_longer_list_stands_in_chunks_of_its_own(first: int) -> None:
    entry, pieces = made([chunk_id(n, first) for n in range(INLINE_CHUNKS + 1)])
    assert entry.depth == 1
    assert list(split_items(entry.content)) == list(pieces)


def test_lists_with_a_common_end_share_chunks() -> None:
    common = [chunk_id(n) for n in range(5000)]
    _, one = made(common)
    _, other = made([chunk_id(9000 + n) for n in range(7)] + common)
    assert len(set(one.values()) & set(other.values())) >= len(one) - 2


def test_no_piece_is_larger_than_a_chunk_may_be() -> None:
    _, pieces = made([b"\7" + chunk_id(n)[1:] for n in range(10_000)])
    assert max(len(p) for p in pieces.values()) <= 4096 * ID_SIZE


@given(st.integers(0, (1 << 64) - 1))
def test_a_hole_knows_its_length(length: int) -> None:
    assert hole_length(hole(length)) == length


@given(st.binary(min_size=ID_SIZE, max_size=ID_SIZE).filter(lambda b: any(b[:-8])))
def test_no_other_item_is_a_hole(item: bytes) -> None:
    assert hole_length(item) is None


@pytest.mark.parametrize("depth", [-1, 2, 7])
def test_content_nested_deeper_than_it_may_be_is_damage(depth: int) -> None:
    entry = Entry(b"file", "f", 0, 0, 0, 0, 0, 0, content=chunk_id(1), depth=depth)
    with pytest.raises(Damaged, match="nested"):
        list(items_of(entry, lambda i: b""))


@pytest.mark.parametrize("depth", [0, 1])
def test_a_ragged_list_is_damage(depth: int) -> None:
    content = chunk_id(1) if depth else chunk_id(1)[:-1]
    entry = Entry(b"file", "f", 0, 0, 0, 0, 0, 0, content=content, depth=depth)
    with pytest.raises(Damaged, match="ragged"):
        list(items_of(entry, lambda i: chunk_id(2) + b"x"))
