"""Sizes: of the repository, and of snapshots as they would be restored, as they are stored, or by what differs in them.

Pages that snapshots share are read once. Which chunks were counted is noted in one byte for each chunk of the index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import blake3

from holdfast.repository.contents import hole_length, split_items
from holdfast.repository.format import BLOCK, ID_SIZE, KIND_TREE, Entry, Leaf
from holdfast.repository.index import Index, load_index
from holdfast.repository.pages import Tree
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository


@dataclass
class Stock:
    """What the repository holds. Sizes in bytes: ``raw`` as chunks are, ``stored`` as packs are."""

    packs: int = 0
    chunks: int = 0
    raw: int = 0
    stored: int = 0
    tree_stored: int = 0
    index_objects: int = 0
    index_stored: int = 0

    @property
    def ratio(self) -> float:
        """How many times smaller it is than its chunks; deduplication is not in it."""
        return self.raw / self.stored if self.stored else 1.0


@dataclass
class Content:
    """Things in snapshots, each hard-linked file once a snapshot."""

    files: int = 0
    folders: int = 0
    others: int = 0
    bytes: int = 0

    def add(self, other: Content) -> None:
        self.files += other.files
        self.folders += other.folders
        self.others += other.others
        self.bytes += other.bytes


@dataclass
class Raw:
    """Chunks that snapshots need, each once: their sizes, and their share of the packs. ``missing``: in no pack."""

    chunks: int = 0
    raw: int = 0
    stored: int = 0
    missing: int = 0

    @property
    def ratio(self) -> float:
        return self.raw / self.stored if self.stored else 1.0


@dataclass
class _Part:
    """What a page and the pages below it hold; hard-linked files apart, as they may lie in other pages too."""

    content: Content = field(default_factory=Content)
    linked: list[tuple[tuple[int, int], int]] = field(default_factory=list)  # identity, size


class Stats:
    """Counts over one repository, whose index is loaded once."""

    def __init__(self, repo: Repository) -> None:
        loaded = load_index(repo.storage, repo.secrets, survey=False)
        self._index, self._objects = loaded.index, loaded.objects
        self._reader = ChunkReader(repo.storage, repo.secrets, loaded.index)

    def stock(self) -> Stock:
        """The repository as its index describes it."""
        stock = Stock(chunks=len(self._index), index_objects=len(self._objects))
        stock.index_stored = sum(self._objects.values())
        for record in self._index.packs:
            stock.packs += 1
            stock.stored += record.size
            stock.raw += sum(raw for _, _, raw, _ in BLOCK.iter_unpack(record.blocks))
            stock.tree_stored += record.size if record.kind == KIND_TREE else 0
        return stock

    def restore_size(self, roots: Iterable[bytes]) -> Content:
        """What restoring these snapshots, each into a folder of its own, would make."""
        total, known = Content(), dict[bytes, _Part]()
        for root in roots:
            part = self._part(Tree(self._reader.read, root), root, known)
            total.add(part.content)
            for size in dict(part.linked).values():
                total.files += 1
                total.bytes += size
        return total

    def files_by_contents(self, roots: Iterable[bytes]) -> Content:
        """Files that differ in content, each counted once over all snapshots."""
        total, seen, longer = Content(), _Seen(self._index), set[bytes]()
        for leaf in self._new_leaves(roots, seen):
            for entry in (e for _, entries in leaf.runs for e in entries if e.kind == "f"):
                if _is_one_chunk(entry):
                    new = seen.add(entry.content)
                else:
                    digest = blake3.blake3(entry.content).digest(16)
                    new = digest not in longer
                    longer.add(digest)
                if new:
                    total.files += 1
                    total.bytes += entry.size
        return total

    def raw_data(self, roots: Iterable[bytes]) -> Raw:
        """The chunks, of pages and of content, that these snapshots need together."""
        count = _Counting(self._index)
        for leaf in self._new_leaves(roots, count):
            for entry in (e for _, entries in leaf.runs for e in entries if e.content):
                for item in split_items(entry.content):
                    if not entry.depth:
                        count.add_item(item)
                    elif count.add(item) and item not in count.missing:
                        for inner in split_items(self._reader.read(item)):
                            count.add_item(inner)
        return count.total()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _part(self, tree: Tree, page: bytes, known: dict[bytes, _Part]) -> _Part:
        part = known.get(page)
        if part is not None:
            return part
        part = known[page] = _Part()
        content = tree.page(page)
        if isinstance(content, Leaf):
            for _, entries in content.runs:
                for entry in entries:
                    _count_entry(entry, part)
        else:
            for child in content.children:
                below = self._part(tree, child.page, known)
                part.content.add(below.content)
                part.linked += below.linked
        return part

    def _new_leaves(self, roots: Iterable[bytes], seen: _Seen) -> Iterator[Leaf]:
        """The leaves below the roots, each page once."""
        for root in roots:
            tree, waiting = Tree(self._reader.read, root), [root]
            while waiting:
                page = waiting.pop()
                if not seen.add(page):
                    continue
                content = tree.page(page)
                if isinstance(content, Leaf):
                    yield content
                else:
                    waiting += [child.page for child in reversed(content.children)]


def _count_entry(entry: Entry, part: _Part) -> None:
    if entry.kind == "d":
        part.content.folders += 1
    elif entry.kind != "f":
        part.content.others += 1
    elif entry.links is not None:
        part.linked.append((entry.links, entry.size))
    else:
        part.content.files += 1
        part.content.bytes += entry.size


def _is_one_chunk(entry: Entry) -> bool:
    return len(entry.content) == ID_SIZE and not entry.depth and hole_length(entry.content) is None


class _Seen:
    """Which chunks were met."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._marks = bytearray(len(index))
        self.missing: set[bytes] = set()

    def add(self, chunk_id: bytes) -> bool:
        """Note a chunk; whether it is new."""
        number = self.index.ordinal(chunk_id)
        if number is None:
            new = chunk_id not in self.missing
            self.missing.add(chunk_id)
            return new
        new = not self._marks[number]
        self._marks[number] = 1
        return new


class _Counting(_Seen):
    """Adds up the chunks that are met. A chunk's share of its block is by its length: blocks are compressed whole."""

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self._chunks, self._raw, self._stored = 0, 0, 0.0

    def add(self, chunk_id: bytes) -> bool:
        new = super().add(chunk_id)
        where = self.index.find(chunk_id) if new else None
        if where is not None:
            _, stored, raw, _ = BLOCK.unpack_from(self.index.packs[where.pack].blocks, where.block * BLOCK.size)
            self._chunks += 1
            self._raw += where.length
            self._stored += stored * where.length / max(1, raw)
        return new

    def add_item(self, item: bytes) -> None:
        if hole_length(item) is None:
            self.add(item)

    def total(self) -> Raw:
        return Raw(self._chunks, self._raw, round(self._stored), len(self.missing))
