"""One-time shares: once, or as often as was said; given back when broken off; gone in time; never anything else than
what was put in.
"""

from __future__ import annotations

import dataclasses
import resource
import threading
from collections.abc import Callable

import pytest

from holdfast.catalog import holdings, people
from holdfast.catalog import shares as rows
from holdfast.errors import (
    Damaged,
    Forbidden,
    Gone,
    HoldfastError,
    NoContent,
    QuotaFull,
    StorageFull,
    StorageUnavailable,
    TooLarge,
    TooManyAttempts,
    WrongPassword,
)
from holdfast.shares.shares import LEASE_NS, Made, Wish
from tests.shares.making import CONTENT, SECOND, Room


def demand_gone(room: Room, made: Made) -> None:
    with pytest.raises(Gone):
        room.take(made)


def at_once(count: int, act: Callable[[], object]) -> list[object]:
    """What each of so many threads got, or raised."""
    found = list[object]()
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        try:
            found.append(act())
        except HoldfastError as e:
            found.append(type(e))

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# -- once --------------------------------------------------------------------------------------------------------------


def test_a_share_is_given_once(room: Room):
    made = room.put(room.user("ann"))
    assert room.get(made) == CONTENT
    demand_gone(room, made)


@pytest.mark.parametrize("content", [b"", b"x", b"xy", b"x" * (1 << 20)])
def test_what_was_put_in_comes_out(room: Room, content: bytes):
    assert room.get(room.put(room.user("ann"), content)) == content


def test_of_many_at_once_exactly_one_wins(room: Room):
    made = room.put(room.user("ann"))
    found = at_once(16, lambda: room.get(made))
    assert found.count(CONTENT) == 1 and found.count(Gone) == 15


def test_of_many_at_once_as_many_win_as_there_are_downloads(room: Room):
    made = room.put(room.user("ann"), downloads=3)
    found = at_once(16, lambda: room.take(made))
    assert found.count(Gone) == 13
    for download in found:
        if download is not Gone:
            download.end(taken=True)  # type: ignore[attr-defined]
    demand_gone(room, made)


def test_each_of_several_downloads_counts(room: Room):
    made = room.put(room.user("ann"), downloads=3)
    assert [room.get(made) for _ in range(3)] == [CONTENT] * 3
    demand_gone(room, made)


def test_what_never_was_is_not_there(room: Room):
    for id_ in ("0" * 32, "0" * 31, "G" * 32, "", "../../etc/passwd", "0" * 4000):
        with pytest.raises(NoContent):
            room.shares.look(id_)


def test_the_catalog_does_not_tell_the_address(room: Room):
    made = room.put(room.user("ann"), password="the password")
    with room.database.reading() as c:
        dump = repr(c.exec_driver_sql("SELECT * FROM shares").all())
    assert made.id not in dump and bytes.fromhex(made.id).hex() not in dump and "the password" not in dump


# -- given back --------------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_is_given_back(room: Room):
    made = room.put(room.user("ann"))
    download = room.take(made)
    next(download.pieces())
    demand_gone(room, made)  # while it runs
    download.end(taken=False)
    download.end(taken=True)  # what was said first counts
    assert room.get(made) == CONTENT


def test_that_others_are_downloading_is_not_remembered_as_gone(room: Room):
    made = room.put(room.user("ann"))
    download = room.take(made)
    for _ in range(3):
        demand_gone(room, made)
    download.end(taken=False)
    assert room.get(made) == CONTENT


def test_a_killed_server_gives_back_what_it_had_claimed(room: Room):
    made = room.put(room.user("ann"))
    room.take(made)
    other = Room(room.database, room.root)
    other.now_ns = room.now_ns + LEASE_NS - SECOND
    other.keeper.look()
    demand_gone(other, made)
    other.pass_time(20)
    assert other.get(made) == CONTENT


def test_a_server_that_is_alone_gives_it_back_when_it_starts(room: Room):
    made = room.put(room.user("ann"))
    room.take(made)
    keeper = room.make_keeper(alone=True)
    keeper.start()
    keeper.close()
    assert room.get(made) == CONTENT


def test_a_download_that_takes_long_keeps_its_claim(room: Room):
    made = room.put(room.user("ann"))
    download = room.take(made)
    other = Room(room.database, room.root)
    for _ in range(20):
        room.pass_time(20)
        other.now_ns = room.now_ns
        other.keeper.look()
        demand_gone(other, made)
    download.make_final()
    download.end(taken=True)
    demand_gone(other, made)


def test_what_was_perhaps_complete_when_the_server_was_killed_is_never_given_again(room: Room):
    made = room.put(room.user("ann"))
    room.take(made).make_final()
    other = Room(room.database, room.root)
    other.now_ns = room.now_ns
    other.pass_time(LEASE_NS / SECOND + 1)
    demand_gone(other, made)
    other.pass_time(31)
    assert room.files_there() == []


def test_a_download_whose_claim_has_lapsed_does_not_send_its_last_byte(room: Room):
    made = room.put(room.user("ann"))
    late = room.take(made)
    other = Room(room.database, room.root)
    other.now_ns = room.now_ns
    other.pass_time(LEASE_NS / SECOND + 1)
    assert other.get(made) == CONTENT
    with pytest.raises(Gone):
        late.make_final()
    late.end(taken=False)
    demand_gone(room, made)


