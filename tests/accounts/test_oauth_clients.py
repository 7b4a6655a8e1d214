"""Registering programs: what is a sound client, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.accounts.clients import CREDENTIALS, OURS, REFRESH
from holdfast.accounts.directory import Identity
from holdfast.errors import Forbidden, NoAccount, UsageError
from tests.accounts.making import House
from tests.accounts.programs import (
    CALLBACK,
    SCOPES,
    asking_for_device,
    registered,
)


def test_a_client_is_registered_listed_and_removed(house: House, ann: Identity) -> None:
    secret, made = house.oauth.clients.register(ann, "an app", redirect_uris=[CALLBACK], scopes=SCOPES)
    assert secret is not None and secret.startswith("hfs_") and made.digest is not None
    assert house.oauth.clients.registered(ann) == [made]
    assert house.oauth.clients.registered(house.admin) == []
    with pytest.raises(NoAccount):
        house.oauth.clients.remove(house.admin, made.id)
    house.oauth.clients.remove(ann, made.id)
    assert house.oauth.clients.registered(ann) == []


def test_a_public_client_has_no_secret(house: House, ann: Identity) -> None:
    secret, made = house.oauth.clients.register(ann, "an app", redirect_uris=[CALLBACK], scopes=SCOPES, public=True)
    assert secret is None and made.digest is None


def test_our_own_command_line_is_a_client_that_nobody_removes(house: House) -> None:
    for number in (OURS, "", "nobody", "a\0b", "x" * 5000):
        with pytest.raises(NoAccount):
            house.oauth.clients.remove(house.admin, number)
    assert house.oauth.device(asking_for_device(OURS)).status == 200


@pytest.mark.parametrize(
    "uri",
    [
        CALLBACK, "https://app.example.org", "https://app.example.org:8443/cb?a=b", "http://127.0.0.1/cb",
        "http://127.0.0.1:8000/cb", "http://[::1]:8000/cb", "http://localhost/cb", "org.example.app:/cb",
        "org.example.app://cb",
    ],
)  # fmt: skip
def test_redirect_uris_that_will_do(house: House, ann: Identity, uri: str) -> None:
    _, made = house.oauth.clients.register(ann, "an app", redirect_uris=[uri], scopes=SCOPES)
    assert made.redirect_uris == uri


@pytest.mark.parametrize(
    "uri",
    [
        "", "/callback", "app.example.org", "http://app.example.org/cb", "http://127.0.0.1.example.org/",
        "http://localhost.example.org/", "http://127.0.0.1@example.org/", "https://user@app.example.org/",
        "https://app.example.org/#there", "https:///cb", "https://", "javascript:alert(1)", "data:text/html,x",
        "file:///etc/passwd", "myapp:/cb", "https://app.example.org/a b", "https://app.example.org/\n", "https://a;b/",
        "https://ä.example.org/", "https://app.example.org\\@example.net/", "https://[::1", "https://a:99999999/",
        "x" * 5000, "https://a/" + "x" * 5000, "java.script:alert(1)\n", "https://app.example.org/'\"><script>",
    ],
)  # fmt: skip
def test_redirect_uris_that_will_not_do_are_refused(house: House, ann: Identity, uri: str) -> None:
    with pytest.raises(UsageError, match="redirect URI"):
        house.oauth.clients.register(ann, "an app", redirect_uris=[uri], scopes=SCOPES)


@pytest.mark.parametrize(
    "about",
    [
        {"scopes": []}, {"scopes": ["files"]}, {"allowed": []}, {"allowed": ["password"]}, {"allowed": [REFRESH]},
        {"redirect_uris": []}, {"public": True, "allowed": [CREDENTIALS]}, {"redirect_uris": [CALLBACK] * 21},
        {"redirect_uris": [CALLBACK + "\0"]}, {"scopes": ["files:read\0"]}, {"allowed": ["authorization_code\0"]},
        {"scopes": [" "]}, {"allowed": [" "]},
    ],
)  # fmt: skip
def test_clients_that_make_no_sense_are_refused(house: House, ann: Identity, about: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        registered(house, ann, **about)
    assert house.oauth.clients.registered(ann) == []


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\udcff", "n" * 256])
def test_a_name_that_no_database_or_page_should_hold_is_refused(house: House, ann: Identity, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        house.oauth.clients.register(ann, name, redirect_uris=[CALLBACK], scopes=SCOPES)


def test_a_client_has_no_scope_that_its_maker_lacks(house: House, ann: Identity) -> None:
    with pytest.raises(Forbidden, match="admin"):
        registered(house, ann, scopes=["admin"])
