"""Blocks, tables and envelopes that somebody with a key made to lie: always Damaged, never a wrong byte, little memory.

Whoever has only the storage cannot make these: he lacks the keys. A stolen write-only key can.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
import zstandard

from holdfast.errors import Damaged, HoldfastError, UnknownVersion
from holdfast.repository import crypto
from holdfast.repository.check import check
from holdfast.repository.format import (
    BLOCK,
    BLOCK_MAX,
    CIPHER_AES,
    CIPHER_CHACHA,
    CODEC_RAW,
    CODEC_ZSTD,
    ID_SIZE,
    KIND_DATA,
    OBJECT_MAX,
    PACK_END,
    PACK_TRAILER,
    Entry,
)
from holdfast.repository.index import load_index, put_index_object
from holdfast.repository.packs import BUFFER_SIZE, Block, PackBuilder, pack_name, read_contents
from holdfast.repository.pages import TreeWriter
from holdfast.repository.prune import Request, prune
from holdfast.repository.repair import repair_index, repair_packs, repair_snapshots
from holdfast.repository.repository import Repository
from holdfast.repository.writer import TREE
from tests.repository.making import (
    a_snapshot,
    memory,
    new_repository,
    read_back,
    store,
    what_is_left,
)

GOOD = {b"good": b"good content" * 500}
TRUE = b"the content of the file " * 100  # what the snapshot's one file should hold
Lie = Callable[[PackBuilder], None]


def a_frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(data)


@dataclass
class Forged:
    """A repository with a good snapshot, and one whose file lies in a forged pack."""

    repo: Repository
    good: str
    bad: str
    chunk: bytes
    pack: str

    def demand_found_and_harmless(self, *kinds: type[HoldfastError]) -> None:
        with pytest.raises(kinds or Damaged):
            self.repo.reader().read(self.chunk)
        found, lost = what_is_left(self.repo, self.bad)
        assert (found, lost) == ({}, {b"file"})
        assert read_back(self.repo, self.good) == GOOD
        report = check(self.repo, read_data=1)
        assert not report.good
        assert {a.path for a in report.affected} == {b"file"} and {a.snapshot for a in report.affected} == {self.bad}
        assert self.pack in str(report.findings) + str(report.affected)

    def demand_repaired(self) -> None:
        for repair in (repair_index, repair_packs, repair_snapshots):
            repair(self.repo, dry_run=False)
        left = {s.snapshot.original or s.id: s.id for s in self.repo.snapshots()}
        assert read_back(self.repo, left[self.good]) == GOOD
        assert read_back(self.repo, left[self.bad]) in ({}, {b"file": TRUE})
        prune(self.repo, Request(now=True))
        report = check(self.repo, read_data=1)
        assert report.good, (report.findings, report.affected)


def forge(
    payload: bytes = TRUE,
    *,
    codec: int = CODEC_RAW,
    raw: int | None = None,
    cipher: int = CIPHER_AES,
    lie: Lie = lambda builder: None,
    indexed: bool = True,
    change: Callable[[bytes], bytes] = lambda pack: pack,
) -> Forged:
    """One block of one chunk. ``lie`` changes the table before it is sealed, ``change`` the pack before it is named."""
    repo = new_repository()
    good = store(repo, GOOD)
    chunk = repo.secrets.chunk_id(TRUE)
    with repo.writing() as session:
        tree = TreeWriter(lambda page: session.writer.add(TREE, page), 1, lambda u: "", lambda g: "")
        tree.add(b"", [Entry(b"file", "f", 0o600, 0, 0, 0, 0, 0, len(TRUE), chunk)])
        bad = session.commit(a_snapshot(repo, tree.finish(), name=b"/forged"))
    builder = PackBuilder(repo.secrets, KIND_DATA, cipher, mmap.mmap(-1, BUFFER_SIZE))
    length = len(TRUE) if raw is None else raw
    builder.add(Block(KIND_DATA, length, [chunk], [length]), codec, payload)
    lie(builder)
    record, parts = builder.finish()
    data = change(b"".join(parts))
    record.name, record.size = crypto.object_digest([data]), len(data)
    repo.storage.put(pack_name(record), [data])
    if indexed:
        put_index_object(repo.storage, repo.secrets, [record])
    return Forged(repo, good, bad, chunk, pack_name(record))


def cut(*lengths: int) -> Lie:
    """The table says that there are so many chunks of such lengths; the second is the forged one, if there is one."""

    def lie(builder: PackBuilder) -> None:
        (chunk,) = builder.ids
        builder.lengths = list(lengths)
        builder.ids = [b"\x77" * ID_SIZE, chunk, b"\x78" * ID_SIZE][: len(lengths)] if len(lengths) > 1 else [chunk]

    return lie


def block(**fields: int) -> Lie:
    """The table says something else about the block."""

    def lie(builder: PackBuilder) -> None:
        entry = dict(zip(("offset", "stored", "raw", "codec"), BLOCK.unpack_from(builder.blocks), strict=True))
        builder.blocks[: BLOCK.size] = BLOCK.pack(*{**entry, **fields}.values())

    return lie


def test_nothing_is_wrong_with_a_pack_that_does_not_lie() -> None:
    for cipher in (CIPHER_AES, CIPHER_CHACHA):
        for codec, payload in ((CODEC_RAW, TRUE), (CODEC_ZSTD, a_frame(TRUE))):
            for indexed in (True, False):
                forged = forge(payload, codec=codec, cipher=cipher, indexed=indexed)
                assert read_back(forged.repo, forged.bad) == {b"file": TRUE}
                repair_index(forged.repo, dry_run=False)
                assert check(forged.repo, read_data=1).good


WITHOUT_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(TRUE)
TOO_LARGE = a_frame(bytes(BLOCK_MAX + 1))
LIES: dict[str, Callable[[bool], Forged]] = {
    "a bomb": lambda i: forge(TOO_LARGE, codec=CODEC_ZSTD, indexed=i),
    "a bomb of the largest size a block may say": lambda i: forge(
        TOO_LARGE, codec=CODEC_ZSTD, raw=BLOCK_MAX, indexed=i
    ),
    "a frame without its size": lambda i: forge(WITHOUT_SIZE, codec=CODEC_ZSTD, indexed=i),
    "a frame of another size": lambda i: forge(a_frame(TRUE + b"x"), codec=CODEC_ZSTD, indexed=i),
    "a frame that is cut off": lambda i: forge(a_frame(TRUE)[:-3], codec=CODEC_ZSTD, indexed=i),
    "no frame": lambda i: forge(b"not zstd at all", codec=CODEC_ZSTD, indexed=i),
    "an empty frame": lambda i: forge(b"", codec=CODEC_ZSTD, indexed=i),
    "raw bytes of another size": lambda i: forge(TRUE[:-1], indexed=i),
    "an unknown codec": lambda i: forge(codec=7, indexed=i),
    "other content": lambda i: forge(TRUE[::-1], indexed=i),
    "a chunk that begins later": lambda i: forge(lie=cut(1, len(TRUE) - 1), indexed=i),
    "a chunk that ends sooner": lambda i: forge(lie=cut(1, len(TRUE) - 2, 1), indexed=i),
    "a block outside the pack": lambda i: forge(lie=block(offset=0xFFFFFFFF), indexed=i),
    "a block at another place": lambda i: forge(lie=block(offset=17), indexed=i),
    "a block longer than the pack": lambda i: forge(lie=block(stored=BLOCK_MAX + 16), indexed=i),
    "a block of no length": lambda i: forge(lie=block(stored=0), indexed=i),
    "a block that says another raw size": lambda i: forge(raw=len(TRUE) + 1, indexed=i),
    "a block that says another codec": lambda i: forge(lie=block(codec=CODEC_ZSTD), indexed=i),
}


@pytest.mark.parametrize("indexed", [True, False], ids=["in the index", "in its own table"])
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_damage_that_is_found_and_repaired(lie: str, indexed: bool) -> None:
    forged = LIES[lie](indexed)
    forged.demand_found_and_harmless()
    forged.demand_repaired()


@pytest.mark.parametrize(
    "lie",
    [
        lambda b: b.lengths.append(5),
        lambda b: b.ids.append(b"x" * (ID_SIZE - 1)),
        lambda b: b.ids.append(b"x" * ID_SIZE),
        lambda b: b.blocks.extend(b"x"),
    ],
)
def test_a_table_with_ragged_columns_is_not_used(lie: Lie) -> None:
    forged = forge(lie=lie, indexed=False)
    loaded = load_index(forged.repo.storage, forged.repo.secrets)
    assert list(loaded.unreadable) == [forged.pack] and "ragged" in loaded.unreadable[forged.pack]
    forged.demand_found_and_harmless()


NOT_FILLED: dict[str, Callable[[bool], Forged]] = {
    "a chunk behind the block's end": lambda i: forge(lie=cut(len(TRUE) + 1), indexed=i),
    "a chunk in no block": lambda i: forge(lie=cut(len(TRUE), 1), indexed=i),
    "a chunk far outside": lambda i: forge(lie=cut(0xFFFFFFFF), indexed=i),
    "a shorter chunk": lambda i: forge(lie=cut(len(TRUE) - 1), indexed=i),
    "a chunk of no length": lambda i: forge(lie=cut(0), indexed=i),
    "a chunk of no length behind another one": lambda i: forge(lie=cut(0, len(TRUE)), indexed=i),
    "a bomb that says so": lambda i: forge(TOO_LARGE, codec=CODEC_ZSTD, raw=BLOCK_MAX + 1, indexed=i),
    "a block that says an impossible raw size": lambda i: forge(lie=block(raw=0xFFFFFFFF), indexed=i),
    "a block of nothing": lambda i: forge(lie=lambda b: b.blocks.extend(bytes(BLOCK.size)), indexed=i),
}


@pytest.mark.parametrize("indexed", [True, False], ids=["in the index", "in its own table"])
@pytest.mark.parametrize("lie", NOT_FILLED)
def test_a_table_whose_chunks_do_not_fill_the_blocks_is_not_used(lie: str, indexed: bool) -> None:
    forged = NOT_FILLED[lie](indexed)
    loaded = load_index(forged.repo.storage, forged.repo.secrets)
    assert list(loaded.unreadable) == [forged.pack] and "fill" in loaded.unreadable[forged.pack]
    assert len(loaded.damaged) == indexed
    forged.demand_found_and_harmless()


def with_trailer(toc_size: int, magic: bytes = PACK_END) -> Callable[[bytes], bytes]:
    return lambda pack: pack[: -PACK_TRAILER.size] + PACK_TRAILER.pack(toc_size, magic)


@pytest.mark.parametrize(
    "change",
    [
        with_trailer(0), with_trailer(1), with_trailer(0xFFFFFFFF), with_trailer(2000),
        with_trailer(200, b"HFend\0\0\2"),
        lambda p: b"HFpack\x00\x02" + p[8:],
        lambda p: p[:8] + b"\1" + p[9:],  # says that it holds pages
        lambda p: p[:9] + b"\1" + p[10:],  # another cipher than its table says
        lambda p: p[:10] + b"\xff\xff" + p[12:],
        lambda p: p[:10] + b"\0\0" + p[12:],
        lambda p: p[:12] + b"\0\0\0\7" + p[16:],
        lambda p: p[:20] + bytes([p[20] ^ 1]) + p[21:],
        lambda p: p[:30], lambda p: p[:15], lambda p: b"", lambda p: p[-200:], lambda p: bytes(len(p)),
    ],
)  # fmt: skip
def test_a_pack_whose_head_or_end_lies_is_not_adopted(change: Callable[[bytes], bytes]) -> None:
    forged = forge(change=change, indexed=False)
    loaded = load_index(forged.repo.storage, forged.repo.secrets)
    assert list(loaded.unreadable) == [forged.pack]
    with pytest.raises(Damaged, match=forged.pack):
        read_contents(forged.repo.storage, forged.repo.secrets, forged.pack, forged.repo.storage.stat(forged.pack).size)
    forged.demand_found_and_harmless()


def test_a_cipher_of_the_future_is_said_to_be_one() -> None:
    forged = forge(lie=lambda b: setattr(b, "cipher", 9), change=lambda p: p[:9] + b"\x09" + p[10:])
    forged.demand_found_and_harmless(UnknownVersion)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 10**6}, {"sealed": b""}, {"sealed": b"x" * 1168}, {"epoch": 9}, {"epoch": -1}, {"cipher": 1},
    ],
)  # fmt: skip
def test_an_index_that_points_elsewhere_is_found_out(change: dict[str, object]) -> None:
    """The pack itself is good: after the index was written anew from it, so is everything."""
    forged = forge(indexed=False)
    (record,) = load_index(forged.repo.storage, forged.repo.secrets, contents=True).adopted
    put_index_object(forged.repo.storage, forged.repo.secrets, [msgspec.structs.replace(record, **change)])
    forged.demand_found_and_harmless()
    repair_index(forged.repo, dry_run=False)
    assert read_back(forged.repo, forged.bad) == {b"file": TRUE}
    assert check(forged.repo, read_data=1).good


@pytest.mark.parametrize(
    "change", [{"blocks": b""}, {"blocks": bytes(13)}, {"blocks": b"\xff" * 13}, {"lengths": b"\xff" * 4}]
)
def test_an_index_whose_chunks_do_not_fill_the_blocks_hides_nothing(change: dict[str, object]) -> None:
    """It is not used; the pack's own table takes its place."""
    forged = forge(indexed=False)
    (record,) = load_index(forged.repo.storage, forged.repo.secrets, contents=True).adopted
    put_index_object(forged.repo.storage, forged.repo.secrets, [msgspec.structs.replace(record, **change)])
    assert read_back(forged.repo, forged.bad) == {b"file": TRUE}
    report = check(forged.repo, read_data=1)
    assert any("index/" in finding.object for finding in report.findings) and not report.affected
    repair_index(forged.repo, dry_run=False)
    assert check(forged.repo, read_data=1).good


