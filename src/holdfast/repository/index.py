"""The index: which pack, block and place holds a chunk. In memory about 50 bytes a chunk; on storage, objects under
``index/`` that can always be rebuilt from the packs' own tables of contents.

What is loaded is what can be used: packs on a condemned list, packs that are not in storage or have another size
there, are left out, and a chunk that only they hold counts as absent. Packs in storage that no index object knows (a
backup was killed) are adopted from their own tables.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

import msgspec
from borghash import HashTable

from holdfast.errors import Damaged, ObjectMissing, StorageError, StorageUnavailable
from holdfast.repository.crypto import Secrets, object_digest
from holdfast.repository.format import ID_SIZE, NO_SENSE, IndexFile, PackRecord
from holdfast.repository.packs import check_record, lengths_by_block, read_contents
from holdfast.storage.base import Storage
from holdfast.storage.parallel import answers

PURPOSE = b"index"
PENDING = 0xFFFFFFFF  # the pack number of a chunk that is being written
_VALUE = Struct(">IQ")  # the pack's number; block number (16 bits), offset in the block (24), length (24)
_TRIES = 5


class Location(NamedTuple):
    """Where a chunk lies: the pack's number in this index, the block, offset in the block, length."""

    pack: int
    block: int
    offset: int
    length: int


class Index:
    """Chunks and packs in memory. Reading is safe from any thread; each call is atomic.

    ``packs``: every pack's record, by number. Unless ``contents`` is asked for, as prune, check and copy do, the
    records kept are without their chunks, which saves 32 bytes a chunk.
    """

    def __init__(self, *, contents: bool = True) -> None:
        self._contents = contents
        self._table = HashTable(key_size=ID_SIZE, value_size=_VALUE.size, max_load_factor=0.75)
        self.packs: list[PackRecord] = []
        self._numbers: dict[bytes, int] = {}
        self._adding = threading.Lock()

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, chunk_id: bytes) -> bool:
        return chunk_id in self._table

    def find(self, chunk_id: bytes) -> Location | None:
        """Where the chunk is, None when it is absent."""
        value = self._table.get(chunk_id)
        if value is None:
            return None
        pack, where = _VALUE.unpack(value)
        return Location(pack, where >> 48, where >> 24 & 0xFFFFFF, where & 0xFFFFFF)

    def pack_of(self, chunk_id: bytes) -> int | None:
        """The number of the chunk's pack (PENDING while it is being written), None when it is absent."""
        value = self._table.get(chunk_id)
        return None if value is None else int.from_bytes(value[:4], "big")

    def reserve(self, chunk_id: bytes, length: int) -> None:
        """Note a chunk that is on its way into a pack, so that it is not stored twice."""
        self._table[chunk_id] = _VALUE.pack(PENDING, length)

    def add_pack(self, record: PackRecord, *, weak: bool = False) -> int:
        """Take a pack's chunks in; its number. A chunk that is in several packs is found in the one added last, but
        never in a ``weak`` one when it is elsewhere too.
        """
        with self._adding:  # several packs may come to be stored at the same moment
            known = self._numbers.get(record.name)
            if known is not None:
                return known
            number = self._numbers[record.name] = len(self.packs)
            self.packs.append(record if self._contents else _slim(record))
        put = self._table.setdefault if weak else self._table.__setitem__
        ids, pack_value, at = record.ids, _VALUE.pack, 0
        for block, lengths in enumerate(lengths_by_block(record)):
            where = block << 48
            for length in lengths:
                put(ids[at : at + ID_SIZE], pack_value(number, where | length))
                where += length << 24
                at += ID_SIZE
        return number

    def found_in(self, pack: int, block: int) -> list[tuple[bytes, Location]]:
        """The chunks that are found in that block of that pack. It takes a look at every chunk there is."""
        head = _VALUE.pack(pack, block << 48)[:6]
        return [
            (chunk_id, Location(pack, block, where >> 24 & 0xFFFFFF, where & 0xFFFFFF))
            for chunk_id, value in self._table.items()
            if value[:6] == head
            for where in (_VALUE.unpack(value)[1],)
        ]

    def drop_packs(self, names: Collection[bytes]) -> None:
        """Forget those packs: a chunk that was found in one of them is absent from now on. Numbers stay as they are."""
        numbers = {self._numbers.pop(name) for name in names if name in self._numbers}
        heads = {number.to_bytes(4, "big") for number in numbers}
        for chunk_id in [i for i, value in self._table.items() if value[:4] in heads]:
            del self._table[chunk_id]

    def number_of(self, pack: bytes) -> int | None:
        """The number of the pack of that name."""
        return self._numbers.get(pack)

    def ordinal(self, chunk_id: bytes) -> int | None:
        """A number below ``len(self)`` that stays the chunk's own while chunks are only added."""
        return int(self._table.k_to_idx(chunk_id)) if chunk_id in self._table else None

    def ids(self) -> Iterator[bytes]:
        """Every chunk's id."""
        for chunk_id, _ in self._table.items():
            yield chunk_id


