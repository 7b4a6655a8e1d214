"""Makes the vectors of one version of the format: a small repository, what is in it, and faults to plant in it.

    .venv/bin/python -m tests.vectors.make FOLDER        (as root: it makes a device, and files of others)

It was run once for ``v1``, and what it made is kept for ever: old repositories must stay readable. It never replaces
anything. Keys, salts and inode numbers differ from run to run; all the rest is the same. README.md says what comes out.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sys
from pathlib import Path
from unittest import mock
from urllib.parse import quote_from_bytes

from holdfast.archive import backup
from holdfast.repository import keys, writer
from holdfast.repository.format import CIPHER_AES, CIPHER_CHACHA, ID_SIZE, Argon2, Chunker
from holdfast.repository.index import put_index_object, read_index_object
from holdfast.repository.keys import KeyFile, Password
from holdfast.repository.leases import Owner
from holdfast.repository.pages import Tree
from holdfast.repository.prune import Request as PruneRequest
from holdfast.repository.prune import prune
from holdfast.repository.repository import Repository, create, open_repository
from holdfast.storage.local import LocalStorage
from tests.vectors.plan import Json, leaves_of, write_faults

WORK = Path("/tmp/holdfast-vectors")  # a fixed place, because snapshots name it
CHUNKER = Chunker(min_size=4 << 10, avg_size=16 << 10, max_size=64 << 10)
COST = Argon2(passes=1, memory=64, lanes=1)
PASSWORD, WRITE_ONLY = "correct horse", "battery staple, übrigens"
PROGRAM = "holdfast 0.1.0"
SECOND = 1_000_000_000


class Clock:
    """Starts in November 2023 and moves a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        self.now += SECOND
        return self.now


# -- the trees -------------------------------------------------------------------------------------------------------


