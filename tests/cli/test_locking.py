"""`backup --lock-days`: what a snapshot needs cannot be deleted before, on a real S3 server with Object Lock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.commands import Commands
from tests.support.s3 import a_bucket, moto_of
from tests.support.trees import noise, write

DAY, SLACK = timedelta(days=1), timedelta(minutes=5)


@pytest.fixture
def node(request):
    return moto_of(request)


@pytest.fixture
def bucket(node):
    name = a_bucket()
    node.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


@pytest.fixture
def holdfast(node, bucket, tmp_path):
    variables = {**node.access().variables, "HOLDFAST_PASSWORD": "secret", "HOLDFAST_KEY_FILE": ""}
    called = Commands(f"s3:{node.url}/{bucket}/repo", tmp_path / "no-key", tmp_path, variables)
    called("init")
    return called


def ends(node, bucket):
    """How much longer each object is locked, by its name; None where it is not."""
    found, client = {}, node.client()
    for item in client.list_objects_v2(Bucket=bucket)["Contents"]:
        until = client.head_object(Bucket=bucket, Key=item["Key"]).get("ObjectLockRetainUntilDate")
        found[item["Key"].removeprefix("repo/")] = until and until - datetime.now(UTC)
    return found


def test_what_a_snapshot_needs_is_locked_and_the_next_one_makes_the_locks_last(node, bucket, holdfast, tmp_path):
    source = write(tmp_path / "source", {"a": noise(300_000), "b": "b"})
    holdfast("backup", source, "--lock-days", "10")
    first = ends(node, bucket)
    assert {name.partition("/")[0] for name in first} == {"config", "keys", "data", "index", "snapshots"}
    assert all(abs(left - 10 * DAY) < SLACK for left in first.values())
    (source / "c").write_text("c")
    holdfast("backup", source, "--lock-days", "30")
    second = ends(node, bucket)
    snapshots = [n for n in first if n.startswith("snapshots/")]
    assert len(second) > len(first)
    for name, left in second.items():
        old = name in snapshots or (name in first and name.startswith("data/") and abs(left - 10 * DAY) < SLACK)
        assert abs(left - (10 if old else 30) * DAY) < SLACK, name
    kept = [n for n in first if n.startswith("data/") and abs(second[n] - 30 * DAY) < SLACK]
    assert kept  # the pack of the files that did not change


def test_without_it_nothing_is_locked(node, bucket, holdfast, tmp_path):
    holdfast("backup", write(tmp_path / "source", {"a": "a"}))
    assert not any(ends(node, bucket).values())


def test_only_s3_can_lock_and_that_is_said_before_anything_is_done(tmp_path):
    holdfast = Commands(
        tmp_path / "repo", tmp_path / "no-key", tmp_path, {"HOLDFAST_PASSWORD": "x", "HOLDFAST_KEY_FILE": ""}
    )
    holdfast("init")
    done = holdfast("backup", write(tmp_path / "source", {"a": "a"}), "--lock-days", "3", status=2)
    assert "Only repositories on S3" in done.error


def test_a_bucket_without_object_lock_is_named(node, tmp_path):
    bucket = a_bucket()
    node.client().create_bucket(Bucket=bucket)
    variables = {**node.access().variables, "HOLDFAST_PASSWORD": "x", "HOLDFAST_KEY_FILE": ""}
    holdfast = Commands(f"s3:{node.url}/{bucket}/repo", tmp_path / "no-key", tmp_path, variables)
    holdfast("init")
    done = holdfast("backup", write(tmp_path / "source", {"a": "a"}), "--lock-days", "3", status=None)
    assert done.status != 0
    assert bucket in done.error and "Object Lock" in done.error
