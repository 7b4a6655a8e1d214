"""What is special about REST servers: how they are named and asked, and what goes wrong with them."""

from __future__ import annotations

import base64
import json

import pytest

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageError,
)
from holdfast.storage.rest import _Body
from holdfast.storage.select import Access, open_storage
from tests.storage.writing import an_object
from tests.support.pretender import WEB_PAGE, a_certificate, pretending
from tests.support.rclone import free_port, serving
from tests.support.storages import list_of

HEX = "ab" * 32
V2 = {"Content-Type": "application/vnd.x.restic.rest.v2"}


def at(url, **variables):
    return open_storage(f"rest:{url}/repo", Access(variables))


def answering(status, body=b"", headers=None):
    return lambda method, path: (status, headers or {}, body)


def error_of(call, *args):
    """The error a call ends with: its kind, and what a person is told."""
    with pytest.raises(StorageError) as caught:
        call(*args)
    return caught.value


@pytest.mark.parametrize(
    "address", ["rest:", "rest:ftp://host/x", "rest:host/x", "rest:http://", "rest:https://host:port/", "rest:/srv"]
)
def test_an_address_that_is_none_is_refused_with_how_it_is_written(address):
    with pytest.raises(UsageError) as caught:
        open_storage(address, Access())
    assert "rest:https://HOST/PATH" in caught.value.hint


def test_a_password_in_the_address_is_used_and_never_shown():
    with pretending(answering(401)) as server:
        address = server.url.replace("http://", "rest:http://me:s3cr%40t@")
        storage = open_storage(f"{address}/repo", Access())
        error = error_of(storage.get, "config")
        storage.close()
    assert isinstance(error, StorageDenied)
    assert base64.b64decode(server.authorizations[0].split()[1]) == b"me:s3cr@t"
    assert "s3cr" not in f"{storage.place}{error}{error.hint}{storage!r}"


@pytest.mark.parametrize(
    "address",
    [
        "https://bob:s3cret@host/x", "HTTPS://bob:s3cret@host/x", "rest:https://bob:12/s3cret@host/x",
        "sftp://bob:s3cret@host/x", "az://cont/pre?sig=s3cret", "gs://b/x?k=s3cret",
        "s3://key:s3cret@host/b", "s3:https://host/b/\0s3cret", "swift://u:s3cret@x/y", "ftp://u:s3cret@host/",
    ],
)  # fmt: skip
def test_what_is_refused_is_not_repeated_for_it_may_hold_a_password(address):
    with pytest.raises(UsageError) as caught:
        open_storage(address, Access())
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"


def test_a_pack_goes_out_in_pieces_so_that_a_slow_line_has_time_for_each():
    body = _Body([b"x" * 1_000_000, bytearray(300_000)])
    assert body.size == 1_300_000
    for _ in range(2):
        pieces = list(body)
        assert b"".join(pieces) == b"x" * 1_000_000 + bytes(300_000)
        assert max(map(len, pieces)) <= 128 << 10


def test_user_and_password_come_from_the_environment():
    with pretending(answering(200, b"x")) as server:
        storage = at(server.url, HOLDFAST_REST_USERNAME="me", HOLDFAST_REST_PASSWORD="pw")
        storage.get("config")
        storage.close()
    assert base64.b64decode(server.authorizations[0].split()[1]) == b"me:pw"


def test_a_real_server_lets_nobody_in_with_a_wrong_password(tmp_path):
    with serving("restic", tmp_path, "--user", "me", "--pass", "right") as port:
        url = f"http://127.0.0.1:{port}"
        wrong = at(url, HOLDFAST_REST_USERNAME="me", HOLDFAST_REST_PASSWORD="wrong")
        error = error_of(wrong.create)
        assert isinstance(error, StorageDenied)
        assert "password" in str(error)
        right = at(url, HOLDFAST_REST_USERNAME="me", HOLDFAST_REST_PASSWORD="right")
        right.create()
        name, data = an_object()
        right.put(name, [data])
        assert right.get(name) == data
        wrong.close()
        right.close()


