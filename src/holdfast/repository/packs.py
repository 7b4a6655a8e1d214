"""Packs: blocks sealed one after the other, then a table of contents, built in one reusable buffer and read by range.

A pack is only ever written whole and named by the SHA-256 of its bytes. Everything in it is bound: a block to its
number (the nonce) and to its codec and raw length (associated data), the table to the pack's sealed secret.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import blake3
import msgspec
import zstandard
from cryptography.exceptions import InvalidTag

from holdfast.errors import Damaged
from holdfast.repository.crypto import Secrets, aead, object_digest
from holdfast.repository.format import (
    BLOCK,
    BLOCK_MAX,
    CODEC_RAW,
    CODEC_ZSTD,
    ID_SIZE,
    LENGTH_SIZE,
    NO_SENSE,
    PACK_END,
    PACK_HEADER,
    PACK_MAGIC,
    PACK_MAX,
    PACK_TARGET,
    PACK_TRAILER,
    TAG_SIZE,
    PackRecord,
)
from holdfast.storage.base import Buffer, Storage

MOST_BLOCKS = 1 << 16
BUFFER_SIZE = PACK_TARGET + BLOCK_MAX + (1 << 16)
_TOC_GUESS = 64 << 10  # read with the trailer, so that most tables cost one read


@dataclass
class Block:
    """Chunks stored together: how many raw bytes, and each chunk's id and length in order."""

    kind: int
    raw: int
    ids: list[bytes]
    lengths: list[int]


