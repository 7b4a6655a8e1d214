"""OpenStack Swift: a container, by the log-in of Swift itself."""

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


PLACES: dict[str, Open] = {"swift": _swift}
