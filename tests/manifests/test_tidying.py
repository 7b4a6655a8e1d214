"""The shelf stays small, and the catalog can be made anew from it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from holdfast.catalog.tables import files, manifests, parts, shelves, wanted
from holdfast.errors import StorageUnavailable, WrongContent
from holdfast.manifests import tidying
from holdfast.repository import prune
from holdfast.repository.check import check
from holdfast.shelf.shelf import TAG, Order
from tests.manifests.making import Room, entry, sha256
from tests.manifests.test_files import noise


def shelf_snapshots(room: Room) -> int:
    return sum(TAG in s.snapshot.tags for s in room.repo.snapshots())


def test_many_snapshots_become_few_and_nothing_is_lost(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tidying, "MANY", 8)
    contents = [noise(1000, seed) for seed in range(30)]
    for data in contents:
        room.put(room.ann, data)
        room.tidier.tidy()
    assert shelf_snapshots(room) <= 12
    room.stop()
    prune.prune(room.repo, prune.Request(now=True))
    assert check(room.repo, read_data=1.0).good
    room.start()
    assert all(room.get(room.ann, data) == data for data in contents)


def test_parts_of_whole_files_and_files_of_deleted_accounts_go(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tidying, "MANY", 1)
    data = noise(10_000)
    room.put_part(room.ann, data, 0, 5_000)
    room.put_part(room.ann, data, 5_000, 10_000)
    room.put(room.ben, b"of ben")
    room.house.directory.delete(room.house.admin, "ben")
    assert room.tidier.tidy() > 1
    (stored,) = [s for s in room.repo.snapshots() if TAG in s.snapshot.tags]
    assert [path for path, _ in room.tidier._files_in(stored)] == [f"ann/files/{sha256(data)}".encode()]


def test_a_lost_catalog_is_made_anew(room: Room):
    whole, part = noise(5_000), noise(6_000, 2)
    room.put(room.ann, whole)
    room.put_part(room.ann, part, 1_000, 2_000)
    room.post(room.ann, {"name": "m", "extra": [1], "files": {"a": entry(whole), "b": entry(part)}})
    before = room.read(room.ann, "m")
    with room.database.writing() as c:
        for table in (wanted, manifests, parts, files, shelves):
            c.execute(sa.delete(table))
        c.execute(sa.text("UPDATE accounts SET used_bytes = 0, used_objects = 0"))
    for _ in range(2):
        room.tidier.take_in()
        assert room.get(room.ann, whole) == whole
        assert room.read(room.ann, "m") == before
        assert room.manifests.named(room.ann, "m").version == 1
        account = room.house.directory.account(room.ann, "ann")
        document = room.manifests.named(room.ann, "m").size
        assert (account.used_bytes, account.used_objects) == (6_000 + document, 2)


def test_prune_meanwhile_takes_nothing_that_is_needed(room: Room):
    contents = [noise(1000, seed) for seed in range(40)]
    for data in contents[:20]:
        room.put(room.ann, data)
    upload = room.files.receive(sha256(contents[-1]))
    prune.prune(room.repo, prune.Request(deadline_s=0, max_unused=0))
    for data in contents[20:-1]:
        room.put(room.ann, data)
    upload.feed(contents[-1])
    room.files.put(room.ann, sha256(contents[-1]), *upload.finish())[0].result(60)
    prune.prune(room.repo, prune.Request(deadline_s=0, max_unused=0))
    assert all(room.get(room.ann, data) == data for data in contents)
    assert check(room.repo, read_data=1.0).good


def test_a_file_that_came_twice_stays_as_the_catalog_names_it(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tidying, "MANY", 1)
    monkeypatch.setattr(tidying, "_of_like_size", lambda stored: stored[::-1])  # nothing may depend on their order
    data, other = noise(10_000), noise(20_000, 2)
    room.put_part(room.ann, data, 0, 5_000)
    room.put_part(room.ann, data, 5_000, 10_000)
    assert room.put(room.ann, data) is False, "it came in two pieces, and now again in one"
    with pytest.raises(WrongContent):
        room.put_part(room.ann, noise(20_000, 3), 0, 20_000, sha256(other))
    room.put_part(room.ann, other, 0, 10_000)
    for _ in range(2):
        room.tidier.tidy()
        room.stop()
        prune.prune(room.repo, prune.Request(now=True, max_unused=0))
        room.start()
        assert room.get(room.ann, data) == data
        assert check(room.repo, read_data=1.0).good
        room.put(room.ann, noise(100, 4))
    assert room.put_part(room.ann, other, 10_000, 20_000).is_available
    assert room.get(room.ann, other) == other


def test_a_merge_never_puts_one_accounts_manifest_under_anothers_path(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tidying, "MANY", 1)
    room.post(room.ann, {"name": "of ann", "files": {}})
    made = room.post(room.ben, {"name": "of ben", "files": {}})
    with room.database.writing() as c:  # as after a rebuild, which gives other numbers
        c.execute(sa.delete(manifests).where(manifests.c.account == room.ann.account))
        number = int(c.execute(sa.select(manifests.c.id)).scalar_one())
        c.execute(sa.update(manifests).values(id=number - 1))
    assert made.id == number
    room.tidier.tidy()
    (stored,) = [s for s in room.repo.snapshots() if TAG in s.snapshot.tags]
    assert [path for path, _ in room.tidier._files_in(stored)] == []


def test_what_belongs_to_accounts_that_are_not_there_waits_for_them(room: Room, monkeypatch: pytest.MonkeyPatch):
    """And what the others gave up since does not come back each time it is looked at."""
    monkeypatch.setattr(tidying, "MANY", 1)
    room.put(room.ann, b"of ann")
    room.put(room.ben, b"of ben")
    room.house.directory.delete(room.house.admin, "ben")
    with room.database.writing() as c:
        for table in (wanted, manifests, parts, files, shelves):
            c.execute(sa.delete(table))
    room.tidier.take_in()
    room.remover.forget_file(room.ann, sha256(b"of ann"))
    room.tidier.take_in()
    assert not room.files.state(room.ann, sha256(b"of ann")).is_available
    for _ in range(3):
        room.put(room.ann, b"more")
        room.tidier.tidy()  # what nobody here knows yet is left as it is
    ben = room.house.user("ben")
    assert room.tidier.take_in() == 0
    assert room.get(ben, b"of ben") == b"of ben"
    assert not room.files.state(room.ann, sha256(b"of ann")).is_available


def test_a_document_that_is_none_keeps_nothing_else_from_being_taken_in(room: Room):
    room.put(room.ann, b"before")
    content = room.shelf.small(b"no document")
    room.shelf.commit(Order(b"ann/manifests/9", None, content, lambda c, ready: None, None)).result(60)
    room.put(room.ben, b"after")
    with room.database.writing() as c:
        for table in (wanted, manifests, parts, files, shelves):
            c.execute(sa.delete(table))
    room.tidier.take_in()
    assert room.get(room.ann, b"before") == b"before" and room.get(room.ben, b"after") == b"after"


def test_a_merge_that_is_killed_brings_nothing_back(room: Room, monkeypatch: pytest.MonkeyPatch):
    room.put(room.ann, b"stays")
    room.put(room.ann, b"goes")
    room.remover.forget_file(room.ann, sha256(b"goes"))
    deleted: list[str] = []

    def killed(name: str) -> None:
        if deleted:
            raise KeyboardInterrupt
        deleted.append(name)
        delete(name)

    delete = room.repo.storage.delete
    monkeypatch.setattr(room.repo.storage, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        room.tidier.tidy()
    monkeypatch.undo()
    room.tidier.take_in()
    assert room.get(room.ann, b"stays") == b"stays"
    assert not room.files.state(room.ann, sha256(b"goes")).is_available


def test_what_was_answered_with_an_error_does_not_come_back(room: Room, monkeypatch: pytest.MonkeyPatch):
    def broken(ready: object) -> None:
        raise StorageUnavailable("The catalog cannot be used.")

    with monkeypatch.context() as m:
        m.setattr(room.shelf, "_note_together", broken)
        with pytest.raises(StorageUnavailable):
            room.put(room.ann, b"refused")
        with pytest.raises(StorageUnavailable):
            room.post(room.ann, {"name": "refused", "files": {}})
    room.put(room.ann, b"taken")
    room.tidier.take_in()
    assert room.get(room.ann, b"taken") == b"taken"
    assert not room.files.state(room.ann, sha256(b"refused")).is_available
    assert room.manifests.page(room.ann, limit=9, before=None, name=None).manifests == []


def test_a_merge_that_fails_is_owed_still(room: Room, monkeypatch: pytest.MonkeyPatch):
    room.put(room.ann, b"stays")
    room.put(room.ann, b"goes")
    room.remover.forget_file(room.ann, sha256(b"goes"))

    def broken(chosen: object) -> None:
        raise StorageUnavailable("The disk is away.")

    with monkeypatch.context() as m:
        m.setattr(room.tidier, "_merge", broken)
        with pytest.raises(StorageUnavailable):
            room.tidier.tidy()
    assert room.tidier.tidy() == 2
    assert room.tidier.tidy() == 0


def test_while_another_server_writes_what_is_young_is_left_for_later(room: Room):
    content = room.shelf.small(b"of the other")
    room.shelf.commit(Order(b"ann/files/" + sha256(b"of the other").encode(), None, content, _nothing, None)).result(60)
    with room.database.writing() as c:
        c.execute(sa.delete(shelves))
    with room.repo.writing("serve"):
        assert room.tidier.take_in() == 1
        assert not room.files.state(room.ann, sha256(b"of the other")).is_available
    assert room.tidier.take_in() == 0
    assert room.get(room.ann, b"of the other") == b"of the other"


def _nothing(c: object, ready: object) -> None:
    """A clerk that notes nothing."""


def test_a_server_that_stops_stops_merging_too(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tidying, "MANY", 1)
    room.put(room.ann, b"one")
    room.put(room.ann, b"two")
    room.shelf.stop()
    with pytest.raises(StorageUnavailable, match="stopping"):
        room.tidier.tidy()
    room.stop()
    room.start()
    assert room.tidier.tidy() == 2


def test_nobody_who_goes_away_spoils_it_for_the_others(room: Room):
    """An order cannot be cancelled: whoever waits for it may stop waiting, and that is all."""
    future, _ = room.files.put(room.ann, sha256(b"one"), b"one", sha256(b"one"))
    assert future.cancel() is False
    future.result(60)
    assert room.get(room.ann, b"one") == b"one"
