"""Tokens: refreshed, fetched with credentials, revoked, asked about."""

from __future__ import annotations

import pytest

from holdfast.accounts.asking import Asked
from holdfast.accounts.clients import CODE, CREDENTIALS, DEVICE, REFRESH
from holdfast.accounts.directory import Identity
from holdfast.accounts.flows import ACCESS_S, REFRESH_S
from holdfast.errors import Forbidden, NotLoggedIn
from tests.accounts.making import HOME, House
from tests.accounts.programs import (
    ISSUER,
    Program,
    at_once,
    error,
    registered,
)

# -- refreshing --------------------------------------------------------------------------------------------------------


def test_a_refresh_token_is_exchanged_for_a_new_pair(house: House, ann: Identity, phone: Program) -> None:
    first = phone.granted(ann)
    house.clock.passes(ACCESS_S)
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(first["access_token"], HOME)
    second = phone.token(REFRESH, refresh_token=first["refresh_token"]).body
    assert second["refresh_token"] != first["refresh_token"]
    assert house.oauth.by_access_token(second["access_token"], HOME).username == "ann"


def test_a_refresh_token_used_again_ends_its_whole_family(house: House, ann: Identity, phone: Program) -> None:
    first, other = phone.granted(ann), phone.granted(ann)
    second = phone.token(REFRESH, refresh_token=first["refresh_token"]).body
    third = phone.token(REFRESH, refresh_token=second["refresh_token"]).body
    assert error(phone.token(REFRESH, refresh_token=first["refresh_token"])) == "invalid_grant"
    for ended in (first, second, third):
        with pytest.raises(NotLoggedIn):
            house.oauth.by_access_token(ended["access_token"], HOME)
        assert error(phone.token(REFRESH, refresh_token=ended["refresh_token"])) == "invalid_grant"
    assert house.oauth.by_access_token(other["access_token"], HOME).username == "ann"
    assert "used again" in str(house.directory.audit(house.admin, 3))


def test_of_many_with_the_same_refresh_token_one_is_first(house: House, ann: Identity, phone: Program) -> None:
    token = phone.granted(ann)["refresh_token"]
    answers = at_once(lambda: phone.token(REFRESH, refresh_token=token))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


