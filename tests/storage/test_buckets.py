"""Buckets of S3: addresses, credentials, and everything that servers and the way to them can answer with."""

from __future__ import annotations

import socket
from collections.abc import Callable

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
from holdfast.storage.s3_client import parse
from holdfast.storage.select import Access, open_storage
from tests.storage.answers import NAME, NO_PAGE, PAGE, XHTML, an_error, every_use, failure
from tests.support.pretender import Answer, a_certificate, pretending
from tests.support.rclone import free_port
from tests.support.s3 import a_bucket, moto_of
from tests.support.storages import list_of

KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-sees"}


@pytest.fixture
def node(request):
    return moto_of(request)


@pytest.fixture
def bucket(node):
    name = a_bucket()
    node.client().create_bucket(Bucket=name)
    return name


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "variables", "place", "endpoint"),
    [
        ("s3://bucket", {}, "s3://bucket", ""),
        ("s3://bucket/a/b/", {}, "s3://bucket/a/b", ""),
        ("s3://bucket/a", {"AWS_ENDPOINT_URL": "http://h:9/"}, "s3:http://h:9/bucket/a", "http://h:9"),
        (
            "s3://b.d/a",
            {"AWS_ENDPOINT_URL_S3": "https://h", "AWS_ENDPOINT_URL": "x"},
            "s3:https://h/b.d/a",
            "https://h",
        ),
        ("s3:https://host.org:9000/bucket/a", {}, "s3:https://host.org:9000/bucket/a", "https://host.org:9000"),
        ("s3:http://[::1]:9000/bucket", {}, "s3:http://[::1]:9000/bucket", "http://[::1]:9000"),
        ("s3:host.org/bucket/a//", {}, "s3:https://host.org/bucket/a", "https://host.org"),
        ("s3:host:80/bucket", {}, "s3:https://host:80/bucket", "https://host:80"),
        ("s3://host.org:9000/bucket/a", {}, "s3:https://host.org:9000/bucket/a", "https://host.org:9000"),
        ("s3:s3.eu-west-1.amazonaws.com/bucket/a", {}, "s3://bucket/a", ""),
        ("s3:https://s3.amazonaws.com/bucket", {}, "s3://bucket", ""),
    ],
)
def test_an_address_means_a_bucket_of_a_server(address, variables, place, endpoint):
    assert parse(address, Access(variables)).endpoint == endpoint
    assert open_storage(address, Access(variables)).place == place


def test_amazons_host_tells_the_region_and_servers_of_ones_own_are_asked_by_path():
    assert parse("s3:s3.eu-west-1.amazonaws.com/bucket", Access()).region == "eu-west-1"
    assert parse("s3:h/bucket", Access()).style == "path"
    assert parse("s3://bucket", Access()).style == "auto"
    assert parse("s3:h/bucket", Access({"HOLDFAST_S3_STYLE": "virtual"})).style == "virtual"


@pytest.mark.parametrize(
    "address",
    [
        *("s3:", "s3://", "s3:///", "s3:host", "s3:host/", "s3:http://", "s3:http://host", "s3://host:99999/bucket"),
        *(
            "s3:ftp://host/bucket",
            "s3://b",
            "s3://bu cket/a",
            "s3://bucket/a/../b",
            "s3://bucket/./a",
            "s3://bucket/a//b",
        ),
        *("s3:host\n/bucket", "s3://bucket/a\nb", "s3:-x/bucket", "s3:https://h:x/bucket", "s3:/bucket"),
        *("s3:ho_st/bucket", "s3:https://user:secret@host/bucket", "s3://user:secret@host:1/bucket"),
        *(
            "gs:",
            "gs://",
            "gs:bucket",
            "gs:///a",
            "gs://bucket/../a",
            "gs://bucket/a?b",
            "gs://bucket/a%2fb",
            "gs://b\n",
        ),
        *("az:", "az://", "az:container:/", "az://container/../a", "az://u:secret@container"),
    ],
)
def test_an_address_that_is_written_otherwise_is_refused_with_its_spelling(address):
    with pytest.raises(UsageError) as caught:
        open_storage(address, Access({"AZURE_STORAGE_ACCOUNT_NAME": "a"}))
    if "@" in address and address.startswith("s3"):
        assert "secret" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "variables",
    [
        {"HOLDFAST_S3_STYLE": "other"},
        {"HOLDFAST_S3_STORAGE_CLASS": "cold\r\nx: y"},
        {"AWS_ENDPOINT_URL": "host"},
        {"AWS_ENDPOINT_URL": "https://user:secret@host"},
    ],
)
def test_variables_that_make_no_sense_are_refused(variables):
    with pytest.raises(UsageError) as caught:
        open_storage("s3://bucket/a", Access(variables))
    assert "secret" not in str(caught.value)