def _slim(r: PackRecord) -> PackRecord:
    return PackRecord(r.name, r.size, r.kind, r.cipher, r.epoch, r.sealed, r.blocks, b"", b"")


def chunks_of(record: PackRecord) -> Iterator[tuple[bytes, Location]]:
    """A checked record's chunks with their places; ``pack`` is 0 in each."""
    at = 0
    for block, lengths in enumerate(lengths_by_block(record)):
        offset = 0
        for length in lengths:
            yield record.ids[at : at + ID_SIZE], Location(0, block, offset, length)
            offset += length
            at += ID_SIZE


def read_index_object(storage: Storage, secrets: Secrets, name: str) -> IndexFile:
    """One index object, verified."""
    data = storage.get(name)
    if object_digest([data]).hex() != name[6:]:
        raise Damaged(f"The index object {name} does not have the content its name says.")
    plain = secrets.open_shared(PURPOSE, data, f"The index object {name}")
    try:
        content = msgspec.msgpack.decode(plain, type=IndexFile)
    except NO_SENSE:
        raise Damaged(f"The index object {name} cannot be understood.") from None
    for record in content.packs:
        if len(record.name) != 32:
            raise Damaged(f"The index object {name} names a pack by {len(record.name)} bytes.")
        check_record(record, f"The index object {name}")
    return content


def put_index_object(
    storage: Storage, secrets: Secrets, packs: list[PackRecord], supersedes: Collection[str] = ()
) -> tuple[str, int]:
    """Store an index object; its name and size."""
    content = IndexFile(packs, [bytes.fromhex(n[6:]) for n in supersedes])
    data = secrets.share(PURPOSE, msgspec.msgpack.encode(content))
    name = f"index/{object_digest([data]).hex()}"
    storage.put(name, [data])
    return name, len(data)


@dataclass
class Loaded:
    """An index ready for use, and how it came about. Records are kept only when contents were asked for."""

    index: Index
    objects: dict[str, int] = field(default_factory=dict)  # index objects: name -> size, superseded ones too
    packs: dict[str, list[bytes]] = field(default_factory=dict)  # index object -> the packs it names
    records: dict[bytes, PackRecord] = field(default_factory=dict)  # by pack name
    lost: dict[bytes, PackRecord] = field(default_factory=dict)  # the same of those in ``absent``
    damaged: dict[str, str] = field(default_factory=dict)  # index objects that cannot be read, with a sentence
    adopted: list[PackRecord] = field(default_factory=list)  # packs that no index object knows
    absent: list[str] = field(default_factory=list)  # packs that storage has not, or not in the size they should have
    unreadable: dict[str, str] = field(default_factory=dict)  # packs whose own table cannot be read, with a sentence
    unread: dict[str, str] = field(default_factory=dict)  # the same, but only because storage did not answer just now
    stored_ns: dict[bytes, int] = field(default_factory=dict)  # when each pack was stored; only after a survey


