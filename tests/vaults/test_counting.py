"""What vaults hold is counted as it is: whatever is killed, whoever works at once, on either kind of catalog."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from holdfast.catalog import holdings, people
from holdfast.catalog import vaults as rows
from holdfast.catalog.database import Database
from holdfast.catalog.tables import vault_changes
from holdfast.errors import NoContent, ObjectExists, ObjectMissing, QuotaFull, StorageUnavailable, WrongContent
from holdfast.storage.local import LocalStorage
from holdfast.vaults.keeping import STALE_NS
from holdfast.vaults.names import Where
from tests.vaults.making import Room, sha256


def changes(database: Database) -> int:
    with database.reading() as c:
        return int(c.execute(sa.select(sa.func.count()).select_from(vault_changes)).scalar_one())


def test_a_change_is_counted_once_and_leaves_nothing(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"one")
    room.put(ann, b"other")
    with pytest.raises(ObjectExists):
        room.put(ann, b"one")
    with pytest.raises(WrongContent):
        upload = room.begin(ann, b"wrong")
        upload.feed(b"WRONG")
        upload.finish()
    assert room.counts("ann") == (8, 2)
    room.delete(ann, b"one")
    with pytest.raises(ObjectMissing):
        room.delete(ann, b"one")
    assert room.counts("ann") == (5, 1) and changes(room.database) == 0 and room.objects.running == set()


def test_what_is_announced_counts_at_once_and_what_came_counts_after(room: Room):
    ann = room.user("ann", quota_bytes=100)
    room.vaults.create(ann, "v")
    upload = room.begin(ann, b"x" * 90)
    assert room.counts("ann") == (90, 1)
    with pytest.raises(QuotaFull):
        room.put(ann, b"x" * 11)
    room.put(ann, b"x" * 10)
    upload.abandon()
    upload.abandon()
    assert room.counts("ann") == (10, 1)


def test_of_what_is_large_so_much_is_reserved_as_comes_and_a_little_more(room: Room):
    mib = 1 << 20
    ann = room.user("ann", quota_bytes=40 * mib)
    room.vaults.create(ann, "v")
    where = Where("ann", "v", name=f"data/{sha256(b'x')}")
    with pytest.raises(QuotaFull):
        room.objects.most(ann, where, 40 * mib + 1)
    assert room.objects.most(ann, where, 40 * mib) == 1 << 30 and room.counts("ann") == (0, 0)
    upload = room.objects.begin(ann, where, 18 * mib)
    assert room.counts("ann") == (16 * mib, 1)
    for reserved in (16, 18):
        upload.feed(bytes(9 * mib))
        assert room.counts("ann") == (reserved * mib, 1)
    with pytest.raises(QuotaFull):
        room.objects.most(ann, where, 22 * mib + 1)
    upload.abandon()
    assert room.counts("ann") == (0, 0)
    room.put(ann, b"x")
    with pytest.raises(ObjectExists):
        room.objects.most(ann, where, 1)


def test_two_uploads_of_one_object_count_once(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    first, second = room.begin(ann, b"same"), room.begin(ann, b"same")
    for upload in (first, second):
        upload.feed(b"same")
    first.finish()
    with pytest.raises(ObjectExists):
        second.finish()
    assert room.counts("ann") == (4, 1) and changes(room.database) == 0


def test_what_a_killed_server_left_is_counted_anew_on_the_next_start(room: Room):
    """One upload that had not been stored, one that had been and was not counted, a deletion that was not counted."""
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"stays")
    room.put(ann, b"goes")
    room.begin(ann, b"never comes").feed(b"never")
    stored = room.begin(ann, b"came")
    stored.feed(b"came")
    storage = LocalStorage(room.root / room.vault("ann").folder)
    storage.put(f"data/{sha256(b'came')}", [b"came"])
    with room.database.writing() as c:
        change = rows.Change(f"{rows.DELETION}x", room.vault("ann").id, f"data/{sha256(b'goes')}", 4, 1)
        assert rows.begin_alone(c, room.vault("ann"), change, room.now_ns)
    storage.delete(f"data/{sha256(b'goes')}")
    assert room.counts("ann") != (9, 2) and list(room.root.glob("*/*/tmp/*"))
    again = Room(room.database, room.root)
    keeper = again.make_keeper(alone=True)
    keeper.start()
    keeper.close()
    assert again.counts("ann") == (9, 2) and changes(room.database) == 0 and again.told == []
    assert list(room.root.glob("*/*/tmp/*")) == []


def test_among_several_servers_only_what_nobody_renews_is_left_over(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    other = Room(room.database, room.root)
    running, lost = room.begin(ann, b"running"), other.begin(ann, b"lost")
    running.feed(b"runn")
    lost.feed(b"lost")
    assert room.counts("ann") == (11, 2)
    room.now_ns += STALE_NS + 1
    room.keeper.renew()
    room.keeper.count_left(room.now_ns - STALE_NS)
    assert room.counts("ann") == (7, 1)
    running.feed(b"ing")
    running.finish()
    assert room.counts("ann") == (7, 1)
    lost.finish()  # it was not dead after all: it only slept
    assert [info.size for info in LocalStorage(room.root / room.vault("ann").folder).list("data")] in ([7, 4], [4, 7])
    room.keeper.count_left(room.now_ns - STALE_NS)
    assert room.counts("ann") == (11, 2) and changes(room.database) == 0


def test_counting_anew_while_others_delete_and_store_counts_what_will_be(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"goes")
    vault = room.vault("ann")
    storage = LocalStorage(room.root / vault.folder)
    change = rows.Change(f"{rows.DELETION}x", vault.id, f"data/{sha256(b'goes')}", 4, 1)
    with room.database.writing() as c:
        assert rows.begin_alone(c, vault, change, room.now_ns)
    storage.delete(change.name)
    upload = room.begin(ann, b"comes")
    upload.feed(b"comes")
    room.keeper.count(vault.id, 0)
    assert room.counts("ann") == (9, 2)
    with room.database.writing() as c:
        rows.end_change(c, vault, change.id, 0, 0)
    upload.finish()
    assert room.counts("ann") == (5, 1)


def counted_when_all_is_over(room: Room) -> tuple[int, int]:
    """Until it is known what an upload under way will have stored, more may count than there is, and never less."""
    room.now_ns += STALE_NS + 1
    room.keeper.count_left(room.now_ns - STALE_NS)
    assert changes(room.database) == 0
    return room.counts("ann")


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_is_stored_or_deleted_just_now_is_not_counted_twice_in_the_end(room: Room, is_stored: bool):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"goes")
    vault = room.vault("ann")
    change = rows.Change(f"{rows.DELETION}x", vault.id, f"data/{sha256(b'goes')}", 4, 1)
    with room.database.writing() as c:
        assert rows.begin_alone(c, vault, change, room.now_ns)
    upload = room.begin(ann, b"comes")
    if is_stored:  # and not yet counted
        LocalStorage(room.root / vault.folder).put(f"data/{sha256(b'comes')}", [b"comes"])
    room.keeper.count(vault.id, 0)
    assert room.counts("ann") == ((14, 3) if is_stored else (9, 2))
    LocalStorage(room.root / vault.folder).delete(change.name)
    with room.database.writing() as c:
        rows.end_change(c, vault, change.id, 0, 0)
    room.objects.end(vault, rows.Change(upload._change.id, vault.id, "", 0, 0), 5 if is_stored else 0, int(is_stored))
    assert counted_when_all_is_over(room) == ((5, 1) if is_stored else (0, 0))


def test_a_count_while_one_object_is_uploaded_twice_loses_nothing(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    first, second = room.begin(ann, b"same"), room.begin(ann, b"same")
    for upload in (first, second):
        upload.feed(b"same")
    first.finish()
    room.keeper.count(room.vault("ann").id, 0)
    second.abandon()
    assert room.counts("ann") == (4, 1)
    assert counted_when_all_is_over(room) == (4, 1)
    room.delete(ann, b"same")
    assert room.counts("ann") == (0, 0)


def test_a_count_while_what_is_deleted_comes_again_is_right_in_the_end(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"again")
    vault, name = room.vault("ann"), f"data/{sha256(b'again')}"
    with room.database.writing() as c:
        assert rows.begin_alone(c, vault, rows.Change(f"{rows.DELETION}x", vault.id, name, 5, 1), room.now_ns)
    LocalStorage(room.root / vault.folder).delete(name)
    room.put(ann, b"again")
    room.keeper.count(vault.id, 0)
    with room.database.writing() as c:
        rows.end_change(c, vault, f"{rows.DELETION}x", 0, 0)
    assert counted_when_all_is_over(room) == (5, 1)


def test_nothing_counts_less_than_nothing(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"something")
    with room.database.writing() as c:
        rows.change_vault(c, room.vault("ann").id, bytes=4, objects=0)
        people.change_account(c, ann.account, used_bytes=4, used_objects=0)
    room.delete(ann, b"something")
    assert room.counts("ann") == (0, 0)


def test_one_vault_that_cannot_be_used_holds_up_no_other(room: Room, tmp_path: Path):
    ann = room.user("ann")
    room.vaults.create(ann, "a")
    with room.database.reading() as c:
        broken = rows.vault_named(c, "ann", "a")
    assert broken is not None
    room.vaults.create(ann, "v")
    room.put(ann, b"stays")
    for vault in (broken, room.vault("ann")):
        with room.database.writing() as c:
            rows.begin_change(c, rows.Change(f"left in {vault.id}", vault.id, "data/x", 5, 1), 0)
    shutil.rmtree(room.root / broken.folder)
    room.keeper.count_left(room.now_ns)
    assert room.counts("ann") == (5, 1) and changes(room.database) == 1
    assert [work.partition(":")[0] for work in room.told] == ["count a vault"]


def test_one_vault_that_cannot_be_taken_in_holds_up_no_other(room: Room, tmp_path: Path):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"something")
    (room.root / "0" / "0").mkdir(parents=True)  # the first, and no vault's folder but for what it says of itself
    about = (room.root / room.vault("ann").folder / "vault.json").read_text()
    (room.root / "0" / "0" / "vault.json").write_text(about.replace('"v"', '"broken"'))
    (room.root / "0" / "0" / "tmp").write_text("no folder")
    lost = Database(f"sqlite:///{tmp_path}/new.db")
    lost.migrate()
    later = Room(lost, room.root)
    later.user("ann")
    later.keeper.take_in()
    assert later.vault("ann").bytes == 9
    assert [work.partition(":")[0] for work in later.told] == ["take in a vault"]
    lost.close()


def test_who_deletes_what_somebody_stores_or_deletes_just_now_comes_again(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    late = room.begin(ann, b"object")
    room.put(ann, b"object")
    with pytest.raises(StorageUnavailable, match="just now"):
        room.delete(ann, b"object")
    late.abandon()
    room.delete(ann, b"object")
    assert room.counts("ann") == (0, 0)


def test_all_that_an_account_uses_is_summed_up_with_its_vaults(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"something")
    with room.database.writing() as c:
        people.change_account(c, ann.account, used_bytes=77, used_objects=7)
        holdings.count_usage(c)
    assert room.counts("ann") == (9, 1)


def test_an_upload_into_a_vault_that_is_deleted_meanwhile_says_so(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    upload = room.begin(ann, b"something")
    upload.feed(b"some")
    room.vaults.delete(ann, "ann", "v", "v")
    room.keeper.remove_given_up()
    assert list(room.root.glob("*/*")) == []
    with pytest.raises(NoContent):
        upload.feed(b"thing")
        upload.finish()
    with room.database.reading() as c:
        account = people.account_by_id(c, ann.account)
    assert account is not None and (account.used_bytes, account.used_objects) == (0, 0)


def test_a_lost_catalog_takes_vaults_in_again_under_their_owners_names(room: Room, tmp_path: Path):
    ann = room.user("ann")
    room.vaults.create(ann, "v", quota_bytes=1000, append_only=True)
    room.put(ann, b"something")
    lost = Database(f"sqlite:///{tmp_path}/new.db")
    lost.migrate()
    later = Room(lost, room.root)
    later.user("somebody else")
    nobody = later.make_keeper(alone=True)
    nobody.take_in()  # there is no Ann yet
    again = later.user("ann")
    later.vaults.create(again, "other")
    later.keeper.take_in()
    later.keeper.take_in()
    vault = later.vault("ann")
    assert (vault.append_only, vault.quota_bytes, vault.bytes, vault.objects) == (True, 1000, 9, 1)
    assert [seen.vault.name for seen in later.vaults.listed(again)] == ["other", "v"]
    lost.close()


def test_a_vault_that_was_deleted_is_not_taken_in_again(room: Room):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    folder = room.root / room.vault("ann").folder
    room.vaults.delete(ann, "ann", "v", "v")
    room.keeper.take_in()
    assert room.vaults.listed(ann) == [] and folder.exists()
    room.keeper.remove_given_up()
    room.keeper.take_in()
    assert room.vaults.listed(ann) == [] and not folder.exists() and room.told == []


def test_a_folder_that_cannot_be_removed_is_tried_again(room: Room, monkeypatch: pytest.MonkeyPatch):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.vaults.delete(ann, "ann", "v", "v")

    def fail(folder: str) -> None:
        raise StorageUnavailable("The disk is away.")

    with monkeypatch.context() as patched:
        patched.setattr(room.folders, "remove", fail)
        room.keeper.remove_given_up()
    assert room.told == ["remove a vault: The disk is away."] and list(room.root.glob("*/*"))

    def fail_half_way(path: Path) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", fail_half_way)
        room.keeper.remove_given_up()
    assert list(room.folders.found()) == []  # what is left is nobody's vault, whatever becomes of the catalog
    room.keeper.remove_given_up()
    assert list(room.root.glob("*/*")) == []
