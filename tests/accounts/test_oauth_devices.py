"""Device codes: for programs where nobody can open a browser."""

from __future__ import annotations

import pytest

from holdfast.accounts.clients import DEVICE, OURS, REFRESH
from holdfast.accounts.directory import Identity
from holdfast.accounts.flows import DEVICE_S, MOST_WAITING, POLL_S
from holdfast.accounts.guard import MOST
from holdfast.accounts.oauth import Consent
from holdfast.accounts.scopes import USER_SCOPES
from holdfast.errors import NoAccount, TooManyAttempts
from tests.accounts.making import HOME, House
from tests.accounts.programs import (
    ISSUER,
    Program,
    asking_for_device,
    at_once,
    device,
    error,
    registered,
)


def test_a_device_gets_tokens_when_its_user_has_typed_the_code(
    house: House, ann: Identity, television: Program
) -> None:
    codes = device(house, scope="files:read files:write admin")
    assert codes["verification_uri"] == f"{ISSUER}/oauth2/verify"
    assert codes["verification_uri_complete"].endswith(f"?user_code={codes['user_code']}")
    assert error(television.token(DEVICE, device_code=codes["device_code"])) == "authorization_pending"
    typed = codes["user_code"].lower().replace("-", " ")
    asked = house.oauth.waiting(ann, typed)
    assert asked == Consent("Holdfast's command line", "", ("files:read", "files:write"), address=HOME)
    house.oauth.decide_device(ann, typed, True)
    tokens = television.token(DEVICE, device_code=codes["device_code"]).body
    assert tokens["scope"] == "files:read files:write" and tokens["refresh_token"]
    assert house.oauth.by_access_token(tokens["access_token"], HOME).username == "ann"
    assert television.token(REFRESH, refresh_token=tokens["refresh_token"]).status == 200


def test_without_naming_scopes_the_command_line_gets_all_that_the_person_may(
    house: House, ann: Identity, television: Program
) -> None:
    codes = device(house)
    house.oauth.decide_device(ann, codes["user_code"], True)
    tokens = television.token(DEVICE, device_code=codes["device_code"]).body
    assert frozenset(tokens["scope"].split()) == USER_SCOPES


def test_a_device_code_works_once(house: House, ann: Identity, television: Program) -> None:
    codes = device(house)
    house.oauth.decide_device(ann, codes["user_code"], True)
    answers = at_once(lambda: television.token(DEVICE, device_code=codes["device_code"]))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    with pytest.raises(NoAccount):
        house.oauth.decide_device(ann, codes["user_code"], True)


def test_a_device_that_asks_too_often_is_slowed_more_and_more(house: House, television: Program) -> None:
    codes, told = device(house), []
    for pause in (0, POLL_S, POLL_S - 1, POLL_S, 3 * POLL_S, POLL_S):
        house.clock.passes(pause)
        told.append(error(television.token(DEVICE, device_code=codes["device_code"])))
    pending, slow = "authorization_pending", "slow_down"
    assert told == [pending, pending, slow, slow, pending, slow]


def test_a_device_is_told_when_its_user_says_no(house: House, ann: Identity, television: Program) -> None:
    codes = device(house)
    house.oauth.decide_device(ann, codes["user_code"], False)
    assert error(television.token(DEVICE, device_code=codes["device_code"])) == "access_denied"


def test_a_device_code_expires(house: House, ann: Identity, television: Program) -> None:
    codes = device(house)
    house.clock.passes(DEVICE_S)
    assert error(television.token(DEVICE, device_code=codes["device_code"])) == "expired_token"
    with pytest.raises(NoAccount):
        house.oauth.waiting(ann, codes["user_code"])


def test_a_device_code_is_of_one_client(house: House, ann: Identity) -> None:
    other, codes = registered(house, ann, allowed=[DEVICE], public=True), device(house)
    house.oauth.decide_device(ann, codes["user_code"], True)
    assert error(other.token(DEVICE, device_code=codes["device_code"])) == "unauthorized_client"
    for nonsense in ("x", "\0", "ä"):
        assert error(other.token(DEVICE, device_code=nonsense)) == "invalid_grant"


def test_guessing_user_codes_is_slow(house: House, ann: Identity) -> None:
    codes = device(house)
    for guess in range(MOST):
        with pytest.raises(NoAccount):
            house.oauth.waiting(ann, f"BBBB-BBB{'BCDFGHJKLM'[guess]}" if guess else "\0")
    with pytest.raises(TooManyAttempts):
        house.oauth.waiting(ann, codes["user_code"])
    assert house.oauth.waiting(house.user("bob"), codes["user_code"]).address == HOME


def test_one_address_does_not_fill_the_catalog_with_codes(house: House) -> None:
    for _ in range(MOST_WAITING):
        device(house)
    assert error(house.oauth.device(asking_for_device(OURS))) == "slow_down"
    house.clock.passes(DEVICE_S)
    device(house)


def test_an_ipv6_network_is_one_address_for_codes(house: House, ann: Identity) -> None:
    for number in range(MOST_WAITING):
        assert house.oauth.device(asking_for_device(OURS, f"2001:db8:1:2::{number:x}")).status == 200
    assert error(house.oauth.device(asking_for_device(OURS, "2001:db8:1:2:ffff::1"))) == "slow_down"
    codes = house.oauth.device(asking_for_device(OURS, "2001:db8:1:3::1")).body
    assert house.oauth.waiting(ann, codes["user_code"]).address == "2001:db8:1:3::/64"


def test_a_client_without_the_device_grant_gets_no_device_code(house: House, phone: Program) -> None:
    assert error(house.oauth.device(asking_for_device(phone.number))) == "unauthorized_client"
    assert error(house.oauth.device(asking_for_device("nobody"))) == "invalid_client"
    assert error(house.oauth.device(asking_for_device(OURS, scope="files:delete"))) == "invalid_scope"
    assert error(house.oauth.device(asking_for_device(OURS, scope="files:read\0"))) == "invalid_scope"
    assert error(house.oauth.device(asking_for_device(f"{OURS}\0"))) == "invalid_client"