def test_an_append_only_server_refuses_to_delete_in_a_sentence(tmp_path):
    with serving("restic", tmp_path, "--append-only") as port:
        storage = at(f"http://127.0.0.1:{port}")
        storage.create()
        name, data = an_object()
        storage.put(name, [data])
        error = error_of(storage.delete, name)
        assert isinstance(error, StorageDenied)
        assert "append-only" in error.hint
        assert storage.get(name) == data
        lock, data = an_object("locks")
        storage.put(lock, [data])
        storage.delete(lock)  # leases must go
        storage.close()


def test_nobody_who_listens_is_worth_another_try():
    storage = at(f"http://127.0.0.1:{free_port()}")
    error = error_of(storage.get, "config")
    assert isinstance(error, StorageUnavailable)
    assert "cannot be reached" in str(error)
    assert "Errno" not in str(error)


def test_a_host_that_does_not_exist_is_named():
    error = error_of(at("http://no-such-host.invalid").get, "config")
    assert isinstance(error, StorageUnavailable)
    assert "no-such-host.invalid" in str(error)


def test_a_web_page_is_no_rest_server():
    with pretending(answering(*WEB_PAGE[::2])) as server:
        storage = at(server.url)
        assert "does not speak" in str(error_of(list_of, storage, "data"))
        storage.close()


@pytest.mark.parametrize(
    "status,kind",
    [
        (401, StorageDenied), (403, StorageDenied), (405, StorageDenied), (413, StorageFull), (507, StorageFull),
        (408, StorageUnavailable), (429, StorageUnavailable), (500, StorageUnavailable), (502, StorageUnavailable),
        (503, StorageUnavailable), (504, StorageUnavailable), (301, StorageError), (307, StorageError),
        (400, StorageError), (418, StorageError),
    ],
)  # fmt: skip
def test_each_refusal_is_the_error_that_says_whether_to_try_again(status, kind):
    with pretending(lambda method, path: (404 if method == "HEAD" else status, {"Location": "/x"}, b"no")) as server:
        storage = at(server.url)
        for call in (
            lambda: storage.put(f"data/{HEX}", [b"x"]),
            lambda: storage.get(f"data/{HEX}"),
            lambda: storage.delete(f"data/{HEX}"),
            lambda: list_of(storage, "data"),
        ):
            assert type(error_of(call)) is kind
        storage.close()
    assert not [s for s in server.seen if s.endswith("/x")]  # it is not followed anywhere


def test_a_put_that_is_forbidden_because_the_object_came_meanwhile_exists():
    looks = iter([404, 200])

    def answer(method, path):
        return (next(looks), {}, b"") if method == "HEAD" else (403, {}, b"")

    with pretending(answer) as server:
        storage = at(server.url)
        assert isinstance(error_of(storage.put, f"data/{HEX}", [b"x"]), ObjectExists)
        storage.close()


def test_a_server_of_version_1_is_asked_for_each_size():
    names = [f"{n:064x}" for n in range(40)]

    def answer(method, path):
        name = path.rpartition("/")[2]
        if method == "HEAD":
            return 404 if name == names[7] else 200, {"Content-Length": str(int(name, 16))}, b""
        return 200, {"Content-Type": "application/vnd.x.restic.rest.v1"}, json.dumps([*names, "../x", "AB"]).encode()

    with pretending(answer) as server:
        storage = at(server.url)
        found = {i.name: i.size for i in storage.list("data")}
        storage.close()
    assert found == {f"data/{n}": int(n, 16) for n in names if n != names[7]}


def test_what_a_server_lists_is_believed_only_when_it_can_be():
    listed = [
        {"name": HEX, "size": 5}, {"name": "../../etc/passwd", "size": 1}, {"name": HEX.upper(), "size": 1},
        {"name": "cd" * 32, "size": -1}, {"name": f"{HEX}\n", "size": 1}, {"name": "", "size": 1},
    ]  # fmt: skip
    with pretending(answering(200, json.dumps(listed).encode(), V2)) as server:
        storage = at(server.url)
        assert [(i.name, i.size) for i in list_of(storage, "data")] == [(f"data/{HEX}", 5)]
        storage.close()


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'[{"name": 1, "size": 2}]', b"\xff", b"[", b'"x"'])
def test_a_listing_that_is_none_is_an_error(body):
    with pretending(answering(200, body, V2)) as server:
        storage = at(server.url)
        assert type(error_of(list_of, storage, "data")) is StorageError
        storage.close()


