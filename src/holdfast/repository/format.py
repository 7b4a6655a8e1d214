"""Every stored structure, as ``docs/format.md`` specifies it. Nothing here acts; nothing elsewhere defines a layout.

Structures are MessagePack arrays (the key bundle, snapshots and leases: maps, which can grow by name). Integers outside
MessagePack are big-endian.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Final

import msgspec

VERSION: Final = 1
NO_SENSE: Final = (
    ValueError,
    RecursionError,
)  # what decoding raises: msgspec's own, bytes that are no UTF-8, deep nests

# -- sizes ---------------------------------------------------------------------------------------------------------
CHUNK_MAX: Final = 4 << 20
SMALL_MAX: Final = 1 << 20  # content up to this size is one chunk
BLOCK_MAX: Final = 15 << 20  # raw bytes; readers refuse larger ones: no decompression bombs
PACK_TARGET: Final = 32 << 20
PACK_MAX: Final = 64 << 20
ID_SIZE: Final = 24  # BLAKE3 cut to 192 bits: 2^96 work for a collision, and only with the key
TAG_SIZE: Final = 16
INLINE_CHUNKS: Final = 256  # an entry with more chunks keeps its list in chunks of their own
OBJECT_MAX: Final = 1 << 30  # of an envelope's content, unpacked: readers refuse more

# -- packs ---------------------------------------------------------------------------------------------------------
PACK_MAGIC: Final = b"HFpack\x00\x01"
PACK_END: Final = b"HFend\x00\x00\x01"
PACK_HEADER: Final = Layout(">8sBBHI")  # magic, kind, cipher, length of the sealed secret, epoch
PACK_TRAILER: Final = Layout(">I8s")  # length of the sealed table of contents, end magic
BLOCK: Final = Layout(">IIIB")  # offset in the pack, stored length, raw length, codec
LENGTH_SIZE: Final = 4  # of a chunk's length, an unsigned integer

KIND_DATA: Final = 0
KIND_TREE: Final = 1
CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1
CIPHER_AES: Final = 0
CIPHER_CHACHA: Final = 1

# -- envelopes -----------------------------------------------------------------------------------------------------
SHARED_MAGIC: Final = b"HFshare\x01"
SEALED_MAGIC: Final = b"HFseal\x00\x01"


class Chunker(msgspec.Struct, frozen=True):
    """How content is cut: FastCDC's sizes in bytes and its normalisation level."""

    algorithm: str = "fastcdc-2020"
    min_size: int = 256 << 10
    avg_size: int = 1 << 20
    max_size: int = CHUNK_MAX
    normalization: int = 2

    @property
    def is_sane(self) -> bool:
        """Whether a cutter can be made with it, and no chunk gets too large."""
        ordered = 64 <= self.min_size <= self.avg_size <= self.max_size <= CHUNK_MAX
        limits = self.min_size <= 1 << 20 and self.avg_size >= 256 and self.max_size >= 1024
        return ordered and limits and 0 <= self.normalization <= 3


class Config(msgspec.Struct, frozen=True):
    """The ``config`` object's first line, in JSON. ``repository``: 32 hex digits."""

    format: str
    version: int
    repository: str
    chunker: Chunker


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """One pair of data keys. ``private`` is empty in a write-only bundle."""

    number: int
    public: bytes
    private: bytes


class Bundle(msgspec.Struct, frozen=True):
    """What a key object wraps. The newest epoch is the last one."""

    repository: str
    shared: bytes
    epochs: list[Epoch]

    @property
    def can_read(self) -> bool:
        return all(e.private for e in self.epochs)


class Argon2(msgspec.Struct, frozen=True):
    """Parameters of Argon2id: passes, KiB, lanes."""

    passes: int = 3
    memory: int = 64 << 10
    lanes: int = 2


class KeyHeader(msgspec.Struct, frozen=True):
    """A key object's first line, in JSON; it is the associated data of the second.

    ``way``: ``password`` or ``file``. ``grants``: ``full`` or ``write-only``.
    """

    format: str
    version: int
    repository: str
    way: str
    grants: str
    label: str
    created_ns: int
    salt: str
    argon2: Argon2 | None = None


class PackRecord(msgspec.Struct, array_like=True):
    """A pack as the index and its own table of contents describe it.

    ``name``: 32 bytes, empty in a table of contents; ``size`` likewise 0. ``sealed``: the pack's secret as its header
    has it. ``blocks``: BLOCK after BLOCK. ``ids``: chunk ids, ID_SIZE each; ``lengths``: LENGTH_SIZE bytes for each of
    the same chunks. Chunks stand end to end, in this order, and fill the blocks.
    """

    name: bytes
    size: int
    kind: int
    cipher: int
    epoch: int
    sealed: bytes
    blocks: bytes
    ids: bytes
    lengths: bytes


class IndexFile(msgspec.Struct, array_like=True):
    """One index object: packs, and the names of the index objects it stands for."""

    packs: list[PackRecord]
    supersedes: list[bytes] = []


class Lease(msgspec.Struct, tag="lease", kw_only=True):
    """Somebody at work. ``knows``: the condemned lists it treats as absent; ``work``: backup, restore, prune …;
    ``put_ns``: when it was put, for storages that tell no times.
    """

    work: str
    host: str
    process: str
    boot: str
    started_ns: int
    knows: list[bytes] = []
    put_ns: int = 0


class Condemned(msgspec.Struct, tag="condemned", kw_only=True):
    """Packs to be deleted once the deadline, in seconds after the list was stored, is past."""

    packs: list[bytes]
    deadline_s: int
    host: str
    put_ns: int = 0


class Totals(msgspec.Struct, kw_only=True):
    """What one backup saw and did. Bytes are of file content; ``bytes_stored`` what storage grew by."""

    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    files: int = 0
    directories: int = 0
    others: int = 0
    bytes_total: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0
    errors: int = 0
    seconds: float = 0.0


class Snapshot(msgspec.Struct, kw_only=True):
    """One point in time. ``base`` is the folder entries are relative to; ``root`` the id of its tree of pages."""

    time_ns: int
    host: str
    user: str
    base: bytes
    paths: list[bytes]
    tags: list[str]
    root: bytes
    parent: str = ""
    original: str = ""
    program: str = ""
    totals: Totals


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One thing in a directory.

    ``kind`` is find's letter: f d l p s b c. ``mode``: permission bits. Times in ns. ``content``: chunk ids (or
    holes, see ``contents.py``) of ID_SIZE, one after the other; with ``depth`` 1 they are the chunks holding that
    list. ``target``: a symlink's. ``device``: a device node's number. ``links``: (device, inode) shared by the hard
    links of one file, else empty. ``xattrs``: names and values, POSIX ACLs among them.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    size: int = 0
    content: bytes = b""
    depth: int = 0
    target: bytes = b""
    device: int = 0
    links: tuple[int, int] | None = None
    xattrs: dict[bytes, bytes] | None = None


class Leaf(msgspec.Struct, array_like=True, tag=0):
    """A page of entries: runs of (directory, its next entries), and the names of the owners that occur."""

    users: dict[int, str]
    groups: dict[int, str]
    runs: list[tuple[bytes, list[Entry]]]


class Child(msgspec.Struct, array_like=True):
    """A page under a node: the directory and name of its first entry, its id, how many entries and bytes are below."""

    directory: bytes
    name: bytes
    page: bytes
    entries: int
    size: int


class Node(msgspec.Struct, array_like=True, tag=1):
    """A page of pages. ``level`` 1 has leaves below it."""

    level: int
    children: list[Child]
