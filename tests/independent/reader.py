"""A second reader of Holdfast repositories, to prove that docs/format.md suffices to write one.

It was written from that page alone and shares no code with src/: what it reads is what the page says, not what the
program happens to do. Where the two disagree, the page or the program is wrong. Numbers in comments are the page's
sections. It reads folders only, is stricter than fast, and the program never uses anything of it.

Nothing it gives back is unverified. What it refuses raises ``Refused``. Where one bad object or entry must not keep
others from being read, the refusal is noted in ``Repository.refused``, or yielded in the place of the entry.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.independent.keys import Secrets, bundle_of_key, bundle_of_sheet, data_key, open_sealed, open_shared
from tests.independent.notation import (
    GIB,
    KIB,
    MIB,
    Record,
    Refused,
    aead,
    decode,
    derive,
    fields,
    keyed,
    need,
    noting,
    refusing,
    two_lines,
    unzstd,
)

CONFIG = "format:str version:int repository:str chunker:map"
CHUNKER = "algorithm:str min_size:min avg_size:avg max_size:max normalization:norm"
PACK = "name:name size:size kind:bit cipher:bit epoch:epoch sealed:sealed blocks:bin ids:bin lengths:bin"
INDEX = "packs:arrays supersedes:bin32s=[]"
ENTRY = """name:bin kind:str mode:mode uid:u32 gid:u32 mtime:time ctime:time inode:u64 size:size=0 content:bin=b''
    depth:bit=0 target:bin=b'' device:u64=0 links:pair/nil=None xattrs:map/nil=None"""
LEAF, NODE = "tag:int users:map groups:map runs:arrays", "tag:int level:level children:arrays"
CHILD = "folder:bin name:bin page:bin24 entries:u64 size:u64"
SNAPSHOT = """time_ns:time host:str user:str base:bin paths:bins tags:strs root:bin24 parent:str='' original:str=''
    program:str='' totals:map"""
TOTALS = """files_new:int=0 files_changed:int=0 files_unmodified:int=0 files:int=0 directories:int=0 others:int=0
    bytes_total:int=0 bytes_read:int=0 bytes_stored:int=0 errors:int=0 seconds:float=0.0"""
LEASE = "type:str work:str host:str process:str boot:str started_ns:time knows:bin32s=[] put_ns:time=0"
CONDEMNED = "type:str packs:bin32s deadline_s:u64 host:str put_ns:time=0"

Below = tuple[Any, int, int]  # of a page: the first entry's folder and name, how many entries, the sum of their sizes


Place = tuple[int, int, int]  # the block's number, the offset in its raw bytes, the length


@dataclass
class Repository:
    root: Path
    secrets: Secrets
    refused: dict[str, str] = field(default_factory=dict)  # object: why
    chunks: dict[bytes, list[tuple[Record, Place]]] = field(default_factory=dict)  # id: packs, and where in them
    unread: set[str] = field(default_factory=set)  # packs whose own tables were not looked at
    block: tuple[bytes, int, bytes] = (b"", 0, b"")  # the one that was read last


# 2: objects are called "<kind>/<name>" here.
def path_of(root: Path, name: str) -> Path:
    kind, _, digits = name.partition("/")
    return root / kind / digits[:2] / digits if kind == "data" else root / kind / digits


def names(root: Path, kind: str) -> list[str]:
    found = [p for p in (root / kind).glob("*/*" if kind == "data" else "*") if re.fullmatch("[0-9a-f]{64}", p.name)]
    return sorted(f"{kind}/{p.name}" for p in found if p == path_of(root, f"{kind}/{p.name}") and p.is_file())


def size_of(root: Path, name: str, limit: int) -> int:
    with refusing(name, OSError):
        size = path_of(root, name).stat().st_size
    need(size <= limit, f"{name} is larger than it may be")
    return size


def read(root: Path, name: str, offset: int, length: int) -> bytes:
    need(offset >= 0 and length >= 0, f"{name} is too short")
    with refusing(name, OSError), path_of(root, name).open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    need(len(data) == length, f"{name} is too short")
    return data


def read_object(root: Path, name: str, limit: int = GIB + MIB) -> bytes:
    data = read(root, name, 0, size_of(root, name, limit))
    need(hashlib.sha256(data).hexdigest() == name[-64:], f"{name}: its SHA-256 is another one")
    return data


# 5
def open_repository(root: Path, *, password: str | None = None, text: str = "") -> Repository:
    """With a password, or with the text of a key file or of a recovery sheet."""
    stored = read(root, "config", 0, size_of(root, "config", 64 * KIB))
    config, line, proof = two_lines(stored, CONFIG, "holdfast repository")
    cut = fields(config.chunker, CHUNKER, dict)
    need(cut.min_size <= cut.avg_size <= cut.max_size, "chunker: its sizes are not in ascending order")
    sheet = "HOLDFAST RECOVERY SHEET" in text
    found, tried = [bundle_of_sheet(text)] if sheet else [], dict[str, str]()
    for name in () if sheet else names(root, "keys"):
        with noting(tried, name):
            found.append(bundle_of_key(read_object(root, name, MIB), password, text))
            if found[-1].repository == config.repository:
                break
    need(found, f"no key opens: {tried}")
    secrets = found[-1]
    need(secrets.repository == config.repository, "the key of another repository")
    genuine = keyed(derive("config", secrets.shared), line).hex().encode()
    need(hmac.compare_digest(genuine, proof), "config: no holder of a key wrote this")
    repository = Repository(root, secrets)
    load_index(repository)
    return repository


# 7, 8
def pack_of(value: Any) -> Record:
    pack = fields(value, PACK)
    count = len(pack.ids) // 24
    need(len(pack.ids) == 24 * count and len(pack.lengths) == 4 * count, "pack: its lengths are not as many as its ids")
    need(len(pack.blocks) % 13 == 0 and len(pack.blocks) <= 13 << 16, "pack: blocks cut off, or too many")
    need(pack.size <= 64 * MIB, "pack: larger than it may be")
    list(chunks_of(pack))
    return pack


def chunks_of(pack: Record) -> Iterator[tuple[bytes, Place]]:
    """Every chunk's id, and where it lies: chunks fill one block after the other."""
    raws = [raw for _, _, raw, _ in struct.iter_unpack(">IIIB", pack.blocks)]
    lengths, number, offset = struct.iter_unpack(">I", pack.lengths), 0, 0
    for n, (length,) in enumerate(lengths):
        need(length and number < len(raws) and raws[number] <= 15 * MIB, "pack: a chunk that lies in no block")
        yield pack.ids[24 * n : 24 * n + 24], (number, offset, length)
        offset += length
        need(offset <= raws[number], "pack: a chunk behind the end of its block")
        if offset == raws[number]:
            number, offset = number + 1, 0
    need(number == len(raws) and offset == 0, "pack: a block that is not filled")


