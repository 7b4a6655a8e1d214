"""Repositories of older versions stay readable for ever. In a copy with one fault the fault is found and named, nothing
of it is given back, and everything else is. What the vectors are stands in tests/vectors/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import pytest

from holdfast.archive import backup, restore
from holdfast.errors import HoldfastError, KeyCannotRead
from holdfast.repository.check import Report, check
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.format import ID_SIZE, Entry
from holdfast.repository.index import load_index
from holdfast.repository.keys import Credential, Password, parse_key_file
from holdfast.repository.leases import Owner
from holdfast.repository.pages import Tree, join
from holdfast.repository.prune import Request as PruneRequest
from holdfast.repository.prune import prune
from holdfast.repository.repository import Repository, open_repository
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage
from tests.support import components
from tests.support.storages import MemoryStorage
from tests.vectors.make import describe
from tests.vectors.plan import CREDENTIALS, leaves_of, objects_in

FOLDER = Path(__file__).parents[1] / "vectors"
V1: dict[str, Any] = json.loads((FOLDER / "v1.json").read_text())
FAULTS: dict[str, Any] = json.loads((FOLDER / "faults.json").read_text())
OBJECTS = objects_in(FOLDER / "v1")
OTHERS = {f"other/{name}": data for name, data in objects_in(FOLDER / "other").items()}
IDS = [snapshot["id"] for snapshot in V1["snapshots"]]
NOW = 1_800_000_000 * 1_000_000_000
Json = dict[str, Any]


# -- opening and restoring -------------------------------------------------------------------------------------------


def credential(kind: str) -> Credential:
    return Password(V1[kind]) if kind.endswith("password") else parse_key_file(V1[kind])


def opened(storage: Storage, kind: str = "key_file") -> Repository:
    owner = Owner("here", "somebody", "4/5/6", "another boot", lambda lease: False)
    return open_repository(storage, credential(kind), owner, lambda: NOW)


def in_memory(objects: Mapping[str, bytes] = OBJECTS) -> MemoryStorage:
    storage = MemoryStorage()
    for name, data in objects.items():
        storage.put(name, [data])
    return storage


@pytest.fixture
def on_disk(tmp_path: Path) -> LocalStorage:
    """A copy without any empty folder, as git checks it out."""
    shutil.copytree(FOLDER / "v1", tmp_path / "v1")
    assert all(any(p.iterdir()) for p in (tmp_path / "v1").rglob("*") if p.is_dir())
    return LocalStorage(tmp_path / "v1")


def expected(number: int) -> dict[str, Json]:
    """What is in a snapshot, by path."""
    entries: dict[str, Json] = dict(V1["snapshots"][0]["entries"])
    for snapshot in V1["snapshots"][1 : number + 1]:
        entries.update(snapshot["changed"])
        for path in snapshot["removed"]:
            del entries[path]
    return entries


def restored(repo: Repository, snapshot: str, target: Path) -> tuple[dict[str, Json], restore.Progress | None]:
    """What a restore makes of a snapshot; nothing when it cannot begin."""
    try:
        root = next(s.snapshot.root for s in repo.snapshots(damaged=[]) if s.id == snapshot)
        with repo.reading() as reader:
            progress = restore.restore(reader, root, restore.Request(os.fsencode(target)))
    except (HoldfastError, StopIteration):
        return (describe(target) if target.exists() else {}), None
    return describe(target), progress


@pytest.fixture(scope="session")
def impossible(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What this user cannot bring back on this file system: fields of entries, and ``device``s."""
    folder = tmp_path_factory.mktemp("possible")
    found = {"uid", "gid"} if os.geteuid() != 0 else set()
    try:
        os.setxattr(folder, "user.probe", b"")
    except OSError:
        found.add("xattrs")
    try:
        os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        found.add("device")
    return found


def comparable(entries: Mapping[str, Json], impossible: set[str]) -> dict[str, Json]:
    """Entries without what cannot be brought back here, and without holes, which are the file system's to make."""
    left_out = {*impossible, "holes"}
    found = {
        path: {key: value for key, value in entry.items() if key not in left_out}
        for path, entry in entries.items()
        if not ("device" in entry and "device" in impossible)
    }
    if "uid" in impossible:  # a file that now is somebody else's keeps no set-user-id bit
        for entry in found.values():
            entry["mode"] = entry["mode"][-3:]
    return found