# -- passwords ---------------------------------------------------------------------------------------------------------


def test_a_password_is_needed_and_a_wrong_one_spends_nothing(room: Room):
    made = room.put(room.user("ann"), password="hi")
    for wrong in ("", "ho", "HI", "hi ", "x" * 5000):
        with pytest.raises(WrongPassword, match="not the share's password"):
            room.get(made, wrong)
    room.pass_time(60)
    assert room.get(made, "hi") == CONTENT


def test_after_five_wrong_passwords_from_an_address_it_must_wait(room: Room):
    made = room.put(room.user("ann"), password="right")
    for _ in range(5):
        with pytest.raises(WrongPassword):
            room.get(made, "wrong")
    for tried in ("wrong", "right", ""):
        with pytest.raises(TooManyAttempts) as told:
            room.get(made, tried)
    room.now_ns += told.value.retry_after * SECOND
    assert room.get(made, "right") == CONTENT


def test_somebody_elses_wrong_passwords_do_not_keep_one_out(room: Room):
    made = room.put(room.user("ann"), password="right")
    for _ in range(5):
        with pytest.raises(WrongPassword):
            room.get(made, "wrong", "198.51.100.7")
    assert room.get(made, "right") == CONTENT


def test_fifty_wrong_passwords_from_everywhere_make_all_wait(room: Room):
    made = room.put(room.user("ann"), password="right")
    for number in range(50):
        with pytest.raises(WrongPassword):
            room.get(made, "wrong", f"198.51.100.{number}")
    with pytest.raises(TooManyAttempts) as told:
        room.get(made, "right")
    room.now_ns += told.value.retry_after * SECOND
    assert room.get(made, "right") == CONTENT


def test_wrong_passwords_at_once_are_no_more_guesses_than_one_after_the_other(room: Room):
    made = room.put(room.user("ann"), password="right")
    found = at_once(16, lambda: room.get(made, "wrong"))
    assert found.count(WrongPassword) == 5 and found.count(TooManyAttempts) == 11


def test_wrong_passwords_for_one_share_count_for_no_other(room: Room):
    ann = room.user("ann")
    one, other = room.put(ann, password="right"), room.put(ann, password="right")
    for _ in range(5):
        with pytest.raises(WrongPassword):
            room.get(one, "wrong")
    assert room.get(other, "right") == CONTENT


def test_that_it_is_gone_is_told_before_the_password_is_asked_for(room: Room):
    made = room.put(room.user("ann"), password="right")
    room.get(made, "right")
    with pytest.raises(Gone):
        room.get(made, "wrong")


# -- the end -----------------------------------------------------------------------------------------------------------


def test_the_file_is_gone_half_a_minute_after_the_last_download(room: Room):
    ann = room.user("ann")
    made = room.put(ann, downloads=2)
    room.get(made)
    room.pass_time(40)
    assert room.get(made) == CONTENT  # one was left
    room.pass_time(29)
    assert len(room.files_there()) == 1 and room.used(ann) == (len(CONTENT), 1)
    room.pass_time(2)
    assert room.files_there() == [] and room.used(ann) == (0, 0)
    demand_gone(room, made)


def test_the_file_is_gone_also_when_the_server_was_not_there_at_the_time(room: Room):
    made = room.put(room.user("ann"))
    room.get(made)
    later = Room(room.database, room.root)
    later.pass_time(3600)
    assert room.files_there() == []
    demand_gone(later, made)


def test_a_share_expires(room: Room):
    ann = room.user("ann")
    made = room.put(ann, lasts_s=100)
    room.pass_time(99)
    room.shares.look(made.id)
    room.now_ns += 2 * SECOND  # before anybody has ended it
    demand_gone(room, made)
    room.pass_time(30)
    assert room.files_there() == [] and room.used(ann) == (0, 0)
    demand_gone(room, made)


def test_who_began_before_it_expired_gets_all_of_it(room: Room):
    made = room.put(room.user("ann"), lasts_s=10)
    download = room.take(made)
    room.pass_time(100)
    assert room.files_there() == []
    assert b"".join(download.pieces()) == CONTENT
    download.make_final()
    download.end(taken=True)


def test_its_owner_ends_it_and_nobody_else(room: Room):
    ann, bob = room.user("ann"), room.user("bob")
    made = room.put(ann)
    with pytest.raises(NoContent):
        room.shares.end(bob, made.number)
    room.shares.end(ann, made.number)
    demand_gone(room, made)
    room.pass_time(31)
    assert room.files_there() == []
    room.shares.end(ann, made.number)


def test_the_list_has_ones_own_that_have_not_ended(room: Room):
    ann, bob = room.user("ann"), room.user("bob")
    first, second = room.put(ann, downloads=2), room.put(ann)
    room.put(bob)
    room.get(first)
    room.get(second)
    (listed,) = room.shares.listed(ann)
    assert (listed.id, listed.name, listed.taken, listed.downloads) == (first.number, "report.xls", 1, 2)
    assert [share.id for share in room.shares.listed(ann, all_=True)] == [second.number, first.number]
    assert [s.id for s in room.shares.listed(ann, all_=True, before=second.number)] == [first.number]


