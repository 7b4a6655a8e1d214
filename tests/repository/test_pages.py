"""The tree of pages against a dictionary: whatever was put in is found, and what is equal is stored once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterable
from itertools import groupby

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import Damaged
from holdfast.repository import pages
from holdfast.repository.format import CHUNK_MAX, ID_SIZE, Child, Entry, Leaf, Node
from holdfast.repository.pages import Key, Tree, TreeWriter, decode_page, join, sort_key, split

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages so small that a few entries make a tree of many levels."""
    for name, value in {
        "LEAST": 2, "MOST": 8, "_MASK": 3, "_NODE_LEAST": 2, "_NODE_MOST": 5, "_NODE_MASK": 1
    }.items():  # fmt: skip
        monkeypatch.setattr(pages, name, value)


@dataclasses.dataclass
class Store:
    """Where pages go: by the hash of their bytes."""

    pages: dict[bytes, bytes] = dataclasses.field(default_factory=dict)

    def put(self, page: bytes) -> bytes:
        digest = hashlib.sha256(page).digest()[:ID_SIZE]
        self.pages[digest] = page
        return digest

    def write(self, entries: dict[bytes, Entry], parts: Callable[[int], int] = lambda n: n) -> bytes:
        """The root of a tree of these entries. ``parts``: how many of n entries of a folder are added at once."""
        tree = TreeWriter(self.put, 42, lambda uid: f"user {uid}" if uid else "", lambda gid: "")
        for directory, paths in groupby(in_order(entries), key=lambda p: split(p)[0]):
            left = [entries[p] for p in paths]
            while left:
                count = max(1, min(parts(len(left)), len(left)))
                tree.add(directory, left[:count])
                left = left[count:]
        return tree.finish()

    def tree(self, root: bytes) -> Tree:
        return Tree(self.pages.__getitem__, root)

    def of_kind(self, kind: type) -> dict[bytes, Leaf | Node]:
        decoded = {i: decode_page(p, i) for i, p in self.pages.items()}
        return {i: p for i, p in decoded.items() if isinstance(p, kind)}


def in_order(entries: Iterable[bytes]) -> list[bytes]:
    """Paths as a walk gives them: compared name by name, a folder's own names before what is below them."""
    return sorted(entries, key=lambda p: (split(p)[0].split(b"/") if split(p)[0] else [], split(p)[1]))


def an_entry(path: bytes, size: int = 0) -> Entry:
    return Entry(split(path)[1], "f", 0o644, len(path) % 3, 5, size, 0, 0, size)


# Names around the slash, which sorts between "." and "0", and around the ends of what a byte can be.
NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"a.", b"a0", b"a-", b"\x01", b"\xff", b"a\x01", b"."]),
    st.text(st.sampled_from("ab.-0\x01"), min_size=1, max_size=3).map(str.encode),
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
TREES = st.dictionaries(PATHS, st.integers(0, 1 << 40), max_size=60).map(
    lambda found: {p: an_entry(p, n) for p, n in {b"": 0, **found}.items()}
)


def flat(runs: Iterable[tuple[bytes, list[Entry]]]) -> list[tuple[bytes, Entry]]:
    return [(join(directory, e.name), e) for directory, entries in runs for e in entries]


# -- a model --------------------------------------------------------------------------------------------------------


@MANY
@given(entries=TREES)
def test_the_tree_gives_back_exactly_its_entries_in_order(narrow: None, entries: dict[bytes, Entry]) -> None:
    store = Store()
    tree = store.tree(store.write(entries))
    assert flat(tree.runs()) == [(p, entries[p]) for p in in_order(entries)]


@MANY
@given(entries=TREES, others=st.lists(PATHS, max_size=10))
def test_find_knows_what_is_there_and_what_is_not(
    narrow: None, entries: dict[bytes, Entry], others: list[bytes]
) -> None:
    store = Store()
    tree = store.tree(store.write(entries))
    for path in {*entries, *others}:
        assert tree.find(path) == entries.get(path)


@MANY
@given(entries=TREES, others=st.lists(PATHS, max_size=10))
def test_a_directory_is_its_own_entries_and_no_others(
    narrow: None, entries: dict[bytes, Entry], others: list[bytes]
) -> None:
    store = Store()
    tree = store.tree(store.write(entries))
    for path in {b"", *(split(p)[0] for p in entries), *others}:
        wanted = [entries[p] for p in in_order(entries) if p and split(p)[0] == path]
        assert list(tree.directory(path)) == wanted


