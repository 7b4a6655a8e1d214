"""The authorization code, with consent and PKCE, and which scopes come of it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from holdfast.accounts.asking import Answer
from holdfast.accounts.clients import CREDENTIALS, OURS, REFRESH
from holdfast.accounts.directory import Identity
from holdfast.accounts.flows import CODE_S
from holdfast.accounts.oauth import Consent
from holdfast.accounts.scopes import ALL_SCOPES, USER_SCOPES
from holdfast.catalog.tables import codes, grant_tokens, grants
from holdfast.errors import NotLoggedIn
from tests.accounts.making import HOME, PASSWORD, House
from tests.accounts.programs import (
    CALLBACK,
    ISSUER,
    SCOPES,
    Program,
    asking_for_device,
    at_once,
    error,
    query,
    registered,
)
from tests.support import pkce

# -- the code flow -----------------------------------------------------------------------------------------------------


def test_a_person_is_asked_what_a_program_wants(house: House, ann: Identity, app: Program) -> None:
    asked = house.oauth.consent(app.authorizing(scope="files:read"), ann)
    assert asked == Consent("an app", "ann", ("files:read",), CALLBACK)


def test_a_code_is_exchanged_for_tokens_that_act_for_the_person(house: House, ann: Identity, app: Program) -> None:
    bob = house.user("bob")
    answer = house.oauth.decide(app.authorizing(), bob, True)
    told = query(answer.location)
    assert answer.location.startswith(CALLBACK + "?") and told.keys() == {"code", "state", "iss"}
    assert (told["state"], told["iss"]) == ("a state", ISSUER)
    tokens = app.exchange(told["code"]).body
    assert (tokens["token_type"], tokens["expires_in"], tokens["scope"]) == ("Bearer", 3600, "files:read files:write")
    by = house.oauth.by_access_token(tokens["access_token"], HOME)
    assert (by.username, by.scopes, by.via) == ("bob", frozenset(SCOPES), "oauth")


def test_a_person_who_denies_gives_no_code(house: House, ann: Identity, app: Program) -> None:
    told = query(house.oauth.decide(app.authorizing(), ann, False).location)
    assert told["error"] == "access_denied" and told["state"] == "a state" and "code" not in told


def test_a_code_works_once_and_using_it_again_ends_what_came_of_it(house: House, ann: Identity, phone: Program) -> None:
    verifier, challenge = pkce.pair()
    code = phone.code(ann, challenge)
    tokens = phone.exchange(code, verifier).body
    refreshed = phone.token(REFRESH, refresh_token=tokens["refresh_token"]).body
    house.clock.passes(CODE_S + 1)
    assert error(phone.exchange(code, verifier)) == "invalid_grant"
    for ended in (tokens["access_token"], refreshed["access_token"]):
        with pytest.raises(NotLoggedIn):
            house.oauth.by_access_token(ended, HOME)
    assert error(phone.token(REFRESH, refresh_token=refreshed["refresh_token"])) == "invalid_grant"


def test_of_many_with_the_same_code_one_gets_tokens(house: House, ann: Identity, app: Program) -> None:
    code = app.code(ann)
    answers = at_once(lambda: app.exchange(code))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


def test_a_code_counts_for_five_minutes(house: House, ann: Identity, app: Program) -> None:
    young, old = app.code(ann), app.code(ann)
    house.clock.passes(CODE_S - 1)
    assert app.exchange(young).status == 200
    house.clock.passes(1)
    assert error(app.exchange(old)) == "invalid_grant"


def test_a_code_is_of_one_client(house: House, ann: Identity, app: Program) -> None:
    code, other = app.code(ann), registered(house, ann)
    assert error(other.exchange(code)) == "invalid_grant"
    assert app.exchange(code).status == 200


def test_a_code_is_of_one_redirect_uri(house: House, ann: Identity, app: Program) -> None:
    for uri in ("https://app.example.org/other", ""):
        code = app.code(ann)
        assert error(app.exchange(code, redirect_uri=uri)) == "invalid_grant"
        assert error(app.exchange(code)) == "invalid_grant"  # shown once, it is used


def test_a_wrong_verifier_gets_nothing_and_the_code_is_used(house: House, ann: Identity, phone: Program) -> None:
    verifier, challenge = pkce.pair()
    for wrong in ("", pkce.pair()[0], "short", challenge, verifier + "\n"):
        code = phone.code(ann, challenge)
        assert error(phone.exchange(code, wrong)) in ("invalid_grant", "invalid_request")
        assert error(phone.exchange(code, verifier)) == "invalid_grant"


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"code_challenge": "c" * 43}, {"code_challenge": "c" * 43, "code_challenge_method": "plain"},
        {"code_challenge_method": "S256"}, {"code_challenge": "short", "code_challenge_method": "S256"},
        {"code_challenge": "", "code_challenge_method": "S256"},
        {"code_challenge": "c" * 43, "code_challenge_method": ""},
    ],
)  # fmt: skip
def test_a_public_client_without_a_sound_challenge_gets_no_code(
    house: House, ann: Identity, phone: Program, fields: dict[str, str]
) -> None:
    for answer in (
        house.oauth.consent(phone.authorizing(**fields), ann),
        house.oauth.decide(phone.authorizing(**fields), ann, True),
    ):
        assert isinstance(answer, Answer)
        assert query(answer.location)["error"] == "invalid_request" and query(answer.location)["state"] == "a state"


def test_a_client_with_a_secret_may_use_pkce_and_then_must(house: House, ann: Identity, app: Program) -> None:
    verifier, challenge = pkce.pair()
    assert app.exchange(app.code(ann, challenge), verifier).status == 200
    assert error(app.exchange(app.code(ann, challenge))) == "invalid_request"
    assert error(app.exchange(app.code(ann), verifier)) == "invalid_request"
    plain = house.oauth.decide(app.authorizing(code_challenge=verifier, code_challenge_method="plain"), ann, True)
    assert query(plain.location)["error"] == "invalid_request"


@pytest.mark.parametrize(
    "uri",
    [
        "", "https://app.example.org/callback/", "https://app.example.org/callback?x=1", "https://APP.example.org/callback",
        "http://app.example.org/callback", "https://app.example.org:443/callback", "https://evil.example.org/callback",
        "https://app.example.org/callback\n", "https://app.example.org/%63allback", 'https://"<>\\', "ä\0",
    ],
)  # fmt: skip
def test_a_redirect_uri_that_does_not_match_leads_nowhere(house: House, ann: Identity, app: Program, uri: str) -> None:
    for answer in (
        house.oauth.consent(app.authorizing(redirect_uri=uri), ann),
        house.oauth.consent(app.authorizing(redirect_uri=uri), None),
        house.oauth.consent(app.authorizing(redirect_uri=uri, response_type="token"), ann),
        house.oauth.decide(app.authorizing(redirect_uri=uri), ann, True),
        house.oauth.decide(app.authorizing(redirect_uri=uri), ann, False),
    ):
        assert isinstance(answer, Answer) and answer.location == "" and answer.status == 400


@pytest.mark.parametrize("number", ["", "nobody", "a\0b", "hfc_" + "0" * 24, 'x"\\y', "x" * 5000])
def test_an_unknown_client_leads_nowhere(house: House, ann: Identity, app: Program, number: str) -> None:
    answer = house.oauth.consent(app.authorizing(client_id=number), ann)
    assert isinstance(answer, Answer) and answer.location == "" and answer.status == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_on_loopback_any_port_will_do_and_nothing_else_may_differ(house: House, ann: Identity, host: str) -> None:
    here = registered(house, ann, redirect_uris=[f"http://{host}:1234/cb"], public=True)
    verifier, challenge = pkce.pair()
    for there in (f"http://{host}:54321/cb", f"http://{host}/cb", f"http://{host}:1234/cb"):
        code = here.code(ann, challenge, redirect_uri=there)
        assert here.exchange(code, verifier, there).status == 200
    others = {"127.0.0.1", "[::1]", "localhost", "127.0.0.2", "127.0.0.1.example.org"} - {host}
    wrong = [f"http://{host}:1/other", f"https://{host}:1/cb", f"http://{host}:1@example.org/cb", f"http://{host}:x/cb"]
    for there in [*wrong, *(f"http://{other}:1/cb" for other in others)]:
        answer = house.oauth.consent(here.authorizing(challenge, redirect_uri=there), ann)
        assert isinstance(answer, Answer) and answer.location == ""


@pytest.mark.parametrize("kind", ["token", "code token", "code id_token", "", "ä", '"', "\n"])
def test_only_codes_are_given_out(house: House, ann: Identity, app: Program, kind: str) -> None:
    answer = house.oauth.consent(app.authorizing(response_type=kind), ann)
    assert isinstance(answer, Answer) and query(answer.location)["error"] == "unsupported_response_type"


def test_a_client_without_the_code_grant_gets_no_code(house: House, ann: Identity, app: Program) -> None:
    robot = registered(house, ann, allowed=[CREDENTIALS])
    answer = house.oauth.consent(robot.authorizing(), ann)
    assert isinstance(answer, Answer) and query(answer.location)["error"] == "unauthorized_client"


# -- scopes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["admin", "files:read blobs:read", "files:delete", "ä", "files:read\0", '"'])
def test_a_scope_that_the_client_does_not_have_is_refused(
    house: House, ann: Identity, app: Program, scope: str
) -> None:
    answer = house.oauth.decide(app.authorizing(scope=scope), ann, True)
    assert query(answer.location)["error"] == "invalid_scope"
    robot = registered(house, ann, allowed=[CREDENTIALS])
    assert error(robot.token(CREDENTIALS, scope=scope)) == "invalid_scope"


@pytest.mark.parametrize("scope", [" ", "   ", "\t", "\n", "\r\n", "\x1f", "\x85", "\u00a0", "\u3000"])
def test_spaces_for_scopes_are_none_and_not_all(
    house: House, ann: Identity, app: Program, robot: Program, scope: str
) -> None:
    """Of a refresh they would have made all that the client may."""
    tokens = app.granted(ann, scope="files:read")
    assert error(app.token(REFRESH, refresh_token=tokens["refresh_token"], scope=scope)) == "invalid_scope"
    assert error(robot.token(CREDENTIALS, scope=scope)) == "invalid_scope"
    assert error(house.oauth.device(asking_for_device(OURS, scope=scope))) == "invalid_scope"
    for answer in (
        house.oauth.consent(app.authorizing(scope=scope), ann),
        house.oauth.decide(app.authorizing(scope=scope), ann, True),
    ):
        assert isinstance(answer, Answer) and query(answer.location)["error"] == "invalid_scope"
    again = app.token(REFRESH, refresh_token=tokens["refresh_token"]).body  # what was refused has used nothing up
    assert again["scope"] == "files:read"


def test_an_empty_scope_is_one_that_was_left_out(house: House, ann: Identity, app: Program, robot: Program) -> None:
    narrow = app.granted(ann, scope="files:read")
    assert app.token(REFRESH, refresh_token=narrow["refresh_token"], scope="").body["scope"] == "files:read"
    assert robot.token(CREDENTIALS, scope="").body["scope"] == "files:read files:write"
    assert app.granted(ann, scope="")["scope"] == "files:read files:write"


def test_an_access_token_is_for_no_more_than_was_granted_whatever_stands_in_it(
    house: House, ann: Identity, app: Program
) -> None:
    token = app.granted(ann, scope="files:read")["access_token"]
    with house.database.writing() as c:
        c.execute(sa.update(grant_tokens).values(scopes="files:read files:write"))
    assert house.oauth.by_access_token(token, HOME).scopes == {"files:read"}
    assert house.oauth.introspect(app.asking(token=token)).body["scope"] == "files:read"


def test_a_grant_for_nothing_gives_no_tokens(house: House, ann: Identity, app: Program) -> None:
    code, tokens = app.code(ann), app.granted(ann)
    with house.database.writing() as c:
        for table in (codes, grants):
            c.execute(sa.update(table).values(scopes=""))
    assert error(app.exchange(code)) == "invalid_scope"
    assert error(app.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_scope"


def test_a_scope_that_the_person_does_not_have_is_not_granted(house: House, ann: Identity) -> None:
    greedy = registered(house, house.admin, scopes=["admin", "files:read"])
    asked = house.oauth.consent(greedy.authorizing(), ann)
    assert isinstance(asked, Consent) and asked.scopes == ("files:read",)
    tokens = greedy.granted(ann)
    assert tokens["scope"] == "files:read"
    assert house.oauth.by_access_token(tokens["access_token"], HOME).scopes == {"files:read"}
    only_admin = house.oauth.decide(greedy.authorizing(scope="admin"), ann, True)
    assert query(only_admin.location)["error"] == "access_denied"


def test_a_token_may_no_more_than_its_account_has_come_to(house: House) -> None:
    house.directory.create(house.admin, "bob", PASSWORD, role="admin")
    bob = house.log_in("bob")
    everything = registered(house, bob, scopes=ALL_SCOPES)
    tokens = everything.granted(bob)
    assert house.oauth.by_access_token(tokens["access_token"], HOME).scopes == ALL_SCOPES
    house.directory.change(house.admin, "bob", {"role": "user"})
    assert house.oauth.by_access_token(tokens["access_token"], HOME).scopes == USER_SCOPES
    refreshed = everything.token(REFRESH, refresh_token=tokens["refresh_token"])
    assert "admin" not in refreshed.body["scope"]
