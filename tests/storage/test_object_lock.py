"""Object Lock: what is stored cannot be deleted before its days are over, not even with all credentials."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from holdfast.errors import ObjectMissing, StorageDenied, StorageError, UsageError
from holdfast.storage.local import LocalStorage
from holdfast.storage.object_lock import extend_locks
from holdfast.storage.select import Access, open_storage
from holdfast.storage.wrappers import Passing
from tests.storage.writing import an_object
from tests.support.s3 import a_bucket, moto_of

DAY = timedelta(days=1)
SLACK = timedelta(minutes=5)


@pytest.fixture
def node(request):
    return moto_of(request)


@pytest.fixture
def locking(node):
    """``locking(days)``: a storage that locks, and its bucket."""

    def open_one(days: int = 7, **variables: str):
        bucket = a_bucket()
        access = node.access(HOLDFAST_S3_LOCK_DAYS=str(days), **variables)
        storage = open_storage(f"s3:{node.url}/{bucket}/p", access)
        storage.create()
        return storage, bucket

    return open_one


def until(storage, name: str) -> timedelta:
    """How much longer an object is locked."""
    left: timedelta = storage.locked_until(name) - datetime.now(UTC)
    return left


@pytest.mark.parametrize("folder", ["data", "index", "snapshots", "keys"])
def test_an_object_is_locked_from_the_moment_it_is_stored(locking, folder):
    storage, _ = locking(7)
    name, data = an_object(folder)
    storage.put(name, [data])
    assert abs(until(storage, name) - 7 * DAY) < SLACK
    assert storage.get(name) == data


def test_the_config_is_locked_and_leases_are_not(locking):
    storage, _ = locking(3)
    lease, data = an_object("locks")
    storage.put("config", [b"c"])
    storage.put(lease, [data])
    assert until(storage, "config") > 2 * DAY
    assert storage.locked_until(lease) is None
    storage.delete(lease)
    with pytest.raises(ObjectMissing):
        storage.stat(lease)


def test_no_credentials_delete_a_locked_version_and_a_deleted_name_hides_it_only(node, locking):
    storage, bucket = locking(7)
    name, data = an_object("keys")
    storage.put(name, [data])
    version = node.client().list_object_versions(Bucket=bucket)["Versions"][0]["VersionId"]
    asked = {"Bucket": bucket, "Key": f"p/{name}", "VersionId": version}
    with pytest.raises(ClientError, match="AccessDenied"):
        node.client().delete_object(**asked)
    storage.delete(name)
    with pytest.raises(ObjectMissing):
        storage.get(name)
    assert node.client().get_object(**asked)["Body"].read() == data


def test_locks_are_extended_only_where_they_would_end_earlier(locking):
    storage, _ = locking(7)
    names = [an_object("data")[0] for _ in range(3)]
    for name in names:
        storage.put(name, [b"x"])
    now = datetime.now(UTC)
    storage.lock(names[0], now + 90 * DAY)
    assert extend_locks(Passing(storage), names, 30, now) == 2
    assert extend_locks(storage, names, 30, now) == 0
    assert [round(until(storage, name) / DAY) for name in names] == [90, 30, 30]


def test_what_was_stored_without_a_lock_can_be_locked_later(node, locking):
    storage, bucket = locking(7)
    plain = open_storage(f"s3:{node.url}/{bucket}/p", node.access())
    name, data = an_object()
    plain.put(name, [data])
    assert storage.locked_until(name) is None
    assert extend_locks(plain, [name], 5, datetime.now(UTC)) == 1
    assert abs(until(storage, name) - 5 * DAY) < SLACK


@pytest.mark.parametrize("mode", ["COMPLIANCE", "governance"])
def test_the_mode_is_the_one_that_was_asked_for(node, locking, mode):
    storage, bucket = locking(7, HOLDFAST_S3_LOCK_MODE=mode)
    storage.put("config", [b"c"])
    told = node.client().head_object(Bucket=bucket, Key="p/config")
    assert told["ObjectLockMode"] == mode.upper()


def test_a_bucket_without_object_lock_is_named_at_once(node):
    bucket = a_bucket()
    node.client().create_bucket(Bucket=bucket)
    storage = open_storage(f"s3:{node.url}/{bucket}", node.access(HOLDFAST_S3_LOCK_DAYS="3"))
    for use in (storage.create, lambda: storage.put("config", [b"c"])):
        with pytest.raises(StorageError, match=f"The bucket {bucket} at .* has no Object Lock"):
            use()
    with pytest.raises(ObjectMissing):
        storage.get("config")


def test_whoever_may_nothing_may_not_lock(node, locking):
    storage, bucket = locking(7)
    storage.put("config", [b"c"])
    nobody = node.access(AWS_ACCESS_KEY_ID=node.users["none"], AWS_SECRET_ACCESS_KEY=node.users["none_secret"])
    other = open_storage(f"s3:{node.url}/{bucket}/p", nobody)
    with pytest.raises(StorageDenied):
        extend_locks(other, ["config"], 90, datetime.now(UTC))
    assert abs(until(storage, "config") - 7 * DAY) < SLACK


def test_what_is_missing_cannot_be_locked(locking):
    storage, _ = locking(7)
    with pytest.raises(ObjectMissing):
        extend_locks(storage, [an_object()[0]], 3, datetime.now(UTC))


def test_only_buckets_of_s3_have_object_lock(tmp_path):
    with pytest.raises(UsageError, match="has no Object Lock"):
        extend_locks(LocalStorage(tmp_path), ["config"], 3, datetime.now(UTC))


@pytest.mark.parametrize("days", [0, -1, 10**6])
def test_days_that_make_no_sense_are_refused(locking, days):
    storage, _ = locking(7)
    with pytest.raises(UsageError):
        extend_locks(storage, [], days, datetime.now(UTC))


@pytest.mark.parametrize(
    "variables",
    [
        *({"HOLDFAST_S3_LOCK_DAYS": days} for days in ("0", "-1", "x", "1.5", "99999999", "1" * 5000, "٣")),
        {"HOLDFAST_S3_LOCK_DAYS": "3", "HOLDFAST_S3_LOCK_MODE": "for ever"},
    ],
)
def test_variables_that_make_no_sense_are_refused(variables):
    with pytest.raises(UsageError, match="HOLDFAST_S3_LOCK_"):
        open_storage("s3://bucket/p", Access(variables))
