"""What ``diff`` says, compared with a model that is two dictionaries; and how little it reads."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.archive.diff import Change, Side, Summary, diff
from holdfast.errors import SnapshotMissing
from holdfast.repository.format import ID_SIZE, Entry
from holdfast.repository.pages import Tree, TreeWriter, join, sort_key, split
from tests.archive.making import House
from tests.support.trees import MIB, noise, write

Model = dict[bytes, Entry]


class Pages:
    """Pages in memory, shared by all trees; ``read`` counts."""

    def __init__(self) -> None:
        self._pages: dict[bytes, bytes] = {}
        self.reads = 0

    def store(self, page: bytes) -> bytes:
        page_id = hashlib.sha256(page).digest()[:ID_SIZE]
        self._pages[page_id] = page
        return page_id

    def read(self, page: bytes) -> bytes:
        self.reads += 1
        return self._pages[page]

    def tree(self, model: Model) -> Tree:
        writer = TreeWriter(self.store, 7, lambda n: "", lambda n: "")
        for path in sorted(model, key=lambda p: sort_key(*split(p))):
            writer.add(split(path)[0], [model[path]])
        return Tree(self.read, writer.finish())


def an_entry(path: bytes, kind: str = "f", content: int = 0, mtime_ns: int = 0) -> Entry:
    text = content.to_bytes(ID_SIZE, "big") if kind == "f" else b""
    target = b"%d" % content if kind == "l" else b""
    return Entry(split(path)[1], kind, 0o644, 0, 0, mtime_ns, 0, 0, content, text, target=target)


def filled(paths: Iterable[bytes]) -> Model:
    """A model with a file at each path, and the folders above them."""
    model = {b"": an_entry(b"", "d")}
    for path in paths:
        model[path] = an_entry(path, content=len(path))
        while path := split(path)[0]:
            model[path] = an_entry(path, "d")
    return model


def expected(old: Model, new: Model, within: tuple[bytes, bytes], metadata: bool) -> list[tuple[str, bytes]]:
    """The answer, from the dictionaries."""
    before, after = (_below(model, top) for model, top in zip((old, new), within, strict=True))
    found = []
    for path in sorted(before.keys() | after.keys(), key=lambda p: sort_key(*split(p))):
        a, b = before.get(path), after.get(path)
        if a is None or b is None:
            found.append(("+" if a is None else "-", path))
        elif a.kind != b.kind:
            found.append(("T", path))
        elif (a.size, a.content, a.target) != (b.size, b.content, b.target):
            found.append(("M", path))
        elif metadata and a.mtime_ns != b.mtime_ns:
            found.append(("U", path))
    return found


def _below(model: Model, top: bytes) -> Model:
    if not top:
        return model
    return {path[len(top) + 1 :]: entry for path, entry in model.items() if path.startswith(top + b"/")}


def found(changes: Iterable[Change]) -> list[tuple[str, bytes]]:
    return [(change.what, change.path) for change in changes]


# -- the model ---------------------------------------------------------------------------------------------------------


@st.composite
def models(draw: st.DrawFn) -> tuple[Model, Model]:
    """Two models, the second made from the first by a few changes. Large enough for several levels of pages."""
    dice = random.Random(draw(st.integers(0, 50)))
    folders = [b"", b"a", b"a/b", b"a!", b"a/b/c", b"zz"]
    count = draw(st.sampled_from([0, 3, 40, 600, 4000]))
    old = filled(join(dice.choice(folders), b"%x" % dice.randrange(10**6)) for _ in range(count))
    new = dict(old)
    for _ in range(draw(st.integers(0, 12))):
        what = draw(st.sampled_from(["add", "remove", "change", "touch", "link", "folder", "block"]))
        files = sorted(p for p, e in new.items() if e.kind == "f")
        path = files[draw(st.integers(0, 10**6)) % len(files)] if files else b""
        if what == "add" or not path:
            new.update(filled([join(draw(st.sampled_from(folders)), b"new %d" % draw(st.integers(0, 99)))]))
        elif what == "remove":
            del new[path]
        elif what == "block":  # many neighbours at once, so that pages are cut elsewhere
            for gone in files[files.index(path) :][:300]:
                del new[gone]
        elif what == "folder":
            new[path] = an_entry(path, "d")
            new[path + b"/in it"] = an_entry(path + b"/in it")
        else:
            kind, content = ("l" if what == "link" else "f"), 10**6 if what == "change" else new[path].size
            new[path] = an_entry(path, kind, content, mtime_ns=1)
    return old, new


@settings(max_examples=120, deadline=None)
@given(models(), st.sampled_from([b"", b"a", b"a/b"]), st.sampled_from([b"", b"a", b"a/b"]), st.booleans())
def test_it_says_what_two_dictionaries_say(both: tuple[Model, Model], top: bytes, other: bytes, metadata: bool) -> None:
    old, new = both
    for model, folder in ((old, top), (new, other)):
        model.setdefault(folder, an_entry(folder, "d"))
        if split(folder)[0]:
            model.setdefault(split(folder)[0], an_entry(split(folder)[0], "d"))
    pages = Pages()
    sides = Side(pages.tree(old), top), Side(pages.tree(new), other)
    assert found(diff(*sides, metadata=metadata)) == expected(old, new, (top, other), metadata)


# -- how little it reads -----------------------------------------------------------------------------------------------


MANY = [b"folder %03d/file %03d" % (i, j) for i in range(200) for j in range(100)]


def test_one_changed_file_among_many_costs_the_pages_on_the_way_to_it() -> None:
    old = filled(MANY)
    pages = Pages()
    before = pages.tree(old)
    for path in (MANY[0], MANY[9_999], MANY[-1]):
        after = pages.tree({**old, path: an_entry(path, content=999)})
        pages.reads = 0
        assert found(diff(Side(before), Side(after))) == [("M", path)]
        assert pages.reads <= 2 * 4  # of about a hundred


def test_an_added_folder_costs_its_own_pages_and_a_few_more() -> None:
    old = filled(MANY)
    pages = Pages()
    new = {**old, **filled(b"folder 100!/new %03d" % i for i in range(50))}
    sides = Side(pages.tree(old)), Side(pages.tree(new))
    pages.reads = 0
    assert len(found(diff(*sides))) == 51
    assert pages.reads <= 16


def test_equal_snapshots_are_not_read_at_all() -> None:
    pages = Pages()
    tree = pages.tree(filled(MANY))
    assert found(diff(Side(tree), Side(tree))) == []
    assert found(diff(Side(tree, b"folder 001"), Side(tree, b"folder 001"))) == []
    assert pages.reads == 0


def test_a_folder_inside_costs_only_its_own_pages() -> None:
    pages = Pages()
    tree = pages.tree(filled(MANY))
    pages.reads = 0
    assert found(diff(Side(tree, b"folder 001"), Side(tree, b"folder 002"))) == []
    assert pages.reads <= 20


# -- real snapshots ----------------------------------------------------------------------------------------------------


def sides(house: House, first: object, second: object, *within: bytes) -> tuple[Side, Side]:
    trees = [house.tree(report) for report in (first, second)]  # type: ignore[arg-type]
    places = within or (b"", b"")
    return Side(trees[0], places[0]), Side(trees[1], places[-1])


@pytest.fixture
def changed(house: House) -> tuple[House, object, object]:
    """Two snapshots of a tree that changed in every way."""
    tree = write(house.folder / "tree", {"same": "s", "edited": "1", "gone/file": "x", "turned": "file", "link": "->a"})
    (tree / "touched").write_text("t")
    (tree / "shut").write_text("t")
    first = house.back_up(tree)
    write(tree, {"edited": "2", "new/file": "yy"})
    (tree / "gone/file").unlink()
    (tree / "gone").rmdir()
    (tree / "turned").unlink()
    (tree / "turned").mkdir()
    (tree / "link").unlink()
    (tree / "link").symlink_to("b")
    os.utime(tree / "touched", ns=(0, 0))
    (tree / "shut").chmod(0o600)
    return house, first, house.back_up(tree)


def test_each_kind_of_change_has_its_letter(changed: tuple[House, object, object]) -> None:
    house, first, second = changed
    without = [
        ("M", b"edited"),
        ("-", b"gone"),
        ("M", b"link"),
        ("+", b"new"),
        ("T", b"turned"),
        ("-", b"gone/file"),
        ("+", b"new/file"),
    ]
    assert found(diff(*sides(house, first, second))) == without
    more = found(diff(*sides(house, first, second), metadata=True))
    assert [c for c in more if c[0] != "U"] == without
    assert [c for c in more if c[0] == "U"] == [("U", b""), ("U", b"shut"), ("U", b"touched")]
    assert found(diff(*sides(house, second, first))) == [
        ({"+": "-", "-": "+"}.get(what, what), path) for what, path in without
    ]


def test_the_summary_counts_what_came_and_went(changed: tuple[House, object, object]) -> None:
    house, first, second = changed
    summary, reader = Summary(), house.repo.reader()
    for change in diff(*sides(house, first, second), metadata=True):
        summary.count(change, reader)
    assert (summary.changed, summary.types, summary.attributes) == (2, 1, 3)
    added, removed = summary.added, summary.removed
    assert (added.files, added.folders, added.others, added.bytes) == (1, 2, 0, 2 + 1)
    assert (removed.files, removed.folders, removed.others, removed.bytes) == (2, 1, 0, 1 + 4 + 1)


def test_of_a_large_changed_file_only_the_differing_chunks_are_counted(house: House) -> None:
    content = noise(20 * MIB)
    tree = write(house.folder / "tree", {"large": content})
    first = house.back_up(tree)
    (tree / "large").write_bytes(content[: 10 * MIB] + b"changed" + content[10 * MIB :])
    second = house.back_up(tree)
    summary, reader = Summary(), house.repo.reader()
    for change in diff(*sides(house, first, second)):
        summary.count(change, reader)
    assert 0 < summary.removed.bytes < 5 * MIB
    assert summary.added.bytes == summary.removed.bytes + len("changed")


def test_two_files_can_be_compared(changed: tuple[House, object, object]) -> None:
    house, first, second = changed
    assert found(diff(*sides(house, first, second, b"edited", b"edited"))) == [("M", b"")]
    assert found(diff(*sides(house, first, second, b"same", b"same"))) == []
    assert found(diff(*sides(house, first, second, b"turned", b"turned"))) == [("T", b"")]


def test_a_path_that_is_not_there_is_named(changed: tuple[House, object, object]) -> None:
    house, first, second = changed
    with pytest.raises(SnapshotMissing, match="'gone'"):
        list(diff(*sides(house, first, second, b"gone")))


def test_a_folder_that_moved_can_be_compared_with_itself(house: House, tmp_path: Path) -> None:
    tree = write(house.folder / "tree", {"old/a": "1", "old/b/c": "2", "else": "3"})
    first = house.back_up(tree)
    (tree / "old").rename(tree / "new")
    (tree / "new/b/c").write_text("2!")
    second = house.back_up(tree)
    assert found(diff(*sides(house, first, second, b"old", b"new"))) == [("M", b"b/c")]
