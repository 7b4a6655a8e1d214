"""Buckets of S3: moto's, which lets one of many win; and rclone's, which knows no conditions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.places import Open, Place, at
from tests.support.s3 import a_bucket, moto_of, rclone_of


def _moto(request: pytest.FixtureRequest) -> Iterator[Place]:
    node, bucket = moto_of(request), a_bucket()
    yield at(
        f"s3:{node.url}/{bucket}/backups/one",
        node.access(),
        one_wins=True,
        filled=lambda names: node.fill(bucket, "backups/one/", names),
    )


def _rclone(request: pytest.FixtureRequest) -> Iterator[Place]:
    node, bucket = rclone_of(request), a_bucket()
    yield at(
        f"s3:{node.url}/{bucket}",
        node.access(),
        one_wins=False,
        whole=False,
        filled=lambda names: node.fill(bucket, names),
    )


PLACES: dict[str, Open] = {"s3-moto": _moto, "s3-rclone": _rclone}
