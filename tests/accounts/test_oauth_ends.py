"""What ends what was allowed, and what a program can never do."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from holdfast.accounts.clients import CODE, CREDENTIALS, DEVICE, OURS, REFRESH
from holdfast.accounts.directory import Identity
from holdfast.accounts.flows import DEVICE_S, REFRESH_S
from holdfast.catalog.tables import metadata
from holdfast.errors import Forbidden, NotLoggedIn
from tests.accounts.making import HOME, PASSWORD, House
from tests.accounts.programs import (
    Program,
    device,
    error,
    registered,
)
from tests.support import pkce


def ends(house: House, program: Program, tokens: dict[str, Any]) -> None:
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["access_token"], HOME)
    assert error(program.token(REFRESH, refresh_token=tokens["refresh_token"])) in ("invalid_grant", "invalid_client")


@pytest.mark.parametrize(
    "act",
    [
        lambda h, bob: h.directory.change(h.admin, "bob", {"disabled": True}),
        lambda h, bob: h.directory.change(h.admin, "bob", {"password": "another password"}),
        lambda h, bob: h.directory.change_own_password(bob, PASSWORD, "another password"),
        lambda h, bob: h.directory.delete(h.admin, "bob"),
    ],
    ids=["disabled", "password set", "password changed", "deleted"],
)
def test_what_an_account_allowed_ends_with_it_or_its_password(house: House, phone: Program, act: Any) -> None:
    bob = house.user("bob")
    tokens, (verifier, challenge) = phone.granted(bob), pkce.pair()
    code, codes = phone.code(bob, challenge), device(house)
    house.oauth.decide_device(bob, codes["user_code"], True)
    act(house, bob)
    ends(house, phone, tokens)
    assert error(phone.exchange(code, verifier)) == "invalid_grant"
    assert error(Program(house, OURS, None).token(DEVICE, device_code=codes["device_code"])) == "invalid_grant"


def test_a_client_ends_with_its_makers_account(house: House, ann: Identity, phone: Program, robot: Program) -> None:
    bob, token = house.user("bob"), robot.token(CREDENTIALS).body["access_token"]
    tokens = phone.granted(bob)
    house.directory.change(house.admin, "ann", {"disabled": True})
    ends(house, phone, tokens)
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(token, HOME)
    assert error(robot.token(CREDENTIALS)) == "invalid_client"


def test_a_removed_client_ends_with_all_its_tokens(house: House, ann: Identity, phone: Program) -> None:
    tokens, before = phone.granted(house.user("bob")), house.directory.generation
    house.oauth.clients.remove(ann, phone.number)
    ends(house, phone, tokens)
    assert house.directory.generation > before


def test_a_program_makes_itself_no_more_than_it_is(house: House, ann: Identity, app: Program) -> None:
    by = house.oauth.by_access_token(app.granted(ann)["access_token"], HOME)
    for act in (
        lambda: house.directory.create_token(by, "t", ["files:read"]),
        lambda: house.directory.revoke_token(by, 1),
        lambda: house.directory.change_own_password(by, PASSWORD, "another password"),
        lambda: registered(house, by),
        lambda: house.oauth.clients.remove(by, app.number),
        lambda: house.oauth.consent(app.authorizing(), by),
        lambda: house.oauth.decide(app.authorizing(), by, True),
        lambda: house.oauth.waiting(by, "BBBB-BBBB"),
        lambda: house.oauth.decide_device(by, "BBBB-BBBB", True),
    ):
        with pytest.raises(Forbidden, match="A token may not"):
            act()


def test_an_administrators_program_does_not_change_his_password(house: House) -> None:
    app = registered(house, house.admin, scopes=["admin"])
    by = house.oauth.by_access_token(app.granted(house.admin)["access_token"], HOME)
    with pytest.raises(Forbidden):
        house.directory.change(by, "admin", {"password": "another password"})


def test_nothing_that_is_kept_gives_a_secret_away(house: House, ann: Identity, app: Program) -> None:
    verifier, challenge = pkce.pair()
    code, codes = app.code(ann, challenge), device(house)
    tokens = app.exchange(code, verifier).body
    with house.database.reading() as c:
        rows = [str(tuple(row)) for table in metadata.sorted_tables for row in c.execute(sa.select(table))]
    everything = "\n".join(rows)
    assert app.number in everything
    for secret in (
        app.secret, code, verifier, tokens["access_token"], tokens["refresh_token"], codes["device_code"],
        codes["user_code"],
    ):  # fmt: skip
        assert str(secret) not in everything


def test_what_has_expired_does_not_stay_for_ever(house: House, ann: Identity, phone: Program, robot: Program) -> None:
    phone.granted(ann)
    robot.token(CREDENTIALS)
    phone.code(ann, pkce.pair()[1])
    device(house)
    house.clock.passes(REFRESH_S + DEVICE_S + 3600)
    phone.granted(ann)
    device(house)
    with house.database.reading() as c:
        counts = {
            name: c.execute(sa.select(sa.func.count()).select_from(metadata.tables[name])).scalar_one()
            for name in ("grants", "grant_tokens", "codes", "devices")
        }
    assert counts == {"grants": 1, "grant_tokens": 2, "codes": 1, "devices": 1}


def test_a_program_that_asks_for_ever_new_tokens_keeps_the_newest(
    house: House, ann: Identity, robot: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.accounts.flows.MOST_GRANTS", 3)
    other = registered(house, ann, allowed=[CREDENTIALS], redirect_uris=[])
    others, tokens = other.token(CREDENTIALS).body["access_token"], []
    for _ in range(4):
        house.clock.passes(1)
        before = house.directory.generation
        tokens.append(robot.token(CREDENTIALS).body["access_token"])
    assert house.directory.generation > before  # nobody goes on believing the one that ended
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens[0], HOME)
    for token in (*tokens[1:], others):
        assert house.oauth.by_access_token(token, HOME).username == "ann"


def test_one_persons_many_log_ins_end_nobody_elses_and_the_shortest_ones_first(
    house: House, ann: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.accounts.flows.MOST_GRANTS", 2)
    both = registered(house, ann, allowed=[CODE, CREDENTIALS])
    mine, bobs = both.granted(ann), both.granted(house.user("bob"))
    for _ in range(5):
        newest = dict(both.token(CREDENTIALS).body)
    for tokens, username in ((mine, "ann"), (bobs, "bob"), (newest, "ann")):
        assert house.oauth.by_access_token(tokens["access_token"], HOME).username == username


def test_the_log_says_who_allowed_what(house: House, ann: Identity, app: Program) -> None:
    app.granted(ann, scope="files:read")
    codes = device(house, scope="files:read")
    house.oauth.decide_device(ann, codes["user_code"], True)
    house.oauth.clients.remove(ann, app.number)
    told = [(e.actor, e.action, e.subject, e.detail) for e in house.directory.audit(house.admin, 4)]
    assert told == [
        ("ann", "client removed", "an app", app.number),
        ("ann", "device approved", "Holdfast's command line", "files:read"),
        ("ann", "client allowed", "an app", "files:read"),
        ("ann", "client registered", "an app", f"{app.number} files:read files:write"),
    ]


def test_an_api_token_makes_only_tokens_that_do_not_outlive_it(house: House, ann: Identity) -> None:
    secret, _ = house.directory.create_token(ann, "short", ["files:read"], expires_in=60)
    by = house.directory.by_token(secret, HOME)
    for expires_in in (None, 61):
        with pytest.raises(Forbidden, match="outlives"):
            house.directory.create_token(by, "long", ["files:read"], expires_in)
    house.directory.create_token(by, "as short", ["files:read"], 60)
    with pytest.raises(Forbidden):
        house.directory.change_own_password(by, PASSWORD, "another password")
    with pytest.raises(Forbidden):
        registered(house, by)
