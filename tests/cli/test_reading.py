"""dump and mount from the command line."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.repository.keys import KeyFile, add_key, without_private
from tests.archive.making import KEY_TEXT, QUICK, SECOND, House, make_house
from tests.support.commands import Commands
from tests.support.trees import MIB, noise, write

LARGE = noise(12 * MIB)


@dataclass
class Desk:
    house: House
    call: Commands
    tree: Path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    house = make_house(tmp_path)
    (tmp_path / "key").write_text(KEY_TEXT)
    tree = write(tmp_path / "tree", {"a/b.txt": "text", "large": LARGE, "link": "->a/b.txt", "empty": ""})
    house.back_up(tree)
    return Desk(house, Commands(tmp_path / "repository", tmp_path / "key", tmp_path), tree)


def spoil_the_largest_pack(house: House) -> None:
    path = house.path_of(max(house.packs(), key=lambda name: house.packs()[name]))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


# -- dump --------------------------------------------------------------------------------------------------------------


def test_a_file_is_written_as_it_was(desk: Desk) -> None:
    assert desk.call("dump", "latest", "large").out == LARGE
    assert desk.call("dump", "latest", "empty").out == b""
    for words in (("latest", "a/b.txt"), ("latest", "/a/b.txt"), ("latest:a", "b.txt"), ("latest:a/b.txt",)):
        assert desk.call("dump", *words).out == b"text"
    assert desk.call("dump", "latest", desk.tree / "a" / "b.txt").out == b"text"


def test_a_folder_is_written_as_tar_or_zip(desk: Desk) -> None:
    for words in (("latest",), ("latest", "/"), ("latest", desk.tree)):
        with tarfile.open(fileobj=io.BytesIO(desk.call("dump", *words).out)) as tar:
            assert tar.getnames() == ["a", "empty", "large", "link", "a/b.txt"]
            found = tar.extractfile("large")
            assert found is not None and found.read() == LARGE
    with zipfile.ZipFile(io.BytesIO(desk.call("dump", "latest", "a", "--archive", "zip").out)) as archive:
        assert archive.read("b.txt") == b"text"


def test_what_is_no_file_or_folder_or_not_there_is_refused(desk: Desk) -> None:
    assert "link is neither a file nor a folder" in desk.call("dump", "latest", "link", status=2).error
    assert "The snapshot has no 'nothing'." in desk.call("dump", "latest", "nothing", status=1).error
    assert "leads out" in desk.call("dump", "latest", "../x", status=2).error


def test_damage_ends_the_output_before_the_first_bad_byte(desk: Desk) -> None:
    spoil_the_largest_pack(desk.house)
    done = desk.call("dump", "latest", "large", status=1)
    assert MIB < len(done.out) < len(LARGE)
    assert done.out == LARGE[: len(done.out)]
    assert done.error.startswith("holdfast: 'large': Block ")
    assert desk.call("dump", "latest", "a/b.txt").out == b"text"


def test_a_file_of_a_dump_is_there_whole_or_not_at_all(desk: Desk) -> None:
    target = desk.house.folder / "out"
    done = desk.call("dump", "latest", "large", "-o", target, "--json")
    assert target.read_bytes() == LARGE
    assert done.events == [
        {
            "message_type": "summary",
            "snapshot_id": desk.house.repo.snapshots()[-1].id,
            "bytes_written": len(LARGE),
            "left_out": 0,
        }
    ]
    spoil_the_largest_pack(desk.house)
    before = sorted(os.listdir(desk.house.folder))
    desk.call("dump", "latest", "large", "-o", target, status=1)
    assert target.read_bytes() == LARGE  # the one that was there stays
    assert sorted(os.listdir(desk.house.folder)) == before
    assert desk.call("dump", "latest", "a/b.txt", "-o", "/dev/stdout").out == b"text"
    assert "is a folder" in desk.call("dump", "latest", "a/b.txt", "-o", desk.tree, status=2).error


def test_a_reader_that_has_seen_enough_is_no_error_to_tell_of(desk: Desk) -> None:
    dump = subprocess.Popen(
        desk.call.command("dump", "latest", "large"),
        env=desk.call.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert dump.stdout and dump.stderr
    assert dump.stdout.read(1000) == LARGE[:1000]
    dump.stdout.close()
    assert dump.stderr.read() == b""
    dump.stderr.close()
    assert dump.wait(20) == 1


def test_no_lease_is_left_behind(desk: Desk) -> None:
    desk.call("dump", "latest", "a/b.txt")
    assert [*desk.house.repo.storage.list("locks")] == []


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "latest"),
        ("find", "x"),
        ("diff", "latest", "latest"),
        ("stats",),
        ("tag", "latest", "--add", "x"),
        ("dump", "latest", "large"),
        ("mount", "."),
    ],
    ids=lambda words: words[0],
)
def test_a_write_only_key_reads_nothing(desk: Desk, words: tuple[str, ...]) -> None:
    repo = desk.house.repo
    key = KeyFile(bytes(32))
    add_key(repo.storage, without_private(repo.secrets.bundle), key, label="", now_ns=SECOND, argon2=QUICK)
    desk.call.key_file.write_text("holdfast-key-1:" + "A" * 43 + "=\n")
    done = desk.call("--json", *words, status=12, cwd=desk.tree)
    assert '"code": "key-cannot-read"' in done.error
    assert done.out == b""


# -- mount (the rest stands in tests/archive/test_mount.py) ------------------------------------------------------------


def test_a_folder_that_cannot_be_mounted_on_is_named(desk: Desk) -> None:
    assert "/nowhere does not exist." in desk.call("mount", desk.house.folder / "nowhere", status=2).error
    assert "is not a folder." in desk.call("mount", desk.tree / "large", status=2).error