def table_of(repository: Repository, name: str) -> Record:
    """A pack's own table of contents, as a pack record of the index would be."""
    size = size_of(repository.root, name, 64 * MIB)
    header = read(repository.root, name, 0, 16 + 1168)
    magic, kind, cipher, sealed_length, epoch = struct.unpack(">8sBBHI", header[:16])
    length, end = struct.unpack(">I8s", read(repository.root, name, size - 12, 12))
    need((magic, end, sealed_length) == (b"HFpack\x00\x01", b"HFend\x00\x00\x01", 1168), f"{name} is no pack")
    need(length <= size - 12 - len(header), f"{name}: its table does not lie within it")
    envelope = read(repository.root, name, size - 12 - length, length)
    pack = pack_of(open_shared(repository.secrets, envelope, b"pack contents " + blake3(header[16:]).digest()))
    need((pack.kind, pack.cipher, pack.epoch) == (kind, cipher, epoch), f"{name}: its table is not of its header")
    need((pack.name, pack.size, pack.sealed) == (b"", 0, b""), f"{name}: its table says what it cannot know")
    pack.name, pack.size, pack.sealed = bytes.fromhex(name[-64:]), size, header[16:]
    return pack


def add_pack(repository: Repository, pack: Record) -> None:
    for id_, place in chunks_of(pack):
        repository.chunks.setdefault(id_, []).append((pack, place))


def read_tables(repository: Repository, packs: Iterable[str]) -> None:
    for name in sorted(packs):
        repository.unread.discard(name)
        with noting(repository.refused, name):
            add_pack(repository, table_of(repository, name))


