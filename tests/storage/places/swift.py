"""OpenStack Swift: a container, by the log-in of Swift itself; and the same node's S3 interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.storage.select import Access
from tests.storage.places import Open, Place, at
from tests.support.openstack import a_container, swift_of


def _swift(request: pytest.FixtureRequest) -> Iterator[Place]:
    node, container = swift_of(request), a_container()
    yield at(
        f"swift://{container}/backups/one",
        Access(node.variables),
        one_wins=False,
        filled=lambda names: node.fill(container, "backups/one/", names),
    )


def _s3(request: pytest.FixtureRequest) -> Iterator[Place]:
    node, bucket = swift_of(request), a_container()
    yield at(
        f"s3:{node.url}/{bucket}/backups",
        Access(node.s3_variables),
        one_wins=False,
        filled=lambda names: node.fill(bucket, "backups/", names),
    )


PLACES: dict[str, Open] = {"swift": _swift, "s3-swift": _s3}
