"""docs/format.md suffices: what the program stored, a reader written from that page alone gives back exactly."""

from __future__ import annotations

import ast
import grp
import hashlib
import json
import os
import pwd
import random
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite

from tests.independent import keys, notation, reader
from tests.independent.notation import Record, Refused

PROGRAM = Path(__file__).parents[2] / "src" / "holdfast" / "__main__.py"
PASSWORD = "pässword with a space "
KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s"}
KINDS |= {stat.S_IFBLK: "b", stat.S_IFCHR: "c"}
Entries = dict[tuple[bytes, bytes], dict[str, Any]]


# --- a real repository ----------------------------------------------------------------------------------------


class World(NamedTuple):
    """A repository at three points of its life, and what was on the disk at two of them."""

    first: Path  # one snapshot
    condemned: Path  # the second snapshot alone, after a prune that only condemned packs
    pruned: Path  # after a prune that deleted them
    tree: Path
    before: Entries
    after: Entries
    listed: list[dict[str, Any]]  # by the program: the snapshot in first, and the one in condemned and pruned
    key_file: str
    write_only: str
    sheet: str


def combed(stretches: int) -> list[tuple[int, bytes]]:
    return [(8192 * n, b"%04d" % n * 1024) for n in range(stretches)]


def write_holed(path: Path, size: int, stretches: list[tuple[int, bytes]]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in stretches:
            file.seek(at)
            file.write(data)


def make_content(root: Path) -> None:
    (root / "empty").touch()
    (root / "empty folder").mkdir()
    (root / "small").write_bytes(b"small")
    (root / "same").write_bytes(b"small")
    (root / "random").write_bytes(random.Random(1).randbytes(3 << 20))
    (root / "lines").write_bytes(b"".join(b"%015d\n" % (n // 3) for n in range(6 << 16)))
    write_holed(root / "holed", (4 << 20) + 5, [(65536, b"begin" * 9), (2 << 20, random.Random(2).randbytes(1500000))])
    write_holed(root / "hole", (3 << 20) + 7, [])
    write_holed(root / "comb", 8192 * 700, combed(700))
    (root / "many").mkdir()
    for n in range(1100):
        (root / "many" / f"{n:04}").write_bytes(b"%d" % n if n < 100 else b"")


def make_names(root: Path) -> None:
    for folder in ("a", "a/b", "a/b/c", "a-b", "a.b", "a0", "ab"):
        (root / "order" / folder).mkdir(parents=True)
    for name in ("x", "a/x", "a/b/x", "a/b-c", "a/b.c", "a-b/x", "a.b/x", "a0/x", "ab/x", "a!", "a~", "B"):
        (root / "order" / name).write_text(name)
    base = os.fsencode(root)
    for odd in (b"\xff\xfe\x80", b" ", b"-", b"new\nline", b"n" * 255, "ä".encode(), b"...", b"a\\b"):
        with open(os.path.join(base, b"order", odd), "wb") as file:
            file.write(odd)
    os.mkdir(os.path.join(base, b"folder \xc3\x28"))
    os.symlink(b"\xe9tat/../nowhere", os.path.join(base, b"folder \xc3\x28", b"link \xe9"))


def make_kinds(root: Path) -> None:
    (root / "many" / "other name").hardlink_to(root / "random")
    (root / "order" / "third name").hardlink_to(root / "random")
    (root / "empty's other name").hardlink_to(root / "empty")
    (root / "link").symlink_to("order/a")
    os.link(root / "link", root / "link's other name", follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    (root / "small").chmod(0o4710)
    (root / "empty folder").chmod(0o3777)
    if os.geteuid() == 0:
        os.chown(root / "same", 12345, 4294967294)
        os.chown(root / "link", 1, 2, follow_symlinks=False)
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(4095, 1048575))
    try:
        os.setxattr(root / "small", "user.comment", b"\x00\xff any bytes")
        os.setxattr(root / "small", "user.empty", b"")
        os.setxattr(root / "order", os.fsencode("user.ä"), b"of a folder")
    except OSError:
        pass  # the test of attributes says so
    os.utime(root / "same", ns=(0, -1_000_000_001))
    os.utime(root / "order" / "x", ns=(0, 4_102_444_800_123_456_789))
    os.utime(root / "link", ns=(0, 987_654_321), follow_symlinks=False)


def change(root: Path) -> None:
    (root / "lines").unlink()
    shutil.rmtree(root / "order" / "a")
    (root / "random").write_bytes(random.Random(3).randbytes(1 << 20))
    write_holed(root / "comb", 8192 * 900, combed(900))
    (root / "added").write_bytes(random.Random(4).randbytes(1 << 18))
    for n in range(0, 1100, 50):
        (root / "many" / f"{n:04}").write_bytes(b"changed %d" % n)


def run(home: Path, *arguments: str | Path) -> str:
    """The real program, as a child; it knows nothing but this home, the repository in it, and the password."""
    command = [sys.executable, "-I", PROGRAM, "-r", home / "repository", *arguments]
    environment = {"HOME": str(home), "HOLDFAST_PASSWORD": PASSWORD, "PATH": os.defpath}
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of(repository: Path, place: Path) -> Path:
    """Without its empty folders; and linked, since objects never change."""
    for path in repository.rglob("*"):
        if path.is_file():
            new = place / path.relative_to(repository)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.hardlink_to(path)
    return place


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    home = tmp_path_factory.mktemp("independent")
    tree = home / "tree"
    tree.mkdir()
    for make in (make_content, make_names, make_kinds):
        make(tree)
    before = on_disk(os.fsencode(tree))
    run(home, "init")
    run(home, "backup", tree)
    run(home, "key", "add", "--new-key-file", home / "full")
    run(home, "key", "add", "--write-only", "--new-key-file", home / "write-only")
    sheet = run(home, "key", "export")
    first = copy_of(home / "repository", home / "first")
    change(tree)
    after = on_disk(os.fsencode(tree))
    run(home, "backup", tree)
    listed = json.loads(run(home, "snapshots", "--json"))
    run(home, "forget", "--keep-last", "1")
    run(home, "prune")
    condemned = copy_of(home / "repository", home / "condemned")
    run(home, "prune", "--now")
    texts = (home / "full").read_text(), (home / "write-only").read_text(), sheet
    return World(first, condemned, home / "repository", tree, before, after, listed, *texts)


# --- what is compared -----------------------------------------------------------------------------------------


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    found = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in found}


def name_of(table: Any, number: int) -> str | None:
    try:
        return str(table(number)[0])
    except KeyError:
        return None


def on_disk(root: bytes) -> Entries:
    """By key, in the page's order (9)."""

    def of(folder: bytes, name: bytes) -> dict[str, Any]:
        path = os.path.join(root, folder, name).rstrip(b"/")
        found = os.lstat(path)
        kind = KINDS[stat.S_IFMT(found.st_mode)]
        content = b""
        if kind == "f":
            with open(path, "rb") as file:
                content = file.read()
        target = os.readlink(path) if kind == "l" else b""
        return {
            "kind": kind,
            "mode": stat.S_IMODE(found.st_mode),
            "owners": (found.st_uid, found.st_gid),
            "names": (name_of(pwd.getpwuid, found.st_uid), name_of(grp.getgrgid, found.st_gid)),
            "mtime": found.st_mtime_ns,
            "ctime": found.st_ctime_ns,
            "inode": found.st_ino,
            "size": found.st_size if kind == "f" else len(target),
            "content": hashlib.sha256(content).hexdigest(),
            "target": target,
            "device": found.st_rdev if kind in "bc" else 0,
            "links": [found.st_dev, found.st_ino] if found.st_nlink > 1 and kind != "d" else None,
            "xattrs": xattrs_of(path),
        }

    keys = [(b"", b"")]
    for path, folders, files in os.walk(root):
        folder = b"" if path == root else os.path.relpath(path, root)
        keys += [(folder, name) for name in folders + files]
    return {key: of(*key) for key in sorted(keys, key=lambda key: (key[0].replace(b"/", b"\0"), key[1]))}


def stored(repository: reader.Repository, snapshot: Record) -> tuple[Entries, list[str]]:
    """By key, in the order in which they are stored; and what was refused."""
    found: Entries = {}
    refused = []
    for entry in reader.walk(repository, snapshot):
        try:
            if isinstance(entry, Refused):
                raise entry
            content = hashlib.sha256()
            for part in reader.content_of(repository, entry):
                content.update(part)
        except Refused as refusal:
            refused.append(str(refusal))
            continue
        same = ("kind", "mode", "mtime", "ctime", "inode", "size", "target", "device", "links")
        found[entry.folder, entry.name] = {name: getattr(entry, name) for name in same} | {
            "owners": (entry.uid, entry.gid),
            "names": (entry.user, entry.group),
            "content": content.hexdigest(),
            "xattrs": entry.xattrs or {},
        }
    return found, refused


def assert_equal(found: Entries, expected: Entries) -> None:
    """The same entries in the same order; a change time may be withheld (9)."""
    assert list(found) == list(expected)
    for key, entry in found.items():
        assert entry == expected[key] | ({"ctime": 0} if entry["ctime"] == 0 else {}), key


def whole(root: Path, text: str) -> Entries:
    """The entries of the last snapshot, nothing of which may be refused."""
    repository = reader.open_repository(root, text=text)
    found, refused = stored(repository, reader.snapshots(repository)[-1])
    assert (refused, repository.refused) == ([], {})
    return found


# --- reading --------------------------------------------------------------------------------------------------


def test_every_entry_of_a_snapshot_is_what_was_on_disk(world: World) -> None:
    repository = reader.open_repository(world.first, password=PASSWORD)
    (snapshot,) = reader.snapshots(repository)
    found, refused = stored(repository, snapshot)
    assert refused == []
    assert_equal(found, world.before)
    assert reader.check(repository) == {}


def test_extended_attributes_are_among_them(world: World) -> None:
    if not world.before[b"", b"small"]["xattrs"]:
        pytest.skip("the file system of the temporary folder keeps no user attributes")
    assert whole(world.first, world.key_file)[b"", b"small"]["xattrs"][b"user.comment"] == b"\x00\xff any bytes"


def test_the_snapshots_are_those_that_the_program_lists(world: World) -> None:
    for root, listed in zip((world.first, world.pruned), world.listed, strict=True):
        (snapshot,) = reader.snapshots(reader.open_repository(root, text=world.key_file))
        assert snapshot.id == listed["id"]
        seconds, _, nanoseconds = listed["time"].removesuffix("Z").partition(".")
        assert snapshot.time_ns // 10**9 == datetime.fromisoformat(f"{seconds}+00:00").timestamp()
        assert snapshot.time_ns % 10**9 == int(nanoseconds)
        assert [os.fsencode(listed["base"])] == [snapshot.base] == snapshot.paths == [os.fsencode(world.tree)]
        assert (snapshot.host, snapshot.user, snapshot.tags) == (listed["host"], listed["user"], listed["tags"])
        assert (snapshot.parent or None, snapshot.program) == (listed["parent"], listed["program"])
        assert (snapshot.totals.files, snapshot.totals.bytes_total) == (listed["files"], listed["bytes"])


def test_the_totals_of_a_snapshot_count_its_entries(world: World) -> None:
    (snapshot,) = reader.snapshots(reader.open_repository(world.first, text=world.key_file))
    kinds = [entry["kind"] for entry in world.before.values()]
    sizes = [entry["size"] for entry in world.before.values() if entry["kind"] == "f"]
    assert (snapshot.totals.files, snapshot.totals.directories) == (kinds.count("f"), kinds.count("d"))
    assert snapshot.totals.others == len(kinds) - kinds.count("f") - kinds.count("d")
    assert (snapshot.totals.bytes_total, snapshot.totals.errors) == (sum(sizes), 0)


def test_the_tree_reaches_what_the_format_has(world: World) -> None:
    """Or the other tests would prove less than they seem to."""
    repository = reader.open_repository(world.first, text=world.key_file)
    (snapshot,) = reader.snapshots(repository)
    assert notation.decode(reader.read_chunk(repository, snapshot.root))[0] == 1  # a node
    entries = [entry for entry in reader.walk(repository, snapshot) if not isinstance(entry, Refused)]
    assert {0, 1} == {entry.depth for entry in entries}
    assert any(entry.content[:16] == bytes(16) and len(entry.content) == 24 for entry in entries)  # a hole alone
    packs = [reader.table_of(repository, name) for name in reader.names(world.first, "data")]
    assert {0, 1} == {pack.kind for pack in packs}
    assert {0, 1} == {codec for pack in packs for codec in pack.blocks[12::13]}
    assert reader.names(world.first, "index")
    assert {entry["kind"] for entry in world.before.values()} >= set("fdlps")


def test_a_repository_is_whole_after_a_prune(world: World) -> None:
    repository = reader.open_repository(world.pruned, text=world.key_file)
    (snapshot,) = reader.snapshots(repository)
    assert_equal(stored(repository, snapshot)[0], world.after)
    assert reader.check(repository) == {}
    assert reader.locks(repository) == []
    gone = {*reader.names(world.first, "data")} - {*reader.names(world.pruned, "data")}
    assert gone, "the prune had nothing to do"


def test_condemned_packs_are_named_and_everything_else_is_read_as_before(world: World) -> None:
    repository = reader.open_repository(world.condemned, text=world.key_file)
    (condemned,) = [lock for lock in reader.locks(repository) if lock.type == "condemned"]
    named = {f"data/{name.hex()}" for name in condemned.packs}
    assert named == {*reader.names(world.condemned, "data")} - {*reader.names(world.pruned, "data")}
    assert condemned.deadline_s == 24 * 60 * 60
    assert_equal(whole(world.condemned, world.key_file), world.after)


def test_chunks_are_found_by_the_packs_own_tables_when_no_index_object_is_left(world: World, tmp_path: Path) -> None:
    for root, expected in ((world.first, world.before), (world.pruned, world.after)):
        bare = copy_of(root, tmp_path / root.name)
        shutil.rmtree(bare / "index")
        assert reader.open_repository(bare, text=world.key_file).unread == set()
        assert_equal(whole(bare, world.key_file), expected)


# --- keys -----------------------------------------------------------------------------------------------------


def test_password_key_file_and_recovery_sheet_open_the_same_secrets(world: World) -> None:
    secrets = reader.open_repository(world.first, password=PASSWORD).secrets
    assert secrets.private
    assert secrets == reader.open_repository(world.first, text=world.key_file).secrets
    assert secrets == reader.open_repository(world.first, text=f"\n {world.key_file}\n").secrets
    assert secrets == reader.open_repository(world.first, text=world.sheet).secrets
    assert secrets == keys.bundle_of_sheet(world.sheet.lower().replace("holdfast recovery sheet", ""))


def test_with_a_recovery_sheet_everything_is_read_without_any_key_object(world: World, tmp_path: Path) -> None:
    keyless = copy_of(world.first, tmp_path / "keyless")
    shutil.rmtree(keyless / "keys")
    assert_equal(whole(keyless, world.sheet), world.before)


def test_a_write_only_key_opens_index_and_tables_but_no_snapshot(world: World) -> None:
    repository = reader.open_repository(world.first, text=world.write_only)
    assert repository.secrets.private == {}
    assert repository.chunks.keys() == reader.open_repository(world.first, text=world.key_file).chunks.keys()
    assert all(reader.table_of(repository, name) for name in reader.names(world.first, "data"))
    with pytest.raises(Refused, match="write-only"):
        reader.snapshots(repository)
    with pytest.raises(Refused, match="no private key"):
        reader.read_chunk(repository, next(iter(repository.chunks)))


def test_another_password_or_key_file_opens_nothing(world: World) -> None:
    with pytest.raises(Refused, match="no key opens"):
        reader.open_repository(world.first, password=PASSWORD.strip())
    with pytest.raises(Refused, match="no key opens"):
        reader.open_repository(world.first, text="holdfast-key-1:" + "A" * 43 + "=")


def test_a_recovery_sheet_with_a_wrong_letter_or_line_is_refused(world: World) -> None:
    lines = [line for line in world.sheet.splitlines() if line[:2].isdecimal()]
    assert len(lines) > 5
    one = lines[2]
    for wrong in (one.replace(one[4], "A" if one[4] != "A" else "B"), one[:-1] + ("0" if one[-1] != "0" else "1")):
        with pytest.raises(Refused, match="line 03"):
            keys.bundle_of_sheet("\n".join([*lines[:2], wrong, *lines[3:]]))
    for cut in ([*lines[:2], *lines[3:]], lines[:-1], lines[::-1], [*lines, lines[-1]], []):
        with pytest.raises(Refused):
            keys.bundle_of_sheet("\n".join(cut))


# --- what must be refused -------------------------------------------------------------------------------------


def flipped(root: Path, name: str, at: int, renamed: bool) -> str:
    """One bit of an object is flipped; under its old name, or under the one that its bytes have now."""
    path = reader.path_of(root, name)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 7
    path.unlink()
    if renamed:
        name = f"{name.partition('/')[0]}/{hashlib.sha256(data).hexdigest()}"
        path = reader.path_of(root, name)
        path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return name


def flips(world: World, tmp_path: Path, source: Path, name: str, positions: list[int]) -> Iterator[tuple[Path, str]]:
    """Copies of a repository with one flipped bit in one object, and what that object is called there."""
    for renamed in (False, True) if "/" in name else (False,):
        for at in positions:
            root = copy_of(source, tmp_path / f"{at} {renamed}")
            yield root, flipped(root, name, at, renamed)


def some(path: Path) -> list[int]:
    size = path.stat().st_size
    return sorted({0, 7, *range(1, size, size // 6 + 1), size - 1})


def test_a_genuine_object_under_another_name_is_refused(world: World, tmp_path: Path) -> None:
    for kind in ("index", "snapshots", "locks", "keys", "data"):
        root = copy_of(world.condemned, tmp_path / kind)
        for name in reader.names(root, kind):
            other = reader.path_of(root, f"{kind}/{hashlib.sha256(name.encode()).hexdigest()}")
            other.parent.mkdir(exist_ok=True)
            reader.path_of(root, name).rename(other)
        refused = reader.check(reader.open_repository(root, text=world.sheet))
        assert {*reader.names(root, kind)} == {name for name in refused if name.startswith(kind)}


def test_a_flipped_bit_in_config_is_refused(world: World, tmp_path: Path) -> None:
    for root, _ in flips(world, tmp_path, world.first, "config", some(world.first / "config")):
        with pytest.raises(Refused):
            reader.open_repository(root, text=world.key_file)


def test_a_flipped_bit_in_a_key_is_refused(world: World, tmp_path: Path) -> None:
    name = next(n for n in reader.names(world.first, "keys") if opened_by(world.first, n, world.key_file))
    for root, _ in flips(world, tmp_path, world.first, name, some(world.first / name)):
        with pytest.raises(Refused):
            reader.open_repository(root, text=world.key_file)


def opened_by(root: Path, name: str, text: str) -> bool:
    try:
        return bool(keys.bundle_of_key((root / name).read_bytes(), None, text))
    except Refused:
        return False


def test_a_flipped_bit_in_a_snapshot_is_refused(world: World, tmp_path: Path) -> None:
    (name,) = reader.names(world.first, "snapshots")
    for root, changed in flips(world, tmp_path, world.first, name, some(world.first / name)):
        repository = reader.open_repository(root, text=world.key_file)
        assert reader.snapshots(repository) == []
        assert list(repository.refused) == [changed]


def test_a_flipped_bit_in_a_lock_is_refused(world: World, tmp_path: Path) -> None:
    (name,) = reader.names(world.condemned, "locks")
    for root, changed in flips(world, tmp_path, world.condemned, name, some(world.condemned / name)):
        repository = reader.open_repository(root, text=world.key_file)
        assert reader.locks(repository) == []
        assert list(repository.refused) == [changed]


def test_a_flipped_bit_in_an_index_object_is_refused_and_the_packs_own_tables_take_its_place(
    world: World, tmp_path: Path
) -> None:
    name = reader.names(world.first, "index")[0]
    for root, changed in flips(world, tmp_path, world.first, name, some(world.first / name)):
        repository = reader.open_repository(root, text=world.key_file)
        assert list(repository.refused) == [changed]
        (snapshot,) = reader.snapshots(repository)
        first = next(iter(reader.walk(repository, snapshot)))
        assert isinstance(first, Record)
        assert not repository.unread


PLACES = {"magic": 0, "kind": 8, "cipher": 9, "sealed length": 11, "epoch": 15, "ML-KEM": 600, "X25519": 1135} | {
    "secret": 1140,
    "block 0": 1190,
    "table": -60,
    "table's length": -9,
    "end magic": -1,
}


@pytest.mark.parametrize("kind", [0, 1])
def test_a_flipped_bit_anywhere_in_a_pack_never_gives_back_wrong_bytes(world: World, tmp_path: Path, kind: int) -> None:
    repository = reader.open_repository(world.first, text=world.key_file)
    packs = [reader.table_of(repository, name) for name in reader.names(world.first, "data")]
    pack = next(pack for pack in packs if pack.kind == kind)
    positions = [at % pack.size for at in PLACES.values()]
    for root, changed in flips(world, tmp_path, world.first, f"data/{pack.name.hex()}", positions):
        repository = reader.open_repository(root, text=world.key_file)
        (snapshot,) = reader.snapshots(repository)
        found, refused = stored(repository, snapshot)
        assert {key: entry | {"ctime": 0} for key, entry in found.items()}.items() <= {
            key: entry | {"ctime": 0} for key, entry in world.before.items()
        }.items()
        assert refused or changed in reader.check(repository)


def test_a_copy_of_a_pack_with_broken_blocks_hides_nothing_of_the_genuine_one(world: World, tmp_path: Path) -> None:
    """Claim 7 (16): its table is genuine, and its name is the SHA-256 of its bytes."""
    bare = copy_of(world.first, tmp_path / "bare")
    shutil.rmtree(bare / "index")
    names = reader.names(bare, "data")
    for name in names:
        genuine = reader.path_of(bare, name).read_bytes()
        flipped(bare, name, 1190, renamed=True)
        reader.path_of(bare, name).write_bytes(genuine)
    assert len(reader.names(bare, "data")) == 2 * len(names)
    assert_equal(whole(bare, world.key_file), world.before)


def share(secrets: keys.Secrets, purpose: bytes, content: Any) -> bytes:
    """A shared envelope (6), as a writer would make it."""
    head, salt = b"HFshare\x01", os.urandom(32)
    key = notation.keyed(notation.derive("shared envelopes", secrets.shared), salt)
    frame = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(content))
    return head + salt + AESGCM(key).encrypt(bytes(12), frame, head + purpose)


def test_an_index_object_that_says_nonsense_hides_nothing(world: World, tmp_path: Path) -> None:
    """Claim 6 (16): whoever has a write-only key can make one. The index is a hint (8)."""
    root = copy_of(world.first, tmp_path / "first")
    secrets = reader.open_repository(root, text=world.write_only).secrets
    supersedes = [bytes.fromhex(name[-64:]) for name in reader.names(root, "index")]
    packs = []
    for name in reader.names(root, "data"):
        pack = reader.table_of(reader.Repository(root, secrets), name)
        pack.ids = pack.ids[24:] + pack.ids[:24]
        packs.append(list(vars(pack).values()))
    store(root, "index", share(secrets, b"index", [packs, supersedes]))
    assert_equal(whole(root, world.key_file), world.before)


def test_index_objects_that_are_superseded_do_not_count(world: World, tmp_path: Path) -> None:
    root = copy_of(world.first, tmp_path / "first")
    before = reader.open_repository(root, text=world.key_file)
    supersedes = [bytes.fromhex(name[-64:]) for name in reader.names(root, "index")]
    store(root, "index", share(before.secrets, b"index", [[], supersedes]))
    after = reader.open_repository(root, text=world.key_file)
    assert before.unread == {*reader.names(root, "data")}
    assert after.unread == set()  # nothing names them now: their own tables were read


def store(root: Path, kind: str, data: bytes) -> None:
    path = reader.path_of(root, f"{kind}/{hashlib.sha256(data).hexdigest()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def library_seal(private: bytes, info: bytes, secret: bytes) -> bytes:
    """HPKE as the library does it, where the reader does what the page writes out."""
    public = notation.public_key(private)
    lattice, curve = (
        MLKEM768PublicKey.from_public_bytes(public[:1184]),
        X25519PublicKey.from_public_bytes(public[1184:]),
    )
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    return suite.encrypt(secret, MLKEM768X25519PublicKey(lattice, curve), info)


def with_chacha(repository: reader.Repository, pack: Record) -> bytes:
    """A pack of the same chunks, sealed with ChaCha20-Poly1305, as a writer would make it (3, 4, 6, 7)."""
    (epoch, private), secret = max(repository.secrets.private.items()), os.urandom(32)
    info = b"holdfast v1 " + bytes.fromhex(repository.secrets.repository) + struct.pack(">I", epoch)
    sealed = library_seal(private, info, secret)
    key = notation.keyed(notation.derive("proof of writers", repository.secrets.shared), secret)
    data, blocks = b"HFpack\x00\x01" + struct.pack(">BBHI", pack.kind, 1, 1168, epoch) + sealed, b""
    for number in range(len(pack.blocks) // 13):
        raw = reader.read_block(repository, pack, number)
        extra = struct.pack(">BI", number % 2, len(raw))
        payload = zstandard.ZstdCompressor().compress(raw) if number % 2 else raw
        block = ChaCha20Poly1305(key).encrypt(number.to_bytes(12, "big"), payload, extra)
        blocks += struct.pack(">IIIB", len(data), len(block), len(raw), number % 2)
        data += block
    record = [b"", 0, pack.kind, 1, epoch, b"", blocks, pack.ids, pack.lengths]
    table = share(repository.secrets, b"pack contents " + blake3(sealed).digest(), record)
    return data + table + struct.pack(">I", len(table)) + b"HFend\x00\x00\x01"


def test_packs_of_the_other_cipher_written_from_the_page_are_read_by_reader_and_program(
    world: World, tmp_path: Path
) -> None:
    """The program seals with AES where the processor has it."""
    root = copy_of(world.first, tmp_path / "repository")
    repository = reader.open_repository(root, text=world.key_file)
    packs = [reader.table_of(repository, name) for name in reader.names(root, "data")]
    sealed = [with_chacha(repository, pack) for pack in packs]
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "index")
    for data in sealed:
        store(root, "data", data)
    assert_equal(whole(root, world.key_file), world.before)
    records = [list(vars(reader.table_of(repository, name)).values()) for name in reader.names(root, "data")]
    store(root, "index", share(repository.secrets, b"index", [records, []]))
    assert_equal(whole(root, world.key_file), world.before)
    run(tmp_path, "check", "--read-data")


# --- parts of it ----------------------------------------------------------------------------------------------


NOWHERE = reader.Repository(Path("/nonexistent"), keys.Secrets("", b"", {}))
GOOD = [b"name", "f", 0o644, 1000, 1000, 5, 5, 7]  # the rest has defaults
BAD: dict[str, tuple[bytes, dict[int, Any]]] = {
    "an empty name": (b"a", {0: b""}),
    "the name .": (b"", {0: b"."}),
    "the name ..": (b"", {0: b".."}),
    "a name with a slash": (b"", {0: b"a/b"}),
    "a name with a zero byte": (b"", {0: b"a\0"}),
    "a name of 256 bytes": (b"", {0: b"n" * 256}),
    "a name that is str": (b"", {0: "name"}),
    "an absolute folder": (b"/etc", {}),
    "a folder that ends in a slash": (b"a/", {}),
    "a folder with ..": (b"a/../b", {}),
    "a folder with .": (b"./a", {}),
    "a folder with an empty part": (b"a//b", {}),
    "a folder with a zero byte": (b"a\0b", {}),
    "an unknown kind": (b"", {1: "x"}),
    "no kind": (b"", {1: ""}),
    "two kinds": (b"", {1: "fd"}),
    "a mode beyond 7777": (b"", {2: 0o10000}),
    "a negative owner": (b"", {3: -1}),
    "an owner of 33 bits": (b"", {3: 1 << 32}),
    "a group that is true": (b"", {4: True}),
    "a time that is a float": (b"", {5: 1.0}),
    "a size of 64 bits": (b"", {8: 1 << 63}),
    "content that is no whole items": (b"", {9: b"x" * 25}),
    "an unknown depth": (b"", {10: 2}),
    "a target of a file": (b"", {11: b"x"}),
    "a device number of a file": (b"", {12: 1}),
    "links that are no pair": (b"", {13: [1, 2, 3]}),
    "links of a folder": (b"", {1: "d", 13: [1, 2]}),
    "attributes that are str": (b"", {14: {"user.a": b""}}),
    "content of a folder": (b"", {1: "d", 9: bytes(24)}),
    "a size of a pipe": (b"", {1: "p", 8: 1}),
    "a link whose size is not its target's": (b"", {1: "l", 8: 2, 11: b"x"}),
    "a target with a zero byte": (b"", {1: "l", 8: 1, 11: b"\0"}),
}


@pytest.mark.parametrize("what", BAD)
def test_one_entry_that_must_be_refused_keeps_no_other_from_being_read(what: str) -> None:
    folder, changes = BAD[what]
    row: list[Any] = [*GOOD, 0, b"", 0, b"", 0, None, None]
    for at, value in changes.items():
        row[at] = value
    leaf = [
        0,
        {1000: "somebody"},
        {},
        [[b"", [GOOD]], [folder, [row]], [b"z", [[*GOOD, *[0, b"", 0, b"", 0, None, None]]]]],
    ]
    first, bad, last = reader.read_leaf(leaf)
    assert isinstance(first, Record)
    assert isinstance(bad, Refused)
    assert isinstance(last, Record)
    assert (first.user, first.group, first.size, first.xattrs, last.folder) == ("somebody", None, 0, None, b"z")


@pytest.mark.parametrize("value", [[], b"", [GOOD], GOOD[:7]], ids=["empty", "bin", "nested", "short"])
def test_an_entry_of_another_structure_is_refused(value: Any) -> None:
    (refused,) = reader.read_leaf([0, {}, {}, [[b"", [value]]]])
    assert isinstance(refused, Refused)


def test_folders_come_depth_first_and_what_is_out_of_order_or_there_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def walked(*folders: bytes) -> list[bool]:
        leaf = [0, {}, {}, [[folder, [GOOD]] for folder in folders]]
        monkeypatch.setattr(reader, "read_page", lambda *_: reader.read_leaf(leaf))
        return [isinstance(entry, Record) for entry in reader.walk(NOWHERE, Record(root=bytes(24)))]

    assert walked(b"", b"a", b"a/b", b"a/b/c", b"a-b", b"a.b", b"a0", b"b") == [True] * 8
    assert walked(b"a", b"a.b", b"a/b", b"b") == [True, True, False, True]
    assert walked(b"a", b"a", b"b") == [True, False, True]


ZEROS = bytes(16)
FILES = {
    "nothing": (0, 0, b"", b""),
    "a hole": (5, 0, ZEROS + struct.pack(">Q", 5), bytes(5)),
    "a list of pieces": (12, 1, b"piece".ljust(24) * 2, (b"data" + bytes(2)) * 2),
    "a file longer than its items": (6, 0, ZEROS + struct.pack(">Q", 5), None),
    "a file shorter than its hole": (5, 0, ZEROS + struct.pack(">Q", 1 << 63), None),
    "a file shorter than its chunk": (3, 0, b"chunk".ljust(24), None),
    "a piece that holds no whole items": (4, 1, b"torn".ljust(24), None),
    "a chunk that cannot be had": (4, 0, b"lost".ljust(24), None),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_exactly_as_long_as_its_size_or_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = b"chunk".ljust(24) + ZEROS + struct.pack(">Q", 2)
    use_chunks(monkeypatch, {b"chunk": b"data", b"piece": items, b"torn": items[:30]})
    size, depth, content, expected = FILES[what]
    entry = Record(kind="f", size=size, depth=depth, content=content)
    if expected is None:
        with pytest.raises(Refused):
            list(reader.content_of(NOWHERE, entry))
    else:
        assert b"".join(reader.content_of(NOWHERE, entry)) == expected


def use_chunks(monkeypatch: pytest.MonkeyPatch, chunks: dict[bytes, bytes]) -> None:
    def read_chunk(_: reader.Repository, id_: bytes) -> bytes:
        notation.need(id_.rstrip() in chunks, "lost")
        return chunks[id_.rstrip()]

    monkeypatch.setattr(reader, "read_chunk", read_chunk)


NODES: dict[str, list[Any]] = {
    "a child that begins elsewhere": [1, 1, [[b"", b"other", b"leaf".ljust(24), 1, 9]]],
    "a child of fewer entries": [1, 1, [[b"", b"name", b"leaf".ljust(24), 2, 9]]],
    "a child of another size": [1, 1, [[b"", b"name", b"leaf".ljust(24), 1, 8]]],
    "a leaf where nodes must be": [1, 2, [[b"", b"name", b"leaf".ljust(24), 1, 9]]],
    "itself as a child": [1, 1, [[b"", b"name", b"root".ljust(24), 1, 9]]],
    "no children": [1, 1, []],
    "too high a level": [1, 12, [[b"", b"name", b"leaf".ljust(24), 1, 9]]],
    "an unknown tag": [2, {}, {}, []],
    "a child that is lost": [1, 1, [[b"", b"name", b"lost".ljust(24), 1, 9]]],
}


@pytest.mark.parametrize("what", NODES)
def test_a_node_must_be_right_about_what_is_below_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def walked(root: list[Any]) -> list[Record | Refused]:
        leaf = [0, {}, {}, [[b"", [[*GOOD, 9, ZEROS + struct.pack(">Q", 9)]]]]]
        use_chunks(monkeypatch, {b"leaf": msgspec.msgpack.encode(leaf), b"root": msgspec.msgpack.encode(root)})
        return list(reader.walk(NOWHERE, Record(root=b"root".ljust(24))))

    assert [type(entry) for entry in walked([1, 1, [[b"", b"name", b"leaf".ljust(24), 1, 9]]])] == [Record]
    assert [type(entry) for entry in walked(NODES[what])][-1] == Refused


def test_elements_and_keys_behind_those_of_the_page_are_ignored() -> None:
    full = [*GOOD, 0, b"", 0, b"", 0, None, None, "added", {}]
    (entry,) = reader.read_leaf([0, {}, {}, [[b"", [full]]], "added"])
    assert isinstance(entry, Record)
    lease = {"type": "lease", "work": "w", "host": "", "process": "", "boot": "", "started_ns": 1, "added": 1}
    assert notation.fields(lease, reader.LEASE, dict).knows == []


def test_only_one_zstd_frame_that_states_its_size_is_unpacked() -> None:
    data, pack = b"some data" * 99, zstandard.ZstdCompressor().compress
    good = pack(data)
    assert notation.unzstd(good, len(data)) == data
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    for bad in (
        unsized,
        good + good,
        good + b"\0",
        skippable + good,
        skippable,
        good[:-1],
        b"",
        data,
        pack(b"") + b"\0",
    ):
        with pytest.raises(Refused):
            notation.unzstd(bad, 1 << 20)
    with pytest.raises(Refused, match="limit"):
        notation.unzstd(good, len(data) - 1)


def test_nothing_after_a_value_and_no_bin_for_a_str() -> None:
    with pytest.raises(Refused):
        notation.decode(b"\x01\x02")
    with pytest.raises(Refused):
        notation.fields([b"not str"], "name:str")


def test_this_reader_imports_nothing_of_the_program() -> None:
    allowed = {"tests", "argon2", "blake3", "cryptography", "msgspec", "pytest", "zstandard", "__future__"}
    files = sorted(Path(__file__).parent.glob("**/*.py"))
    assert {"reader.py", "notation.py", "keys.py"} < {file.name for file in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                top = module.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file.name} imports {module}"
                assert top != "importlib", file.name
                assert top != "tests" or module.startswith("tests.independent"), f"{file.name} imports {module}"
            assert not (isinstance(node, ast.Name) and node.id in ("__import__", "exec", "eval")), file.name
    code = "import sys; from tests.independent import reader; print([m for m in sys.modules if 'holdfast' in m])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