def test_a_wrong_pack_does_not_hide_the_right_one() -> None:
    """Of a chunk that two packs claim to hold, repair keeps the one that really does."""
    forged = forge(TRUE[::-1])
    with forged.repo.writing() as session:
        session.drop({bytes.fromhex(forged.pack[5:])})
        assert session.writer.add(TREE, TRUE) == forged.chunk
        session.writer.flush()
    forged.demand_repaired()
    assert read_back(forged.repo, forged.bad) == {b"file": TRUE}


def test_damage_in_a_pack_that_is_rewritten_stops_prune_before_anything_goes() -> None:
    forged = forge(TRUE[::-1])
    for number in range(40):
        store(forged.repo, {b"more": b"%d" % number})
    before = {n: d for n, d in memory(forged.repo).objects.items() if n.startswith(("data", "snapshots"))}
    with pytest.raises(Damaged, match="Block 0 of the pack"):
        prune(forged.repo, Request(now=True))
    assert before.items() <= memory(forged.repo).objects.items()


# -- envelopes --------------------------------------------------------------------------------------------------------


def shut(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Repository, bytes, bytes]:
    """A shared and a sealed envelope around a frame of somebody's own making."""
    repo = new_repository()
    monkeypatch.setattr(crypto, "compress", lambda data: data)
    return repo, repo.secrets.share(b"index", frame), repo.secrets.seal(b"snapshot", frame)