def make_tree(root: Path) -> None:
    """Something of everything that an entry can say."""
    for folder in ("a/b", "a.b", "many", "large", "links/below", "odd", "empty folder"):
        (root / folder).mkdir(parents=True)
    (root / "empty").touch()
    (root / "a/text").write_text("Hello, whoever reads this.\n")
    (root / "a/b/the same text").write_text("Hello, whoever reads this.\n")
    (root / "a.b/after a, by the order of folders").write_bytes(bytes(range(256)))
    for i in range(420):
        (root / f"many/{i * 7919 % 100_000:05d}").write_bytes(b"small file %d\n" % i * (i % 4))
    (root / "large/of many chunks").write_bytes(
        b"".join(b"%06d a line that comes again\n" % (i // 40) for i in range(42_000))
    )
    (root / "large/beyond one mebibyte").write_bytes(b"0123456789abcdef" * 65_536 + b"!")
    _sparse(root / "large/long list", 150, 65_536, 4096, 150 * 65_536)
    _sparse(root / "large/holes", 2, 262_144, 8192, 700_001)
    _sparse(root / "large/only a hole", 0, 0, 0, 123_456)
    (root / "links/one").write_bytes(b"a file with three names\n")
    os.link(root / "links/one", root / "links/two")
    os.link(root / "links/one", root / "links/below/three")
    (root / "links/relative").symlink_to("../a/text")
    (root / "links/leads nowhere").symlink_to("/nowhere/at all")
    os.symlink(b"\xff\xfe", os.fsencode(root) + b"/links/not UTF-8")
    for name in (b"\xff\xfe\x80", b"new\nline", "Größe 🗄".encode(), b" ", b"-rf", b"\\", b"n" * 255):
        (root / "odd" / os.fsdecode(name)).write_bytes(b"named oddly: " + name)
    os.mkfifo(root / "odd/pipe")
    os.mknod(root / "odd/socket", stat.S_IFSOCK | 0o600)
    os.mknod(root / "odd/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(root / "a/text", "user.comment", b"\x00\xff binary")
    os.setxattr(root / "a/text", "user.empty", b"")
    os.setxattr(root / "a", "user.of a folder", b"x" * 300)
    os.chown(root / "a/b/the same text", 12_345, 4_000_000_000)
    os.lchown(root / "links/relative", 1, 2)
    for path, mode in {"a/text": 0o4711, "a.b": 0o1777, "empty": 0o000, "odd/pipe": 0o620, "odd/null": 0o666}.items():
        os.chmod(root / path, mode)
    _set_times(root)


def _sparse(path: Path, extents: int, stride: int, length: int, size: int) -> None:
    """Data at every ``stride``, beginning with data, holes between, a hole at the end."""
    with path.open("wb") as f:
        for i in range(extents):
            f.seek(i * stride)
            f.write(hashlib.sha256(b"%s %d" % (path.name.encode(), i)).digest() * (length // 32))
        f.truncate(size)


def _set_times(root: Path) -> None:
    """Times to the nanosecond, one before 1970; the deepest first, as setting one changes no other."""
    rnd = random.Random(1)
    for path in sorted(root.rglob("*"), reverse=True):
        time = rnd.randrange(1_000_000_000 * SECOND, 1_600_000_000 * SECOND)
        os.utime(path, ns=(time, time), follow_symlinks=False)
    os.utime(root / "empty", ns=(0, -1_234_567_890))
    os.utime(root, ns=(0, 1_500_000_000_123_456_789))


def change_tree(root: Path) -> None:
    """What the second snapshot has differently."""
    (root / "a/new").write_text("not in the first snapshot\n")
    (root / "a/text").write_text("Hello again.\n")
    (root / "empty").unlink()
    _set_times_of(root, "a/new", "a/text", "a", ".")


def change_again(root: Path) -> None:
    """What the third snapshot has differently."""
    (root / "many/new").write_bytes(random.Random(3).randbytes(5000))
    _set_times_of(root, "many/new", "many")


def _set_times_of(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        os.utime(root / name, ns=(0, (1_650_000_000 + i) * SECOND + 7))


def describe(root: Path) -> dict[str, Json]:
    """Every entry as the file system has it, by its percent-encoded path; the base is the empty path."""
    found: dict[str, Json] = {}
    first: dict[tuple[int, int], str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = quote_from_bytes(os.fsencode(path.relative_to(root)) if path != root else b"", safe="/ ")
        st = path.lstat()
        kind = {"-": "f", "p": "p"}.get(stat.filemode(st.st_mode)[0], stat.filemode(st.st_mode)[0])
        entry: Json = {"kind": kind, "mode": f"{stat.S_IMODE(st.st_mode):04o}", "mtime_ns": st.st_mtime_ns}
        if st.st_uid or st.st_gid:
            entry |= {"uid": st.st_uid, "gid": st.st_gid}
        if kind == "f":
            content = path.read_bytes() if st.st_size else b""  # not everybody may read it
            entry |= {"size": st.st_size, "sha256": hashlib.sha256(content).hexdigest()}
            if content and (holes := _holes(path, st.st_size)):
                entry["holes"] = holes
        elif kind == "l":
            entry["target"] = quote_from_bytes(os.fsencode(os.readlink(path)))
        elif kind in "bc":
            entry["device"] = st.st_rdev
        if st.st_nlink > 1 and kind != "d":
            entry["same_file_as"] = first.setdefault((st.st_dev, st.st_ino), name)
        names = os.listxattr(path, follow_symlinks=False)
        if names:
            entry["xattrs"] = {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in sorted(names)}
        found[name] = entry
    return found


def _holes(path: Path, size: int) -> list[list[int]]:
    """The file's holes: [first byte, byte behind it]."""
    holes, at = [], 0
    with path.open("rb") as f:
        while at < size:
            try:
                data = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                data = size
            if data > at:
                holes.append([at, data])
            at = os.lseek(f.fileno(), data, os.SEEK_HOLE) if data < size else size
    return holes


# -- the repositories ------------------------------------------------------------------------------------------------


def owner(host: str = "vectors") -> Owner:
    return Owner(host, "somebody", "1/2/3", "a boot", lambda lease: False)


def make_repository(place: Path, password: str, clock: Clock) -> Repository:
    storage = LocalStorage(place)
    storage.create()
    return create(storage, Password(password), owner(), clock, label="full", argon2=COST, chunker=CHUNKER)


def back_up(repo: Repository, tree: Path, tags: tuple[str, ...], cipher: int) -> str:
    """One snapshot, its packs with the given cipher; its id."""
    request = backup.Request(paths=(os.fsencode(tree),), tags=tags, program=PROGRAM)
    with mock.patch.object(writer, "preferred_cipher", lambda: cipher):
        report = backup.back_up(repo, request)
    assert not report.troubles, report.troubles
    return report.snapshot_id


def make_v1(place: Path, clock: Clock) -> Json:
    """Three snapshots, the last by a write-only key; a condemned list; a lease; a superseded index object."""
    tree = WORK / "tree"
    make_tree(tree)
    repo = make_repository(place, PASSWORD, clock)
    bundle, storage = repo.secrets.bundle, repo.storage
    key_file = keys.new_key_file()
    parsed = keys.parse_key_file(key_file)
    assert isinstance(parsed, KeyFile)
    keys.add_key(storage, bundle, parsed, label="key file", now_ns=clock())
    weak = keys.without_private(bundle)
    keys.add_key(storage, weak, Password(WRITE_ONLY), label="write-only", now_ns=clock(), argon2=COST)

    snapshots: list[Json] = []
    trees = [describe(tree)]
    snapshots.append({"id": back_up(repo, tree, ("first", "tag two"), CIPHER_AES)})
    change_tree(tree)
    trees.append(describe(tree))
    snapshots.append({"id": back_up(repo, tree, (), CIPHER_CHACHA)})
    change_again(tree)
    trees.append(describe(tree))
    laptop = open_repository(storage, Password(WRITE_ONLY), owner("laptop"), clock)
    snapshots.append({"id": back_up(laptop, tree, ("write-only",), CIPHER_AES)})
    snapshots[0]["entries"] = trees[0]
    for before, after, snapshot in zip(trees, trees[1:], snapshots[1:], strict=False):
        snapshot["changed"] = {n: e for n, e in after.items() if before.get(n) != e}
        snapshot["removed"] = [n for n in before if n not in after]
    _need_shared_pages(repo)

    _condemn_something(repo)
    _supersede_one(repo)
    repo.leases.put("backup", clock(), frozenset(repo.leases.survey().condemned))
    return {
        "format": 1,
        "program": PROGRAM,
        "repository": repo.id,
        "password": PASSWORD,
        "write_only_password": WRITE_ONLY,
        "key_file": key_file,
        "sheet": keys.recovery_sheet(bundle, "tests/vectors/v1"),
        "base": str(tree),
        "snapshots": snapshots,
    }


def _need_shared_pages(repo: Repository) -> None:
    one, two, _ = (pages_of(repo, s.snapshot.root) for s in repo.snapshots())
    assert one & two, "the snapshots share no page: run it again"
    assert len(one) > 3, "there are too few pages: run it again"


def pages_of(repo: Repository, root: bytes) -> set[bytes]:
    """The ids of all pages below a root, and its own."""
    return {page for pages, _ in leaves_of(Tree(repo.reader().read, root), root) for page in pages}


def _condemn_something(repo: Repository) -> None:
    """A snapshot that is forgotten at once, so that prune condemns its packs; they wait."""
    scratch = WORK / "scratch"
    scratch.mkdir()
    (scratch / "forgotten").write_text("nobody needs this any more\n")
    repo.storage.delete(f"snapshots/{back_up(repo, scratch, (), CIPHER_AES)}")
    report = prune(repo, PruneRequest(max_unused=1.0))
    assert (report.condemned_packs, report.rewritten_packs, report.deleted_packs) == (2, 0, 0), report


def _supersede_one(repo: Repository) -> None:
    """An index object that stands for another one, which is still there: as if prune was killed between the two."""
    for info in sorted(repo.storage.list("index")):
        packs = read_index_object(repo.storage, repo.secrets, info.name).packs
        if any(len(p.ids) > 300 * ID_SIZE for p in packs):
            put_index_object(repo.storage, repo.secrets, packs, {info.name})
            return
    raise AssertionError("no index object names the first packs")


# -- all of it -------------------------------------------------------------------------------------------------------


def main(target: Path) -> None:
    if os.geteuid() != 0:
        sys.exit("Run it as root: it makes a device, and files of others.")
    if any((target / n).exists() for n in ("v1", "other", "v1.json", "faults.json")):
        sys.exit(f"{target} has vectors already; they are kept for ever.")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.umask(0o022)
    clock = Clock()
    expected = make_v1(target / "v1", clock)
    other = make_repository(target / "other", PASSWORD, clock)
    (WORK / "elsewhere").mkdir()
    (WORK / "elsewhere/file").write_text("of another repository\n")
    back_up(other, WORK / "elsewhere", (), CIPHER_AES)
    other.leases.put("backup", clock(), frozenset())
    for place in (target / "v1", target / "other"):
        for folder in sorted((p for p in place.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):  # as it is after git has had it
                folder.rmdir()
    (target / "v1.json").write_text(pretty(expected))
    write_faults(target)
    shutil.rmtree(WORK)


def pretty(expected: Json) -> str:
    """JSON with one entry a line."""
    text = json.dumps({**expected, "snapshots": None}, ensure_ascii=False, indent=1)
    parts = []
    for snapshot in expected["snapshots"]:
        lines = [f'  "id": {json.dumps(snapshot["id"])}']
        for key in ("entries", "changed"):
            if key in snapshot:
                entries = ",\n".join(
                    f"   {json.dumps(n, ensure_ascii=False)}: {json.dumps(e)}" for n, e in snapshot[key].items()
                )
                lines.append(f'  "{key}": {{\n{entries}\n  }}')
        if "removed" in snapshot:
            lines.append(f'  "removed": {json.dumps(snapshot["removed"])}')
        parts.append(" {\n" + ",\n".join(lines) + "\n }")
    return text.replace('"snapshots": null', '"snapshots": [\n' + ",\n".join(parts) + "\n ]") + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
