"""Ways in which backups were, or could have been, lost: each was found once and must never come back."""

import json
import secrets
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from holdfast.errors import Damaged, KeyCannotRead, UnknownVersion
from holdfast.repository.format import PACK_MAX, Chunker
from holdfast.repository.index import load_index
from holdfast.repository.packs import PackBuilder
from holdfast.repository.repair import repair_packs
from holdfast.repository.repository import parse_config
from holdfast.repository.snapshots import put_snapshot
from holdfast.repository.writer import INDEX_PACKS, SMALL
from tests.repository.making import Files, new_repository, read_back, store, through, write_only
from tests.support.commands import Commands
from tests.support.storages import Misbehaving, fails

TREE: Files = {b"a/%d" % n: b"content %d " % n * 50 for n in range(40)}


def names(repo, folder):
    return sorted(info.name for info in repo.storage.list(folder))


def test_a_write_only_key_repairs_no_packs_and_removes_none():
    repo = new_repository()
    store(repo, TREE)
    before = names(repo, "data")
    with pytest.raises(KeyCannotRead):
        repair_packs(write_only(repo), dry_run=False)
    assert names(repo, "data") == before


def test_a_full_key_that_lacks_an_epoch_leaves_its_packs_alone():
    repo = new_repository()
    first = store(repo, TREE)
    other = new_repository().secrets.bundle.epochs[0]
    epochs = [msgspec.structs.replace(other, number=2)]
    blind = through(repo, repo.storage)
    blind.secrets = type(repo.secrets)(msgspec.structs.replace(repo.secrets.bundle, epochs=epochs))
    report = repair_packs(blind, dry_run=False)
    assert any("epoch" in text for text in report.lost)
    assert read_back(repo, first) == TREE


def test_a_pack_that_cannot_be_read_just_now_is_not_removed_by_repair():
    repo = new_repository()
    first = store(repo, TREE)
    for name in names(repo, "index"):
        repo.storage.delete(name)
    before = names(repo, "data")
    flaky = through(repo, Misbehaving(repo.storage, [fails("get", times=3, folder="data")]))
    repair_packs(flaky, dry_run=False)
    assert set(before) <= set(names(repo, "data"))
    assert read_back(repo, first) == TREE


def test_a_pack_that_is_what_was_stored_but_not_understood_is_left_alone():
    repo = new_repository()
    store(repo, TREE)
    strange = b"from a later version " * 100
    name = f"data/{sha256(strange).hexdigest()}"
    repo.storage.put(name, [strange])
    report = repair_packs(repo, dry_run=False)
    assert name in names(repo, "data")
    assert any(name in text for text in report.lost)


def test_a_pack_of_many_tiny_chunks_counts_its_table():
    repo = new_repository()
    with repo.writing() as session:
        for _ in range(300_000):
            chunk = secrets.token_bytes(24)
            session.writer.space(SMALL, 24)[:24] = chunk
            session.writer.keep(SMALL, chunk, 24)
        session.writer.flush()
    sizes = [info.size for info in repo.storage.list("data")]
    assert max(sizes) <= PACK_MAX * 3 // 4
    loaded = load_index(repo.storage, repo.secrets)
    assert not loaded.unreadable
    assert len(loaded.index) == 300_000


def test_packs_are_named_by_the_index_long_before_a_backup_ends(monkeypatch):
    repo = new_repository()
    monkeypatch.setattr(PackBuilder, "has_room", lambda self, stored, chunks: self.number == 0)
    monkeypatch.setattr("holdfast.repository.writer.BLOCK_CHUNKS", 1)
    with repo.writing() as session:
        for n in range(INDEX_PACKS + 40):
            session.writer.add(SMALL, b"chunk %d" % n)
        for task in list(session.writer._tasks):
            task.result()
        assert names(repo, "index")


@pytest.mark.parametrize(
    "chunker",
    [
        Chunker(min_size=0),
        Chunker(max_size=64 << 20),
        Chunker(min_size=4 << 20, avg_size=1 << 20),
        Chunker(normalization=9),
    ],
)
def test_a_config_that_would_cut_wrongly_is_damaged(chunker):
    line = msgspec.json.encode(msgspec.structs.replace(new_repository().config, chunker=chunker)) + b"\n"
    with pytest.raises(Damaged):
        parse_config(line, "here")


def test_a_config_with_another_way_of_cutting_is_of_a_newer_version():
    chunker = Chunker(algorithm="keyed-2030")
    line = msgspec.json.encode(msgspec.structs.replace(new_repository().config, chunker=chunker)) + b"\n"
    with pytest.raises(UnknownVersion):
        parse_config(line, "here")


@pytest.fixture
def call(tmp_path: Path) -> Commands:
    key = tmp_path / "key"
    key.write_text("holdfast-key-1:" + "QUFB" * 10 + "QUE=\n")
    made = Commands(tmp_path / "repository", key, tmp_path)
    made("init")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("precious")
    made("backup", tmp_path / "tree")
    return made


def test_a_planted_snapshot_object_keeps_nobody_from_a_restore(call, tmp_path):
    junk = b"junk"
    (call.place / "snapshots" / sha256(junk).hexdigest()).write_bytes(junk)
    done = call("restore", "latest", "--target", tmp_path / "out")
    assert sha256(junk).hexdigest()[:8] in done.error
    assert (tmp_path / "out" / "file").read_text() == "precious"
    assert call("prune", status=1).error.startswith("holdfast: ")


def test_snapshots_dated_in_the_future_push_nothing_out(call):
    from holdfast import settings
    from holdfast.wiring import app as wiring

    found = settings.load({"repository": str(call.place), "key_file": str(call.key_file)}, {"HOME": str(call.folder)})
    repo = wiring.App(found, lambda prompt: None).open()
    good = repo.snapshots()[0]
    late = msgspec.structs.replace(good.snapshot, time_ns=good.snapshot.time_ns + 10**18)
    planted = put_snapshot(repo.storage, repo.secrets, late)
    done = call("forget", "--keep-last", "1")
    assert planted[:8] in done.error
    assert {s["id"] for s in json.loads(call("snapshots", "--json").out)} == {good.id, planted}
