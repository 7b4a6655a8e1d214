"""Manifests and files are given up: what goes, what stays, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from holdfast.accounts.directory import Identity
from holdfast.catalog import holdings
from holdfast.catalog.tables import files, manifests, parts, shelves, wanted
from holdfast.errors import Contradiction, Damaged, Forbidden, NoContent, ObjectMissing, StorageUnavailable
from holdfast.repository import prune
from holdfast.repository.check import check
from holdfast.shelf.shelf import TAG
from tests.manifests.making import Room, entry, sha256
from tests.manifests.test_files import noise
from tests.manifests.test_seen import back_it_up


def has(room: Room, data: bytes, by: Identity | None = None) -> bool:
    return room.files.state(by or room.ann, sha256(data)).is_available


def usage(room: Room) -> tuple[int, int]:
    account = room.house.directory.account(room.ann, "ann")
    return account.used_bytes, account.used_objects


def post(room: Room, name: str, *contents: bytes) -> int:
    """A manifest of these files, which are put first; its version."""
    for data in contents:
        room.put(room.ann, data)
    return room.post(room.ann, {"name": name, "files": {sha256(d): entry(d) for d in contents}}).version


def test_a_deleted_manifest_is_gone_at_once_and_its_files_soon_after(room: Room):
    post(room, "m", b"one", b"two")
    assert room.remover.delete(room.ann, "m", 1) == [1]
    with pytest.raises(NoContent):
        room.manifests.named(room.ann, "m")
    assert room.manifests.page(room.ann, limit=9, before=None, name=None).manifests == []
    assert room.remover.give_up() == 1
    assert not has(room, b"one") and not has(room, b"two")
    assert usage(room) == (0, 0)
    assert room.remover.give_up() == 0


def test_files_that_another_manifest_names_stay(room: Room):
    post(room, "m", b"one", b"shared", b"by the other")
    post(room, "m", b"two", b"shared")
    capital = {"hash": sha256(b"by the other").upper(), "size": 12}
    room.post(room.ann, {"name": "other", "files": {"x": capital}})
    room.put(room.ann, b"named by nothing")
    assert room.remover.delete(room.ann, "m", 1) == [1]
    room.remover.give_up()
    there = {data: has(room, data) for data in (b"one", b"two", b"shared", b"by the other", b"named by nothing")}
    assert there == {b"one": False, b"two": True, b"shared": True, b"by the other": True, b"named by nothing": True}
    assert room.manifests.named(room.ann, "m").version == 2
    assert room.read(room.ann, "other")["files"]["x"]["is_available"] is True


def test_a_file_that_was_sent_again_since_stays(room: Room):
    large = noise(3 << 20)
    room.put_large(room.ann, large)
    post(room, "m", b"one", b"two", large)
    room.remover.delete(room.ann, "m", 1)
    assert room.put(room.ann, b"one") is False
    room.files.keep(room.ann, sha256(large))
    room.remover.give_up()
    assert has(room, b"one") and has(room, large) and not has(room, b"two")
    with pytest.raises(StorageUnavailable):
        room.files.keep(room.ann, sha256(b"two"))


def test_a_file_goes_with_the_last_manifest_that_named_it(room: Room):
    post(room, "m", b"one")
    room.remover.delete(room.ann, "m", 1)
    post(room, "m", b"one")  # sent again, and named again
    room.remover.delete(room.ann, "m", 2)
    room.remover.give_up()
    assert not has(room, b"one")


def test_nothing_goes_while_a_manifest_is_received(room: Room):
    post(room, "m", b"one")
    room.remover.delete(room.ann, "m", 1)
    with room.database.writing() as c:
        number = holdings.begin_manifest(c, room.ann.account, room.repo.now_ns())
    assert number is not None
    assert room.remover.give_up() == 0
    assert has(room, b"one")
    with room.database.writing() as c:
        holdings.drop_unfinished(c, number, room.ann.account)
    assert room.remover.give_up() == 1
    assert not has(room, b"one")


def test_a_manifest_that_comes_while_files_are_looked_for_keeps_them(room: Room, monkeypatch: pytest.MonkeyPatch):
    post(room, "m", b"one")
    room.remover.delete(room.ann, "m", 1)
    looked = room.remover._unnamed

    def look(*about: Any) -> Iterator[tuple[str, int]]:
        found = list(looked(*about))
        room.post(room.ann, {"name": "late", "files": {"x": entry(b"one")}})
        return iter(found)

    monkeypatch.setattr(room.remover, "_unnamed", look)
    room.remover.give_up()
    monkeypatch.undo()
    room.remover.give_up()
    assert room.read(room.ann, "late")["files"]["x"]["is_available"] is True


def test_only_ones_own_goes(room: Room):
    post(room, "m", b"one")
    room.put(room.ben, b"one")
    for name, version in (("m", None), ("m", 1), ("nothing", None)):
        with pytest.raises(NoContent):
            room.remover.delete(room.ben, name, version)
    with pytest.raises(NoContent):
        room.remover.delete(room.ann, "m", 2)
    room.remover.delete(room.ann, "m", None)
    room.remover.give_up()
    assert has(room, b"one", room.ben) and not has(room, b"one")


def test_a_snapshot_of_the_command_line_is_not_deleted_here(room: Room, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    back_it_up(room, source)
    (listed,) = room.manifests.page(room.house.admin, limit=9, before=None, name=None).manifests
    with pytest.raises(Forbidden, match="command line"):
        room.remover.delete(room.house.admin, listed.name, None)


def test_its_snapshot_goes_and_prune_frees_the_space(room: Room):
    keep, go = noise(40_000, 1), noise(400_000, 2)
    post(room, "stays", keep)
    post(room, "goes", keep, go)
    made = [room.maker.make(room.manifests.named(room.ann, name).id) for name in ("stays", "goes")]
    room.remover.delete(room.ann, "goes", None)
    room.remover.give_up()
    room.tidier.tidy()
    present = {s.id for s in room.repo.snapshots()}
    assert made[0] in present and made[1] not in present
    room.stop()
    before = stored_bytes(room)
    prune.prune(room.repo, prune.Request(now=True))
    assert before - stored_bytes(room) > 390_000
    assert check(room.repo, read_data=1.0).good
    room.start()
    assert room.get(room.ann, keep) == keep


def stored_bytes(room: Room) -> int:
    return sum(info.size for info in room.repo.storage.list("data"))


def test_a_manifest_that_is_deleted_while_its_snapshot_is_made_leaves_none(room: Room, monkeypatch: pytest.MonkeyPatch):
    post(room, "m", b"one")
    number, put = room.manifests.named(room.ann, "m").id, room.shelf.put_snapshot

    def delete_meanwhile(*about: Any) -> str:
        snapshot_id = put(*about)
        room.remover.delete(room.ann, "m", None)
        room.remover.give_up()
        return snapshot_id

    monkeypatch.setattr(room.shelf, "put_snapshot", delete_meanwhile)
    with pytest.raises(NoContent):
        room.maker.make(number)
    assert not [s for s in room.repo.snapshots() if "manifest" in s.snapshot.tags]


def test_what_was_given_up_does_not_come_back_with_a_new_catalog(room: Room):
    post(room, "stays", b"one")
    post(room, "goes", b"two")
    room.remover.delete(room.ann, "goes", None)
    room.remover.give_up()
    room.tidier.tidy()
    with room.database.writing() as c:
        for table in (wanted, manifests, parts, files, shelves):
            c.execute(sa.delete(table))
    room.tidier.take_in()
    assert has(room, b"one") and not has(room, b"two")
    assert [m.name for m in room.manifests.page(room.ann, limit=9, before=None, name=None).manifests] == ["stays"]


def test_a_shelf_is_merged_as_a_whole_only_so_often(room: Room, monkeypatch: pytest.MonkeyPatch):
    post(room, "m", b"one")
    post(room, "stays", b"two")
    room.remover.delete(room.ann, "m", None)
    room.remover.give_up()
    assert room.tidier.tidy() > 1
    assert room.tidier.tidy() == 0
    room.remover.delete(room.ann, "stays", None)
    room.remover.give_up()
    assert room.tidier.tidy() == 0
    room.stop()
    room.start()  # that it is owed is remembered
    assert room.tidier.tidy() == 1


def test_a_server_that_stops_in_between_goes_on_at_its_next_start(room: Room):
    post(room, "m", b"one")
    room.remover.delete(room.ann, "m", None)
    room.stop()
    room.start()
    assert room.remover.give_up() == 1
    assert not has(room, b"one")


def test_a_file_that_nothing_names_can_be_given_up(room: Room):
    room.put(room.ann, b"one")
    room.remover.forget_file(room.ann, sha256(b"one"))
    assert not has(room, b"one") and usage(room) == (0, 0)
    with pytest.raises(NoContent):
        room.remover.forget_file(room.ann, sha256(b"one"))


def test_a_file_that_a_manifest_names_is_not_given_up(room: Room):
    post(room, "m", b"one")
    with pytest.raises(Contradiction, match=r"Version 1 of your manifest 'm'"):
        room.remover.forget_file(room.ann, sha256(b"one"))
    with room.database.writing() as c:
        holdings.begin_manifest(c, room.ann.account, room.repo.now_ns())
    room.put(room.ann, b"two")
    with pytest.raises(StorageUnavailable, match="being received"):
        room.remover.forget_file(room.ann, sha256(b"two"))
    assert has(room, b"one") and has(room, b"two")


def test_what_is_deleted_stands_in_the_audit_log(room: Room):
    post(room, "m", b"one")
    room.remover.delete(room.ann, "m", None)
    newest = room.house.directory.audit(room.house.admin)[0]
    assert (newest.actor, newest.action, newest.subject, newest.detail) == ("ann", "manifest deleted", "m", "version 1")


def test_a_snapshot_that_was_forgotten_before_is_no_trouble(room: Room):
    post(room, "m", b"one")
    snapshot_id = room.maker.make(room.manifests.named(room.ann, "m").id)
    room.repo.storage.delete(f"snapshots/{snapshot_id}")
    room.remover.delete(room.ann, "m", None)
    assert room.remover.give_up() == 1
    with pytest.raises(ObjectMissing):
        room.repo.storage.stat(f"snapshots/{snapshot_id}")


def test_a_clock_that_goes_back_costs_no_file(room: Room, monkeypatch: pytest.MonkeyPatch):
    post(room, "m", b"one", b"two")
    room.remover.delete(room.ann, "m", None)
    monkeypatch.setattr(room.files, "_now_ns", lambda: 0)
    room.put(room.ann, b"one")
    room.put(room.ann, b"new")
    room.remover.give_up()
    assert has(room, b"one") and has(room, b"new") and not has(room, b"two")


def test_a_version_is_never_given_again(room: Room):
    for _ in range(3):
        post(room, "m", b"one")
    room.remover.delete(room.ann, "m", 2)
    room.remover.delete(room.ann, "m", 3)
    room.remover.give_up()
    assert room.manifests.named(room.ann, "m").version == 1
    assert post(room, "m", b"one") == 4
    room.remover.delete(room.ann, "m", None)
    room.remover.give_up()
    assert post(room, "m", b"one") == 5
    assert count_rows(room) == 2  # the manifest, and one stub for the versions before


def count_rows(room: Room) -> int:
    with room.database.reading() as c:
        return c.execute(sa.select(sa.func.count()).select_from(manifests)).scalar_one()


def test_a_number_is_never_given_again(room: Room):
    post(room, "m", b"one")
    before = room.manifests.named(room.ann, "m").id
    room.house.directory.delete(room.house.admin, "ann")
    made = room.post(room.ben, {"name": "n", "files": {}})
    assert made.id > before


def test_a_part_that_comes_late_keeps_the_file(room: Room):
    data = noise(10_000)
    room.put_part(room.ann, data, 0, 5_000)
    post(room, "m", data)  # somebody else sends all of it
    room.remover.delete(room.ann, "m", None)
    assert room.put_part(room.ann, data, 5_000, 10_000).is_available
    room.remover.give_up()
    assert room.get(room.ann, data) == data


def test_what_goes_wrong_for_one_account_does_not_keep_another_waiting(room: Room, monkeypatch: pytest.MonkeyPatch):
    post(room, "m", b"of ann")
    room.put(room.ben, b"of ben")
    room.post(room.ben, {"name": "m", "files": {"x": entry(b"of ben")}})
    room.remover.delete(room.ann, "m", None)
    room.remover.delete(room.ben, "m", None)
    give_up = room.remover._give_up_files

    def failing_for_ann(account: int, doomed: Any) -> bool:
        if account == room.ann.account:
            raise Damaged("The list of files cannot be read.")
        return give_up(account, doomed)

    monkeypatch.setattr(room.remover, "_give_up_files", failing_for_ann)
    with pytest.raises(Damaged):
        room.remover.give_up()
    assert has(room, b"of ann") and not has(room, b"of ben", room.ben)


def test_what_is_sent_while_it_is_given_up_is_kept(room: Room):
    """Puts and deletions of the same file at the same time: whatever was acknowledged after the deletion stays."""
    for round_ in range(15):
        data = b"round %d" % round_
        post(room, f"m{round_}", data)
        room.remover.delete(room.ann, f"m{round_}", None)
        giving_up = threading.Thread(target=room.remover.give_up)
        giving_up.start()
        room.put(room.ann, data)
        giving_up.join()
        assert room.get(room.ann, data) == data


def test_manifests_that_come_while_files_are_given_up_tell_the_truth(room: Room):
    for round_ in range(15):
        data = b"round %d" % round_
        post(room, "old", data)
        room.remover.delete(room.ann, "old", None)
        giving_up = threading.Thread(target=room.remover.give_up)
        giving_up.start()
        told = room.post(room.ann, {"name": "new", "files": {"x": entry(data)}})
        giving_up.join()
        room.remover.give_up()
        assert (told.available == 1) == has(room, data)


def test_of_a_deleted_manifest_only_its_version_is_kept(room: Room):
    room.post(room.ann, {"name": "m", "base": "/b" * 10_000, "timestamp": "2020-01-01T00:00:00", "files": {}})
    room.remover.delete(room.ann, "m", None)
    room.remover.give_up()
    with room.database.reading() as c:
        row = c.execute(sa.select(manifests)).one()
    assert (row.version, row.base, row.timestamp, row.header, row.chunks) == (1, "", "", b"", b"")
    assert usage(room) == (0, 0)


def test_an_account_that_is_deleted_is_given_up_from_the_shelf(room: Room):
    room.put(room.ann, b"of ann")
    room.put(room.ben, b"of ben")
    room.house.directory.delete(room.house.admin, "ben")
    assert room.tidier.tidy() == 2
    (stored,) = [s for s in room.repo.snapshots() if TAG in s.snapshot.tags]
    assert [path for path, _ in room.tidier._files_in(stored)] == [f"ann/files/{sha256(b'of ann')}".encode()]