def says(size: int) -> bytes:
    """A frame that says to hold so many bytes, and holds few: magic, a header with an 8-byte size, one raw block."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little") + b"\x21\0\0" + b"abcd"


@pytest.mark.parametrize(
    "frame",
    [says(OBJECT_MAX + 1), says(1 << 62), says((1 << 64) - 1), says(5), WITHOUT_SIZE, b"", b"junk", a_frame(TRUE)[:-1]],
)
def test_an_envelope_whose_frame_lies_is_damage(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, shared, sealed = shut(frame, monkeypatch)
    with pytest.raises(Damaged, match="It "):
        repo.secrets.open_shared(b"index", shared, "It")
    with pytest.raises(Damaged, match="It "):
        repo.secrets.open_sealed(b"snapshot", sealed, "It")


def test_a_frame_that_tells_the_truth_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    repo, shared, sealed = shut(says(4), monkeypatch)
    assert (
        repo.secrets.open_shared(b"index", shared, "It")
        == repo.secrets.open_sealed(b"snapshot", sealed, "It")
        == b"abcd"
    )


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20, 39, 40, 55, 56, 200, 1170, 1180, 1195])
def test_an_envelope_that_is_cut_off_is_damage(size: int) -> None:
    secrets = new_repository().secrets
    with pytest.raises(Damaged):
        secrets.open_shared(b"index", secrets.share(b"index", b"")[: min(size, 64)], "It")
    with pytest.raises(Damaged):
        secrets.open_sealed(b"snapshot", secrets.seal(b"snapshot", b"data")[:size], "It")


_MEASURE = """
import resource, sys, zstandard
from holdfast.errors import Damaged
from holdfast.repository.packs import unpack_payload
from holdfast.repository.crypto import decompress
from holdfast.repository.format import BLOCK_MAX, CODEC_ZSTD, OBJECT_MAX

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def frame(size):
    made = zstandard.ZstdCompressor(write_content_size=True).compressobj(size=size)
    parts = [made.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, made.flush()])

kind = sys.argv[1]
bomb = frame(2 << 30)
before = peak()
try:
    if kind == "block":
        unpack_payload(bomb, CODEC_ZSTD, int(sys.argv[2]), "It")
    else:
        decompress(bomb, OBJECT_MAX, "It")
except Damaged:
    print(peak() - before)
"""


@pytest.mark.parametrize("arguments", [("block", str(BLOCK_MAX)), ("block", "100"), ("envelope",)])
def test_a_bomb_takes_no_memory(arguments: tuple[str, ...]) -> None:
    """Two gibibytes of zeros in a few hundred kilobytes; the answer is MiB of memory, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20
