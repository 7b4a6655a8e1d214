"""What a storage in a folder promises beyond the contract: the order of flushes, other people's files, every errno."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import subprocess
import sys

import pytest

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from holdfast.storage.base import CONFIG, FOLDERS
from holdfast.storage.local import LocalStorage
from tests.support.storages import list_of

HEX = "ab" * 32
NAME = f"data/{HEX}"


@pytest.fixture
def storage(tmp_path):
    made = LocalStorage(tmp_path / "s")
    made.create()
    return made


def files_below(path):
    return sorted(os.path.join(top, f) for top, _, files in os.walk(path) for f in files)


# -- the order of flushes, as the kernel saw it ------------------------------------------------------------------------

CALLS = "open,openat,writev,write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat"
PROGRAM = """
import os, sys
from holdfast.storage.local import LocalStorage
storage = LocalStorage(sys.argv[1])
{prepare}
os.path.exists("/begin")
{work}
"""


def calls_of(need, root, work, prepare=""):
    """What the work asks the kernel: lines as ``fsync(data/ab)``, paths below the root, other paths left out."""
    command = [need("strace"), "-f", "-y", "-qq", "-s", "0", "-e", f"trace={CALLS},stat,newfstatat"]
    program = [sys.executable, "-c", PROGRAM.format(work=work, prepare=prepare), str(root)]
    done = subprocess.run([*command, *program], stderr=subprocess.PIPE, text=True, check=True)
    lines = done.stderr.partition('"/begin"')[2].splitlines()
    told = []
    for line in lines:
        call = re.match(r"(?:\[pid +\d+\] )?(\w+)\(", line)
        paths = re.findall(rf'["<]({re.escape(str(root))}[^">]*)', line)
        if call and paths and call[1] not in ("stat", "newfstatat"):
            told.append(f"{call[1]}({os.path.relpath(paths[-1], root)})")
    return [re.sub(r"#\d+|\(deleted\)| ", "#", line) for line in told]


def test_the_object_is_flushed_before_it_has_a_name_and_its_folder_after(storage, need, tmp_path):
    told = calls_of(need, tmp_path / "s", f"storage.put('{NAME}', [b'x'])")
    steps = [line for line in told if not line.startswith("open")]
    assert steps[0] == "fsync(data)"  # the folder's own entry, once
    assert steps[1].startswith("writev(data/ab/#")
    assert steps[2].startswith("fsync(data/ab/#")
    assert steps[3:] == [f"linkat({NAME[:5]}ab/{HEX})", "fsync(data/ab)"]


def test_a_second_object_in_a_known_folder_costs_two_flushes(storage, need, tmp_path):
    told = calls_of(
        need,
        tmp_path / "s",
        f"storage.put('{NAME}', [b'x'])",
        prepare=f"storage.put('data/cd{HEX[2:]}', [b'x'])",
    )
    assert [line.partition("(")[0] for line in told if "fsync" in line] == ["fsync"] * 2


def test_a_named_object_is_flushed_before_it_is_linked_too(storage, need, tmp_path):
    told = calls_of(need, tmp_path / "s", f"storage._unnamed = False; storage.put('{NAME}', [b'x'])")
    steps = [re.sub(r"tmp/[0-9a-f]{32}", "tmp/T", line) for line in told if "open" not in line]
    link = next(i for i, s in enumerate(steps) if s.startswith("link"))
    assert steps[:link] == ["fsync(data)", "mkdir(tmp)", "writev(tmp/T)", "fsync(tmp/T)"]
    assert steps[link:] == [f"link(data/ab/{HEX})", "unlink(tmp/T)", "fsync(data/ab)"]


def test_a_new_folder_is_flushed_into_its_parent_before_anything_is_in_it(storage, need, tmp_path):
    (tmp_path / "s" / "data" / "ab").rmdir()
    storage.put(CONFIG, [b"config"])
    told = [c for c in calls_of(need, tmp_path / "s", f"storage.put('{NAME}', [b'x'])") if "open" not in c]
    assert told[:3] == ["fsync(.)", "mkdir(data/ab)", "fsync(data)"]


def test_a_folder_made_by_somebody_killed_before_its_flush_is_flushed_by_the_next(tmp_path, need):
    """mkdir, then kill -9: the folder is there, and only a power cut would tell that it is not durable."""
    root = tmp_path / "deep" / "s"
    LocalStorage(root).create()
    told = [c for c in calls_of(need, tmp_path, f"LocalStorage('{root}').create()") if "fsync" in c]
    assert told[0] == "fsync(deep)"  # the root's own entry
    assert told.count("fsync(deep/s)") >= len(FOLDERS)
    assert told[-1] == "fsync(deep/s/data)"


def test_an_object_that_exists_is_durable_when_that_is_said(storage, need, tmp_path):
    storage.put(NAME, [b"x"])
    work = f"try: storage.put('{NAME}', [b'x'])\nexcept Exception: pass"
    assert [c for c in calls_of(need, tmp_path / "s", work) if "fsync" in c] == ["fsync(data/ab)"]


def test_a_delete_is_flushed_also_when_somebody_else_had_begun_it(storage, need, tmp_path):
    storage.put(NAME, [b"x"])
    told = calls_of(need, tmp_path / "s", f"storage.delete('{NAME}'); storage.delete('{NAME}')")
    steps = [c for c in told if "open" not in c]
    assert steps == [f"unlink(data/ab/{HEX})", "fsync(data/ab)"] * 2


# -- what else lies in the folder --------------------------------------------------------------------------------------


def test_what_is_not_an_object_is_not_listed(storage, tmp_path):
    root = tmp_path / "s"
    storage.put(NAME, [b"x"])
    for path in [".hidden", "ab" * 31, HEX.upper(), f"{HEX}.tmp", "../README"]:
        (root / "data" / "ab" / path).write_text("foreign")
    (root / "data" / "cd" / HEX).write_text("an object's name in another's folder")
    (root / "data" / "ab" / ("cd" * 32)).mkdir()
    (root / "data" / "ab" / ("ef" * 32)).symlink_to("/etc/passwd")
    os.mkfifo(root / "data" / "ab" / ("0a" * 32))
    (root / "data" / "aB").mkdir()
    (root / "data" / "zz").mkdir()
    (root / "data" / "ef").rmdir()
    (root / "data" / "ef").write_text("a file where a folder should be")
    (root / "keys" / "notes\n.txt").write_text("foreign")
    (root / "keys" / os.fsdecode(b"\xff\xfe")).write_text("foreign")
    assert [i.name for i in storage.list("data")] == [NAME]
    assert list_of(storage, "keys") == []


def test_a_link_a_fifo_or_a_folder_under_an_objects_name_is_never_read_as_an_object(storage, tmp_path):
    (tmp_path / "secret").write_text("secret")
    place = tmp_path / "s" / "data" / "ab" / HEX
    for make in (lambda: place.symlink_to(tmp_path / "secret"), lambda: os.mkfifo(place), place.mkdir):
        make()
        with pytest.raises(StorageError):
            storage.get(NAME)
        with pytest.raises(StorageError):
            storage.stat(NAME)
        with pytest.raises(ObjectExists):
            storage.put(NAME, [b"x"])
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    assert (tmp_path / "secret").read_text() == "secret"


def test_objects_and_folders_are_for_their_owner_only(storage, tmp_path):
    storage.put(NAME, [b"x"])
    for top, folders, files in os.walk(tmp_path / "s"):
        for name in folders + files:
            assert os.stat(os.path.join(top, name)).st_mode & 0o077 == 0


def test_what_killed_writers_left_is_removed_in_time(storage, tmp_path, no_tmpfile):
    folder = tmp_path / "s" / "tmp"
    folder.mkdir()
    old, new = folder / "old", folder / "new"
    old.write_text("left")
    new.write_text("somebody is writing it")
    os.utime(old, (1, 1))
    storage.put(NAME, [b"x"])
    assert files_below(folder) == [str(new)]


def test_a_folder_that_a_copy_left_out_because_it_was_empty_is_made_again(storage, tmp_path):
    storage.put(CONFIG, [b"config"])
    for path in [*(tmp_path / "s" / "data").iterdir(), *(tmp_path / "s" / f for f in FOLDERS)]:
        path.rmdir()
    again = LocalStorage(tmp_path / "s")
    assert all(not list_of(again, folder) for folder in FOLDERS)
    for folder in FOLDERS:
        again.put(f"{folder}/{HEX}", [b"x"])
        assert again.get(f"{folder}/{HEX}") == b"x"


# -- a disk that is not there ------------------------------------------------------------------------------------------


def test_where_no_repository_ever_was_the_config_is_missing(tmp_path):
    with pytest.raises(ObjectMissing):
        LocalStorage(tmp_path / "none").get(CONFIG)
    with pytest.raises(ObjectMissing):
        LocalStorage(tmp_path / "none").stat(CONFIG)


@pytest.mark.parametrize("left", ["nothing", "an empty mount point"])
def test_a_disk_that_went_away_is_not_an_empty_repository(storage, tmp_path, left):
    storage.put(NAME, [b"x"])
    (tmp_path / "s").rename(tmp_path / "elsewhere")
    if left == "an empty mount point":
        (tmp_path / "s").mkdir()
    calls = [
        lambda: storage.put(NAME, [b"x"]),
        lambda: storage.put(f"locks/{HEX}", [b"x"]),
        lambda: list_of(storage, "data"),
        lambda: list_of(storage, "snapshots"),
    ]
    if left == "nothing":
        calls += [
            lambda: storage.get(NAME),
            lambda: storage.stat(NAME),
            lambda: storage.delete(NAME),
            storage.free_space,
        ]
    for call in calls:
        with pytest.raises(StorageUnavailable):
            call()
    assert not files_below(tmp_path / "s")


# -- errors ------------------------------------------------------------------------------------------------------------

EXPECTED = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EFBIG: StorageFull,
    errno.EACCES: StorageDenied,
    errno.EPERM: StorageDenied,
    errno.EROFS: StorageDenied,
    errno.EIO: StorageUnavailable,
    errno.ESTALE: StorageUnavailable,
    errno.ETIMEDOUT: StorageUnavailable,
    errno.EMFILE: StorageUnavailable,
    errno.ENAMETOOLONG: StorageError,
    errno.ELOOP: StorageError,
}


@pytest.mark.parametrize("number", EXPECTED, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "writev", "fsync", "link"])
def test_every_error_of_the_system_in_a_put_is_one_of_the_contracts_and_leaves_nothing(
    storage, tmp_path, monkeypatch, call, number
):
    if call == "link" and number == errno.EPERM:
        number = errno.EACCES  # EPERM means that there are no hard links here, and another way is taken

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as m:
        m.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            storage.put(NAME, [b"x"])
    assert type(caught.value) is EXPECTED[number]
    assert "data/" in str(caught.value) and caught.value.__cause__ is None
    assert files_below(tmp_path / "s") == []
    storage.put(NAME, [b"x"])
    assert storage.get(NAME) == b"x"


@pytest.mark.parametrize("number", EXPECTED, ids=errno.errorcode.get)
def test_every_error_of_the_system_in_the_other_calls_is_one_of_the_contracts(storage, monkeypatch, number):
    storage.put(NAME, [b"x"])

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    for patched, call in {
        "pread": lambda: storage.get(NAME),
        "lstat": lambda: storage.stat(NAME),
        "unlink": lambda: storage.delete(NAME),
        "fsync": lambda: storage.delete(f"data/{HEX}"),
        "scandir": lambda: list_of(storage, "keys"),
        "listdir": lambda: list_of(storage, "data"),
        "statvfs": storage.free_space,
        "mkdir": storage.create,
    }.items():
        with monkeypatch.context() as m:
            m.setattr(os, patched, fail)
            with pytest.raises(StorageError) as caught:
                call()
        assert type(caught.value) is EXPECTED[number], patched


def test_a_flush_that_fails_after_the_link_is_an_error_and_the_next_put_makes_it_good(storage, monkeypatch):
    real, calls = os.fsync, []

    def second_fails(fd):
        calls.append(fd)
        if len(calls) == 3:  # data's own entry, the file, the folder
            raise OSError(errno.EIO, "")
        real(fd)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", second_fails)
        with pytest.raises(StorageUnavailable):
            storage.put(NAME, [b"x"])
        with pytest.raises(ObjectExists):
            storage.put(NAME, [b"x"])
    assert len(calls) == 4
    assert storage.get(NAME) == b"x"


def test_a_disk_that_gives_less_than_the_file_has_is_an_error(storage, monkeypatch):
    storage.put(NAME, [b"0123456789"])
    monkeypatch.setattr(os, "pread", lambda fd, length, start: b"0123"[start:])
    with pytest.raises(StorageError, match="truncated"):
        storage.get(NAME)


def test_a_read_that_comes_in_pieces_is_put_together(storage, monkeypatch):
    data = bytes(range(200))
    storage.put(NAME, [data])
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, start: real(fd, min(length, 7), start))
    assert storage.get(NAME) == data
    assert storage.get(NAME, 50, 100) == data[50:150]


def test_a_write_that_goes_in_pieces_is_put_together(storage, monkeypatch):
    data = os.urandom(5000)
    name = f"data/{hashlib.sha256(data).hexdigest()}"
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [bytes(b"".join(views)[:37])]))
    storage.put(name, [data[:10], data[10:11], data[11:]])
    assert storage.get(name) == data


# -- large parts, which go past the page cache -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (3 << 20) + 4095, (1 << 20) - 1])
@pytest.mark.parametrize("shift", [0, 1, 512])
def test_a_large_part_is_stored_exactly_however_it_lies_in_memory(place, size, shift):
    with mmap.mmap(-1, size + shift) as buffer:
        buffer[:] = os.urandom(size + shift)
        with memoryview(buffer)[shift:] as part:
            place.storage.put(NAME, [part, b"the end"])
            assert place.storage.get(NAME) == bytes(part) + b"the end"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSPC, errno.EIO])
def test_a_large_part_that_fails_on_the_way_is_stored_exactly_or_not_at_all(storage, monkeypatch, number):
    data, real, calls = os.urandom(3 << 20), os.write, []

    def write_some_then_fail(fd, view):
        calls.append(len(view))
        if len(calls) > 1:
            raise OSError(number, os.strerror(number))
        return real(fd, view[: 1 << 20])

    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        monkeypatch.setattr(os, "write", write_some_then_fail)
        with memoryview(buffer) as part:
            if number == errno.EINVAL:  # this file system takes no such writes: the rest goes the usual way
                storage.put(NAME, [part])
                assert storage.get(NAME) == data
            else:
                with pytest.raises(EXPECTED[number]):
                    storage.put(NAME, [part])
                with pytest.raises(ObjectMissing):
                    storage.get(NAME)


def test_someone_who_may_not_is_denied_and_told_what_to_check(storage, tmp_path, forked):
    storage.put(NAME, [b"x"])
    os.chmod(tmp_path / "s", 0o755)
    for top, folders, _ in os.walk(tmp_path / "s"):
        for folder in folders:
            os.chmod(os.path.join(top, folder), 0o555)
    path = tmp_path
    while os.geteuid() == 0 and str(path) != "/tmp":
        os.chmod(path, 0o755)
        path = path.parent
    answers, end = os.pipe()

    def try_all():
        if os.geteuid() == 0:
            os.setuid(65534)
        for call, *args in (
            (storage.put, f"data/{'cd' * 32}", [b"x"]),
            (storage.delete, NAME),
            (LocalStorage(tmp_path / "s" / "data" / "sub").create,),
        ):
            try:
                call(*args)
                os.write(end, b"nothing happened;")
            except StorageError as e:
                os.write(end, f"{type(e).__name__};".encode())

    os.waitpid(forked(try_all), 0)
    os.close(end)
    with open(answers) as f:
        assert f.read() == "StorageDenied;" * 3
    for top, folders, _ in os.walk(tmp_path / "s"):
        for folder in folders:
            os.chmod(os.path.join(top, folder), 0o755)