def test_a_refresh_token_lasts_thirty_days_from_its_last_use(house: House, ann: Identity, phone: Program) -> None:
    tokens = phone.granted(ann)
    for _ in range(3):
        house.clock.passes(REFRESH_S - 1)
        tokens = dict(phone.token(REFRESH, refresh_token=tokens["refresh_token"]).body)
    house.clock.passes(REFRESH_S)
    assert error(phone.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_grant"


def test_refreshing_may_narrow_and_never_widen(house: House, ann: Identity, phone: Program) -> None:
    tokens = phone.granted(ann, scope="files:read")
    wide = phone.token(REFRESH, refresh_token=tokens["refresh_token"], scope="files:read files:write")
    assert error(wide) == "invalid_scope"
    both = phone.granted(ann)
    narrow = phone.token(REFRESH, refresh_token=both["refresh_token"], scope="files:read").body
    assert house.oauth.by_access_token(narrow["access_token"], HOME).scopes == {"files:read"}
    again = phone.token(REFRESH, refresh_token=narrow["refresh_token"]).body
    assert again["scope"] == "files:read files:write"


def test_a_refresh_token_is_of_one_client_and_no_access_token(house: House, ann: Identity, phone: Program) -> None:
    tokens, other = phone.granted(ann), registered(house, ann, public=True)
    assert error(other.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_grant"
    assert error(phone.token(REFRESH, refresh_token=tokens["access_token"])) == "invalid_grant"
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["refresh_token"], HOME)
    assert phone.token(REFRESH, refresh_token=tokens["refresh_token"]).status == 200


# -- client credentials, and who the client is -------------------------------------------------------------------------


def test_credentials_act_as_the_account_that_made_the_client(house: House, robot: Program) -> None:
    tokens = robot.token(CREDENTIALS).body
    assert "refresh_token" not in tokens
    assert house.oauth.by_access_token(tokens["access_token"], HOME).username == "ann"
    posted = {"grant_type": CREDENTIALS, "client_id": robot.number, "client_secret": str(robot.secret)}
    assert house.oauth.token(Asked("POST", "", posted, {}, ISSUER)).status == 200


@pytest.mark.parametrize("secret", ["", "hfs_wrong", "ä", "x" * 5000, "\0"])
def test_a_wrong_secret_is_refused(house: House, robot: Program, secret: str) -> None:
    answer = Program(house, robot.number, secret or " ").token(CREDENTIALS)
    assert (error(answer), answer.status) == ("invalid_client", 401) and "WWW-Authenticate" in answer.headers
    posted = {"grant_type": CREDENTIALS, "client_id": robot.number, "client_secret": secret}
    assert error(house.oauth.token(Asked("POST", "", posted, {}, ISSUER))) == "invalid_client"


@pytest.mark.parametrize(
    "header", ["Basic", "Basic ", "Basic !!!", "Basic ä", "Basic /////w==", "Basic YQ==", "Bearer x", ""]
)
def test_an_authorization_that_is_none_is_refused(house: House, robot: Program, header: str) -> None:
    asked = Asked("POST", "", {"grant_type": CREDENTIALS}, {"authorization": header}, ISSUER)
    assert error(house.oauth.token(asked)) == "invalid_client"


def test_a_client_with_a_secret_must_show_it(house: House, ann: Identity, app: Program) -> None:
    tokens, code = app.granted(ann), app.code(ann)
    bare = Program(house, app.number, None)
    assert error(bare.exchange(code)) == "invalid_client"
    assert error(bare.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_client"
    assert app.exchange(code).status == 200


def test_a_public_client_has_no_credentials(phone: Program, app: Program) -> None:
    assert error(phone.token(CREDENTIALS)) == "invalid_client"
    assert error(app.token(CREDENTIALS)) == "unauthorized_client"


@pytest.mark.parametrize("kind", ["password", "", "ä", '"\\', "implicit"])
def test_a_grant_that_is_none_is_refused(app: Program, kind: str) -> None:
    answer = app.token(kind)
    assert error(answer) == "unsupported_grant_type" and str(answer.body.get("error_description", "")).isascii()


def test_what_is_missing_is_said_to_be(house: House, app: Program) -> None:
    assert error(house.oauth.token(app.asking())) == "invalid_request"
    for kind in (CODE, REFRESH, DEVICE):
        if kind != DEVICE:
            assert error(app.token(kind)) == "invalid_request"
    assert error(house.oauth.revoke(app.asking())) == "invalid_request"
    assert error(house.oauth.introspect(app.asking())) == "invalid_request"


@pytest.mark.parametrize("secret", ["", "hfa_", "hfa_nonsense", "\0", "\udcff", "x" * 100_000])
def test_what_is_no_token_is_refused(house: House, phone: Program, secret: str) -> None:
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(secret, HOME)
    assert error(phone.token(REFRESH, refresh_token=secret)) == "invalid_grant"
    assert error(phone.exchange(secret, "v" * 43)) == "invalid_grant"


# -- revoking and asking about -----------------------------------------------------------------------------------------


def test_revoking_an_access_token_ends_that_one(house: House, ann: Identity, phone: Program) -> None:
    tokens = phone.granted(ann)
    assert house.oauth.revoke(phone.asking(token=tokens["access_token"], token_type_hint="nonsense")).status == 200
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["access_token"], HOME)
    assert phone.token(REFRESH, refresh_token=tokens["refresh_token"]).status == 200


def test_revoking_a_refresh_token_ends_all_of_it(house: House, ann: Identity, app: Program) -> None:
    tokens = app.granted(ann)
    assert house.oauth.revoke(app.asking(token=tokens["refresh_token"])).status == 200
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["access_token"], HOME)
    assert error(app.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_grant"


def test_revoking_is_for_the_tokens_client_only(house: House, ann: Identity, app: Program, phone: Program) -> None:
    tokens = app.granted(ann)
    assert error(house.oauth.revoke(phone.asking(token=tokens["access_token"]))) == "invalid_grant"
    assert house.oauth.by_access_token(tokens["access_token"], HOME).username == "ann"
    assert house.oauth.revoke(phone.asking(token="nonsense\0")).status == 200
    assert error(house.oauth.revoke(Program(house, app.number, None).asking(token="x"))) == "invalid_client"


def test_a_client_learns_about_its_own_tokens_only(house: House, ann: Identity, app: Program) -> None:
    tokens, other = app.granted(ann), registered(house, ann)
    told = house.oauth.introspect(app.asking(token=tokens["access_token"])).body
    now = house.clock.now // 1_000_000_000
    assert told == {
        "active": True, "client_id": app.number, "username": "ann", "sub": "ann", "scope": "files:read files:write",
        "token_type": "Bearer", "iat": now, "exp": now + ACCESS_S, "iss": ISSUER,
    }  # fmt: skip
    assert house.oauth.introspect(app.asking(token=tokens["refresh_token"])).body["active"]
    for asked in (other.asking(token=tokens["access_token"]), app.asking(token="nonsense")):
        assert house.oauth.introspect(asked).body == {"active": False}
    house.clock.passes(ACCESS_S)
    assert house.oauth.introspect(app.asking(token=tokens["access_token"])).body == {"active": False}


def test_an_administrator_learns_about_all_tokens_and_nobody_else_does(
    house: House, ann: Identity, phone: Program
) -> None:
    token = phone.granted(ann)["access_token"]
    asked = Asked("POST", "", {"token": token}, {}, ISSUER)
    assert house.oauth.introspect(asked, house.admin).body["client_id"] == phone.number
    with pytest.raises(Forbidden):
        house.oauth.introspect(asked, ann)
    assert error(house.oauth.introspect(asked)) == "invalid_client"
    assert error(house.oauth.introspect(phone.asking(token=token))) == "invalid_client"