@MANY
@given(entries=TREES, start=PATHS)
def test_runs_from_a_place_leave_out_nothing_behind_it(narrow: None, entries: dict[bytes, Entry], start: bytes) -> None:
    store = Store()
    tree = store.tree(store.write(entries))
    everything, some = flat(tree.runs()), flat(tree.runs(split(start)))
    assert some == everything[len(everything) - len(some) :]
    left_out = everything[: len(everything) - len(some)]
    assert all(sort_key(*split(path)) < sort_key(*split(start)) for path, _ in left_out)
    before = [p for p, _ in some if sort_key(*split(p)) < sort_key(*split(start))]
    assert len(before) <= pages.MOST  # of the one page where the place is or would be


@MANY
@given(entries=TREES)
def test_backwards_is_the_reverse(narrow: None, entries: dict[bytes, Entry]) -> None:
    store = Store()
    tree = store.tree(store.write(entries))
    assert flat(tree.reversed_runs()) == flat(tree.runs())[::-1]


@MANY
@given(entries=TREES)
def test_children_count_what_is_below_them(narrow: None, entries: dict[bytes, Entry]) -> None:
    store = Store()
    root = store.write(entries)

    def count(page: bytes) -> tuple[int, int, Key]:
        content = decode_page(store.pages[page], page)
        if isinstance(content, Leaf):
            first = (content.runs[0][0], content.runs[0][1][0].name) if content.runs else (b"", b"")
            found = [e for _, run in content.runs for e in run]
            return len(found), sum(e.size for e in found), first
        for child in content.children:
            assert count(child.page) == (child.entries, child.size, (child.directory, child.name))
        children = content.children
        first = children[0].directory, children[0].name
        return sum(c.entries for c in children), sum(c.size for c in children), first

    assert count(root)[:2] == (len(entries), sum(e.size for e in entries.values()))


@MANY
@given(entries=TREES, count=st.integers(1, 5))
def test_equal_entries_give_the_equal_root_however_they_are_added(
    narrow: None, entries: dict[bytes, Entry], count: int
) -> None:
    assert Store().write(entries) == Store().write(entries, lambda n: count)


def test_an_empty_tree_has_no_entries() -> None:
    store = Store()
    tree = store.tree(Store.write(store, {}))
    assert list(tree.runs()) == [] and tree.find(b"") is None and list(tree.directory(b"x")) == []


def test_a_leaf_names_the_owners_that_occur_in_it() -> None:
    store = Store()
    root = store.write({b"": an_entry(b""), b"a": an_entry(b"a"), b"bb": an_entry(b"bb")})
    leaf = store.tree(root).page(root)
    assert isinstance(leaf, Leaf)
    assert leaf.users == {1: "user 1", 2: "user 2"} and leaf.groups == {}


# -- what a change costs ----------------------------------------------------------------------------------------------


def forest(count: int, seed: int = 0) -> dict[bytes, Entry]:
    """Many entries in folders of very different sizes."""
    dice = random.Random(seed)
    found = {b"": an_entry(b"")}
    while len(found) < count:
        folder = b"/".join(b"%x" % dice.randrange(4) for _ in range(dice.randrange(4)))
        for _ in range(dice.randrange(1, 900)):
            path = join(folder, b"%x" % dice.getrandbits(40))
            found[path] = an_entry(path, dice.randrange(1000))
    return found


def changed(entries: dict[bytes, Entry], path: bytes) -> dict[bytes, Entry]:
    return {**entries, path: msgspec.structs.replace(entries[path], mtime_ns=12345)}


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_entry_changes_one_leaf_and_few_nodes(seed: int) -> None:
    dice, entries = random.Random(seed), forest(30_000, seed)
    old = Store()
    old.write(entries)
    levels = max(p.level for p in old.of_kind(Node).values() if isinstance(p, Node))
    for _ in range(4):
        new = Store()
        new.write(changed(entries, dice.choice(sorted(entries))))
        assert len(new.of_kind(Leaf).keys() - old.pages.keys()) == 1
        assert 1 <= len(new.of_kind(Node).keys() - old.pages.keys()) <= 3 * (levels + 1)