def load_index(repository: Repository) -> None:
    root, refused, index, present = repository.root, repository.refused, {}, {}
    for name in names(root, "data"):
        with noting(refused, name):
            present[name] = size_of(root, name, 64 * MIB)
    for name in names(root, "index"):
        with noting(refused, name):
            content = fields(open_shared(repository.secrets, read_object(root, name), b"index"), INDEX)
            index[name] = [pack_of(pack) for pack in content.packs], {f"index/{n.hex()}" for n in content.supersedes}
    superseded = set().union(*(supersedes for _, supersedes in index.values()))
    packs = [pack for name in sorted(index.keys() - superseded) for pack in index[name][0]]
    packs = [pack for pack in packs if present.get(f"data/{pack.name.hex()}") == pack.size]
    for pack in packs:
        add_pack(repository, pack)
    repository.unread = set(present)
    unreadable = any(name.startswith("index/") for name in refused)
    read_tables(repository, set(present) - (set() if unreadable else {f"data/{pack.name.hex()}" for pack in packs}))


def read_block(repository: Repository, pack: Record, number: int) -> bytes:
    if repository.block[:2] != (pack.sealed, number):
        need(13 * number < len(pack.blocks), "there is no such block")
        offset, stored, raw, codec = struct.unpack_from(">IIIB", pack.blocks, 13 * number)
        need(stored <= 15 * MIB + 16 and raw <= 15 * MIB and offset + stored <= pack.size, "a block beyond the limits")
        key = data_key(repository.secrets, pack.epoch, pack.sealed)
        data = read(repository.root, f"data/{pack.name.hex()}", offset, stored)
        cipher = (AESGCM, ChaCha20Poly1305)[pack.cipher]
        data = aead(cipher, key, number.to_bytes(12, "big"), data, struct.pack(">BI", codec, raw))
        need(codec in (0, 1), "a block of an unknown codec")
        data = unzstd(data, raw) if codec else data
        need(len(data) == raw, "a block of another length")
        repository.block = pack.sealed, number, data
    return repository.block[2]


def read_place(repository: Repository, id_: bytes, pack: Record, place: Place) -> bytes:
    number, offset, length = place
    data = read_block(repository, pack, number)[offset : offset + length]
    need(len(data) == length, "a chunk beyond its block")
    need(keyed(derive("chunk id", repository.secrets.shared), data)[:24] == id_, "bytes that are not the chunk's")
    return data


def read_chunk(repository: Repository, id_: bytes) -> bytes:
    """From any place that verifies; when the index names none that does, the tables of all packs are asked."""
    why = {"it": "is in no pack"}
    while True:
        for pack, place in repository.chunks.get(id_, []):
            with noting(why, pack.name.hex()[:8]):
                return read_place(repository, id_, pack, place)
        need(repository.unread, f"chunk {id_.hex()}: {why}")
        read_tables(repository, set(repository.unread))


# 9
def key_of(entry: Record) -> tuple[bytes, bytes]:
    return entry.folder.replace(b"/", b"\0"), entry.name


def entry_of(folder: bytes, value: Any, users: Mapping[int, str], groups: Mapping[int, str]) -> Record:
    entry = fields(value, ENTRY)
    parts = [*folder.split(b"/"), entry.name] if folder else [entry.name] if entry.name else []
    for part in parts:
        need(part not in (b"", b".", b"..") and not re.search(rb"[/\0]", part) and len(part) <= 255, f"a name {part!r}")
    need(entry.kind in tuple("fdlpsbc"), f"an entry of an unknown kind {entry.kind!r}")
    xattrs = (entry.xattrs or {}).items()
    need(all(type(k) is bytes is type(v) for k, v in xattrs), "attributes that are not bin")
    need(entry.links is None or (len(entry.links) == 2 and entry.kind != "d"), "links that are no pair, or of a folder")
    need(entry.kind == "f" or not (entry.content or entry.depth), "content of what has none")
    need(entry.kind == "l" or not entry.target, "a target of what is no link")
    need(entry.kind == "f" or entry.size == len(entry.target), "a size of what has none")
    need(entry.kind in "bc" or not entry.device, "a device number of what is no device")
    need(b"\0" not in entry.target and len(entry.content) % 24 == 0, "a target or content that cannot be")
    entry.folder, entry.user, entry.group = folder, users.get(entry.uid), groups.get(entry.gid)
    return entry


def read_leaf(value: Any) -> Generator[Record | Refused, None, Below]:
    leaf, rows = fields(value, LEAF), []
    owners = [*leaf.users.items(), *leaf.groups.items()]
    need(all(type(k) is int and type(v) is str for k, v in owners), "a leaf with owners that are not int and str")
    for run in leaf.runs:
        need(len(run) == 2 and type(run[0]) is bytes and type(run[1]) is list and run[1], "a leaf with a bad run")
        rows += [(run[0], entry if type(entry) is list else []) for entry in run[1]]
    need(len(rows) <= 1024, "a leaf with too many entries")
    for folder, row in rows:
        try:
            yield entry_of(folder, row, leaf.users, leaf.groups)
        except Refused as refusal:
            yield refusal
    first = (rows[0][0], *rows[0][1][:1]) if rows else ()
    return first, len(rows), sum(row[8] for _, row in rows if len(row) > 8 and type(row[8]) is int)