# -- who we are ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses the credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses the credentials"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "only half there"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "There are no credentials"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "none"}, "AWS profile cannot be used"),
    ],
)
def test_wrong_credentials_are_denied_by_name(node, bucket, variables, sentence):
    storage = open_storage(f"s3:{node.url}/{bucket}", node.access(**variables))
    for use in (lambda: list_of(storage, "data"), lambda: storage.get(NAME), lambda: storage.put(NAME, [b"x"])):
        error = failure(use)
        assert isinstance(error, StorageDenied)
        if "refuses" not in sentence:
            assert sentence in str(error)
    assert sentence in str(failure(storage.get, NAME))


def test_who_may_nothing_is_denied(node, bucket):
    nobody = node.access(AWS_ACCESS_KEY_ID=node.users["none"], AWS_SECRET_ACCESS_KEY=node.users["none_secret"])
    storage = open_storage(f"s3:{node.url}/{bucket}", nobody)
    for use in every_use(storage):
        assert isinstance(failure(use), StorageDenied)


def test_a_session_token_is_sent_and_one_without_its_token_is_denied(node, bucket):
    told = node.client("sts").assume_role(RoleArn=node.users["role"], RoleSessionName="session")["Credentials"]
    keys = {"AWS_ACCESS_KEY_ID": told["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": told["SecretAccessKey"]}
    storage = open_storage(f"s3:{node.url}/{bucket}", Access({**keys, "AWS_SESSION_TOKEN": told["SessionToken"]}))
    storage.put(NAME, [b"x"])
    assert storage.get(NAME) == b"x"
    assert isinstance(failure(open_storage(f"s3:{node.url}/{bucket}", Access(keys)).get, NAME), StorageDenied)


def test_a_profile_of_the_home_folder_is_used(node, bucket, tmp_path):
    (tmp_path / ".aws").mkdir()
    lines = f"aws_access_key_id = {node.users['all']}\naws_secret_access_key = {node.users['all_secret']}\n"
    (tmp_path / ".aws" / "credentials").write_text(f"[backups]\n{lines}")
    (tmp_path / ".aws" / "config").write_text("[profile backups]\nregion = us-east-1\n")
    storage = open_storage(f"s3:{node.url}/{bucket}", Access({"AWS_PROFILE": "backups"}, home=tmp_path))
    storage.put(NAME, [b"x"])
    elsewhere = Access({"AWS_PROFILE": "backups"}, home=tmp_path / "elsewhere")
    assert isinstance(failure(open_storage(f"s3:{node.url}/{bucket}", elsewhere).get, NAME), StorageDenied)


def test_a_process_of_the_profile_gives_credentials(node, bucket, tmp_path):
    script = tmp_path / "credentials.json"
    key, secret = node.users["all"], node.users["all_secret"]
    script.write_text(f'{{"Version": 1, "AccessKeyId": "{key}", "SecretAccessKey": "{secret}"}}')
    (tmp_path / "config").write_text(f"[profile p]\ncredential_process = cat {script}\n")
    variables = {"AWS_PROFILE": "p", "AWS_CONFIG_FILE": "~/config"}
    open_storage(f"s3:{node.url}/{bucket}", Access(variables, home=tmp_path)).put(NAME, [b"x"])
    script.unlink()
    storage = open_storage(f"s3:{node.url}/{bucket}", Access(variables, home=tmp_path))
    assert isinstance(failure(storage.get, NAME), StorageDenied)


def test_nothing_is_taken_from_the_environment_itself(node, bucket, monkeypatch):
    for name, value in {"AWS_PROFILE": "none", "HTTP_PROXY": "http://127.0.0.1:1", "AWS_REGION": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", node.users["all"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", node.users["all_secret"])
    open_storage(f"s3:{node.url}/{bucket}", node.access()).put(NAME, [b"x"])
    assert "There are no credentials" in str(failure(open_storage(f"s3:{node.url}/{bucket}", Access()).get, NAME))


def test_a_proxy_is_asked_where_the_variables_name_one(node, bucket):
    proxied = node.access(http_proxy=f"http://127.0.0.1:{free_port()}")
    assert isinstance(failure(open_storage(f"s3:{node.url}/{bucket}", proxied).get, NAME), StorageUnavailable)
    bypassed = Access({**proxied.variables, "NO_PROXY": "127.0.0.1"})
    open_storage(f"s3:{node.url}/{bucket}", bypassed).put(NAME, [b"x"])


# -- what is special about buckets -----------------------------------------------------------------------------------


def test_the_bucket_may_stand_in_the_servers_name(node, bucket, monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: real(host.removeprefix(f"{bucket}."), *rest))
    access = node.access(HOLDFAST_S3_STYLE="virtual")
    storage = open_storage(f"s3:http://localhost:{node.port}/{bucket}/p", access)
    storage.put(NAME, [b"x"])
    assert open_storage(f"s3:{node.url}/{bucket}/p", node.access()).get(NAME) == b"x"


def test_no_bucket_is_never_a_missing_object(node):
    storage = open_storage(f"s3:{node.url}/no-such-bucket", node.access())
    for use in every_use(storage):
        assert str(failure(use)) == f"There is no bucket no-such-bucket at {node.url}."


def test_create_makes_the_bucket_and_keeps_one_that_is_there(node):
    storage = open_storage(f"s3:{node.url}/{a_bucket()}", node.access())
    storage.create()
    storage.put(NAME, [b"x"])
    storage.create()
    assert storage.get(NAME) == b"x"


def test_the_storage_class_is_for_data_alone(node, bucket):
    storage = open_storage(f"s3:{node.url}/{bucket}", node.access(HOLDFAST_S3_STORAGE_CLASS="STANDARD_IA"))
    for name in (NAME, "config", "index/" + "ab" * 32):
        storage.put(name, [b"x"])
    listed = node.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert {e["Key"].partition("/")[0]: e["StorageClass"] for e in listed} == {
        "data": "STANDARD_IA",
        "config": "STANDARD",
        "index": "STANDARD",
    }


def test_what_is_no_object_is_not_listed(node, bucket):
    digits = "ab" * 32
    for key in (
        f"p/data/{digits}",
        f"p/data/cd/{digits}",
        f"p/data/ab/{digits}x",
        f"p/data/ab/c/{digits}",
        "p/data/",
        "x",
    ):
        node.client().put_object(Bucket=bucket, Key=key, Body=b"x")
    node.client().put_object(Bucket=bucket, Key=f"data/ab/{digits}", Body=b"x")
    storage = open_storage(f"s3:{node.url}/{bucket}/p", node.access())
    assert list_of(storage, "data") == []


def test_a_closed_storage_may_be_closed_again(node, bucket):
    storage = open_storage(f"s3:{node.url}/{bucket}", node.access())
    storage.put(NAME, [b"x"])
    storage.close()
    storage.close()


# -- on the way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_where_nobody_listens_it_is_worth_a_retry(host):
    storage = open_storage(f"s3:http://{host}:{free_port()}/bucket", Access(KEYS))
    for use in every_use(storage):
        error = failure(use)
        assert isinstance(error, StorageUnavailable)
        assert "cannot be reached" in str(error)


def missing_until_put(told: Answer) -> Callable[[str, str], Answer]:
    """HEAD finds no object; everything else is answered so."""
    return lambda method, path: (404, {}, b"") if method == "HEAD" else told


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        (an_error(507, "InsufficientStorage"), StorageFull, "is full"),
        (an_error(403, "QuotaExceeded"), StorageFull, "is full"),
        (an_error(400, "XMinioAdminBucketQuotaExceeded"), StorageFull, "is full"),
        (an_error(503, "SlowDown"), StorageUnavailable, "cannot serve this now"),
        (an_error(400, "RequestTimeout"), StorageUnavailable, "cannot serve this now"),
        (an_error(429, "TooManyRequests"), StorageUnavailable, "cannot serve this now"),
        (an_error(500, "InternalError"), StorageUnavailable, "cannot serve this now"),
        ((502, {"Content-Type": "text/html"}, b"<html>Bad Gateway"), StorageUnavailable, "cannot serve this now"),
        (an_error(403, "RequestTimeTooSkewed"), StorageDenied, "clock"),
        (an_error(403, "AccessDenied"), StorageDenied, "does not allow"),
        (an_error(403, "InvalidAccessKeyId"), StorageDenied, "refuses the credentials"),
        (an_error(400, "ExpiredToken"), StorageDenied, "session token"),
        (an_error(403, "InvalidObjectState"), StorageDenied, "storage class"),
        (an_error(404, "NoSuchBucket"), StorageError, "There is no bucket"),
        (an_error(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-3"}), StorageError, "region eu-west-3"),
        (an_error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"), StorageError, "region eu-west-3"),
        (an_error(400, "Strange<!-- -->"), StorageError, "refuses this"),
        ((200, {}, b"nonsense"), StorageError, "does not speak S3"),
        (PAGE, StorageError, "does not speak S3"),
        (XHTML, StorageError, "does not speak S3"),
        (NO_PAGE, StorageError, "does not speak S3"),
        ((403, {"Content-Type": "text/html"}, b"<html>Forbidden"), StorageError, "does not speak S3"),
    ],
)
def test_every_answer_that_is_an_error_becomes_one_sentence(told, kind, words):
    with pretending(missing_until_put(told)) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        for use in (
            lambda: storage.put(NAME, [b"x"]),
            lambda: storage.get(NAME),
            lambda: list_of(storage, "data"),
        ):
            error = failure(use)
            assert type(error) is kind, error
            assert words in str(error)


@pytest.mark.parametrize("told", [PAGE, XHTML, NO_PAGE])
def test_a_web_server_is_known_as_one_whatever_is_asked(told):
    with pretending(lambda method, path: told) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        for use in (*every_use(storage)[:-1], storage.create):
            assert "does not speak S3" in str(failure(use))


def test_a_server_that_knows_no_conditions_is_asked_without_them():
    stored: list[str] = []

    def answer(method: str, path: str) -> Answer:
        if method == "HEAD":
            return 404, {}, b""
        stored.append(path)
        return an_error(501, "NotImplemented") if len(stored) == 1 else (200, {"ETag": '"e"'}, b"")

    with pretending(answer) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        storage.put(NAME, [b"x"])
        storage.put("config", [b"x"])
    assert len(stored) == 3


@pytest.mark.parametrize(
    ("told", "there", "kind"),
    [
        (an_error(412, "PreconditionFailed"), False, ObjectExists),
        (an_error(409, "ConditionalRequestConflict"), True, ObjectExists),
        (an_error(409, "ConditionalRequestConflict"), False, StorageUnavailable),
    ],
)
def test_whoever_comes_second_is_told_so_when_it_is_sure(told: Answer, there, kind):
    asked: list[str] = []
    found = (200, {"ETag": '"e"', "Last-Modified": "Sat, 21 Nov 2026 23:02:40 GMT"}, b"x")

    def answer(method: str, path: str) -> Answer:
        asked.append(method)
        if method == "PUT":
            return told
        return found if there and "PUT" in asked else (404, {}, b"")

    with pretending(answer) as server:
        error = failure(open_storage(f"s3:{server.url}/bucket", Access(KEYS)).put, NAME, [b"x"])
    assert type(error) is kind


@pytest.mark.parametrize("promised", ["1000", None])
def test_an_answer_that_ends_early_is_no_object(promised):
    headers = {"ETag": '"e"', "Last-Modified": "Sat, 21 Nov 2026 23:02:40 GMT", "Connection": "close"}
    if promised:
        headers["Content-Length"] = promised
    else:
        headers |= {"Content-Length": "7", "Content-Range": "bytes 0-9/10"}
    with pretending(lambda method, path: (206 if not promised else 200, headers, b"short")) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        for use in (lambda: storage.get(NAME), lambda: storage.get(NAME, 0, 10)):
            assert not isinstance(failure(use), ObjectMissing)


def test_a_server_that_is_gone_in_the_middle_is_worth_a_retry():
    def gone(method: str, path: str) -> Answer:
        raise ConnectionError

    with pretending(gone) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        for use in every_use(storage):
            assert isinstance(failure(use), StorageUnavailable)


def test_whoever_knows_no_ranges_sends_everything_and_the_range_is_cut_out():
    headers = {"ETag": '"e"', "Last-Modified": "Sat, 21 Nov 2026 23:02:40 GMT"}
    with pretending(lambda method, path: (200, headers, b"0123456789")) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        assert storage.get(NAME, 3, 4) == b"3456"
        assert storage.get(NAME, 3) == b"3456789"
        assert "truncated" in str(failure(storage.get, NAME, 3, 8))


def test_a_listing_without_an_end_is_an_error():
    body = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    with pretending(lambda method, path: (200, {"Content-Type": "application/xml"}, body)) as server:
        storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
        assert "how its listing" in str(failure(list_of, storage, "data"))


# -- TLS -------------------------------------------------------------------------------------------------------------


def test_a_certificate_must_be_trusted_and_for_the_servers_address(tmp_path):
    headers = {"ETag": '"e"', "Last-Modified": "Sat, 21 Nov 2026 23:02:40 GMT"}
    for address, words in (("127.0.0.1", "cannot be verified"), ("127.0.0.2", "is for another name")):
        certificate = a_certificate(tmp_path / address, address)
        with pretending(lambda method, path: (200, headers, b"x"), certificate) as server:
            trusting = Access({**KEYS, "HOLDFAST_CA_FILE": str(certificate)})
            storage = open_storage(f"s3:{server.url}/bucket", trusting)
            if address == "127.0.0.1":
                assert storage.get(NAME) == b"x"
                storage = open_storage(f"s3:{server.url}/bucket", Access(KEYS))
            error = failure(storage.get, NAME)
            assert isinstance(error, StorageDenied)
            assert str(error) == f"The certificate of {server.url} {words}."


def test_a_server_that_speaks_no_tls_is_said_to(node):
    error = failure(open_storage(f"s3:https://127.0.0.1:{node.port}/bucket", node.access()).get, NAME)
    assert "does not speak TLS" in str(error)


@pytest.mark.parametrize("address", ["s3:https://host/bucket", "az://container", "gs://bucket"])
def test_a_ca_file_that_is_not_there_is_refused(tmp_path, address):
    variables = {"HOLDFAST_CA_FILE": str(tmp_path / "none"), "AZURE_STORAGE_ACCOUNT_NAME": "a"}
    with pytest.raises(UsageError):
        open_storage(address, Access(variables))