@MANY
@given(entries=TREES.filter(lambda t: len(t) > 3), which=st.integers(0, 1000))
def test_a_changed_entry_never_moves_a_leafs_ends(narrow: None, entries: dict[bytes, Entry], which: int) -> None:
    old, new = Store(), Store()
    old.write(entries)
    new.write(changed(entries, sorted(entries)[which % len(entries)]))
    assert len(new.of_kind(Leaf).keys() - old.pages.keys()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_an_entry_more_or_less_changes_few_pages(seed: int) -> None:
    dice, entries = random.Random(seed), forest(20_000, seed)
    old = Store()
    old.write(entries)
    for _ in range(3):
        fewer = dict(entries)
        del fewer[dice.choice(sorted(entries)[1:])]
        new = Store()
        new.write(fewer)
        assert len(new.of_kind(Leaf).keys() - old.pages.keys()) <= 4
        assert len(new.pages.keys() - old.pages.keys()) <= 16


def test_pages_keep_to_their_sizes() -> None:
    store = Store()
    store.write(forest(30_000))
    leaves = [p for p in store.of_kind(Leaf).values() if isinstance(p, Leaf)]
    counts = [sum(len(entries) for _, entries in leaf.runs) for leaf in leaves]
    assert max(counts) <= pages.MOST and sorted(counts)[1] >= pages.LEAST
    assert 150 < sum(counts) / len(counts) < 450
    assert all(len(p.children) <= pages._NODE_MOST for p in store.of_kind(Node).values() if isinstance(p, Node))


@pytest.mark.parametrize(
    "bulk",
    [
        {"xattrs": {b"user.much": bytes(60_000)}},
        {"content": b"\1" * 256 * ID_SIZE},
        {"target": b"t" * 4095},
    ],
    ids=["extended attributes", "long lists of chunks", "long links"],
)
def test_entries_that_are_large_themselves_make_no_page_larger_than_a_chunk(bulk: dict[str, object]) -> None:
    store = Store()
    paths = [b"%05d" % n for n in range(4000)]
    root = store.write({p: msgspec.structs.replace(an_entry(p), **bulk) for p in paths})
    assert max(len(p) for p in store.pages.values()) <= CHUNK_MAX // 2
    assert [p for p, _ in flat(store.tree(root).runs())] == paths


def test_long_paths_make_no_page_larger_than_a_chunk() -> None:
    store = Store()
    paths = [b"/".join([b"%05d" % n, *[b"d" * 250] * 16, b"f"]) for n in range(3000)]
    store.write({p: an_entry(p) for p in paths})
    assert max(len(p) for p in store.pages.values()) <= CHUNK_MAX // 2


# -- what is refused -------------------------------------------------------------------------------------------------


def a_writer() -> TreeWriter:
    return TreeWriter(Store().put, 0, lambda uid: "", lambda gid: "")


@pytest.mark.parametrize(
    "wrong",
    [
        [(b"", [b"b", b"a"])],
        [(b"", [b"a", b"a"])],
        [(b"", [b"b"]), (b"", [b"a"])],
        [(b"", [b"b"]), (b"", [b"b"])],
        [(b"b", [b"x"]), (b"a", [b"y"])],
        [(b"a.", [b"x"]), (b"a/b", [b"x"])],
        [(b"a", [b"x", b"y", b"z", b"y"])],
    ],
)
def test_what_is_out_of_order_is_refused(wrong: list[tuple[bytes, list[bytes]]]) -> None:
    tree = a_writer()
    with pytest.raises(ValueError, match="out of order"):
        for directory, found in wrong:
            tree.add(directory, [an_entry(n) for n in found])


def test_the_callers_lists_stay_as_they_are() -> None:
    tree, first, second = a_writer(), [an_entry(b"a")], [an_entry(b"b")]
    tree.add(b"", first)
    tree.add(b"", second)
    assert (len(first), len(second)) == (1, 1)


def ways(tree: Tree) -> list[Callable[[], object]]:
    return [
        lambda: list(tree.runs()),
        lambda: list(tree.runs((b"a", b"b"))),
        lambda: list(tree.reversed_runs()),
        lambda: tree.find(b"a/b"),
        lambda: list(tree.directory(b"a")),
    ]


@pytest.mark.parametrize("way", range(5))
def test_pages_that_are_nested_for_ever_are_damage(way: int) -> None:
    page = msgspec.msgpack.encode(Node(1, [Child(b"", b"", b"me" * 12, 1, 1)]))
    with pytest.raises(Damaged, match="deeper"):
        ways(Tree(lambda i: page, b"me" * 12))[way]()


@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("page", [b"", b"\xc1", b"\x90", b"\x93\x02\x01\x02", b"not a page at all", b"\x92\x01\x01"])
def test_what_is_no_page_is_damage(page: bytes, way: int) -> None:
    with pytest.raises(Damaged, match="understood"):
        ways(Tree(lambda i: page, bytes(ID_SIZE)))[way]()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_in_another_way(page: bytes) -> None:
    with contextlib.suppress(Damaged):
        decode_page(page, bytes(ID_SIZE))
