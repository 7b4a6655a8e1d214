"""Buckets of Azure, shown with Azurite, and of Google, as far as that goes without one."""

from __future__ import annotations

import json
import time
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
from holdfast.storage.select import Access, open_storage
from tests.storage.answers import NAME, PAGE, an_error, every_use, failure
from tests.storage.writing import an_object
from tests.support.azurite import azurite_of
from tests.support.pretender import Answer, pretending
from tests.support.rclone import free_port
from tests.support.s3 import a_bucket
from tests.support.storages import list_of


def test_azure_keeps_the_contract(request):
    node, container = azurite_of(request), a_bucket()
    storage = open_storage(f"az://{container}/some backups/one", node.access())
    for use in (*every_use(storage), storage.create):
        assert str(failure(use)).startswith(f"There is no bucket {container} at Azure")
    node.make_container(container)
    storage.create()
    objects = dict(an_object(folder, 1000) for folder in ("data", "keys", "locks", "data"))
    for name, data in objects.items():
        storage.put(name, [data[:7], data[7:]])
        assert isinstance(failure(storage.put, name, [b"other"]), ObjectExists)
        assert storage.get(name) == data
        assert [storage.get(name, *r) for r in ((5, 7), (1000,), (0, 0), (999, 1))] == [
            data[5:12],
            b"",
            b"",
            data[999:],
        ]
        for beyond in ((1001,), (999, 2), (0, 1 << 40), (1001, 0)):
            assert "truncated" in str(failure(storage.get, name, *beyond))
    listed = [info for folder in ("data", "keys", "locks") for info in list_of(storage, folder)]
    assert {i.name for i in listed} == set(objects)
    for info in listed:
        assert storage.stat(info.name) == info
        assert abs(info.stored_ns - time.time_ns()) < 60_000_000_000
        storage.delete(info.name)
        storage.delete(info.name)
        assert isinstance(failure(storage.get, info.name), ObjectMissing)


@pytest.mark.parametrize("key", ["d3Jvbmc=", "no base64 !"])
def test_wrong_credentials_of_azure_are_denied(request, key):
    access = azurite_of(request).access(AZURE_STORAGE_ACCOUNT_KEY=key)
    with pytest.raises((StorageDenied, UsageError)) as caught:
        open_storage("az://container/a", access).get(NAME)
    assert key not in str(caught.value)


def test_azure_needs_an_account():
    with pytest.raises(UsageError, match="whose container"):
        open_storage("az://container/a", Access())


def test_a_credentials_file_of_google_must_be_there(tmp_path):
    for variable in ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"):
        with pytest.raises(UsageError, match="variables for Google"):
            open_storage("gs://bucket/a", Access({variable: str(tmp_path / "none.json")}))


ACCOUNT = {"gcs_base_url": "", "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
GOOGLE = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(ACCOUNT)}


def always(told: Answer) -> Callable[[str, str], Answer]:
    return lambda method, path: told


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_servers_that_cannot_be_reached_or_speak_otherwise_are_told_apart(scheme):
    def storage_at(url: str):
        azure = {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "YQ==", "AZURE_STORAGE_ENDPOINT": url}
        return open_storage(f"{scheme}://bucket/a", Access({**azure, **GOOGLE, "GOOGLE_BASE_URL": url}))

    uses = [lambda s: s.get(NAME), lambda s: s.stat(NAME), lambda s: list_of(s, "data"), lambda s: s.put(NAME, [b"x"])]
    for use in uses:
        assert isinstance(failure(use, storage_at(f"http://127.0.0.1:{free_port()}")), StorageUnavailable)
    for told, kind in (
        (an_error(503, "ServerBusy"), StorageUnavailable),
        (an_error(403, "AuthenticationFailed"), StorageDenied),
        (an_error(507, "InsufficientStorage"), StorageFull),
        (PAGE, StorageError),
        (an_error(404, "NoSuchBucket" if scheme == "gs" else "ContainerNotFound"), StorageError),
    ):
        with pretending(always(told)) as server:
            for number, use in enumerate(uses):
                assert type(failure(use, storage_at(server.url))) is kind, (told, number)