def test_shares_end_with_their_account(room: Room):
    ann = room.user("ann")
    made = room.put(ann)
    with room.database.writing() as c:
        people.delete_account(c, ann.account)
    demand_gone(room, made)
    room.pass_time(1)
    room.pass_time(31)
    assert room.files_there() == []
    demand_gone(room, made)


def test_one_file_that_cannot_be_removed_holds_up_no_other(room: Room):
    ann = room.user("ann")
    for made in (room.put(ann), room.put(ann)):
        room.get(made)
    with room.database.reading() as c:
        (_, stuck), *_ = rows.to_remove(c, room.now_ns)
    (room.root / stuck).unlink()
    (room.root / stuck).mkdir()
    room.pass_time(31)
    assert room.files_there() == [] and room.used(ann)[1] == 1
    assert [told for told in room.told if "remove a shared file" in told]


# -- scopes, quotas, faults --------------------------------------------------------------------------------------------


def test_each_thing_needs_its_scope(room: Room):
    ann = dataclasses.replace(room.user("ann"), scopes=frozenset({"files:write", "shares:read"}))
    with pytest.raises(Forbidden):
        room.put(ann)
    with pytest.raises(Forbidden):
        room.shares.end(ann, 1)
    with pytest.raises(Forbidden):
        room.shares.listed(dataclasses.replace(ann, scopes=frozenset({"shares:write"})))


def test_nothing_is_kept_beyond_the_quota(room: Room):
    ann = room.user("ann", quota_bytes=10_000)
    room.put(ann, b"x" * 6000)
    with pytest.raises(QuotaFull):
        room.shares.begin(ann, 5000)
    upload = room.shares.begin(ann)  # of unknown length
    upload.feed(b"x" * 5000)
    with pytest.raises(QuotaFull):
        upload.finish(Wish("x", "text/plain"))
    assert len(room.files_there()) == 1 and room.used(ann) == (6000, 1)


def test_what_is_counted_anew_is_what_was_counted(room: Room):
    ann = room.user("ann")
    room.put(ann, b"x" * 6000)
    room.put(ann, b"y" * 500)
    with room.database.writing() as c:
        people.charge(c, ann.account, 12345, 67)
        holdings.count_usage(c)
    assert room.used(ann) == (6500, 2)


def test_nothing_is_kept_of_what_is_too_large_or_given_up(room: Room):
    ann = room.user("ann")
    upload = room.shares.begin(ann)
    upload.feed(b"x" * (1 << 20))
    with pytest.raises(TooLarge):
        upload.feed(b"x")
    upload.abandon()
    upload.abandon()
    assert room.files_there() == [] and room.used(ann) == (0, 0)


@pytest.mark.parametrize("damage", ["changed", "cut", "longer", "gone"])
def test_a_damaged_file_is_not_given_and_not_spent(room: Room, damage: str):
    made = room.put(room.user("ann"))
    (path,) = room.files_there()
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"changed": b"C" + content[1:], "cut": content[:-1], "longer": content + b"x"}[damage])
    with pytest.raises(Damaged):
        room.take(made)
    assert len(room.told) == 1 and room.told[0].startswith(f"hand out share {made.number}: ")
    path.write_bytes(content)
    assert room.get(made) == CONTENT


def test_a_file_that_changes_while_it_is_sent_is_not_sent_whole(room: Room):
    made = room.put(room.user("ann"))
    download = room.take(made)
    (path,) = room.files_there()
    with path.open("r+b") as file:
        file.write(b"X")
    with pytest.raises(Damaged):
        b"".join(download.pieces())


def test_a_disk_that_cannot_be_used_is_said_without_its_paths(room: Room):
    ann = room.user("ann")
    (room.root / "tmp").rmdir()
    with pytest.raises(StorageUnavailable) as told:
        room.put(ann)
    assert str(room.root) not in f"{told.value} {told.value.hint}" and room.told


def test_a_full_disk_is_said_and_nothing_is_kept(room: Room):
    ann = room.user("ann")
    upload = room.shares.begin(ann)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # no file may be longer: as a disk that is full
    try:
        with pytest.raises(StorageFull) as told:
            upload.feed(b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    upload.abandon()
    assert str(room.root) not in f"{told.value} {told.value.hint}"
    assert room.files_there() == [] and room.used(ann) == (0, 0)


def test_what_a_killed_server_left_on_the_disk_is_removed(room: Room):
    ann = room.user("ann")
    kept = room.put(ann)
    upload = room.shares.begin(ann)
    upload.feed(b"half")
    _, incoming = room.files.begin()
    incoming.publish()  # and then it was killed
    assert len(room.files_there()) == 3
    room.keeper.clear()  # others may be working at them
    assert len(room.files_there()) == 3
    room.now_ns += SECOND
    keeper = room.make_keeper(alone=True)
    keeper.start()
    keeper.close()
    assert len(room.files_there()) == 1 and room.get(kept) == CONTENT
