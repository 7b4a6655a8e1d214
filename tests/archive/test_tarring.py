"""Folders as tar and zip, read by the system's own tar and by Python; contents as they stream."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from holdfast.archive.backup import Report
from holdfast.archive.content import Contents
from holdfast.archive.listing import need_entry
from holdfast.archive.tarring import write_tar, write_zip
from holdfast.errors import Damaged
from holdfast.repository.format import Entry
from tests.archive.making import House
from tests.support.components import need
from tests.support.trees import ACL, MIB, differences, everything, noise, sparse, write


def tar_of(house: House, report: Report, within: bytes = b"") -> tuple[bytes, list[tuple[bytes, str]]]:
    """The tar, and what was left out."""
    sink, left = io.BytesIO(), list[tuple[bytes, str]]()
    with Contents(house.repo.reader()) as contents:
        write_tar(sink, house.tree(report), within, contents, lambda path, why: left.append((path, why)))
    return sink.getvalue(), left


def unpacked(data: bytes, folder: Path) -> Path:
    """The tar as GNU tar unpacks it, with everything it can set; it must not complain."""
    folder.mkdir()
    options = ["-xp", "--xattrs", "--xattrs-include=*", "--same-owner", "--delay-directory-restore"]
    options += ["--warning=no-timestamp", "-C", str(folder)]
    done = subprocess.run([need("tar"), *options], input=data, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return folder


def spoil(house: House, pack: str) -> None:
    """Change a byte in the middle of a pack."""
    path = house.path_of(pack)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def largest_pack(house: House) -> str:
    return max(house.packs(), key=lambda name: house.packs()[name])


@pytest.mark.needs_root
def test_gnu_tar_unpacks_everything_as_it_was(house: House) -> None:
    tree = everything(house.folder / "tree")
    shutil.rmtree(tree / "sparse")  # a tar holds zeros there, terabytes of them
    report = house.back_up(tree)
    data, left = tar_of(house, report)
    assert left == [(b"socket", "it is a socket")]
    (tree / "socket").unlink()
    assert differences(tree, unpacked(data, house.folder / "out"), of=_paths(tree)) == []


def _paths(tree: Path) -> list[bytes]:
    """Everything below a tree but the tree itself, which is not in its tar."""
    found = []
    for top, folders, files in os.walk(os.fsencode(tree)):
        found += [os.path.relpath(os.path.join(top, name), os.fsencode(tree)) for name in folders + files]
    return found


def test_python_reads_names_times_owners_and_attributes(house: House) -> None:
    tree = house.folder / "tree"
    long = "n" * 120
    write(tree, {f"{long}/{long}": "deep", "Größe": "g", "plain": "p", "link": "->" + "t" * 150})
    (tree / os.fsdecode(b"\xff")).write_text("no text")
    os.utime(tree / "plain", ns=(0, 1_700_000_000_123_456_789))
    os.utime(tree / "Größe", ns=(0, -1_500_000_000))
    os.setxattr(tree / "plain", "user.odd=name%", b"\xff\0binary")
    os.setxattr(tree / "plain", "system.posix_acl_access", ACL)
    os.link(tree / "plain", tree / "z hard")
    data, left = tar_of(house, house.back_up(tree))
    assert left == []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        members = {m.name: m for m in tar.getmembers()}
        assert set(members) == {long, f"{long}/{long}", "Größe", "plain", "link", "z hard", os.fsdecode(b"\xff")}
        records = members["plain"].pax_headers
        assert records["mtime"] == "1700000000.123456789"
        assert members["Größe"].mtime == -1.5
        assert records["SCHILY.xattr.user.odd%3Dname%25"].encode("utf-8", "surrogateescape") == b"\xff\0binary"
        acl = records["SCHILY.xattr.system.posix_acl_access"]
        assert acl.encode("utf-8", "surrogateescape") == ACL
        assert (members["z hard"].islnk(), members["z hard"].linkname) == (True, "plain")
        assert members["link"].linkname == "t" * 150
        extracted = tar.extractfile(f"{long}/{long}")
        assert extracted is not None and extracted.read() == b"deep"
    assert len(data) % tarfile.RECORDSIZE == 0


def test_names_are_relative_to_the_folder_asked_for(house: House) -> None:
    tree = write(house.folder / "tree", {"a/b/c": "1", "a/b/d/e": "2", "a/x": "3", "f": "4"})
    os.link(tree / "f", tree / "a/b/first of two")  # its other name lies outside
    report = house.back_up(tree)
    data, _ = tar_of(house, report, b"a/b")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["c", "d", "first of two", "d/e"]
        assert tar.getmember("first of two").isreg()
    assert differences(tree / "a/b", unpacked(data, house.folder / "out"), of=[b"c", b"d", b"d/e"]) == []


def test_holes_are_zeros(house: House) -> None:
    (house.folder / "tree").mkdir()
    sparse(house.folder / "tree" / "disk", 5 * MIB + 7, [(2 * MIB, noise(1000))])
    data, _ = tar_of(house, house.back_up(house.folder / "tree"))
    out = unpacked(data, house.folder / "out")
    assert (out / "disk").read_bytes() == (house.folder / "tree" / "disk").read_bytes()


def test_numbers_that_do_not_fit_into_a_header_are_kept(house: House) -> None:
    huge = Entry(b"file", "f", 0o644, 4_000_000_000, 3_000_000, 2**33 * 10**9, 0, 1)
    root = house.store_pages((b"", [Entry(b"", "d", 0o755, 0, 0, 0, 0, 1), huge]))
    [stored] = house.repo.snapshots()
    assert stored.snapshot.root == root
    data, _ = tar_of(house, Report(stored.id, stored.snapshot, []))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmember("file")
        assert (member.uid, member.gid, member.mtime) == (4_000_000_000, 3_000_000, 2**33)


def test_a_forged_name_ends_it(house: House) -> None:
    root = house.store_pages(
        (b"", [Entry(b"", "d", 0o755, 0, 0, 0, 0, 1), Entry(b"..", "d", 0o755, 0, 0, 0, 0, 1)]),
        (b"..", [Entry(b"evil", "f", 0o644, 0, 0, 0, 0, 1)]),
    )
    [stored] = house.repo.snapshots()
    assert stored.snapshot.root == root
    with pytest.raises(Damaged, match="cannot be trusted"):
        tar_of(house, Report(stored.id, stored.snapshot, []))


def test_damage_ends_it_before_the_first_bad_byte(house: House) -> None:
    content = noise(12 * MIB)
    report = house.back_up(write(house.folder / "tree", {"large": content}))
    spoil(house, largest_pack(house))
    entry, got = need_entry(house.tree(report), b"large").entry, bytearray()
    with Contents(house.repo.reader()) as contents, pytest.raises(Damaged, match=r"'large': .*verification"):
        for piece in contents.of(entry, b"large"):
            got += piece
    assert MIB < len(got) < 11 * MIB
    assert got == content[: len(got)]


def test_a_size_that_contradicts_the_content_is_never_written_past(house: House) -> None:
    report = house.back_up(write(house.folder / "tree", {"file": noise(3 * MIB)}))
    entry = need_entry(house.tree(report), b"file").entry
    for size, most in ((3 * MIB - 1, 3 * MIB - 1), (3 * MIB + 1, 3 * MIB)):
        entry.size = size
        got = 0
        with Contents(house.repo.reader()) as contents, pytest.raises(Damaged, match="contradicts"):
            for piece in contents.of(entry, b"file"):
                got += len(piece)
        assert got <= most


def test_memory_does_not_grow_with_the_file(house: House) -> None:
    (house.folder / "tree").mkdir()
    with (house.folder / "tree" / "large").open("wb") as f:
        for i in range(80):
            f.write(noise(MIB, i))
        f.truncate(1 << 30)
    report = house.back_up(house.folder / "tree")
    entry, size = need_entry(house.tree(report), b"large").entry, 0
    with Contents(house.repo.reader()) as contents:
        tracemalloc.start()
        for piece in contents.of(entry, b"large"):
            size += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size == 1 << 30
    assert peak < 64 * MIB


# -- zip ---------------------------------------------------------------------------------------------------------------


def zip_of(house: House, report: Report) -> tuple[bytes, list[tuple[bytes, str]]]:
    sink, left = _Pipe(), list[tuple[bytes, str]]()
    with Contents(house.repo.reader()) as contents:
        write_zip(sink, house.tree(report), b"", contents, lambda path, why: left.append((path, why)))
    return bytes(sink.got), left


class _Pipe:
    """What a zip is written to: it cannot seek."""

    def __init__(self) -> None:
        self.got = bytearray()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        self.got += data
        return len(data)


def test_a_zip_holds_files_folders_and_links(house: House) -> None:
    tree = write(house.folder / "tree", {"a/b": "text", "Größe": noise(100), "empty/": "", "link": "->a/b"})
    (tree / "a/b").chmod(0o640)
    (tree / os.fsdecode(b"\xff")).write_text("no text")
    os.utime(tree / "a/b", (0, 1_700_000_001))
    os.mkfifo(tree / "pipe")
    data, left = zip_of(house, house.back_up(tree))
    assert [path for path, _ in left] == [b"pipe"]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(["a/", "a/b", "Größe", "empty/", "link", "\\xff"])
        assert archive.read("a/b") == b"text"
        assert archive.read("Größe") == noise(100)
        assert archive.read("link") == b"a/b"
        info = archive.getinfo("a/b")
        assert info.external_attr >> 16 == 0o100640
        assert archive.getinfo("link").external_attr >> 28 == 0o12
        assert info.date_time == (2023, 11, 14, 22, 13, 20)
        assert info.extra.endswith((1_700_000_001).to_bytes(4, "little"))


def test_a_zip_cut_short_by_damage_does_not_pass_for_whole(house: House) -> None:
    report = house.back_up(write(house.folder / "tree", {"a": "1", "large": noise(6 * MIB), "z": "2"}))
    spoil(house, largest_pack(house))
    sink = _Pipe()
    with Contents(house.repo.reader()) as contents, pytest.raises(Damaged):
        write_zip(sink, house.tree(report), b"", contents, lambda path, why: None)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(bytes(sink.got)))
