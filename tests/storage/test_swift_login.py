"""Logging in to Swift: by its own way, by a token, by Keystone v3; and all that can be wrong with it."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from holdfast.errors import HoldfastError, ObjectMissing, StorageDenied, StorageError, StorageUnavailable, UsageError
from holdfast.storage.select import Access, open_storage
from holdfast.storage.swift import SwiftStorage
from tests.storage.writing import an_object
from tests.support.openstack import SwiftNode, a_container, swift_of
from tests.support.openstack_identity import Identity, keystone_of
from tests.support.pretender import WEB_PAGE, Answer, a_certificate, pretending

Open = Callable[..., SwiftStorage]


@pytest.fixture
def node(request: pytest.FixtureRequest) -> SwiftNode:
    return swift_of(request)


@pytest.fixture
def identity(request: pytest.FixtureRequest) -> Identity:
    return keystone_of(request)


@pytest.fixture
def opened() -> Iterator[Open]:
    """``opened(variables)``: a storage in one container, closed at the end."""
    container = a_container()
    with contextlib.ExitStack() as ending:

        def opening(variables: dict[str, str], **more: str) -> SwiftStorage:
            storage = open_storage(f"swift://{container}/p", Access({**variables, **more}))
            assert isinstance(storage, SwiftStorage)
            ending.callback(storage.close)
            return storage

        yield opening


def told(kind: type[HoldfastError], call: Callable[..., object], *args: object) -> str:
    """The error that a call ends in: exactly of that kind."""
    with pytest.raises(kind) as caught:
        call(*args)
    assert type(caught.value) is kind
    return f"{caught.value} {caught.value.hint}"


def unused() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"http://127.0.0.1:{held.getsockname()[1]}"


KEYSTONE = {"OS_USERNAME": "bob", "OS_PASSWORD": "a-secret", "OS_PROJECT_NAME": "backup"}
OLDER = {"ST_USER": "test:tester", "ST_KEY": "a-secret"}


# -- what the variables say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OS_AUTH_URL": "http://h/v3"},
        {"OS_AUTH_URL": "http://h/v3", "OS_PASSWORD": "a-secret"},
        {"OS_AUTH_URL": "http://h/v3", "OS_APPLICATION_CREDENTIAL_SECRET": "a-secret"},
        {"OS_AUTH_URL": "http://h/v3", "OS_APPLICATION_CREDENTIAL_SECRET": "a-secret", "OS_USERNAME": "bob"},
        {"OS_STORAGE_URL": "http://h/v1/AUTH_x"},
        {"OS_AUTH_TOKEN": "a-secret"},
        {"ST_AUTH": "http://h/auth/v1.0", "ST_USER": "x"},
        {"OS_AUTH_URL": "http://h:5000/v2.0", **KEYSTONE},
        {"OS_AUTH_URL": "h:5000/v3", **KEYSTONE},
        {"OS_AUTH_URL": "ftp://h/v3", **KEYSTONE},
        {"OS_AUTH_URL": "http://h:x/v3", **KEYSTONE},
        {"OS_AUTH_URL": "http://bob:a-secret@h/v3", **KEYSTONE},
        {"OS_AUTH_URL": "http://h/v3", "OS_CACERT": "/nowhere/ca.pem", **KEYSTONE},
        {"OS_STORAGE_URL": "nonsense", "OS_AUTH_TOKEN": "a-secret"},
        {"ST_AUTH": "nonsense", **OLDER},
    ],
)
def test_variables_that_do_not_suffice_are_a_matter_of_usage(opened, variables):
    assert "a-secret" not in told(UsageError, opened, variables)


def test_nothing_is_asked_of_the_network_before_it_must_be(opened):
    opened({"OS_AUTH_URL": "http://name.invalid/v3", **KEYSTONE})
    opened({"ST_AUTH": unused(), **OLDER})


# -- the older way, and a token --------------------------------------------------------------------------------------


def test_a_token_that_is_there_already_serves(node, opened):
    first = opened(node.variables)
    first.create()
    url, token = first._login.account()
    name, data = an_object()
    second = opened({"OS_STORAGE_URL": url, "OS_AUTH_TOKEN": token})
    second.put(name, [data])
    assert first.get(name) == data
    node.forget_tokens()
    said = told(StorageDenied, second.get, name)
    assert "OS_AUTH_TOKEN" in said and token not in said
    assert first.get(name) == data


@pytest.mark.parametrize("wrong", [{"ST_KEY": "a-secret"}, {"ST_USER": "test:nobody"}, {"ST_USER": "nobody"}])
def test_who_is_not_known_is_denied(node, opened, wrong):
    storage = opened(node.variables, **wrong)
    for call in (storage.create, lambda: storage.get("config")):
        assert "a-secret" not in told(StorageDenied, call)


def test_who_may_only_read_nothing_is_denied_and_that_is_no_missing_object(node, opened):
    opened(node.variables).create()
    reader = opened(node.variables, ST_USER="test:reader", ST_KEY="reading")
    name, data = an_object()
    for call, *args in [(reader.put, name, [data]), (reader.get, name), (reader.delete, name), (reader.create,)]:
        assert "role" in told(StorageDenied, call, *args)


def test_a_token_that_ended_is_renewed_also_for_a_large_put(node, opened):
    storage = opened(node.variables)
    storage.create()
    for call in (storage.free_space, lambda: list(storage.list("data")), storage.create):
        node.forget_tokens()
        call()
    node.forget_tokens()
    name, data = an_object(size=3_000_000)
    storage.put(name, [data])
    node.forget_tokens()
    assert storage.get(name) == data
    node.forget_tokens()
    assert storage.get(name, 5, 7) == data[5:12]


def test_a_put_whose_token_ends_between_looking_and_sending_sends_all_of_it_again(node, opened, monkeypatch):
    storage = opened(node.variables)
    storage.create()
    looked: Callable[[str], Any] = storage._head

    def then_it_ends(name: str) -> Any:
        try:
            return looked(name)
        finally:
            node.forget_tokens()

    name, data = an_object(size=3_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_head", then_it_ends)
        storage.put(name, [data[:1_000_000], data[1_000_000:]])
    assert storage.get(name) == data


def test_a_server_that_never_takes_a_token_is_asked_twice(opened):
    given = iter(range(10))

    def answer(method: str, path: str) -> Answer:
        if not path.startswith("/auth"):
            return 401, {}, b""
        return 200, {"X-Storage-Url": f"{server.url}/v1/AUTH_x", "X-Auth-Token": f"token-{next(given)}"}, b""

    with pretending(answer) as server:
        storage = opened({"ST_AUTH": f"{server.url}/auth/v1.0", **OLDER})
        assert "token-" not in told(StorageDenied, storage.stat, "config")
        assert server.tokens == ["", "token-0", "", "token-1"]


# -- what is no place to log in --------------------------------------------------------------------------------------


@pytest.fixture(params=["Keystone", "older"])
def at(request: pytest.FixtureRequest) -> Callable[[str], dict[str, str]]:
    """The variables for a log-in at some URL, of either kind."""
    if request.param == "Keystone":
        return lambda url: {"OS_AUTH_URL": url, **KEYSTONE}
    return lambda url: {"ST_AUTH": url, **OLDER}


@pytest.mark.parametrize(
    "answer",
    [
        WEB_PAGE,
        (404, {}, b"<html>not found</html>"),
        (405, {}, b""),
        (400, {"Content-Type": "text/html"}, b"<html>bad</html>"),
        (501, {}, b""),
        (300, {"Content-Type": "application/json"}, b'{"versions": []}'),
        (302, {"Location": "http://127.0.0.1:9/"}, b""),
        (201, {"Content-Type": "application/json"}, b"[]"),
        (201, {"Content-Type": "application/json"}, b'{"token": 5}'),
        (201, {"Content-Type": "application/json", "X-Subject-Token": "t"}, b'{"token": 5}'),
        (201, {"Content-Type": "application/json", "X-Subject-Token": "t"}, b'{"token": {"catalog": 5}}'),
    ],
)
def test_what_does_not_speak_the_language_is_known_for_it(opened, at, answer):
    with pretending(lambda method, path: answer) as server:
        said = told(StorageError, opened(at(server.url)).get, "config")
    assert "does not speak" in said and server.url in said and "a-secret" not in said


@pytest.mark.parametrize(("status", "kind"), [(401, StorageDenied), (403, StorageDenied), (429, StorageUnavailable)])
def test_what_a_status_of_the_log_in_means(opened, at, status, kind):
    with pretending(lambda method, path: (status, {}, b"any")) as server:
        assert "a-secret" not in told(kind, opened(at(server.url)).get, "config")


def test_where_nobody_listens_or_no_name_leads_it_is_unavailable(opened, at):
    for url in (unused(), "http://name.invalid:5000"):
        assert url in told(StorageUnavailable, opened(at(url)).get, "config")


def test_certificates_are_checked_and_may_be_of_ones_own_authority(opened, at, tmp_path):
    ours, others = a_certificate(tmp_path / "ours", "127.0.0.1"), a_certificate(tmp_path / "others", "10.0.0.1")
    for certificate, ca, expected in [
        (ours, None, "certificate of https://127.0.0.1"),
        (ours, others, "certificate of https://127.0.0.1"),
        (others, others, "certificate of https://127.0.0.1"),
        (ours, ours, "does not speak"),
    ]:
        with pretending(lambda method, path: WEB_PAGE, certificate) as server:
            more = {"HOLDFAST_CA_FILE": str(ca)} if ca else {}
            by_token = {"OS_STORAGE_URL": f"{server.url}/v1/AUTH_x", "OS_AUTH_TOKEN": "a-secret"}
            for variables in (at(server.url), by_token):
                kind = StorageError if certificate == ca == ours else StorageDenied
                assert expected in told(kind, opened(variables, **more).get, "config")


def test_encryption_with_a_server_that_has_none_is_an_error(opened, at):
    with pretending(lambda method, path: WEB_PAGE) as server:
        url = server.url.replace("http:", "https:")
        assert "encryption" in told(StorageError, opened(at(url)).get, "config")


def test_a_file_of_authorities_that_holds_none_is_an_error(opened, at, tmp_path):
    (tmp_path / "ca").write_text("nothing")
    with pretending(lambda method, path: WEB_PAGE, a_certificate(tmp_path / "ours", "127.0.0.1")) as server:
        told(StorageError, opened(at(server.url), HOLDFAST_CA_FILE=str(tmp_path / "ca")).get, "config")


def test_no_log_holds_a_key_or_a_token(node, opened, caplog):
    with caplog.at_level(logging.DEBUG):
        storage = opened(node.variables, OS_PASSWORD="a-secret")
        storage.create()
        name, data = an_object()
        storage.put(name, [data])
        storage.get(name)
        with pytest.raises(ObjectMissing):
            storage.get("config")
        token = storage._login.account()[1]
    assert caplog.text
    for secret in (token, token[:10], "a-secret"):
        assert secret not in caplog.text + repr(storage.__dict__) + storage.place


# -- Keystone --------------------------------------------------------------------------------------------------------


def test_keystone_knows_one_by_names_by_ids_and_by_an_application_credential(identity, opened):
    storage = opened(identity.variables)
    storage.create()
    name, data = an_object(size=300_000)
    storage.put(name, [data])
    for variables in (identity.variables, identity.by_ids, identity.credential):
        other = opened(variables)
        assert other.get(name) == data
        assert [i.name for i in other.list("data")] == [name]
    without_version = opened(identity.variables, OS_AUTH_URL=identity.url.removesuffix("v3"))
    assert without_version.stat(name) == storage.stat(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"OS_PASSWORD": "a-secret"},
        {"OS_USERNAME": "nobody"},
        {"OS_USER_DOMAIN_NAME": "Default"},
        {"OS_USER_DOMAIN_NAME": "nowhere"},
        {"OS_PROJECT_NAME": "elsewhere"},
        {"OS_PROJECT_NAME": "nothing"},
        {"OS_PROJECT_DOMAIN_NAME": "Default"},
    ],
)
def test_a_wrong_name_anywhere_is_denied(identity, opened, wrong):
    said = told(StorageDenied, opened(identity.variables, **wrong).get, "config")
    assert identity.url in said and "domain" in said and "a-secret" not in said and "bobpw" not in said


def test_a_wrong_secret_of_an_application_credential_is_denied(identity, opened):
    storage = opened(identity.credential, OS_APPLICATION_CREDENTIAL_SECRET="a-secret")
    assert "a-secret" not in told(StorageDenied, storage.get, "config")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"OS_REGION_NAME": "R3"}, "OS_REGION_NAME"),
        ({"OS_INTERFACE": "internal"}, "OS_INTERFACE"),
        ({"OS_PROJECT_NAME": ""}, "OS_PROJECT_NAME"),
        ({"OS_REGION_NAME": "R2"}, "does not speak Swift"),
    ],
)
def test_what_the_catalog_lacks_is_said(identity, opened, wrong, hint):
    assert hint in told(StorageError, opened(identity.variables, **wrong).get, "config")


def test_swift_itself_is_no_keystone(identity, node, opened):
    assert "does not speak Keystone" in told(
        StorageError, opened(identity.variables, OS_AUTH_URL=node.url).get, "config"
    )


def test_the_storage_url_may_be_told_where_the_catalogs_cannot_be_reached(identity, opened):
    storage = opened(identity.variables)
    storage.create()
    url = storage._login.account()[0]
    assert opened(identity.variables, OS_REGION_NAME="R2", OS_STORAGE_URL=url).free_space() is None


def test_a_token_that_keystone_has_revoked_is_renewed(identity, opened):
    storage = opened(identity.variables)
    storage.create()
    name, data = an_object()
    storage.put(name, [data])
    token = storage._login.account()[1]
    ready = opened({"OS_STORAGE_URL": storage._login.account()[0], "OS_AUTH_TOKEN": token})
    assert ready.get(name) == data
    identity.revoke(token)
    time.sleep(1.1)  # for which the proxy server still believes it
    assert storage.get(name) == data
    assert storage._login.account()[1] != token
    told(StorageDenied, ready.get, name)


def test_a_container_of_another_project_is_not_there(identity, node, opened):
    opened(node.variables).create()
    assert "There is no container" in told(StorageError, opened(identity.variables).get, "config")