def read_page(repository: Repository, id_: bytes, level: int | None) -> Generator[Record | Refused, None, Below]:
    value = decode(read_chunk(repository, id_))
    need(type(value) is list and value and type(value[0]) is int and value[0] in (0, 1), "a page of an unknown tag")
    need(level in (None, value[1] if value[0] else 0), "a page of another level")
    if value[0] == 0:
        return (yield from read_leaf(value))
    node = fields(value, NODE)
    children = [fields(child, CHILD) for child in node.children]
    need(1 <= len(children) <= 256, "a node with no children, or too many")
    for child in children:
        try:
            below = yield from read_page(repository, child.page, node.level - 1)
            need(below == ((child.folder, child.name), child.entries, child.size), "a node that says wrong of a child")
        except Refused as refusal:
            yield refusal
    return (children[0].folder, children[0].name), sum(c.entries for c in children), sum(c.size for c in children)


def walk(repository: Repository, snapshot: Record) -> Iterator[Record | Refused]:
    """Every entry in order; in the place of one that must be refused, or of a page, why."""
    last: tuple[bytes, ...] = ()
    try:
        for entry in read_page(repository, snapshot.root, None):
            if isinstance(entry, Record) and key_of(entry) <= last:
                yield Refused(f"an entry out of order: {entry.folder!r} {entry.name!r}")
            else:
                last = key_of(entry) if isinstance(entry, Record) else last
                yield entry
    except Refused as refusal:
        yield refusal


# 10
def content_of(repository: Repository, entry: Record) -> Iterator[bytes]:
    """The bytes of a file, in parts; what was given so far is not the file unless the end is reached."""
    pieces = [entry.content[n : n + 24] for n in range(0, len(entry.content), 24)] if entry.depth else []
    left = entry.size if entry.kind == "f" else 0
    for items in (read_chunk(repository, piece) for piece in pieces) if entry.depth else [entry.content]:
        need(len(items) % 24 == 0, "a piece of a list that holds no whole items")
        for at in range(0, len(items), 24):
            zeros, length = struct.unpack_from(">16sQ", items, at)
            data = b"" if zeros == bytes(16) else read_chunk(repository, items[at : at + 24])
            left -= len(data) or length
            need(left >= 0, "a file longer than its size")
            yield from [data] if data else (bytes(min(MIB, length - n)) for n in range(0, length, MIB))
    need(left == 0, "a file shorter than its size")


# 11, 12, and everything
def snapshots(repository: Repository) -> list[Record]:
    """In their order; those that must be refused are noted."""
    need(repository.secrets.private, "a write-only key reads no snapshots")
    found = []
    for name in names(repository.root, "snapshots"):
        with noting(repository.refused, name):
            content = open_sealed(repository.secrets, read_object(repository.root, name), b"snapshot")
            snapshot = fields(content, SNAPSHOT, dict)
            snapshot.totals, snapshot.id = fields(snapshot.totals, TOTALS, dict), name[-64:]
            found.append(snapshot)
    return sorted(found, key=lambda snapshot: (snapshot.time_ns, snapshot.id))


def locks(repository: Repository) -> list[Record]:
    found = []
    for name in names(repository.root, "locks"):
        with noting(repository.refused, name):
            content = open_shared(repository.secrets, read_object(repository.root, name), b"locks")
            kind = content.get("type") if type(content) is dict else None
            need(kind in ("lease", "condemned"), "a lock of an unknown type")
            found.append(fields(content, LEASE if kind == "lease" else CONDEMNED, dict))
    return found


def check(repository: Repository) -> dict[str, str]:
    """Reads every object whole, and every chunk of every pack; says what must be refused, and why."""
    snapshots(repository)
    locks(repository)
    for name in [*names(repository.root, "keys"), *names(repository.root, "data")]:
        with noting(repository.refused, name):
            read_object(repository.root, name, 64 * MIB)
            if name.startswith("data/"):
                pack = table_of(repository, name)
                for id_, place in chunks_of(pack):
                    read_place(repository, id_, pack, place)
    return repository.refused