def load_index(
    storage: Storage,
    secrets: Secrets,
    *,
    condemned: Collection[bytes] = (),
    survey: bool = True,
    with_condemned: bool = False,
    contents: bool = False,
) -> Loaded:
    """Build the index. ``survey`` compares with what is in storage: adopts and leaves out as the module says;
    without it the index objects are believed, unless one of them is damaged. ``with_condemned``: condemned packs
    count, but a chunk that is elsewhere too is found there. ``contents``: keep what is in each pack.

    An index object that goes away meanwhile was superseded: then all is read again.
    """
    superseded = set[str]()
    for _ in range(_TRIES):
        loader = _Loader(storage, secrets, frozenset(condemned), with_condemned, contents, superseded)
        with contextlib.suppress(ObjectMissing):
            loaded = loader.load(survey)
            if loaded is not None:
                return loaded
    raise StorageUnavailable(f"The index of {storage.place} keeps changing.", "Try again when less is going on.")


class _Loader:
    """One reading of the index. Objects are read newest first, so that a superseded one is known before it is met.
    Where times are coarse or unknown it may be met before: then ``superseded`` has it for the next reading.
    """

    def __init__(
        self,
        storage: Storage,
        secrets: Secrets,
        condemned: frozenset[bytes],
        with_condemned: bool,
        contents: bool,
        superseded: set[str],
    ) -> None:
        self._storage, self._secrets, self._superseded = storage, secrets, superseded
        self._condemned, self._with_condemned, self._contents = condemned, with_condemned, contents
        self._loaded = Loaded(Index(contents=contents))
        self._present: dict[bytes, int] | None = None
        self._known: set[bytes] = set()

    def load(self, survey: bool) -> Loaded | None:
        """All of it; None when a superseded object was believed before it was known to be one. Even then all objects
        were read, so ``superseded`` is whole and the next reading the last.
        """
        loaded, superseded = self._loaded, self._superseded
        infos = sorted(self._storage.list("index"), key=lambda info: (-info.stored_ns, info.name))
        if survey:
            self._look()
        read = functools.partial(read_index_object, self._storage, self._secrets)
        loaded.objects = {info.name: info.size for info in infos}
        names = [i.name for i in infos if i.name not in superseded]
        with contextlib.closing(answers(self._storage, names, read, lambda n: 8 * loaded.objects[n])) as files:
            for name, content_of in files:
                if name not in superseded:
                    self._believe(name, content_of)
        if not superseded.isdisjoint(loaded.packs):
            return None
        if loaded.damaged and self._present is None:
            self._look()
        self._adopt()
        return loaded

    def _believe(self, name: str, content_of: Callable[[], IndexFile]) -> None:
        try:
            content = content_of()
        except ObjectMissing:
            raise
        except (Damaged, StorageError) as e:
            self._loaded.damaged[name] = str(e)
            return
        self._superseded.update(f"index/{n.hex()}" for n in content.supersedes)
        self._loaded.packs[name] = [record.name for record in content.packs]
        for record in content.packs:
            self._take(record)

    def _look(self) -> None:
        self._present = {}
        for info in self._storage.list("data"):
            name = bytes.fromhex(info.name[5:])
            self._present[name], self._loaded.stored_ns[name] = info.size, info.stored_ns

    def _take(self, record: PackRecord, *, weak: bool = False) -> None:
        if record.name in self._known:
            return
        self._known.add(record.name)
        if self._present is not None and self._present.get(record.name) != record.size:
            self._loaded.absent.append(f"data/{record.name.hex()}")
            if self._contents:
                self._loaded.lost[record.name] = record
            return
        if self._contents:
            self._loaded.records[record.name] = record
        if record.name not in self._condemned:
            self._loaded.index.add_pack(record, weak=weak)
        elif self._with_condemned:
            self._loaded.index.add_pack(record, weak=True)

    def _adopt(self) -> None:
        """Take in the packs that are there and that no index object names."""
        for pack, size in sorted((self._present or {}).items()):
            if pack in self._known:
                continue
            name = f"data/{pack.hex()}"
            try:
                record = read_contents(self._storage, self._secrets, name, size)
            except ObjectMissing:
                continue
            except Damaged as e:
                self._loaded.unreadable[name] = str(e)
                continue
            except StorageError as e:
                self._loaded.unread[name] = str(e)
                continue
            self._take(record, weak=True)  # its blocks were not read: packs that the index names are believed first
            self._loaded.adopted.append(record)