def test_a_folder_that_is_not_there_yet_is_empty_and_a_repository_that_is_not_is_away():
    with pretending(lambda method, path: (200 if path.endswith("config") else 404, {}, b"")) as server:
        storage = at(server.url)
        assert list_of(storage, "data") == []
        server.answer = answering(404)
        assert isinstance(error_of(list_of, storage, "data"), StorageUnavailable)
        assert isinstance(error_of(storage.get, "config"), ObjectMissing)
        storage.close()


def test_an_answer_that_ends_too_early_is_no_answer():
    with pretending(answering(200, b"12345", {"Content-Length": "10", "Connection": "close"})) as server:
        storage = at(server.url)
        error = error_of(storage.get, f"data/{HEX}")
        storage.close()
    assert isinstance(error, StorageUnavailable)


def test_a_server_without_ranges_gives_the_right_bytes_all_the_same():
    with pretending(answering(200, b"0123456789")) as server:
        storage = at(server.url)
        assert storage.get(f"data/{HEX}", 3, 4) == b"3456"
        assert type(error_of(storage.get, f"data/{HEX}", 8, 4)) is StorageError
        storage.close()


def test_a_certificate_that_does_not_match_is_named_and_one_that_is_trusted_works(tmp_path):
    good = a_certificate(tmp_path / "good.pem", "127.0.0.1")
    other = a_certificate(tmp_path / "other.pem", "127.0.0.9")
    with pretending(answering(200, b"x"), good) as server:
        assert "certificate" in str(error_of(at(server.url).get, "config"))
        storage = at(server.url, HOLDFAST_CA_FILE=str(good))
        assert storage.get("config") == b"x"
        storage.close()
    with pretending(answering(200, b"x"), other) as server:
        error = error_of(at(server.url, HOLDFAST_CA_FILE=str(other)).get, "config")
    assert isinstance(error, StorageDenied)
    assert "127.0.0.1" in str(error)
    assert "HOLDFAST_CA_FILE" in error.hint


def test_certificates_that_cannot_be_read_are_a_wrong_setting(tmp_path):
    (tmp_path / "no.pem").write_text("no certificate")
    for name in ("no.pem", "missing.pem"):
        with pytest.raises(UsageError):
            at("https://127.0.0.1", HOLDFAST_CA_FILE=str(tmp_path / name))


# -- vaults ------------------------------------------------------------------------------------------------------------


class Kept:
    """A log-in whose first token is old."""

    def __init__(self):
        self._tokens = ["old", "new"]

    def token(self):
        return self._tokens[0]

    def renew(self, refused):
        assert refused == "old"
        return bool(self._tokens.pop(0))


def vault(server, address):
    return open_storage(f"{server.url}{address}", Access(login=lambda a: (server.url, Kept())))


def test_a_vault_is_asked_with_the_token_of_the_log_in_which_is_renewed():
    with pretending(lambda method, path: (200, {"x-stored-ns": "7"}, b"x")) as server:

        def answer(method, path):
            return (200 if server.authorizations[-1] == "Bearer new" else 401), {"x-stored-ns": "7"}, b"x"

        server.answer = answer
        storage = vault(server, "/photos")
        assert storage.get("config") == b"x"
        assert storage.stat("config").stored_ns == 7
        storage.close()
    assert server.seen[0] == "GET /vault/photos/config"
    assert server.authorizations[:2] == ["Bearer old", "Bearer new"]
    assert storage.place == f"{server.url}/photos"


def test_somebody_elses_vault_is_named_by_its_owner():
    with pretending(answering(200, b"x")) as server:
        storage = vault(server, "/anna/photos of 2024/")
        storage.get("config")
        storage.close()
    assert server.seen == ["GET /vault/anna/photos%20of%202024/config"]


@pytest.mark.parametrize("address", ["/", "/a/b/c", "//"])
def test_an_address_that_names_no_vault_is_refused(address):
    with pretending(answering(200)) as server, pytest.raises(UsageError):
        vault(server, address)


def test_without_a_log_in_it_is_said_how_to_get_one():
    with pytest.raises(UsageError) as caught:
        open_storage("https://backup.example.org/photos", Access())
    assert "holdfast login" in caught.value.hint