# -- whole -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(IDS)))
def test_a_repository_of_version_1_is_restored_exactly(on_disk, tmp_path: Path, number: int, impossible: set[str]):
    found, progress = restored(opened(on_disk), IDS[number], tmp_path / "out")
    assert progress and not progress.troubles
    assert comparable(found, impossible) == comparable(expected(number), impossible)


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_a_repository_of_version_1_opens_with_every_credential(on_disk: LocalStorage, kind: str):
    repo = opened(on_disk, kind)
    assert repo.id == V1["repository"]
    if repo.secrets.can_read:
        assert [s.id for s in repo.snapshots()] == IDS
    else:
        with pytest.raises(KeyCannotRead):
            repo.snapshots()


def test_the_check_finds_nothing_wrong_with_it(on_disk: LocalStorage):
    report = check(opened(on_disk), read_data=1)
    assert report.good, report
    assert not report.notes
    assert (report.snapshots, report.packs_read) == (3, 8)


def test_every_object_has_the_name_that_its_bytes_have():
    for name, data in [*OBJECTS.items(), *OTHERS.items()]:
        if not name.endswith("config"):
            assert name.endswith(hashlib.sha256(data).hexdigest()), name


def test_entries_say_what_the_file_system_said():
    repo = opened(in_memory())
    reader = repo.reader()
    for number, stored in enumerate(repo.snapshots()):
        wanted, links = expected(number), dict[tuple[int, int] | None, str]()
        for directory, entries in Tree(reader.read, stored.snapshot.root).runs():
            for entry in entries:
                path = join(directory, entry.name)
                known = next(p for p in wanted if unquote_to_bytes(p) == path)
                said = wanted.pop(known)
                assert (entry.kind, f"{entry.mode:04o}", entry.mtime_ns) == (
                    said["kind"],
                    said["mode"],
                    said["mtime_ns"],
                )
                assert (entry.uid, entry.gid) == (said.get("uid", 0), said.get("gid", 0))
                assert {n.decode(): v.hex() for n, v in (entry.xattrs or {}).items()} == said.get("xattrs", {})
                assert entry.target == unquote_to_bytes(said.get("target", ""))
                assert entry.device == said.get("device", 0)
                assert holes_of(entry, repo) == said.get("holes", [])
                same = links.setdefault(entry.links, said.get("same_file_as", "")) if entry.links else ""
                assert same == said.get("same_file_as", "")
        assert not wanted


def holes_of(entry: Entry, repo: Repository) -> list[list[int]]:
    holes, at, reader = [], 0, repo.reader() if entry.content else None
    for item in items_of(entry, reader.read) if reader else ():
        length = hole_length(item)
        if length is not None:
            holes.append([at, at + length])
        at += reader.length(item) if length is None and reader else length or 0
    return holes


