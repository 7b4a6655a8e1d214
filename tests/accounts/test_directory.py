"""Accounts: what may be done with them, by whom, and what nobody learns. On SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from holdfast.accounts.directory import OAUTH, SESSION_S, TOKEN, Directory
from holdfast.accounts.guard import FORGET_S, LONGEST_PAUSE_S, MOST, MOST_FROM_ADDRESS, source_of
from holdfast.accounts.passwords import Passwords
from holdfast.accounts.scopes import ALL_SCOPES, USER_SCOPES
from holdfast.catalog import people, vaults
from holdfast.catalog.database import Database
from holdfast.errors import (
    AccountExists,
    Contradiction,
    Forbidden,
    NoAccount,
    NotLoggedIn,
    QuotaFull,
    TooManyAttempts,
    UsageError,
)
from tests.accounts.making import ADMIN_PASSWORD, ELSEWHERE, HOME, PASSWORD, SECOND, House


@pytest.fixture
def house(database: Database) -> House:
    return House(database)


def wrong(house: House, times: int, username: str = "ann", address: str = HOME) -> None:
    for _ in range(times):
        with pytest.raises(NotLoggedIn):
            house.log_in(username, "a wrong guess", address)


# -- accounts ----------------------------------------------------------------------------------------------------------


def test_the_first_start_makes_an_administrator_once(database: Database) -> None:
    directory = House(database).directory
    assert directory.create_first_admin("another password") is None
    assert directory.log_in("admin", ADMIN_PASSWORD, HOME).scopes == ALL_SCOPES


def test_without_a_preset_the_first_password_is_random(database: Database) -> None:
    directory = Directory(database, Passwords(PasswordHasher(1, 64, 1)), lambda: 1)
    password = directory.create_first_admin()
    assert password is not None and len(password) >= 20
    assert directory.log_in("admin", password, HOME).role == "admin"


def test_an_administrator_makes_lists_changes_and_removes_accounts(house: House) -> None:
    made = house.directory.create(house.admin, "ann", PASSWORD, email="ann@example.org", name="Ann")
    assert (made.username, made.email, made.name, made.role, made.disabled) == (
        "ann",
        "ann@example.org",
        "Ann",
        "user",
        False,
    )
    assert [a.username for a in house.directory.accounts(house.admin)] == ["admin", "ann"]
    changed = house.directory.change(house.admin, "ann", {"name": "Ann B", "role": "admin", "quota_bytes": 5})
    assert (changed.name, changed.role, changed.quota_bytes) == ("Ann B", "admin", 5)
    house.directory.delete(house.admin, "ann")
    assert [a.username for a in house.directory.accounts(house.admin)] == ["admin"]
    with pytest.raises(NoAccount):
        house.directory.delete(house.admin, "ann")


def test_a_name_can_be_had_once(house: House) -> None:
    house.user("ann")
    with pytest.raises(AccountExists, match="ann"):
        house.directory.create(house.admin, "ann", PASSWORD)


@pytest.mark.parametrize("username", ["", " ", "a b", "a/b", "-a", ".a", "a" * 65, "ä", "a\n", "a\0", "a:b"])
def test_names_that_will_not_do_are_refused(house: House, username: str) -> None:
    with pytest.raises(UsageError, match="user name"):
        house.directory.create(house.admin, username, PASSWORD)


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "root"}, {"disabled": "yes"}, {"disabled": 1}, {"quota_bytes": -1}, {"quota_bytes": True},
        {"quota_objects": 1 << 63}, {"quota_objects": 1.5}, {"email": "nobody"}, {"email": "a@b c"}, {"name": "a\nb"},
        {"name": "n" * 256}, {"name": 5}, {"name": "a\0b"}, {"email": "a\0@b"}, {"email": "a@b\0"},
        {"password": "short"}, {"password": "p" * 1025}, {"username": "new"}, {"id": 1},
    ],
)  # fmt: skip
def test_changes_that_will_not_do_are_refused_and_change_nothing(house: House, changes: dict[str, Any]) -> None:
    house.user("ann")
    before = house.directory.account(house.admin, "ann")
    with pytest.raises(UsageError):
        house.directory.change(house.admin, "ann", changes)
    assert house.directory.account(house.admin, "ann") == before


def test_a_user_sees_himself_and_nobody_else(house: House) -> None:
    ann = house.user("ann")
    house.user("bob")
    assert house.directory.account(ann, "ann").username == "ann"
    with pytest.raises(NoAccount) as other:
        house.directory.account(ann, "bob")
    with pytest.raises(NoAccount) as nobody:
        house.directory.account(ann, "eve")
    assert str(other.value).replace("bob", "eve") == str(nobody.value)


@pytest.mark.parametrize(
    "act",
    [
        lambda d, ann: d.create(ann, "eve", PASSWORD),
        lambda d, ann: d.accounts(ann),
        lambda d, ann: d.change(ann, "ann", {"role": "admin"}),
        lambda d, ann: d.change(ann, "ann", {"quota_bytes": None}),
        lambda d, ann: d.delete(ann, "ann"),
        lambda d, ann: d.audit(ann),
        lambda d, ann: d.create_token(ann, "t", ["admin"]),
    ],
)
def test_what_is_for_administrators_is_not_for_users(house: House, act: Any) -> None:
    with pytest.raises(Forbidden, match="admin"):
        act(house.directory, house.user("ann"))


@pytest.mark.parametrize("via", [TOKEN, OAUTH])
@pytest.mark.parametrize(
    "act",
    [
        lambda d, by: d.delete(by, "ann"),
        lambda d, by: d.change(by, "ann", {"password": "another password"}),
        lambda d, by: d.change(by, "ann", {"email": "eve@example.org"}),  # an outside provider's log-ins go by it
        lambda d, by: d.change(by, "ann", {"role": "admin"}),
        lambda d, by: d.create(by, "eve", PASSWORD, role="admin"),
    ],
)
def test_a_token_that_got_out_becomes_nobody_else_and_deletes_nobody(house: House, act: Any, via: str) -> None:
    house.user("ann")
    token = dataclasses.replace(house.admin, via=via)
    with pytest.raises(Forbidden, match="A token may not"):
        act(house.directory, token)
    assert house.directory.change(token, "ann", {"quota_bytes": 5, "disabled": True}).disabled
    assert house.directory.create(token, "ben", PASSWORD).role == "user"
    act(house.directory, house.admin)


def test_an_account_with_append_only_vaults_stays_and_its_vaults_are_noted_when_they_go(house: House) -> None:
    ann = house.user("ann")
    with house.database.writing() as c:
        for number in range(7):
            vaults.add_vault(
                c, ann.account, f"v{number}", folder=f"f{number}", quota_bytes=None, append_only=number < 6,
                created_ns=1,
            )  # fmt: skip
    with pytest.raises(Contradiction, match="ann has append-only vaults: v0, v1, v2, v3, v4 and 1 more"):
        house.directory.delete(house.admin, "ann")
    assert house.directory.account(house.admin, "ann").username == "ann"
    with house.database.writing() as c:
        for vault in vaults.list_vaults(c, ann.account):
            vaults.change_vault(c, vault.id, append_only=False)
    house.directory.delete(house.admin, "ann")
    noted = [e for e in house.directory.audit(house.admin) if e.action == "vault deleted"]
    assert sorted(e.subject for e in noted) == [f"ann/v{number}" for number in range(7)]
    assert {(e.actor, e.detail) for e in noted} == {("admin", "with its account, 0 bytes, 0 objects")}


@pytest.mark.parametrize("password", ["hft_password", "hft_" + "x" * 43])
def test_no_password_is_set_that_looks_like_a_token(house: House, password: str) -> None:
    ann = house.user("ann")
    for act in (
        lambda: house.directory.create(house.admin, "ben", password),
        lambda: house.directory.change(house.admin, "ann", {"password": password}),
        lambda: house.directory.change_own_password(ann, PASSWORD, password),
    ):
        with pytest.raises(UsageError, match="hft_"):
            act()


@pytest.mark.parametrize("act", [lambda h: h.directory.delete(h.admin, "admin"),
                                 lambda h: h.directory.change(h.admin, "admin", {"disabled": True}),
                                 lambda h: h.directory.change(h.admin, "admin", {"role": "user"})])  # fmt: skip
def test_the_last_administrator_stays(house: House, act: Any) -> None:
    house.user("ann")
    with pytest.raises(Forbidden, match="last administrator"):
        act(house)
    house.directory.change(house.admin, "ann", {"role": "admin"})
    act(house)


def test_two_administrators_cannot_remove_each_other_at_once(house: House) -> None:
    house.directory.create(house.admin, "ann", PASSWORD, role="admin")
    ann, begin, ends = house.log_in("ann"), threading.Barrier(2), []

    def remove(by: Any, whom: str) -> None:
        begin.wait()
        try:
            house.directory.delete(by, whom)
            ends.append("deleted")
        except Forbidden:
            ends.append("refused")

    threads = [
        threading.Thread(target=remove, args=(ann, "admin")),
        threading.Thread(target=remove, args=(house.admin, "ann")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["deleted", "refused"]


def test_a_disabled_account_is_out_at_once_and_everywhere(house: House) -> None:
    ann = house.user("ann")
    session = house.directory.open_session(ann)
    token, _ = house.directory.create_token(ann, "laptop", ["files:read"])
    house.directory.change(house.admin, "ann", {"disabled": True})
    for attempt in (
        lambda: house.log_in("ann"),
        lambda: house.directory.by_session(session, HOME),
        lambda: house.directory.by_token(token, HOME),
    ):
        with pytest.raises(NotLoggedIn):
            attempt()
    house.directory.change(house.admin, "ann", {"disabled": False})
    assert house.log_in("ann").username == "ann"
    with pytest.raises(NotLoggedIn):
        house.directory.by_session(session, HOME)


# -- logging in --------------------------------------------------------------------------------------------------------


def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(house: House) -> None:
    house.user("ann")
    told = []
    for username in ("ann", "nobody", "", "a\0b", "ä" * 5000, "\udcff"):
        with pytest.raises(NotLoggedIn) as caught:
            house.log_in(username, "a wrong guess")
        told.append((str(caught.value), caught.value.hint))
    assert len(set(told)) == 1


def test_a_name_that_nobody_has_costs_as_much_work(database: Database) -> None:
    """Counted in hashes, not in seconds."""
    hashed: list[str] = []

    class Counting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 - the library's word
            hashed.append(str(hash))
            return super().verify(hash, password)

    house = House(database)
    directory = Directory(database, Passwords(Counting(1, 64, 1)), house.clock)
    for username in ("admin", "nobody"):
        with pytest.raises(NotLoggedIn):
            directory.log_in(username, "a wrong guess", HOME)
    assert len(hashed) == 2 and all(h.startswith("$argon2id$") for h in hashed)


def test_a_password_hashed_at_another_cost_is_hashed_anew_at_log_in(house: House) -> None:
    house.user("ann")
    before = house.directory.account(house.admin, "ann").password
    dearer = Directory(house.database, Passwords(PasswordHasher(2, 128, 1)), house.clock)
    dearer.log_in("ann", PASSWORD, HOME)
    after = house.directory.account(house.admin, "ann").password
    assert after != before and "m=128,t=2" in after
    assert dearer.log_in("ann", PASSWORD, HOME).username == "ann"


def test_after_ten_failures_even_the_right_password_must_wait(house: House) -> None:
    house.user("ann")
    wrong(house, MOST)
    with pytest.raises(TooManyAttempts) as caught:
        house.log_in("ann")
    assert 0 < caught.value.retry_after <= LONGEST_PAUSE_S
    house.clock.passes(caught.value.retry_after)
    assert house.log_in("ann").username == "ann"
    wrong(house, MOST)  # the count began anew


def by_password(house: House, password: str = PASSWORD, address: str = HOME) -> str:
    return house.directory.by_password("ann", password, address).username


def test_a_password_that_was_just_right_must_wait_like_any_other(house: House) -> None:
    """Else guesses would be told from the right one, as fast as they come."""
    house.user("ann")
    assert by_password(house) == "ann"
    for _ in range(MOST):
        with pytest.raises(NotLoggedIn):
            by_password(house, "a wrong guess")
    told = []
    for password in ("a wrong guess", PASSWORD):
        with pytest.raises(TooManyAttempts) as caught:
            by_password(house, password)
        told.append((str(caught.value), caught.value.hint, caught.value.retry_after))
    assert told[0] == told[1]
    assert by_password(house, address=ELSEWHERE) == "ann"
    house.clock.passes(caught.value.retry_after)
    assert by_password(house) == "ann"


def test_a_password_is_believed_unhashed_only_where_it_was_right_and_nothing_failed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str | None] = []
    verify = Passwords.verify

    def counting(self: Passwords, password: str, stored: str | None) -> bool:
        hashed.append(stored)
        return verify(self, password, stored)

    house.user("ann")
    monkeypatch.setattr(Passwords, "verify", counting)
    for address, hashes in ((HOME, 1), (HOME, 1), (ELSEWHERE, 2), (ELSEWHERE, 2), (HOME, 2)):
        assert (by_password(house, address=address), len(hashed)) == ("ann", hashes)
    wrong(house, 1)
    for address, hashes in ((ELSEWHERE, 3), (HOME, 4), (HOME, 4)):
        assert (by_password(house, address=address), len(hashed)) == ("ann", hashes)


def test_an_ipv6_network_is_one_address_for_guesses(house: House) -> None:
    house.user("ann")
    for number in range(MOST):
        wrong(house, 1, address=f"2001:db8:1:2:{number:x}::{number:x}")
    for address in ("2001:db8:1:2:ffff::1", "2001:0DB8:1:2::", "2001:db8:1:2::1%eth0"):
        with pytest.raises(TooManyAttempts):
            house.log_in("ann", address=address)
    assert house.log_in("ann", address="2001:db8:1:3::1").username == "ann"


def test_an_ipv4_address_is_the_same_in_ipv6s_clothes(house: House) -> None:
    house.user("ann")
    wrong(house, MOST, address=f"::ffff:{HOME}")
    with pytest.raises(TooManyAttempts):
        house.log_in("ann", address=HOME)
    assert house.log_in("ann", address=f"::ffff:{ELSEWHERE}").username == "ann"


@pytest.mark.parametrize("address", ["", "unix", "1.2.3.4.5", "[::1]", "::1::", "é"])
def test_what_is_no_address_counts_as_it_stands(address: str) -> None:
    assert source_of(address) == address


def test_the_pause_doubles_up_to_its_longest(house: House) -> None:
    house.user("ann")
    wrong(house, MOST)
    pauses = []
    for _ in range(8):
        with pytest.raises(TooManyAttempts) as caught:
            house.log_in("ann")
        pauses.append(caught.value.retry_after)
        house.clock.passes(caught.value.retry_after)
        wrong(house, 1)
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]


def test_somebody_elses_guesses_do_not_shut_the_owner_out(house: House) -> None:
    house.user("ann")
    wrong(house, MOST, address=ELSEWHERE)
    with pytest.raises(TooManyAttempts):
        house.log_in("ann", address=ELSEWHERE)
    assert house.log_in("ann", address=HOME).username == "ann"


def test_one_address_does_not_try_many_accounts_for_long(house: House) -> None:
    for number in range(MOST_FROM_ADDRESS):
        wrong(house, 1, f"user{number}", ELSEWHERE)
    with pytest.raises(TooManyAttempts):
        house.log_in("admin", ADMIN_PASSWORD, ELSEWHERE)
    assert house.log_in("admin", ADMIN_PASSWORD, HOME).username == "admin"


def test_failures_are_forgotten_in_time_and_not_by_a_restart(house: House) -> None:
    house.user("ann")
    wrong(house, MOST - 1)
    again = House(house.database, house.clock)
    wrong(again, 1)
    with pytest.raises(TooManyAttempts):
        again.log_in("ann")
    house.clock.passes(FORGET_S + 1)
    wrong(again, MOST - 1)
    assert again.log_in("ann").username == "ann"


def test_many_guesses_at_once_are_no_more_than_one_after_the_other(house: House) -> None:
    house.user("ann")
    begin, ends = threading.Barrier(16), []

    def guess() -> None:
        begin.wait()
        try:
            house.log_in("ann", "a wrong guess")
        except (NotLoggedIn, TooManyAttempts) as e:
            ends.append(type(e))

    threads = [threading.Thread(target=guess) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends.count(NotLoggedIn) == MOST and len(ends) == 16


# -- one's own ---------------------------------------------------------------------------------------------------------


def test_changing_ones_password_needs_the_old_one_and_ends_other_sessions(house: House) -> None:
    ann = house.user("ann")
    mine, other = house.directory.open_session(ann), house.directory.open_session(ann)
    with pytest.raises(NotLoggedIn):
        house.directory.change_own_password(ann, "a wrong guess", "another password")
    house.directory.change_own_password(ann, PASSWORD, "another password", session=mine)
    with pytest.raises(NotLoggedIn):
        house.log_in("ann")
    assert house.log_in("ann", "another password").username == "ann"
    assert house.directory.by_session(mine, HOME).username == "ann"
    with pytest.raises(NotLoggedIn):
        house.directory.by_session(other, HOME)


def test_a_session_ends_by_itself_or_when_it_is_closed(house: House) -> None:
    ann = house.user("ann")
    short, long = house.directory.open_session(ann), house.directory.open_session(ann)
    assert house.directory.by_session(short, ELSEWHERE).address == ELSEWHERE
    house.directory.close_session(short)
    with pytest.raises(NotLoggedIn):
        house.directory.by_session(short, HOME)
    house.clock.passes(SESSION_S)
    with pytest.raises(NotLoggedIn):
        house.directory.by_session(long, HOME)


def test_quotas_hold_to_the_byte_whoever_stores_at_once(house: House) -> None:
    ann = house.user("ann")
    house.directory.change(house.admin, "ann", {"quota_bytes": 1000, "quota_objects": 50})
    refused: list[int] = []

    def store() -> None:
        for _ in range(10):
            try:
                house.directory.charge(ann.account, 25, 1)
            except QuotaFull:
                refused.append(1)

    threads = [threading.Thread(target=store) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = house.directory.account(ann, "ann")
    assert (used.used_bytes, used.used_objects, len(refused)) == (1000, 40, 40)
    house.directory.charge(ann.account, -600, -40)
    with pytest.raises(QuotaFull):
        house.directory.charge(ann.account, 0, 51)
    house.directory.charge(ann.account, 600, 50)


def test_a_quota_that_is_made_smaller_lets_things_go_but_not_come(house: House) -> None:
    ann = house.user("ann")
    house.directory.charge(ann.account, 1000, 10)
    house.directory.change(house.admin, "ann", {"quota_bytes": 500})
    with pytest.raises(QuotaFull):
        house.directory.charge(ann.account, 1, 0)
    house.directory.charge(ann.account, -100, -1)
    house.directory.charge(ann.account, -5000, -50)
    used = house.directory.account(ann, "ann")
    assert (used.used_bytes, used.used_objects) == (0, 0)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_grants_what_it_was_made_for(house: House) -> None:
    ann = house.user("ann")
    secret, kept = house.directory.create_token(ann, "laptop", ["files:write", "files:read"])
    by = house.directory.by_token(secret, ELSEWHERE)
    assert (by.username, by.scopes) == ("ann", frozenset(["files:read", "files:write"]))
    by.demand("files:read")
    with pytest.raises(Forbidden, match="blobs:read"):
        by.demand("blobs:read")
    assert (kept.name, kept.scopes, kept.expires_ns) == ("laptop", "files:read files:write", None)


def test_a_token_is_shown_once_and_kept_as_a_digest(house: House) -> None:
    ann = house.user("ann")
    secret, _ = house.directory.create_token(ann, "laptop", ["files:read"])
    assert secret.startswith("hft_")
    assert secret not in str(house.directory.tokens(ann)) + str(house.directory.audit(house.admin))
    with house.database.reading() as c:
        rows = [str(tuple(row)) for row in c.exec_driver_sql("SELECT * FROM tokens")]
    assert len(rows) == 1 and secret not in rows[0]


def test_a_token_makes_no_token_that_may_more(house: House) -> None:
    ann = house.user("ann")
    secret, _ = house.directory.create_token(ann, "small", ["files:read"])
    small = house.directory.by_token(secret, HOME)
    with pytest.raises(Forbidden, match="files:write"):
        house.directory.create_token(small, "large", ["files:read", "files:write"])


def test_a_token_is_no_more_than_its_account_has_become(house: House) -> None:
    house.directory.create(house.admin, "ann", PASSWORD, role="admin")
    secret, _ = house.directory.create_token(house.log_in("ann"), "all", ALL_SCOPES)
    assert house.directory.by_token(secret, HOME).scopes == ALL_SCOPES
    house.directory.change(house.admin, "ann", {"role": "user"})
    assert house.directory.by_token(secret, HOME).scopes == USER_SCOPES


def test_tokens_expire_and_are_revoked_by_their_owner_only(house: House) -> None:
    ann, bob = house.user("ann"), house.user("bob")
    short, _ = house.directory.create_token(ann, "short", ["files:read"], expires_in=60)
    long, kept = house.directory.create_token(ann, "long", ["files:read"])
    with pytest.raises(NoAccount):
        house.directory.revoke_token(bob, kept.id)
    house.clock.passes(60)
    with pytest.raises(NotLoggedIn):
        house.directory.by_token(short, HOME)
    house.directory.revoke_token(ann, kept.id)
    with pytest.raises(NotLoggedIn):
        house.directory.by_token(long, HOME)
    assert [t.name for t in house.directory.tokens(ann)] == ["short"]


def test_an_account_has_so_many_tokens_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.accounts.directory.MOST_TOKENS", 3)
    ann, bob = house.user("ann"), house.user("bob")
    house.directory.create_token(ann, "short", ["files:read"], expires_in=60)
    kept = [house.directory.create_token(ann, "long", ["files:read"])[1] for _ in range(2)]
    with pytest.raises(Forbidden, match="at most 3"):
        house.directory.create_token(ann, "one more", ["files:read"])
    house.directory.create_token(bob, "his own", ["files:read"])
    house.clock.passes(60)
    house.directory.create_token(ann, "in the place of the short one", ["files:read"])
    with pytest.raises(Forbidden, match="at most 3"):
        house.directory.create_token(ann, "one more", ["files:read"])
    house.directory.revoke_token(ann, kept[0].id)
    house.directory.create_token(ann, "in the place of the revoked one", ["files:read"])
    assert [t.name[:12] for t in house.directory.tokens(ann)] == ["long", "in the place", "in the place"]


def test_many_at_once_make_no_more_tokens_than_an_account_may_have(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.accounts.directory.MOST_TOKENS", 3)
    ann, begin, ends = house.user("ann"), threading.Barrier(8), []

    def make() -> None:
        begin.wait()
        try:
            house.directory.create_token(ann, "t", ["files:read"])
            ends.append("made")
        except Forbidden:
            ends.append("refused")

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["made"] * 3 + ["refused"] * 5


def test_one_token_is_looked_up_without_the_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = house.user("ann"), house.user("bob")
    _, kept = house.directory.create_token(ann, "laptop", ["files:read"])
    monkeypatch.delattr("holdfast.catalog.people.list_tokens")
    assert house.directory.token(ann, kept.id) == kept
    for by, number in ((bob, kept.id), (ann, kept.id + 1)):
        with pytest.raises(NoAccount):
            house.directory.token(by, number)


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\udcff", "n" * 256])
def test_a_tokens_name_that_will_not_do_is_refused(house: House, name: str) -> None:
    ann = house.user("ann")
    with pytest.raises(UsageError, match="name"):
        house.directory.create_token(ann, name, ["files:read"])
    assert house.directory.tokens(ann) == []


def test_it_is_noted_about_when_a_token_was_used(house: House) -> None:
    ann = house.user("ann")
    secret, kept = house.directory.create_token(ann, "laptop", ["files:read"])
    assert kept.used_ns is None
    house.directory.by_token(secret, HOME)
    first = house.clock.now
    house.clock.passes(10)
    house.directory.by_token(secret, HOME)
    assert house.directory.tokens(ann)[0].used_ns == first
    house.clock.passes(60)
    house.directory.by_token(secret, HOME)
    assert house.directory.tokens(ann)[0].used_ns == first + 70 * SECOND


@pytest.mark.parametrize("secret", ["", "hft_", "hft_nonsense", "\0", "\udcff", "x" * 100_000])
def test_what_is_no_token_is_refused(house: House, secret: str) -> None:
    with pytest.raises(NotLoggedIn):
        house.directory.by_token(secret, HOME)
    with pytest.raises(NotLoggedIn):
        house.directory.by_session(secret, HOME)


@pytest.mark.parametrize(
    ("scopes", "expires_in"),
    [
        ([], None),
        (["files"], None),
        (["files:delete"], None),
        (["files:read"], 0),
        (["files:read"], -1),
        (["files:read"], 1 << 60),
    ],
)
def test_tokens_that_make_no_sense_are_refused(house: House, scopes: list[str], expires_in: int | None) -> None:
    ann = house.user("ann")
    with pytest.raises(UsageError):
        house.directory.create_token(ann, "t", scopes, expires_in)
    assert house.directory.tokens(ann) == []


# -- the audit log -----------------------------------------------------------------------------------------------------


def test_what_was_done_stands_in_the_log_and_no_secret_does(house: House) -> None:
    ann = house.user("ann")
    house.directory.open_session(ann)
    secret, kept = house.directory.create_token(ann, "laptop", ["files:read"])
    house.directory.revoke_token(ann, kept.id)
    house.directory.change_own_password(ann, PASSWORD, "another password")
    wrong(house, 1, "ann", ELSEWHERE)
    house.directory.change(house.admin, "ann", {"name": "Ann", "password": "a third password"})
    house.directory.delete(house.admin, "ann")
    entries = house.directory.audit(house.admin)
    assert [(e.actor, e.action, e.subject) for e in reversed(entries)] == [
        ("", "account made", "admin"), ("admin", "account made", "ann"), ("ann", "logged in", "ann"),
        ("ann", "token made", "laptop"), ("ann", "token revoked", str(kept.id)), ("ann", "password changed", "ann"),
        ("", "log-in failed", "ann"), ("admin", "account changed", "ann"), ("admin", "account deleted", "ann"),
    ]  # fmt: skip
    assert {e.address for e in entries} == {"", HOME, ELSEWHERE}
    for hidden in (secret, PASSWORD, "another password", "a third password", "a wrong guess"):
        assert hidden not in str(entries)


def test_an_error_of_the_database_names_no_values(house: House) -> None:
    with pytest.raises(sa.exc.IntegrityError) as caught, house.database.writing() as c:
        people.add_token(
            c, account=1 << 40, name="nobody's business", digest=b"d", scopes="", created_ns=1, expires_ns=None
        )
    assert "INSERT INTO tokens" in str(caught.value) and "business" not in str(caught.value)


def test_the_log_is_read_in_pieces(house: House) -> None:
    for number in range(5):
        house.user(f"user{number}")
    first = house.directory.audit(house.admin, limit=2)
    rest = house.directory.audit(house.admin, limit=1000, before=first[-1].id)
    assert first + rest == house.directory.audit(house.admin)
    for limit in (0, -1, 1001):
        with pytest.raises(UsageError):
            house.directory.audit(house.admin, limit=limit)
