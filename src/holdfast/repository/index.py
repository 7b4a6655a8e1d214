"""The index: which pack, block and place holds a chunk. In memory about 50 bytes a chunk; on storage, objects under
``index/`` that can always be rebuilt from the packs' own tables of contents.

What is loaded is what can be used: packs on a condemned list, packs that are not in storage or have another size there,
are left out, and a chunk that only they hold counts as absent. Packs in storage that no index object knows (a backup was
killed) are adopted from their own tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

import msgspec
from borghash import HashTable

from holdfast.errors import Damaged, ObjectMissing, StorageError, StorageUnavailable
from holdfast.repository.crypto import Secrets, object_digest
from holdfast.repository.format import ID_SIZE, PLACE, IndexFile, PackRecord
from holdfast.repository.packs import check_record, read_contents
from holdfast.storage.base import Storage

PURPOSE = b"index"
PENDING = 0xFFFFFFFF  # the pack number of a chunk that is being written
_VALUE = Struct(">IQ")
_TRIES = 5


class Location(NamedTuple):
    """Where a chunk lies: the pack's number in this index, the block, offset in the block, length."""

    pack: int
    block: int
    offset: int
    length: int


class Index:
    """Chunks and packs in memory. Reading is safe from any thread; each call is atomic."""

    def __init__(self) -> None:
        self._table = HashTable(key_size=ID_SIZE, value_size=_VALUE.size, max_load_factor=0.75)
        self.packs: list[PackRecord] = []
        self._numbers: dict[bytes, int] = {}

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

    def add_pack(self, record: PackRecord) -> int:
        """Take a pack's chunks in; its number. A chunk that is in several packs is found in the one added last."""
        known = self._numbers.get(record.name)
        if known is not None:
            return known
        number = len(self.packs)
        self.packs.append(record)
        self._numbers[record.name] = number
        head, ids, places, table = number.to_bytes(4, "big"), record.ids, record.places, self._table
        size = ID_SIZE
        for i in range(len(ids) // size):
            table[ids[i * size : i * size + size]] = head + places[i * 8 : i * 8 + 8]
        return number

    def drop_packs(self, names: Collection[bytes]) -> None:
        """Forget those packs: their chunks are absent unless another pack holds them too. Numbers stay as they are."""
        for name in names:
            number = self._numbers.pop(name)
            old = self.packs[number]
            self.packs[number] = PackRecord(old.name, 0, old.kind, old.cipher, old.epoch, b"", b"", b"", b"")
        records, self.packs = self.packs, []
        self._table.clear()
        self._numbers.clear()
        for record in records:
            self.add_pack(record)

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


def chunks_of(record: PackRecord) -> Iterator[tuple[bytes, Location]]:
    """A pack's chunks with their places; ``pack`` is 0 in each."""
    for i in range(len(record.ids) // ID_SIZE):
        (where,) = PLACE.unpack_from(record.places, i * PLACE.size)
        yield (
            record.ids[i * ID_SIZE : (i + 1) * ID_SIZE],
            Location(0, where >> 48, where >> 24 & 0xFFFFFF, where & 0xFFFFFF),
        )


@dataclass
class StoredIndex:
    """What the index objects in storage say, before anyone decides what to use of it."""

    objects: dict[str, int] = field(default_factory=dict)  # name -> stored bytes, superseded ones too
    packs: dict[str, list[bytes]] = field(default_factory=dict)  # name -> the packs it names; superseded ones left out
    records: dict[bytes, PackRecord] = field(default_factory=dict)  # by pack name
    damaged: list[str] = field(default_factory=list)  # sentences


def read_index_object(storage: Storage, secrets: Secrets, name: str) -> IndexFile:
    """One index object, verified."""
    data = storage.get(name)
    if object_digest([data]).hex() != name[6:]:
        raise Damaged(f"The index object {name} does not have the content its name says.")
    plain = secrets.open_shared(PURPOSE, data, f"The index object {name}")
    try:
        content = msgspec.msgpack.decode(plain, type=IndexFile)
    except msgspec.MsgspecError:
        raise Damaged(f"The index object {name} cannot be understood.") from None
    for record in content.packs:
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


def read_stored_index(storage: Storage, secrets: Secrets) -> StoredIndex:
    """Read every index object. One that goes away meanwhile was superseded: then all are read again."""
    for _ in range(_TRIES):
        try:
            return _read_once(storage, secrets)
        except ObjectMissing:
            continue
    raise StorageUnavailable(f"The index of {storage.place} keeps changing.", "Try again when less is going on.")


def _read_once(storage: Storage, secrets: Secrets) -> StoredIndex:
    result = StoredIndex(objects={i.name: i.size for i in storage.list("index")})
    contents: dict[str, IndexFile] = {}
    for name in sorted(result.objects):
        try:
            contents[name] = read_index_object(storage, secrets, name)
        except ObjectMissing:
            raise
        except (Damaged, StorageError) as e:
            result.damaged.append(str(e))
    superseded = {f"index/{n.hex()}" for c in contents.values() for n in c.supersedes}
    for name, content in contents.items():
        if name not in superseded:
            result.packs[name] = [record.name for record in content.packs]
            for record in content.packs:
                result.records[record.name] = record
    return result


@dataclass
class Loaded:
    """An index ready for use, and how it came about."""

    index: Index
    stored: StoredIndex
    adopted: list[PackRecord]  # packs that no index object knows
    absent: list[str]  # packs an index object knows and storage has not, or not in that size
    unreadable: dict[str, str]  # packs whose own table cannot be read, with a sentence
    stored_ns: dict[bytes, int]  # when each pack was stored, by the storage's clock; only after a survey


def load_index(
    storage: Storage,
    secrets: Secrets,
    *,
    condemned: Collection[bytes] = (),
    survey: bool = True,
    with_condemned: bool = False,
) -> Loaded:
    """Build the index. ``survey`` compares with what is in storage: adopts and leaves out as the module says;
    without it the index objects are believed, unless one of them is damaged. ``with_condemned``: condemned packs
    count, but a chunk that is elsewhere too is found there.
    """
    stored = read_stored_index(storage, secrets)
    loaded = Loaded(Index(), stored, [], [], {}, {})
    if survey or stored.damaged:
        _survey(storage, secrets, loaded)
    records = stored.records
    for name in sorted(records, key=lambda n: n not in condemned):  # condemned first: others win over them
        if with_condemned or name not in condemned:
            loaded.index.add_pack(records[name])
    return loaded


def _survey(storage: Storage, secrets: Secrets, loaded: Loaded) -> None:
    records = loaded.stored.records
    present = {}
    for info in storage.list("data"):
        raw = bytes.fromhex(info.name[5:])
        present[raw], loaded.stored_ns[raw] = info.size, info.stored_ns
    for lost in [n for n, r in records.items() if present.get(n) != r.size]:
        loaded.absent.append(f"data/{lost.hex()}")
        del records[lost]
    absent = set(loaded.absent)
    for pack, size in sorted(present.items()):
        name = f"data/{pack.hex()}"
        if pack in records or name in absent:
            continue
        try:
            record = read_contents(storage, secrets, name, size)
        except ObjectMissing:
            continue
        except (Damaged, StorageError) as e:
            loaded.unreadable[name] = str(e)
            continue
        records[pack] = record
        loaded.adopted.append(record)