def test_the_vector_has_something_of_everything():
    repo = opened(in_memory())
    loaded = load_index(repo.storage, repo.secrets, contents=True)
    assert {(r.kind, r.cipher) for r in loaded.records.values()} == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert len(loaded.objects) == len(loaded.packs) + 1, "one index object is superseded"
    locks = repo.leases.survey()
    assert len(locks.condemned) == 1
    assert len(locks.live | locks.over) == 1
    reader, pages, depths, pieces = repo.reader(), list[set[bytes]](), set[int](), 0
    for stored in repo.snapshots():
        leaves = list(leaves_of(Tree(reader.read, stored.snapshot.root), stored.snapshot.root))
        pages.append({page for path, _ in leaves for page in path})
        for entry in (e for _, leaf in leaves for _, entries in leaf.runs for e in entries):
            depths.add(entry.depth)
            pieces = max(pieces, len(entry.content) // ID_SIZE)
    assert pages[0] & pages[1]
    assert pages[0] != pages[1]
    assert max(map(len, pages)) > 3
    assert depths == {0, 1}
    assert pieces > 10, "a file is cut into many chunks"


# -- going on with it ------------------------------------------------------------------------------------------------


def test_what_is_in_it_is_recognised_by_the_next_backup(on_disk: LocalStorage, tmp_path: Path):
    """The same content is cut at the same places and gets the same ids, for ever: else nothing would be shared."""
    repo = opened(on_disk)
    restored(repo, IDS[2], tmp_path / "out")
    report = backup.back_up(repo, backup.Request(paths=(os.fsencode(tmp_path / "out"),)))
    reader = repo.reader()

    def contents(root: bytes) -> dict[bytes, bytes]:
        runs = Tree(reader.read, root).runs()
        found = {join(d, e.name): e for d, entries in runs for e in entries if e.kind == "f"}
        return {path: e.content for path, e in found.items() if not holes_of(e, repo)}

    before = contents(next(s.snapshot.root for s in repo.snapshots() if s.id == IDS[2]))
    after = contents(report.snapshot.root)
    assert len(before) > 400
    assert {path: after.get(path) for path in before} == before


def test_a_write_only_key_adds_a_snapshot_to_it(on_disk: LocalStorage, tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_bytes(b"added later")
    report = backup.back_up(
        opened(on_disk, "write_only_password"), backup.Request(paths=(os.fsencode(tmp_path / "new"),))
    )
    found, _ = restored(opened(on_disk), report.snapshot_id, tmp_path / "out")
    assert found["file"]["sha256"] == hashlib.sha256(b"added later").hexdigest()
    assert check(opened(on_disk), read_data=1).good


def test_prune_deletes_what_was_condemned_and_nothing_else(on_disk, tmp_path: Path, impossible: set[str]):
    repo = opened(on_disk)
    for info in list(on_disk.list("locks")):
        if info.name in repo.leases.survey().live:
            on_disk.delete(info.name)
    report = prune(repo, PruneRequest(now=True, max_unused=1.0))
    assert report.deleted_packs == 2
    assert check(repo, read_data=1).good
    found, _ = restored(repo, IDS[0], tmp_path / "out")
    assert comparable(found, impossible) == comparable(expected(0), impossible)


# -- with one fault --------------------------------------------------------------------------------------------------


class Faulty:
    """A copy of the vector with a fault's changes done to it. ``resealed``: the new names of objects shut anew."""

    def __init__(self, fault: Json) -> None:
        self.objects, self.resealed = dict(OBJECTS), list[str]()
        for change in fault["changes"]:
            getattr(self, "_" + change["do"])(change["object"], change)

    def _flip(self, name: str, change: Json) -> None:
        data = bytearray(self.objects[name])
        data[change["at"]] ^= 1 << change["bit"]
        self.objects[name] = bytes(data)

    def _write(self, name: str, change: Json) -> None:
        data, new, at = self.objects[name], bytes.fromhex(change["hex"]), change["at"]
        self.objects[name] = data[:at] + new + data[at + len(new) :]

    def _cut(self, name: str, change: Json) -> None:
        assert change["to"] < len(self.objects[name])
        self.objects[name] = self.objects[name][: change["to"]]

    def _append(self, name: str, change: Json) -> None:
        self.objects[name] += bytes.fromhex(change["hex"])

    def _put(self, name: str, change: Json) -> None:
        self.objects[name] = bytes.fromhex(change["hex"])

    def _copy(self, name: str, change: Json) -> None:
        self.objects[change["to"]] = (self.objects | OTHERS)[name]

    def _remove(self, name: str, change: Json) -> None:
        del self.objects[name]

    def _exchange(self, name: str, change: Json) -> None:
        other = change["with"]
        self.objects[name], self.objects[other] = self.objects[other], self.objects[name]

    def _rename(self, name: str, change: Json) -> None:
        data = self.objects.pop(name)
        self.objects[f"{name.split('/')[0]}/{hashlib.sha256(data).hexdigest()}"] = data

    def _reseal(self, name: str, change: Json) -> None:
        secrets, purpose, value = opened(in_memory(), "sheet").secrets, change["purpose"], change["value"]
        sealed = purpose == "snapshot"
        open_it, shut = (secrets.open_sealed, secrets.seal) if sealed else (secrets.open_shared, secrets.share)
        content = msgspec.msgpack.decode(open_it(purpose.encode(), self.objects.pop(name), name))
        inner, path = content, change["path"]
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
        data = shut(purpose.encode(), msgspec.msgpack.encode(content))
        self.resealed.append(f"{name.split('/')[0]}/{hashlib.sha256(data).hexdigest()}")
        self.objects[self.resealed[-1]] = data


@pytest.mark.parametrize("fault", FAULTS["faults"], ids=lambda fault: fault["name"])
def test_a_fault_is_found_and_costs_nothing_else(fault: Json, tmp_path: Path, impossible: set[str]):
    faulty = Faulty(fault)
    storage = in_memory(faulty.objects)
    good = [kind for kind in CREDENTIALS if kind not in fault.get("opens", {})]
    for kind, code in fault.get("opens", {}).items():
        with pytest.raises(HoldfastError) as caught:
            opened(storage, kind)
        assert caught.value.code == code, caught.value
    for kind in good:
        assert opened(storage, kind).id == V1["repository"]
    if "key_file" not in good and "sheet" not in good:
        return
    repo = opened(storage, "key_file" if "key_file" in good else "sheet")
    lost = FAULTS["sets"][fault["lost"]] if "lost" in fault else {}
    report = check(repo, read_data=1)
    blamed = [n for name in fault["found"] for n in (faulty.resealed if name == "resealed" else [name])]
    demand_findings(report, blamed, fault.get("also", []))
    affected = {name.split("/")[1] for name in faulty.resealed if "affected" in fault}
    demand_affected(report, lost, affected or lost.keys() & {s.id for s in repo.snapshots(damaged=[])})
    for number, snapshot in enumerate(IDS):
        if number == 2 or snapshot in lost:  # the last one has nearly everything the others have
            found, progress = restored(repo, snapshot, tmp_path / str(number))
            wanted = comparable(expected(number), impossible)
            demand_the_rest(comparable(found, impossible), wanted, lost.get(snapshot, []))
            assert snapshot in lost or (progress and not progress.troubles), progress


def demand_findings(report: Report, names: list[str], also: list[str]) -> None:
    """Every object to blame is named, and none that has nothing to do with it."""
    said = "\n".join(f"{f.object} {f.text}" for f in report.findings)
    for name in names:
        assert name in said, said or "nothing was found"
    for finding in report.findings:
        assert any(name in f"{finding.object} {finding.text}" for name in [*names, *also]), finding


def demand_affected(report: Report, lost: Json, affected: set[str]) -> None:
    """The files named as affected are those that are lost; a lost page is named by the first path in it."""
    assert {a.snapshot for a in report.affected} == affected
    for snapshot, paths in lost.items():
        named = [a for a in report.affected if a.snapshot == snapshot]
        if paths != "all" and not any("entries from here on" in a.reason for a in named):
            assert {a.path for a in named} == {unquote_to_bytes(p) for p in paths}


def demand_the_rest(found: dict[str, Json], wanted: dict[str, Json], lost: list[str] | str) -> None:
    """What was restored is as it was, and only what is lost is missing."""
    here = {path: entry for path, entry in found.items() if entry["kind"] != "d"}
    rest = {p: e for p, e in wanted.items() if e["kind"] != "d" and lost != "all" and p not in lost}
    assert here.keys() == rest.keys()
    for path, entry in rest.items():
        assert here[path] == entry, path


# -- kept as they are ------------------------------------------------------------------------------------------------


def test_git_keeps_the_vectors_byte_for_byte():
    git, root = components.need("git"), FOLDER.parents[1]
    if not (root / ".git").exists():
        pytest.skip("this is not a git checkout")
    names = [str(p.relative_to(root)) for n in ("v1", "other") for p in (FOLDER / n).rglob("*") if p.is_file()]
    asked = "\0".join(names)
    attributes = subprocess.run(
        [git, "check-attr", "-z", "--stdin", "text", "diff"],
        input=asked,
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    assert len(attributes) == 6 * len(names) + 1
    assert set(attributes[2::3]) == {"unset"}
    ignored = subprocess.run(
        [git, "check-ignore", "-z", "--stdin"], input=asked, cwd=root, capture_output=True, text=True
    )
    assert not ignored.stdout
