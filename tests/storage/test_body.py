"""Parts as one file: any reading and seeking gives what the joined parts would."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from holdfast.storage.body import Body

PARTS = st.lists(st.binary(max_size=9), max_size=8)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 30)),
        st.tuples(st.just("seek"), st.integers(-40, 40), st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])),
    ),
    max_size=12,
)


@given(PARTS, MOVES)
def test_it_reads_as_the_joined_parts_do(parts, moves):
    body, joined = Body([memoryview(p) for p in parts]), io.BytesIO(b"".join(parts))
    assert body.size == len(joined.getvalue())
    for move, *arguments in moves:
        if move == "read":
            assert body.read(*arguments) == joined.read(*arguments)
        else:
            offset, whence = arguments
            base = {io.SEEK_SET: 0, io.SEEK_CUR: joined.tell(), io.SEEK_END: len(joined.getvalue())}[whence]
            assert body.seek(offset, whence) == joined.seek(max(0, base + offset))
        assert body.tell() == joined.tell()