@dataclass
class PackBuilder:
    """A pack in the making in ``buffer`` (BUFFER_SIZE bytes, reused from pack to pack)."""

    secrets: Secrets
    kind: int
    cipher: int
    buffer: mmap.mmap
    size: int = 0
    blocks: bytearray = field(default_factory=bytearray)
    ids: list[bytes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        self._epoch, self._sealed, key = self.secrets.seal_secret()
        self._aead = aead(self.cipher, key)
        head = PACK_HEADER.pack(PACK_MAGIC, self.kind, self.cipher, len(self._sealed), self._epoch) + self._sealed
        self.buffer[: len(head)] = head
        self.size = len(head)

    def has_room(self, stored: int, chunks: int) -> bool:
        """Whether a block of that many bytes and chunks may still go into this pack, its table counted too."""
        table = (len(self.ids) + chunks) * (ID_SIZE + LENGTH_SIZE) + (self.number + 1) * BLOCK.size
        return self.number == 0 or (self.size + stored + table <= PACK_TARGET and self.number < MOST_BLOCKS)

    def add(self, block: Block, codec: int, payload: Buffer) -> None:
        """Seal payload (the block's raw bytes through codec) as the next block."""
        stored, raw = len(payload) + TAG_SIZE, block.raw
        extra = block_extra(codec, raw)
        nonce = block_nonce(self.number)
        with memoryview(self.buffer)[self.size : self.size + stored] as out:
            self._aead.encrypt_into(nonce, payload, extra, out)
        self.blocks += BLOCK.pack(self.size, stored, raw, codec)
        self.lengths += block.lengths
        self.ids += block.ids
        self.size += stored
        self.number += 1

    def finish(self) -> tuple[PackRecord, list[Buffer]]:
        """The record for the index (named, sized) and the parts to store."""
        ids, lengths = b"".join(self.ids), struct.pack(f">{len(self.lengths)}I", *self.lengths)
        record = PackRecord(b"", 0, self.kind, self.cipher, self._epoch, b"", bytes(self.blocks), ids, lengths)
        toc = self.secrets.share(toc_purpose(self._sealed), msgspec.msgpack.encode(record))
        tail = toc + PACK_TRAILER.pack(len(toc), PACK_END)
        parts: list[Buffer] = [memoryview(self.buffer)[: self.size], tail]
        record.name, record.size, record.sealed = object_digest(parts), self.size + len(tail), self._sealed
        return record, parts


def block_nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def block_extra(codec: int, raw: int) -> bytes:
    return codec.to_bytes(1, "big") + raw.to_bytes(4, "big")


def toc_purpose(sealed: bytes) -> bytes:
    return b"pack contents " + blake3.blake3(sealed).digest()


def pack_name(record: PackRecord) -> str:
    return f"data/{record.name.hex()}"


def read_contents(storage: Storage, secrets: Secrets, name: str, size: int) -> PackRecord:
    """Read the pack's own table of contents: its record, complete. Needs no private key."""
    thing = f"The pack {name}"
    least = PACK_HEADER.size + PACK_TRAILER.size
    if not least <= size <= PACK_MAX:
        raise Damaged(f"{thing} has {size} bytes, which no pack has.")
    tail = storage.get(name, max(0, size - _TOC_GUESS), min(size, _TOC_GUESS))
    toc_size, magic = PACK_TRAILER.unpack_from(tail, len(tail) - PACK_TRAILER.size)
    if magic != PACK_END or toc_size > size - least:
        raise Damaged(f"{thing} does not end as it should.")
    wanted = toc_size + PACK_TRAILER.size
    if wanted > len(tail):
        tail = storage.get(name, size - wanted, wanted)
    head = storage.get(name, 0, PACK_HEADER.size)
    magic, kind, cipher, sealed_size, epoch = PACK_HEADER.unpack(head)
    if magic != PACK_MAGIC or PACK_HEADER.size + sealed_size > size - wanted:
        raise Damaged(f"{thing} does not begin as it should.")
    sealed = storage.get(name, PACK_HEADER.size, sealed_size)
    plain = secrets.open_shared(toc_purpose(sealed), tail[len(tail) - wanted : -PACK_TRAILER.size], thing)
    record = decode_record(plain, thing)
    if (record.kind, record.cipher, record.epoch) != (kind, cipher, epoch):
        raise Damaged(f"{thing} contradicts its own table of contents.")
    record.name, record.size, record.sealed = bytes.fromhex(name[5:]), size, sealed
    check_record(record, thing)
    return record


def decode_record(plain: bytes, thing: str) -> PackRecord:
    try:
        return msgspec.msgpack.decode(plain, type=PackRecord)
    except NO_SENSE:
        raise Damaged(f"{thing}: its table of contents cannot be understood.") from None


def check_record(record: PackRecord, thing: str) -> None:
    """Refuse a record whose lengths do not fit together, before anything trusts them."""
    if (
        len(record.blocks) % BLOCK.size
        or len(record.ids) % ID_SIZE
        or len(record.lengths) % LENGTH_SIZE
        or len(record.lengths) // LENGTH_SIZE != len(record.ids) // ID_SIZE
    ):
        raise Damaged(f"{thing}: its table of contents has ragged columns.")
    try:
        for _ in lengths_by_block(record):
            pass
    except ValueError:
        raise Damaged(f"{thing}: its table of contents has chunks that do not fill their blocks.") from None


def lengths_by_block(record: PackRecord) -> Iterator[tuple[int, ...]]:
    """The lengths of each block's chunks, block by block; ValueError when chunks are empty, do not fill a block, or are
    left over, or a block is larger than a block may be.
    """
    lengths = struct.unpack(f">{len(record.lengths) // LENGTH_SIZE}I", record.lengths)
    if 0 in lengths:
        raise ValueError("an empty chunk")
    ends = list(accumulate(lengths))
    first = end = 0
    for _, _, raw, _ in BLOCK.iter_unpack(record.blocks):
        end += raw
        behind = bisect_right(ends, end, first)
        if raw > BLOCK_MAX or behind == first or ends[behind - 1] != end:
            raise ValueError("chunks that do not fill a block")
        yield lengths[first:behind]
        first = behind
    if first != len(lengths):
        raise ValueError("chunks in no block")


@dataclass(frozen=True)
class BlockReader:
    """Reads blocks of one pack: its name, its blocks as the record says, its opened key."""

    name: str
    size: int
    cipher: int
    blocks: bytes
    key: bytes

    def extent(self, number: int) -> tuple[int, int]:
        """Where the block lies in the pack: offset and stored length."""
        offset, stored, _, _ = self._entry(number)
        return offset, stored

    def read(self, storage: Storage, number: int) -> bytes:
        """The block's raw bytes, authenticated."""
        return self.read_payload(storage, number)[2]

    def read_payload(self, storage: Storage, number: int) -> tuple[int, bytes, bytes]:
        """The block's codec, its payload as packed, and its raw bytes; all authenticated."""
        offset, stored, _, _ = self._entry(number)
        return self.open(number, storage.get(self.name, offset, stored))

    def open(self, number: int, sealed: Buffer) -> tuple[int, bytes, bytes]:
        """The same for a block whose stored bytes are at hand."""
        _, _, raw, codec = self._entry(number)
        try:
            payload = aead(self.cipher, self.key).decrypt(block_nonce(number), sealed, block_extra(codec, raw))
        except (InvalidTag, ValueError):
            raise self.damaged(number) from None
        return codec, payload, unpack_payload(payload, codec, raw, f"Block {number} of the pack {self.name}")

    def damaged(self, number: int) -> Damaged:
        """The error that names this block."""
        return Damaged(f"Block {number} of the pack {self.name} fails its verification.")

    def _entry(self, number: int) -> tuple[int, int, int, int]:
        if not 0 <= number < len(self.blocks) // BLOCK.size:
            raise Damaged(f"The pack {self.name} has no block {number}.")
        offset, stored, raw, codec = BLOCK.unpack_from(self.blocks, number * BLOCK.size)
        if raw > BLOCK_MAX or stored > BLOCK_MAX + TAG_SIZE or offset + stored > self.size:
            raise Damaged(f"Block {number} of the pack {self.name} claims an impossible size.")
        return offset, stored, raw, codec


def unpack_payload(payload: bytes, codec: int, raw: int, thing: str) -> bytes:
    """Undo the codec; never more than ``raw`` bytes are made, and exactly as many are given back."""
    data = payload
    if codec == CODEC_ZSTD:
        try:
            if zstandard.frame_content_size(payload) != raw:
                raise Damaged(f"{thing} does not unpack to the size it should.")
            data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw)
        except zstandard.ZstdError:
            raise Damaged(f"{thing} does not unpack.") from None
    elif codec != CODEC_RAW:
        raise Damaged(f"{thing} was packed in an unknown way ({codec}).")
    if len(data) != raw:
        raise Damaged(f"{thing} does not unpack to the size it should.")
    return data
